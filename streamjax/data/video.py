"""Video in and out: one sequential decoder (PyAV) behind `video`, `read_frames` and `probe`.

Decoding is sequential on purpose: at one frame per second a seek per frame costs four to five
times as much on files with long groups of pictures (benchmarks/bench_decode.py;
specs/performance.md section 6). Groups of which no frame is wanted are read but not decoded, so
that short ones cost no more than seeks. Frames are found by their time stamps, so a variable frame
rate and 29.97 fps need no special case, and they come out upright: the display matrix that phones
write is applied. Pixels are taken as square.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from jaxtyping import Float, UInt8

from streamjax.data.container import SMALL, Frame, Source, VideoInfo, scaled, told
from streamjax.data.media import Media
from streamjax.errors import InputError


def video(
    source: Any,
    *,
    fps: int | float = 1,
    rule: Literal["time", "train"] = "time",
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
    timeout: int | float = 10,
) -> "Video":
    """Opens a video to be watched at `fps` frames per second; iterate over it for the frames.

    source: a path; an http(s), rtsp, rtmp or hls url; a webcam's index (0, or "0"); or frames
        that are already sampled: uint8 [t h w 3] or any iterable of uint8 [h w 3].
    fps: frames wanted per second, > 0.
    rule: "time" gives for turn i the frame shown i/fps seconds after the first one, for every i
        before the video's end: no drift, whatever the source's rate. "train" gives the frames
        that Streamo's training takes (every trunc(source fps / fps)-th, which drifts; specs/
        streamo.md section 2.1); it needs a file.
    max_frames: stop after so many.
    size: (height, width) to scale every frame to (bicubic); None keeps the source's.
    timeout: seconds that a url may take to answer.

    Returns a `Video`: iterating yields uint8 RGB [h w 3]; `.fps`, `.times` (seconds of the frames
    given so far) and `.info` go with it. A live source that is watched too slowly skips turns
    instead of falling behind.

    InputError (one line that names the source): missing, empty, truncated (told after the last
    good frame), not a video, without frames, or a url or camera that does not answer.
    """
    return Video(source, fps=fps, rule=rule, max_frames=max_frames, size=size, timeout=timeout)


class Video:
    """An opened video (see `video`). Iterating a file twice reads it twice.

    fps: frames per second that it is watched at.
    times: seconds (from the first frame) at which the frames given so far are shown in the source.
    info: VideoInfo of the source; None for frames that were handed in.
    """

    def __init__(self, source, *, fps, rule, max_frames, size, timeout):
        if not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
            raise InputError(f"fps={fps!r}: wanted a number of frames per second above 0")
        if rule not in ("time", "train"):
            raise InputError(f"rule={rule!r}: wanted 'time' or 'train'")
        if max_frames is not None and max_frames < 1:
            raise InputError(f"max_frames={max_frames!r}: wanted at least 1, or None")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InputError(f"size={size!r}: wanted (height, width) in pixels, or None")
        self.fps = float(fps)
        self.times: list[float] = []
        self.info: VideoInfo | None = None
        self._rule, self._max_frames, self._size = rule, max_frames, size
        self._source, self._timeout = source, timeout
        self._opened: Source | None = None
        if isinstance(source, str | os.PathLike | int):
            self._opened = Source(source, timeout)
            self.info = self._opened.info()
            if rule == "train" and self._opened.live:
                raise InputError(f"{self._opened.name}: rule='train' needs a file; use 'time'")

    def __iter__(self) -> Iterator[Frame]:
        self.times = []
        picked = self._given() if self.info is None else self._decoded(self.info)
        return itertools.islice(picked, self._max_frames)

    def _given(self) -> Generator[Frame]:
        for index, frame in enumerate(self._source):
            frame = _checked(np.asarray(frame), f"frame {index}")
            if self._size is not None and frame.shape[:2] != self._size:
                frame = scaled(av.VideoFrame.from_ndarray(frame, format="rgb24"), self._size)
            self.times.append(index / self.fps)
            yield frame

    def _decoded(self, info: VideoInfo) -> Generator[Frame]:
        opened = self._opened or Source(self._source, self._timeout)
        self._opened = None
        with contextlib.closing(opened):
            if self._rule == "train":
                from streamjax.data.dialogue import frame_indices

                indices = frame_indices(
                    info.fps, info.frames, fps=self.fps, rule="train", parity="upstream"
                )
                picked = _at_indices(opened.frames(), indices, opened.name)
            else:
                picked = _at_times(opened, Fraction(self.fps).limit_denominator(10**6))
            with contextlib.closing(_latest(picked) if opened.live else picked) as picked:
                for seconds, frame in picked:
                    self.times.append(float(seconds))
                    yield opened.upright(frame, self._size)


def probe(path: str | os.PathLike) -> VideoInfo:
    """What a video file (or url) says of itself, with its first frame decoded as a check.

    InputError as for `video`.
    """
    with contextlib.closing(Source(path, timeout=10.0)) as opened:
        return opened.info()


class Clip:
    """An opened video file of which single frames are wanted, by number (see `open_clip`).

    fps: mean frames per second. frames: how many there are.
    """

    def __init__(self, opened: Source):
        self._opened = opened
        info = opened.info()
        self._times = opened.times()
        self.fps = info.fps
        self.frames = info.frames if self._times is None else len(self._times)
        if not (self.frames and self.fps):
            raise InputError(f"{opened.name}: {self.frames} frames at {self.fps} frames per second")

    def read(self, indices: Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames at 0-based `indices` (any order, repeats allowed), in that order; once only.

        Groups of pictures of which no frame is wanted are not decoded, where the container tells
        the frames' times. InputError: no index, one that the file does not have, a broken file.
        """
        wanted = [int(i) for i in indices]
        if not wanted or min(wanted) < 0:
            raise InputError(
                f"{self._opened.name}: frames {wanted} asked for; wanted one or more, from 0"
            )
        order = sorted(set(wanted))
        found = dict(zip(order, self.each(order), strict=True))
        return np.stack([found[i] for i in wanted])

    def each(self, indices: Sequence[int]) -> Generator[Frame]:
        """The frames at rising 0-based `indices`, one by one as they are decoded; once only.

        No frame after the last one that was taken is decoded. InputError as for `read`.
        """
        picked = (
            _at_indices(self._opened.frames(), indices, self._opened.name)
            if self._times is None
            else self._at_their_times(self._times, indices)
        )
        for _, frame in picked:
            yield self._opened.upright(frame, None)

    @property
    def seconds(self) -> Float[np.ndarray, "t"]:
        """When each frame is shown, in seconds after the first one."""
        if self._times is None:
            return np.arange(self.frames) / self.fps
        return np.asarray([float(at) for at in self._times])

    def _at_their_times(
        self, times: Sequence[Fraction], indices: Sequence[int]
    ) -> Generator[tuple[Fraction, av.VideoFrame]]:
        """The frames at rising `indices`, each found by its time: the last one not shown later."""
        if indices[-1] >= len(times):
            raise InputError(
                f"{self._opened.name}: frame {indices[-1]} asked for, but it has only {len(times)}"
            )
        frames = self._opened.frames()
        shown, ahead = next(frames), None
        for index in indices:
            self._opened.wait_for(times[index])
            while shown[0] < times[index]:
                ahead = ahead or next(frames, None)
                if ahead is None or ahead[0] > times[index]:
                    break
                shown, ahead = ahead, None
            yield shown


class KeptClip:
    """A video that is decoded as a whole; otherwise as `Clip`."""

    def __init__(self, clip: Clip):
        self.fps, self.frames = clip.fps, clip.frames
        self._decoded = clip.read(range(clip.frames))
        self._decoded.flags.writeable = False

    def read(self, indices: Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames at `indices`, a copy."""
        return self._decoded[np.asarray(indices)]


@contextlib.contextmanager
def open_clip(media: Media, *, keep: bool = False) -> Iterator[Clip | KeptClip]:
    """Opens a video file, or the bytes of one, to read single frames of it.

    keep: all frames of a file stay in memory and are not read again, for small videos seen many
    times.
    InputError (one line that names it): missing, empty, not a video, without frames.
    """
    if keep and isinstance(media, Path):
        yield _kept(media)
    else:
        with contextlib.closing(Source(media, timeout=10.0)) as opened:
            yield Clip(opened)


@functools.cache
def _kept(path: Path) -> KeptClip:
    with contextlib.closing(Source(path, timeout=10.0)) as opened:
        return KeptClip(Clip(opened))


def read_frames(media: Media, indices: Sequence[int] | np.ndarray) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a file (or of its bytes) at 0-based `indices`, as `Clip.read` gives them.

    InputError as for `video`, and for an index that the file does not have.
    """
    with open_clip(media) as clip:
        return clip.read(indices)


def write_video(
    path: str | os.PathLike,
    frames: Iterable[Any],
    fps: int | float,
    *,
    gop: int | None = None,
    crf: int = 18,
) -> None:
    """Writes uint8 RGB frames [h w 3] as an H.264 video; the file appears only when complete.

    frames: an array [t h w 3] or any iterable, all of one size; any size from 1x1 (sizes that
        4:2:0 cannot hold, the odd ones, are stored 4:4:4, which browsers may not play).
    gop: frames between key frames; None leaves it to the encoder (250).
    crf: x264's quality, 0 lossless .. 51.

    InputError: no frames, frames of another type or of changing size, fps <= 0, no such folder.
    """
    path = Path(path)
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{path}: fps={fps!r}; wanted a number of frames per second above 0")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: no frames to write; wanted at least one uint8 [h w 3]")
    height, width = _checked(np.asarray(first), f"{path}: frame 0").shape[:2]
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with told(path, "written"), av.open(str(partial), "w") as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(fps).limit_denominator(1001 * 64),
                options={"crf": str(crf), "preset": "veryfast"},
            )
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            if gop is not None:
                stream.codec_context.gop_size = gop
            stream.thread_count = 1 if height * width <= SMALL else 0
            for index, frame in enumerate(itertools.chain([first], frames)):
                frame = _checked(np.asarray(frame), f"{path}: frame {index}")
                if frame.shape[:2] != (height, width):
                    raise InputError(
                        f"{path}: frame {index} is {frame.shape[0]}x{frame.shape[1]}; "
                        f"wanted {height}x{width} like the first one"
                    )
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _at_times(opened: Source, fps: Fraction) -> Generator[tuple[Fraction, av.VideoFrame]]:
    """For turn i the frame shown at i/fps: the last one whose time is not later."""
    # Containers round time stamps to their clock (Matroska: 1 ms): a half tick early is on time.
    slack = (opened.stream.time_base or Fraction(0)) / 2
    turn, shown = 0, None
    for at, frame in opened.frames():
        if shown is not None and at > turn / fps + slack:
            yield shown
            turn += 1
            if opened.live:  # a gap means that frames were dropped: go on from now
                turn = max(turn, math.ceil((at - slack) * fps))
            while at > turn / fps + slack:
                yield shown
                turn += 1
        shown = at, frame
        opened.wait_for(turn / fps + slack)
    while shown is not None and (turn == 0 or turn / fps + slack < opened.end):
        yield shown
        turn += 1


def _latest(picked: Iterator[Any]) -> Generator[Any]:
    """What `picked` gives, read in a thread: what is not taken before the next one comes is lost.

    A live source goes on while a turn is thought about; reading it late would fall ever further
    behind.
    """
    news = threading.Condition()
    latest: list[Any] = []
    finished: list[BaseException | None] = []
    stopped = threading.Event()

    def read() -> None:
        error = None
        try:
            for one in picked:
                if stopped.is_set():
                    break
                with news:
                    latest[:] = [one]
                    news.notify()
        except BaseException as raised:
            error = raised
        with news:
            finished.append(error)
            news.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with news:
                news.wait_for(lambda: latest or finished)
                if not latest:
                    break
                one = latest.pop()
            yield one
        if finished[0] is not None:
            raise finished[0]
    finally:
        stopped.set()
        reader.join()  # at most until the next frame or the time limit of the source


def _at_indices(
    frames: Iterator[tuple[Fraction, av.VideoFrame]], indices: Sequence[int], name: str
) -> Generator[tuple[Fraction, av.VideoFrame]]:
    """The frames at rising `indices`."""
    position = -1
    for index in indices:
        for shown in frames:
            position += 1
            if position == index:
                yield shown
                break
        else:
            raise InputError(f"{name}: frame {index} asked for, but it has only {position + 1}")


def _checked(frame: np.ndarray, name: str) -> Frame:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise InputError(f"{name} is {frame.dtype} {list(frame.shape)}; wanted uint8 RGB [h w 3]")
    return frame
