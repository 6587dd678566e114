"""Qwen2.5-VL: a vision tower with windows, a 2 x 2 merger, and a Qwen2 decoder with M-RoPE.

Pictures of any size are lists of patches; most layers of the tower attend within windows of 8 x 8
of them, a few within the whole picture. specs/vlm.md sections 1.1, 2.1 to 2.3, 2.6 to 2.8.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import ACTIVATIONS, Linear, Remat, RMSNorm, run_layers, stack
from streamjax.models.qwen_vision import (
    PatchEmbed,
    PlanShape,
    VisionAttention,
    VisionPlan,
    plan_of,
    rope_2d,
    within,
)
from streamjax.models.qwen_vl import QwenVL, QwenVLConfig, check_vision

EPS = 1e-6  # of the tower's norms; no config key carries it


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The tower's sizes, under the names of the original's `vision_config`.

    window_size is in pixels; fullatt_block_indexes are the layers that see whole pictures. Raises
    ValueError for sizes that do not divide and an unknown activation.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    temporal_patch_size: int
    spatial_merge_size: int
    tokens_per_second: int
    hidden_act: str
    in_channels: int = 3
    initializer_range: float = 0.02

    def __post_init__(self):
        check_vision(self, "fullatt_block_indexes")
        if self.window < self.spatial_merge_size:
            raise ValueError(
                f"window_size is {self.window_size}, wanted at least a block of "
                f"{self.patch_size * self.spatial_merge_size} pixels"
            )

    @property
    def window(self) -> int:
        """Patches on the side of a window: whole blocks."""
        m = self.spatial_merge_size
        return self.window_size // m // self.patch_size * m


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig(QwenVLConfig):
    vision: VisionConfig


def _size(hidden: int, layers: int, heads: int, kv: int, mlp: int, vocab: int, tied: bool):
    return Qwen2_5_VLConfig(
        vision=VisionConfig(
            depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14,
            out_hidden_size=hidden, window_size=112, fullatt_block_indexes=(7, 15, 23, 31),
            temporal_patch_size=2, spatial_merge_size=2, tokens_per_second=2, hidden_act="silu",
        ),
        decoder=DecoderConfig(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=tied,
            attention_bias=True, rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(16, 24, 24),
            max_position_embeddings=128000,
        ),
    )  # fmt: skip


SIZES: dict[str, Qwen2_5_VLConfig] = {
    "3B": _size(2048, 36, 16, 2, 11008, 151936, tied=True),
    "7B": _size(3584, 28, 28, 4, 18944, 152064, tied=False),
}


class VisionBlock(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        d, f = c.hidden_size, c.intermediate_size
        self.act = c.hidden_act
        self.attn_norm = RMSNorm(d, eps=EPS, rngs=rngs)
        self.attn = VisionAttention(d, c.num_heads, rngs=rngs)
        self.mlp_norm = RMSNorm(d, eps=EPS, rngs=rngs)
        self.gate = Linear(d, f, ("embed", "mlp"), rngs=rngs)
        self.up = Linear(d, f, ("embed", "mlp"), rngs=rngs)
        self.down = Linear(f, d, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "p d"], rope: Any, attend: Any) -> Float[Array, "p d"]:
        x = x + self.attn(self.attn_norm(x), rope, attend)
        y = self.mlp_norm(x)
        return x + self.down(ACTIVATIONS[self.act](self.gate(y)) * self.up(y))


class Merger(nnx.Module):
    """Four patches of a block into one visual token as wide as the language model."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.width = c.hidden_size * c.spatial_merge_size**2
        self.norm = RMSNorm(c.hidden_size, eps=EPS, rngs=rngs)
        self.up = Linear(self.width, self.width, ("embed", "mlp"), rngs=rngs)
        self.down = Linear(self.width, c.out_hidden_size, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "p d"]) -> Float[Array, "n e"]:
        x = self.norm(x).reshape(-1, self.width)
        return self.down(ACTIVATIONS["gelu"](self.up(x)))


class VisionTower(nnx.Module):
    """Patches [p e] and their plan -> visual tokens [p/4 d] in reading order."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs, remat: Remat | None = None):
        self.config, self.remat = c, remat
        self.patch = PatchEmbed(c, bias=False, rngs=rngs)
        self.layers = stack(lambda r: VisionBlock(c, rngs=r), c.depth, rngs)
        self.merger = Merger(c, rngs=rngs)

    def plan(self, grid: Any, *, shape: PlanShape | None = None) -> VisionPlan:
        """The index arrays of grid [images, 3], padded to `shape` (None: as small as they are)."""
        c = self.config
        return plan_of(grid, merge=c.spatial_merge_size, window=c.window, shape=shape)

    def __call__(self, pixels: Float[Array, "p e"], plan: VisionPlan) -> Float[Array, "n d"]:
        return self.merger(self.states(pixels, plan))

    def states(self, pixels: Float[Array, "p e"], plan: VisionPlan) -> Float[Array, "p d"]:
        """What the last layer makes of each patch, before they are merged; in reading order."""
        c = self.config
        rope = rope_2d(plan.coordinates, c.hidden_size // c.num_heads)
        whole = [i in c.fullatt_block_indexes for i in range(c.depth)]
        flags = tuple(whole) if isinstance(self.layers, tuple) else jnp.array(whole)

        def body(x, inputs):
            layer, flag = inputs

            def attend(q, k, v):
                everywhere, nearby = within(plan.slices), within(plan.windows)
                if isinstance(flag, bool):
                    return (everywhere if flag else nearby)(q, k, v)
                return jax.lax.cond(flag, everywhere, nearby, q, k, v)

            return layer(x, rope, attend), None

        x = self.patch(pixels)
        x, _ = run_layers(body, x, self.layers, flags, remat=self.remat)
        return x


class Qwen2_5_VL(QwenVL):
    """The windowed tower and the decoder; pixels are [patches, 1176] at the released sizes."""

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        super().__init__(config, rngs=rngs, dtype=dtype, remat=remat)
        self.visual = VisionTower(config.vision, rngs=rngs, remat=remat)

    @property
    def tokens_per_second(self) -> float:
        return float(self.config.vision.tokens_per_second)

    def encode_images(self, pixels: Any, grid: Any) -> Float[Array, "*b n d"]:
        """All pictures' visual tokens in reading order, [n d]; [b n d] for pixels [b p e].

        Raises ValueError when pixels and grid disagree.
        """
        return self._look(pixels, grid)

    def encode_frame(
        self, pixels: Float[Array, "b p e"], state: VisionPlan
    ) -> tuple[Float[Array, "b n d"], VisionPlan]:
        """The next frame of b streams, each a picture of its own.

        Of a still picture a patch may hold every pixel once: half of e, for the same result.
        """
        pixels = pixels.astype(self.dtype)
        return jax.vmap(lambda p: self.visual(p, state))(pixels), state
