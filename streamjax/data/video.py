"""Video in and out: one sequential decoder (PyAV) behind `video`, `read_frames` and `probe`.

Decoding is sequential on purpose: at one frame per second a seek per frame costs four to five
times as much on files with long groups of pictures (benchmarks/bench_decode.py;
specs/performance.md section 6). Frames are found by their time stamps, so a variable frame rate
and 29.97 fps need no special case, and they come out upright: the display matrix that phones
write is applied. Pixels are taken as square.
"""

import contextlib
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from jaxtyping import UInt8

from streamjax.errors import InputError

Frame = UInt8[np.ndarray, "h w 3"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")
_COVER_PICTURE = 0x400  # libav's mark on the picture that goes with a song
# libav reads any text file as the animation of a terminal.
_NOT_VIDEO = frozenset({"tty", "bin", "xbin", "adf", "idf"})
_SMALL = 320 * 320  # below this many pixels one thread decodes and encodes as fast as several


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says.

    fps: mean frames per second of the source; 0.0 where a live source does not tell.
    frames: number of frames (declared, else duration x fps, else counted); 0 for live sources.
    width, height: pixels of a frame as shown, after rotation.
    duration: seconds; 0.0 for live sources.
    rotation: degrees clockwise that the stored frame is turned for showing: 0, 90, 180 or 270.
    """

    fps: float
    frames: int
    width: int
    height: int
    duration: float
    rotation: int


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
        self._opened: _Source | None = None
        if isinstance(source, str | os.PathLike | int):
            self._opened = _Source(source, timeout)
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
                frame = _scaled(av.VideoFrame.from_ndarray(frame, format="rgb24"), self._size)
            self.times.append(index / self.fps)
            yield frame

    def _decoded(self, info: VideoInfo) -> Generator[Frame]:
        opened = self._opened or _Source(self._source, self._timeout)
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
            for seconds, frame in picked:
                self.times.append(float(seconds))
                yield opened.upright(frame, self._size)


def probe(path: str | os.PathLike) -> VideoInfo:
    """What a video file (or url) says of itself, with its first frame decoded as a check.

    InputError as for `video`.
    """
    with contextlib.closing(_Source(path, timeout=10.0)) as opened:
        return opened.info()


def read_frames(path: str | os.PathLike, indices: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames of a file at 0-based `indices` (any order, repeats allowed), in that order.

    Decodes sequentially up to the largest index. InputError as for `video`, and for an index
    that the file does not have.
    """
    wanted = [int(i) for i in indices]
    if not wanted or min(wanted) < 0:
        raise InputError(f"{path}: frames {wanted} asked for; wanted one or more, from 0")
    order = sorted(set(wanted))
    with contextlib.closing(_Source(path, timeout=10.0)) as opened:
        found = {
            index: opened.upright(frame, None)
            for index, (_, frame) in zip(
                order, _at_indices(opened.frames(), order, opened.name), strict=True
            )
        }
    return np.stack([found[i] for i in wanted])


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
        with _told(path), av.open(str(partial), "w") as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(fps).limit_denominator(1001 * 64),
                options={"crf": str(crf), "preset": "veryfast"},
            )
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            if gop is not None:
                stream.codec_context.gop_size = gop
            stream.thread_count = 1 if height * width <= _SMALL else 0
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


class _Source:
    """One open container and its video stream, with the first frame decoded."""

    def __init__(self, source: str | os.PathLike | int, timeout: int | float):
        self.name, address, options = _address(source)
        url = bool(_URL.match(self.name))
        camera = options is not None
        with _told(self.name):
            self.container = av.open(
                address, timeout=(timeout, timeout) if url else None, **(options or {})
            )
        try:
            self.stream = self._video_stream()
            scheme = self.name.split("://")[0].lower()
            self.live = camera or (
                url and (scheme in _LIVE_SCHEMES or self.container.duration is None)
            )
            many = self.stream.width * self.stream.height > _SMALL
            self.stream.thread_count = 0 if many else 1
            # Frame threads hold back as many frames as there are threads: no good when live.
            self.stream.thread_type = "SLICE" if self.live else "AUTO"
            self.end = Fraction(0)  # of the last packet, in seconds; right once all is decoded
            self._decoder = self._decode()
            first = next(self._decoder, None)
            if first is None:
                raise InputError(f"{self.name}: holds no frame that decodes; wanted at least one")
            self._first = first
            self.matrix = _display_matrix(first[1])
            self._whole = (first[1].height, first[1].width)
        except BaseException:
            self.container.close()
            raise

    def close(self) -> None:
        self.container.close()

    def _video_stream(self):
        if self.container.format.name in _NOT_VIDEO:
            raise InputError(f"{self.name}: not a video (it reads as text); wanted mp4, mkv, ...")
        for stream in self.container.streams.video:
            if not int(getattr(stream, "disposition", 0)) & _COVER_PICTURE:
                return stream
        kinds = sorted({stream.type for stream in self.container.streams}) or ["nothing"]
        raise InputError(f"{self.name}: has no video stream, only {', '.join(kinds)}")

    def _decode(self) -> Generator[tuple[Fraction, av.VideoFrame]]:
        """Every frame with its seconds after the first; a packet that is broken is left out."""
        rate = self.stream.average_rate or Fraction(25)
        start = last = end = None
        for packet in self._packets():
            try:
                frames = self.stream.decode(packet)
            except av.InvalidDataError:
                continue
            if packet.pts is not None and packet.duration:
                stop = (packet.pts + packet.duration) * packet.time_base
                end = stop if end is None else max(stop, end)
            for frame in frames:
                if frame.pts is None:
                    at = Fraction(0) if last is None else last + 1 / rate
                else:
                    at = frame.pts * frame.time_base
                start = at if start is None else start
                last = at if last is None else max(at, last)
                yield last - start, frame
        if start is None or last is None:
            return
        self.end = (last + 1 / rate if end is None else end) - start
        declared = self._declared()
        if not self.live and declared - self.end > max(0.5, 0.05 * declared):
            raise InputError(
                f"{self.name}: truncated: its frames end at {float(self.end):.2f} s of the "
                f"{float(declared):.2f} s that its header promises; fetch or write it again"
            )

    def _packets(self):
        with _told(self.name):
            while True:
                try:
                    yield from self.container.demux(self.stream)
                    return
                except av.BlockingIOError:  # a camera that has no new frame yet
                    time.sleep(0.005)

    def frames(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        return itertools.chain([self._first], self._decoder)

    def _declared(self) -> Fraction:
        """Seconds of video that the header promises; 0 where it does not say."""
        if self.stream.duration is not None:
            return self.stream.duration * self.stream.time_base
        # The container's own duration may be that of a longer sound track.
        if self.container.duration is not None and len(self.container.streams) == 1:
            return Fraction(self.container.duration, av.time_base)
        return Fraction(0)

    def info(self) -> VideoInfo:
        fps = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        duration = float(self._declared()) or (self.container.duration or 0) / av.time_base
        frames = 0
        if not self.live:
            frames = self.stream.frames or math.floor(duration * fps + 0.5)
            if not frames:  # a raw stream or a picture: nothing but counting tells
                with _told(self.name), av.open(self.name) as again:
                    packets = again.demux(again.streams[self.stream.index])
                    frames = sum(packet.size > 0 for packet in packets)
                duration = duration or (frames / fps if fps else 0.0)
        height, width = self._whole
        transposed, _, _, rotation = self.matrix
        if transposed:
            height, width = width, height
        return VideoInfo(fps, frames, width, height, 0.0 if self.live else duration, rotation)

    def upright(self, frame: av.VideoFrame, size: tuple[int, int] | None) -> Frame:
        """RGB of a decoded frame, turned as its display matrix says, scaled to `size`."""
        transposed, mirror_x, mirror_y, _ = self.matrix
        if size is None:
            size = self._whole  # a stream may change its size on the way: the first one holds
        elif transposed:
            size = (size[1], size[0])
        image = _scaled(frame, size)
        if transposed:
            image = image.swapaxes(0, 1)
        if mirror_x:
            image = image[:, ::-1]
        if mirror_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


def _at_times(opened: _Source, fps: Fraction) -> Generator[tuple[Fraction, av.VideoFrame]]:
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
    while shown is not None and (turn == 0 or turn / fps + slack < opened.end):
        yield shown
        turn += 1


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


def _address(source: str | os.PathLike | int) -> tuple[str, str, dict | None]:
    """(name for messages, what libav opens, its arguments when that is a camera)."""
    text = str(source) if isinstance(source, int) else os.fspath(source)
    if isinstance(source, int) or (text.isdigit() and not os.path.exists(text)):
        return (f"webcam {text}", *_camera(int(text)))
    if _URL.match(text):
        options = {"rtsp_transport": "tcp"} if text.lower().startswith("rtsp") else {}
        return text, text, {"options": options} if options else None
    path = Path(text)
    if not path.exists():
        raise InputError(f"{text}: no such file; wanted a video file, a url or a webcam's index")
    if path.is_dir():
        raise InputError(f"{text}: is a folder; wanted a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{text}: is empty (0 bytes); wanted a video file")
    return text, text, None


def _camera(index: int) -> tuple[str, dict]:
    if sys.platform == "darwin":
        return str(index), {"format": "avfoundation", "options": {"framerate": "30"}}
    if sys.platform == "win32":
        names = [d.name for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
        if index >= len(names):
            raise InputError(f"webcam {index}: not found; this machine has {len(names)}: {names}")
        return f"video={names[index]}", {"format": "dshow"}
    device = Path(f"/dev/video{index}")
    if not device.exists():
        found = sorted(str(p) for p in device.parent.glob("video[0-9]*")) or "none"
        raise InputError(f"webcam {index}: {device} does not exist; found {found}")
    return str(device), {"format": "v4l2"}


@contextlib.contextmanager
def _told(name: str | os.PathLike) -> Iterator[None]:
    """Turns what libav and the system report into one line that names the source."""
    try:
        yield
    except InputError:
        raise
    except av.InvalidDataError as error:
        raise InputError(f"{name}: {_why_unreadable(str(name))}") from error
    except av.ExitError as error:
        raise InputError(f"{name}: did not answer in time; check the address") from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}: cannot be read as a video: {reason}") from error


def _why_unreadable(name: str) -> str:
    with contextlib.suppress(OSError), open(name, "rb") as file:
        if file.read(8)[4:] == b"ftyp":
            return "truncated: an mp4 whose index (moov) is missing; fetch or write it again"
    return "not a readable video; wanted a complete mp4, mkv, webm, avi, ..."


def _display_matrix(frame: av.VideoFrame) -> tuple[bool, bool, bool, int]:
    """(transposed, mirrored in x, mirrored in y, degrees clockwise) of what the frame says.

    The matrix maps a stored pixel to x' = a x + c y, y' = b x + d y; only quarter turns and
    mirrors are kept.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False, 0
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0, 90 if b > 0 else 270
    return False, a < 0, d < 0, 180 if d < 0 else 0


def _scaled(frame: av.VideoFrame, size: tuple[int, int]) -> Frame:
    height, width = size
    return frame.reformat(
        width=width, height=height, format="rgb24", interpolation="BICUBIC"
    ).to_ndarray()


def _checked(frame: np.ndarray, name: str) -> Frame:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise InputError(f"{name} is {frame.dtype} {list(frame.shape)}; wanted uint8 RGB [h w 3]")
    return frame
