"""The trace is one honest JSON line a turn; the subtitles are WebVTT that a player accepts."""

import dataclasses
import json

import pytest

from streamjax.errors import InputError
from streamjax.stream import Turn, trace
from streamjax.stream.session import Asked, Session

HEADER = {"trace": 1, "made": {"jax": "1"}, "model": {"class": "Q"}, "stream": {"window": 3}}


def Said(index: int, time: float, state="</Silence>", probabilities=(0.9, 0.06, 0.04), text=""):
    latency = {"vision": 0.01, "decode": 0.02}
    return Turn(index, time, state, probabilities, text, latency, tokens=(1,))


def answer(index: int, text: str) -> Turn:
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


# With everything that a turn may hold; the numbers have no short decimals.
TURNS = [
    dataclasses.replace(Said(0, 0.0, probabilities=(1 / 3, 2 / 3, 1e-30)), latency={}),
    dataclasses.replace(
        answer(1, "Grün & <red>\n\u2028"),
        asked=(Asked(1, "And now?", None), Asked(2, "Später?", 2.5)), withdrawn=(1,),
    ),
    dataclasses.replace(Said(2, 2.0), chunk=(5, -200, 6), keep=1),
]  # fmt: skip


def test_a_trace_has_a_header_and_a_line_a_turn(tmp_path):
    path = tmp_path / "new" / "clip.jsonl"
    trace.write_trace(path, HEADER, [Said(0, 0.0), *TURNS[1:]])
    header, *lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert header == HEADER
    assert lines[0] == {
        "index": 0,
        "time": 0.0,
        "state": "Silence",
        "probabilities": [0.9, 0.06, 0.04],
        "text": "",
        "tokens": [1],
        "latency": {"vision": 0.01, "decode": 0.02},
    }
    assert lines[1]["asked"][1] == {"handle": 2, "text": "Später?", "at": 2.5}
    assert (lines[1]["withdrawn"], lines[2]["chunk"], lines[2]["keep"]) == ([1], [5, -200, 6], 1)
    assert "Grün & <red>" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["clip.jsonl"]


def test_what_is_read_is_what_was_written(tmp_path):
    trace.write_trace(tmp_path / "a.jsonl", HEADER, TURNS)
    found = trace.read_trace(tmp_path / "a.jsonl")
    assert found.turns == TURNS
    assert (found.made, found.model, found.settings) == tuple(
        HEADER[name] for name in ("made", "model", "stream")
    )
    assert found.probabilities == [turn.probabilities for turn in TURNS]
    assert found.questions == [(1.0, "And now?"), (2.5, "Später?")]


def test_a_trace_that_grows_is_whole_at_every_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "header_of", lambda stream: HEADER)
    path = tmp_path / "new" / "a.jsonl"
    with trace.tracing(path, object.__new__(Session)) as tell:
        assert list(tmp_path.iterdir()) == []
        for count, turn in enumerate(TURNS, 1):
            tell(turn)
            assert trace.read_trace(path).turns == TURNS[:count]


@pytest.mark.filterwarnings("error")
def test_a_trace_that_was_cut_is_read_up_to_there(tmp_path):
    path = tmp_path / "a.jsonl"
    trace.write_trace(path, HEADER, TURNS)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(ends[0], len(whole)):
        path.write_bytes(whole[:size])
        count = sum(end <= size + 1 for end in ends) - 1
        if size in ends or size + 1 in ends:  # a newline alone is nothing
            assert trace.read_trace(path).turns == TURNS[:count]
            continue
        with pytest.warns(UserWarning, match=rf"line {count + 2} is cut off: read the {count} "):
            assert trace.read_trace(path).turns == TURNS[:count]
    for size in (0, 1, ends[0] - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="line 1: wanted a JSON object"):
            trace.read_trace(path)


GOOD = json.dumps(trace._told(TURNS[0]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD], "line 1: trace version none, wanted 1"),
        ([json.dumps(HEADER | {"trace": 9})], "line 1: trace version 9, wanted 1"),
        ([json.dumps(HEADER | {"made": 3})], "line 1: wanted objects under made"),
        ([json.dumps(HEADER), "{", GOOD], "line 2: wanted a JSON object, found '{'"),
        ([json.dumps(HEADER), "\xff"], "line 2: wanted a JSON object"),
        ([json.dumps(HEADER), GOOD, GOOD], "line 3: turn 0 after turn 0"),
        ([json.dumps(HEADER), GOOD.replace("index", "idx")], "line 2: unknown field 'idx'"),
        ([json.dumps(HEADER), '{"index": 0}'], "line 2: no field 'time'"),
        ([json.dumps(HEADER), GOOD.replace("Silence", "silent")], "wanted one of Silence, Stand"),
        ([json.dumps(HEADER), GOOD.replace("[1]", '["a"]')], "tokens is .* wanted token ids"),
        ([json.dumps(HEADER), GOOD.replace(", 1e-30", "")], "probabilities is .* wanted three"),
    ],
)
def test_what_is_no_trace(tmp_path, lines, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(line + "\n" for line in lines).encode("latin-1"))
    with pytest.raises(InputError, match=message) as told:
        trace.read_trace(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(FileNotFoundError):
        trace.read_trace(tmp_path / "nothing")


def test_subtitles_show_answers_only_and_end_when_the_next_one_comes(tmp_path):
    turns = [Said(0, 0.0), answer(3, "One --> two\n\n& three"), answer(4, "x" * 60), Said(9, 9.0)]
    trace.write_subtitles(tmp_path / "a.vtt", turns)
    head, first, second = (tmp_path / "a.vtt").read_text().split("\n\n")
    assert head == "WEBVTT"
    assert first == "00:00:03.000 --> 00:00:04.000\nOne --&gt; two &amp; three"
    assert second == f"00:00:04.000 --> 00:00:08.000\n{'x' * 60}\n"


def test_no_turns_make_an_empty_trace(tmp_path):
    trace.write_trace(tmp_path / "a.jsonl", HEADER, [])
    trace.write_subtitles(tmp_path / "a.vtt", [])
    assert trace.read_trace(tmp_path / "a.jsonl").turns == []
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
