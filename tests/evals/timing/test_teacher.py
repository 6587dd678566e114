"""States at the true history: where a stream's own answers are the truth, they are the stream's."""

import numpy as np
import pytest

import streamjax as sj
from streamjax.data.dialogue import user_content
from streamjax.errors import InputError
from streamjax.evals.timing.teacher import Teacher
from tests.stream import oracle

QUESTIONS = {0: "tell me when the light turns red", 3: "what is it now"}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return oracle.make_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
def test_it_equals_a_stream_that_was_told_the_truth(family, words):
    model = oracle.make_model(family, words)
    frames = oracle.make_frames(model, 9)
    # Says no word, whose tokens might be others.
    mute = sj.Thresholds(respond=1.0, standby=0.3 if family == "llava" else 0.02)
    stream = sj.Stream(
        model, tokenizer=words, system=oracle.SYSTEM, thresholds=mute, **oracle.SMALL
    )
    messages = [{"role": "system", "content": oracle.SYSTEM}]
    turns = []
    for i, frame in enumerate(frames):
        if i in QUESTIONS:
            stream.ask(QUESTIONS[i])
        turns.append(stream.push(frame))
        messages += [
            {"role": "user", "content": user_content(i, QUESTIONS.get(i))},
            {"role": "assistant", "content": turns[-1].state},
        ]
    assert len({turn.state for turn in turns}) == 2
    shares = Teacher(model, words)(messages, frames)
    np.testing.assert_allclose(shares, [turn.probabilities for turn in turns], atol=1e-4)


def test_what_is_too_long_is_told(words):
    model = oracle.make_model("llava", words)
    user = {"role": "user", "content": f"{'green ' * 1100}\n<image>"}
    messages = [user, {"role": "assistant", "content": "</Silence>"}]
    with pytest.raises(InputError, match="tokens, wanted at most 1024"):
        Teacher(model, words)(messages, oracle.make_frames(model, 1))
