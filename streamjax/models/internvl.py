"""InternVL3: InternViT tiles, four patches to a visual token, and a Qwen2 decoder.

A picture is one or more square tiles (448 pixels a side in the released models), each of which the
tower sees alone. specs/vlm.md sections 1.3 and 2.5.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    RMSNorm,
    parameter,
    run_layers,
    stack,
    unstack,
)
from streamjax.ops.attention import full_attention
from streamjax.ops.patches import interpolate_square_table
from streamjax.sharding import constrain

QK_NORM_EPS = 1e-6  # whatever layer_norm_eps says
PROJECTOR_EPS = 1e-5  # torch's default, which no config key carries


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternViTConfig:
    """The tower's sizes and options, under the names of Hugging Face's `vision_config`.

    Raises ValueError for an unknown norm or activation, and for sizes that do not divide.
    """

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    attention_bias: bool = True
    use_qk_norm: bool = False
    norm_type: str = "layer_norm"  # or rms_norm, in InternViT-6B
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    layer_scale_init_value: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self):
        for name, known in (("norm_type", ("layer_norm", "rms_norm")), ("hidden_act", ACTIVATIONS)):
            if (found := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {found!r}, wanted one of {', '.join(known)}")
        for name, part in (
            ("hidden_size", "num_attention_heads"), ("image_size", "patch_size")
        ):  # fmt: skip
            if getattr(self, name) % getattr(self, part):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, wanted a multiple of "
                    f"{part}={getattr(self, part)}"
                )

    @property
    def side(self) -> int:
        """Patches along one side of a tile of the native size."""
        return self.image_size // self.patch_size


class Block(nnx.Module):
    """One layer: `x += s1 * attention(norm(x)); x += s2 * mlp(norm(x))`, the scales learned.

    The scales are None in a stream, where the projections before them have taken them in.
    """

    def __init__(self, c: InternViTConfig, *, rngs: nnx.Rngs):
        e, f, init = c.hidden_size, c.intermediate_size, initializers.normal(c.initializer_range)
        norm = LayerNorm if c.norm_type == "layer_norm" else RMSNorm

        def make(i, o, names, bias=True):
            return Linear(i, o, names, bias=bias, init=init, rngs=rngs)

        def scale():
            return parameter(rngs, (e,), ("embed",), initializers.constant(c.layer_scale_init_value))

        self.config = c
        self.attn_norm = norm(e, eps=c.layer_norm_eps, rngs=rngs)
        self.q = make(e, e, ("embed", "heads"), c.attention_bias)
        self.k = make(e, e, ("embed", "heads"), c.attention_bias)
        self.v = make(e, e, ("embed", "heads"), c.attention_bias)
        # Over the whole width, not per head.
        self.q_norm = RMSNorm(e, eps=QK_NORM_EPS, rngs=rngs) if c.use_qk_norm else None
        self.k_norm = RMSNorm(e, eps=QK_NORM_EPS, rngs=rngs) if c.use_qk_norm else None
        self.out = make(e, e, ("heads", "embed"))
        self.attn_scale = scale()
        self.mlp_norm = norm(e, eps=c.layer_norm_eps, rngs=rngs)
        self.up = make(e, f, ("embed", "mlp"))
        self.down = make(f, e, ("mlp", "embed"))
        self.mlp_scale = scale()

    def __call__(self, x: Float[Array, "n l e"]) -> Float[Array, "n l e"]:
        y = self.attn_norm(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        y = full_attention(*(a.reshape(heads).swapaxes(1, 2) for a in (q, k, v)))
        x = x + _scaled(self.out(y.swapaxes(1, 2).reshape(x.shape)), self.attn_scale)
        y = self.down(ACTIVATIONS[self.config.hidden_act](self.up(self.mlp_norm(x))))
        return constrain(x + _scaled(y, self.mlp_scale), "batch", None, None)


def _scaled(x, scale):
    return x if scale is None else x * scale[...].astype(x.dtype)


class InternViT(nnx.Module):
    """The tower: tiles [n 3 h w] in; the class token and one token per patch out, unnormed.

    `position` [1 + p, e] is the class token's row and then the patches' by rows; a tile of another
    size than the native one gets them interpolated.
    """

    def __init__(
        self,
        config: InternViTConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: str | None = None,
    ):
        c, init = config, initializers.normal(config.initializer_range)
        e, values = c.hidden_size, c.num_channels * c.patch_size**2
        self.config, self.dtype, self.remat = c, jnp.dtype(dtype), remat
        self.patch = Linear(values, e, (None, "embed"), init=init, rngs=rngs)
        self.cls = parameter(rngs, (e,), ("embed",), initializers.zeros)
        self.position = parameter(rngs, (1 + c.side**2, e), (None, "embed"), init)
        self.layers = stack(lambda r: Block(c, rngs=r), c.num_hidden_layers, rngs)

    def __call__(self, pixels: Float[Array, "n c h w"]) -> Float[Array, "n l e"]:
        """l = 1 + patches. Raises ValueError for tiles that patches do not fill."""
        c, (n, channels, height, width) = self.config, pixels.shape
        p, rows, columns = c.patch_size, height // c.patch_size, width // c.patch_size
        if channels != c.num_channels or (rows * p, columns * p) != (height, width) or not rows:
            raise ValueError(
                f"tiles are {channels}x{height}x{width}, wanted {c.num_channels} channels and "
                f"sides that are multiples of {p} pixels: resize them"
            )
        # The strided convolution as one matrix product; a patch's values are (channel, row, column).
        x = pixels.astype(self.dtype).reshape(n, channels, rows, p, columns, p)
        x = self.patch(x.transpose(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1))
        cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (n, 1, x.shape[-1]))
        position = self.position[...]
        patches = interpolate_square_table(position[1:], rows, columns)
        x = jnp.concatenate([cls, x], axis=1)
        x = x + jnp.concatenate([position[:1], patches]).astype(x.dtype)
        x = constrain(x, "batch", None, None)
        x, _ = run_layers(lambda x, a: (a[0](x), None), x, self.layers, remat=self.remat)
        return x


def pixel_shuffle(
    x: Float[Array, "n p e"], rows: int, columns: int, side: int
) -> Float[Array, "n q f"]:
    """Gathers side x side neighbouring patches into one token, f = side * side * e.

    A token's values are ordered (row, column, channel) within its square: `ps_version` v2.
    """
    n, _, e = x.shape
    x = x.reshape(n, rows // side, side, columns // side, side, e)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * e)
