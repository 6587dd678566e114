"""When a class is seen: average precision over frames, and over segments.

Frame level, of one class over the frames of all videos, ranked by score:

    AP  = sum over thresholds of (recall - recall before) * precision
    mAP = mean over the classes that some frame shows

Frames of one score pass their threshold together, so that no order of the frames decides; a score
that is no number is the lowest. Classes without a positive frame are left out and counted.

Segment level: a class's detections in a video are the runs of frames whose probability is above
half of the class's highest in that video, scored by their mean probability. Detections of a class,
best first, take the unmatched true window of their video that they overlap most, if by the tIoU
at least; mAP as above, interpolated (precision = the best at this recall or beyond), at tIoU 0.3,
0.4 ... 0.7 and averaged over these five.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from streamjax.evals.pretraining.grounding import Span, runs, temporal_iou

OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclasses.dataclass(frozen=True)
class FrameScores:
    """Scores and truth of frames; average precision needs all of them, so sums keep them."""

    scores: Float[np.ndarray, "n c"]
    positive: Bool[np.ndarray, "n c"]

    def __add__(self, other: "FrameScores") -> "FrameScores":
        return FrameScores.total([self, other])

    @staticmethod
    def total(parts: "Sequence[FrameScores]") -> "FrameScores":
        """All of them together, at once: their sum copies what it has at every step."""
        return FrameScores(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.positive for part in parts]),
        )

    @property
    def count(self) -> int:
        return len(self.scores)

    @property
    def per_class(self) -> Float[np.ndarray, " c"]:
        """Average precision; NaN for classes without a positive frame."""
        pairs = zip(self.scores.T, self.positive.T, strict=True)
        return np.array([average_precision(s, p) for s, p in pairs], np.float64)

    def row(self) -> dict[str, float | int]:
        """The scores by name, as tables and JSON show them."""
        found = self.per_class
        absent = np.isnan(found)
        return {
            "frame_map": 0.0 if absent.all() else float(found[~absent].mean()),
            "classes": int((~absent).sum()),
            "classes_without_positives": int(absent.sum()),
        }


def average_precision(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """The area under the steps of precision over recall; NaN without a positive."""
    if not positive.any():
        return float("nan")
    score = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-score, kind="stable")
    last = np.append(score[order][1:] != score[order][:-1], True)  # of its group of equal scores
    right = np.cumsum(positive[order])[last]
    said = np.arange(1, len(score) + 1)[last]
    return float(np.sum(np.diff(right, prepend=0) / right[-1] * right / said))


@dataclasses.dataclass(frozen=True)
class Segments:
    """Detections and true windows of videos.

    found: per class (video, start, end, score). true: per class (video, start, end). A video's
    number only tells videos apart; `a + b` renumbers b's.
    """

    found: tuple[tuple[tuple[int, float, float, float], ...], ...]
    true: tuple[tuple[tuple[int, float, float], ...], ...]
    count: int

    def __add__(self, other: "Segments") -> "Segments":
        return Segments.total([self, other])

    @staticmethod
    def total(parts: "Sequence[Segments]") -> "Segments":
        """All of them together, at once."""
        firsts = np.cumsum([0, *(part.count for part in parts)]).tolist()

        def merged(of_part):
            classes = zip(*(of_part(part) for part in parts), strict=True)
            return tuple(
                tuple((first + v, *rest) for first, rows in zip(firsts, each, strict=False)
                      for v, *rest in rows)
                for each in classes
            )  # fmt: skip

        return Segments(merged(lambda part: part.found), merged(lambda part: part.true), firsts[-1])

    def row(self) -> dict[str, float | int]:
        """The scores by name, as tables and JSON show them."""
        at = {overlap: self.mean_precision(overlap) for overlap in OVERLAPS}
        named = {f"segment_map@{overlap:g}": value for overlap, value in at.items()}
        return {"segment_map": float(np.mean(list(at.values()))), **named}

    def mean_precision(self, overlap: float) -> float:
        """mAP over the classes that have a true window, at one tIoU; 0 where there is none."""
        classes = [(f, t) for f, t in zip(self.found, self.true, strict=True) if t]
        if not classes:
            return 0.0
        return float(np.mean([_segment_precision(f, t, overlap) for f, t in classes]))


def segments(
    probability: Float[np.ndarray, "t c"],
    times: Sequence[float | int],
    windows: Sequence[Sequence[Span]],
    *,
    factor: float = 0.5,
) -> Segments:
    """The sums of one video.

    times [t]: of the frames in seconds; a frame stands for the time up to halfway to its
    neighbours. windows: the true spans of each class.
    """
    edges = frame_edges(times)
    found = []
    for p in probability.T:
        pieces = runs(p > factor * p.max())
        found.append(
            tuple((0, edges[i][0], edges[j - 1][1], float(p[i:j].mean())) for i, j in pieces)
        )
    true = tuple(tuple((0, float(a), float(b)) for a, b in spans) for spans in windows)
    return Segments(tuple(found), true, 1)


def frame_edges(times: Sequence[float | int]) -> list[tuple[float, float]]:
    """From when to when each frame stands for what is seen: half of the way to its neighbours."""
    t = np.asarray(times, np.float64)
    if len(t) < 2:
        return [(float(x), float(x)) for x in t]
    middle = (t[1:] + t[:-1]) / 2
    starts = np.concatenate([[t[0]], middle])
    ends = np.concatenate([middle, [t[-1]]])
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _segment_precision(found, true, overlap: float) -> float:
    left: dict[int, list[Span]] = {}
    for video, start, end in true:
        left.setdefault(video, []).append((start, end))
    hits = []
    for video, start, end, _ in sorted(found, key=lambda d: -d[3]):
        spans = left.get(video, [])
        overlaps = [temporal_iou((start, end), span) for span in spans]
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= overlap
        if hit:
            spans.pop(best)
        hits.append(hit)
    if not hits:
        return 0.0
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(precision[np.asarray(hits)].sum() / len(true))
