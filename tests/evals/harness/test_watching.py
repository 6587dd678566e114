"""Streams are watched frame by frame: questions at their seconds, silence before, where they end."""

import pytest

from streamjax.data.container import Source
from streamjax.data.dialogue import RESPONSE, SILENCE
from streamjax.evals.benchmarks.benchmark import Watching
from streamjax.evals.harness.watching import Watcher
from streamjax.stream.replay import replay
from streamjax.stream.trace import read_trace

WORDS = "tell me when the light turns red"


@pytest.fixture(scope="module")
def watch(assistant, videos, tmp_path_factory):
    traces = tmp_path_factory.mktemp("traces")

    def watch(fps=5.0, **given):
        watcher = Watcher(assistant[1], videos, fps=fps, most=4, traces=traces)
        video = given.pop("video", "a.mp4")
        said = watcher(Watching("an/id", video, ((1.0, WORDS),), **given))
        (path,) = traces.glob("an_id-*.jsonl")
        return said, read_trace(path)

    return watch


def test_a_stream_is_asked_at_the_second_and_silent_before(watch, assistant, videos):
    said, trace = watch(speaks_from=1.0)
    assert len(trace.turns) == 20
    assert [turn.state for turn in trace.turns[:5]] == [SILENCE] * 5
    assert [asked.at for turn in trace.turns for asked in turn.asked] == [1.0]
    spoken = [turn for turn in trace.turns if turn.state != SILENCE]
    assert said == [[t.time, f"{t.state} {t.text}".strip()] for t in spoken]
    loud, _ = watch()
    assert [at for at, _ in loud if at < 1.0]  # what was held back
    from streamjax.data.video import video

    # The silence is in the trace's settings.
    assert replay(assistant[1], trace, list(video(videos / "a.mp4", fps=5))) is None


def test_the_first_response_ends_it(watch):
    said, trace = watch(speaks_from=1.0, until="response")
    assert [text.startswith(RESPONSE) for _, text in said][-1]
    assert sum(text.startswith(RESPONSE) for _, text in said) == 1
    assert said[-1][0] == trace.turns[-1].time >= 1.0


def test_no_frame_of_the_end_or_later_is_decoded(watch, monkeypatch):
    latest, frames = [], Source.frames

    def counted(self):
        for at, frame in frames(self):
            latest.append(float(at))
            yield at, frame

    monkeypatch.setattr(Source, "frames", counted)
    _, trace = watch(end=2.0)
    assert len(trace.turns) == 10 and max(latest) == pytest.approx(1.8)
    _, trace = watch(fps=1.0, end=2.0)
    assert [turn.time for turn in trace.turns] == [0, 1]


def test_a_folder_of_pictures(watch):
    _, trace = watch(fps=1.0, video="pictures")
    assert len(trace.turns) == 4
