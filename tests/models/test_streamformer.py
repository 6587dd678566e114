"""StreamFormer against the original's numbers, and its stream against itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.models import streamformer
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig, fold
from streamjax.weights import safetensors

TINY = StreamFormerConfig(
    image_size=16, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, enable_causal_temporal=True, add_lora_spatial=True,
)  # fmt: skip


class Case:
    """One golden folder: the loaded model, its arrays, and frames in our layout."""

    def __init__(self, folder):
        self.model = sj.load(folder)
        self.io, _ = safetensors.read_file(folder / "io.safetensors")
        self.about = json.loads((folder / "case.json").read_text())

    def frames(self, name="pixel_values"):
        return jnp.asarray(self.io[name]).transpose(0, 1, 3, 4, 2)

    def check(self, found, name, atol=2e-5):
        np.testing.assert_allclose(found, self.io[name], atol=atol, rtol=1e-4, err_msg=name)

    def check_output(self, out, prefix="", atol=2e-5):
        self.check(out.tokens, prefix + "last_hidden_state", atol)
        self.check(out.pooled, prefix + "pooler_output", atol)


@pytest.fixture(scope="module")
def case(golden):
    return lambda name: Case(golden / "streamformer" / name)


forward = jax.jit(
    lambda m, x, **how: m(x, **how),
    static_argnames=("time_rule", "window", "return_intermediates"),
)
step = jax.jit(
    lambda m, x, cache, time_rule="stretch": m.step(x, cache, time_rule=time_rule),
    static_argnames="time_rule", donate_argnames="cache",
)  # fmt: skip


def run(model, frames, chunks, capacity, time_rule="stretch", advance=step):
    """Streams the frames in chunks; the outputs of all, and the last cache."""
    b, t, h, w, _ = frames.shape
    cache = model.init_cache(b, height=h, width=w, capacity=capacity)
    outs, start = [], 0
    for c in chunks:
        out, cache = advance(model, frames[:, start : start + c], cache, time_rule)
        outs.append(out)
        start += c
    assert start == t
    return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *outs), cache


@pytest.mark.parametrize(
    "name",
    [
        "a_backbone_causal_lora",
        "a2_backbone_act_eps_from_config",
        "b_backbone_bidirectional_nolora",
        "b2_backbone_causal_nolora",
    ],
)
def test_forward_equals_the_original(case, name):
    c = case(name)
    out = forward(c.model, c.frames(), return_intermediates=True)
    c.check_output(out, atol=2.3e-5)
    depth = c.model.config.num_hidden_layers
    assert len(out.hidden_states) == depth + 1 and len(out.attentions) == depth
    for i, state in enumerate(out.hidden_states):
        c.check(state, f"hidden_states.{i}", atol=5.8e-5)
    for i, probabilities in enumerate(out.attentions):
        if f"attentions.{i}" in c.io:
            c.check(probabilities, f"attentions.{i}")


def test_time_rows_follow_the_float32_rule(case):
    c = case("c_time_embedding_T")
    for t, rows in c.about["time_embedding_row_used_by_frame"].items():
        assert streamformer.time_rows(int(t), 4, "stretch").tolist() == rows
        assert streamformer.time_rows(int(t), 4, "hold").tolist() == [
            min(i, 3) for i in range(int(t))
        ]
        out = forward(c.model, c.frames(f"T{t}.pixel_values"), return_intermediates=True)
        c.check(out.hidden_states[0], f"T{t}.embeddings")
        c.check_output(out, f"T{t}.")
    for t, rows in c.about["torch_nearest_rows_for_num_frames_16"].items():
        assert streamformer.time_rows(int(t), 16, "stretch").tolist() == rows
        chunk = streamformer.stream_rows(jnp.array([0]), int(t), 16, "stretch")
        assert chunk[0].tolist() == rows


def test_other_frame_sizes_resample_the_position_table(case):
    c = case("d_position_embedding_interpolation")
    for size in c.about["geometry"]:
        c.check_output(forward(c.model, c.frames(f"{size}.pixel_values")), f"{size}.", atol=2.1e-5)


@pytest.mark.parametrize(
    "name", ["e1_stream_within_num_frames", "e2_stream_beyond_num_frames_patched"]
)
@pytest.mark.parametrize("folded", [False, True])
def test_stream_equals_the_original_chunk_by_chunk(case, name, folded):
    c = case(name)
    frames = c.frames()
    model = fold(c.model) if folded else c.model
    for plan, chunks in c.about["chunk_plans"].items():
        out, cache = run(model, frames, chunks, capacity=frames.shape[1])
        c.check_output(out, f"{plan}.", atol=5e-5)
        if "cache.0.key" in c.io:
            for i in range(c.model.config.num_hidden_layers):
                k, v = cache.k[i], cache.v[i]
                c.check(k.reshape(-1, *k.shape[2:]), f"cache.{i}.key", atol=5e-5)
                c.check(v.reshape(-1, *v.shape[2:]), f"cache.{i}.value", atol=5e-5)


def test_features_of_a_streaming_tower(case):
    """The original's tower returns a window of features, but attends to every cached frame."""
    c = case("e3_stream_tower_context_window")
    frames = c.frames()
    window, seen = c.about["context_length"], jnp.zeros((1, 0, 4, 32))
    cache = c.model.init_cache(1, height=16, width=16, capacity=frames.shape[1])
    start = 0
    for call, chunk in enumerate(c.about["chunks"]):
        out, cache = step(c.model, frames[:, start : start + chunk], cache)
        seen = jnp.concatenate([seen, out.tokens], axis=1)
        c.check(seen[:, -window:], f"call{call}.features", atol=5e-5)
        start += chunk
    out, _ = run(c.model, frames[:, :2], [2], capacity=6)
    c.check(out.tokens, "after_clear.features", atol=5e-5)


def test_fold_leaves_the_model_alone():
    model = StreamFormer(TINY, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(model))
    fold(model)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
