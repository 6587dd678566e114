"""Causal attention, heads-major: whole sequences by the device's kernel, chunks against a cache."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from streamjax.ops import cudnn
from streamjax.sharding import mesh_axes, spec_of

Kernel = Literal["blocks", "splash", "cudnn"]
KEPT = "attention"  # the name under which a remat policy keeps what whole sequences give

# A sequence is cut into at most BLOCKS query blocks, each of which reads only the keys up to its
# own end; a block is walked ROWS queries at a time. So the largest score tile is ROWS x l, never
# l x l, and the work above the diagonal that is wasted is 1 / (2 * BLOCKS). 64 rows keep a tile in
# the cache of a CPU: 2.5x faster than 256 rows at 4,096 tokens, forward and backward.
BLOCKS = 16
ROWS = 64
CHUNK = 256  # queries against a cache at a time
SLOTS = 512  # slots of a cache at a time; the scores are CHUNK x SLOTS
LOWEST = -1e30  # in place of minus infinity: the difference of two of them is 0, not NaN


def causal_attention(
    q: Float[Array, "b n l h"],
    k: Float[Array, "b k l h"],
    v: Float[Array, "b k l h"],
    segments: Int[Array, "b l"] | None = None,
    *,
    kernel: Kernel | None = None,
) -> Float[Array, "b n l h"]:
    """Each token attends to the tokens before it and itself, within its own segment.

    Query head i reads key head i // (n / k). Scores are scaled by h**-0.5; the softmax is float32.
    With `segments`, tokens see only tokens of the same number: packed rows, and padding under a
    number of its own; equal numbers stand together. No form builds l x l scores, and all recompute
    their probabilities in the backward pass.

    `kernel` (None: `kernel_for`) is "splash" on TPUs, "cudnn" on GPUs that have a kernel for these
    heads, "blocks" everywhere. On a mesh rows, heads and queries stay where they are, over data,
    tensor and context; keys and values are gathered over context.
    """
    kernel = kernel or kernel_for(q.dtype, q.shape[-1], packed=segments is not None)
    mesh = jax.sharding.get_abstract_mesh()
    spread = not mesh.empty and mesh.size > 1 and not mesh.manual_axes
    if kernel == "splash":  # names its output itself, and more that its gradient is of
        return _splash(q, k, v, segments, mesh if spread else None)
    ids = None if segments is None else (segments, segments)
    if not spread:
        return checkpoint_name(_local(kernel, q, k, v, ids, None), KEPT)
    specs = _layout(q, k, mesh)
    k, v = specs.repeated(k), specs.repeated(v)

    def local(q, k, v, ids):
        part = None if specs.length is None else jax.lax.axis_index(specs.length)
        return _local(kernel, q, k, v, ids, part)

    return checkpoint_name(specs.map(local, q, k, v, ids), KEPT)


def kernel_for(dtype: Any, head_dim: int, *, packed: bool) -> Kernel:
    """The kernel for the devices that a program is compiled for: the mesh's, or the default one.

    A mesh of another machine's devices (`streamjax fit`) counts, so that the program compiled for
    a pod is the pod's.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda") and cudnn.takes(jnp.dtype(dtype), head_dim, packed=packed):
        return "cudnn"
    return "blocks"


class _Layout(NamedTuple):
    """How one attention lies on a mesh: the mesh axes of rows, heads and queries, each or None."""

    mesh: Any
    rows: Any
    heads: Any
    length: Any
    repeats: int

    def repeated(self, k):
        """Key heads as often as the devices that need them."""
        return jnp.repeat(k, self.repeats, axis=1) if self.repeats > 1 else k

    def map(self, local, q, k, v, ids, *more):
        """shard_map; more: pairs of (argument, its specs) that come first."""
        queries = PartitionSpec(self.rows, self.heads, self.length, None)
        keys = PartitionSpec(self.rows, self.heads, None, None)
        of_ids = (PartitionSpec(self.rows, self.length), PartitionSpec(self.rows, None))
        specs = (*(spec for _, spec in more), queries, keys, keys, None if ids is None else of_ids)
        run = jax.shard_map(
            local, mesh=self.mesh, in_specs=specs, out_specs=queries, check_vma=False
        )
        return run(*(argument for argument, _ in more), q, k, v, ids)


def _layout(q, k, mesh) -> _Layout:
    rows, heads, length, _ = spec_of(q.shape, ("batch", "heads", "length", None), mesh)
    ways = _ways(mesh, heads)
    key_heads = k.shape[1]
    repeats = 1
    if key_heads % ways:
        # Fewer key heads than devices: each goes to all those whose queries read it.
        repeats = ways // key_heads if ways % key_heads == 0 else 1
        heads = heads if repeats > 1 else None
    return _Layout(mesh, rows, heads, length, repeats)


def _ways(mesh, entry) -> int:
    """Over how many devices an entry of a PartitionSpec cuts."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(entry))


def _splash(q, k, v, segments, mesh, interpret=False):
    from streamjax.ops.splash import Splash  # Pallas takes a second to import

    specs = None if mesh is None else _layout(q, k, mesh)
    shards = 1 if specs is None else _ways(mesh, specs.length)
    splash = Splash(q.shape[2], KEPT, shards, interpret)
    q, k, v = (splash.pad(a, 2) for a in (q, k, v))
    ids = None
    if segments is not None:
        segments = splash.pad(segments, 1)
        ids = (segments, segments)
    if specs is None:
        out = splash(splash.kernel(q.shape[1]), q, k, v, ids)
    else:
        kernel = splash.kernel(q.shape[1] // _ways(mesh, specs.heads))
        where = splash.specs(kernel, mesh, specs.length)
        k, v = specs.repeated(k), specs.repeated(v)
        out = specs.map(splash, q, k, v, ids, (kernel, where))
    return out[:, :, : splash.length]


def _local(kernel, q, k, v, ids, part):
    """One device's share. part: which piece of the queries, where they are cut (None: all)."""
    if kernel == "cudnn" and part is None:
        if ids is None:
            return cudnn.cudnn_attention(q, k, v, None)
        few = (cudnn.begins(ids[0]).sum(1) <= cudnn.SEGMENTS).all()
        return jax.lax.cond(
            few,
            lambda: cudnn.cudnn_attention(q, k, v, ids[0]),
            lambda: _blocks(q, k, v, ids),
        )
    if part is None:
        return _blocks(q, k, v, ids)
    # Which keys are behind a query is known at run time only: every tile reads all of them.
    of_queries, of_keys = ids or (None, None)
    return _rows(q, k, v, of_queries, of_keys, part * q.shape[2])


def _blocks(q, k, v, ids):
    """The triangle in blocks of queries, each with the keys up to its own end."""
    length = q.shape[2]
    block = max(ROWS, -(-length // BLOCKS))
    if length <= block:
        return _block(q, k, v, ids and ids[0], ids and ids[1], 0)
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        cut = (None, None) if ids is None else (ids[0][:, start:stop], ids[1][:, :stop])
        rows, keys, values = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        outputs.append(_rows(rows, keys, values, *cut, start))
    return jnp.concatenate(outputs, axis=2)


def cached_attention(
    q: Float[Array, "b n l h"],
    k: Float[Array, "b k s h"],
    v: Float[Array, "b k s h"],
    mask: Bool[Array, "b l s"],
    sink: tuple[Float[Array, "b n l h"], int] | None = None,
) -> Float[Array, "b n l h"]:
    """A chunk of queries against every slot of a cache that already holds the chunk's own keys.

    `mask` says which slots a query may read. `sink` = (queries, count) makes the first `count`
    slots be scored with queries of their own: the same queries rotated for the frame of positions
    that the sink's keys live in (ops/cache.py).

    Slots are walked SLOTS at a time with a running softmax, and only where some query may read:
    the cost follows what the cache holds, not what it could hold. At 8,192 slots this takes 0.65
    times what one softmax over all of them takes on a CPU, whose caches a tile of scores fits.
    Longer chunks go CHUNK queries at a time.
    """
    length = q.shape[2]
    if length <= CHUNK:
        return _walk(q, k, v, mask, sink)
    outputs = []
    for start in range(0, length, CHUNK):
        cut = slice(start, min(start + CHUNK, length))
        own = None if sink is None else (sink[0][:, :, cut], sink[1])
        outputs.append(_walk(q[:, :, cut], k, v, mask[:, cut], own))
    return jnp.concatenate(outputs, axis=2)


def _walk(q, k, v, mask, sink):
    """One chunk of queries over the slots, tile by tile."""
    b, n, rows, h = q.shape
    heads, slots = k.shape[1], k.shape[2]

    def grouped(queries):
        return queries.reshape(b, heads, -1, h)

    def tile(carry, queries, keys, values, seen):
        top, total, out = carry
        scores = _scores(queries, keys)
        seen = jnp.broadcast_to(seen[:, None, None], (b, heads, n // heads, *seen.shape[1:]))
        scores = jnp.where(seen.reshape(scores.shape), scores, LOWEST)
        new = jnp.maximum(top, scores.max(-1))
        weights, fade = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
        more = jnp.einsum(
            "bkrs,bksh->bkrh", weights.astype(values.dtype), values,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        return new, total * fade + weights.sum(-1), out * fade[..., None] + more

    count = heads, n // heads * rows
    carry = (
        jnp.full((b, *count), LOWEST, jnp.float32),
        jnp.zeros((b, *count), jnp.float32),
        jnp.zeros((b, *count, h), jnp.float32),
    )
    first = 0
    if sink is not None:
        first = sink[1]
        carry = tile(carry, grouped(sink[0]), k[:, :, :first], v[:, :, :first], mask[:, :, :first])
    size = min(SLOTS, slots - first)
    tiles = -(-(slots - first) // size)
    # The last tile starts early where tiles do not divide; what it repeats is masked.
    starts = [min(first + i * size, slots - size) for i in range(tiles)]
    wanted = jnp.stack([mask[:, :, at : at + size].any() for at in starts])
    order = jnp.argsort(~wanted, stable=True)
    starts = jnp.asarray(starts)
    fresh = first + jnp.arange(tiles) * size
    queries = grouped(q)

    def step(i, carry):
        at, new_from = starts[order[i]], fresh[order[i]]
        keys, values = (jax.lax.dynamic_slice_in_dim(a, at, size, 2) for a in (k, v))
        seen = jax.lax.dynamic_slice_in_dim(mask, at, size, 2)
        seen &= at + jnp.arange(size) >= new_from
        return tile(carry, queries, keys, values, seen)

    _, total, out = jax.lax.fori_loop(0, wanted.sum(), step, carry)
    # A row that may read nothing (padding) has a total of 0.
    out = out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
    return out.astype(v.dtype).reshape(b, n, rows, h)


def _rows(q, k, v, query_ids, key_ids, start):
    """One query block, ROWS queries at a time."""
    length = q.shape[2]
    if length <= ROWS:
        return jax.checkpoint(_block)(q, k, v, query_ids, key_ids, start)
    pad = -length % ROWS
    tiles = (length + pad) // ROWS
    b, n, _, h = q.shape
    q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0))).reshape(b, n, tiles, ROWS, h)
    xs = [q.transpose(2, 0, 1, 3, 4), start + ROWS * jnp.arange(tiles)]
    if query_ids is not None:
        # Padded queries keep a segment that exists, so that no softmax is over nothing.
        query_ids = jnp.pad(query_ids, ((0, 0), (0, pad)), mode="edge")
        xs.append(query_ids.reshape(b, tiles, ROWS).transpose(1, 0, 2))

    @jax.checkpoint
    def tile(xs):
        return _block(xs[0], k, v, xs[2] if len(xs) == 3 else None, key_ids, xs[1])

    out = jax.lax.map(tile, tuple(xs))
    return out.transpose(1, 2, 0, 3, 4).reshape(b, n, length + pad, h)[:, :, :length]


def _block(q, k, v, query_ids, key_ids, start):
    """Queries start, start + 1, ... against the keys 0, 1, ...: one tile of scores."""
    rows, columns = q.shape[2], k.shape[2]
    mask = jnp.arange(columns) <= start + jnp.arange(rows)[:, None]
    mask = mask[None]
    if query_ids is not None:
        mask = mask & (query_ids[:, :, None] == key_ids[:, None, :])
    return _chunk(q, k, v, mask)


def _chunk(q, k, v, mask):
    b, n, rows, h = q.shape
    groups = n // k.shape[1]
    scores = _scores(q, k)
    scores = scores.reshape(b, -1, groups, rows, scores.shape[-1])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(b, -1, groups * rows, scores.shape[-1])
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=jnp.float32)
    return out.astype(v.dtype).reshape(b, n, rows, h)


def _scores(q, k):
    """Scaled float32 scores [b k groups*l s]: the query heads of one key head are its rows."""
    b, _, _, h = q.shape
    q = q.reshape(b, k.shape[1], -1, h)
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    return scores * h**-0.5


def full_attention(
    q: Float[Array, "b n l h"], k: Float[Array, "b n l h"], v: Float[Array, "b n l h"]
) -> Float[Array, "b n l h"]:
    """Every token attends to every token, CHUNK queries or fewer at a time.

    Scores are scaled by h**-0.5; the softmax is float32. Every block recomputes its probabilities
    in the backward pass.
    """
    length = q.shape[2]
    blocks = -(-length // CHUNK)
    if blocks == 1:
        return _all(q, k, v)
    rows = -(-length // blocks)  # even blocks: 1,025 tokens are 5 x 205, not 4 x 256 and one more
    starts = range(0, length, rows)
    return jnp.concatenate([jax.checkpoint(_all)(q[:, :, s : s + rows], k, v) for s in starts], 2)


def _all(q, k, v):
    weights = jax.nn.softmax(_scores(q, k), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=jnp.float32)
    return out.astype(v.dtype)
