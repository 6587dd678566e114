"""Where every token of a dialogue with pictures stands: M-RoPE's three positions (T, H, W).

Text counts on along all three axes at once. A picture is a block: its tokens share T and spread
over H and W by row and column of the grid, and the text after it goes on behind its longer side. So
a frame of 8 x 15 cells, 120 tokens, advances the position by 15. specs/vlm.md section 2.8.
"""

from typing import Any

import numpy as np
from jaxtyping import Int32

from streamjax.errors import InputError

RULES = ("max", "tf5_23")


def mrope_positions(
    tokens: Any,
    grid: Any = None,
    *,
    image_id: int,
    video_id: int | None = None,
    merge: int = 2,
    mask: Any = None,
    segments: Any = None,
    seconds_per_grid: Any = None,
    tokens_per_second: float | int | None = 1.0,
    rule: str = "max",
) -> tuple[Int32[np.ndarray, "3 b l"], Int32[np.ndarray, "b 1"]]:
    """Positions along (T, H, W) [3 b l] and per row [b 1] the next position minus l.

    tokens: int [b l], with one placeholder (`image_id`, `video_id`) per visual token. grid: int
    [images, 3], patches (t, rows, columns) of every picture and video in the order of their
    placeholders across the batch; `merge` x `merge` patches are one token. mask [b l]: false for
    padding, which gets 0. segments int [b l]: positions restart wherever the id changes.

    Temporal slice k of a video stands at floor(k * seconds_per_grid * tokens_per_second):
    seconds_per_grid is a number, or one per video (None: 1). tokens_per_second=None makes every
    slice a picture of its own, as Qwen3-VL has it, which writes a time stamp between them.

    rule: "max" puts the text after a video behind the largest of its positions, as the models were
    trained. "tf5_23" is transformers 5.23: behind the longer side of the picture whatever the
    length, and it subtracts a row's real tokens, not l.

    InputError: placeholders that do not fit the grid (found, wanted), a grid that `merge` does not
    divide, seconds for another number of videos.
    """
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}, wanted one of {', '.join(RULES)}")
    tokens = np.asarray(tokens)
    if tokens.ndim != 2:
        raise InputError(f"tokens have shape {list(tokens.shape)}, wanted [b l]")
    shape = tokens.shape
    real = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    pieces = np.zeros(shape, np.int64) if segments is None else np.asarray(segments)
    if real.shape != shape or pieces.shape != shape:
        raise InputError(f"mask and segments have another shape than tokens {list(shape)}")
    visual = tokens == image_id
    if video_id is not None:
        visual |= tokens == video_id
    at = np.flatnonzero(visual & real)
    ids, pieces_at = tokens.reshape(-1)[at], pieces.reshape(-1)[at]

    cells = _cells(grid, merge)
    counts = cells.prod(axis=1)
    if counts.sum() != len(at):
        raise InputError(
            f"{len(at)} placeholders for {counts.sum()} visual tokens of {len(cells)} grid rows: "
            "wanted one each"
        )
    owner = np.arange(len(cells))
    if tokens_per_second is None:  # every slice a block of its own
        owner = np.repeat(owner, cells[:, 0])
        cells = np.stack([np.ones_like(owner), *cells[owner, 1:].T], axis=1)
        counts = cells.prod(axis=1)
    first = np.cumsum(counts) - counts
    block = np.repeat(np.arange(len(cells)), counts)
    within = np.arange(len(at)) - first[block]

    # A block is one run of one kind of placeholder, in one dialogue.
    same = (at - within == at[first][block]) & (ids == ids[first][block])
    same &= (pieces_at == pieces_at[first][block]) & (
        at // shape[1] == (at // shape[1])[first][block]
    )
    if not same.all():
        wrong = block[np.argmin(same)]
        raise InputError(
            f"grid row {owner[wrong]} wants {counts[wrong]} placeholders in one run, found "
            f"{int(within[np.argmin(same)])}: pictures and grid are not in the same order"
        )

    _, rows, columns = cells[block].T
    slices = within // (rows * columns)
    offsets = np.stack([slices, within // columns % rows, within % columns])
    if tokens_per_second is not None and video_id is not None:
        is_video = ids[first] == video_id
        # In float32, as the original has it: 10 * 0.7 is 7 there, and a little less in float64.
        seconds = np.ones(len(cells), np.float32)
        seconds[is_video] = _seconds(seconds_per_grid, int(is_video.sum()))
        scaled = np.floor(
            slices.astype(np.float32) * seconds[block] * np.float32(tokens_per_second)
        )
        offsets[0] = np.where(is_video[block], scaled, slices)

    last = first + counts - 1
    advance = cells[:, 1:].max(axis=1)
    if rule == "max":
        advance = np.maximum(advance, offsets[0, last] + 1)
    steps = real.astype(np.int64)
    steps.reshape(-1)[at] = 0
    steps.reshape(-1)[at[last]] = advance  # so that a whole block counts from where it began
    base = np.cumsum(steps, axis=1) - steps
    if segments is not None:
        fresh = np.zeros(shape, bool)
        fresh[:, 1:] = pieces[:, 1:] != pieces[:, :-1]
        base -= np.maximum.accumulate(np.where(fresh, base, 0), axis=1)
    positions = np.where(real, base, 0)[None].repeat(3, axis=0)
    positions.reshape(3, -1)[:, at] += offsets
    ends = np.where(real, positions.max(axis=0) + 1, 0).max(axis=1, initial=0)
    lengths = real.sum(axis=1) if rule == "tf5_23" else shape[1]
    return positions.astype(np.int32), (ends - lengths)[:, None].astype(np.int32)


def _cells(grid: Any, merge: int) -> np.ndarray:
    """Merged cells (t, rows, columns) of every row of a grid."""
    grid = np.zeros((0, 3), np.int64) if grid is None else np.asarray(grid, np.int64)
    if grid.ndim != 2 or grid.shape[1] != 3:
        raise InputError(
            f"grid has shape {list(grid.shape)}, wanted [images, 3]: (t, rows, columns)"
        )
    bad = (grid < 1).any(axis=1) | (grid[:, 1:] % merge != 0).any(axis=1)
    if bad.any():
        raise InputError(
            f"grid row {bad.argmax()} is {grid[bad.argmax()].tolist()}, wanted patches "
            f"(t, rows, columns), rows and columns divisible by {merge}"
        )
    return grid // [1, merge, merge]


def _seconds(seconds: Any, videos: int) -> np.ndarray:
    seconds = np.asarray(1.0 if seconds is None else seconds, np.float32)
    if seconds.ndim and seconds.shape != (videos,):
        raise InputError(
            f"seconds_per_grid has {seconds.size} values, wanted one per video: {videos}"
        )
    return seconds
