"""The language model: a pre-norm decoder with grouped keys, covering Llama, Qwen2 and Qwen3.

    x += out(attention(norm(x)));  x += down(silu(gate(y)) * up(y)),  y = norm(x)

specs/vlm.md sections 2.6 and 2.7. Training, prefill and streaming run the same block; they differ
in what the block's queries attend to, which is a function they hand it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from streamjax.models.layers import (
    ACTIVATIONS,
    Linear,
    Remat,
    RMSNorm,
    parameter,
    run_layers,
    stack,
)
from streamjax.ops.attention import cached_attention, causal_attention
from streamjax.ops.cache import KVCache, empty_cache, reserve, write
from streamjax.ops.linear import linear
from streamjax.ops.rope import dynamic_theta, mrope_axes, mrope_table, rope_table, rotate
from streamjax.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and options, under the names of the originals' config.json.

    `attention_bias` is Qwen2's bias on q, k and v (never on the output projection), `qk_norm`
    Qwen3's norm of every query and key head. `mrope_section` (pairs of channels for time, row and
    column) makes positions three numbers; `rope_dynamic_factor` is InternVL's "dynamic NTK" beyond
    max_position_embeddings. Raises ValueError when heads or sections do not fit, or for an unknown
    activation.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    attention_bias: bool = True
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_dynamic_factor: float | None = None
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False
    max_position_embeddings: int = 32768
    hidden_act: str = "silu"
    initializer_range: float = 0.02

    def __post_init__(self):
        n, k = self.num_attention_heads, self.num_key_value_heads
        if n % k or (self.head_dim is None and self.hidden_size % n):
            raise ValueError(
                f"num_attention_heads is {n}, wanted a multiple of num_key_value_heads={k} that "
                f"divides hidden_size={self.hidden_size} (or set head_dim)"
            )
        if self.head % 2:
            raise ValueError(f"head_dim is {self.head}, wanted an even number for rotation")
        if self.mrope_section is not None and 2 * sum(self.mrope_section) != self.head:
            raise ValueError(
                f"mrope_section is {list(self.mrope_section)}, wanted three numbers that add up to "
                f"half of head_dim={self.head}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, wanted one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Block(nnx.Module):
    """One layer; `attend(q, k, v)` gets unrotated heads and says what they see."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        d, f, h = c.hidden_size, c.intermediate_size, c.head
        n, k = c.num_attention_heads, c.num_key_value_heads
        init = initializers.normal(c.initializer_range)

        def make(i, o, names, bias=False):
            return Linear(i, o, names, bias=bias, init=init, rngs=rngs)

        self.config = c
        self.attn_norm = RMSNorm(d, eps=c.rms_norm_eps, rngs=rngs)
        self.q = make(d, n * h, ("embed", "heads"), c.attention_bias)
        self.k = make(d, k * h, ("embed", "heads"), c.attention_bias)
        self.v = make(d, k * h, ("embed", "heads"), c.attention_bias)
        self.q_norm = RMSNorm(h, eps=c.rms_norm_eps, rngs=rngs) if c.qk_norm else None
        self.k_norm = RMSNorm(h, eps=c.rms_norm_eps, rngs=rngs) if c.qk_norm else None
        self.out = make(n * h, d, ("heads", "embed"))
        self.mlp_norm = RMSNorm(d, eps=c.rms_norm_eps, rngs=rngs)
        self.gate = make(d, f, ("embed", "mlp"))
        self.up = make(d, f, ("embed", "mlp"))
        self.down = make(f, d, ("mlp", "embed"))

    def __call__(
        self, x: Float[Array, "b l d"], attend: Callable
    ) -> tuple[Float[Array, "b l d"], Any]:
        b, length, _ = x.shape
        y = self.attn_norm(x)
        q, k, v = (
            project(y).reshape(b, length, -1, self.config.head).swapaxes(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended, kept = attend(q, k, v)
        x = x + self.out(attended.swapaxes(1, 2).reshape(b, length, -1))
        y = self.mlp_norm(x)
        x = x + self.down(ACTIVATIONS[self.config.hidden_act](self.gate(y)) * self.up(y))
        return constrain(x, "batch", "length", None), kept


class Decoder(nnx.Module):
    """Embeddings in, final-normed hidden states out; `embed` and `head` are the two ends.

    `head` [d v] is None where the output is tied to the embedding. `remat`: what the layers keep
    when they are trained.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        c, init = config, initializers.normal(config.initializer_range)
        self.config, self.dtype, self.remat = c, jnp.dtype(dtype), remat
        self.embed = parameter(rngs, (c.vocab_size, c.hidden_size), ("vocab", "embed"), init)
        self.layers = stack(lambda r: Block(c, rngs=r), c.num_hidden_layers, rngs)
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps, rngs=rngs)
        untied = (c.hidden_size, c.vocab_size), ("embed", "vocab"), init
        self.head = None if c.tie_word_embeddings else parameter(rngs, *untied)

    def lookup(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Rows of the embedding; ids below 0 (placeholders) get row 0, to be overwritten."""
        # Whole rows are gathered: of rows in pieces XLA puts the result together on every device.
        table = constrain(self.embed[...], "vocab", None)
        rows = table[jnp.maximum(tokens, 0)].astype(self.dtype)
        return constrain(rows, "batch", "length", None)

    def head_kernel(self) -> Float[Array, "d v"]:
        return self.embed[...].T if self.head is None else self.head[...]

    def logits(self, hidden: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        return linear(hidden, self.head_kernel())

    def __call__(
        self,
        x: Float[Array, "b l d"],
        positions: Int[Array, "*axes b l"],
        segments: Int[Array, "b l"] | None = None,
        *,
        deepstack: Float[Array, "k b l d"] | None = None,
    ) -> Float[Array, "b l d"]:
        """Whole sequences: each token sees the earlier tokens of its own segment.

        positions: [b l], or [3 b l] with `mrope_section`. deepstack: what the first k layers add to
        their output, zero at the places of text (Qwen3-VL, specs/vlm.md 2.4).
        """
        cos, sin = self._rope(positions, self._theta(positions))

        def attend(q, k, v):
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            return causal_attention(q, k, v, segments), None

        def body(x, inputs):
            layer, index = inputs
            x, kept = layer(x, attend)
            return _deepened(x, deepstack, index), kept

        x = constrain(x, "batch", "length", None)
        x, _ = run_layers(body, x, self.layers, self._depths(), remat=self.remat)
        return self.norm(x)

    def extend(
        self,
        x: Float[Array, "b l d"],
        cache: KVCache,
        *,
        lengths: Int[Array, " b"] | None = None,
        positions: Int[Array, "*axes b l"] | None = None,
        deepstack: Float[Array, "k b l d"] | None = None,
    ) -> tuple[Float[Array, "b l d"], KVCache]:
        """The next chunk of each row: a prompt, a turn, or one token.

        lengths [b]: real tokens of each row, padding behind them (None: all). positions: contiguous
        ones (None: they go on from the last, as text). Hidden states of padding mean nothing.
        Donate the cache. `rope_dynamic_factor` is not applied: keys that are kept cannot follow a
        base that grows, so a cache is exact up to max_position_embeddings. Raises ValueError when
        the chunk does not fit, where the counters are known.
        """
        b, length, _ = x.shape
        if lengths is None:
            lengths = jnp.full((b,), length, jnp.int32)
        if positions is None:
            positions = cache.next[:, None] + jnp.arange(length)
        plan, cache = reserve(cache, lengths, positions)
        ring_rope = self._rope(plan.rotated, self.config.rope_theta)
        sink_rope = self._rope(plan.contiguous, self.config.rope_theta)

        def step(layer, x, keys, values, depth, index):
            def attend(q, k, v):
                # Written first and read after, so that a donated cache is updated in place.
                new_keys = write(keys, rotate(k, *ring_rope), plan.slots, index)
                new_values = write(values, v, plan.slots, index)
                own = new_keys if index is None else new_keys[index]
                own_values = new_values if index is None else new_values[index]
                sink = None
                if cache.sink_slots:
                    sink = (rotate(q, *sink_rope), cache.sink_slots)
                out = cached_attention(rotate(q, *ring_rope), own, own_values, plan.mask, sink)
                return out, (new_keys, new_values)

            x, kept = layer(x, attend)
            return _deepened(x, deepstack, depth), kept

        if isinstance(self.layers, tuple):

            def loop_body(x, inputs):
                layer, depth, keys, values = inputs
                return step(layer, x, keys, values, depth, None)

            x, kept = run_layers(loop_body, x, self.layers, self._depths(), cache.k, cache.v)
            keys, values = zip(*kept, strict=True)
        else:

            def scan_body(carry, inputs):
                layer, depth = inputs
                x, keys, values = carry
                x, (keys, values) = step(layer, x, keys, values, depth, depth)
                return (x, keys, values), None

            carry, _ = run_layers(scan_body, (x, cache.k, cache.v), self.layers, self._depths())
            x, keys, values = carry
        cache = dataclasses.replace(cache, k=keys, v=values)
        return self.norm(x), cache

    def init_cache(self, batch: int, *, capacity: int, sink: int = 0) -> KVCache:
        """Room for `capacity` tokens a row, and `sink` more that sliding never forgets."""
        c = self.config
        return empty_cache(
            batch,
            layers=c.num_hidden_layers,
            heads=c.num_key_value_heads,
            head_dim=c.head,
            capacity=capacity,
            sink=sink,
            dtype=self.dtype,
            scan=not isinstance(self.layers, tuple),
        )

    def _depths(self) -> Any:
        """The number of each layer: an array to scan, or plain integers for a tuple of layers."""
        depth = self.config.num_hidden_layers
        return range(depth) if isinstance(self.layers, tuple) else jnp.arange(depth)

    def _rope(self, positions, theta):
        c = self.config
        if c.mrope_section is None or positions.ndim == 2:  # text alone: the axes agree
            return rope_table(positions, c.head, theta)
        axes = mrope_axes(c.mrope_section, interleaved=c.mrope_interleaved)
        return mrope_table(positions, c.head, theta, axes)

    def _theta(self, positions):
        c = self.config
        if c.rope_dynamic_factor is None:
            return c.rope_theta
        length = positions.max() + 1
        return dynamic_theta(
            c.rope_theta, c.head, length, c.max_position_embeddings, c.rope_dynamic_factor
        )


def _deepened(x, deepstack, depth):
    """The output of layer `depth`, with what the vision tower adds to the first few."""
    if deepstack is None:
        return x
    if isinstance(depth, int):
        return x + deepstack[depth] if depth < len(deepstack) else x
    # One body for all layers: the ones behind the first few add nothing.
    more = deepstack[jnp.minimum(depth, len(deepstack) - 1)]
    return x + jnp.where(depth < len(deepstack), more, jnp.zeros_like(more))
