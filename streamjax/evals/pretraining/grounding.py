"""When a sentence is true: proposals from the probability of each frame, and how they overlap.

    proposal  = grown from the likeliest frame to both sides while p > factor * max p; its ends are
                the times of the first frames that fail, or of the video's first and last
    IoU(a, b) = common time / time of either
    R@1 IoU m = sentences whose proposal overlaps the truth by IoU >= m / sentences
    mIoU      = mean IoU over the sentences

Each of the factors 0.5, 0.6 and 0.7 gives scores of its own. A sentence that is true in several
windows is scored by the one that its proposal overlaps most. Source: the original's
tools/finetune_tools.py (specs/streamformer.md 5.4).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Span = Sequence[float | int]  # start, end
FACTORS = (0.5, 0.6, 0.7)
OVERLAPS = (0.3, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class Grounded:
    """Sums over sentences: per factor the IoUs, and how many reach 0.3, 0.5 and 0.7."""

    overlap: Float[np.ndarray, "3"] = dataclasses.field(default_factory=lambda: np.zeros(3))
    hits: Float[np.ndarray, "3 3"] = dataclasses.field(default_factory=lambda: np.zeros((3, 3)))
    count: int = 0

    def __add__(self, other: "Grounded") -> "Grounded":
        return Grounded(
            self.overlap + other.overlap, self.hits + other.hits, self.count + other.count
        )

    def row(self) -> dict[str, float]:
        """The scores by name, as tables and JSON show them."""
        n = max(self.count, 1)
        scores = {}
        for factor, overlap, hits in zip(FACTORS, self.overlap, self.hits, strict=True):
            scores[f"miou_f{factor:g}"] = float(overlap / n)
            for m, hit in zip(OVERLAPS, hits, strict=True):
                scores[f"r1@{m:g}_f{factor:g}"] = float(hit / n)
        return scores


def score(
    probability: Float[np.ndarray, " t"], times: Sequence[float | int], windows: Sequence[Span]
) -> Grounded:
    """The sums of one sentence. Raises ValueError without a window or with no frame."""
    if not windows:
        raise ValueError("a sentence without a window: wanted when it is true")
    best = []
    for factor in FACTORS:
        span = proposal(probability, times, factor)
        best.append(max(temporal_iou(span, window) for window in windows))
    overlap = np.array(best)
    return Grounded(overlap, (overlap[:, None] >= np.array(OVERLAPS)).astype(float), 1)


def proposal(
    probability: Float[np.ndarray, " t"], times: Sequence[float | int], factor: float
) -> tuple[float, float]:
    """The span that grows from the likeliest frame (the first of equals) while p > factor * max.

    Compared in the array's own number type. A probability that is no number fails. ValueError: no
    frame, or a number of times other than that of frames.
    """
    if not len(probability) or len(times) != len(probability):
        raise ValueError(f"{len(times)} times for {len(probability)} frames: wanted one each")
    p = np.where(np.isnan(probability), probability.dtype.type(-np.inf), probability)
    peak = int(p.argmax())
    below = ~(p > factor * p[peak])
    before, after = np.flatnonzero(below[:peak]), np.flatnonzero(below[peak + 1 :])
    start = int(before[-1]) if len(before) else 0
    end = peak + 1 + int(after[0]) if len(after) else len(p) - 1
    return float(times[start]), float(times[end])


def multi_proposals(
    probability: Float[np.ndarray, " t"],
    times: Sequence[float | int],
    threshold: float,
    *,
    at_least_one: bool = True,
    parity: Literal["fixed", "upstream"] = "fixed",
) -> list[tuple[float, float, float]]:
    """(start, end, score) of every run of frames whose probability is above `threshold`.

    Ends are the times of a run's own first and last frame, its score is 1. Without a run and with
    `at_least_one` there is one proposal, `proposal(..., factor=threshold)`, scored by the
    likeliest frame's probability; the original reports the *last* frame's there
    (parity="upstream").
    """
    found = [(float(times[i]), float(times[j - 1]), 1.0) for i, j in runs(probability > threshold)]
    if found or not at_least_one:
        return found
    peak = probability[-1] if parity == "upstream" else probability.max()
    return [(*proposal(probability, times, threshold), float(peak))]


def runs(true: Bool[np.ndarray, " t"]) -> list[tuple[int, int]]:
    """(first, stop) of every unbroken run of what is true."""
    steps = np.diff(np.concatenate([[0], true.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(steps > 0).tolist(), np.flatnonzero(steps < 0).tolist()
    return list(zip(starts, stops, strict=True))


def temporal_iou(a: Span, b: Span) -> float:
    """Common time over the time of either; 0 for spans that touch nowhere or last no time."""
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    either = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / either if either > 0 else 0.0
