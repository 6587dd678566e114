"""RandAugment "rand-m7-n4-mstd0.5-inc1" for clips (specs/streamformer.md appendix B).

Four operations, drawn with replacement from fifteen, each done with probability one half and a
magnitude m ~ N(7, 0.5) of 10. One draw holds for all frames of a clip. What comes into the picture
from outside is grey; pixels between pixels are bicubic.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

Rng = np.random.Generator
Change = Callable[[Image.Image], Image.Image]

_GREY = (128, 128, 128)
_BICUBIC = Image.Resampling.BICUBIC
_ROUNDS, _PROBABILITY, _MAGNITUDE, _SPREAD, _MOST = 4, 0.5, 7.0, 0.5, 10.0


def rand_augment(frames: UInt8[np.ndarray, "t h w 3"], rng: Rng) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip, changed by up to four operations, all frames alike."""
    names = list(OPERATIONS)
    drawn = [OPERATIONS[names[i]] for i in rng.integers(0, len(names), size=_ROUNDS)]
    changes = []
    for operation in drawn:
        if rng.random() <= _PROBABILITY:
            magnitude = float(np.clip(rng.normal(_MAGNITUDE, _SPREAD), 0, _MOST))
            changes.append(operation(magnitude, rng))
    if not changes:
        return frames
    out = np.empty_like(frames)
    for changed, frame in zip(out, frames, strict=True):
        changed[:] = functools.reduce(lambda p, do: do(p), changes, Image.fromarray(frame))
    return out


def _signed(value: float, rng: Rng) -> float:
    return -value if rng.random() > 0.5 else value


def _plain(function: Any) -> Callable[[float, Rng], Change]:
    """An operation without a magnitude."""
    return lambda m, rng: function


def _enhance(kind: Any) -> Callable[[float, Rng], Change]:
    def operation(m: float, rng: Rng) -> Change:
        factor = 1 + _signed(0.09 * m, rng)
        return lambda picture: kind(picture).enhance(factor)

    return operation


def _affine(mapping: Callable[[float, int, int], tuple], most: float) -> Callable:
    """mapping: (signed amount, width, height) -> Pillow's six numbers."""

    def operation(m: float, rng: Rng) -> Change:
        amount = _signed(most * m, rng)
        return lambda picture: picture.transform(
            picture.size, Image.Transform.AFFINE, mapping(amount, *picture.size), _BICUBIC,
            fillcolor=_GREY,
        )  # fmt: skip

    return operation


def _rotate(m: float, rng: Rng) -> Change:
    degrees = _signed(3 * m, rng)
    return lambda picture: picture.rotate(degrees, _BICUBIC, fillcolor=_GREY)


def _posterize(m: float, rng: Rng) -> Change:
    # Pillow wants one bit at least, where upstream's black picture (m = 10) would need none.
    bits = 4 - int(0.4 * m)
    return lambda picture: ImageOps.posterize(picture, bits) if bits else picture.point(lambda x: 0)


def _solarize(m: float, rng: Rng) -> Change:
    threshold = 256 - int(25.6 * m)
    return lambda picture: ImageOps.solarize(picture, threshold)


def _solarize_add(m: float, rng: Rng) -> Change:
    added = int(11 * m)
    table = [min(255, i + added) if i < 128 else i for i in range(256)] * 3
    return lambda picture: picture.point(table)


OPERATIONS: dict[str, Callable[[float, Rng], Change]] = {
    "AutoContrast": _plain(ImageOps.autocontrast),
    "Equalize": _plain(ImageOps.equalize),
    "Invert": _plain(ImageOps.invert),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _affine(lambda v, w, h: (1, v, 0, 0, 1, 0), 0.03),
    "ShearY": _affine(lambda v, w, h: (1, 0, 0, v, 1, 0), 0.03),
    "TranslateX": _affine(lambda v, w, h: (1, 0, v * w, 0, 1, 0), 0.045),
    "TranslateY": _affine(lambda v, w, h: (1, 0, 0, 0, 1, v * h), 0.045),
}
"""Name -> (magnitude 0..10, generator for the sign) -> what it does to a picture."""
