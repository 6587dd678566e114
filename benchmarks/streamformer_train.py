"""A step of StreamFormer's pre-training, beside the original's step in PyTorch.

The peer does what the original does, in our words: tokens patch-major, attention written out, LoRA
as two more products, AdamW with the published groups; and once more with PyTorch's fused attention,
which the original does not use. Both sides get the same weights and the same clips; loss and every
gradient of the first step are compared before anything is timed, and steps are timed in turns. Pin
it to one core; the medians of CPU seconds are what a busy machine disturbs least. The file is
written after every turn.

    taskset -c 1 python benchmarks/streamformer_train.py --memory --out FILE

--memory measures memory too, in a fresh process for each side.
"""

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx as flax_nnx
from machine import describe
from torch import nn

from streamjax.bench import train
from streamjax.bench.frame import TOWERS
from streamjax.models.streamformer import LORA_RANK

MB = 1 << 20


class Projection(nn.Linear):
    """A linear map with a low-rank one beside it, and then frozen itself."""

    def __init__(self, d, f, lora):
        super().__init__(d, f)
        if lora:
            self.lora_a = nn.Linear(d, LORA_RANK, bias=False)
            self.lora_b = nn.Linear(LORA_RANK, f, bias=False)
            self.weight.requires_grad_(False), self.bias.requires_grad_(False)

    def forward(self, input):
        y = super().forward(input)
        return y + self.lora_b(self.lora_a(input)) if hasattr(self, "lora_a") else y


class Attention(nn.Module):
    fused = False  # of all of them

    def __init__(self, c, *, lora, causal):
        super().__init__()
        d, self.heads = c.hidden_size, c.num_attention_heads
        self.qkv, self.out = Projection(d, 3 * d, lora), Projection(d, d, lora)
        self.causal = causal

    def forward(self, x):
        rows, length, d = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            if self.causal:
                past = torch.ones(length, length, dtype=torch.bool).tril()
                scores = scores.masked_fill(~past, -math.inf)
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(rows, length, d))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up = nn.Linear(c.hidden_size, c.intermediate_size)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c.hidden_size
        self.temporal_norm, self.attn_norm, self.mlp_norm = (
            nn.LayerNorm(d, eps=c.layer_norm_eps) for _ in range(3)
        )
        self.temporal = Attention(c, lora=False, causal=True)
        self.temporal_dense = nn.Linear(d, d)
        self.gate = nn.Parameter(torch.zeros(()))
        self.attn = Attention(c, lora=c.add_lora_spatial, causal=False)
        self.mlp = Mlp(c)

    def forward(self, x, b, t, p):
        """x: [b, p * t, d], all frames of the first patch first."""
        d = x.shape[-1]
        u = self.temporal(self.temporal_norm(x).reshape(b * p, t, d))
        x = x + torch.tanh(self.gate) * self.temporal_dense(u.reshape(b, p * t, d))
        y = x.reshape(b, p, t, d).transpose(1, 2).reshape(b * t, p, d)
        y = self.attn(self.attn_norm(y))
        x = x + y.reshape(b, t, p, d).transpose(1, 2).reshape(b, p * t, d)
        return x + self.mlp(self.mlp_norm(x))


class Head(nn.Module):
    """SigLIP's pooling head, with PyTorch's own attention."""

    def __init__(self, c):
        super().__init__()
        d = c.hidden_size
        self.probe = nn.Parameter(torch.zeros(d))
        self.attention = nn.MultiheadAttention(d, c.num_attention_heads, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(d, eps=c.layer_norm_eps), Mlp(c)

    def forward(self, x):
        probe = self.probe.expand(len(x), 1, -1)
        x = self.attention(probe, x, x)[0]
        return (x + self.mlp(self.norm(x)))[:, 0]


class Peer(nn.Module):
    """The tower and the head of one recognition task."""

    def __init__(self, c):
        super().__init__()
        d = c.hidden_size
        self.config = c
        self.patch = nn.Conv2d(c.num_channels, d, c.patch_size, c.patch_size)
        self.position = nn.Parameter(torch.zeros(c.patches, d))
        self.time = nn.Parameter(torch.zeros(c.num_frames, d))
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.LayerNorm(d, eps=c.layer_norm_eps)
        self.head = Head(c)
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.register_buffer("classes", torch.zeros(train.CLASSES, d))

    def forward(self, frames, labels):
        """The loss. frames: [b t 3 h w], normalised."""
        b, t = frames.shape[:2]
        x = self.patch(frames.flatten(0, 1)).flatten(2).transpose(1, 2) + self.position
        p, d = x.shape[1:]
        x = x.reshape(b, t, p, d).transpose(1, 2) + self.time[:t]
        x = x.reshape(b, p * t, d)
        for layer in self.layers:
            x = layer(x, b, t, p)
        x = self.norm(x).reshape(b, p, t, d).transpose(1, 2)
        pooled = self.head(x.reshape(b * t, p, d)).reshape(b, t, d)[:, -1]
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * pooled @ self.classes.T + self.logit_bias
        target = 2 * F.one_hot(labels, len(self.classes)) - 1
        return -F.logsigmoid(target * logits).sum() / b

    def optimizer(self):
        """AdamW with the published groups."""
        groups = {True: [], False: []}
        for name, p in self.named_parameters():
            if p.requires_grad:
                vector = p.ndim == 1 and not name.endswith("probe")
                groups[not (vector or name.endswith("bias"))].append(p)
        return torch.optim.AdamW(
            [{"params": ps, "weight_decay": 0.05 * decay} for decay, ps in groups.items()],
            lr=7e-5, betas=(0.9, 0.999), eps=1e-8,
        )  # fmt: skip


# Where our tree keeps what torch calls otherwise: a name, or a part of one.
OURS = {
    "head.attention.in_proj_weight": "head.qkv.kernel",
    "head.attention.in_proj_bias": "head.qkv.bias",
    "head.attention.out_proj": "head.out",
    "lora_a.weight": "lora_a",
    "lora_b.weight": "lora_b",
}


def our_name(name, module_of):
    """Our path of a peer's parameter, and the number of its layer, or None."""
    for theirs, ours in OURS.items():
        name = name.replace(theirs, ours)
    path = name.split(".")
    if path[-1] == "weight":
        path[-1] = "scale" if isinstance(module_of, nn.LayerNorm) else "kernel"
    layer = int(path.pop(1)) if path[0] == "layers" else None
    prefix = ("heads", train.TASK) if path[0].startswith("logit") else ("tower",)
    return (*prefix, *path), layer


def as_theirs(leaf, layer, like):
    """One of our arrays in the shape and order of a peer's parameter."""
    a = np.array(leaf if layer is None else leaf[layer])
    if like.ndim == 4:  # a patch of ours is row, column, channel
        d, c, h, w = like.shape
        return a.reshape(h, w, c, d).transpose(3, 2, 0, 1)
    return a.T if like.ndim == 2 and not hasattr(like, "table") else a


def flat(tree):
    """Our tree as path -> array."""
    return {
        path: leaf.get_value() if hasattr(leaf, "get_value") else leaf
        for path, leaf in flax_nnx.to_flat_state(tree)
    }


def load(peer, case):
    """Copies our weights; returns each parameter's name with its place in our tree."""
    ours = flat(case.state.params) | flat(case.state.frozen)
    modules = dict(peer.named_modules())
    places = {}
    peer.position.table = peer.time.table = True
    for name, p in peer.named_parameters():
        path, layer = our_name(name, modules[name.rpartition(".")[0]])
        places[name] = path, layer
        p.data.copy_(torch.from_numpy(np.array(as_theirs(ours[path], layer, p))))
    table = ours["labels", train.TASK, train.TASK]
    peer.classes.copy_(torch.from_numpy(np.array(table)))
    return places


def compare(peer, places, case, loss, told):
    """Loss and gradients of the first step; ours are in Adam's first moments, 1 - b1 of them."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    (adam,) = (x for x in jax.tree.leaves(case.state.opt_state, is_leaf=is_adam) if is_adam(x))
    moments, worst = flat(adam.mu), {}
    for name, p in peer.named_parameters():
        path, layer = places[name]
        if not p.requires_grad:
            assert path not in moments, f"{name} is trained by ours"
            continue
        found = as_theirs(moments[path], layer, p) / 0.1
        theirs = p.grad.numpy()
        worst[name] = float(np.abs(found - theirs).max() / np.abs(theirs).max())
    # Keys' biases move all scores alike: the true gradient is zero, and PyTorch's is rounding.
    name = max(worst, key=worst.__getitem__)
    difference = abs(float(told["loss"]) - loss) / abs(loss)
    assert difference < 1e-4 and worst[name] < 1e-2, (difference, name, worst[name])
    return {
        "loss, ours and torch": [float(told["loss"]), loss],
        "largest difference of a gradient, of its size": [name, worst[name]],
        "median of those over all parameters": statistics.median(worst.values()),
    }


class Ours:
    def __init__(self, args):
        self.case = train.make_case(
            args.size, jnp.float32, args.batch, args.frames, args.remat or None
        )

    def __call__(self):
        self.case.state, told = self.case.step(self.case.state, self.case.batch)
        jax.block_until_ready((self.case.state, told))
        return told


class Theirs:
    """Frames are normalised beforehand, as the original's loader does."""

    def __init__(self, args, case):
        c = TOWERS[args.size]
        self.peer = Peer(c)
        self.optimizer = self.peer.optimizer()
        if case is not None:
            clips, labels = (np.array(case.batch[k]) for k in ("frames", "label"))
        else:
            side = c.image_size
            clips = np.random.default_rng(1).integers(
                0, 256, (args.batch, args.frames, side, side, 3), np.uint8
            )
            labels = np.zeros(args.batch)
        clips = torch.from_numpy(clips).float() / 127.5 - 1
        self.frames = clips.permute(0, 1, 4, 2, 3).contiguous()
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __call__(self):
        self.optimizer.zero_grad()
        loss = self.peer(self.frames, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(args):
    """Yields what has been measured, a turn more every time."""
    if args.keep_memory:
        keep_memory()
    ours = Ours(args)
    theirs = Theirs(args, ours.case)
    places = load(theirs.peer, ours.case)
    told, loss = ours(), theirs()
    result = {"size": args.size, "clips": args.batch, "frames": args.frames}
    result |= {"remat": args.remat, "allocator keeps its memory": args.keep_memory}
    result |= compare(theirs.peer, places, ours.case, loss, told)
    print(json.dumps(result, indent=1), flush=True)
    wanted = train.products(ours.case.tower, args.batch, args.frames)
    product_flops = sum(p.step_flops for p in wanted)
    flops = product_flops + train.attention_flops(ours.case.tower, args.batch, args.frames)
    floor = train.time_products(wanted, jnp.float32, time.process_time)
    next(floor)
    times = {"ours": [], "torch": [], "torch, fused attention": [], "products": []}
    for _ in range(args.steps):
        for name in list(times)[:3]:
            Attention.fused = "fused" in name
            begin = clocks()
            ours() if name == "ours" else theirs()
            times[name].append(since(begin))
        times["products"].append((next(floor), math.nan))
        print({name: [round(s, 2) for s in t[-1]] for name, t in times.items()}, flush=True)
        cpu, wall = (
            {name: statistics.median(t[i] for t in ts) for name, ts in times.items()}
            for i in (0, 1)
        )
        rate = product_flops / cpu.pop("products")
        yield result | {
            "turns": len(times["ours"]),
            "cpu seconds of a step": cpu,
            "cpu, ours / torch": cpu["ours"] / cpu["torch"],
            "cpu, ours / torch with fused attention": cpu["ours"] / cpu["torch, fused attention"],
            "wall, ours / torch": wall["ours"] / wall["torch"],
            "clips per cpu second": {name: args.batch / s for name, s in cpu.items()},
            "cpu seconds of the products": product_flops / rate,
            "cpu, step / products": {name: s * rate / product_flops for name, s in cpu.items()},
            "GFLOP of a step": flops / 1e9,
            "GFLOP/s of the products": rate / 1e9,
            "share of that rate": {name: flops / s / rate for name, s in cpu.items()},
            "cpu seconds, every turn": {name: [s for s, _ in t] for name, t in times.items()},
            "MB that our compiled step needs beside its state": ours.case.memory / MB,
        }


def memory(args, side):
    """MB that this process held at most during its second step, beyond what it had imported."""
    jnp.zeros(1).block_until_ready()  # the backend itself is no part of a step
    before = resident("VmRSS")
    call = Ours(args) if side == "ours" else Theirs(args, None)
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: compiling is not counted
    call()
    print(json.dumps({"peak MB": resident("VmHWM") - before}))


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def clocks():
    return time.process_time(), time.perf_counter()


def since(begin):
    return tuple(now - then for now, then in zip(clocks(), begin, strict=True))


def keep_memory():
    """glibc never gives memory back: every step finds its pages as the one before left them."""
    libc = ctypes.CDLL(None)
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20), (-8, 1)):
        assert libc.mallopt(option, value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=TOWERS, default="base")
    parser.add_argument("--batch", type=int, default=1, help="clips in a step")
    parser.add_argument("--frames", type=int, default=16, help="of a clip")
    parser.add_argument("--steps", type=int, default=5, help="timed of each, in turns")
    parser.add_argument("--remat", default=train.REMAT, help="'' keeps everything")
    parser.add_argument("--keep-memory", action="store_true", help="glibc keeps freed memory")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--memory-of", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    if args.memory_of:
        memory(args, args.memory_of)
        return
    result = {}
    for result in measure(args):
        write(args, result)
    if args.memory:
        for side in ("ours", "torch"):
            command = [sys.executable, *sys.argv, "--memory-of", side]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            result[f"peak MB of a process, {side}"] = json.loads(told.splitlines()[-1])["peak MB"]
        write(args, result)
    print(json.dumps(result, indent=1))


def write(args, result):
    about = describe() | {"torch": torch.__version__, "torch threads": torch.get_num_threads()}
    if args.out:
        args.out.write_text(json.dumps({"machine": about, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
