"""Running a traced stream again: the same settings, frames and questions, turn against turn."""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamjax.errors import InputError
from streamjax.models.vlm import VideoLM
from streamjax.stream.session import Session, Turn
from streamjax.stream.settings import machine, reopen
from streamjax.stream.trace import Trace, clock, read_trace

# How far probabilities may lie apart where library or machine are others than the trace's: sums
# are rounded in another order then. Where they are the same, nothing may.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first turn that came out differently: `what` (a field of Turn, or `frames` where the
    video has none for it), as it was traced, and as it was found now."""

    index: int
    time: float
    what: str
    traced: Any
    found: Any

    def __str__(self) -> str:
        head = f"turn {self.index} ({clock(self.time)})"
        if self.what == "frames":
            return f"{head}: the trace has {self.traced} turns, the video {self.found} frames"
        return f"{head}: {self.what} {self.traced} in the trace, {self.found} now"


def tolerance_for(model: VideoLM, trace: Trace) -> float:
    """What probabilities may differ by, for `model` on this machine."""
    return 0.0 if machine(model) == trace.made else TOLERANCE[model.dtype.name]


def replay(
    model: VideoLM,
    trace: Trace | str | Path,
    frames: Iterable[Any],
    *,
    tokenizer: Any = None,
    tolerance: float | None = None,
) -> Difference | None:
    """Runs a traced stream again and returns the first difference, or None.

    model, frames: those it ran on, frames as they were pushed. tolerance: what probabilities may
    differ by; None allows nothing, and `TOLERANCE` of the model's type where the library, its
    version, the device or the number of streams in the batch are not the trace's. States and
    tokens may never differ. Raises InputError for a trace that does not begin with turn 0 or is of
    another model, and whatever `read_trace` raises.
    """
    if not isinstance(trace, Trace):
        trace = read_trace(trace)
    if trace.model.get("class") != type(model).__name__:
        raise InputError(
            f"{trace.path}: the trace of a {trace.model.get('class')}, found a model that is a "
            f"{type(model).__name__}"
        )
    if trace.turns and trace.turns[0].index:
        raise InputError(
            f"{trace.path}: begins with turn {trace.turns[0].index}, wanted 0: what came before it "
            "is not in the trace"
        )
    stream = reopen(model, trace.settings, source=trace.path, tokenizer=tokenizer)
    if tolerance is None:
        tolerance = tolerance_for(model, trace)
    shown = iter(frames)
    for turn in trace.turns:
        _ask_again(stream, trace.path, turn)
        frame = next(shown, None)
        if frame is None:
            return Difference(turn.index, turn.time, "frames", len(trace.turns), turn.index)
        found = stream.push(frame, turn.chunk, keep=turn.keep)
        if (difference := _first(turn, found, tolerance)) is not None:
            return difference
    return None


def _ask_again(stream: Session, path: str, turn: Turn) -> None:
    try:
        handles = [stream.ask(asked.text, at=asked.at) for asked in turn.asked]
        for handle in turn.withdrawn:
            stream.withdraw(handle)
    except ValueError as error:
        raise InputError(f"{path}: turn {turn.index}: {error}") from None
    if handles != (wanted := [asked.handle for asked in turn.asked]):
        raise InputError(f"{path}: turn {turn.index}: questions {wanted}, wanted {handles}")


def _first(traced: Turn, found: Turn, tolerance: float) -> Difference | None:
    pairs = itertools.zip_longest(traced.probabilities, found.probabilities)
    if any(abs(a - b) > tolerance for a, b in pairs):
        what = "probabilities"
    else:
        names = ("state", "tokens", "text")
        what = next((n for n in names if getattr(traced, n) != getattr(found, n)), None)
    if what is None:
        return None
    return Difference(traced.index, traced.time, what, getattr(traced, what), getattr(found, what))
