"""The trace is one honest JSON line a turn; the subtitles are WebVTT that a player accepts."""

import json
from dataclasses import dataclass, field

import pytest

from streamjax.stream import trace


@dataclass
class Said:
    index: int
    time: float
    state: str = "</Silence>"
    probabilities: tuple = (0.9, 0.06, 0.04)
    text: str = ""
    latency: dict = field(default_factory=lambda: {"vision": 0.01, "decode": 0.02})


def answer(index: int, text: str) -> Said:
    return Said(index, float(index), "</Response>", (0.1, 0.1, 0.8), text)


@pytest.mark.parametrize(
    ("time", "read"),
    [
        (0.0, "0:00"),
        (7.0, "0:07"),
        (7.46, "0:07.5"),
        (754.0, "12:34"),
        (3723.0, "1:02:03"),
        (59.96, "1:00"),
    ],
)
def test_clock(time, read):
    assert trace.clock(time) == read


def test_trace_has_one_line_a_turn_and_the_question_where_it_was_put(tmp_path):
    turns = [Said(0, 0.0), answer(1, "Grün & <red>"), Said(2, 2.0)]
    path = tmp_path / "new" / "clip.jsonl"
    trace.write_trace(path, turns, [(0.5, "And now?"), (99.0, "Too late?")])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "index": 0,
        "time": 0.0,
        "state": "Silence",
        "probabilities": [0.9, 0.06, 0.04],
        "text": "",
        "latency": {"vision": 0.01, "decode": 0.02},
    }
    assert [line.get("question") for line in lines] == [None, "And now?", "Too late?"]
    assert lines[1]["text"] == "Grün & <red>"
    assert [p.name for p in path.parent.iterdir()] == ["clip.jsonl"]


def test_subtitles_show_answers_only_and_end_when_the_next_one_comes(tmp_path):
    turns = [Said(0, 0.0), answer(3, "One --> two\n\n& three"), answer(4, "x" * 60), Said(9, 9.0)]
    trace.write_subtitles(tmp_path / "a.vtt", turns)
    head, first, second = (tmp_path / "a.vtt").read_text().split("\n\n")
    assert head == "WEBVTT"
    assert first == "00:00:03.000 --> 00:00:04.000\nOne --&gt; two &amp; three"
    assert second == f"00:00:04.000 --> 00:00:08.000\n{'x' * 60}\n"


def test_no_turns_make_an_empty_trace(tmp_path):
    trace.write_trace(tmp_path / "a.jsonl", [], [(0.0, "Anyone?")])
    trace.write_subtitles(tmp_path / "a.vtt", [])
    assert (tmp_path / "a.jsonl").read_text() == ""
    assert (tmp_path / "a.vtt").read_text() == "WEBVTT\n"


def test_total_latency_wins_over_the_sum_of_the_parts():
    turn = Said(0, 0.0)
    assert trace.seconds_taken(turn) == pytest.approx(0.03)
    turn.latency["total"] = 0.05
    assert trace.seconds_taken(turn) == 0.05


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        trace.write_whole(tmp_path / "a.txt", "half \ud800")
    assert list(tmp_path.iterdir()) == []
