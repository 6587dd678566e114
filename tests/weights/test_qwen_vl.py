"""Folders of Qwen2.5-VL and Qwen3-VL: every layout and style, full-size names, what is wrong."""

import gzip
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.errors import InputError
from streamjax.models import qwen2_5_vl, qwen3_vl
from streamjax.weights import qwen_vl, safetensors, table

FOLDERS = (
    "qwen2_5_vl", "qwen2_5_vl_tied_sharded", "qwen2_5_vl_tied_sharded_nativekeys", "qwen3_vl",
)  # fmt: skip
FULL = {
    "Qwen2.5-VL-3B-Instruct": (qwen2_5_vl.SIZES["3B"], qwen2_5_vl.Qwen2_5_VL),
    "Qwen2.5-VL-7B-Instruct": (qwen2_5_vl.SIZES["7B"], qwen2_5_vl.Qwen2_5_VL),
    "Qwen3-VL-2B-Instruct": (qwen3_vl.SIZES["2B"], qwen3_vl.Qwen3_VL),
    "Qwen3-VL-4B-Instruct": (qwen3_vl.SIZES["4B"], qwen3_vl.Qwen3_VL),
    "Qwen3-VL-8B-Instruct": (qwen3_vl.SIZES["8B"], qwen3_vl.Qwen3_VL),
}


def family_of(name):
    kind = "qwen3_vl" if "3_vl" in name or "Qwen3" in name else "qwen2_5_vl"
    return importlib.import_module(f"streamjax.weights.{kind}")


def raw_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture
def folder(golden, tmp_path):
    def make(name):
        shutil.copytree(golden / name, tmp_path / "model")
        return tmp_path / "model"

    return make


def rewrite(folder, change):
    tensors, metadata = safetensors.read_folder(folder)
    tensors = {name: np.array(a) for name, a in tensors.items()}
    change(tensors)
    safetensors.write_file(folder / "model.safetensors", tensors, metadata)


def configure(folder, **keys):
    config = raw_of(folder) | keys
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "no"}))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_round_trip_is_bit_equal_and_in_the_hubs_layout(golden, tmp_path, name):
    model = sj.load(golden / name)
    sj.save(model, tmp_path / "saved")
    after, metadata = safetensors.read_folder(tmp_path / "saved")
    before, _ = safetensors.read_folder(golden / name.removesuffix("_nativekeys"))
    assert before.keys() == after.keys() and metadata == {"format": "pt"}
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert np.asarray(tensor).tobytes() == np.asarray(after[key]).tobytes(), key
    assert ("lm_head.weight" in after) == (name == "qwen2_5_vl")
    assert model.dtype == model.decoder.dtype == before["model.norm.weight" if "2_5" in name else
        "model.language_model.norm.weight"].dtype  # fmt: skip

    again = sj.load(tmp_path / "saved")
    assert again.config == model.config
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("name", [n for n in FOLDERS if "native" not in n])
def test_both_styles_of_config_are_one_and_the_hubs_is_written(golden, folder, name):
    family, where = family_of(name), golden / name
    newer, hub = raw_of(where), raw_of(where, "config_hub_style.json")
    assert family.config_of(newer, "a") == family.config_of(hub, "b")
    copy = folder(name)
    shutil.copyfile(copy / "config_hub_style.json", copy / "config.json")
    raw, _ = family.dump(sj.load(copy))
    assert raw == hub
    written, _ = family.dump(sj.load(where))
    assert {k: v for k, v in written.items() if hub.get(k) != v} in ({}, {"sliding_window": None})
    text = json.dumps(written)
    assert "rope_parameters" not in text and "layer_types" not in text


def test_the_mixed_style_of_transformers_4_57(golden):
    """Flat settings and a text_config that repeats them, ids and all; tie flags left out."""
    family, where = family_of("qwen2_5_vl"), golden / "qwen2_5_vl"
    hub = raw_of(where, "config_hub_style.json")
    text = {k: v for k, v in hub.items() if k not in ("vision_config", "tie_word_embeddings")}
    text |= {"model_type": "qwen2_5_vl_text", "layer_types": ["full_attention"] * 2}
    text |= {"image_token_id": None, "vision_token_id": 246, "sliding_window": None}
    text["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}
    mixed = hub | {"text_config": text, "dtype": "float32", "vision_token_id": 246}
    assert family.config_of(mixed, "a") == family.config_of(hub, "b")


@pytest.mark.parametrize("name", FULL)
def test_full_size_manifests_map_one_to_one(golden, name):
    config, make = FULL[name]
    packed = (golden / "manifests" / f"{name}.json.gz").read_bytes()
    manifest = json.loads(gzip.decompress(packed))
    model = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    family = family_of(name).FAMILY
    tensors = manifest["tensors"]
    layout = qwen_vl.layout_of(family, tensors)
    assert layout == family.layouts[0]
    found = table.dump(state, qwen_vl.rules(family, config, layout))
    assert {k: list(a.shape) for k, a in found.items()} == {k: s for k, (s, _) in tensors.items()}
    assert sum(a.size for a in jax.tree.leaves(state)) == manifest["n_params"]
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata()["out_sharding"]
        assert len(names) == len(variable.get_value().shape), path


@pytest.mark.parametrize("says", [True, False])
def test_the_head_is_tied_where_there_is_none(golden, folder, says):
    copy = folder("qwen2_5_vl")
    configure(copy, tie_word_embeddings=says)
    assert not sj.load(copy).config.decoder.tie_word_embeddings
    rewrite(copy, lambda tensors: tensors.pop("lm_head.weight"))
    model = sj.load(copy)
    assert model.decoder.head is None and model.config.decoder.tie_word_embeddings
    assert family_of("qwen2_5_vl").dump(model)[0]["tie_word_embeddings"] is True


def test_a_fresh_model_is_saved_and_loaded(golden, tmp_path):
    config = sj.load(golden / "qwen3_vl").config
    shapes = nnx.eval_shape(lambda: qwen3_vl.Qwen3_VL(config, rngs=nnx.Rngs(0)))
    model = jax.tree.map(lambda a: jnp.full(a.shape, 0.5), shapes)
    sj.save(model, tmp_path / "fresh")
    raw = raw_of(tmp_path / "fresh")
    assert raw["torch_dtype"] == "float32" and raw["text_config"]["rope_theta"] == 5e6
    again = sj.load(tmp_path / "fresh")
    assert again.config == config
    np.testing.assert_array_equal(again.visual.position[...], model.visual.position[...])
    with pytest.raises(ValueError, match="a folded model cannot be saved"):
        sj.save(model.fold(), tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2_5_vl", lambda t: t.pop("visual.merger.ln_q.weight"),
         "visual.merger.ln_q.weight is missing, wanted shape"),
        ("qwen2_5_vl", lambda t: t.update({"visual.merger.ln_k.weight": np.ones(32, "f4")}),
         "ln_k.weight belongs to no part .*; nearest known name: visual.merger.ln_q.weight"),
        ("qwen2_5_vl", lambda t: t.update({"model.norm.weight": np.ones(63, "f4")}),
         r"model.norm.weight has shape \[63\], wanted \[64\]"),
        ("qwen3_vl", lambda t: t.pop("model.visual.pos_embed.weight"), "pos_embed.weight is missi"),
        ("qwen3_vl", lambda t: t.update(
            {"model.visual.deepstack_merger_list.2.norm.weight": np.ones(128, "f4")}),
         "deepstack_merger_list.2.norm.weight belongs to no part"),
    ],
)  # fmt: skip
def test_wrong_tensors(folder, name, change, message):
    copy = folder(name)
    rewrite(copy, change)
    with pytest.raises(InputError, match=message):
        sj.load(copy)


def nested(key, **changes):
    def change(raw):
        inner = {k: v for k, v in (raw[key] | changes).items() if v != "no"}
        return raw | {key: inner}

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qwen2_5_vl", lambda raw: raw | {"image_token_di": 3},
         "unknown key 'image_token_di': did you mean 'image_token_id'"),
        ("qwen2_5_vl", lambda raw: raw | {"hiden_size": 3}, "'hiden_size': did you mean 'hidden_si"),
        ("qwen2_5_vl", lambda raw: raw | {"decoder": 3}, "unknown key 'decoder'"),
        ("qwen2_5_vl", lambda raw: raw | {"image_token_id": "x"}, "image_token_id is 'x', wanted a"),
        ("qwen2_5_vl", nested("text_config", hiden_size=3), "'hiden_size': did you mean 'hidden_"),
        ("qwen2_5_vl", nested("text_config", hidden_size="no"), "hidden_size is missing"),
        ("qwen2_5_vl", nested("text_config", rope_parameters={"rope_theta": 1e6}),
         "mrope_section is missing"),
        ("qwen2_5_vl", lambda raw: raw | {"text_config": [1]}, r"text_config is \[1\], wanted an obj"),
        ("qwen2_5_vl", nested("text_config", rope_parameters="mrope"), "rope_scaling is 'mrope', wan"),
        ("qwen2_5_vl", nested("text_config", rope_parameters={"mrope_section": [8]}),
         r"mrope_section is \[8\], wanted three whole numbers"),
        ("qwen2_5_vl", nested("text_config", rope_parameters={"rope_type": "yarn"}),
         "rope of type 'yarn', wanted default, mrope or dynamic"),
        ("qwen3_vl", nested("text_config", rope_parameters={
            "mrope_section": [4, 2, 2], "mrope_interleaved": False}),
         "mrope_interleaved is False, wanted True of this family"),
        ("qwen2_5_vl", nested("vision_config", windw_size=3), "'windw_size': did you mean 'window_"),
        ("qwen2_5_vl", nested("vision_config", window_size="no"), "window_size is missing"),
        ("qwen2_5_vl", nested("vision_config", fullatt_block_indexes=["1"]), "wanted whole numbers"),
        ("qwen2_5_vl", nested("vision_config", depth=2), "wanted rising numbers below depth=2"),
        ("qwen2_5_vl", nested("vision_config", out_hidden_size=63), "wanted the language model's"),
        ("qwen2_5_vl", nested("vision_config", spatial_patch_size=3), "differs from patch_size"),
        ("qwen2_5_vl", lambda raw: raw | {"vision_config": None}, "vision_config is None, wanted"),
        ("qwen3_vl", nested("text_config", attention_bias=True), "attention_bias is True, wanted"),
        ("qwen3_vl", nested("vision_config", rope_parameters={"rope_theta": 1.0}), "wanted {'rope_"),
    ],
)  # fmt: skip
def test_wrong_config(golden, name, change, message):
    with pytest.raises(InputError, match=message) as error:
        family_of(name).config_of(change(raw_of(golden / name)), "here/config.json")
    assert str(error.value).startswith("here/config.json: ") and "\n" not in str(error.value)
