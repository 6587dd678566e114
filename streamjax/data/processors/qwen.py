"""Qwen2.5-VL's and Qwen3-VL's pictures: any size, cut into patches in the order of the merger.

Bit for bit what transformers' Pillow backend makes of pictures, and its video processor of videos
that need no resizing. specs/vlm.md sections 2.1 and 4.1.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from streamjax.data.processors import common
from streamjax.errors import InputError

MOST_ASPECT = 200


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int = 28,
    min_pixels: int = 3136,
    max_pixels: int = 12845056,
    clamp: bool = False,
) -> tuple[int, int]:
    """The size (height, width) that a picture is resized to: multiples of `factor`, in the budget.

    Close to the picture's own aspect ratio. clamp: sides count as one `factor` at least before the
    budget is looked at, as in qwen_vl_utils; it matters for sides below half a factor.

    InputError: no pixels, a side more than 200 times the other.
    """
    if min(height, width) < 1:
        raise InputError(f"a picture of {height} x {width} pixels has none")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise InputError(
            f"a picture of {height} x {width} pixels: one side is more than {MOST_ASPECT} times "
            "the other; crop or pad it"
        )
    # Python's round: a half goes to the even neighbour, as in the original.
    least = factor if clamp else 0
    high, wide = (max(least, round(side / factor) * factor) for side in (height, width))
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high, wide = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return high, wide


@dataclass(frozen=True)
class QwenImageProcessor:
    """Pictures of any size to flat patches and their grid.

    patch: side of a patch in pixels (14, Qwen3-VL: 16). merge: `merge` x `merge` patches become one
    visual token. temporal: frames per patch; a picture is repeated. min_pixels, max_pixels: what a
    picture is resized into. do_resize=False takes pictures as they are. clamp: see `smart_resize`.
    resample, mean, std, extras: as in `ImageProcessor`.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 3136
    max_pixels: int = 12845056
    do_resize: bool = True
    clamp: bool = False
    resample: int = 3
    mean: tuple[float, ...] = common.CLIP_MEAN
    std: tuple[float, ...] = common.CLIP_STD
    extras: common.Extras = field(default=(), repr=False)

    @property
    def factor(self) -> int:
        """Pixels along the side of one visual token."""
        return self.patch * self.merge

    def with_frame_budget(self, tokens: int = 128) -> "QwenImageProcessor":
        """The same processor for frames of a stream: 4 to `tokens` visual tokens each.

        128 is Streamo's (MIN_PIXELS 3136 and MAX_PIXELS 100352 at 28 pixels a token), with sides
        clamped as qwen_vl_utils does. At 32 pixels a token (Qwen3-VL) it is the same number of
        tokens, of larger frames.
        """
        area = self.factor**2
        return replace(self, min_pixels=4 * area, max_pixels=tokens * area, clamp=True)

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) that a picture of this size is resized to.

        InputError: no pixels, extreme aspect; without do_resize, sides that are not whole tokens.
        """
        if self.do_resize:
            return smart_resize(
                height, width, factor=self.factor, min_pixels=self.min_pixels,
                max_pixels=self.max_pixels, clamp=self.clamp,
            )  # fmt: skip
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise InputError(
                f"a picture of {height} x {width} pixels that is not to be resized: wanted "
                f"multiples of {self.factor}"
            )
        return height, width

    def __call__(
        self, images: Sequence[Any]
    ) -> tuple[Float32[np.ndarray, "n d"], Int64[np.ndarray, "images 3"]]:
        """Pictures -> pixel_values [n, 3 * temporal * patch * patch], grid [images, 3].

        images: uint8 [h w 3] or [h w 4] each. n patches, every picture's in turn; grid counts them:
        (1, rows, columns). InputError: none at all, another dtype or shape, extreme aspect.
        """
        if len(images) == 0:
            raise InputError("0 pictures, wanted at least one")
        done = [self.frame(common.rgb(image)) for image in images]
        return np.concatenate([pixels for pixels, _ in done]), np.array([row for _, row in done])

    def frame(self, frame: Any) -> tuple[Float32[np.ndarray, "n d"], tuple[int, int, int]]:
        """One picture or frame of a stream: its patches [n d] and its grid (1, rows, columns).

        frame: uint8 [h w 3] or [h w 4], or float [h w 3] that is normalised already and whose sides
        are multiples of `factor`. InputError: another shape or dtype, extreme aspect.
        """
        frame = np.asarray(frame)
        if frame.dtype.kind == "f" and frame.ndim == 3 and frame.shape[-1] == 3:
            height, width = replace(self, do_resize=False).fit(*frame.shape[:2])
            patches = self._patches(frame.astype(np.float32)[None])
        else:
            image = self._resized(frame)
            height, width = image.shape[:2]
            patches = self._normalise(self._patches(image[None]))
        # The picture is every frame of its patch.
        pixels = np.broadcast_to(patches, (*patches.shape[:2], self.temporal, patches.shape[3]))
        rows, columns = height // self.patch, width // self.patch
        return pixels.reshape(len(pixels), -1), (1, rows, columns)

    def frame_bytes(self, frame: Any) -> tuple[UInt8[np.ndarray, "n 3 d"], tuple[int, int, int]]:
        """`frame` before it is normalised, every pixel once: patches [n 3 d], and the grid.

        An eighth of the memory; the towers take [n, 3 * d] of them, normalised by mean and std.
        """
        image = self._resized(frame)
        patches = self._patches(image[None])[:, :, 0]
        return patches, (1, image.shape[0] // self.patch, image.shape[1] // self.patch)

    def video(
        self, frames: UInt8[np.ndarray, "t h w 3"]
    ) -> tuple[Float32[np.ndarray, "n d"], Int64[np.ndarray, "1 3"]]:
        """A video as the base models take one: `temporal` frames share a patch.

        frames: uint8 [t h w 3]; the last one is repeated to a multiple of `temporal`. grid [1, 3]:
        (ceil(t / temporal), rows, columns). Streamo does not use it: its frames are pictures.
        InputError: 0 frames, another dtype or shape, extreme aspect.
        """
        if len(frames) == 0:
            raise InputError("0 frames, wanted at least one")
        frames = np.stack([self._resized(frame) for frame in frames])
        height, width = frames.shape[1:3]
        short = -len(frames) % self.temporal
        frames = np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)])
        slices = frames.reshape(-1, self.temporal, *frames.shape[1:])
        patches = np.concatenate([self._patches(frames) for frames in slices])
        pixels = self._normalise(patches, fused=True)
        grid = [len(slices), height // self.patch, width // self.patch]
        return pixels.reshape(len(pixels), -1), np.array([grid])

    def _resized(self, frame: Any) -> np.ndarray:
        image = common.rgb(frame)
        return common.resize(image, *self.fit(*image.shape[:2]), self.resample)

    def _patches(self, frames: np.ndarray) -> np.ndarray:
        """[t h w 3] -> [patches, 3, t, pixels of a patch], merge block after merge block."""
        p, m = self.patch, self.merge
        t, height, width, _ = frames.shape
        cut = frames.reshape(t, height // p // m, m, p, width // p // m, m, p, 3)
        cut = cut.transpose(1, 4, 2, 5, 7, 0, 3, 6)
        return cut.reshape(height * width // p**2, 3, t, p * p)

    def _normalise(self, patches: np.ndarray, *, fused: bool = False) -> np.ndarray:
        values = np.empty(patches.shape, np.float32)
        for channel, table in enumerate(common.lookup(self.mean, self.std, fused=fused)):
            values[:, channel] = table[patches[:, channel]]
        return values

    @classmethod
    def from_config(cls, config: Mapping[str, Any], path: Path) -> "QwenImageProcessor":
        """From the content of a preprocessor_config.json; `path` is named in errors.

        The budget is `min_pixels` and `max_pixels`, or `shortest_edge` and `longest_edge` of
        `size`: areas both. InputError: a value that is none.
        """
        known = ("image_mean", "image_std", "resample", "patch_size", "merge_size",
                 "temporal_patch_size", "do_resize")  # fmt: skip
        size = config.get("size")
        budget = dict(size) if isinstance(size, Mapping) else {}
        for top, edge in _BUDGET:
            budget[top] = config.get(top) or budget.get(edge) or budget.get(top)
        budget = {key: value for key, value in budget.items() if value is not None}
        least = common.read_whole(budget, "min_pixels", cls.min_pixels, path)
        most = common.read_whole(budget, "max_pixels", cls.max_pixels, path)
        if least > most:
            raise InputError(f"{path}: min_pixels {least} above max_pixels {most}; swapped?")
        return cls(
            patch=common.read_whole(config, "patch_size", 14, path),
            merge=common.read_whole(config, "merge_size", 2, path),
            temporal=common.read_whole(config, "temporal_patch_size", 2, path),
            min_pixels=least,
            max_pixels=most,
            do_resize=config.get("do_resize", True) is not False,
            extras=common.keep(config, known),
            **common.read_normalisation(config, path, common.CLIP_MEAN, common.CLIP_STD),
        )

    def to_folder(self, folder: str | os.PathLike) -> None:
        """Writes preprocessor_config.json, whole or not at all, the budget under the keys it had.

        A new one has it under both, which every version of transformers reads.
        """
        config = common.written(
            "Qwen2VLImageProcessor", self.extras, self.resample, self.mean, self.std
        )
        config |= {
            "do_resize": self.do_resize,
            "patch_size": self.patch,
            "merge_size": self.merge,
            "temporal_patch_size": self.temporal,
        }
        values = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        had_size = isinstance(config.get("size"), dict)
        had_top = any(config.get(top) is not None for top, _ in _BUDGET)
        for top, edge in _BUDGET:
            if had_top or not had_size:
                config[top] = values[top]
            if had_size or not had_top:
                size = config.setdefault("size", {})
                size[edge] = values[top]
                size.pop(top, None)
        common.write_json(folder, config)


_BUDGET = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
