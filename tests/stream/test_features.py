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
    for i in range(10_000):
        stream.push(frames[i % 12])
        if i % 2000 == 1999:
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


def test_a_frame_of_the_base_model_reserves_little():
    """224 pixels, 12 layers of 768, a window of 16: compiled from shapes, no weight is made."""
    config = StreamFormerConfig(enable_causal_temporal=True, add_lora_spatial=True)

    def folded():
        return fold(StreamFormer(config, rngs=nnx.Rngs(0)))

    def push(model, frame, cache):
        return model.step(frame, cache, time_rule="hold")

    model = nnx.eval_shape(folded)
    cache = jax.eval_shape(lambda: folded().init_cache(1, height=224, width=224, capacity=16))
    frame = jax.ShapeDtypeStruct((1, 1, 224, 224, 3), jnp.float32)
    used = jax.jit(push, donate_argnums=2).lower(model, frame, cache).compile().memory_analysis()
    held = sum(a.size * 4 for a in jax.tree.leaves((cache.k, cache.v)))
    assert used.alias_size_in_bytes >= held  # 231 MB, updated in place
    assert used.temp_size_in_bytes < 10 * 2**20


def test_sizes_do_not_change_midway(model):
    stream = sj.Stream(model)
    stream.push(np.zeros((SIDE, SIDE, 3), np.float32))
    with pytest.raises(ValueError, match="one stream has one size"):
        stream.push(np.zeros((SIDE, 2 * SIDE, 3), np.float32))
