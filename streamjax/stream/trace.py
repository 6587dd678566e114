"""What a stream decided, as files: one JSON line a turn, and the answers as subtitles."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from streamjax.data.dialogue import RESPONSE, STATES

STATE_NAMES = tuple(state.strip("</>") for state in STATES)  # Silence, Standby, Response

# A subtitle stays for the reading time of its words (characters a second), within these seconds.
_READING_SPEED = 15.0
_SHORTEST, _LONGEST = 2.0, 8.0


@runtime_checkable
class TracedTurn(Protocol):
    """The fields of stream.session.Turn that are written down; `time` and latencies in seconds."""

    @property
    def index(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def state(self) -> str: ...
    @property
    def probabilities(self) -> Sequence[float]: ...
    @property
    def text(self) -> str: ...
    @property
    def latency(self) -> Mapping[str, float]: ...


Question = tuple[float, str]  # when it was asked, in seconds of the video, and its words


def seconds_taken(turn: TracedTurn) -> float:
    """How long the turn took: its `total` latency, or the sum of the parts."""
    return float(turn.latency.get("total", sum(turn.latency.values())))


def is_answer(turn: TracedTurn) -> bool:
    """Whether the turn said something: a Response with words in it."""
    return turn.state == RESPONSE and bool(turn.text.strip())


def one_line(words: str) -> str:
    """The words on one line, without what a terminal or a player would take for a command."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def clock(time: float) -> str:
    """Seconds as people read them: `0:07`, `12:34`, `1:02:03`; part of a second as `0:07.5`."""
    tenths = round(time * 10)
    whole, tenth = divmod(tenths, 10)
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    head = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{head}:{seconds:02}" + (f".{tenth}" if tenth else "")


def write_trace(path: str | Path, turns: Iterable[TracedTurn], questions: Sequence[Question] = ()):
    """Writes one JSON object a line and turn: index, time, state, the three probabilities (in the
    order Silence, Standby, Response), text, latency in seconds, and the question where one was put.

    Nothing is left half-written: the file appears under its name when it is complete.
    """
    turns = list(turns)
    asked = questions_by_turn(turns, questions)
    lines = []
    for turn in turns:
        line: dict[str, Any] = {
            "index": int(turn.index),
            "time": round(float(turn.time), 6),
            "state": turn.state.strip("</>"),
            "probabilities": [round(float(p), 6) for p in turn.probabilities],
            "text": turn.text,
            "latency": {name: round(float(s), 6) for name, s in turn.latency.items()},
        }
        if turn.index in asked:
            line["question"] = "\n".join(asked[turn.index])
        lines.append(json.dumps(line, ensure_ascii=False))
    write_whole(path, "".join(line + "\n" for line in lines))


def write_subtitles(path: str | Path, turns: Iterable[TracedTurn]):
    """Writes the answers as WebVTT: each from its turn's time until it is read or replaced."""
    answers = [turn for turn in turns if is_answer(turn)]
    cues = ["WEBVTT\n"]
    for turn, until in zip(answers, answer_ends(answers), strict=True):
        words = one_line(turn.text)  # an empty line would end the cue
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_stamp(turn.time)} --> {_stamp(until)}\n{words}\n")
    write_whole(path, "\n".join(cues))


def answer_ends(answers: Sequence[TracedTurn]) -> list[float]:
    """When each answer leaves the screen: after its reading time, or when the next one comes."""
    ends = []
    for i, turn in enumerate(answers):
        reading = min(max(len(turn.text) / _READING_SPEED, _SHORTEST), _LONGEST)
        following = answers[i + 1].time if i + 1 < len(answers) else float("inf")
        ends.append(float(min(turn.time + reading, following)))
    return ends


def write_whole(path: str | Path, text: str):
    """Writes the file under a temporary name and then renames it: whole, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def questions_by_turn(
    turns: Sequence[TracedTurn], questions: Sequence[Question]
) -> dict[int, list[str]]:
    """The questions under the index of the first turn at or after their time, or the last turn."""
    found: dict[int, list[str]] = {}
    for time, words in questions:
        turn = next((t for t in turns if t.time >= time), turns[-1] if turns else None)
        if turn is not None:
            found.setdefault(turn.index, []).append(words)
    return found


def _stamp(time: float) -> str:
    milliseconds = round(time * 1000)
    whole, fraction = divmod(milliseconds, 1000)
    minutes, seconds = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}.{fraction:03}"
