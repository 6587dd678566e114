"""Rotary positions: the angle table, and the rotation in its two-halves layout."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope_table(
    positions: Int[Array, "*rows"], head_dim: int, theta: float
) -> tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]:
    """Cosines and sines of `position / theta**(2j/h)`, one column per pair of channels.

    Frequencies and angles are float32 throughout, which is what the originals' checkpoints were
    trained with: rounding a float64 table differs by 1e-3 at position 30,000 (specs/vlm.md 6.1).
    """
    pairs = jnp.arange(0, head_dim, 2, dtype=jnp.float32)
    frequencies = 1.0 / (jnp.float32(theta) ** (pairs / head_dim))
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


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
