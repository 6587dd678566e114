"""A StreamFormer's stream: the offline forward frame by frame, in place and in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig, fold
from streamjax.stream import program

SIDE = 16


@pytest.fixture(scope="module")
def model():
    config = StreamFormerConfig(
        image_size=SIDE, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, enable_causal_temporal=True,
        add_lora_spatial=True,
    )  # fmt: skip
    model = jax.jit(lambda: StreamFormer(config, rngs=nnx.Rngs(0)))()
    model.layers.gate[...] = jnp.ones(2)
    return model


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize("window", [None, 3])
def test_a_stream_equals_the_offline_forward(model, frames, window):
    stream = sj.Stream(model, tower_window=window)
    seen = [stream.push(frame) for frame in frames]
    clip = jnp.asarray((frames.astype(np.float32) / 255 - 0.5) / 0.5)[None]
    offline = jax.jit(lambda m, x: m(x, time_rule="hold", window=window or 4))(model, clip)
    np.testing.assert_allclose(np.stack([f.tokens for f in seen]), offline.tokens[0], atol=1e-5)
    np.testing.assert_allclose(np.stack([f.pooled for f in seen]), offline.pooled[0], atol=1e-5)
    assert [f.index for f in seen] == list(range(12))
    assert set(seen[0].latency) == {"prepare", "encode", "total"}


def test_normalised_floats_and_bytes_are_the_same_frame(model, frames):
    one, other = sj.Stream(model), sj.Stream(model)
    floats = (frames[0].astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(one.push(frames[0]).pooled, other.push(floats).pooled, atol=1e-6)


def test_one_program_in_place_and_constant_memory(model, frames):
    stream = sj.Stream(model, tower_window=5)
    stream.push(frames[0])
    programs, live = program.features._cache_size(), []
    for i in range(600):
        stream.push(frames[i % 12])
        if i % 200 == 199:
            live.append(sum(a.nbytes for a in jax.live_arrays()))
    assert program.features._cache_size() == programs and len(set(live)) == 1


def test_the_ring_is_updated_in_place(model):
    """A long window: what the program reserves beside the donated ring is a small part of it."""
    form, leaves, folded = program.prepare(model, fold)
    cache = folded.init_cache(1, height=SIDE, width=SIDE, capacity=2048)
    frame = jnp.zeros((1, 1, SIDE, SIDE, 3))
    used = program.features.lower(form, leaves, frame, cache).compile().memory_analysis()
    held = sum(a.nbytes for a in jax.tree.leaves((cache.k, cache.v)))
    assert used.alias_size_in_bytes >= held and used.temp_size_in_bytes < held / 4


def test_sizes_do_not_change_midway(model):
    stream = sj.Stream(model)
    stream.push(np.zeros((SIDE, SIDE, 3), np.float32))
    with pytest.raises(ValueError, match="one stream has one size"):
        stream.push(np.zeros((SIDE, 2 * SIDE, 3), np.float32))
