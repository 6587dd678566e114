"""InternVL3's pictures: cut into tiles of 448 x 448, and the whole picture as one tile more.

Bit for bit what transformers' Pillow backend (GotOcr2ImageProcessor) makes of them. specs/vlm.md
section 4.2.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from streamjax.data.processors import common
from streamjax.data.processors.qwen import MOST_ASPECT
from streamjax.errors import InputError


def tile_layout(
    height: int, width: int, *, tile: tuple[int, int] = (448, 448), least: int = 1, most: int = 12
) -> tuple[int, int]:
    """How many tiles (columns, rows) a picture is cut into: the aspect ratio closest to its own.

    least, most: tiles in all. Of equal ratios the larger layout wins while it is smaller than twice
    the picture.
    """
    layouts = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    best, closest = (1, 1), float("inf")
    for columns, rows in sorted(layouts, key=lambda layout: layout[0] * layout[1]):
        apart = abs(width / height - columns / rows)
        large = width * height > 0.5 * tile[0] * tile[1] * columns * rows
        if apart < closest or (apart == closest and large):
            best, closest = (columns, rows), apart
    return best


@dataclass(frozen=True)
class InternVLImageProcessor:
    """Pictures to tiles of one size.

    size: of a tile, (height, width). min_tiles, max_tiles: of a picture, the thumbnail aside, which
    is added when there is more than one; max_tiles=1 squashes every picture into one tile, as
    videos are. patch: side of the tower's patches in pixels, in which the grid is counted.
    resample, mean, std, extras: as in `ImageProcessor`.
    """

    size: tuple[int, int] = (448, 448)
    min_tiles: int = 1
    max_tiles: int = 12
    patch: int = 14
    resample: int = 3
    mean: tuple[float, ...] = common.IMAGENET_MEAN
    std: tuple[float, ...] = common.IMAGENET_STD
    extras: common.Extras = field(default=(), repr=False)

    def __call__(
        self, images: Sequence[Any]
    ) -> tuple[Float32[np.ndarray, "tiles 3 H W"], Int64[np.ndarray, "images 3"]]:
        """Pictures -> pixel_values [tiles, 3, H, W], grid [images, 3].

        images: uint8 [h w 3] or [h w 4] each. A picture's tiles come row by row, the thumbnail
        last; grid says how many, and the patches of one: (tiles, rows, columns). InputError: none
        at all, another dtype or shape, extreme aspect.
        """
        if len(images) == 0:
            raise InputError("0 pictures, wanted at least one")
        tiles = [self._tiles(common.rgb(image)) for image in images]
        grid = np.array([[len(t), *self._patches()] for t in tiles])
        return self._normalise(np.concatenate(tiles)), grid

    def frame(self, frame: Any) -> tuple[Float32[np.ndarray, "1 3 H W"], tuple[int, int, int]]:
        """One frame of a stream, as one tile [1 3 H W], and its grid (1, rows, columns).

        frame: uint8 [h w 3] or [h w 4], or float [H W 3] that has the tile's size and is normalised
        already. InputError: another shape or dtype, extreme aspect.
        """
        frame = np.asarray(frame)
        if frame.dtype.kind == "f" and frame.shape == (*self.size, 3):
            return frame.astype(np.float32).transpose(2, 0, 1)[None], (1, *self._patches())
        pixels, _ = replace(self, min_tiles=1, max_tiles=1)([frame])
        return pixels, (1, *self._patches())

    def frame_bytes(self, frame: Any) -> tuple[UInt8[np.ndarray, "1 3 H W"], tuple[int, int, int]]:
        """`frame` before it is normalised: a quarter of the memory."""
        (tile,) = replace(self, min_tiles=1, max_tiles=1)._tiles(common.rgb(frame))
        return np.ascontiguousarray(tile.transpose(2, 0, 1))[None], (1, *self._patches())

    def video(
        self, frames: UInt8[np.ndarray, "t h w 3"]
    ) -> tuple[Float32[np.ndarray, "t 3 H W"], Int64[np.ndarray, "t 3"]]:
        """A video as the base models take one: every frame a picture of one tile.

        InputError: 0 frames, extreme aspect.
        """
        if len(frames) == 0:
            raise InputError("0 frames, wanted at least one")
        return replace(self, min_tiles=1, max_tiles=1)(list(frames))

    def _patches(self) -> tuple[int, int]:
        return self.size[0] // self.patch, self.size[1] // self.patch

    def _tiles(self, image: np.ndarray) -> UInt8[np.ndarray, "tiles H W 3"]:
        height, width = image.shape[:2]
        if max(height, width) > MOST_ASPECT * min(height, width):
            raise InputError(
                f"a picture of {height} x {width} pixels: one side is more than {MOST_ASPECT} "
                "times the other; crop or pad it"
            )
        high, wide = self.size
        columns, rows = (1, 1)
        if self.max_tiles > 1:
            columns, rows = tile_layout(
                height, width, tile=self.size, least=self.min_tiles, most=self.max_tiles
            )
        large = common.resize(image, high * rows, wide * columns, self.resample)
        tiles = (
            large.reshape(rows, high, columns, wide, 3).swapaxes(1, 2).reshape(-1, high, wide, 3)
        )
        if len(tiles) == 1:
            return tiles
        thumbnail = common.resize(image, high, wide, self.resample)
        return np.concatenate([tiles, thumbnail[None]])

    def _normalise(self, tiles: np.ndarray) -> np.ndarray:
        values = np.empty((len(tiles), 3, *self.size), np.float32)
        for channel, table in enumerate(common.lookup(self.mean, self.std)):
            values[:, channel] = table[tiles[..., channel]]
        return values

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], path: Path, model: Mapping[str, Any] | None = None
    ) -> "InternVLImageProcessor":
        """From the content of a preprocessor_config.json; `path` is named in errors.

        `crop_to_patches` is ignored as transformers' InternVLProcessor does, which always cuts.
        model: config.json, which knows the tower's patches; that of an original (OpenGVLab) folder
        also the number of tiles, its preprocessor_config.json being a CLIP's. InputError: a value
        that is none.
        """
        known = ("size", "image_mean", "image_std", "resample", "min_patches", "max_patches",
                 "crop_size", "do_center_crop", "feature_extractor_type")  # fmt: skip
        model = model or {}
        tiles = {
            "min_patches": config.get("min_patches", model.get("min_dynamic_patch")),
            "max_patches": config.get("max_patches", model.get("max_dynamic_patch")),
        }
        least = common.read_whole(tiles, "min_patches", 1, path)
        most = common.read_whole(tiles, "max_patches", 12, path)
        if least > most:
            raise InputError(f"{path}: min_patches {least} above max_patches {most}; swapped?")
        size = 448 if config.get("size") is None else config["size"]
        size = size if isinstance(size, Mapping) else {"height": size, "width": size}
        return cls(
            (
                common.read_whole(size, "height", 448, path),
                common.read_whole(size, "width", 448, path),
            ),
            least,
            most,
            common.read_patch(config, model, 14),
            extras=common.keep(config, known),
            **common.read_normalisation(config, path, common.IMAGENET_MEAN, common.IMAGENET_STD),
        )

    def to_folder(self, folder: str | os.PathLike) -> None:
        """Writes preprocessor_config.json, whole or not at all, as transformers has InternVL's."""
        config = common.written(
            "GotOcr2ImageProcessor", self.extras, self.resample, self.mean, self.std
        )
        config.setdefault("crop_to_patches", True)
        config |= {
            "size": {"height": self.size[0], "width": self.size[1]},
            "min_patches": self.min_tiles,
            "max_patches": self.max_tiles,
        }
        common.write_json(folder, config)
