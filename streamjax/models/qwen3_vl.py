"""Qwen3-VL (dense): a vision tower with learned positions and deepstack, and a Qwen3 decoder.

What some of the tower's layers make of a picture goes to the first layers of the decoder as well,
through mergers of their own. specs/vlm.md sections 1.2, 2.1, 2.2, 2.4, 2.6 to 2.8.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    Remat,
    parameter,
    run_layers,
    stack,
)
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
from streamjax.models.vlm import VisualFeatures
from streamjax.sharding import constrain

EPS = 1e-6  # of the tower's norms; no config key carries it


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The tower's sizes, under the names of the original's `vision_config`.

    num_position_embeddings is the square of the side of the table of positions;
    deepstack_visual_indexes are the layers whose output goes to the decoder's first layers. Raises
    ValueError for sizes that do not divide and an unknown activation.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    temporal_patch_size: int
    spatial_merge_size: int
    hidden_act: str
    in_channels: int = 3
    initializer_range: float = 0.02

    def __post_init__(self):
        check_vision(self, "deepstack_visual_indexes")
        if self.side**2 != self.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings is {self.num_position_embeddings}, wanted a square"
            )

    @property
    def side(self) -> int:
        return round(self.num_position_embeddings**0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3_VLConfig(QwenVLConfig):
    """Raises ValueError too when deepstack has more levels than the language model has layers."""

    vision: VisionConfig

    def __post_init__(self):
        super().__post_init__()
        levels = len(self.vision.deepstack_visual_indexes)
        if levels > self.decoder.num_hidden_layers:
            raise ValueError(
                f"{levels} deepstack_visual_indexes for {self.decoder.num_hidden_layers} layers of "
                "the language model"
            )


def _size(hidden: int, layers: int, heads: int, mlp: int, tied: bool, *, large: bool = False):
    depth, width, inner, deep = (27, 1152, 4304, (8, 16, 24)) if large else (
        24, 1024, 4096, (5, 11, 17),
    )  # fmt: skip
    return Qwen3_VLConfig(
        vision=VisionConfig(
            depth=depth, hidden_size=width, intermediate_size=inner, num_heads=16, patch_size=16,
            out_hidden_size=hidden, num_position_embeddings=2304, deepstack_visual_indexes=deep,
            temporal_patch_size=2, spatial_merge_size=2, hidden_act="gelu_pytorch_tanh",
        ),
        decoder=DecoderConfig(
            vocab_size=151936, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
            tie_word_embeddings=tied, attention_bias=False, qk_norm=True, rms_norm_eps=1e-6,
            rope_theta=5e6, mrope_section=(24, 20, 20), mrope_interleaved=True,
            max_position_embeddings=262144,
        ),
    )  # fmt: skip


SIZES: dict[str, Qwen3_VLConfig] = {
    "2B": _size(2048, 28, 16, 6144, tied=True),
    "4B": _size(2560, 36, 32, 9728, tied=True),
    "8B": _size(4096, 36, 32, 12288, tied=False, large=True),
}


class VisionBlock(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        d, f = c.hidden_size, c.intermediate_size
        self.act = c.hidden_act
        self.attn_norm = LayerNorm(d, eps=EPS, rngs=rngs)
        self.attn = VisionAttention(d, c.num_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(d, eps=EPS, rngs=rngs)
        self.up = Linear(d, f, ("embed", "mlp"), rngs=rngs)
        self.down = Linear(f, d, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "p d"], rope: Any, attend: Any) -> Float[Array, "p d"]:
        x = x + self.attn(self.attn_norm(x), rope, attend)
        return x + self.down(ACTIVATIONS[self.act](self.up(self.mlp_norm(x))))


class Merger(nnx.Module):
    """Four patches of a block into one visual token as wide as the language model.

    The norm is over each patch, or, with `joined`, over the four together.
    """

    def __init__(self, c: VisionConfig, *, joined: bool, rngs: nnx.Rngs):
        self.width = c.hidden_size * c.spatial_merge_size**2
        self.norm = LayerNorm(self.width if joined else c.hidden_size, eps=EPS, rngs=rngs)
        self.joined = joined
        self.up = Linear(self.width, self.width, ("embed", "mlp"), rngs=rngs)
        self.down = Linear(self.width, c.out_hidden_size, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "p d"]) -> Float[Array, "n e"]:
        if self.joined:
            x = self.norm(x.reshape(-1, self.width))
        else:
            x = self.norm(x).reshape(-1, self.width)
        return self.down(ACTIVATIONS["gelu"](self.up(x)))


class VisionTower(nnx.Module):
    """Patches [p e] and their plan -> visual tokens [p/4 d], and deepstack [k p/4 d], in reading
    order.
    """

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs, remat: Remat | None = None):
        levels = len(c.deepstack_visual_indexes)
        self.config, self.remat = c, remat
        self.patch = PatchEmbed(c, bias=True, rngs=rngs)
        table = (c.num_position_embeddings, c.hidden_size)
        init = initializers.normal(c.initializer_range)
        self.position = parameter(rngs, table, (None, "embed"), init)
        self.layers = stack(lambda r: VisionBlock(c, rngs=r), c.depth, rngs)
        self.merger = Merger(c, joined=False, rngs=rngs)
        self.deepstack = (
            stack(lambda r: Merger(c, joined=True, rngs=r), levels, rngs) if levels else None
        )

    def plan(self, grid: Any, *, shape: PlanShape | None = None) -> VisionPlan:
        """The index arrays of grid [images, 3], padded to `shape` (None: as small as they are)."""
        c = self.config
        return plan_of(grid, merge=c.spatial_merge_size, table=c.side, shape=shape)

    def __call__(
        self, pixels: Float[Array, "p e"], plan: VisionPlan
    ) -> tuple[Float[Array, "n d"], Float[Array, "k n d"]]:
        x, levels = self.states(pixels, plan)
        tokens = self.merger(x)
        if self.deepstack is None:
            return tokens, jnp.zeros((0, *tokens.shape), tokens.dtype)
        return tokens, jax.vmap(lambda merger, y: merger(y))(self.deepstack, jnp.stack(levels))

    def states(
        self, pixels: Float[Array, "p e"], plan: VisionPlan
    ) -> tuple[Float[Array, "p d"], list[Float[Array, "p d"]]]:
        """What the last layer makes of each patch, and what the deepstack layers do."""
        c = self.config
        rope = rope_2d(plan.coordinates, c.hidden_size // c.num_heads)
        # Whole rows are gathered, as in Decoder.lookup.
        table = constrain(self.position[...], None, None).astype(jnp.float32)
        place = jnp.einsum("pi,pid->pd", jnp.asarray(plan.weights), table[plan.taps])

        def body(x, inputs):
            (layer,) = inputs
            return layer(x, rope, within(plan.slices)), None

        x = self.patch(pixels)
        x = x + place.astype(x.dtype)
        # One scan up to each layer that is read, rather than one that keeps what all layers make.
        ends = [i + 1 for i in c.deepstack_visual_indexes]
        levels = []
        for start, stop in zip([0, *ends], [*ends, c.depth], strict=True):
            if isinstance(self.layers, tuple):
                some = self.layers[start:stop]
            else:
                some = jax.tree.map(lambda a, cut=slice(start, stop): a[cut], self.layers)
            if start < stop:
                x, _ = run_layers(body, x, some, remat=self.remat)
            levels.append(x)
        return x, levels[:-1]


class Qwen3_VL(QwenVL):
    """The tower and the decoder, whose first layers add deepstack; pixels are [patches, 1536]."""

    def __init__(
        self,
        config: Qwen3_VLConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        super().__init__(config, rngs=rngs, dtype=dtype, remat=remat)
        self.visual = VisionTower(config.vision, rngs=rngs, remat=remat)

    def encode_images(self, pixels: Any, grid: Any) -> VisualFeatures:
        """All pictures' visual tokens in reading order, [n d]; [b n d] for pixels [b p e].

        Raises ValueError when pixels and grid disagree.
        """
        tokens, deepstack = self._look(pixels, grid)
        return VisualFeatures(tokens, deepstack if tokens.ndim == 2 else deepstack.swapaxes(0, 1))

    def encode_frame(
        self, pixels: Float[Array, "b p e"], state: VisionPlan
    ) -> tuple[VisualFeatures, VisionPlan]:
        """The next frame of b streams, each a picture of its own.

        Of a still picture a patch may hold every pixel once: half of e, for the same result.
        """
        pixels = pixels.astype(self.dtype)
        one = jax.vmap(lambda p: self.visual(p, state), out_axes=(0, 1))
        return VisualFeatures(*one(pixels)), state
