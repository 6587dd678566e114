"""A traced stream runs again bit for bit, and the first thing that differs is told."""

import dataclasses

import jax
import pytest

import streamjax as sj
from streamjax.errors import InputError
from streamjax.stream import Sampling, StreamBatch, Thresholds, engine, redecide, trace
from tests.stream import kept

pytestmark = pytest.mark.xdist_group("kept")  # one worker compiles for both files
THRESHOLDS = Thresholds(0.4, 0.3, hysteresis=0.1)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    before, engine.TEXT_BUCKETS = engine.TEXT_BUCKETS, kept.BUCKETS
    yield
    engine.TEXT_BUCKETS = before


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sj.load(kept.write_assistant(tmp_path_factory.mktemp("replay")))


@pytest.fixture(scope="module")
def frames(model):
    return kept.frames_for(model)


@pytest.fixture(scope="module")
def path(model, frames, tmp_path_factory):
    """A trace with questions asked, timed and withdrawn, before, in and behind the window."""
    sampling = Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.2, seed=3)
    stream = sj.Stream(model, fps=2, sampling=sampling, thresholds=THRESHOLDS, **kept.SMALL)
    path = tmp_path_factory.mktemp("trace") / "a.jsonl"
    red = stream.ask("tell me when the light turns red")
    stream.ask("what is it now", at=4.25)
    with trace.tracing(path, stream) as tell:
        for i, frame in enumerate(frames):
            if i == 6:
                moving = stream.ask("is the ball moving")
            if i == 7:
                stream.withdraw(moving)  # still in the window
            if i == 15:
                stream.withdraw(red)  # long out of it
            tell(stream.push(frame))
    return path


def test_a_replay_is_bit_exact(model, frames, path):
    traced = sj.read_trace(path)
    assert len({turn.state for turn in traced.turns}) == 3
    assert [(t.index, t.withdrawn) for t in traced.turns if t.withdrawn] == [(7, (3,)), (15, (1,))]
    assert sj.replay(model, path, frames) is None
    assert sj.replay(model, traced, frames, tolerance=0.0) is None


def test_token_chunks_are_replayed_too(tmp_path):
    """M-RoPE, in bfloat16, under `refill`; the programs are the same for both."""
    model = sj.load(kept.write_qwen(tmp_path))
    stream = sj.Stream(
        model, policy="refill", every=2, state_ids=(1, 2, 3), end_id=59, **kept.SMALL
    )
    turns = kept.watch(stream, model, 0, 8)
    trace.write_trace(tmp_path / "a.jsonl", trace.header_of(stream), turns)
    with pytest.raises(ValueError, match=r"the ids \[60\] stand for visual tokens"):
        sj.Stream(model, state_ids=(1, 2, 3), end_id=60)
    assert turns[0].keep == 3 and turns[1].chunk is not None
    assert sj.replay(model, tmp_path / "a.jsonl", kept.frames_for(model)) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            dict(probabilities=(0.2, 0.3, 0.5)),
            r"turn 3 \(0:01.5\): probabilities \(0.2, 0.3, 0.5\)",
        ),
        (dict(tokens=(1, 2, 3)), r"turn 3 .*: tokens \(1, 2, 3\) in the trace, "),
        (dict(text="else"), r"turn 3 .*: text else in the trace, "),
        (dict(chunk=(0,)), None),
    ],
)
def test_the_first_difference_is_told(model, frames, path, change, told):
    traced = sj.read_trace(path)
    traced.turns[3] = dataclasses.replace(traced.turns[3], **change)
    if told is None:
        with pytest.raises(ValueError, match="0 placeholders"):
            sj.replay(model, traced, frames)
        return
    found = sj.replay(model, traced, frames)
    assert found is not None and found.index == 3
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(str(found))


def test_the_last_bit_counts_on_the_same_machine_alone(model, frames, path):
    traced = sj.read_trace(path)
    first, *rest = traced.turns[2].probabilities
    off = (first + 1e-6, *rest)
    traced.turns[2] = dataclasses.replace(traced.turns[2], probabilities=off)
    found = sj.replay(model, traced, frames)
    assert found is not None and (found.index, found.what) == (2, "probabilities")
    assert sj.replay(model, traced, frames, tolerance=1e-5) is None
    elsewhere = dataclasses.replace(traced, made=traced.made | {"device": "another"})
    assert sj.replay(model, elsewhere, frames) is None


def test_other_weights_and_a_short_video(model, frames, path):
    trained = jax.tree.map(lambda a: a * 1.01, model)
    found = sj.replay(trained, path, frames)
    assert found is not None and (found.index, found.what) == (0, "probabilities")
    found = sj.replay(model, path, frames[:4])
    assert str(found) == "turn 4 (0:02): the trace has 26 turns, the video 4 frames"


def test_a_stream_of_a_batch_is_replayed_within_the_tolerance(model, frames, tmp_path):
    batch = StreamBatch(model, slots=2, **kept.SMALL)
    quiet = Thresholds(respond=1.0)  # words would compile another program
    one, two = (batch.join(thresholds=quiet) for _ in range(2))
    turns = [batch.push({one: frame, two: frames[0]})[one] for frame in frames[:6]]
    trace.write_trace(tmp_path / "a.jsonl", trace.header_of(one), turns)
    assert sj.read_trace(tmp_path / "a.jsonl").made["slots"] == 2
    assert sj.replay(model, tmp_path / "a.jsonl", frames) is None


def test_traces_that_cannot_be_replayed(model, frames, path):
    traced = sj.read_trace(path)
    late = dataclasses.replace(traced, turns=traced.turns[2:])
    other = dataclasses.replace(traced, model={"class": "InternVL"})
    asked = dataclasses.replace(traced.turns[0].asked[0], handle=7)
    mixed = dataclasses.replace(
        traced, turns=[dataclasses.replace(traced.turns[0], asked=(asked,))]
    )
    settings = traced.settings
    for broken, message in (
        (late, "begins with turn 2, wanted 0"),
        (other, "the trace of a InternVL, found a model that is a LlavaStreamFormer"),
        (mixed, r"turn 0: questions \[7\], wanted \[1\]"),
        (dataclasses.replace(traced, settings={}), "no capacity, every, fps"),
        (
            dataclasses.replace(traced, settings=settings | {"policy": "all"}),
            "policy is 'all', wanted",
        ),
        (
            dataclasses.replace(traced, settings=settings | {"sampling": {"heat": 1}}),
            "settings that make no stream",
        ),
    ):
        with pytest.raises(InputError, match=message):
            sj.replay(model, broken, frames)


def test_decisions_are_made_again_from_a_trace(path):
    traced = sj.read_trace(path)
    states = [sj.data.dialogue.STATES[i] for i in redecide(traced.probabilities, THRESHOLDS)]
    assert states == [turn.state for turn in traced.turns]
