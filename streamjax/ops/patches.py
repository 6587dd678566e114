"""Pictures into patches, and position tables onto other grids."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def patchify(frames: Float[Array, "b t h w c"], patch: int) -> Float[Array, "b t p e"]:
    """Cuts frames into non-overlapping patches, row by row; e = patch * patch * c.

    Rows and columns that do not fill a patch are dropped, as a strided convolution drops them.
    Within a patch the values are ordered (row, column, channel).
    """
    b, t, h, w, c = frames.shape
    rows, columns = h // patch, w // patch
    x = frames[:, :, : rows * patch, : columns * patch]
    x = x.reshape(b, t, rows, patch, columns, patch, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, rows * columns, patch * patch * c)


def resize_square_table(table: Float[Array, "n d"], rows: int, columns: int) -> Float[Array, "p d"]:
    """A learned table over a square grid, resampled to rows x columns and flattened by rows.

    Bicubic (Keys, a = -0.5) with antialias in float32, half-pixel centres: the convention of PIL
    and of torch's `interpolate(mode="bicubic", antialias=True)`.
    """
    side = round(table.shape[0] ** 0.5)
    square = table.astype(jnp.float32).reshape(side, side, -1)
    resized = jax.image.resize(square, (rows, columns, square.shape[-1]), "cubic", antialias=True)
    return resized.reshape(rows * columns, -1).astype(table.dtype)


def interpolate_square_table(
    table: Float[Array, "n d"], rows: int, columns: int
) -> Float[Array, "p d"]:
    """The same without antialias and with a = -0.75: torch's plain `interpolate(mode="bicubic")`.

    A table that keeps its size comes back as it was.
    """
    side = round(table.shape[0] ** 0.5)
    if (rows, columns) == (side, side):
        return table
    square = table.astype(jnp.float32).reshape(side, side, -1)
    down, across = _cubic_weights(side, rows), _cubic_weights(side, columns)
    resized = jnp.einsum("ri,cj,ijd->rcd", down, across, square)
    return resized.reshape(rows * columns, -1).astype(table.dtype)


def _cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each old cell gives to each new one: four taps, the edge standing in beyond it."""
    a = -0.75
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        cell = np.floor(at) + tap
        x = np.abs(at - cell)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        cell = np.clip(cell, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), cell), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
