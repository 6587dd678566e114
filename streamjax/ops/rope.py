"""Rotary positions: the angle table, and the rotation in its two-halves layout."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rope_table(
    positions: Int[Array, "*rows"], head_dim: int, theta: Any
) -> tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]:
    """Cosines and sines of `position / theta**(2j/h)`, one column per pair of channels.

    Frequencies and angles are float32 throughout, which is what the originals' checkpoints were
    trained with: rounding a float64 table differs by 1e-3 at position 30,000 (specs/vlm.md 6.1).
    """
    angles = positions.astype(jnp.float32)[..., None] * _frequencies(head_dim, theta)
    return jnp.cos(angles), jnp.sin(angles)


def mrope_table(
    positions: Int[Array, "3 *rows"], head_dim: int, theta: Any, axis_of: tuple[int, ...]
) -> tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]:
    """The same for positions on three axes (time, row, column): pair j turns by axis `axis_of[j]`.

    Where the three agree, as they do on text, this is `rope_table` of any one of them.
    """
    positions = positions.astype(jnp.float32)
    # A select per axis: a gather along the axes would write the positions once per channel first.
    axis = np.asarray(axis_of)
    own = jnp.where(
        axis == 0,
        positions[0][..., None],
        jnp.where(axis == 1, positions[1][..., None], positions[2][..., None]),
    )
    angles = own * _frequencies(head_dim, theta)
    return jnp.cos(angles), jnp.sin(angles)


def mrope_axes(sections: tuple[int, int, int], *, interleaved: bool) -> tuple[int, ...]:
    """Which axis turns each pair of channels; `sections` = pairs for time, row and column.

    Qwen2.5-VL gives each axis a run of its own. Qwen3-VL deals them out in turn, T H W T H W ...,
    until rows and columns have theirs, and what is left goes to time (specs/vlm.md 2.7).
    """
    if not interleaved:
        return tuple(axis for axis, count in enumerate(sections) for _ in range(count))
    return tuple(j % 3 if j % 3 and j < 3 * sections[j % 3] else 0 for j in range(sum(sections)))


def dynamic_theta(theta: float, head_dim: int, length: Any, trained: int, factor: float) -> Any:
    """The base for sequences of `length` positions under "dynamic NTK" scaling.

    Up to `trained` positions it is `theta`; beyond, it grows so that the slowest channel turns as
    far over the whole sequence as it did in training (specs/vlm.md 6.11).
    """
    ratio = jnp.maximum(length.astype(jnp.float32) / trained, 1.0)
    return theta * (factor * ratio - (factor - 1)) ** (head_dim / (head_dim - 2))


def rotate(
    x: Float[Array, "b n l h"], cos: Float[Array, "b #l half"], sin: Float[Array, "b #l half"]
) -> Float[Array, "b n l h"]:
    """Rotates channel j with channel j + h/2 (halves, never adjacent pairs), in float32.

    Rotations compose: rotating by the table of `a` and then of `b` is rotating by that of `a + b`,
    so a key is carried to another position by the table of the difference, negative ones too.
    """
    cos, sin = cos[:, None], sin[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _frequencies(head_dim: int, theta: Any) -> Float[Array, " half"]:
    pairs = jnp.arange(0, head_dim, 2, dtype=jnp.float32)
    return 1.0 / (jnp.asarray(theta, jnp.float32) ** (pairs / head_dim))
