"""Attention in blocks against the plain form, and rotations against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.ops import attention
from streamjax.ops.attention import cached_attention, causal_attention
from streamjax.ops.rope import rope_table, rotate


def plain(q, k, v, mask):
    """Softmax attention with every score at once, in float64; mask [b l s]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    k, v = (np.repeat(a, q.shape[1] // a.shape[1], axis=1) for a in (k, v))
    scores = np.einsum("bnlh,bnsh->bnls", q, k) * q.shape[-1] ** -0.5
    scores = np.where(np.asarray(mask)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnls,bnsh->bnlh", weights / weights.sum(-1, keepdims=True), v)


def heads(rng, b, n, k, length, h=8):
    shapes = ((b, count, length, h) for count in (n, k, k))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("length", [1, 7, 150])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows, blocks", [(64, 16), (8, 4)])
def test_blocks_equal_the_plain_form(rng, monkeypatch, length, packed, rows, blocks):
    """Small blocks stand for long sequences: 150 tokens in 4 blocks, walked 8 rows at a time."""
    monkeypatch.setattr(attention, "ROWS", rows)
    monkeypatch.setattr(attention, "BLOCKS", blocks)
    q, k, v = heads(rng, 2, 4, 2, length)
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length)))) if packed else None
    mask = np.tril(np.ones((length, length), bool))[None].repeat(2, 0)
    if packed:
        mask &= np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None]
    found = causal_attention(q, k, v, segments)
    np.testing.assert_allclose(found, plain(q, k, v, mask), atol=2e-6)


def test_gradients_in_blocks(rng, monkeypatch):
    q, k, v = heads(rng, 1, 2, 1, 60)

    def gradient():
        return jax.grad(lambda q: jnp.sin(causal_attention(q, k, v)).sum())(q)

    whole = gradient()
    monkeypatch.setattr(attention, "ROWS", 8)
    monkeypatch.setattr(attention, "BLOCKS", 2)
    np.testing.assert_allclose(gradient(), whole, atol=1e-5)


def test_a_cache_under_a_mask_and_a_sink_of_its_own(rng, monkeypatch):
    q, k, v = heads(rng, 2, 4, 2, 24)
    rows = q[:, :, :10]
    mask = jnp.asarray(rng.random((2, 10, 24)) < 0.5).at[:, :, 0].set(True)
    np.testing.assert_allclose(
        cached_attention(rows, k, v, mask), plain(rows, k, v, mask), atol=2e-6
    )

    other = jnp.roll(rows, 1, axis=-1)
    found = cached_attention(rows, k, v, mask, (other, 6))
    both = plain(
        jnp.concatenate([rows, other], -1),
        jnp.concatenate([k.at[:, :, :6].set(0), k.at[:, :, 6:].set(0)], -1) * 2**0.5,
        v, mask,
    )  # fmt: skip
    np.testing.assert_allclose(found, both, atol=2e-6)
    monkeypatch.setattr(attention, "CHUNK", 4)
    np.testing.assert_allclose(cached_attention(rows, k, v, mask, (other, 6)), found, atol=1e-6)


def test_rotation_is_by_halves_and_composes(rng):
    x = jnp.asarray(rng.standard_normal((1, 2, 5, 8)), jnp.float32)
    places = jnp.asarray([[0, 3, 7, 100, 30000]])
    found = rotate(x, *rope_table(places, 8, 1e6))
    angles = np.asarray(places)[0, :, None] / 1e6 ** (np.arange(0, 8, 2) / 8)
    turned = (np.asarray(x)[..., :4] + 1j * np.asarray(x)[..., 4:]) * np.exp(1j * angles)
    np.testing.assert_allclose(found[..., :4], turned.real, atol=5e-3)  # float32 at 30,000
    np.testing.assert_allclose(found[:, :, :4, 4:], turned.imag[:, :, :4], atol=1e-5)
    back = rotate(found, *rope_table(-places, 8, 1e6))
    np.testing.assert_allclose(back, x, atol=1e-5)
