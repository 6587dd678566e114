"""A streaming frame of StreamFormer, beside the original's arithmetic in PyTorch.

The peer does what the original does, in our words: unfolded weights, LoRA as two more products, and
keys and values that grow by torch.cat. Both get the same weights and the same cache, their outputs
for one frame are compared before anything is timed, and frames are timed in turns. Pin it to one
core; the medians of CPU seconds are what a busy machine disturbs least.

    taskset -c 1 python benchmarks/streamformer_torch.py --out benchmarks/results/streamformer.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from machine import describe

from streamjax.bench.frame import TOWERS
from streamjax.models.streamformer import StreamFormer, TemporalCache, fold
from streamjax.stream import program


def weights(config):
    """A StreamFormer with numbers of trained size in every parameter: open gates, unit norms."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: StreamFormer(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        mean = 1 if "scale" in name else 0.5 if "gate" in name else 0
        return jnp.asarray(rng.normal(mean, 0.02, leaf.shape).astype(np.float32))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


class Peer:
    """The streaming frame of the original, in PyTorch; one stream, square frames."""

    def __init__(self, model):
        c = self.config = model.config
        state = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model)))[0]
        # torch's layout of a matrix, so that F.linear runs as it does in the original
        self.w = {}
        for path, leaf in state:
            name = ".".join(str(p.key) for p in path)
            a = np.array(leaf)
            matrix = "kernel" in name or "lora" in name
            a = np.ascontiguousarray(a.swapaxes(-1, -2)) if matrix else a
            self.w[name] = torch.from_numpy(a)
        self.heads, self.eps = c.num_attention_heads, c.layer_norm_eps

    def affine(self, x, name, i=None):
        pick = (lambda a: a) if i is None else (lambda a: a[i])
        y = F.linear(x, pick(self.w[name + ".kernel"]), pick(self.w[name + ".bias"]))
        if name + ".lora_a" in self.w:
            low = F.linear(x, pick(self.w[name + ".lora_a"]))
            y = y + F.linear(low, pick(self.w[name + ".lora_b"]))
        return y

    def norm(self, x, name, i=None):
        pick = (lambda a: a) if i is None else (lambda a: a[i])
        scale, bias = pick(self.w[name + ".scale"]), pick(self.w[name + ".bias"])
        return F.layer_norm(x, scale.shape, scale, bias, self.eps)

    def split(self, x, name, i):
        """[rows, length, d] -> three of [rows, heads, length, head]."""
        qkv = self.affine(x, name, i).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4)

    @staticmethod
    def attend(q, k, v):
        return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v

    @torch.inference_mode()
    def frame(self, patches, cache, seen):
        """patches [p, patch pixels]; cache: (k, v) [p heads frames head] for each layer."""
        c, grown = self.config, []
        x = self.affine(patches, "patch") + self.w["position"]
        x = x + self.w["time"][min(seen, c.num_frames - 1)]
        for i, (k, v) in enumerate(cache):
            q, k1, v1 = self.split(self.norm(x, "layers.temporal_norm", i)[:, None],
                                   "layers.temporal.qkv", i)  # fmt: skip
            k, v = torch.cat([k, k1], dim=2), torch.cat([v, v1], dim=2)
            grown.append((k, v))
            u = self.attend(q, k, v).transpose(1, 2).flatten(1)
            u = self.affine(self.affine(u, "layers.temporal.out", i), "layers.temporal_dense", i)
            x = x + torch.tanh(self.w["layers.gate"][i]) * u
            y = self.norm(x, "layers.attn_norm", i)[None]
            u = self.attend(*self.split(y, "layers.attn.qkv", i)).transpose(1, 2).flatten(2)[0]
            x = x + self.affine(u, "layers.attn.out", i)
            y = self.affine(self.norm(x, "layers.mlp_norm", i), "layers.mlp.up", i)
            x = x + self.affine(F.gelu(y), "layers.mlp.down", i)
        x = self.norm(x, "norm")
        return x, self.pool(x), grown

    def pool(self, x):
        """SigLIP's head: one learned query over the patches."""
        d = x.shape[-1]
        wq, wk, wv = self.w["head.qkv.kernel"].split(d)
        bq, bk, bv = self.w["head.qkv.bias"].split(d)

        def by_head(a):
            return a.unflatten(-1, (self.heads, -1)).transpose(0, 1)

        q = by_head(F.linear(self.w["head.probe"][None], wq, bq))
        u = self.attend(q, by_head(F.linear(x, wk, bk)), by_head(F.linear(x, wv, bv)))
        u = self.affine(u.transpose(0, 1).flatten(), "head.out")
        y = self.norm(u, "head.norm")
        return u + self.affine(F.gelu(self.affine(y, "head.mlp.up")), "head.mlp.down")


def compare(model, peer, window, count):
    """One frame by both from the same cache of window - 1 frames; then `count` timed in turns."""
    c, rng = model.config, np.random.default_rng(1)
    form, leaves, folded = program.prepare(model, fold)
    side, size = c.image_size, c.patch_size
    frame = rng.normal(0, 1, (side, side, 3)).astype(np.float32)
    empty = folded.init_cache(1, height=side, width=side, capacity=window)

    def held(a):
        return jnp.asarray(rng.normal(0, 0.5, a.shape).astype(np.float32))

    k, v = (tuple(held(a) for a in ring) for ring in (empty.k, empty.v))
    past = [tuple(torch.from_numpy(np.array(a[0, :, :, : window - 1])) for a in kv)
            for kv in zip(k, v, strict=True)]  # fmt: skip
    cache = TemporalCache(k, v, jnp.full((1,), window - 1, jnp.int32))
    del empty, k, v
    # A patch of ours is row, column, channel, as patch.kernel is.
    grid = side // size
    patches = frame.reshape(grid, size, grid, size, 3).swapaxes(1, 2).reshape(grid**2, -1)
    patches = torch.from_numpy(np.ascontiguousarray(patches))

    tokens, pooled, cache = program.features(form, leaves, frame[None, None], cache)
    theirs = peer.frame(patches, past, window - 1)
    differences = [
        float(np.abs(np.asarray(a).reshape(b.shape) - b.numpy()).max())
        for a, b in zip((tokens, pooled), theirs, strict=False)
    ]
    size_of = [float(b.abs().max()) for b in theirs[:2]]
    assert max(d / s for d, s in zip(differences, size_of, strict=True)) < 1e-3, differences

    ours_s, theirs_s = [], []
    for _ in range(count):
        begin = clocks()
        tokens, pooled, cache = program.features(form, leaves, frame[None, None], cache)
        jax.block_until_ready((tokens, pooled, cache))
        ours_s.append(since(begin))
        begin = clocks()
        peer.frame(patches, past, window - 1)
        theirs_s.append(since(begin))
    cpu, wall = (
        [statistics.median(s[i] for s in times) for times in (ours_s, theirs_s)] for i in (0, 1)
    )
    return {
        "frames in cache": window,
        "largest difference, tokens and pooled": differences,
        "largest number, tokens and pooled": size_of,
        "cpu seconds, ours and torch": cpu,
        "cpu ratio": cpu[1] / cpu[0],
        "wall seconds, ours and torch": wall,
        "wall ratio": wall[1] / wall[0],
    }


def clocks():
    return time.process_time(), time.perf_counter()


def since(begin):
    return tuple(now - then for now, then in zip(clocks(), begin, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--frames", type=int, default=15, help="timed of each, in turns")
    parser.add_argument("--size", choices=TOWERS, default="base")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    model = weights(TOWERS[args.size])
    peer = Peer(model)
    rows = []
    for window in args.window:
        rows.append(compare(model, peer, window, args.frames))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if args.out:
        about = describe() | {"torch": torch.__version__, "torch threads": torch.get_num_threads()}
        result = {"machine": about, "size": args.size, "timed frames": args.frames, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
