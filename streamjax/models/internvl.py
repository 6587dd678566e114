"""InternVL3: InternViT tiles, four patches to a visual token, and a Qwen2 decoder.

A picture is one or more square tiles (448 pixels a side in the released models), each of which the
tower sees alone. specs/vlm.md sections 1.3 and 2.5.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    Remat,
    RMSNorm,
    for_stream,
    parameter,
    run_layers,
    stack,
)
from streamjax.models.vlm import Features, Grid, Tokens, VideoLM, host_grid, placed
from streamjax.ops.attention import full_attention
from streamjax.ops.patches import interpolate_square_table
from streamjax.sharding import constrain

QK_NORM_EPS = 1e-6  # whatever layer_norm_eps says
PROJECTOR_EPS = 1e-5  # torch's default, which no config key carries
_UNKNOWN = (
    "image_token_id is unknown, for the folder has no tokenizer with <IMG_CONTEXT>: put it there, "
    "or set model.config = dataclasses.replace(model.config, image_token_id=...)"
)


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
    attention_bias: bool = False  # true in InternViT-300M
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
            return parameter(
                rngs, (e,), ("embed",), initializers.constant(c.layer_scale_init_value)
            )

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
        remat: Remat | None = None,
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
        # The strided convolution as a matrix product; a patch's values are (channel, row, column).
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVLConfig:
    """The tower, the language model, and how patches become visual tokens.

    image_token_id: the placeholder, `<IMG_CONTEXT>`; None where a folder does not say (the original
    one leaves it to its tokenizer), and then the id is taken that occurs as often as there are
    visual tokens. Raises ValueError for sizes that do not divide and an unknown activation.
    """

    vision: InternViTConfig
    decoder: DecoderConfig
    image_token_id: int | None = 151667
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"

    def __post_init__(self):
        if self.projector_hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"projector_hidden_act is {self.projector_hidden_act!r}, wanted one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.downsample_ratio <= 0 or self.vision.side % self.merge:
            raise ValueError(
                f"downsample_ratio is {self.downsample_ratio}, wanted 1 / n with n dividing the "
                f"tile's {self.vision.side} patches a side"
            )

    @property
    def merge(self) -> int:
        """Patches along one side of the square that becomes a visual token."""
        return int(1 / self.downsample_ratio)


class Projector(nnx.Module):
    """A norm and two linear maps, from a square of patches to the decoder's width."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        e, d = config.vision.hidden_size * config.merge**2, config.decoder.hidden_size
        init = initializers.normal(config.vision.initializer_range)
        self.act = config.projector_hidden_act
        self.norm = LayerNorm(e, eps=PROJECTOR_EPS, rngs=rngs)
        self.up = Linear(e, d, (None, "embed"), init=init, rngs=rngs)
        self.down = Linear(d, d, (None, "embed"), init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows e"]) -> Float[Array, "*rows d"]:
        return self.down(ACTIVATIONS[self.act](self.up(self.norm(x))))


class InternVL(VideoLM):
    """`visual` -> `projector` -> `decoder`.

    pixels are [tiles 3 h w], normalised, of all pictures in reading order; or [b tiles 3 h w] when
    every row of the batch has as many. grid [images, 3] is host numpy, one row for a picture:
    (tiles, rows and columns of a tile's patches); None where it need not be known which tile is
    whose.
    """

    config: InternVLConfig
    pixel_dims = 4

    def __init__(
        self,
        config: InternVLConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        super().__init__(config, rngs=rngs, dtype=dtype, remat=remat)
        self.visual = InternViT(config.vision, rngs=rngs, dtype=dtype, remat=remat)
        self.projector = Projector(config, rngs=rngs)

    @property
    def placeholders(self) -> tuple[int, ...]:
        image = self.config.image_token_id
        return () if image is None else (image,)

    def encode_images(self, pixels: Any, grid: Grid = None) -> Float[Array, "n d"]:
        """All tiles' visual tokens in order, each tile's by rows (256 of a tile of 448 pixels).

        Raises ValueError when pixels and grid disagree, for no tiles, and for tiles that squares of
        patches do not fill.
        """
        pixels = jnp.asarray(pixels, self.dtype)
        if 0 in pixels.shape:
            raise ValueError(f"pixels have shape {list(pixels.shape)}, wanted [tiles 3 h w]")
        tiles = pixels.reshape(-1, *pixels.shape[-3:])
        p, m = self.config.vision.patch_size, self.config.merge
        side = (tiles.shape[2] // p, tiles.shape[3] // p)
        if tiles.shape[2] % (p * m) or tiles.shape[3] % (p * m):
            raise ValueError(
                f"tiles of {tiles.shape[2]}x{tiles.shape[3]} pixels, wanted sides that are "
                f"multiples of {p * m}: resize them"
            )
        if grid is not None:
            grid = host_grid(grid)
            if grid[:, 0].sum() != len(tiles) or (grid[:, 1:] != side).any():
                raise ValueError(
                    f"grid {grid.tolist()} does not describe {len(tiles)} tiles of "
                    f"{side[0]}x{side[1]} patches"
                )
        tokens = _see(self.visual, self.projector, tiles, m)
        return tokens.reshape(-1, tokens.shape[-1])

    def visual_tokens(self, grid: Grid) -> list[int]:
        cells = self.config.merge**2
        return [int(count) // cells for count in host_grid(grid).prod(axis=1)]

    def init_frames(self, batch: int, grid: Any, *, window: int | None = None) -> tuple[()]:
        """Nothing: a frame is seen alone, and window has no meaning here."""
        return ()

    def encode_frame(
        self, pixels: Float[Array, "b t c h w"], state: tuple[()]
    ) -> tuple[Float[Array, "b n d"], tuple[()]]:
        """The next frame of b streams, cut into t tiles (one, as streams have it)."""
        tokens = self.encode_images(pixels)
        return tokens.reshape(len(pixels), -1, tokens.shape[-1]), state

    def fold(self) -> "InternVL":
        folded = super().fold()
        layers = jax.tree.map(lambda a: a, self.visual.layers)
        for scale, into in (("attn_scale", "out"), ("mlp_scale", "down")):
            by, linear = getattr(layers, scale)[...].astype(jnp.float32), getattr(layers, into)
            for part, factor in ((linear.kernel, by[:, None]), (linear.bias, by)):
                part[...] = (part[...].astype(jnp.float32) * factor).astype(part[...].dtype)
            setattr(layers, scale, None)
        folded.visual.layers = for_stream(layers, self.config.vision.num_hidden_layers)
        return folded

    def expand(self, tokens: Any, grid: Grid, **options: Any) -> Int[np.ndarray, "*b l"]:
        if self.config.image_token_id is None:
            raise ValueError(_UNKNOWN)
        return super().expand(tokens, grid, **options)

    def embed(self, tokens: Tokens, features: Features = None) -> Float[Array, "b l d"]:
        if self.config.image_token_id is not None or features is None:
            return super().embed(tokens, features)
        tokens = jnp.asarray(tokens, jnp.int32)
        here = tokens == _as_often(tokens, int(np.prod(features.shape[:-1])))
        x = self.decoder.lookup(tokens)
        return jnp.where(here[..., None], placed(features, here, x.dtype), x)


def _as_often(tokens: Int[Array, "b l"], count: int) -> Int[Array, ""]:
    """The id that occurs `count` times; of several the highest, because a vocabulary has its
    special tokens at its end. Raises ValueError when none does, where the tokens are known.
    """
    flat = jnp.sort(tokens.reshape(-1))
    first, last = (jnp.searchsorted(flat, flat, side=side) for side in ("left", "right"))
    found = jnp.max(jnp.where(last - first == count, flat, -1))
    if not isinstance(found, jax.core.Tracer) and found < 0:
        raise ValueError(f"no token occurs {count} times, once for each visual token; {_UNKNOWN}")
    return found


# Jitted here, because a scan outside of jit is compiled anew at every call.
@functools.partial(jax.jit, static_argnames="merge")
def _see(
    visual: InternViT, projector: Projector, tiles: Float[Array, "n c h w"], merge: int
) -> Float[Array, "n q d"]:
    x = visual(tiles)[:, 1:]
    p = visual.config.patch_size
    return projector(pixel_shuffle(x, tiles.shape[2] // p, tiles.shape[3] // p, merge))


def _size(hidden: int, layers: int, heads: int, kv: int, mlp: int) -> InternVLConfig:
    return InternVLConfig(
        vision=InternViTConfig(attention_bias=True),
        decoder=DecoderConfig(
            vocab_size=151674, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, rms_norm_eps=1e-6, rope_theta=1e6,
            rope_dynamic_factor=2.0, max_position_embeddings=32768,
        ),
    )  # fmt: skip


# The released InternVL3.
SIZES: dict[str, InternVLConfig] = {
    "1B": _size(896, 24, 14, 2, 4864),
    "2B": _size(1536, 28, 12, 2, 8960),
    "8B": _size(3584, 28, 28, 4, 18944),
}
