"""Every family under every policy against its oracle, far beyond what the policy keeps."""

import numpy as np
import pytest

from tests.stream import oracle
from tests.stream.oracle import Transcript, check, check_whole, make_frames, restricted, watch

TURNS, WINDOW = 106, 4
# (turn, words, the turn it is withdrawn before): one stands for ever; others are withdrawn from the
# sink, from the window, and before they are put.
QUESTIONS = (
    (1, "tell me when the light turns red"),
    (3, "what is it", 20),
    (20, "is it moving now"),
    (30, "what is it now", 32),
    (32, "is it green", 32),
)


@pytest.fixture(params=oracle.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(autouse=True)
def one_bucket(monkeypatch):
    """Chunks of all lengths in one program: compiling is most of what these tests cost."""
    monkeypatch.setattr("streamjax.stream.engine.TEXT_BUCKETS", (64, 64, 64, 128, 256, 512))


def case(models, words, family, questions, turns=TURNS, **options):
    model = models(family)
    frames = make_frames(model, turns)
    seen = watch(model, words, frames, questions, **options)
    return frames, Transcript(model, words, seen, questions)


def started(window, every=1):
    """The first whole turn at each turn: `every` are forgotten when window + every would be in."""

    def start(turn):
        return max(0, (turn + 1 - window) // every * every)

    return start


def test_full_is_the_forward_over_the_transcript(models, words, family):
    frames, transcript = case(models, words, family, QUESTIONS[:1], turns=7, policy="full")
    check_whole(transcript, transcript.prompts(lambda turn: 0), frames)


def test_session_is_attention_to_what_is_retained(models, words, family):
    frames, transcript = case(models, words, family, QUESTIONS, window=WINDOW)
    assert len({turn.state for turn in transcript.turns}) == 3, "the case is too easy"
    logits = restricted(transcript, frames, started(WINDOW))
    for turn, at in enumerate(transcript.decides):
        check(transcript, turn, logits, at)
    # Forgetting changes the result: the check above could not tell otherwise.
    whole = restricted(transcript, frames, started(TURNS))
    at = transcript.decides[-1]
    assert np.abs(logits[at] - whole[at]).max() > 1e-2


@pytest.mark.parametrize("every", [1, 3])
def test_refill_is_the_forward_over_the_windowed_dialogue(models, words, family, every):
    questions = QUESTIONS if every == 1 else QUESTIONS[:1]
    frames, transcript = case(
        models, words, family, questions, policy="refill", window=WINDOW, every=every
    )
    check_whole(transcript, transcript.prompts(started(WINDOW, every)), frames)


def test_recent_is_the_forward_over_questions_and_the_last_frames(models, words, family):
    frames, transcript = case(models, words, family, QUESTIONS, policy="recent", window=3)
    check_whole(transcript, transcript.recent(3), frames)
