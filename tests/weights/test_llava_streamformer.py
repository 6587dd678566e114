"""LLaVA-StreamFormer's folders: bit-equal round trips, and what is wrong with a folder."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.errors import InputError
from streamjax.models.llava_streamformer import LlavaStreamFormer
from streamjax.weights import safetensors

FAMILIES = ("llava_streamformer_qwen2", "llava_streamformer_llama")


@pytest.fixture
def folder(golden, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(golden / FAMILIES[0], copy)
    return copy


def edit(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_equal(golden, tmp_path, family):
    model = sj.load(golden / family)
    assert model.dtype == model.tower.dtype == model.decoder.dtype == "bfloat16"
    assert model.config.tower.add_lora_spatial  # its config does not say so; its tensors do
    sj.save(model, tmp_path / "saved")
    before, _ = safetensors.read_folder(golden / family)
    after, metadata = safetensors.read_folder(tmp_path / "saved")
    assert before.keys() == after.keys() and metadata == {"format": "pt"}
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert np.asarray(tensor).tobytes() == np.asarray(after[name]).tobytes(), name
    for name in ("config.json", "vision_tower_config.json"):
        found = json.loads((tmp_path / "saved" / name).read_text())
        wanted = json.loads((golden / family / name).read_text())
        assert wanted.items() <= {k: found[k] for k in wanted}.items() or wanted == {
            k: found[k] for k in wanted
        }


def test_a_model_of_our_own_survives_the_original_layout(golden, tmp_path):
    """No LoRA in the tower: written as zeros, which the original needs, and read as none."""
    config = sj.load(golden / FAMILIES[0]).config
    config = dataclasses.replace(
        config,
        tower=dataclasses.replace(config.tower, add_lora_spatial=False),
        decoder=dataclasses.replace(config.decoder, tie_word_embeddings=True),
        mm_newline_position="frame",
    )
    model = jax.jit(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0)))()
    sj.save(model, tmp_path / "saved")
    tensors, _ = safetensors.read_folder(tmp_path / "saved")
    lora = [name for name in tensors if "_lora_" in name]
    assert lora and not any(np.asarray(tensors[name]).any() for name in lora)
    assert "lm_head.weight" not in tensors
    again = sj.load(tmp_path / "saved")
    assert again.config == config
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_tower_config_beside_the_weights_wins(folder):
    edit(folder / "vision_tower_config.json", layer_norm_eps=0.5)
    assert sj.load(folder).config.tower.layer_norm_eps == 0.5
    (folder / "vision_tower_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vision_tower_config.json: missing, and so is"):
        sj.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hiden_size=48), "unknown key 'hiden_size': did you mean 'hidden_size'"),
        (dict(mm_newline_postion="grid"), "unknown key 'mm_newline_postion': did you mean"),
        (dict(mm_newline_position="rows"), "mm_newline_position is 'rows', wanted one of"),
        (dict(mm_projector_type="linear"), "mm_projector_type is 'linear', wanted 'mlp2x_gelu'"),
        (dict(hidden_size="absent"), "hidden_size is missing, wanted a number"),
        (dict(mm_hidden_size=64), "mm_hidden_size is 64, wanted the tower's hidden_size=32"),
        (
            dict(rope_scaling={"type": "linear", "factor": 2}),
            "rope of type 'linear', wanted default",
        ),
        (dict(use_sliding_window=True), "use_sliding_window is True, wanted False"),
        (dict(num_key_value_heads=3), "num_attention_heads is 4, wanted a multiple of"),
        (dict(vocab_size=201), r"embed_tokens.weight has shape \[200, 48\], wanted \[201, 48\]"),
    ],
)
def test_a_config_that_is_wrong_is_one_line(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        sj.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_newer_style_of_config(folder):
    """transformers 5 nests the rope; 4.x says rope_theta."""
    before = sj.load(folder).config
    edit(folder / "config.json", rope_theta="absent", rope_scaling="absent",
         rope_parameters={"rope_type": "default", "rope_theta": 1e6})  # fmt: skip
    assert sj.load(folder).config == before


def test_tensors_that_are_wrong_are_named(folder):
    tensors, metadata = safetensors.read_folder(folder)
    file = folder / "model.safetensors"
    for change, message in (
        ({"model.norm.weight": None}, "tensor model.norm.weight is missing"),
        ({"model.nrm.weight": tensors["model.norm.weight"]}, "model.nrm.weight belongs to no part"),
        ({"model.norm.weight": np.zeros(3, np.float32)}, r"shape \[3\], wanted \[48\]"),
    ):
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        safetensors.write_file(file, {k: np.array(v) for k, v in changed.items()}, metadata)
        with pytest.raises(InputError, match=message):
            sj.load(folder)
