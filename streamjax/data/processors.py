"""From camera pixels to what an image tower was trained on, and back from a folder's config."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from streamjax.errors import InputError

CONFIG = "preprocessor_config.json"
# Pillow's numbers, which Hugging Face writes into the config.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HALF = (0.5, 0.5, 0.5)
# Every byte / 255, rounded once from float64 as Hugging Face does.
_UNIT = (np.arange(256) * (1 / 255)).astype(np.float32)


@dataclass(frozen=True)
class ImageProcessor:
    """Squashes frames to one size and normalises them: `(x / 255 - mean) / std`.

    size: (height, width) in pixels; the aspect ratio is not kept, as SigLIP and StreamFormer do.
    resample: Pillow's number of the filter (3 is bicubic, with antialias as Pillow has it).
    mean, std: per RGB channel, of values in 0..1.
    extras: other keys of the config it was read from, kept so that writing loses none.
    """

    size: tuple[int, int] = (224, 224)
    resample: int = 3
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF
    extras: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t H W 3"]:
        """uint8 RGB frames [t h w 3] -> float32 [t H W 3], (H, W) = `size`."""
        return self.normalise(self.resize(frames))

    def resize(self, frames: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t H W 3"]:
        """The frames at `size`, still uint8: a quarter of the bytes for a worker to send on."""
        height, width = self.size
        if frames.shape[1:3] == self.size:
            return frames
        resized = np.empty((len(frames), height, width, 3), np.uint8)
        for out, frame in zip(resized, frames, strict=True):
            image = Image.fromarray(np.ascontiguousarray(frame))
            out[:] = np.asarray(image.resize((width, height), Image.Resampling(self.resample)))
        return resized

    def normalise(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float32[np.ndarray, "t h w 3"]:
        """`(x / 255 - mean) / std`, without resizing."""
        scaled = np.take(_UNIT, frames)
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
        path = Path(folder) / CONFIG
        if not path.is_file():
            return None
        try:
            config = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); wanted an image processor") from error
        if not isinstance(config, dict):
            raise InputError(f"{path}: holds a {type(config).__name__}; wanted an object")
        known = ("size", "crop_size", "resample", "image_mean", "image_std")
        extras = tuple((k, json.dumps(v)) for k, v in config.items() if k not in known)
        scale = config.get("rescale_factor", 1 / 255)
        if config.get("do_rescale") is False or abs(scale - 1 / 255) > 1e-9:
            raise InputError(
                f"{path}: do_rescale {config.get('do_rescale')}, rescale_factor {scale}; "
                "wanted true and 1/255"
            )
        if config.get("do_normalize") is False:
            config |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
        mean = _channels(config.get("image_mean", _HALF), "image_mean", path)
        std = _channels(config.get("image_std", _HALF), "image_std", path)
        if 0.0 in std:
            raise InputError(f"{path}: image_std {list(std)}; wanted three positive numbers")
        resample = config.get("resample", 3)
        if resample not in _FILTERS:
            raise InputError(f"{path}: resample {resample!r}; wanted one of {_FILTERS}")
        return cls(_size(config, path), int(resample), mean, std, extras)

    def to_folder(self, folder: str | os.PathLike) -> None:
        """Writes preprocessor_config.json, whole or not at all, as Hugging Face's SigLIP has it."""
        config: dict[str, Any] = {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "SiglipImageProcessor",
            "rescale_factor": 1 / 255,
        }
        config |= {key: json.loads(value) for key, value in self.extras}
        config |= {
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": self.resample,
            "size": {"height": self.size[0], "width": self.size[1]},
        }
        path = Path(folder) / CONFIG
        partial = path.with_name(f".{CONFIG}.{os.getpid()}")
        partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        os.replace(partial, path)


@dataclass(frozen=True)
class Assets:
    """What travels beside a model's weights; static and hashable, so that jit may see it.

    tokenizer: folder that holds the tokenizer's files, or None.
    processor: how frames become the tower's input, or None.
    chat_template: the folder's Jinja template, or None.
    extras: whatever else the folder's loader keeps for saving it back; opaque here.
    """

    tokenizer: str | None = None
    processor: ImageProcessor | None = None
    chat_template: str | None = None
    extras: Any = None


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


def _channels(value: Any, key: str, path: Path) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == 3:
        with_numbers = [x for x in value if isinstance(x, int | float)]
        if len(with_numbers) == 3:
            return tuple(float(x) for x in with_numbers)
    raise InputError(f"{path}: {key} {value!r}; wanted three numbers (RGB)")
