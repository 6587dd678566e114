"""Watching a file at one frame per second: sequential decoding against a seek per second.

    python benchmarks/bench_decode.py [--seconds 60] [--out benchmarks/results/decode.json]

Makes H.264 files of a panning scene with camera noise at 30 fps, with a key frame at least every
250 or every 30 frames, and reads each with `streamjax.data.video.video` and with what many loaders
do: seek to the key frame before each second and decode from there. Both give the same frames, which
is checked. `every frame` is the sequential decoder without its two savings (groups and unreferenced
pictures that no turn shows are not decoded). Reported: CPU milliseconds of all threads per second
of video, medians of interleaved runs. The aim is 4x where key frames are far apart.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from streamjax.data.video import video, write_video

FPS = 30
SIZES = {"360p": (360, 640), "720p": (720, 1280)}
GOPS = (250, 30)


def scene(height: int, width: int, frames: int) -> Iterator[np.ndarray]:
    """A panning, textured picture under fresh noise, which encoders treat like camera footage."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[0:height, 0 : width + frames * 3].astype(np.float32)
    wide = np.zeros((*ys.shape, 3), np.float32)
    for _ in range(60):
        y, x = rng.uniform(0, height), rng.uniform(0, ys.shape[1])
        spread = rng.uniform(0.02, 0.12) * height
        near = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * spread**2))
        wide += near[..., None] * rng.uniform(-160, 160, 3).astype(np.float32)
    texture = rng.normal(128, 12, (height, (wide.shape[1] + 1) // 2, 1)).repeat(2, 1)
    wide += texture[:, : wide.shape[1]].astype(np.float32)
    grain = rng.normal(0, 4, (height + 64, width + 64, 1)).astype(np.float32)
    for i in range(frames):
        y, x = rng.integers(0, 64, 2)  # no two frames share their noise
        noise = grain[y : y + height, x : x + width]
        yield np.clip(wide[:, 3 * i : 3 * i + width] + noise, 0, 255).astype(np.uint8)


def sequential(path: Path) -> list[np.ndarray]:
    return list(video(path, fps=1))


def every_frame(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = enumerate(container.decode(stream))
        return [frame.to_ndarray(format="rgb24") for i, frame in frames if i % FPS == 0]


def seek_per_second(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        assert stream.time_base is not None and stream.duration is not None
        clock = round(1 / stream.time_base)  # ticks per second
        seconds = stream.duration // clock
        shown = []
        for second in range(seconds):
            target = second * clock
            container.seek(target, stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts + clock // FPS > target:
                    shown.append(frame.to_ndarray(format="rgb24"))
                    break
        return shown


def measure(ways: dict[str, Callable], path: Path, seconds: int, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds per second of video, the ways taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            frames = way(path)
            spent[name].append((time.process_time() - start) * 1000 / seconds)
            if len(frames) != seconds:
                raise SystemExit(f"{name}: {len(frames)} frames of {seconds}")
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    ways = {
        "sequential": sequential,
        "every frame": every_frame,
        "seek per second": seek_per_second,
    }
    rows = []
    print(f"{'CPU ms per video second':>24}", *(f"{name:>16}" for name in ways), "   seek / ours")
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            for gop in GOPS:
                path = Path(folder) / f"{name}_{gop}.mp4"
                frames = scene(*size, arguments.seconds * FPS)
                write_video(path, frames, FPS, gop=gop, crf=23)
                same = zip(sequential(path), seek_per_second(path), strict=True)
                if not all(np.array_equal(a, b) for a, b in same):
                    raise SystemExit(f"{path.name}: the two ways give different frames")
                found = measure(ways, path, arguments.seconds, arguments.repeats)
                ratio = found["seek per second"] / found["sequential"]
                rows.append({"size": name, "gop": gop, **found, "ratio": ratio})
                cells = (f"{found[way]:16.1f}" for way in ways)
                print(f"{f'{name}, GOP {gop}':>24}", *cells, f"{ratio:12.1f}x", flush=True)
    if arguments.out:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "av": av.__version__,
            "seconds": arguments.seconds,
            "repeats": arguments.repeats,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
