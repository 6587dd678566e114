"""What Qwen2.5-VL and Qwen3-VL have in common around their towers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from streamjax.data.positions import mrope_positions
from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import ACTIVATIONS, for_stream
from streamjax.models.qwen_vision import PlanShape, VisionPlan, plan_rows
from streamjax.models.vlm import VideoLM, host_grid
from streamjax.sharding import mesh_axes, spec_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenVLConfig:
    """The tower, the language model, and the ids that stand for visual tokens.

    Raises ValueError when the tower's output is not as wide as the language model.
    """

    vision: Any
    decoder: DecoderConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653

    def __post_init__(self):
        if self.vision.out_hidden_size != self.decoder.hidden_size:
            raise ValueError(
                f"vision out_hidden_size is {self.vision.out_hidden_size}, wanted the language "
                f"model's hidden_size={self.decoder.hidden_size}"
            )


def check_vision(c: Any, indexes: str) -> None:
    """Raises ValueError for sizes of a tower that do not divide; `indexes` names a layer list."""
    for field in dataclasses.fields(c):
        size = getattr(c, field.name)
        if field.type is int and size < 1:
            raise ValueError(f"{field.name} is {size}, wanted a positive number")
    if c.hidden_size % (4 * c.num_heads):
        raise ValueError(
            f"hidden_size is {c.hidden_size}, wanted a multiple of 4 * num_heads={4 * c.num_heads}:"
            " a head's channels turn in pairs, by row and by column"
        )
    if c.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {c.hidden_act!r}, wanted one of {', '.join(ACTIVATIONS)}")
    layers = list(getattr(c, indexes))
    if layers != sorted(set(layers)) or not all(0 <= i < c.depth for i in layers):
        raise ValueError(f"{indexes} is {layers}, wanted rising numbers below depth={c.depth}")


class QwenVL(VideoLM):
    """`visual` -> `decoder`.

    pixels [patches e] and grid [images, 3] are Hugging Face's pixel_values and image_grid_thw (or
    those of videos). For a batch whose rows have pictures of their own: pixels [b patches_max e],
    padded behind, and as the grid [b images 3] with rows of zeros behind, or a `plan_rows` of it,
    which may come into jit as an argument (and then with positions).
    """

    config: QwenVLConfig
    visual: Any
    pixel_dims = 2

    @property
    def placeholders(self) -> tuple[int, ...]:
        return self.config.image_token_id, self.config.video_token_id

    @property
    def tokens_per_second(self) -> float | None:
        """Of a video's positions; None: every step is a picture of its own, behind a time stamp."""
        return None

    def plan(self, grid: Any, *, shape: PlanShape | None = None) -> VisionPlan:
        """The tower's index arrays for grid [images, 3], made on the host; or stacked, for the
        rows of a batch [b images 3].

        shape: what to pad to, so that other grids run in the same program (None: as small as can
        be). Raises ValueError for a grid that blocks do not divide, or that the shape cannot hold.
        """
        if np.ndim(grid) == 3:
            return plan_rows(grid, self.visual.plan, shape)
        return self.visual.plan(grid, shape=shape)

    def visual_tokens(self, grid: Any) -> list[int]:
        cells = self.config.vision.spatial_merge_size**2
        return [int(count) // cells for count in host_grid(grid).prod(axis=1)]

    def positions(
        self,
        tokens: Any,
        grid: Any = None,
        *,
        mask: Any = None,
        segments: Any = None,
        seconds_per_grid: Any = None,
        rule: str = "max",
    ) -> tuple[Int[np.ndarray | Array, "3 b l"], Int[np.ndarray | Array, "b 1"]]:
        """M-RoPE: where each token stands in time, row and column; data/positions.py.

        seconds_per_grid and rule are about videos, and change nothing for Qwen3-VL, which writes
        time stamps between a video's steps. On the host; inside jit only for text, without a grid.
        """
        if isinstance(grid, VisionPlan):
            raise ValueError("positions is None and the grid a plan: give positions of the grid")
        if any(isinstance(a, jax.core.Tracer) for a in (tokens, mask, segments)):
            if grid is not None:
                raise ValueError("positions is None inside jit: give positions of the grid")
            text, delta = super().positions(tokens, mask=mask, segments=segments)
            return jnp.broadcast_to(text, (3, *text.shape)), delta
        if grid is not None:
            grid = host_grid(grid)
            grid = grid[grid.any(axis=1)]
        c = self.config
        return mrope_positions(
            tokens, grid, image_id=c.image_token_id, video_id=c.video_token_id,
            merge=c.vision.spatial_merge_size, mask=mask, segments=segments, rule=rule,
            seconds_per_grid=seconds_per_grid, tokens_per_second=self.tokens_per_second,
        )  # fmt: skip

    def init_frames(self, batch: int, grid: Any, *, window: int | None = None) -> VisionPlan:
        """The plan of one frame of `grid` (1, rows, columns); window has no meaning here."""
        return jax.tree.map(jnp.asarray, self.plan(grid))

    def fold(self) -> Any:
        folded = super().fold()
        folded.visual.layers = for_stream(self.visual.layers, self.config.vision.depth)
        return folded

    def _look(self, pixels: Any, grid: Any) -> Any:
        """What the tower makes of pixels [p e], or [b p e] row by row."""
        pixels = jnp.asarray(pixels, self.dtype)
        if pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise ValueError(f"pixels have shape {list(pixels.shape)}, wanted [patches values]")
        by_rows = pixels.ndim == 3
        plan = grid
        if not isinstance(grid, VisionPlan):
            if by_rows:
                grid = host_grid(grid).reshape(len(pixels), -1, 3)
            plan = self.plan(grid)
            if by_rows and plan.shape.patches < pixels.shape[1]:
                room = dataclasses.replace(plan.shape, patches=pixels.shape[1])
                plan = self.plan(grid, shape=room)
        if plan.shape.patches != pixels.shape[-2]:
            raise ValueError(
                f"pixels has {pixels.shape[-2]} patches, wanted {plan.shape.patches} by its grid"
            )
        return (_see_rows if by_rows else _see)(self.visual, pixels, plan)


# Jitted here, because a scan outside of jit is compiled anew at every call.
@jax.jit
def _see(visual: Any, pixels: Float[Array, "p e"], plan: VisionPlan) -> Any:
    return visual(pixels, plan)


@jax.jit
def _see_rows(visual: Any, pixels: Float[Array, "b p e"], plan: VisionPlan) -> Any:
    # What the tower pins keeps its rows where they are.
    mesh = jax.sharding.get_abstract_mesh()
    rows = () if mesh.empty else mesh_axes(spec_of(pixels.shape[:1], ("batch",), mesh)[0])
    return jax.vmap(visual, spmd_axis_name=rows or None)(pixels, plan)
