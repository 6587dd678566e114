"""Many streams in one step: each equals the same stream alone, whoever joins, leaves or waits."""

import dataclasses

import numpy as np
import pytest

from streamjax.stream import Sampling, StreamBatch, Thresholds, program
from tests.stream.oracle import SMALL, SYSTEM, make_frames

LONG = "tell me when the light turns red green what is it now moving ball"


@dataclasses.dataclass(frozen=True)
class Plan:
    """One stream: when it joins, how many turns, every how many steps; its questions and choices.

    questions: (turn, words, the turn it is withdrawn before or None).
    """

    join: int
    turns: int
    pace: int = 1
    questions: tuple = ()
    options: tuple = ()

    def drive(self, session, frames, turn, handles):
        """Asks and withdraws what is due; the frame to push."""
        for i, (at, text, until) in enumerate(self.questions):
            if at == turn:
                handles[i] = session.ask(text)
            if until == turn:
                session.withdraw(handles[i])
        return frames[turn]


# The first two forget questions in the same steps, more than the sinks hold, of unlike lengths; the
# third is slow; the fourth takes a slot over, with all that the one before has left in it.
PLANS = (
    Plan(0, 30, questions=tuple((t, LONG if t % 2 else "what is it", None) for t in range(24))),
    Plan(0, 14, questions=(
        *((t, "what is it" if t % 2 else LONG, None) for t in range(8)),
        (9, "is it moving now", 11), (6, "is it green", 12), (12, "now", 12),
    )),
    Plan(4, 9, pace=3, questions=((2, "is it red", 6),),
         options=(("sampling", Sampling(temperature=1.5, top_p=0.9, seed=7)),
                  ("thresholds", Thresholds(respond=0.3, standby=0.3, hysteresis=None)))),
    Plan(17, 12, questions=((1, "what is it now", None),),
         options=(("sampling", Sampling(repetition_penalty=3.0)),)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_bucket(monkeypatch):
    monkeypatch.setattr("streamjax.stream.engine.TEXT_BUCKETS", (64, 64, 64, 128, 256, 512))


def programs():
    kinds = (program.turn, program.read, program.speak, program.pin, program.cut, program.clear)
    return [kind._cache_size() for kind in kinds]


def together(model, words, frames, options):
    """(the turns of every plan, the number of programs at every step)."""
    batch = StreamBatch(model, slots=3, tokenizer=words, **options)
    sessions, handles, found, counts = {}, [{} for _ in PLANS], [[] for _ in PLANS], []
    for step in range(32):
        for i, plan in enumerate(PLANS):
            if step == plan.join:
                sessions[i] = batch.join(system=SYSTEM, **dict(plan.options))
        pushed = {}
        for i, session in list(sessions.items()):
            plan, turn = PLANS[i], len(found[i])
            if turn == plan.turns:
                session.close()
                del sessions[i]
            elif (step - plan.join) % plan.pace == 0:
                pushed[session] = plan.drive(session, frames[i], turn, handles[i])
        turns = batch.push(pushed) if pushed else {}
        for i, session in sessions.items():
            if session in turns:
                found[i].append(turns[session])
        counts.append(programs())
    return found, counts


def alone(model, words, frames, plan, options):
    session = StreamBatch(model, slots=1, tokenizer=words, **options).join(
        system=SYSTEM, **dict(plan.options)
    )
    handles = {}
    return [session.push(plan.drive(session, frames, turn, handles)) for turn in range(plan.turns)]


CASES = [
    ("llava", dict(window=3)),
    ("llava", dict(policy="refill", window=3, every=2)),
    ("qwen3_vl", dict(window=3)),
    ("qwen3_vl", dict(policy="recent", window=2)),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_each_stream_equals_itself_alone(models, words, family, options):
    model, options = models(family), SMALL | options
    pictures = make_frames(model, 4 * 32)
    frames = [pictures[i * 32 : (i + 1) * 32] for i in range(4)]
    found, counts = together(model, words, frames, options)
    for i, plan in enumerate(PLANS):
        expected = alone(model, words, frames[i], plan, options)
        assert len(found[i]) == len(expected) == plan.turns
        for a, b in zip(found[i], expected, strict=True):
            np.testing.assert_allclose(
                a.probabilities, b.probabilities, atol=1e-5, err_msg=f"stream {i} turn {a.index}"
            )
            assert (a.tokens, a.state, a.text) == (b.tokens, b.state, b.text), (i, a.index)
    # The third stream brings the program that draws words, and that is the last one.
    assert counts[14] == counts[-1], counts


def test_slots_and_strangers(models, words):
    model = models("llava")
    frames = make_frames(model, 3)
    batch = StreamBatch(model, slots=2, tokenizer=words, **SMALL)
    a, b = batch.join(system=SYSTEM), batch.join(system=SYSTEM)
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        batch.join()
    with pytest.raises(ValueError, match="0 frames: wanted one for at least one stream"):
        batch.push({})
    batch.push({a: frames[0], b: frames[1]})
    with pytest.raises(ValueError, match="a stream of another batch"):
        StreamBatch(model, slots=1, tokenizer=words, **SMALL).push({a: frames[0]})
    b.close()
    b.close()
    with pytest.raises(ValueError, match="the stream is closed"):
        batch.push({a: frames[1], b: frames[1]})
    with pytest.raises(ValueError, match=r"the system prompt has \d+ tokens, wanted below"):
        batch.join(system="what is it " * 100)
    c = batch.join(system=SYSTEM)
    assert batch.push({a: frames[1], c: frames[2]})[c].index == 0


def test_one_that_cannot_go_holds_no_other_up(models, words):
    """A turn that is refused for one stream leaves all of them where they were."""
    model = models("llava")
    frames = make_frames(model, 6)
    batch = StreamBatch(model, slots=2, tokenizer=words, policy="full", **SMALL)
    a, b = batch.join(system=SYSTEM), batch.join(system=SYSTEM)
    for i in range(3):
        batch.push({a: frames[i], b: frames[i]})
    handle = a.ask("what is it " * 120)
    with pytest.raises(ValueError, match="past its capacity of 400"):
        batch.push({b: frames[3], a: frames[3]})
    a.withdraw(handle)
    turns = batch.push({a: frames[3], b: frames[3]})
    assert turns[a].index == turns[b].index == 3
    plain = StreamBatch(model, slots=2, tokenizer=words, policy="full", **SMALL)
    c = plain.join(system=SYSTEM)
    for i in range(4):
        expected = plain.push({c: frames[i]})[c]
    for session in (a, b):
        np.testing.assert_allclose(turns[session].probabilities, expected.probabilities, atol=1e-6)
