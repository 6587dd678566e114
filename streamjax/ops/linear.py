"""The matrix product that every layer calls, and the norms around it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "*rows d"], kernel: Float[Array, "d f"], bias: Float[Array, " f"] | None = None
) -> Float[Array, "*rows f"]:
    """`x @ kernel + bias`, accumulated in float32 and returned in x's dtype.

    Asking for float32 accumulation is what makes XLA:CPU use its bfloat16 kernels at all; a plain
    `x @ w` upcasts both sides first and is about 3x slower. The gradients' products have sides in
    x's dtype and float32 sums too, and the kernel's gradient is not rounded on its way to a float32
    kernel. A single row in bfloat16 is padded to eight, because the one-row kernel runs at a tenth
    of the speed of the eight-row one.
    """
    dtype = x.dtype
    rows = x.shape[:-1]
    few = dtype == jnp.bfloat16 and rows and _size(rows) < 8 and jax.default_backend() == "cpu"
    if few:
        x = x.reshape(-1, x.shape[-1])
        x = jnp.pad(x, ((0, 8 - x.shape[0]), (0, 0)))
    y = _product(x, kernel)
    if few:
        y = y[: _size(rows)].reshape(*rows, -1)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(dtype)


@jax.custom_vjp
def _product(x, kernel):
    """`x @ kernel` in float32, of sides in x's dtype."""
    return _dot(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,))


def _forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _backward(sides, slope):
    """JAX's own would multiply a float32 slope with a bfloat16 side, at float32's speed."""
    x, kernel = sides
    slope = slope.astype(x.dtype)  # exact: the result was rounded to it
    rows = tuple(range(x.ndim - 1))
    by_x = _dot(slope, kernel.astype(x.dtype), (x.ndim - 1,), (1,))
    return by_x.astype(x.dtype), _dot(x, slope, rows, rows).astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def _dot(left, right, of_left, of_right):
    dims = ((of_left, of_right), ((), ()))
    return jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.float32)


def layer_norm(
    x: Float[Array, "*rows d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*rows d"]:
    """LayerNorm over the last axis, computed in float32 and rounded once."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    centred = y - mean
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*rows d"], scale: Float[Array, " d"], eps: float
) -> Float[Array, "*rows d"]:
    """RMSNorm over the last axis: float32 inside, cast, then scaled (the order of Qwen2)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


def unit(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """Rows divided by their length, in float32; without an epsilon, so a zero row is not finite."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
