"""Does a stream keep its pace? Frames 100 to 200 of one stream against its last 100.

A small tower (64 pixels, 4 layers of 192, a window of 64 frames), so that thousands of frames take
seconds: what could grow (the cache, Python's lists, recompilation) does not depend on its size.
A fixed numpy product is timed after each frame: where it slows too, the machine did, and
`beside the product` is the stream's ratio over the product's.

    taskset -c 1 python benchmarks/streamformer_flatness.py --out benchmarks/results/flatness.json
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
from machine import describe
from streamformer_torch import weights

import streamjax as sj
from streamjax.bench import TOWERS
from streamjax.stream import program

SMALL = dataclasses.replace(
    TOWERS["base"], image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=4,
    num_attention_heads=4, intermediate_size=768,
)  # fmt: skip
WINDOW = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    stream = sj.Stream(weights(SMALL), tower_window=WINDOW)
    frame = np.random.default_rng(0).normal(0, 1, (64, 64, 3)).astype(np.float32)
    fixed = np.random.default_rng(1).normal(0, 1, (384, 384)).astype(np.float32)
    cpu, wall, product = [], [], []
    for _ in range(args.frames):
        begin = time.process_time()
        wall.append(stream.push(frame).latency["total"])
        cpu.append(time.process_time() - begin)
        begin = time.process_time()
        fixed @ fixed
        product.append(time.process_time() - begin)
    result = {"machine": describe(), "frames": args.frames, "window": WINDOW}
    for name, seconds in (("cpu", cpu), ("wall", wall), ("product", product)):
        early, late = statistics.median(seconds[100:200]), statistics.median(seconds[-100:])
        result[name] = {"frames 100 to 200": early, "last 100": late, "ratio": late / early}
    result["beside the product"] = result["cpu"]["ratio"] / result["product"]["ratio"]
    result["programs"] = program.features._cache_size()
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
