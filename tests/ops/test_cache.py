"""The sliding cache, through the decoder that uses it: any way of filling it gives one function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.models.decoder import Decoder, DecoderConfig
from streamjax.models.layers import unstack
from streamjax.ops import cache as kv

THETA = 100.0
CONFIG = DecoderConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, rope_theta=THETA, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture(scope="module", params=["scanned", "unrolled"])
def decoder(request):
    decoder = jax.jit(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))()
    if request.param == "unrolled":
        decoder.layers = unstack(decoder.layers, CONFIG.num_hidden_layers)
    return decoder


@pytest.fixture(scope="module")
def x(decoder):
    return decoder.lookup(jax.random.randint(jax.random.key(1), (2, 60), 0, 50))


extend = jax.jit(lambda m, x, cache, lengths: m.extend(x, cache, lengths=lengths))
slide = jax.jit(kv.slide, static_argnums=3)


def fill(decoder, x, cache, chunk=10):
    """Feeds x in padded chunks, whose two rows are of different length; hidden states by row."""
    rows = [[], []]
    done = np.zeros(2, int)
    while (done < x.shape[1]).any():
        lengths = np.minimum([chunk, chunk - 3], x.shape[1] - done)
        piece = jnp.stack([jnp.roll(x[i], -done[i], axis=0)[:chunk] for i in range(2)])
        hidden, cache = extend(decoder, piece, cache, jnp.asarray(lengths))
        for i in range(2):
            rows[i].append(hidden[i, : lengths[i]])
        done += lengths
    return jnp.stack([jnp.concatenate(row) for row in rows]), cache


def test_chunks_of_any_length_equal_the_whole(decoder, x):
    positions = jnp.broadcast_to(jnp.arange(60), (2, 60))
    whole = jax.jit(lambda m, x: m(x, positions))(decoder, x)
    found, cache = fill(decoder, x, decoder.init_cache(2, capacity=64, sink=8))
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert cache.length.tolist() == cache.next.tolist() == [60, 60]


def test_sliding_equals_evicting_and_both_renumber(decoder, x):
    """The same span forgotten by a moved counter and by a pass over the cache; wrapped around."""
    cache = decoder.init_cache(2, capacity=48, sink=8)
    _, cache = fill(decoder, x[:, :40], cache)
    pinned = jnp.asarray([[8, 9, 10, 11, 12, -1, -1, -1]] * 2)  # ring slots of tokens 0..4
    slid = slide(cache, jnp.asarray([20, 20]), pinned, THETA)
    evicted = kv.evict(cache, 5, 20, THETA)
    for other in (slid, evicted, kv.rebase(slid, THETA)):
        assert other.length.tolist() == other.next.tolist() == [25, 25]
    assert slid.shift.tolist() == [15, 15] and evicted.shift.tolist() == [0, 0]
    ways = [slid, evicted, kv.rebase(slid, THETA)]
    outs = [fill(decoder, x[:, 40:], way) for way in ways]
    for found, _ in outs[1:]:
        np.testing.assert_allclose(found, outs[0][0], atol=1e-5)

    # Once more, now that the ring has wrapped and the sink is not empty.
    again = [
        slide(outs[0][1], jnp.asarray([9, 9]), None, THETA),
        kv.evict(outs[1][1], 5, 14, THETA),
    ]
    found = [extend(decoder, x[:, :10], way, jnp.asarray([10, 10]))[0] for way in again]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_the_first_tokens_can_be_forgotten_too(decoder, x):
    _, cache = fill(decoder, x[:, :30], decoder.init_cache(2, capacity=64))
    whole = kv.evict(cache, 0, 30, THETA)
    assert whole.length.tolist() == whole.next.tolist() == [0, 0]
    fresh = decoder.init_cache(2, capacity=64)
    for way in (whole, slide(cache, jnp.asarray([30, 30]), None, THETA)):
        found = extend(decoder, x[:, :10], way, jnp.asarray([10, 10]))[0]
        wanted = extend(decoder, x[:, :10], fresh, jnp.asarray([10, 10]))[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_eviction_over_and_over_does_not_drift(decoder, x):
    """Slid 100 times, a window equals itself evicted once: sink and ring keys stay as written."""
    cache = decoder.init_cache(2, capacity=16, sink=8)
    _, cache = fill(decoder, x[:, :10], cache)
    pinned = jnp.asarray([[8, 9, 10, 11, -1, -1, -1, -1]] * 2)
    cache = slide(cache, jnp.asarray([4, 4]), pinned, THETA)
    before = jax.tree.leaves(cache.k)[0]
    for i in range(100):
        cache = slide(cache, jnp.asarray([5, 5]), None, THETA)
        _, cache = extend(decoder, x[:, i % 50 : i % 50 + 5], cache, jnp.asarray([5, 5]))
    after = jax.tree.leaves(cache.k)[0]
    np.testing.assert_array_equal(before[..., :8, :], after[..., :8, :])
    assert cache.next.tolist() == [10, 10] and cache.shift.tolist() == [500, 500]


def test_what_does_not_fit_is_said(decoder, x):
    cache = decoder.init_cache(2, capacity=16)
    with pytest.raises(ValueError, match="cannot take a chunk of 20: its capacity is 16"):
        decoder.extend(x[:, :20], cache)
    _, cache = decoder.extend(x[:, :10], cache)
    with pytest.raises(ValueError, match="holds 10 tokens and cannot take a chunk of 7"):
        decoder.extend(x[:, :7], cache)
    with pytest.raises(ValueError, match=r"cannot forget tokens \[4, 4\] to \[11, 11\]"):
        kv.evict(cache, 4, 11, THETA)
    with pytest.raises(ValueError, match="capacity is 0"):
        decoder.init_cache(1, capacity=0)


def test_explicit_positions_are_those_of_the_retained(decoder, x):
    """After a slide, positions are given as if the forgotten tokens had never been."""
    _, cache = fill(decoder, x[:, :30], decoder.init_cache(2, capacity=64))
    slid = slide(cache, jnp.asarray([10, 10]), None, THETA)
    implied, _ = decoder.extend(x[:, 30:35], slid)
    stated, after = decoder.extend(
        x[:, 30:35], slid, positions=jnp.asarray([[20, 21, 22, 23, 24]] * 2)
    )
    np.testing.assert_allclose(implied, stated, atol=1e-6)
    jumped, after = decoder.extend(x[:, 30:31], slid, positions=jnp.asarray([[40]] * 2))
    assert after.next.tolist() == [41, 41] and np.abs(jumped - stated[:, :1]).max() > 1e-4


def test_a_step_updates_the_donated_cache_in_place():
    """One token into a long cache: the compiler reserves almost nothing beside it."""
    decoder = jax.jit(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))()
    decoder.layers = unstack(decoder.layers, CONFIG.num_hidden_layers)  # what a CPU's stream runs
    cache = decoder.init_cache(1, capacity=4096, sink=64)
    step = jax.jit(lambda m, x, cache: m.extend(x, cache), donate_argnums=2)
    compiled = step.lower(decoder, jnp.zeros((1, 1, 32)), cache).compile().memory_analysis()
    held = sum(a.nbytes for a in jax.tree.leaves((cache.k, cache.v)))
    assert compiled.alias_size_in_bytes >= held
    assert compiled.temp_size_in_bytes < held / 4
