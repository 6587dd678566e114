"""Causal attention on NVIDIA GPUs: cuDNN's flash attention, whole rows and packed ones."""

from typing import Any

import jax
import jax.numpy as jnp

# jax.nn.dot_product_attention offers cuDNN's kernel, but not its packed rows.
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jaxtyping import Array, Bool, Float, Int

SEGMENTS = 64  # of a packed row at most; rows with more take another way


def takes(dtype: jnp.dtype, head_dim: int, *, packed: bool) -> bool:
    """Whether cuDNN on this machine's GPU has a kernel for such heads.

    float16 or bfloat16, head_dim a multiple of 8 up to 128; packed rows from Hopper on.
    """
    if dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8 or head_dim > 128:
        return False
    try:
        version = cudnn.check_cudnn_version()
    except RuntimeError:  # none installed
        return False
    # Compute capabilities: 8.0 is Ampere, 9.0 Hopper. Packed rows came with cuDNN 9.6.
    least, oldest = ("9.0", 90600) if packed else ("8.0", 90000)
    return version >= oldest and cudnn.check_compute_capability(least)


def cudnn_attention(
    q: Float[Array, "b n l h"],
    k: Float[Array, "b k l h"],
    v: Float[Array, "b k l h"],
    segments: Int[Array, "b l"] | None,
) -> Float[Array, "b n l h"]:
    """Causal attention; with `segments` (at most SEGMENTS runs of equal numbers a row) packed."""
    heads = tuple(a.swapaxes(1, 2) for a in (q, k, v))
    scale = q.shape[-1] ** -0.5
    if segments is None:
        out = jax.nn.dot_product_attention(
            *heads, scale=scale, is_causal=True, implementation="cudnn"
        )
        return out.swapaxes(1, 2)
    starts, lengths = runs(segments, SEGMENTS)
    out: Any = cudnn.dot_product_attention(
        *heads, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=starts, kv_offsets=starts,
        scale=scale, mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )  # fmt: skip
    return out.swapaxes(1, 2)


def begins(segments: Int[Array, "b l"]) -> Bool[Array, "b l"]:
    """Where a run of equal numbers begins."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def runs(
    segments: Int[Array, "b l"], most: int
) -> tuple[Int[Array, "b starts"], Int[Array, "b runs"]]:
    """Starts [b most+1] and lengths [b most] of the runs, -1 behind the last one."""
    length = segments.shape[1]

    def of_row(fresh):
        start = jnp.nonzero(fresh, size=most, fill_value=length)[0].astype(jnp.int32)
        stop = jnp.append(start[1:], jnp.int32(length))
        real = start < length
        return (
            jnp.append(jnp.where(real, start, -1), jnp.int32(-1)),
            jnp.where(real, stop - start, -1),
        )

    return jax.vmap(of_row)(begins(segments))
