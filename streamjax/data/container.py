"""One opened container: its address, its header, and its frames in order, upright and in RGB."""

import contextlib
import io
import itertools
import math
import os
import re
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from streamjax.data.media import Media, bytes_of, told_name
from streamjax.errors import InputError

Frame = UInt8[np.ndarray, "h w 3"]
SMALL = 320 * 320  # below this many pixels one thread decodes and encodes as fast as several

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt")
_COVER_PICTURE = 0x400  # libav's mark on the picture that goes with a song
# libav reads any text file as the animation of a terminal.
_NOT_VIDEO = frozenset({"tty", "bin", "xbin", "adf", "idf"})
# Titles and tags of old files are seldom UTF-8; PyAV 19 minds no more and lost the argument.
_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__[:2]) < 19 else {}
# Containers whose key frames are ones that decoding may begin at.
_STRICT_KEYS = ("mp4", "matroska")


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


class Source:
    """One open container and its video stream, with the first frame decoded."""

    def __init__(self, source: Media | int, timeout: int | float):
        self._bytes = bytes_of(source)
        self.name, self._place, options = _address(source, self._bytes)
        url = bool(_URL.match(self.name))
        camera = options is not None
        with told(self.name):
            self.container = self._open(
                timeout=(timeout, timeout) if url else None, **(options or {})
            )
        try:
            self.stream = self._video_stream()
            scheme = self.name.split("://")[0].lower()
            self.live = camera or (
                url and (scheme in _LIVE_SCHEMES or self.container.duration is None)
            )
            many = self.stream.width * self.stream.height > SMALL
            self.stream.thread_count = 0 if many else 1
            # Frame threads hold back as many frames as there are threads: no good when live.
            self.stream.thread_type = "SLICE" if self.live else "AUTO"
            self._may_skip = not self.live and any(
                name in self.container.format.name for name in _STRICT_KEYS
            )
            self._waiting: Fraction | None = None
            self._asked: Fraction | None = None
            self._wanted: Fraction | None = None  # time of the only frame wanted ...
            self._known = Fraction(-1)  # ... of those before this one
            self._start = self._resumed = Fraction(0)  # on the container's clock
            self._packets_end: Fraction | None = None
            self.end = Fraction(0)  # seconds after the first frame; right once all is read
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

    def times(self) -> list[Fraction] | None:
        """Seconds after the first frame at which every frame of a file is shown, in order.

        Reads the packets, decodes none. None where packets do not say (raw streams, old AVI).
        """
        shown = []
        with told(self.name), self._open() as again:
            for packet in again.demux(again.streams[self.stream.index]):
                at = _seconds(packet, packet.pts)
                if packet.size and not packet.is_discard:
                    if at is None:
                        return None
                    shown.append(at - self._start)
        return sorted(at for at in shown if at >= 0)

    def _open(self, **options: Any) -> Any:
        place = self._place if self._bytes is None else io.BytesIO(self._bytes)
        return av.open(place, **(_LENIENT | options))

    def _video_stream(self):
        if self.container.format.name in _NOT_VIDEO:
            raise InputError(f"{self.name}: not a video (it reads as text); wanted mp4, mkv, ...")
        for stream in self.container.streams.video:
            if stream.disposition.value & _COVER_PICTURE:
                continue
            if stream.codec_context is None:
                raise InputError(f"{self.name}: its video is coded in a way unknown here; wanted "
                                 "H.264, HEVC, VP9, AV1, ...")  # fmt: skip
            return stream
        # Not by each stream's `type`: before PyAV 17 asking an unknown one for it crashes Python.
        streams = self.container.streams
        kinds = [name for name in ("audio", "subtitles", "data") if getattr(streams, name)]
        raise InputError(f"{self.name}: has no video stream, only {', '.join(kinds) or 'nothing'}")

    def frames(self) -> Generator[tuple[Fraction, av.VideoFrame]]:
        """Every frame with its seconds after the first; a packet that is broken is left out."""
        yield self._first
        yield from self._decoder

    def wait_for(self, seconds: Fraction) -> None:
        """Says that of the frames until `seconds` only the last one is wanted.

        Groups of pictures that end before it need no decoding: it goes on at the last key frame
        not later than `seconds`, and then leaves out the unwanted pictures that no other one refers
        to. (Not for live sources, nor where key frames may not be strict.)
        """
        if self._may_skip and seconds != self._waiting:
            self._waiting = self._asked = seconds

    def _decode(self) -> Generator[tuple[Fraction, av.VideoFrame]]:
        rate = self.stream.average_rate or Fraction(25)
        last = None
        for packet in self._packets():
            try:
                frames = self.stream.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                if frame.pts is None:
                    at = Fraction(0) if last is None else last + 1 / rate
                else:
                    at = frame.pts * frame.time_base
                if last is None:
                    self._start = self._resumed = last = at
                if at >= self._resumed:  # an open group's first pictures lean on what was skipped
                    last = max(at, last)
                    yield last - self._start, frame
        if last is None:
            return
        self.end = (self._packets_end or last + 1 / rate) - self._start
        declared = self._declared()
        if not self.live and declared - self.end > max(0.5, 0.05 * declared):
            raise InputError(
                f"{self.name}: truncated: its frames end at {float(self.end):.2f} s of the "
                f"{float(declared):.2f} s that its header promises; fetch or write it again"
            )

    def _packets(self) -> Generator[av.Packet]:
        """The packets to decode, in order."""
        ahead: deque[av.Packet] = deque()
        read = self._read()
        while True:
            if self._asked is not None:
                self._skip(ahead, read, self._asked + self._start)
                self._asked = None
            packet = ahead.popleft() if ahead else next(read, None)
            if packet is None:
                return
            shown = _seconds(packet, packet.pts)
            spare = shown is not None and shown < self._known and shown != self._wanted
            self.stream.codec_context.skip_frame = "NONREF" if spare else "DEFAULT"
            yield packet

    def _skip(self, ahead: deque[av.Packet], read: Iterator[av.Packet], until: Fraction) -> None:
        """Drops packets, in `ahead` and then from `read`, before the last key frame to `until`.

        Notes the time of the frame that is shown at `until`, the only one wanted.
        """
        place, resumed = 0, None
        wanted = self._wanted
        while True:
            if place == len(ahead):
                ahead.extend(itertools.islice(read, 1))
            if place == len(ahead):
                break
            packet = ahead[place]
            shown, decoded = _seconds(packet, packet.pts), _seconds(packet, packet.dts)
            # Decoding times rise and no frame is shown before it is decoded: from the first packet
            # that is decoded after `until` on, none is a key frame to be shown before.
            if shown is None or decoded is None:
                self._may_skip &= not packet.size  # the empty one at the end is no mystery
                break
            if decoded > until:
                break
            if place and packet.is_keyframe and shown <= until:
                for _ in range(place):
                    ahead.popleft()
                place, resumed = 0, shown
            if shown <= until and (wanted is None or wanted < shown):
                wanted = shown
            place += 1
        # Without reordering every picture counts, and the decoder could not put one in its place.
        if self._may_skip and self.stream.codec_context.has_b_frames:
            self._wanted, self._known = wanted, until
        if resumed is not None:
            self.stream.codec_context.flush_buffers()
            self._resumed = resumed

    def _read(self) -> Generator[av.Packet]:
        with told(self.name):
            while True:
                try:
                    for packet in self.container.demux(self.stream):
                        shown = _seconds(packet, packet.pts)
                        if shown is not None and packet.duration:
                            stop = shown + packet.duration * packet.time_base
                            self._packets_end = max(stop, self._packets_end or stop)
                        yield packet
                    return
                except av.BlockingIOError:  # a camera that has no new frame yet
                    time.sleep(0.005)

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
                with told(self.name), self._open() as again:
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
        image = scaled(frame, size)
        if transposed:
            image = image.swapaxes(0, 1)
        if mirror_x:
            image = image[:, ::-1]
        if mirror_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


def _address(source: Any, content: bytes | None) -> tuple[str, str, dict | None]:
    """(name for messages, what libav opens, its arguments when that is a camera)."""
    if content is not None:
        name = told_name(source)
        if not content:
            raise InputError(f"{name}: is empty (0 bytes); wanted a video file")
        return name, name, None
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


def _seconds(packet: av.Packet, ticks: int | None) -> Fraction | None:
    return None if ticks is None else ticks * packet.time_base


@contextlib.contextmanager
def told(name: str | os.PathLike, doing: str = "read") -> Iterator[None]:
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
        raise InputError(f"{name}: cannot be {doing} as a video: {reason}") from error


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


def scaled(frame: av.VideoFrame, size: tuple[int, int]) -> Frame:
    height, width = size
    return frame.reformat(
        width=width, height=height, format="rgb24", interpolation="BICUBIC"
    ).to_ndarray()
