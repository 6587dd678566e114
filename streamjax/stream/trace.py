"""What a stream decided, as files: a trace of one JSON line a turn, and the answers as subtitles.

A trace suffices to run the stream again (stream/replay.py) and to make its decisions again without
the model (`redecide`). Its first line says what the stream was made of:

    {"trace": 1, "made": {...}, "model": {...}, "stream": {...}}

and every further one is a turn. Numbers are written so that they are read back bit for bit.
"""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from streamjax.data.dialogue import RESPONSE, STATES
from streamjax.errors import InputError
from streamjax.stream.decisions import STATE_NAMES
from streamjax.stream.session import Asked, Session, Turn
from streamjax.stream.settings import machine, model_of

VERSION = 1

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


@dataclasses.dataclass(frozen=True)
class Trace:
    """A trace as it was read: turns as the stream gave them.

    made: the library and machine. model: its class and its folder's name. settings: the stream's,
    for `stream.settings.reopen`.
    """

    path: str
    made: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    turns: list[Turn]

    @property
    def probabilities(self) -> list[tuple[float, ...]]:
        """Of the three states, turn by turn: what `redecide` takes."""
        return [turn.probabilities for turn in self.turns]

    @property
    def questions(self) -> list[Question]:
        """What was asked, and when, as the report wants it."""
        return [
            (turn.time if asked.at is None else asked.at, asked.text)
            for turn in self.turns
            for asked in turn.asked
        ]


def header_of(stream: Session) -> dict[str, Any]:
    """A trace's first line; to be asked for after the first turn, when all settings are known."""
    batch = stream._batch
    return {
        "trace": VERSION,
        "made": machine(batch._model, batch.slots),
        "model": model_of(batch._model),
        "stream": stream.settings,
    }


def write_trace(path: str | Path, header: Mapping[str, Any], turns: Iterable[Turn]):
    """Writes a whole trace: the header (`header_of`), and one JSON object a line and turn.

    Nothing is left half-written: the file appears under its name when it is complete.
    """
    write_whole(path, "".join([_line(header), *(_line(_told(turn)) for turn in turns)]))


@contextlib.contextmanager
def tracing(path: str | Path, stream: Session) -> Iterator[Callable[[Turn], None]]:
    """Gives a function of a turn that writes it down at once, for streams that may end anyhow.

    The file is there from the first turn on, and whole to the last one that was told.
    """
    path = Path(path)
    with contextlib.ExitStack() as files:
        out = None

        def tell(turn: Turn) -> None:
            nonlocal out
            if out is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                out = files.enter_context(path.open("w", encoding="utf-8"))
                out.write(_line(header_of(stream)))
            out.write(_line(_told(turn)))
            out.flush()

        yield tell


def read_trace(path: str | Path) -> Trace:
    """Reads a trace. Of one that a crash has cut in its last line, the whole lines, with a warning.

    Raises FileNotFoundError, and InputError with file and line for anything else that is no trace.
    """
    path = Path(path)
    *lines, tail = path.read_bytes().split(b"\n")
    if _object(tail) is not None:  # all there but for the newline
        lines, tail = [*lines, tail], b""
    header = _parsed(path, 1, lines[0] if lines else tail)
    if header.get("trace") != VERSION:
        found = header.get("trace", "none")
        raise InputError(
            f"{path} line 1: trace version {found}, wanted {VERSION} in a first line of settings"
        )
    made, model, settings = (header.get(name) for name in ("made", "model", "stream"))
    if not (isinstance(made, dict) and isinstance(model, dict) and isinstance(settings, dict)):
        raise InputError(f"{path} line 1: wanted objects under made, model and stream")
    turns: list[Turn] = []
    for number, line in enumerate(lines[1:], 2):
        turn = _turn(path, number, _parsed(path, number, line))
        if turns and turn.index != turns[-1].index + 1:
            raise InputError(
                f"{path} line {number}: turn {turn.index} after turn {turns[-1].index}"
            )
        turns.append(turn)
    if tail:
        warnings.warn(
            f"{path} line {len(lines) + 1} is cut off: read the {len(turns)} turns before it",
            stacklevel=2,
        )
    return Trace(str(path), made, model, settings, turns)


def _told(turn: Turn) -> dict[str, Any]:
    told: dict[str, Any] = {
        "index": int(turn.index),
        "time": float(turn.time),
        "state": turn.state.strip("</>"),
        "probabilities": [float(p) for p in turn.probabilities],
        "text": turn.text,
        "tokens": list(turn.tokens),
        "latency": {name: round(float(s), 6) for name, s in turn.latency.items()},
    }
    if turn.asked:
        told["asked"] = [dataclasses.asdict(asked) for asked in turn.asked]
    if turn.withdrawn:
        told["withdrawn"] = list(turn.withdrawn)
    if turn.chunk is not None:
        told["chunk"], told["keep"] = list(turn.chunk), turn.keep
    return told


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    found = _object(line)
    if found is None:
        start = line[:40].decode(errors="replace")
        raise InputError(f"{path} line {number}: wanted a JSON object, found {start!r}")
    return found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are(check: Callable[[Any], bool], values: Any) -> bool:
    return isinstance(values, list) and all(map(check, values))


def _is_asked(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"handle", "text", "at"}
        and _is_count(value["handle"])
        and isinstance(value["text"], str)
        and (value["at"] is None or _is_number(value["at"]))
    )


# A turn's fields: what each has to be, and in words.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "index": (_is_count, "a turn's number"),
    "time": (_is_number, "seconds"),
    "state": (lambda v: v in STATE_NAMES, f"one of {', '.join(STATE_NAMES)}"),
    "probabilities": (lambda v: _are(_is_number, v) and len(v) == 3, "three numbers"),
    "text": (lambda v: isinstance(v, str), "words"),
    "tokens": (lambda v: _are(_is_count, v), "token ids"),
    "latency": (
        lambda v: isinstance(v, dict) and all(map(_is_number, v.values())),
        "seconds by part",
    ),
    "asked": (lambda v: _are(_is_asked, v), "objects of handle, text and at"),
    "withdrawn": (lambda v: _are(_is_count, v), "handles"),
    "chunk": (lambda v: _are(lambda i: isinstance(i, int), v), "token ids"),
    "keep": (_is_count, "a number of tokens"),
}
_OPTIONAL = ("asked", "withdrawn", "chunk", "keep")


def _turn(path: Path, number: int, told: dict[str, Any]) -> Turn:
    for name in told.keys() - _FIELDS.keys():
        raise InputError(f"{path} line {number}: unknown field {name!r}")
    for name, (holds, wanted) in _FIELDS.items():
        if name not in told and name not in _OPTIONAL:
            raise InputError(f"{path} line {number}: no field {name!r}")
        if name in told and not holds(told[name]):
            found = json.dumps(told[name])[:40]
            raise InputError(f"{path} line {number}: {name} is {found}, wanted {wanted}")
    chunk = told.get("chunk")
    return Turn(
        index=told["index"],
        time=told["time"],
        state=STATES[STATE_NAMES.index(told["state"])],
        probabilities=tuple(told["probabilities"]),
        text=told["text"],
        latency=told["latency"],
        tokens=tuple(told["tokens"]),
        asked=tuple(Asked(**asked) for asked in told.get("asked", ())),
        withdrawn=tuple(told.get("withdrawn", ())),
        chunk=None if chunk is None else tuple(chunk),
        keep=told.get("keep", 0),
    )


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
