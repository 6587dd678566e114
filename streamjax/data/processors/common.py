"""What every image processor does alike: check, resize and normalise a picture, keep its config."""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from streamjax.errors import InputError

CONFIG = "preprocessor_config.json"
# Pillow's numbers, which Hugging Face writes into the config.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Every byte / 255, rounded once from float64 as Hugging Face does.
UNIT = (np.arange(256) * (1 / 255)).astype(np.float32)

Extras = tuple[tuple[str, str], ...]
"""Keys of a config that are kept but not understood, with their values as JSON."""


@functools.lru_cache(maxsize=16)
def lookup(
    mean: tuple[float, ...], std: tuple[float, ...], *, fused: bool = False
) -> Float32[np.ndarray, "3 256"]:
    """The normalised value of every byte, per channel: `(x / 255 - mean) / std` in float32.

    fused: `(x - 255 mean) / (255 std)`, which differs in the last bit: transformers does it so for
    videos, and otherwise for pictures.
    """
    centre, scale = np.array([mean, std], np.float32)[:, :, None]
    if fused:
        table = (np.arange(256, dtype=np.float32) - centre * np.float32(255)) / (
            scale * np.float32(255)
        )
    else:
        table = (UNIT - centre) / scale
    table.flags.writeable = False
    return table


def rgb(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as uint8 RGB [h w 3]; one with an alpha channel is laid on white.

    InputError: another dtype or shape, no pixels.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or image.dtype != np.uint8:
        raise InputError(
            f"a picture of {image.dtype} {list(image.shape)}, wanted uint8 [h w 3], or [h w 4] "
            "with an alpha channel"
        )
    if 0 in image.shape:
        raise InputError(f"a picture of {image.shape[0]} x {image.shape[1]} pixels has none")
    if image.shape[-1] == 4:
        colour = Image.fromarray(np.ascontiguousarray(image))
        white = Image.new("RGB", colour.size, (255, 255, 255))
        white.paste(colour, mask=colour.getchannel(3))
        image = np.asarray(white)
    return image


def resize(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int, resample: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Pillow's resize (which smooths when it shrinks); the picture itself where the size fits."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((width, height), Image.Resampling(resample)))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError when it is none."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); wanted an image processor") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a {type(config).__name__}; wanted an object")
    return config


def read_normalisation(
    config: Mapping[str, Any], path: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """`resample`, `mean` and `std` of a config; mean and std are what it has without them.

    Keys that are null say nothing. InputError: an unknown filter or scale, not 3 channels, a std of
    0.
    """
    config = {key: value for key, value in config.items() if value is not None}
    scale = config.get("rescale_factor", 1 / 255)
    known = isinstance(scale, int | float) and abs(scale - 1 / 255) < 1e-9
    if config.get("do_rescale") is False or not known:
        raise InputError(
            f"{path}: do_rescale {config.get('do_rescale')}, rescale_factor {scale}; "
            "wanted true and 1/255"
        )
    if config.get("do_normalize") is False:
        config = {**config, "image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    found_mean = _channels(config.get("image_mean", mean), "image_mean", path)
    found_std = _channels(config.get("image_std", std), "image_std", path)
    if 0.0 in found_std:
        raise InputError(f"{path}: image_std {list(found_std)}; wanted three positive numbers")
    resample = config.get("resample", 3)
    if resample not in FILTERS:
        raise InputError(f"{path}: resample {resample!r}; wanted one of {FILTERS}")
    return {"resample": int(resample), "mean": found_mean, "std": found_std}


def read_whole(config: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    """A positive whole number of a config, which null leaves open; InputError when it is none."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: {key} {value!r}; wanted a positive whole number")
    return value


def read_patch(config: Mapping[str, Any], model: Mapping[str, Any], default: int) -> int:
    """The side of a tower's patches: of the processor's config, or of the model's."""
    for told in (config, model, model.get("vision_config") or {}):
        side = told.get("patch_size")
        side = side[0] if isinstance(side, list | tuple) and side else side
        if isinstance(side, int) and side > 0:
            return side
    return default


def keep(config: Mapping[str, Any], understood: tuple[str, ...]) -> Extras:
    """The keys that are not understood, hashable."""
    return tuple((k, json.dumps(v)) for k, v in config.items() if k not in understood)


def write_json(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes preprocessor_config.json, whole or not at all."""
    path = Path(folder) / CONFIG
    partial = path.with_name(f".{CONFIG}.{os.getpid()}")
    partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(partial, path)


def written(
    kind: str, extras: Extras, resample: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """What every config says, under what is kept of the one that was read."""
    config: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": kind,
        "rescale_factor": 1 / 255,
    }
    config |= {key: json.loads(value) for key, value in extras}
    return config | {"image_mean": list(mean), "image_std": list(std), "resample": resample}


def _channels(value: Any, key: str, path: Path) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == 3:
        with_numbers = [x for x in value if isinstance(x, int | float)]
        if len(with_numbers) == 3:
            return tuple(float(x) for x in with_numbers)
    raise InputError(f"{path}: {key} {value!r}; wanted three numbers (RGB)")
