"""Frames squashed to one size: SigLIP, StreamFormer, and LLaVA on top of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from streamjax.data.processors import common
from streamjax.errors import InputError


@dataclass(frozen=True)
class ImageProcessor:
    """Squashes frames to one size and normalises them: `(x / 255 - mean) / std`.

    size: (height, width) in pixels; the aspect ratio is not kept, as SigLIP and StreamFormer do.
    resample: Pillow's number of the filter (3 is bicubic, with antialias as Pillow has it).
    mean, std: per RGB channel, of values in 0..1.
    patch: side of the tower's patches in pixels, in which the grid of a frame is counted; not of
    preprocessor_config.json, but of the model.
    extras: other keys of the config it was read from, kept so that writing loses none.
    """

    size: tuple[int, int] = (224, 224)
    resample: int = 3
    mean: tuple[float, ...] = common.HALF
    std: tuple[float, ...] = common.HALF
    patch: int = 16
    extras: common.Extras = field(default=(), repr=False)

    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t H W 3"]:
        """uint8 RGB frames [t h w 3] -> float32 [t H W 3], (H, W) = `size`."""
        return self.normalise(self.resize(frames))

    def frame(self, frame: Any) -> tuple[Float32[np.ndarray, "H W 3"], tuple[int, int, int]]:
        """One frame of a stream: pixels [H W 3], and its grid (1, rows, columns) of patches.

        frame: uint8 [h w 3] or [h w 4] of any size, or float [h w 3] that is resized and
        normalised already. InputError: another shape or dtype, no pixels.
        """
        frame = np.asarray(frame)
        if frame.dtype.kind == "f" and frame.ndim == 3 and frame.shape[-1] == 3:
            pixels = frame.astype(np.float32)
        else:
            pixels = self(common.rgb(frame)[None])[0]
        rows, columns = (side // self.patch for side in pixels.shape[:2])
        return pixels, (1, rows, columns)

    def resize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t H W 3"]:
        """The frames at `size`, still uint8: a quarter of the bytes for a worker to send on."""
        if frames.shape[1:3] == self.size:
            return frames
        resized = np.empty((len(frames), *self.size, 3), np.uint8)
        for out, frame in zip(resized, frames, strict=True):
            out[:] = common.resize(frame, *self.size, self.resample)
        return resized

    def normalise(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w 3"]:
        """`(x / 255 - mean) / std`, without resizing."""
        scaled = np.take(common.UNIT, frames)
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.std, np.float32)
        return scaled

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "ImageProcessor | None":
        """Reads preprocessor_config.json of a Hugging Face folder; None where there is none.

        Understands the processors that resize to a fixed size (SigLIP, ViT, StreamFormer); CLIP's
        `shortest_edge` with an equal `crop_size` is read as that square.

        InputError: not JSON, a size that is not one, an unknown filter or scale, not 3 channels.
        """
        path = Path(folder) / common.CONFIG
        return cls.from_config(common.read_json(path), path) if path.is_file() else None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], path: Path, model: Mapping[str, Any] | None = None
    ) -> "ImageProcessor":
        """The same from the file's content; `path` is named in errors.

        model: the tower's config.json, which knows its patches.
        """
        known = ("size", "crop_size", "resample", "image_mean", "image_std")
        normal = common.read_normalisation(config, path, common.HALF, common.HALF)
        patch = common.read_patch(config, model or {}, 16)
        return cls(_size(config, path), patch=patch, extras=common.keep(config, known), **normal)

    def to_folder(self, folder: str | os.PathLike) -> None:
        """Writes preprocessor_config.json, whole or not at all, as Hugging Face's SigLIP has it."""
        config = common.written(
            "SiglipImageProcessor", self.extras, self.resample, self.mean, self.std
        )
        config["size"] = {"height": self.size[0], "width": self.size[1]}
        common.write_json(folder, config)


def _size(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    size = config.get("size", 224)
    if isinstance(size, Mapping) and "shortest_edge" in size:
        # Squashing equals resize-and-crop only where the crop is the whole picture's square.
        crop = config.get("crop_size", size["shortest_edge"])
        edge = crop.get("height") if isinstance(crop, Mapping) else crop
        size = edge if edge == size["shortest_edge"] else size
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if not (len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
        raise InputError(
            f"{path}: size {config.get('size')!r}; wanted {{'height': h, 'width': w}} in pixels"
        )
    return tuple(size)
