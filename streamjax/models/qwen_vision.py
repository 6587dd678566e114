"""What the vision towers of Qwen2.5-VL and Qwen3-VL share: plans, 2-D rotation, attention.

A tower gets pictures as one list of patches, four in a row being a 2 x 2 block that becomes one
visual token. Everything that depends on the pictures' sizes is in a plan: index arrays that are
made on the host once per grid and handed to jit, so that other pictures of the same plan shape run
in the same program. The patches stay in reading order throughout; windows are index arrays over
them. specs/vlm.md sections 2.1 to 2.4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from streamjax.data.processors.plans import PlanShape, plan_arrays
from streamjax.models.layers import Linear
from streamjax.models.vlm import host_grid
from streamjax.ops.grouped import Groups, grouped_attention
from streamjax.ops.linear import linear
from streamjax.ops.rope import rope_table, rotate
from streamjax.sharding import constrain

THETA = 10000.0  # of the towers' rotation; no config key carries it


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

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "VisionPlan":
        """Of the arrays of `plan_arrays`, or of a batch of them."""
        windows = None
        if "windows" in arrays:
            windows = Groups(arrays["windows"], arrays["window_slots"])
        return cls(
            arrays["coordinates"], Groups(arrays["slices"], arrays["slice_slots"]), windows,
            arrays.get("taps"), arrays.get("weights"),
        )  # fmt: skip


def plan_of(
    grid: Any,
    *,
    merge: int,
    window: int | None = None,
    table: int | None = None,
    shape: PlanShape | None = None,
) -> VisionPlan:
    """`data.processors.plans.plan_arrays` of a host grid [images, 3], as the towers take it."""
    arrays = plan_arrays(host_grid(grid), merge=merge, window=window, table=table, shape=shape)
    return VisionPlan.of(arrays)


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
        q, k, v = (constrain(a, "heads", None, None) for a in heads.transpose(1, 2, 0, 3))
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
