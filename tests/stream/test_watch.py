"""Watching: questions are handed on, every turn is shown and kept, Ctrl-C still leaves files."""

import numpy as np

from streamjax.stream import trace, watch
from tests.stream.test_trace import HEADER, Said, answer


class Fake:
    """Says something on every third frame."""

    def __init__(self, stop_at=None):
        self.asked, self.count, self.stop_at = [], 0, stop_at

    def ask(self, text, at=None):
        self.asked.append((at, text))

    def push(self, frame):
        if self.count == self.stop_at:
            raise KeyboardInterrupt
        i, self.count = self.count, self.count + 1
        return answer(i, f"turn {i}") if i % 3 == 2 else Said(i, float(i))


FRAMES = np.zeros((7, 8, 8, 3), np.uint8)


def test_every_turn_is_shown_and_kept():
    shown, stream = [], Fake()
    seen = watch.watch(stream, FRAMES, [(2.0, "What?")], show=shown.append)
    assert stream.asked == [(2.0, "What?")]
    assert shown == seen.turns and len(seen.turns) == len(seen.pictures) == 7
    assert not seen.stopped


def test_ctrl_c_ends_the_watching_and_the_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "header_of", lambda stream: HEADER)
    seen = watch.watch(Fake(stop_at=4), FRAMES)
    assert seen.stopped and len(seen.turns) == len(seen.pictures) == 4
    paths = watch.write_files(seen, tmp_path / "out" / "clip.one", title="clip")
    assert [p.name for p in paths] == ["clip.one.vtt", "clip.one.jsonl", "clip.one.report.html"]
    assert all(p.stat().st_size for p in paths)
    assert trace.read_trace(paths[1]).turns == seen.turns
    paths = watch.write_files(seen, tmp_path / "more" / "clip", title="clip", traced=True)
    assert [p.name for p in paths] == ["clip.vtt", "clip.report.html"]


def test_nothing_seen_nothing_written(tmp_path):
    assert watch.write_files(watch.watch(Fake(), []), tmp_path / "clip", title="clip") == []
    assert list(tmp_path.iterdir()) == []


def test_a_turn_is_one_line_in_fixed_columns():
    assert watch.turn_line(answer(2, "two\n\x1b[2Jlines")) == (
        "    0:02  Response    0.100   0.100    0.800    30.0 ms  two [2Jlines"
    )
    quiet = watch.turn_line(Said(0, 0.0))
    assert quiet == "    0:00  Silence     0.900   0.060    0.040    30.0 ms"
    assert watch.HEADER.index("latency") + len("latency") == quiet.index("ms") + 2
