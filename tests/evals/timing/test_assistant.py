"""Free-running evaluation of the checkpoint that comes along, many dialogues at once."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import streamjax as sj
from streamjax.data.assistant import read_clips
from streamjax.evals.timing import assistant as evals
from streamjax.stream import Thresholds

HOME = Path(__file__).parents[3] / "checkpoints" / "world-assistant"


@pytest.fixture(scope="module")
def model():
    return sj.load(HOME, dtype=jnp.float32)


@pytest.fixture(scope="module")
def clips(small_world):
    world = small_world / "world"
    return read_clips(world / "streamo" / "train.json", root=world / "videos")


@pytest.fixture(scope="module")
def run(model, clips):
    told = []
    seen = evals.free_run(model, clips, 5, slots=3, progress=lambda *done: told.append(done))
    return seen, told


def test_dialogues_come_in_their_order_whichever_ended_first(model, clips, run):
    seen, told = run
    assert told == [(n, 5) for n in range(1, 6)]
    chosen = evals.held_out(clips, 5)
    assert [w.video for w in seen] == [clip.video_path.stem for clip, _ in chosen]
    fewer = evals.free_run(model, clips, 2, slots=3)  # beside other dialogues they went the same
    for one, other in zip(fewer, seen, strict=False):
        assert (one.question, one.wanted, one.given) == (other.question, other.wanted, other.given)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_a_turn_is_the_likeliest_state_unless_thresholds_say_other(model, clips, run):
    for one in run[0]:
        assert len(one.given.states) == len(one.wanted.states) == len(one.probabilities)
        assert tuple(np.argmax(one.probabilities, axis=1)) == one.given.states
    mute = evals.free_run(model, clips, 2, slots=3, thresholds=Thresholds(respond=1.0))
    assert all(2 not in one.given.states for one in mute)


def test_what_was_answered_is_kept_and_read(run, tmp_path):
    evals.keep(tmp_path / "test.json", run[0])
    assert evals.kept(tmp_path / "test.json") == run[0]
