"""The few modules that every architecture shares, and the two ways to run a stack of them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from streamjax.ops.attention import KEPT
from streamjax.ops.linear import layer_norm, linear, rms_norm
from streamjax.sharding import axes

Remat = Literal["nothing_saveable", "attention_saveable", "dots_with_no_batch_dims_saveable"]
"""What layers keep for the backward pass beside their inputs; the rest is worked out again.

nothing_saveable: nothing. attention_saveable: what attention gives (width numbers a token), which
costs the most to work out again in long rows. dots_with_no_batch_dims_saveable: what every linear
map gives, about ten widths a token. None, where it is allowed: all there is.
"""

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def parameter(rngs: nnx.Rngs, shape, names, init) -> nnx.Param:
    """One float32 parameter whose dimensions are named for sharding.py."""
    return nnx.Param(axes(init, *names)(rngs.params(), shape, jnp.float32))


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [d f]; torch's `weight` is its transpose."""

    def __init__(self, d: int, f: int, names, *, bias=True, init=None, rngs: nnx.Rngs):
        self.kernel = parameter(rngs, (d, f), names, init or initializers.truncated_normal(0.02))
        self.bias = parameter(rngs, (f,), names[1:], initializers.zeros) if bias else None

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows f"]:
        bias = None if self.bias is None else self.bias[...]
        return linear(x, self.kernel[...], bias)


class LayerNorm(nnx.Module):
    def __init__(self, d: int, *, eps: float, rngs: nnx.Rngs):
        self.scale = parameter(rngs, (d,), ("embed",), initializers.ones)
        self.bias = parameter(rngs, (d,), ("embed",), initializers.zeros)
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class RMSNorm(nnx.Module):
    def __init__(self, d: int, *, eps: float, rngs: nnx.Rngs):
        self.scale = parameter(rngs, (d,), ("embed",), initializers.ones)
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return rms_norm(x, self.scale[...], self.eps)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` copies of `make(rngs)` as one module whose parameters lead with a `layers` axis.

    `nnx.vmap(transform_metadata=...)` silently loses that axis in flax's tree mode; this does not.
    """
    return jax.vmap(nnx.transform_metadata(make, partition="layers"))(rngs.split(depth))


def unstack(stacked: Any, depth: int) -> tuple[Any, ...]:
    """A stacked module as a tuple of `depth` modules."""
    return tuple(jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(depth))


def for_stream(stacked: Any, depth: int) -> Any:
    """A stacked module in the form that a stream runs best: a tuple on the CPU, elsewhere as it is.

    The tuple holds copies of the parameters; on an accelerator those would cost memory that it has
    not, for a loop that compiles slower and runs no faster (specs/performance.md section 4).
    """
    return unstack(stacked, depth) if jax.default_backend() == "cpu" else stacked


def policy_of(remat: Remat) -> Callable:
    """jax.checkpoint's policy."""
    if remat == "attention_saveable":
        return jax.checkpoint_policies.save_only_these_names(KEPT)
    return getattr(jax.checkpoint_policies, remat)


def run_layers(
    body: Callable, x: Any, layers: Any, *per_layer: Any, remat: Remat | None = None
) -> tuple[Any, Any]:
    """Runs `x, y = body(x, (layer, *inputs))` over the depth; returns x and the stacked y's.

    `layers` is a stacked module, which is scanned, or a tuple of modules, which is a plain loop:
    on the CPU the loop is 1.3x faster for a stream that carries caches, the scan compiles in
    constant time. For the loop `per_layer` and the returned y's are sequences over the depth.
    `remat`: see `Remat`; None keeps all.
    """
    if remat is not None:
        body = jax.checkpoint(
            body, prevent_cse=not isinstance(layers, nnx.Module), policy=policy_of(remat)
        )
    if isinstance(layers, nnx.Module):
        return jax.lax.scan(body, x, (layers, *per_layer))
    ys: list[Any] = []
    columns: Sequence[Any] = per_layer
    for i, layer in enumerate(layers):
        x, y = body(x, (layer, *(column[i] for column in columns)))
        ys.append(y)
    return x, tuple(ys)
