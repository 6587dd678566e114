"""StreamFormer (ICCV 2025): SigLIP lifted to video by divided space-time attention.

Every layer attends over time (each patch to itself in earlier frames, behind a learned gate), then
over space (all patches of one frame, with LoRA), then applies an MLP. Causal in time, so that a
stream that keeps the temporal keys and values computes what the whole clip would have.
specs/streamformer.md sections 1 to 3.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from streamjax.data.processors import Assets
from streamjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    Remat,
    for_stream,
    parameter,
    run_layers,
    stack,
)
from streamjax.ops.linear import linear
from streamjax.ops.patches import patchify, resize_square_table
from streamjax.sharding import constrain

LORA_RANK = 32  # fixed by the architecture: no config key carries it
TimeRule = Literal["stretch", "hold"]
# Queries, keys and values of frames.
Heads = tuple[Float[Array, "b t p n h"], Float[Array, "b t p n h"], Float[Array, "b t p n h"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamFormerConfig:
    """The fields of the original's config.json, under their own names.

    Dropout and drop-path rates are kept for saving; the pre-training uses 0 and no forward here
    applies them. Raises ValueError for an attention type other than divided space-time, an unknown
    activation, and sizes that do not divide.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_type: str = "divided_space_time"
    drop_path_rate: float = 0.0
    enable_causal_temporal: bool = False
    add_lora_spatial: bool = False

    def __post_init__(self):
        if self.attention_type != "divided_space_time":
            raise ValueError(
                f"attention_type is {self.attention_type!r}, wanted 'divided_space_time': the "
                "other kinds of the original are unfinished and no checkpoint uses them"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, wanted one of {', '.join(ACTIVATIONS)}"
            )
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if field.type is int and size < 1:
                raise ValueError(f"{field.name} is {size}, wanted a positive number")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, wanted a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def patches(self) -> int:
        """Patches of a frame of the native size."""
        return (self.image_size // self.patch_size) ** 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamFormerOutput:
    """tokens [b t p d] after the last norm; pooled [b t d], one vector per frame.

    On request also what the original returns under these names: `hidden_states`, depth + 1 of
    [b, p*t, d], patch-major, before the last norm; `attentions`, depth of [b*t, n, p, p], the
    spatial probabilities.
    """

    tokens: Any
    pooled: Any
    hidden_states: tuple | None = None
    attentions: tuple | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TemporalCache:
    """A ring of the last `capacity` frames' temporal keys and values; constant in size.

    k, v are [layers b p n s h] (one array, scanned) or `layers` times [b p n s h] (a folded model).
    Frame f lives in slot f mod capacity; `seen` [b] counts the frames of each row so far, and a row
    whose count is set to 0 is an empty stream again.
    """

    k: Any
    v: Any
    seen: Any

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.k)[0].shape[-2]


def _init(c: StreamFormerConfig) -> Any:
    return initializers.truncated_normal(c.initializer_range)


class Projection(Linear):
    """A linear map, with a low-rank correction `x @ lora_a @ lora_b` beside it where asked."""

    def __init__(self, d: int, f: int, names, *, bias=True, init=None, lora=False, rngs: nnx.Rngs):
        super().__init__(d, f, names, bias=bias, init=init, rngs=rngs)
        r, small, zeros = LORA_RANK, initializers.normal(0.02), initializers.zeros
        self.lora_a = parameter(rngs, (d, r), (names[0], None), small) if lora else None
        self.lora_b = parameter(rngs, (r, f), (None, names[1]), zeros) if lora else None

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows f"]:
        y = super().__call__(x)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + linear(linear(x, self.lora_a[...]), self.lora_b[...])
        return y


class Attention(nnx.Module):
    """The two projections of an attention; what attends to what is the block's business."""

    def __init__(self, c: StreamFormerConfig, *, lora: bool, rngs: nnx.Rngs):
        d, kinds = c.hidden_size, {"init": _init(c), "lora": lora, "rngs": rngs}
        self.num_heads = c.num_attention_heads
        self.qkv = Projection(d, 3 * d, ("embed", "heads"), bias=c.qkv_bias, **kinds)
        self.out = Projection(d, d, ("heads", "embed"), **kinds)

    def heads(self, x: Float[Array, "b t p d"]) -> Heads:
        # A split's gradient is one concatenation; that of three slices is a sum of padded arrays.
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        shape = *x.shape[:-1], self.num_heads, -1
        return q.reshape(shape), k.reshape(shape), v.reshape(shape)


class Mlp(nnx.Module):
    def __init__(self, c: StreamFormerConfig, *, rngs: nnx.Rngs):
        d, f = c.hidden_size, c.intermediate_size
        self.up = Linear(d, f, ("embed", "mlp"), init=_init(c), rngs=rngs)
        self.down = Linear(f, d, ("mlp", "embed"), init=_init(c), rngs=rngs)
        self.act = c.hidden_act

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return self.down(ACTIVATIONS[self.act](self.up(x)))


class Block(nnx.Module):
    """One layer, in two halves, so that a cache can stand between them.

    `project` gives the new frames' temporal queries, keys and values; `finish` attends over
    whatever keys and values it is handed and does the rest of the layer.
    """

    def __init__(self, c: StreamFormerConfig, *, rngs: nnx.Rngs):
        d, eps = c.hidden_size, c.layer_norm_eps
        self.temporal_norm = LayerNorm(d, eps=eps, rngs=rngs)
        self.temporal = Attention(c, lora=False, rngs=rngs)
        # None in a folded model, whose temporal.out has taken them in.
        self.temporal_dense = Linear(d, d, ("embed", None), init=_init(c), rngs=rngs)
        self.gate = parameter(rngs, (), (), initializers.zeros)
        self.attn_norm = LayerNorm(d, eps=eps, rngs=rngs)
        self.attn = Attention(c, lora=c.add_lora_spatial, rngs=rngs)
        self.mlp_norm = LayerNorm(d, eps=eps, rngs=rngs)
        self.mlp = Mlp(c, rngs=rngs)

    def project(self, x: Float[Array, "b t p d"]) -> Heads:
        return self.temporal.heads(self.temporal_norm(x))

    def finish(
        self,
        x: Float[Array, "b t p d"],
        q: Float[Array, "b p n t h"],
        k: Float[Array, "b p n s h"],
        v: Float[Array, "b p n s h"],
        visible: Bool[Array, "#b 1 1 t s"] | None,
    ) -> tuple[Float[Array, "b t p d"], Float[Array, "b t n p p"]]:
        u, _ = attend(q, k, v, visible)
        u = self.temporal.out(u.transpose(0, 3, 1, 2, 4).reshape(x.shape))
        if self.temporal_dense is not None:
            u = self.temporal_dense(u) * jnp.tanh(self.gate[...]).astype(x.dtype)
        x = x + u
        q, k, v = (a.swapaxes(-2, -3) for a in self.attn.heads(self.attn_norm(x)))
        u, probabilities = attend(q, k, v, None)
        x = x + self.attn.out(u.swapaxes(-2, -3).reshape(x.shape))
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", None, None, None), probabilities


class PoolingHead(nnx.Module):
    """SigLIP's head: one learned query attends over a frame's patches, then an MLP."""

    def __init__(self, c: StreamFormerConfig, *, rngs: nnx.Rngs):
        d = c.hidden_size
        self.num_heads = c.num_attention_heads
        self.probe = parameter(rngs, (d,), ("embed",), initializers.normal(1.0))
        self.qkv = Linear(
            d, 3 * d, ("embed", "heads"), init=initializers.xavier_uniform(), rngs=rngs
        )
        self.out = Linear(d, d, ("heads", "embed"), init=_init(c), rngs=rngs)
        self.norm = LayerNorm(d, eps=c.layer_norm_eps, rngs=rngs)
        self.mlp = Mlp(c, rngs=rngs)

    def __call__(self, y: Float[Array, "b t p d"]) -> Float[Array, "b t d"]:
        # The query is the same for every frame, so the key map is applied to it instead of to the
        # patches, and the value map to the attended mean: two d x d products over all patches
        # become two of one row. The key bias shifts all scores alike and drops out.
        d = y.shape[-1]
        kernel = self.qkv.kernel[...].astype(y.dtype).reshape(d, 3, self.num_heads, -1)
        # pyrefly: ignore [unsupported-operation]: the head is always made with a bias
        bias = self.qkv.bias[...].astype(y.dtype).reshape(3, self.num_heads, -1)
        query = jnp.einsum("d,dnh->nh", self.probe[...].astype(y.dtype), kernel[:, 0]) + bias[0]
        query = query * query.shape[-1] ** -0.5
        scores = linear(y, jnp.einsum("nh,dnh->dn", query, kernel[:, 1]))
        probabilities = jax.nn.softmax(scores.astype(jnp.float32), axis=-2).astype(y.dtype)
        mean = jnp.einsum("btpn,btpd->btnd", probabilities, y)
        value = jnp.einsum("btnd,dnh->btnh", mean, kernel[:, 2]) + bias[2]
        x = self.out(value.reshape(*y.shape[:2], d))
        return x + self.mlp(self.norm(x))


class StreamFormer(nnx.Module):
    """The video backbone: frames in; a token per patch and a vector per frame out.

    `dtype` is the dtype of the computation; fresh parameters are float32. `remat` names a policy of
    jax.checkpoint_policies for training. `assets` is what came along in the folder.
    """

    def __init__(
        self,
        config: StreamFormerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        c = config
        d, e = c.hidden_size, c.patch_size**2 * c.num_channels
        self.config, self.dtype, self.remat, self.assets = c, jnp.dtype(dtype), remat, Assets()
        self.patch = Linear(e, d, (None, "embed"), init=_init(c), rngs=rngs)
        self.position = parameter(rngs, (c.patches, d), (None, "embed"), _init(c))
        self.time = parameter(rngs, (c.num_frames, d), (None, "embed"), initializers.zeros)
        self.layers = stack(lambda r: Block(c, rngs=r), c.num_hidden_layers, rngs)
        self.norm = LayerNorm(d, eps=c.layer_norm_eps, rngs=rngs)
        self.head = PoolingHead(c, rngs=rngs)

    def __call__(
        self,
        frames: Float[Array, "b t h w c"],
        *,
        time_rule: TimeRule = "stretch",
        window: int | None = None,
        return_intermediates: bool = False,
    ) -> StreamFormerOutput:
        """Encodes clips whole.

        frames: [b t h w 3], normalised ((x / 255 - 0.5) / 0.5), any h and w of at least a patch.
        time_rule, for more frames than the time table has rows: "stretch" spreads the table over
        the clip (what the original does with a clip); "hold" keeps the last row (what a stream
        does, frame by frame). window: a frame attends to the last `window` frames, itself
        included; None means all. Raises ValueError for frames smaller than a patch, another
        number of channels, or a window on a model that is not causal.
        """
        t = frames.shape[1]
        rows = time_rows(t, self.config.num_frames, time_rule)
        x = self._embed(frames, self.time[...][rows])
        visible = None
        if self.config.enable_causal_temporal:
            past = np.arange(t)[:, None] - np.arange(t)
            visible = jnp.asarray((past >= 0) & (past < (window or t)))[None, None, None]
        elif window is not None:
            raise ValueError("window needs enable_causal_temporal=true, found false in the config")

        def body(x, inputs):
            (layer,) = inputs
            q, k, v = (a.transpose(0, 2, 3, 1, 4) for a in layer.project(x))
            y, probabilities = layer.finish(x, q, k, v, visible)
            return y, (y, probabilities) if return_intermediates else None

        y, kept = run_layers(body, x, self.layers, remat=self.remat)
        if not return_intermediates:
            return self._read_out(y)
        states, attentions = kept if _is_scan(self) else zip(*kept, strict=True)
        states = tuple(patch_major(s) for s in (x, *states))
        attentions = tuple(a.reshape(-1, *a.shape[2:]) for a in attentions)
        return dataclasses.replace(self._read_out(y), hidden_states=states, attentions=attentions)

    def step(
        self,
        frames: Float[Array, "b c h w channels"],
        cache: TemporalCache,
        *,
        time_rule: TimeRule = "stretch",
    ) -> tuple[StreamFormerOutput, TemporalCache]:
        """Encodes the next c frames of b streams; the cache takes them in and forgets the oldest.

        Fed one frame at a time this equals `model(frames, time_rule="hold", window=capacity)` for
        ever, and so do chunks under time_rule="hold". "stretch" is the original's rule: a chunk
        that passes the end of the time table spreads the table over all frames so far, which
        depends on how the stream was cut. Donate the cache. Raises ValueError when the model is not
        causal, or when the frames have another size than the cache was made for.
        """
        if not self.config.enable_causal_temporal:
            raise ValueError(
                "a stream needs enable_causal_temporal=true, found false in the config: "
                "a bidirectional model has to see the whole clip"
            )
        c, seen = frames.shape[1], cache.seen
        new = seen[:, None] + jnp.arange(c)  # [b c], the new frames' numbers
        rows = stream_rows(seen, c, self.config.num_frames, time_rule)
        x = self._embed(frames, self.time[...][rows])
        slots = jax.tree.leaves(cache.k)[0].shape
        if x.shape[2] != slots[-4]:
            raise ValueError(
                f"frames {frames.shape[2]}x{frames.shape[3]} make {x.shape[2]} patches, the cache "
                f"was made for {slots[-4]}: call init_cache with height and width of the frames"
            )
        # One frame: written first and read after, so that the donated ring is updated in place.
        # A chunk reads the ring before it overwrites what its first frames still have to see.
        one = c == 1
        held = ring_frames(new[:, -1] if one else seen - 1, cache.capacity)
        held = held if one else jnp.concatenate([held, new], axis=1)
        past = new[:, :, None] - held[:, None]  # [b c s]
        visible = (past >= 0) & (past < cache.capacity) & (held >= 0)[:, None]
        visible = visible[:, None, None]

        def layer_step(layer, x, k_ring, v_ring, index):
            q, k, v = layer.project(x)
            k_new, v_new = (write(r, a, new, index) for r, a in ((k_ring, k), (v_ring, v)))
            keys, values = (k_new, v_new) if one else (k_ring, v_ring)
            keys, values = (a if index is None else a[index] for a in (keys, values))
            if not one:
                keys = jnp.concatenate([keys, k.transpose(0, 2, 3, 1, 4)], axis=-2)
                values = jnp.concatenate([values, v.transpose(0, 2, 3, 1, 4)], axis=-2)
            y, _ = layer.finish(x, q.transpose(0, 2, 3, 1, 4), keys, values, visible)
            return y, k_new, v_new

        if _is_scan(self):

            def body(carry, inputs):
                layer, index = inputs
                x, k, v = carry
                return layer_step(layer, x, k, v, index), None

            depth = jnp.arange(self.config.num_hidden_layers)
            (x, k, v), _ = run_layers(body, (x, cache.k, cache.v), self.layers, depth)
        else:

            def body(x, inputs):
                layer, k_ring, v_ring = inputs
                x, k, v = layer_step(layer, x, k_ring, v_ring, None)
                return x, (k, v)

            x, kept = run_layers(body, x, self.layers, cache.k, cache.v)
            k, v = zip(*kept, strict=True)
        return self._read_out(x), TemporalCache(k, v, seen + c)

    def init_cache(self, batch: int, *, height: int, width: int, capacity: int) -> TemporalCache:
        """An empty ring for `batch` streams of frames of this size, `capacity` frames long."""
        c = self.config
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, wanted at least 1 frame")
        patches = (height // c.patch_size) * (width // c.patch_size)
        head = c.hidden_size // c.num_attention_heads
        shape = (batch, patches, c.num_attention_heads, capacity, head)

        def empty():
            if _is_scan(self):
                return jnp.zeros((c.num_hidden_layers, *shape), self.dtype)
            return tuple(jnp.zeros(shape, self.dtype) for _ in self.layers)

        return TemporalCache(empty(), empty(), jnp.zeros((batch,), jnp.int32))

    def _embed(
        self, frames: Float[Array, "b t h w c"], time: Float[Array, "*b t d"]
    ) -> Float[Array, "b t p d"]:
        c = self.config
        height, width, channels = frames.shape[2:]
        if channels != c.num_channels or min(height, width) < c.patch_size:
            raise ValueError(
                f"frames are {height}x{width}x{channels}, wanted {c.num_channels} channels and at "
                f"least one patch of {c.patch_size}x{c.patch_size}: resize them"
            )
        x = self.patch(patchify(frames.astype(self.dtype), c.patch_size))
        position = self.position[...]
        if x.shape[2] != c.patches or height != width:
            # The original gives the table's first axis the width and its second the height, but
            # flattens the patches by rows; trained heads depend on it. Squares are not affected.
            position = resize_square_table(position, width // c.patch_size, height // c.patch_size)
        x = x + position.astype(x.dtype) + time.astype(x.dtype)[..., None, :]
        return constrain(x, "batch", None, None, None)

    def _read_out(self, x: Float[Array, "b t p d"]) -> StreamFormerOutput:
        y = self.norm(x)
        return StreamFormerOutput(tokens=y, pooled=self.head(y))


def attend(
    q: Float[Array, "*r q h"],
    k: Float[Array, "*r s h"],
    v: Float[Array, "*r s h"],
    visible: Bool[Array, "*m q s"] | None,
) -> tuple[Float[Array, "*r q h"], Float[Array, "*r q s"]]:
    """Softmax attention over the last-but-one axis, heads-major; float32 scores."""
    scores = jnp.einsum("...qh,...sh->...qs", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores, axis=-1)
    out = jnp.einsum(
        "...qs,...sh->...qh", probabilities.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out.astype(q.dtype), probabilities


def time_rows(frames: int, table: int, rule: TimeRule) -> np.ndarray:
    """Which row of the time table each of `frames` frames of a clip gets; host numpy int32.

    Beyond the table "stretch" takes min(floor(f32(t) * f32(table / frames)), table - 1), evaluated
    in float32: the exact integer floor differs at single frames of some lengths (82, 94, ...).
    """
    t = np.arange(frames)
    if rule == "stretch" and frames > table:
        t = np.floor(t.astype(np.float32) * np.float32(table / frames)).astype(np.int32)
    return np.minimum(t, table - 1).astype(np.int32)


def stream_rows(
    seen: Int[Array, " b"], chunk: int, table: int, rule: TimeRule
) -> Int[Array, "b c"]:
    """The rows for a chunk of frames that follow the `seen` ones; "stretch" as the original."""
    t = seen[:, None] + jnp.arange(chunk)
    if rule == "stretch" and chunk > 1:
        length = (seen + chunk)[:, None]
        scale = jnp.float32(table) / length.astype(jnp.float32)
        stretched = jnp.floor(t.astype(jnp.float32) * scale).astype(jnp.int32)
        t = jnp.where(length > table, stretched, t)
    return jnp.minimum(t, table - 1)


def ring_frames(newest: Int[Array, " b"], capacity: int) -> Int[Array, "b s"]:
    """The number of the frame that each slot holds; negative where the slot is empty."""
    newest = newest[:, None]
    return newest - jnp.mod(newest - jnp.arange(capacity), capacity)


def write(
    ring: Float[Array, "*layers b p n s h"],
    new: Float[Array, "b c p n h"],
    frames: Int[Array, "b c"],
    layer: Any,
) -> Float[Array, "*layers b p n s h"]:
    """Puts the new frames into their slots, those of one layer where the ring is stacked.

    A single frame is written beside one that is dropped: XLA:CPU turns a scatter of one row into
    an update for which it copies the whole ring (18x the time of a frame at 1,024 slots).
    """
    capacity = ring.shape[-2]
    new, frames = new[:, -capacity:], frames[:, -capacity:]  # the others are forgotten at once
    slots = frames % capacity
    if slots.shape[1] == 1:
        new = jnp.concatenate([new, new], axis=1)
        slots = jnp.concatenate([slots, jnp.full_like(slots, capacity)], axis=1)
    rows = jnp.arange(ring.shape[-5])[:, None]
    at = (rows, slice(None), slice(None), slots)
    at = at if layer is None else (layer, *at)
    return ring.at[at].set(new.astype(ring.dtype), mode="drop", unique_indices=True)


def patch_major(x: Float[Array, "b t p d"]) -> Float[Array, "b pt d"]:
    """The original's token order: all frames of the first patch, then of the second."""
    b, t, p, d = x.shape
    return x.swapaxes(1, 2).reshape(b, p * t, d)


def with_lora(model: StreamFormer, *, rngs: nnx.Rngs) -> StreamFormer:
    """The same function with LoRA in its spatial attention: A drawn from N(0, 0.02^2), B zero.

    What the original does at the start of its multi-task training; the caller freezes the two
    matrices (and biases) of `layers.attn` that LoRA now corrects.
    """
    config = dataclasses.replace(model.config, add_lora_spatial=True)
    wide = StreamFormer(config, rngs=rngs, dtype=model.dtype, remat=model.remat)
    nnx.update(wide, nnx.state(model))
    wide.assets = model.assets
    return wide


def fold(model: StreamFormer) -> StreamFormer:
    """The same function with fewer products, for a stream on the CPU; not for training.

    LoRA is added into its matrices; the temporal output projection, the projection after it and
    the gate become one matrix (6 % of the products); layers become a tuple (a scan that carries
    the cache is 1.3x slower there). Works in float32 and rounds once to the parameters' dtype.
    """
    folded = jax.tree.map(lambda a: a, model)
    layers = folded.layers
    if not _is_scan(folded):
        raise ValueError("the model is folded already")
    exact = {"precision": "highest", "preferred_element_type": jnp.float32}

    for projection in (layers.attn.qkv, layers.attn.out):
        if projection.lora_a is not None:
            a, b = projection.lora_a[...], projection.lora_b[...]
            kernel = projection.kernel[...]
            merged = kernel.astype(jnp.float32) + jnp.einsum("ldr,lrf->ldf", a, b, **exact)
            projection.kernel[...] = merged.astype(kernel.dtype)
            projection.lora_a = projection.lora_b = None

    out, dense = layers.temporal.out, layers.temporal_dense
    gate = jnp.tanh(layers.gate[...].astype(jnp.float32))
    kernel = jnp.einsum("lde,lef->ldf", out.kernel[...], dense.kernel[...], **exact)
    bias = jnp.einsum("le,lef->lf", out.bias[...], dense.kernel[...], **exact) + dense.bias[...]
    out.kernel[...] = (kernel * gate[:, None, None]).astype(out.kernel[...].dtype)
    out.bias[...] = (bias * gate[:, None]).astype(out.bias[...].dtype)
    layers.temporal_dense = layers.gate = None
    folded.layers = for_stream(layers, folded.config.num_hidden_layers)
    return folded


def _is_scan(model: StreamFormer) -> bool:
    return not isinstance(model.layers, tuple)
