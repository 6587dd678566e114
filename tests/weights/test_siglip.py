"""SigLIP -> StreamFormer: copied tensors exact, drawn ones by rule (golden g)."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import streamjax as sj
from streamjax.errors import InputError
from streamjax.weights import safetensors
from streamjax.weights.siglip import streamformer_from_siglip


@pytest.fixture(scope="module")
def case(golden):
    folder = golden / "streamformer" / "g_init_from_siglip"
    io, _ = safetensors.read_file(folder / "io.safetensors")
    return folder, io, json.loads((folder / "case.json").read_text())


@pytest.fixture
def siglip(case, tmp_path):
    _, io, about = case
    folder = tmp_path / "siglip"
    folder.mkdir()
    config = {"model_type": "siglip", **about["siglip_config"]}
    (folder / "config.json").write_text(json.dumps(config))
    state = {n.removeprefix("siglip_state."): a for n, a in io.items() if n.startswith("siglip_st")}
    safetensors.write_file(folder / "model.safetensors", state, {"format": "pt"})
    return folder


def test_writes_the_checkpoint_that_the_tool_writes(case, siglip, tmp_path):
    folder, io, about = case
    sj.save(streamformer_from_siglip(siglip, seed=0, num_frames=4), tmp_path / "out")
    found, _ = safetensors.read_file(tmp_path / "out" / "model.safetensors")
    wanted, _ = safetensors.read_file(folder / "model.safetensors")
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in wanted.items()}
    for ours, theirs in about["copied_key_for_key"].items():
        source = io["siglip_state." + theirs]
        assert found[ours].tobytes() == source.tobytes(), ours
        assert found[ours].tobytes() == wanted[ours].tobytes(), ours
    for name in found:
        if "attention.attention.qkv" in name and "temporal" not in name:
            assert found[name].tobytes() == wanted[name].tobytes(), name
        drawn = "time_embeddings", "temporal_attention.", "temporal_dense"
        if any(part in name for part in drawn) and not name.endswith("mask"):
            assert 0.01 < found[name].std() < 0.03 and abs(found[name].mean()) < 0.01, name
        if "temporal_layernorm" in name or name.endswith(("gating", "mask")):
            np.testing.assert_array_equal(found[name], wanted[name])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.items() >= about["streamformer_config_written_by_tool"].items()


def test_the_released_form_of_the_folder_gives_the_original_numbers(case):
    folder, io, _ = case
    frames = jnp.asarray(io["pixel_values"]).transpose(0, 1, 3, 4, 2)
    out = sj.load(folder)(frames)
    np.testing.assert_allclose(
        out.tokens, io["streamformer.last_hidden_state"], atol=5e-5, rtol=1e-4
    )
    np.testing.assert_allclose(out.pooled, io["streamformer.pooler_output"], atol=5e-5, rtol=1e-4)


def test_with_closed_gates_and_no_time_it_is_siglip(case, siglip):
    _, io, _ = case
    model = streamformer_from_siglip(siglip, seed=1, num_frames=4, hidden_act="gelu_pytorch_tanh")
    model.time[...] = jnp.zeros_like(model.time[...])
    out = model(jnp.asarray(io["pixel_values"]).transpose(0, 1, 3, 4, 2))
    np.testing.assert_allclose(out.pooled, io["siglip.pooler_output"], atol=5e-5, rtol=1e-4)


def test_what_is_no_siglip_folder(siglip):
    with pytest.raises(InputError, match="make one with .*streamformer_from_siglip"):
        sj.load(siglip)
    path = siglip / "model.safetensors"
    tensors, _ = safetensors.read_file(path)
    good = {name: np.array(a) for name, a in tensors.items()}
    safetensors.write_file(path, good | {"vision_model.extra": good["logit_scale"]}, {})
    with pytest.raises(InputError, match="vision_model.extra belongs to no part"):
        streamformer_from_siglip(siglip, seed=0)
    del good["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    safetensors.write_file(path, good, {})
    with pytest.raises(InputError, match=r"layers.1.self_attn.k_proj.bias is missing"):
        streamformer_from_siglip(siglip, seed=0)
    (siglip / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="model_type is 'clip', wanted 'siglip'"):
        streamformer_from_siglip(siglip, seed=0)
