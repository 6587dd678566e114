"""LLaVA's pictures ("anyres"): the whole one squashed to a tile, then tiles of it in its own shape.

Videos are not treated so; their frames are squashed. specs/vlm.md section 2.9.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from streamjax.data.processors import common
from streamjax.data.processors.square import ImageProcessor
from streamjax.errors import InputError


def anyres(
    images: Sequence[Any], processor: ImageProcessor, pinpoints: Sequence[tuple[int, int]]
) -> tuple[
    Float32[np.ndarray, "tiles 3 H W"], Int64[np.ndarray, "images 3"], list[tuple[int, int]]
]:
    """Pictures -> pixel_values [tiles, 3, H, W], grid [images, 3], sizes (width, height).

    images: uint8 [h w 3] or [h w 4] each. pinpoints: the canvases (width, height) to choose from,
    whole tiles of the processor's size: `image_grid_pinpoints` of config.json. grid: (tiles, rows
    and columns of patches in one). The three are what `encode_images` takes.

    InputError: no pictures, a canvas that tiles do not fill, another dtype or shape.
    """
    if len(images) == 0:
        raise InputError("0 pictures, wanted at least one")
    pictures = [common.rgb(image) for image in images]
    tiles = [_tiles(picture, processor, pinpoints) for picture in pictures]
    rows, columns = (side // processor.patch for side in processor.size)
    pixels = processor.normalise(np.concatenate(tiles)).transpose(0, 3, 1, 2)
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    return pixels, np.array([[len(t), rows, columns] for t in tiles]), sizes


def best_pinpoint(size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas (width, height) that keeps most of a picture's pixels, then wastes least."""

    def merit(canvas):
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        fitted = int(size[0] * scale) * int(size[1] * scale)
        kept = min(fitted, size[0] * size[1])
        return kept, kept - canvas[0] * canvas[1]

    return max(pinpoints, key=merit)


def _tiles(
    picture: np.ndarray, processor: ImageProcessor, pinpoints: Sequence[tuple[int, int]]
) -> UInt8[np.ndarray, "tiles H W 3"]:
    height, width = picture.shape[:2]
    high, wide = processor.size
    across, down = best_pinpoint((width, height), pinpoints)
    if across % wide or down % high:
        raise InputError(f"a canvas of {across} x {down}, wanted whole tiles of {wide} x {high}")
    # Rounded up on the side that does not fill the canvas, and black around it.
    scale = min(across / width, down / height)
    new_width = across if across / width <= down / height else math.ceil(width * scale)
    new_height = down if down / height <= across / width else math.ceil(height * scale)
    new_width, new_height = min(new_width, across), min(new_height, down)
    canvas = np.zeros((down, across, 3), np.uint8)
    top, left = (down - new_height) // 2, (across - new_width) // 2
    fitted = common.resize(picture, new_height, new_width, resample=3)
    canvas[top : top + new_height, left : left + new_width] = fitted
    cut = canvas.reshape(down // high, high, across // wide, wide, 3).swapaxes(1, 2)
    return np.concatenate([processor.resize(picture[None]), cut.reshape(-1, high, wide, 3)])
