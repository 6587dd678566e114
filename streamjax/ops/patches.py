"""Pictures into patches, and position tables onto other grids."""

import jax
import jax.numpy as jnp
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
