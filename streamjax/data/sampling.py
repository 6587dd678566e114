"""Which frames of a video make a clip, task by task (specs/streamformer.md 6.2).

Every function gives `count` frame numbers, rising, for a video of `total` frames. With a generator
they are drawn as in training; without one they are those of evaluation. A video that is too short
gives frames several times. Rounding is half to even, truncation is towards zero, as upstream's is.
"""

import numpy as np
from jaxtyping import Int64

Rng = np.random.Generator


def segment_indices(total: int, count: int, rng: Rng | None = None) -> Int64[np.ndarray, " t"]:
    """Kinetics, localization, grounding's "uniform": one frame from each of `count` segments.

    Segments share their borders, so that a frame may come twice. Evaluation: their middles.
    """
    segment = max(0.0, (total - 1) / count)
    borders = np.round(segment * np.arange(count + 1)).astype(np.int64)
    if rng is None:
        picked = borders[:-1] + int(segment / 2)
    else:
        picked = rng.integers(borders[:-1], borders[1:], endpoint=True)
    return np.minimum(picked, total - 1)


def view_indices(total: int, count: int, view: int, views: int) -> Int64[np.ndarray, " t"]:
    """Kinetics' test: clip `view` of `views`, each a little later within the same segments."""
    segment = max(0.0, (total - 1) / count)
    starts = np.round(segment * np.arange(count)).astype(np.int64)
    return np.minimum(starts + int(segment / (views + 1) * (view + 1)), total - 1)


def stretch_indices(total: int, count: int, rng: Rng | None = None) -> Int64[np.ndarray, " t"]:
    """SSv2: one frame from each of `count` stretches of total // count frames.

    Training on a video of fewer frames than that sees its first one throughout, as upstream (Q21).
    Evaluation: the middles of `count` equal parts of the whole.
    """
    if rng is None:
        return (total / count / 2 + total / count * np.arange(count)).astype(np.int64)
    if total < count:
        return np.zeros(count, np.int64)
    return _drawn_from_stretches(total, count, rng)


def stretch_view_indices(total: int, count: int, view: int) -> Int64[np.ndarray, " t"]:
    """SSv2's test: clip 0 or 1, every other one of the beginnings and middles of `count` parts."""
    part = total / count
    both = [part * np.arange(count), part / 2 + part * np.arange(count)]
    return np.sort(np.concatenate(both).astype(np.int64))[view::2]


def interval_indices(total: int, count: int, rng: Rng | None = None) -> Int64[np.ndarray, " t"]:
    """Retrieval: one frame from each of `count` intervals, whose last one is never drawn.

    Where intervals are too short for that, a random subset of all frames. A video of fewer frames
    than `count` gives all of them and its last one again. Evaluation: the intervals' middles.
    """
    some = min(count, total)
    edges = np.linspace(0, total, some + 1).astype(np.int64)
    first, last = edges[:-1], edges[1:] - 1
    if rng is None:
        picked = (first + last) // 2
    elif (first < last).all():
        picked = rng.integers(first, last)
    else:
        picked = np.sort(rng.permutation(total)[:some])
    return np.concatenate([picked, np.repeat(picked[-1:], count - some)])


def moment_indices(
    total: int,
    fps: float,
    count: int,
    start: float,
    end: float,
    rng: Rng,
) -> Int64[np.ndarray, " t"]:
    """Grounding's "fixfps", training only: about one frame per second around a moment.

    start, end: of the moment, in seconds. A moment longer than `count` seconds is sampled alone;
    around a shorter one lie `count` seconds, moved to lie in the video. In a video shorter than
    that the numbers may begin below 0 (upstream reads those from the end; clip them to 0).
    """
    if end - start <= count:
        middle = (start + end) / 2
        start, end = middle - count / 2, middle + count / 2
        duration = total / fps
        if start < 0:
            start, end = 0.0, float(count)
        elif end > duration:
            start, end = duration - count, duration
    first, stop = int(start * fps), int(end * fps)
    segment = max(stop - first, count) / count
    borders = np.trunc(first + segment * np.arange(count + 1)).astype(np.int64)
    return np.minimum(rng.integers(borders[:-1], borders[1:], endpoint=True), total - 1)


def even_indices(total: int, count: int) -> Int64[np.ndarray, " t"]:
    """Grounding's evaluation: evenly from the first frame to the last."""
    return np.linspace(0, total - 1, count).astype(np.int64)


def padded_indices(total: int, count: int, rng: Rng | None = None) -> Int64[np.ndarray, " t"]:
    """Segmentation: one frame from each of `count` stretches of total // count frames.

    A video of fewer frames than that gives its first one again and again, then all of them.
    Evaluation: the middles of the stretches.
    """
    if total < count:
        return np.concatenate([np.zeros(count - total, np.int64), np.arange(total)])
    if rng is None:
        return np.arange(count) * (total // count) + total // count // 2
    return _drawn_from_stretches(total, count, rng)


def _drawn_from_stretches(total: int, count: int, rng: Rng) -> Int64[np.ndarray, " t"]:
    length = total // count
    return np.arange(count) * length + rng.integers(0, length, size=count)
