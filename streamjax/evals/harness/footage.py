"""The pictures that a benchmark's question is about: a video's file or a folder of pictures, and
which of them are looked at. Nothing behind a question's end is decoded."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from streamjax.data.video import Clip, open_clip
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Question

PICTURES = (".jpg", ".jpeg", ".png")
_NEAR = 1e-6  # seconds: times are fractions of a clock

Frame = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Footage:
    """An opened video.

    fps: mean frames a second. seconds: when each frame is shown, from 0. each: rising numbers of
    frames -> the frames, decoded one by one as they are taken.
    """

    fps: float | int
    seconds: Float[np.ndarray, "t"]
    each: Callable[[Sequence[int]], Iterable[Frame]]

    def at(self, second: float | int) -> int:
        """The number of the frame that is shown at a second."""
        found = int(np.searchsorted(self.seconds, second + _NEAR, side="right")) - 1
        return max(found, 0)

    def read(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames at indices that do not fall; one that comes again is not decoded again."""
        frames = iter(self.each(sorted(set(indices))))
        last, frame = -1, None
        for index in indices:
            if index != last:
                last, frame = index, next(frames)
            assert frame is not None
            yield frame


@dataclass(frozen=True)
class Look:
    """Which frames are looked at, where it is not as the question says.

    frames: so many, as the question spreads them. fps: one each 1/fps seconds. recent: of those,
    the last so many before the question's end (without fps: one a second).
    """

    frames: int | None = None
    fps: float | int | None = None
    recent: int | None = None


@contextlib.contextmanager
def opened(root: Path, name: str, *, pictures_fps: float | int = 1.0) -> Iterator[Footage]:
    """Opens a video by its name below `root`: a file, or a folder of JPEG or PNG pictures.

    pictures_fps: pictures a second of such a folder, which are taken in the order of their names.
    Raises InputError for a path that leaves `root`, by a link too, for a missing and for a broken
    video.
    """
    path = inside(root, name)
    if path.is_dir():
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not pictures:
            raise InputError(f"{path}: no pictures; wanted a video, or a folder of JPEG or PNG")
        for picture in pictures:
            inside(root, str(picture.relative_to(root.resolve())))
        seconds = np.arange(len(pictures)) / pictures_fps
        yield Footage(
            pictures_fps, seconds, lambda which: map(_picture, [pictures[i] for i in which])
        )
        return
    with open_clip(path) as clip:
        assert isinstance(clip, Clip)  # nothing is kept
        yield Footage(clip.fps, clip.seconds, clip.each)


def inside(root: Path, name: str) -> Path:
    """The path of `name` below `root`, where it exists and does not lead out, by a link neither.

    Raises InputError where it does.
    """
    root = root.resolve()
    try:
        path = (root / name).resolve()
        exists = path.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, a ring of links
        raise InputError(f"{name[:80]!r}: no video's name") from None
    if not path.is_relative_to(root) or path == root:
        raise InputError(f"{name}: leads out of the videos' folder {root}")
    if not exists:
        raise InputError(f"{root / name}: no such video; wanted it there, or --videos FOLDER")
    return path


def chosen(footage: Footage, question: Question, look: Look) -> list[int]:
    """The numbers of the frames that a question looks at, rising; at least one, none after its end.

    A stretch without a frame of its own has the one that is shown at its start.
    """
    seconds, end = footage.seconds, question.end
    stop = len(seconds) if end is None else int(np.searchsorted(seconds, end - _NEAR))
    start = int(np.searchsorted(seconds, question.start - _NEAR))
    if start >= stop:
        start = footage.at(question.start)
        stop = start + 1
    if look.recent is not None:
        apart = 1 / (look.fps or 1.0)
        back = (look.recent - 1 - np.arange(look.recent)) * apart
        times = seconds[stop - 1] - back
        return [footage.at(t) for t in times[times >= seconds[start] - _NEAR].tolist()]
    count = question.frames if look.frames is None else look.frames
    if look.fps is not None or count is None:
        fps = look.fps or 1.0
        # On the clock of the stretch, which may begin between two frames.
        begin = min(max(question.start, float(seconds[start])), float(seconds[stop - 1]))
        turns = int(np.floor((seconds[stop - 1] - begin) * fps + _NEAR)) + 1
        return [footage.at(begin + turn / fps) for turn in range(turns)]
    if question.spread is not None:
        spread = question.spread(footage.fps, len(seconds), question.start, end, count)
        last = len(seconds) - 1 if end is None else stop - 1
        return sorted(min(max(int(index), 0), last) for index in spread)
    total = stop - start
    count = min(count, total)
    return [start + int((i + 0.5) * total / count) for i in range(count)]


def _picture(path: Path) -> Frame:
    with open_clip(path) as clip:
        return clip.read([0])[0]


def watched(footage: Footage, fps: float | int, end: float | int | None) -> list[int]:
    """The numbers of the frames shown at 0, 1/fps, 2/fps, ... before `end` and the video's end."""
    whole = float(footage.seconds[-1]) + 1 / footage.fps
    until = whole if end is None else min(end, whole)
    turns = max(int(np.ceil(until * fps - _NEAR)), 1)
    return [footage.at(turn / fps) for turn in range(turns)]


def file_name(id: str) -> str:
    """An item's id as a file's name: what may mean a path or nothing to a file system is `_`."""
    plain = re.sub(r"[^\w.-]", "_", id)
    if id and plain == id and len(id) <= 100 and not id.startswith((".", "-")):
        return id
    return f"{plain[:80].lstrip('.')}-{hashlib.sha256(id.encode()).hexdigest()[:8]}"
