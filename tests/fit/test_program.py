"""Operations of traced programs, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from streamjax.fit.program import executed
from streamjax.ops.splash import Splash


def count(f, *shapes, turns=1):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return executed(jax.make_jaxpr(f)(*args).jaxpr, turns)


def test_a_loops_products_count_as_often_as_it_turns():
    def loop(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert count(loop, (4, 8), (5, 8, 8)) == 5 * 2 * 4 * 8 * 8


def test_layers_worked_out_again_count_again():
    def loss(x, w):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(layer, x, w)[0].sum()

    one = 5 * 2 * 4 * 8 * 8
    assert count(jax.grad(loss, (0, 1)), (4, 8), (5, 8, 8)) == 4 * one


def test_of_branches_the_larger_counts():
    def choose(flag, x, w):
        return jax.lax.cond(flag.sum() > 0, lambda: x @ w, lambda: x)

    assert count(choose, (1,), (8, 8), (8, 8)) == 2 * 8**3


def test_loops_of_known_and_of_unknown_length():
    def loop(stop):
        return lambda n, x: jax.lax.fori_loop(
            0, n.sum().astype(int) if stop is None else stop, lambda i, x: x @ x, x
        )

    assert count(loop(7), (1,), (8, 8), turns=3) == 7 * 2 * 8**3
    assert count(loop(None), (1,), (8, 8), turns=3) == 3 * 2 * 8**3


def test_causal_kernels_count_half_of_their_blocks():
    """Forward two products, backward five and two of the forward's again."""
    heads, length, width = 2, 2048, 128
    splash = Splash(length, "kept", interpret=True)

    def attended(q, k, v):
        return splash(splash.kernel(heads), q, k, v, None).sum()

    shape = (1, heads, length, width)
    one = 2 * heads * length**2 * width / 2
    assert count(attended, shape, shape, shape) == pytest.approx(2 * one)
    both = count(jax.grad(attended, (0, 1, 2)), shape, shape, shape)
    assert both == pytest.approx(9 * one, rel=0.01)
