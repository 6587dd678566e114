"""What every pixel shows: masks of classes, and of the one object that a sentence refers to.

Classes, on annotated pixels only (class above 0; pixels nobody annotated are not counted, because
nothing is known of them and no loss was paid for them):

    IoU of a class = pixels rightly given it / (pixels of it + pixels given it - the former)
    mask mIoU      = mean over the classes that some pixel truly is
    accuracy       = pixels given their class / pixels

One object, per frame, as DAVIS (Perazzi et al., CVPR 2016) defines it, mean over the frames of an
expression, then over the expressions:

    J   = IoU of the two masks; 1 where both are empty
    F   = 2PR / (P + R) of their boundaries: P is the share of the said boundary's pixels that lie
          within r of the true one's, R the other way round, r = ceil(0.008 * frame's diagonal)
    J&F = (J + F) / 2
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

TOLERANCE = 0.008  # of the diagonal


@dataclasses.dataclass(frozen=True)
class ClassMasks:
    """Annotated pixels by class: those of it, those given it, and those given it rightly."""

    true: Int[np.ndarray, " c"]
    said: Int[np.ndarray, " c"]
    right: Int[np.ndarray, " c"]

    def __add__(self, other: "ClassMasks") -> "ClassMasks":
        return ClassMasks(self.true + other.true, self.said + other.said, self.right + other.right)

    @property
    def pixels(self) -> int:
        return int(self.true.sum())

    @property
    def per_class(self) -> Float[np.ndarray, " c"]:
        """IoU; NaN for a class that no pixel is."""
        either = self.true + self.said - self.right
        return np.where(self.true > 0, self.right / np.maximum(either, 1), np.nan)

    def row(self) -> dict[str, float | int]:
        """The scores by name, as tables and JSON show them."""
        present = self.true > 0
        return {
            "mask_miou": float(self.per_class[present].mean()) if present.any() else 0.0,
            "pixel_accuracy": int(self.right.sum()) / max(self.pixels, 1),
            "classes": int(present.sum()),
        }


def score_classes(
    said: Int[np.ndarray, "*pixels"], true: Int[np.ndarray, "*pixels"], classes: int
) -> ClassMasks:
    """The sums of some pixels; `true` 0 is not annotated. ValueError: a class >= `classes`."""
    counted = true > 0
    said, true = said[counted], true[counted]
    for name, ids in (("true", true), ("given", said)):
        if len(ids) and not 0 <= ids.min() <= ids.max() < classes:
            raise ValueError(f"{name} classes reach {ids.min()} .. {ids.max()} of {classes}")
    counts = (np.bincount(ids, minlength=classes) for ids in (true, said, true[said == true]))
    return ClassMasks(*counts)


@dataclasses.dataclass(frozen=True)
class Referred:
    """Sums over expressions of their mean J and F over frames."""

    region: float = 0.0
    boundary: float = 0.0
    count: int = 0

    def __add__(self, other: "Referred") -> "Referred":
        return Referred(
            self.region + other.region, self.boundary + other.boundary, self.count + other.count
        )

    def row(self) -> dict[str, float | int]:
        """The scores by name, as tables and JSON show them."""
        n = max(self.count, 1)
        j, f = self.region / n, self.boundary / n
        return {"j": j, "f": f, "j&f": (j + f) / 2}


def score_object(said: Bool[np.ndarray, "t h w"], true: Bool[np.ndarray, "t h w"]) -> Referred:
    """The sums of one expression."""
    pairs = list(zip(said, true, strict=True))
    return Referred(
        float(np.mean([region(*pair) for pair in pairs])),
        float(np.mean([boundary(*pair) for pair in pairs])),
        1,
    )


def region(said: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """J of one frame: IoU of two masks, 1 where both are empty."""
    either = (said | true).sum()
    return float((said & true).sum() / either) if either else 1.0


def boundary(said: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """F of one frame. Both boundaries empty: 1; one of them: 0."""
    from scipy.ndimage import distance_transform_edt

    reach = int(np.ceil(TOLERANCE * np.hypot(*said.shape)))
    edges = outline(said), outline(true)
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    # Within a disc of radius `reach` around the other boundary: the nearest of it is that near.
    near = [np.asarray(distance_transform_edt(~edge)) <= reach for edge in edges]
    precision, recall = near[1][edges[0]].mean(), near[0][edges[1]].mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels that differ from the one to the right, below, or below to the right; the frame's own
    border is none.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    others = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.logical_or.reduce([mask != other for other in others])
