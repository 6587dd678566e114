"""Training samples a second from files and from packed data (`streamjax data pack`).

    taskset -c 0 python benchmarks/packed_data.py --out benchmarks/results/packed_data.json

Makes videos of 10 s (H.264, 640x360, 30 fps) and clips of 36 pictures (JPEG, the same size), and
packs them. A sample is 16 frames drawn at random: of a video decoded from its bytes, of a clip 16
pictures. `media` reads their bytes only, `frames` decodes them too. `warm`: what is read lies in
memory already; `cold`: the system was told to drop it before each round (whatever lies below the
file system may still hold it). Medians of rounds in which the two ways take turns, one process, no
workers. Both ways give the same frames, which is checked.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench_decode import scene
from machine import describe
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations.layout import read_task
from streamjax.data.annotations.masks import read_pictures
from streamjax.data.media import opened
from streamjax.data.packed import PackedRecords
from streamjax.data.packing import pack
from streamjax.data.video import open_clip, write_video

HEIGHT, WIDTH, FPS, SECONDS, PICTURES, FRAMES = 360, 640, 30, 10, 36, 16


def make_folder(folder: Path, clips: int) -> None:
    """`clips` videos with a class each, and as many clips of pictures with a mask each."""
    filmed = list(scene(HEIGHT, WIDTH, FPS * SECONDS))
    (folder / "kinetics").mkdir(parents=True)
    (folder / "kinetics" / "label2id.json").write_text('{"pan": 0}')
    rows, videos, annotations = [], [], []
    for i in range(clips):
        shown = np.roll(np.stack(filmed), i * 17, 2)
        write_video(folder / "kinetics" / f"{i}.mp4", shown, FPS, crf=23)
        rows.append(f"{i}.mp4,pan\n")
        names = [f"{i}/{k:05d}.jpg" for k in range(PICTURES)]
        (folder / "vis" / "frames" / str(i)).mkdir(parents=True)
        for name, frame in zip(names, shown[:: len(shown) // PICTURES], strict=False):
            encoded = io.BytesIO()
            Image.fromarray(frame).save(encoded, "JPEG", quality=90)
            (folder / "vis" / "frames" / name).write_bytes(encoded.getvalue())
        videos.append({"id": i, "height": HEIGHT, "width": WIDTH, "file_names": names})
        mask = rle.encode(np.ones((HEIGHT, WIDTH), bool))
        masks = [mask] * PICTURES
        annotations.append(
            {"id": i, "video_id": i, "category_id": 0, "segmentations": masks}
        )  # fmt: skip
    (folder / "kinetics" / "train.csv").write_text("".join(rows))
    content = {
        "videos": videos, "annotations": annotations, "categories": [{"id": 0, "name": "all"}]
    }  # fmt: skip
    (folder / "vis" / "train_Bench.json").write_text(json.dumps(content))
    (folder / "vis" / "label2id.json").write_text('{"Bench": {"all": 0}}')


def media_of(record, rng: np.random.Generator) -> int:
    files = [record.video] if hasattr(record, "video") else drawn(record, rng)
    total = 0
    for one in files:
        with opened(one) as file:
            total += len(file.read())
    return total


def frames_of(record, rng: np.random.Generator) -> np.ndarray:
    if not hasattr(record, "video"):
        return read_pictures(drawn(record, rng))
    with open_clip(record.video) as clip:
        return clip.read(sorted(rng.integers(0, clip.frames, FRAMES)))


def drawn(record, rng: np.random.Generator) -> list:
    return [record.frames[i] for i in sorted(rng.choice(PICTURES, FRAMES, replace=False))]


def drop(folders: Sequence[Path]) -> None:
    """Tells the system that the files' content is not needed in memory."""
    os.sync()
    for path in itertools.chain.from_iterable(folder.rglob("*") for folder in folders):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def rate(source: Sequence, sample: Callable, seed: int) -> float:
    """Samples a second, every record once, in a random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source)).tolist()
    begin = time.perf_counter()
    for index in order:
        sample(source[index], rng)
    return len(order) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        folder, out = Path(home) / "files", Path(home) / "packed"
        make_folder(folder, given.clips)
        begin = time.perf_counter()
        manifest = pack(folder, out, shards=4)
        took = time.perf_counter() - begin
        size = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
        print(f"packed {size / 1e6:.0f} MB in {took:.1f} s")
        ways = {
            task: {"files": read_task(folder, task, "train").records,
                   "packed": PackedRecords(out, task)}
            for task in ("kinetics", "vis")
        }  # fmt: skip
        for task, sources in ways.items():
            for seed in range(3):
                one, other = (
                    frames_of(source[seed], np.random.default_rng(seed))
                    for source in sources.values()
                )
                if not np.array_equal(one, other):
                    raise SystemExit(f"{task}: record {seed} differs between files and packed")
        print(f"{'samples/s':>28} {'files':>9} {'packed':>9}  packed / files")
        for (task, sources), sample, state in itertools.product(
            ways.items(), (media_of, frames_of), ("warm", "cold")
        ):
            rates: dict[str, list[float]] = {name: [] for name in sources}
            for seed in range(given.rounds):
                turns = list(sources.items())
                for name, source in turns if seed % 2 else reversed(turns):
                    if state == "cold":
                        drop([folder, out])
                    rates[name].append(rate(source, sample, seed))
            found = {name: statistics.median(many) for name, many in rates.items()}
            what = sample.__name__.removesuffix("_of")
            ratio = found["packed"] / found["files"]
            rows.append({"task": task, "what": what, "state": state, **found, "ratio": ratio})
            label = f"{task}, {what}, {state}"
            print(f"{label:>28} {found['files']:9.1f} {found['packed']:9.1f}  {ratio:6.2f}")
    if given.out:
        made = {"height": HEIGHT, "width": WIDTH, "fps": FPS, "seconds": SECONDS,
                "pictures": PICTURES, "frames": FRAMES, "clips": given.clips,
                "rounds": given.rounds}  # fmt: skip
        result = {"machine": describe(), "data": made, "rows": rows}
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
