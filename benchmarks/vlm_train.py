"""A step of Streamo's training, beside transformers in PyTorch on the same weights and rows.

Ours is the trainer's step: packed rows, the loss in chunks of labelled tokens, AdamW in float32.
The peer is transformers' Qwen2.5-VL with PyTorch's fused attention (sdpa), which makes the mask of
the dialogues from the same positions, PyTorch's cross-entropy, clipping and AdamW; once with the
logits of all tokens, as transformers' own loss takes them, and once with those of labelled tokens
only. Both keep every activation (--remat changes ours). Loss and gradients of the first step are
compared before anything is timed; steps are timed in turns. Pin it to one core; the medians of CPU
seconds are what a busy machine disturbs least:

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/vlm_train.py --length 1024 2048 --memory \\
        --out benchmarks/results/vlm_train.json

--memory measures memory too, in a fresh process for each side.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import transformers
from flax import nnx
from machine import describe
from streamformer_train import clocks, resident, since

import streamjax as sj
from streamjax.bench import train_vlm
from streamjax.data.processors import QwenImageProcessor

MB = 1 << 20
SIDES = ("ours", "torch", "torch, labelled logits")


class Ours:
    def __init__(self, args, length):
        self.case = train_vlm.make_case(
            args.size, jnp.float32, length, args.rows, args.remat or None
        )

    def model(self):
        """The model as it is now, its arrays copied."""
        blank = self.case.config.model(nnx.Rngs(0))
        state = nnx.merge_state(self.case.state.params, self.case.state.frozen)
        nnx.update(blank, jax.tree.map(jnp.array, state))
        return blank

    def __call__(self):
        self.case.state, told = self.case.step(self.case.state, self.case.batch)
        jax.block_until_ready((self.case.state, told))
        return float(told["loss"])


class Theirs:
    def __init__(self, folder, host, config):
        self.model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        trained = []
        for name, p in self.model.named_parameters():
            p.requires_grad_("visual" not in name or "merger" in name)
            if p.requires_grad:
                trained.append(p)
        vectors = [p for p in trained if p.ndim == 1]
        matrices = [p for p in trained if p.ndim > 1]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-5, betas=(0.9, 0.95), eps=1e-8,
        )  # fmt: skip
        self.given = as_theirs(host, config)
        labels = torch.from_numpy(host["labels"].astype(np.int64))
        targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        self.targets, self.labelled = targets, (targets >= 0).any(0).nonzero()[:, 0]

    def __call__(self, labelled=False):
        self.optimizer.zero_grad()
        keep, targets = 0, self.targets
        if labelled:
            keep, targets = self.labelled, targets[:, self.labelled]
        logits = self.model(**self.given, logits_to_keep=keep, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.item()


def as_theirs(host, config):
    """The batch as transformers takes it: pictures in a list, positions restarting in each text."""
    grid, pixels = [], []
    processor = QwenImageProcessor()
    mean, std = (np.reshape(a, (3, 1)).astype(np.float32) for a in (processor.mean, processor.std))
    for row in host["pixels"]:
        patches = (row.astype(np.float32) / 255 - mean) / std
        pixels.append(np.repeat(patches[:, :, None], 2, 2).reshape(len(patches), -1))
        grid += [[1, train_vlm.SIDE, train_vlm.SIDE]] * (len(row) // train_vlm.SIDE**2)
    segments = host["segments"]
    fresh = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    count = np.arange(segments.shape[1])[None]
    text = count - np.maximum.accumulate(np.where(fresh, count, 0), 1)
    positions = np.concatenate([text[None], host["positions"].swapaxes(0, 1)])
    arrays = {
        "input_ids": host["tokens"].astype(np.int64),
        "position_ids": positions.astype(np.int64),
        "pixel_values": np.concatenate(pixels),
        "image_grid_thw": np.array(grid),
    }
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def compare(ours, theirs):
    """Loss and gradients of the first step; ours are in Adam's first moments, 1 - b1 of them."""
    model = ours.model()
    loss, wanted = ours(), theirs()
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    states = jax.tree.leaves(ours.case.state.opt_state, is_leaf=is_adam)
    (adam,) = (x for x in states if is_adam(x))
    moments = dict(nnx.to_flat_state(adam.mu))
    # The gradients in the shape of the model, written as transformers has them.
    state = nnx.state(model, nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        found = moments.get(path)
        zero = jnp.zeros_like(variable.get_value())
        variable.set_value(zero if found is None else found.get_value() / 0.1)
    nnx.update(model, state)
    with tempfile.TemporaryDirectory() as folder:
        sj.save(model, Path(folder) / "grads")
        like = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            Path(folder) / "grads", dtype=torch.float32
        )
    names = dict(like.named_parameters())
    worst = {}
    for name, p in theirs.model.named_parameters():
        if p.requires_grad and p.grad.abs().max() > 1e-7:
            difference = (names[name].detach() - p.grad).abs().max()
            worst[name] = float(difference / p.grad.abs().max())
    name = max(worst, key=worst.__getitem__)
    assert abs(loss - wanted) / wanted < 1e-4 and worst[name] < 1e-2, (loss, wanted, name, worst)
    return {
        "loss, ours and torch": [loss, wanted],
        "largest difference of a gradient, of its size": [name, worst[name]],
        "median of those over all parameters": statistics.median(worst.values()),
    }


def measure(args, length):
    ours = Ours(args, length)
    config = train_vlm.MODELS[args.size]
    with tempfile.TemporaryDirectory() as folder:
        sj.save(ours.model(), Path(folder) / "model")
        theirs = Theirs(Path(folder) / "model", ours.case.host, config)
    result = {"tokens of a row": length, "rows": args.rows}
    result["labelled tokens"] = int((ours.case.host["labels"] >= 0).sum())
    result |= compare(ours, theirs)
    theirs(labelled=True)
    times = {name: [] for name in SIDES}
    calls = {SIDES[0]: ours, SIDES[1]: theirs, SIDES[2]: lambda: theirs(labelled=True)}
    for _ in range(args.steps):
        for name, call in calls.items():
            begin = clocks()
            call()
            times[name].append(since(begin))
    cpu, wall = (
        {name: statistics.median(t[i] for t in ts) for name, ts in times.items()} for i in (0, 1)
    )
    ratios = {
        f"cpu, ours / {name}": statistics.median(
            a[0] / b[0] for a, b in zip(times["ours"], times[name], strict=True)
        )
        for name in SIDES[1:]
    }
    result |= {
        "steps timed of each": args.steps,
        "cpu seconds of a step": cpu,
        "wall seconds of a step": wall,
        **ratios,
        "GFLOP of a step": ours.case.flops.step / 1e9,
        "MB that our compiled step needs beside its state": ours.case.memory / MB,
        "cpu seconds, every turn": {name: [t[0] for t in ts] for name, ts in times.items()},
    }
    return result


def memory(args, length, side):
    """MB that this process held before and at most during its second step, beyond its imports."""
    config = train_vlm.MODELS[args.size]
    jnp.zeros(1).block_until_ready()  # the backend itself is no part of a step
    if side == "ours":
        before = resident("VmRSS")
        call = Ours(args, length)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sj.save(train_vlm.drawn(args.size), Path(folder) / "model")
            before = resident("VmRSS")
            theirs = Theirs(Path(folder) / "model", train_vlm.packed(config, length, args.rows),
                            config)  # fmt: skip
        call = lambda: theirs(labelled="labelled" in side)  # noqa: E731
    call()
    # What making the model and compiling have left is no part of a step, on either side: garbage is
    # collected, glibc gives back what it keeps, and the peak begins anew.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held = resident("VmRSS") - before
    call()
    print(json.dumps({"peak": resident("VmHWM") - before, "held before": held}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed of each, in turns")
    parser.add_argument("--remat", default="", help="ours; '' keeps everything")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        memory(args, args.length[0], args.memory_of)
        return
    about = describe() | {"torch": torch.__version__, "transformers": transformers.__version__}
    results = {"machine": about, "size": args.size, "remat": args.remat, "rows": []}
    for length in args.length:
        result = measure(args, length)
        if args.memory:
            for side in SIDES:
                command = [
                    sys.executable, __file__, "--size", args.size, "--length", str(length),
                    "--rows", str(args.rows), "--remat", args.remat, "--memory-of", side,
                ]  # fmt: skip
                told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                result[f"MB of a process, {side}"] = json.loads(told.splitlines()[-1])
        results["rows"].append(result)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
