"""COCO's run-length masks: compressed, uncompressed and polygons, in numpy.

A mask is read column by column; `counts` are the lengths of its runs, zeros first. The compressed
form writes each count (from the fourth on: its difference to the one before the last) as a number
of 5-bit digits, least significant first, one printable character each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from streamjax.errors import InputError

_DIGIT, _MORE, _SIGN, _FIRST = 0x1F, 0x20, 0x10, 48
_FINE = 5  # polygons are traced on a grid this many times finer


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as `{"size": [h, w], "counts": "<compressed>"}`."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(edges, prepend=0, append=flat.size).tolist()
    return {"size": list(mask.shape), "counts": _compress(counts)}


def decode(annotation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """A mask [height width] from any of COCO's three forms.

    annotation: `{"size", "counts": str or bytes}` (compressed), `{"size", "counts": [int]}`
        (uncompressed), or a list of polygons `[x0, y0, x1, y1, ...]` in pixels, united.

    InputError: another form or size, broken counts, counts that do not fill the mask.
    """
    if isinstance(annotation, Mapping):
        counts = _counts(annotation, height, width)
        flat = np.repeat(np.arange(counts.size) % 2 == 1, counts)
        return flat.reshape(width, height).T
    if isinstance(annotation, list | tuple):
        mask = np.zeros((height, width), bool)
        for polygon in annotation:
            mask |= _from_polygon(polygon, height, width)
        return mask
    raise InputError(f"mask is a {type(annotation).__name__}; wanted run lengths or polygons")


def runs(annotation: Any, height: int, width: int) -> Int64[np.ndarray, "n 2"]:
    """Where a mask is true: first and stop of its n runs in the flat picture, column by column.

    What overlaps and areas need, without the pixels. annotation, InputError: as in `decode`.
    """
    if isinstance(annotation, Mapping):
        edges = np.cumsum(_counts(annotation, height, width))
        found = np.stack([edges[: edges.size // 2 * 2 : 2], edges[1::2]], 1)
        return found[found[:, 0] < found[:, 1]]
    flat = decode(annotation, height, width).ravel(order="F")
    return np.flatnonzero(np.diff(flat, prepend=False, append=False)).reshape(-1, 2)


def _counts(annotation: Mapping[str, Any], height: int, width: int) -> Int64[np.ndarray, " n"]:
    """The run lengths of either form."""
    size, counts = annotation.get("size"), annotation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise InputError(f"mask size {size}; wanted [{height}, {width}]")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        counts = _expand(counts)
    try:
        lengths = np.asarray(counts)
    except ValueError:
        lengths = np.zeros(())
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise InputError(f"mask counts {str(counts)[:40]}...; wanted a list of run lengths >= 0")
    if lengths.sum() != height * width:
        raise InputError(f"mask runs fill {lengths.sum()} pixels; wanted {height} x {width}")
    return lengths.astype(np.int64)


def _compress(counts: Sequence[int]) -> str:
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            digit, value = value & _DIGIT, value >> 5
            more = value != (-1 if digit & _SIGN else 0)
            text.append(chr((digit | (_MORE if more else 0)) + _FIRST))
            if not more:
                break
    return "".join(text)


def _expand(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - _FIRST
        if not 0 <= digit < 64:
            raise InputError(f"mask counts hold {character!r}; wanted characters '0' to 'o'")
        value |= (digit & _DIGIT) << shift
        shift += 5
        if not digit & _MORE:
            if digit & _SIGN:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise InputError("mask counts end in the middle of a number; the file is cut short")
    return counts


def _from_polygon(polygon: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """COCO's own fill rule: trace the outline on a 5x finer grid, toggle where columns cross it."""
    corners = np.trunc(_FINE * _corners(polygon) + 0.5).astype(np.int64)
    outline = np.concatenate(
        [_edge(a, b) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]
    )
    u, v = outline[:, 0], outline[:, 1]
    step = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = (np.where(u[step] < u[step - 1], u[step], u[step] - 1) + 0.5) / _FINE - 0.5
    y = (np.minimum(v[step], v[step - 1]) + 0.5) / _FINE - 0.5
    on_column = (x == np.floor(x)) & (x >= 0) & (x <= width - 1)
    x = x[on_column].astype(np.int64)
    y = np.ceil(np.clip(y[on_column], 0, height)).astype(np.int64)
    toggles = np.bincount(x * height + y, minlength=height * width + 1)
    flat = np.cumsum(toggles)[: height * width] % 2 == 1
    return flat.reshape(width, height).T


def _corners(polygon: Any) -> Float64[np.ndarray, "n 2"]:
    try:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        corners = np.empty((0, 2))
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise InputError(f"mask polygon {str(polygon)[:40]}...; wanted x, y of 3 corners or more")
    return corners


def _edge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The grid points from corner a to corner b, both included, in that order."""
    dx, dy = np.abs(b - a)
    along = 0 if dx >= dy else 1  # the axis that moves by one per point
    back = a[along] > b[along]
    first, last = (b, a) if back else (a, b)
    steps = np.arange(max(dx, dy) + 1)
    slope = (last[1 - along] - first[1 - along]) / max(dx, dy, 1)
    points = np.empty((len(steps), 2), np.int64)
    points[:, along] = first[along] + steps
    points[:, 1 - along] = np.trunc(first[1 - along] + slope * steps + 0.5)
    return points[::-1] if back else points


def filled(polygons: Sequence[Any], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Polygons as OpenCV's `fillPoly` paints them, corners cut to whole pixels, united.

    What upstream makes pseudo videos of COCO with: outlines belong to a mask, which so is about a
    pixel wider than by COCO's own rule. InputError: as in `decode`.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        corners = _corners(polygon).astype(np.int64)
        edges = list(zip(corners, np.roll(corners, -1, 0), strict=True))
        inner = [_clipped(a, b, height, width) for a, b in edges]
        for ends in inner:
            if ends is not None:
                x, y = _line(*ends).T
                mask[y, x] = True
        mask |= _between(edges, inner, height, width)
    return mask


def _between(
    edges: Sequence[Any], inner: Sequence[Any], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """The pixels of each row from every odd crossing with an edge to the next, both included.

    inner: the edges' parts within the picture, from which OpenCV reckons where they cross a row.
    """
    one = 1 << 16  # crossings are kept in 65536ths of a pixel
    rows, crossings = [], []
    for (a, b), ends in zip(edges, inner, strict=True):
        if a[1] == b[1]:
            continue
        start, stop = (a, b) if ends is None or ends[0][1] == ends[1][1] else ends
        dx, dy = (int(d) for d in stop - start)
        rise = abs(dx) * one // abs(dy) * (1 if (dx < 0) == (dy < 0) else -1)
        row = np.arange(min(a[1], b[1]), max(a[1], b[1]))
        rows.append(row)
        near = start if start[1] < stop[1] else stop
        crossings.append(near[0] * one + (row - near[1]) * rise)
    if not rows:
        return np.zeros((height, width), bool)
    row, at = np.concatenate(rows), np.concatenate(crossings)
    order = np.lexsort((at, row))
    row, at = row[order][::2], at[order]
    left, right = np.clip(-(-at[::2] // one), 0, width), np.clip(at[1::2] // one + 1, 0, width)
    shown = (left < right) & (row >= 0) & (row < height)
    steps = np.zeros((height, width + 1), np.int64)
    np.add.at(steps, (row[shown], left[shown]), 1)
    np.add.at(steps, (row[shown], right[shown]), -1)
    return np.cumsum(steps, 1)[:, :width] > 0


def _clipped(a: np.ndarray, b: np.ndarray, height: int, width: int) -> Any:
    """The ends of the part of an edge that lies in the picture; None where none does."""
    last = np.array([width - 1, height - 1])
    ends = [a.copy(), b.copy()]
    for axis in (1, 0):  # rows first
        for end, other in (ends, ends[::-1]):
            limit = np.clip(end[axis], 0, last[axis])
            if (other[axis] < 0 and end[axis] < 0) or min(end[axis], other[axis]) > last[axis]:
                return None
            if limit != end[axis]:
                run = (ends[1] - ends[0]).astype(float)
                end[1 - axis] += int((limit - end[axis]) * run[1 - axis] / run[axis])
                end[axis] = limit
    return ends


def _line(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The pixels (x, y) of Bresenham's line from the left end to the right one."""
    if b[0] < a[0]:
        a, b = b, a
    delta = b - a
    along = 0 if delta[0] >= abs(delta[1]) else 1
    steps, rise = abs(delta[along]), abs(delta[1 - along])
    k = np.arange(steps + 1)
    points = np.empty((steps + 1, 2), np.int64)
    points[:, along] = a[along] + k * np.sign(delta[along])
    across = (2 * rise * k + steps - 1) // max(2 * steps, 1)
    points[:, 1 - along] = a[1 - along] + across * np.sign(delta[1 - along])
    return points
