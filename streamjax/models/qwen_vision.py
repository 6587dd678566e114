"""What the vision towers of Qwen2.5-VL and Qwen3-VL share: plans, 2-D rotation, attention.

A tower gets pictures as one list of patches, four in a row being a 2 x 2 block that becomes one
visual token. Everything that depends on the pictures' sizes is in a plan: index arrays that are
made on the host once per grid and handed to jit, so that other pictures of the same plan shape run
in the same program. The patches stay in reading order throughout; windows are index arrays over
them. specs/vlm.md sections 2.1 to 2.4.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from streamjax.models.layers import Linear
from streamjax.models.vlm import host_grid
from streamjax.ops.grouped import Groups, grouped_attention
from streamjax.ops.linear import linear
from streamjax.ops.rope import rope_table, rotate

THETA = 10000.0  # of the towers' rotation; no config key carries it


@dataclasses.dataclass(frozen=True)
class PlanShape:
    """What a plan is padded to: patches, slices (pictures, or steps of videos) and the patches of
    the largest one, and windows (0 where the tower has none).
    """

    patches: int
    slices: int
    slice_size: int
    windows: int = 0

    def __or__(self, other: "PlanShape") -> "PlanShape":
        """The smallest shape that holds either plan."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return PlanShape(*(max(pair) for pair in pairs))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionPlan:
    """The index arrays of one list of patches; with a leading `b`, of a batch of lists.

    coordinates int32 [p 2]: row and column of each patch in its picture. slices: the groups of
    whole pictures. windows: the groups of windows, or None. taps int32 [p 4] and weights float32
    [p 4]: the entries of the learned position table that a patch lies between, or None.
    """

    coordinates: Any
    slices: Groups
    windows: Any = None
    taps: Any = None
    weights: Any = None

    @property
    def shape(self) -> PlanShape:
        windows = 0 if self.windows is None else self.windows.members.shape[-2]
        slices, size = self.slices.members.shape[-2:]
        return PlanShape(self.coordinates.shape[-2], slices, size, windows)


def plan_of(
    grid: Any,
    *,
    merge: int,
    window: int | None = None,
    table: int | None = None,
    shape: PlanShape | None = None,
) -> VisionPlan:
    """The plan of the pictures of grid [images, 3]: (steps of time, rows, columns) in patches.

    merge: patches on the side of a block. window: patches on the side of a window, None without
    windows. table: side of the learned table of positions, None without one. shape: what to pad to
    (None: nothing). Rows of zeros are padding. Raises ValueError for rows or columns that blocks do
    not divide, and for pictures that do not fit the shape.
    """
    pictures = [tuple(map(int, row)) for row in host_grid(grid) if any(row)]
    slices = []
    for t, rows, columns in pictures:
        if min(t, rows, columns) < 1 or rows % merge or columns % merge:
            raise ValueError(
                f"grid row {(t, rows, columns)}: wanted (steps, rows, columns) in patches, at "
                f"least 1 and the last two multiples of {merge}"
            )
        slices += [_slice(rows, columns, merge, window, table)] * t
    starts = np.cumsum([0, *(len(s.coordinates) for s in slices)])
    windows = [m + start for s, start in zip(slices, starts, strict=False) for m in s.windows]
    need = PlanShape(
        int(starts[-1]), len(slices), max((len(s.coordinates) for s in slices), default=0),
        len(windows),
    )  # fmt: skip
    shape = need if shape is None else shape
    if shape | need != shape:
        raise ValueError(f"grid {[list(p) for p in pictures]} needs {need}, larger than {shape}")
    whole = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    per_patch = functools.partial(_padded, rows=shape.patches)
    return VisionPlan(
        per_patch([s.coordinates for s in slices], np.zeros((0, 2), np.int32)),
        _groups(whole, shape.slices, shape.slice_size, shape.patches),
        None if window is None else _groups(windows, shape.windows, window**2, shape.patches),
        None if table is None else per_patch([s.taps for s in slices], np.zeros((0, 4), np.int32)),
        None
        if table is None
        else per_patch([s.weights for s in slices], np.zeros((0, 4), np.float32)),
    )


def plan_rows(grids: Any, make: Any, shape: PlanShape | None = None) -> VisionPlan:
    """The plans of a batch's rows, padded to one shape (None: the smallest) and stacked.

    grids: one [images, 3] per row. make(grid, shape=...) is a tower's `plan`.
    """
    if shape is None:
        shape = functools.reduce(PlanShape.__or__, (make(grid).shape for grid in grids))
    plans = [make(grid, shape=shape) for grid in grids]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *plans)


class VisionAttention(nnx.Module):
    """One fused projection to q, k, v and one back; who sees whom is a `Groups`."""

    def __init__(self, d: int, heads: int, *, rngs: nnx.Rngs):
        self.num_heads = heads
        self.qkv = Linear(d, 3 * d, ("embed", "heads"), rngs=rngs)
        self.out = Linear(d, d, ("heads", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "p d"], rope: Any, attend: Any) -> Float[Array, "p d"]:
        """rope: `rope_2d` of the patches; attend(q, k, v): what to do with heads [n p h]."""
        patches, d = x.shape
        heads = self.qkv(x).reshape(patches, 3, self.num_heads, d // self.num_heads)
        q, k, v = heads.transpose(1, 2, 0, 3)
        q, k = (rotate(a[None], *rope)[0] for a in (q, k))
        return self.out(attend(q, k, v).swapaxes(0, 1).reshape(patches, d))


class PatchEmbed(nnx.Module):
    """Patches to vectors; the input is ordered (channel, time, row, column).

    A still picture stands there with every pixel repeated `steps` times. Given once instead,
    patches of e / steps values, it meets the sum of the kernel's steps, at 1 / steps of the cost.
    """

    def __init__(self, c: Any, *, bias: bool, rngs: nnx.Rngs):
        self.channels, self.steps = c.in_channels, c.temporal_patch_size
        values = self.channels * self.steps * c.patch_size**2
        self.proj = Linear(values, c.hidden_size, (None, "embed"), bias=bias, rngs=rngs)

    def __call__(self, pixels: Float[Array, "p e"]) -> Float[Array, "p d"]:
        kernel = self.proj.kernel[...]
        values, d = kernel.shape
        if pixels.shape[1] == values:
            return self.proj(pixels)
        if pixels.shape[1] * self.steps != values:
            raise ValueError(
                f"patches of {pixels.shape[1]} values, wanted {values}, or {values // self.steps} "
                "of still pictures"
            )
        by_step = kernel.astype(jnp.float32).reshape(self.channels, self.steps, -1, d)
        bias = None if self.proj.bias is None else self.proj.bias[...]
        return linear(pixels, by_step.sum(1).reshape(-1, d), bias)


def rope_2d(
    coordinates: Int[Array | np.ndarray, "p 2"], head_dim: int
) -> tuple[Float[Array, "1 p half"], Float[Array, "1 p half"]]:
    """Cosines and sines for `rotate`: a quarter of the channels turns by row, one by column."""
    cos, sin = rope_table(jnp.asarray(coordinates), head_dim // 2, THETA)
    return cos.reshape(1, len(cos), -1), sin.reshape(1, len(sin), -1)


def within(groups: Groups) -> Any:
    """What `VisionAttention` wants: attention within these groups."""
    return functools.partial(grouped_attention, groups=groups)


@dataclasses.dataclass(frozen=True)
class _Slice:
    coordinates: np.ndarray
    windows: tuple[np.ndarray, ...]
    taps: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=256)
def _slice(rows: int, columns: int, merge: int, window: int | None, table: int | None) -> _Slice:
    """One picture: its patches' coordinates in block order, and what follows from them."""
    patch = np.arange(rows * columns, dtype=np.int32)
    blocks = patch.reshape(rows // merge, columns // merge, merge, merge)
    row, column = np.indices((rows, columns), np.int32)
    order = (rows // merge, merge, columns // merge, merge)
    row, column = (a.reshape(order).swapaxes(1, 2).reshape(-1) for a in (row, column))
    windows = ()
    if window is not None:
        side = window // merge
        windows = tuple(
            blocks[i : i + side, j : j + side].reshape(-1)
            for i in range(0, rows // merge, side)
            for j in range(0, columns // merge, side)
        )
    taps, weights = np.zeros((0, 4), np.int32), np.zeros((0, 4), np.float32)
    if table is not None:
        taps, weights = _taps(row, rows, column, columns, table)
    return _Slice(np.stack([row, column], 1), windows, taps, weights)


def _taps(row, rows, column, columns, table) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear, corners on corners: the four entries of the table around each patch."""

    def between(place, size):
        at = np.linspace(0, table - 1, size, dtype=np.float32)[place]
        low = at.astype(np.int32)
        return low, np.minimum(low + 1, table - 1), at - low

    top, bottom, down = between(row, rows)
    left, right, across = between(column, columns)
    taps = [top * table + left, top * table + right, bottom * table + left, bottom * table + right]
    up, back = 1 - down, 1 - across
    weights = [up * back, up * across, down * back, down * across]
    return np.stack(taps, 1).astype(np.int32), np.stack(weights, 1).astype(np.float32)


def _groups(members: Sequence[np.ndarray], count: int, size: int, patches: int) -> Groups:
    table = np.full((count, size), patches, np.int32)
    for row, group in zip(table, members, strict=False):
        row[: len(group)] = group
    slots = np.zeros(patches, np.int32)
    place = np.flatnonzero(table < patches)
    slots[table.reshape(-1)[place]] = place
    return Groups(table, slots)


def _padded(pieces: Sequence[np.ndarray], empty: np.ndarray, *, rows: int) -> np.ndarray:
    joined = np.concatenate([empty, *pieces])
    return np.pad(joined, ((0, rows - len(joined)), (0, 0)))
