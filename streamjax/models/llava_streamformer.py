"""LLaVA-StreamFormer: a language model that watches through a StreamFormer tower.

Frames go through the tower, a two-layer projector and a 2x2 pool; the result stands in the token
sequence where the placeholder -200 was. specs/vlm.md section 2.9.

The tower runs under the streaming rule everywhere (the last time row is held, a frame sees the last
`num_frames` frames), so that training, offline evaluation and streaming are one function. Up to
`num_frames` frames that is what the original does; beyond, the original stretches its time table
over a clip and cannot stream at all.
"""

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from streamjax.data.processors import best_pinpoint
from streamjax.models import streamformer
from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import ACTIVATIONS, Linear, Remat, parameter
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig, TemporalCache
from streamjax.models.vlm import Grid, VideoLM, host_grid

PLACEHOLDER = -200  # in no vocabulary: one per picture before `expand`, one per visual token after
POOL = 2  # hard-wired in the original, whatever mm_spatial_pool_stride says

ImageSizes = Sequence[tuple[int, int] | None] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlavaStreamFormerConfig:
    """The tower, the language model, and how pictures become tokens.

    The `mm_` and `image_` fields are the original's. Raises ValueError for values it has but no
    released model uses.
    """

    tower: StreamFormerConfig
    decoder: DecoderConfig
    mm_spatial_pool_mode: str = "average"  # average | bilinear (the same for a factor of 2) | max
    mm_newline_position: str = "no_token"  # no_token | one_token | frame | grid
    mm_patch_merge_type: str = "spatial_unpad"
    image_grid_pinpoints: tuple[tuple[int, int], ...] = (
        (224, 448), (448, 224), (448, 448), (672, 224), (224, 672),
    )  # fmt: skip

    def __post_init__(self):
        for name, known in (
            ("mm_spatial_pool_mode", ("average", "bilinear", "max")),
            ("mm_newline_position", ("no_token", "one_token", "frame", "grid")),
            ("mm_patch_merge_type", ("spatial_unpad",)),
        ):
            if (found := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {found!r}, wanted one of {', '.join(known)}")


class Projector(nnx.Module):
    """Two linear maps with an exact GELU between them (`mlp2x_gelu`)."""

    def __init__(self, d: int, width: int, *, rngs: nnx.Rngs):
        self.up = Linear(d, width, (None, "embed"), rngs=rngs)
        self.down = Linear(width, width, (None, "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows e"]:
        return self.down(ACTIVATIONS["gelu"](self.up(x)))


class LlavaStreamFormer(VideoLM):
    """`tower` -> `projector` -> `decoder`, and the learned `image_newline` [d].

    tokens int [b l] hold PLACEHOLDER once per visual token. pixels are
    [frames, 3, h, w], normalised, of all clips in reading order; or [b, frames, 3, h, w] when every
    row of the batch has as many, which keeps each row's pictures on the row's device. grid [clips,
    3] is host numpy, (frames, rows, columns) in patches. A still picture is a row of its own whose
    first number counts tiles; `image_sizes` then has (width, height) for it and None for videos.
    """

    pixel_dims = 4

    def __init__(
        self,
        config: LlavaStreamFormerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        super().__init__(config, rngs=rngs, dtype=dtype, remat=remat)
        width = config.decoder.hidden_size
        self.tower = StreamFormer(config.tower, rngs=rngs, dtype=dtype, remat=remat)
        self.projector = Projector(config.tower.hidden_size, width, rngs=rngs)
        init = jax.nn.initializers.normal(width**-0.5)
        self.image_newline = parameter(rngs, (width,), ("embed",), init)

    @property
    def placeholders(self) -> tuple[int, ...]:
        return (PLACEHOLDER,)

    def encode_images(
        self, pixels: Any, grid: Grid, *, image_sizes: ImageSizes = None
    ) -> Float[Array, "n d"]:
        """All clips' and pictures' visual tokens, in reading order, newlines included.

        Clips are pooled 2x2 and end, or their frames or rows end, with the newline as
        mm_newline_position says. Pictures are not pooled: the whole picture's tile, then the other
        tiles as one map, without the rows or columns that were padding, each row with a newline.
        Raises ValueError when pixels and grid disagree, and for no frames.
        """
        grid = host_grid(grid)
        pixels = jnp.asarray(pixels, self.dtype)
        if 0 in pixels.shape:
            raise ValueError(f"pixels have shape {list(pixels.shape)}, wanted [frames 3 h w]")
        frames = jnp.moveaxis(pixels.reshape(-1, *pixels.shape[-3:]), 1, -1)
        side = (frames.shape[1] // self._patch, frames.shape[2] // self._patch)
        if grid[:, 0].sum() != len(frames) or (grid[:, 1:] != side).any():
            raise ValueError(
                f"grid {grid.tolist()} does not describe {len(frames)} frames of "
                f"{side[0]}x{side[1]} patches"
            )
        sizes = image_sizes or [None] * len(grid)
        if len(sizes) != len(grid):
            raise ValueError(f"{len(sizes)} image_sizes for {len(grid)} rows of grid")
        pieces, start = [], 0
        kinds = [(int(t), size is None, size) for t, size in zip(grid[:, 0], sizes, strict=True)]
        # Equal clips in a row are one batch of the tower.
        for (t, is_video, _), run in groupby(kinds, key=lambda k: (*k[:2], None if k[1] else k[2])):
            run = list(run)
            batch = frames[start : start + t * len(run)]
            start += t * len(run)
            if is_video:
                clips = self._project(self._watch(batch.reshape(len(run), t, *batch.shape[1:])))
                pieces.append(self._clip_tokens(clips, side).reshape(-1, clips.shape[-1]))
            else:
                tiles = self._project(self._watch(batch[:, None]))[:, 0]
                tiles = tiles.reshape(len(run), t, *tiles.shape[1:])
                for picture, (_, _, size) in zip(tiles, run, strict=True):
                    if size is not None:  # it is a picture, not a video
                        pieces.append(self._picture_tokens(picture, side, size))
        return jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def visual_tokens(self, grid: Grid, *, image_sizes: ImageSizes = None) -> list[int]:
        """How many visual tokens each clip or picture becomes, newlines included."""
        grid = host_grid(grid)
        sizes = image_sizes or [None] * len(grid)
        return [self._count(row, size) for row, size in zip(grid, sizes, strict=True)]

    def init_frames(self, batch: int, grid: Any, *, window: int | None = None) -> TemporalCache:
        """The tower's temporal cache, for `window` frames (None: num_frames).

        Raises ValueError for mm_newline_position="one_token", where only the end of a video has
        its newline.
        """
        if self.config.mm_newline_position == "one_token":
            raise ValueError(
                "mm_newline_position='one_token' marks the end of a video and cannot be streamed: "
                "set it to 'no_token' or 'frame' in config.json"
            )
        _, rows, columns = (int(n) for n in grid)
        return self.tower.init_cache(
            batch,
            height=rows * self._patch,
            width=columns * self._patch,
            capacity=window or self.config.tower.num_frames,
        )

    def encode_frame(
        self, pixels: Float[Array, "b h w 3"], state: TemporalCache
    ) -> tuple[Float[Array, "b n d"], TemporalCache]:
        """The next frame of b streams as visual tokens; pixels are the tower's, channels last."""
        out, state = self.tower.step(pixels[:, None].astype(self.dtype), state, time_rule="hold")
        side = (pixels.shape[1] // self._patch, pixels.shape[2] // self._patch)
        tokens = self._clip_tokens(self._project(out.tokens), side)
        return tokens.reshape(len(pixels), -1, tokens.shape[-1]), state

    def fold(self) -> Any:
        """The same function for a stream: the tower folded, layers as tuples. Not for training."""
        folded = super().fold()
        folded.tower = streamformer.fold(self.tower)
        return folded

    @property
    def _patch(self) -> int:
        return self.config.tower.patch_size

    def _watch(self, frames: Float[Array, "b t h w 3"]) -> Float[Array, "b t p e"]:
        window = self.config.tower.num_frames if self.config.tower.enable_causal_temporal else None
        return self.tower(frames, time_rule="hold", window=window).tokens

    def _project(self, tokens: Float[Array, "b t p e"]) -> Float[Array, "b t p d"]:
        return self.projector(tokens)

    def _clip_tokens(
        self, x: Float[Array, "b t p d"], side: tuple[int, int]
    ) -> Float[Array, "b n d"]:
        """Projected patches of clips, pooled, with newlines: the tokens of each clip."""
        x = pool(x, side, self.config.mm_spatial_pool_mode)
        b, t, rows, columns, d = x.shape
        newline = self.image_newline[...].astype(x.dtype)
        kind = self.config.mm_newline_position
        shapes = {
            "grid": (b, t * rows, columns, d),
            "frame": (b, t, rows * columns, d),
            "one_token": (b, 1, t * rows * columns, d),
        }
        if kind in shapes:
            x = _with_newline(x.reshape(shapes[kind]), newline)
        return x.reshape(b, -1, d)

    def _picture_tokens(
        self, tiles: Float[Array, "t p d"], side: tuple[int, int], size: tuple[int, int]
    ) -> Float[Array, "n d"]:
        """One picture: the first tile, then the map of the others with a newline per row."""
        newline = self.image_newline[...].astype(tiles.dtype)
        if len(tiles) == 1:
            return jnp.concatenate([tiles[0], newline[None]])
        columns, rows = self._tile_grid(len(tiles), side, size)
        whole = tiles[1:].reshape(rows, columns, *side, -1).swapaxes(1, 2)
        whole = whole.reshape(rows * side[0], columns * side[1], -1)
        top, left = padding_of((whole.shape[0], whole.shape[1]), size)
        whole = whole[top : whole.shape[0] - top, left : whole.shape[1] - left]
        lines = _with_newline(whole, newline)
        return jnp.concatenate([tiles[0], lines.reshape(-1, lines.shape[-1])])

    def _count(self, row: Any, size: tuple[int, int] | None) -> int:
        t, rows, columns = (int(n) for n in row)
        if size is None:
            rows, columns = rows // POOL, columns // POOL
            extra = {"no_token": 0, "one_token": 1, "frame": t, "grid": t * rows}
            return t * rows * columns + extra[self.config.mm_newline_position]
        if t == 1:
            return rows * columns + 1
        across, down = self._tile_grid(t, (rows, columns), size)
        height, width = down * rows, across * columns
        top, left = padding_of((height, width), size)
        return rows * columns + (height - 2 * top) * (width - 2 * left + 1)

    def _tile_grid(self, tiles: int, side: tuple[int, int], size: tuple[int, int]):
        """(across, down): how the tiles behind the first one are laid out."""
        width, height = best_pinpoint(size, self.config.image_grid_pinpoints)
        across, down = width // (side[1] * self._patch), height // (side[0] * self._patch)
        if across * down != tiles - 1:
            raise ValueError(
                f"a picture of {size[0]}x{size[1]} makes {across}x{down} tiles and a whole one, "
                f"found {tiles}: were its tiles cut with other image_grid_pinpoints?"
            )
        return across, down


def pool(
    x: Float[Array, "b t p d"], side: tuple[int, int], mode: str
) -> Float[Array, "b t rows columns d"]:
    """Halves both sides of each frame's map of patches; an odd last row or column is dropped.

    "bilinear" at exactly half size is the average of 2x2; of odd sides it is not, and raises
    ValueError.
    """
    if mode == "bilinear" and (side[0] % POOL or side[1] % POOL):
        raise ValueError(
            f"bilinear pooling of {side[0]}x{side[1]} patches: wanted even sides, or "
            "mm_spatial_pool_mode='average'"
        )
    rows, columns = side[0] // POOL, side[1] // POOL
    x = x.reshape(*x.shape[:2], *side, x.shape[-1])[:, :, : rows * POOL, : columns * POOL]
    x = x.reshape(*x.shape[:2], rows, POOL, columns, POOL, x.shape[-1])
    if mode == "max":
        return x.max(axis=(3, 5))
    return x.astype(jnp.float32).mean(axis=(3, 5)).astype(x.dtype)


def padding_of(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Rows at each of top and bottom, columns at each of left and right, that are only padding.

    shape: (rows, columns) of the map; size: (width, height) of the picture fitted into it.
    """
    (rows, columns), (width, height) = shape, size
    if width / height > columns / rows:
        return (rows - int(height * (columns / width))) // 2, 0
    return 0, (columns - int(width * (rows / height))) // 2


def _with_newline(x: Float[Array, "*rows n d"], newline: Float[Array, " d"]) -> Any:
    ends = jnp.broadcast_to(newline, (*x.shape[:-2], 1, x.shape[-1]))
    return jnp.concatenate([x, ends], axis=-2)
