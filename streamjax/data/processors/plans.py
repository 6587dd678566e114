"""Who sees whom among the patches of the Qwen towers: index arrays, made of the pictures' sizes.

The arrays follow from the grid alone; workers make them beside the pixels, and
`models.qwen_vision.VisionPlan` is what the towers take them as. specs/vlm.md sections 2.1 to 2.4.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class PlanShape:
    """What a plan is padded to: patches, slices (pictures, or steps of videos) and the patches of
    the largest one, and windows (0 where the tower has none).
    """

    patches: int
    slices: int
    slice_size: int
    windows: int = 0

    def __or__(self, other: "PlanShape") -> "PlanShape":
        """The smallest shape that holds either plan."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return PlanShape(*(max(pair) for pair in pairs))


def needed(
    grid: Any, *, merge: int, window: int | None = None, table: int | None = None
) -> PlanShape:
    """The smallest shape that holds the plan of these pictures; see `plan_arrays`."""
    return _need(_slices(grid, merge, window, table))


def plan_arrays(
    grid: Any,
    *,
    merge: int,
    window: int | None = None,
    table: int | None = None,
    shape: PlanShape | None = None,
) -> dict[str, np.ndarray]:
    """The plan of the pictures of grid [images, 3]: (steps of time, rows, columns) in patches.

    merge: patches on the side of a block. window: patches on the side of a window, None without
    windows. table: side of the learned table of positions, None without one. shape: what to pad to
    (None: nothing). Rows of zeros are padding.

    Gives coordinates int32 [p 2]; slices and windows int32 [g size], the patches of each group, p
    for none; slice_slots and window_slots int32 [p], where each patch stands in them; taps int32
    and weights float32 [p 4], the table's entries around each patch. Raises ValueError for rows or
    columns that blocks do not divide, and for pictures that do not fit the shape.
    """
    slices = _slices(grid, merge, window, table)
    need = _need(slices)
    shape = need if shape is None else shape
    if shape | need != shape:
        found = np.asarray(grid).reshape(-1, 3).tolist()
        raise ValueError(f"grid {found} needs {need}, larger than {shape}")
    starts = np.cumsum([0, *(len(s.coordinates) for s in slices)])
    whole = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    per_patch = functools.partial(_padded, rows=shape.patches)
    members, slots = _groups(whole, shape.slices, shape.slice_size, shape.patches)
    arrays = {
        "coordinates": per_patch([s.coordinates for s in slices], np.zeros((0, 2), np.int32)),
        "slices": members,
        "slice_slots": slots,
    }
    if window is not None:
        parts = [m + start for s, start in zip(slices, starts, strict=False) for m in s.windows]
        arrays["windows"], arrays["window_slots"] = _groups(
            parts, shape.windows, window**2, shape.patches
        )
    if table is not None:
        arrays["taps"] = per_patch([s.taps for s in slices], np.zeros((0, 4), np.int32))
        arrays["weights"] = per_patch([s.weights for s in slices], np.zeros((0, 4), np.float32))
    return arrays


@dataclasses.dataclass(frozen=True)
class _Slice:
    coordinates: np.ndarray
    windows: tuple[np.ndarray, ...]
    taps: np.ndarray
    weights: np.ndarray


def _slices(grid: Any, merge: int, window: int | None, table: int | None) -> list[_Slice]:
    slices = []
    for t, rows, columns in np.asarray(grid).reshape(-1, 3).tolist():
        if not (t or rows or columns):
            continue
        if min(t, rows, columns) < 1 or rows % merge or columns % merge:
            raise ValueError(
                f"grid row {(t, rows, columns)}: wanted (steps, rows, columns) in patches, at "
                f"least 1 and the last two multiples of {merge}"
            )
        slices += [_slice(rows, columns, merge, window, table)] * t
    return slices


def _need(slices: Sequence[_Slice]) -> PlanShape:
    sizes = [len(s.coordinates) for s in slices]
    windows = sum(len(s.windows) for s in slices)
    return PlanShape(sum(sizes), len(slices), max(sizes, default=0), windows)


@functools.lru_cache(maxsize=256)
def _slice(rows: int, columns: int, merge: int, window: int | None, table: int | None) -> _Slice:
    """One picture: its patches' coordinates in block order, and what follows from them."""
    patch = np.arange(rows * columns, dtype=np.int32)
    blocks = patch.reshape(rows // merge, columns // merge, merge, merge)
    row, column = np.indices((rows, columns), np.int32)
    order = (rows // merge, merge, columns // merge, merge)
    row, column = (a.reshape(order).swapaxes(1, 2).reshape(-1) for a in (row, column))
    windows = ()
    if window is not None:
        side = window // merge
        windows = tuple(
            blocks[i : i + side, j : j + side].reshape(-1)
            for i in range(0, rows // merge, side)
            for j in range(0, columns // merge, side)
        )
    taps, weights = np.zeros((0, 4), np.int32), np.zeros((0, 4), np.float32)
    if table is not None:
        taps, weights = _taps(row, rows, column, columns, table)
    return _Slice(np.stack([row, column], 1), windows, taps, weights)


def _taps(row, rows, column, columns, table) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear, corners on corners: the four entries of the table around each patch."""

    def between(place, size):
        at = np.linspace(0, table - 1, size, dtype=np.float32)[place]
        low = at.astype(np.int32)
        return low, np.minimum(low + 1, table - 1), at - low

    top, bottom, down = between(row, rows)
    left, right, across = between(column, columns)
    taps = [top * table + left, top * table + right, bottom * table + left, bottom * table + right]
    up, back = 1 - down, 1 - across
    weights = [up * back, up * across, down * back, down * across]
    return np.stack(taps, 1).astype(np.int32), np.stack(weights, 1).astype(np.float32)


def _groups(
    members: Sequence[np.ndarray], count: int, size: int, patches: int
) -> tuple[np.ndarray, np.ndarray]:
    table = np.full((count, size), patches, np.int32)
    for row, group in zip(table, members, strict=False):
        row[: len(group)] = group
    slots = np.zeros(patches, np.int32)
    place = np.flatnonzero(table < patches)
    slots[table.reshape(-1)[place]] = place
    return table, slots


def _padded(pieces: Sequence[np.ndarray], empty: np.ndarray, *, rows: int) -> np.ndarray:
    joined = np.concatenate([empty, *pieces])
    return np.pad(joined, ((0, rows - len(joined)), (0, 0)))
