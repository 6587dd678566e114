"""Does a stream keep its pace? An old stream beside a young one, turn by turn in one run.

The old stream has watched for a long time, the young one only until its window was full. Both are
on the same weights and programs; their turns are timed alternately, so that whatever else the
machine does slows both, and the medians of CPU seconds are compared.

    taskset -c 1 python benchmarks/flatness.py streamformer --out benchmarks/results/flatness_streamformer.json
    taskset -c 1 python benchmarks/flatness.py qwen2_5_vl --out benchmarks/results/flatness_qwen2_5_vl.json

streamformer: 3,000 frames against 100 (64 pixels, 4 layers of 192, a window of 64 frames): what
could grow, the cache, Python's lists, compilation, does not depend on the size. The families of
video LLMs: 800,000 tokens against a full window of 1,024, at bench size.
"""  # noqa: E501

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe
from streamformer_torch import weights

import streamjax as sj
from streamjax.bench.frame import TOWERS
from streamjax.bench.policies import FAMILIES, TURN, filled, subject
from streamjax.stream import program

SMALL = dataclasses.replace(
    TOWERS["base"], image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=4,
    num_attention_heads=4, intermediate_size=768,
)  # fmt: skip
FRAMES, CONTEXT = 100, 1024


def streamformer():
    """(old turn, young turn, turns the old one is ahead by when asked to be old)."""
    model = weights(SMALL)
    frame = np.random.default_rng(0).normal(0, 1, (64, 64, 3)).astype(np.float32)

    def new():
        stream = sj.Stream(model, tower_window=64)
        for _ in range(FRAMES):
            stream.push(frame)
        return lambda: stream.push(frame)

    return new(), new()


def assistant(family):
    case = subject(family, "base", jnp.float32)
    return tuple(filled(case, "session", CONTEXT)[1] for _ in range(2))


def live_bytes():
    return sum(a.nbytes for a in jax.live_arrays())


def programs():
    compiled = (program.turn, program.read, program.speak, program.pin, program.features)
    return sum(f._cache_size() for f in compiled) + program.rebase._cache_size()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["streamformer", *FAMILIES])
    parser.add_argument("--turns", type=int, help="how far the old stream is ahead")
    parser.add_argument("--timed", type=int, default=200, help="turns of each that are timed")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.what == "streamformer":
        (old, young), turns = streamformer(), args.turns or 2900
    else:
        (old, young), turns = assistant(args.what), args.turns or 800_000 // TURN
    before = (0, 0)
    for i in range(turns):
        if i == turns // 5:  # the ring has its size, positions have been re-based once
            before = live_bytes(), programs()
        old()
        if i % 500 == 499:
            print(f"{i + 1} of {turns} turns", file=sys.stderr, flush=True)
    after = live_bytes(), programs()
    seconds = {"old": [], "young": []}
    for _ in range(args.timed):
        for name, turn in (("old", old), ("young", young)):
            begin = time.process_time()
            turn()
            seconds[name].append(time.process_time() - begin)
    medians = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
    result = {
        "what": args.what,
        "turns ahead": turns,
        "CPU ms": medians,
        "old / young": medians["old"] / medians["young"],
        "bytes of live arrays, after a fifth of the turns and after all": [before[0], after[0]],
        "programs, after a fifth of the turns and after all": [before[1], after[1]],
        "machine": describe(),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
