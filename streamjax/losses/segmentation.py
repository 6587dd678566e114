"""Cross-entropy of pixels: which class, or which of the batch's captions, a pixel belongs to.

The dense tasks of StreamFormer: logits on the patch grid, brought to the size of the mask, softmax
over what competes, mean over the counted pixels of a row. specs/streamformer.md 5.5 and 5.6.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

_BAND = 16  # rows of pixels that are alive at a time


class PixelLosses(NamedTuple):
    """One entry a row of the batch: the mean over its counted pixels (0 where there are none), how
    many they are, and at how many of them the right one scores highest."""

    losses: Float[Array, " b"]
    pixels: Float[Array, " b"]
    right: Float[Array, " b"]


def segmentation(
    logits: Float[Array, "b t hp wp k"],
    choices: Integer[Array, "b k"],
    classes: Integer[Array, "b t h w"],
    *,
    count_zero: Bool[Array, " b"] | None = None,
) -> PixelLosses:
    """Cross-entropy of each pixel's class against those that compete in its row (5.5).

    logits: of the patches, one column per choice. choices: class ids, -1 for a column that is
    padding. classes: the map of class ids, of the size that logits are brought to; 0 is background
    and not counted, though class 0 may compete, and so is an id that is not among the choices.

    count_zero: rows whose background is class 0, a positive where it competes. Quirk Q4: the
    original does so by accident in rows whose choices are drawn and happen to hold 0.

    The published loss is the mean over rows, those without a counted pixel included.
    """
    counted = classes > 0
    if count_zero is not None:
        counted |= (classes == 0) & count_zero[:, None, None, None]
    return _cross_entropy(logits, choices, jnp.where(counted, classes, -1))


def referring(
    logits: Float[Array, "b t hp wp n"],
    own: Integer[Array, " b"],
    mask: Integer[Array, "b t h w"],
) -> PixelLosses:
    """Cross-entropy of a row's own caption against all captions, where its mask is 1 (5.6).

    logits: of the patches, one column per caption of the global batch. own: the row's own column.
    Pixels outside the mask do not count, so a single caption has no loss. The published loss is
    the mean over rows; a row without mask counts as 0 (the original breaks on it).
    """
    columns = jnp.arange(logits.shape[-1])[None]
    return _cross_entropy(logits, columns, jnp.where(mask == 1, own[:, None, None, None], -1))


def enlarging(size: int, grid: int) -> Float[np.ndarray, "size grid"]:
    """The matrix of bilinear interpolation from `grid` cells: half-pixel centres, no antialias."""
    at = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(grid)), 0).astype(np.float32)


def _cross_entropy(
    logits: Float[Array, "b t hp wp k"],
    ids: Integer[Array, "#b k"],
    labels: Integer[Array, "b t h w"],
) -> PixelLosses:
    """labels: the id of the column that is right; -1, and an id of no column, is not counted."""
    b, t, hp, wp, _ = logits.shape
    height, width = labels.shape[2:]
    # All of [b t h w k] at once would be 321 MB in float32 for every clip of 16 frames of 224x224
    # and 100 classes, several times over with its gradient. So a band of rows of one frame is made
    # at a time, and made anew in the backward pass. The rows of the batch stay side by side in a
    # band: they live on different devices, and a loop over them would bring each to all.
    band = next(n for n in range(min(_BAND, height), 0, -1) if height % n == 0)
    down = jnp.asarray(enlarging(height, hp).reshape(-1, band, hp))
    across = jnp.asarray(enlarging(width, wp))
    labels = labels.reshape(b, t, -1, band, width).transpose(1, 2, 0, 3, 4)
    columns = ids[:, None, None, :]

    @jax.checkpoint
    def pay(grid, down, labels):
        z = jnp.einsum("rg,bgxk->brxk", down, grid, precision="highest")
        z = jnp.einsum("wx,brxk->brwk", across, z, precision="highest")
        z = jnp.where(columns >= 0, z, jnp.finfo(jnp.float32).min)
        hit = (columns == labels[..., None]) & (columns >= 0)
        counted = hit.any(-1)
        # The maximum is taken off both sides: added back, it would round a small loss away.
        z = z - jax.lax.stop_gradient(z.max(-1, keepdims=True))
        own = jnp.where(hit, z, 0).sum(-1)
        losses = jnp.where(counted, jnp.log(jnp.exp(z).sum(-1)) - own, 0)
        sums = losses, counted, counted & (own == 0)
        return tuple(x.sum((1, 2), dtype=jnp.float32) for x in sums)

    def frame(total, xs):
        grid, labels = xs

        def row(total, xs):
            return tuple(map(jnp.add, total, pay(grid, *xs))), None

        return jax.lax.scan(row, total, (down, labels))[0], None

    nothing = (jnp.zeros(b, jnp.float32),) * 3
    frames = jnp.moveaxis(logits.astype(jnp.float32), 1, 0)
    (losses, pixels, right), _ = jax.lax.scan(frame, nothing, (frames, labels))
    return PixelLosses(losses / jnp.maximum(pixels, 1), pixels, right)
