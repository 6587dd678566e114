"""InternVL3's folders: three layouts, three styles, full-size manifests, and what is wrong."""

import dataclasses
import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.errors import InputError
from streamjax.models.internvl import SIZES, InternVL
from streamjax.weights import internvl, safetensors, table


@pytest.fixture(scope="module")
def hub(golden):
    return sj.load(golden / "internvl")


def edit(path, **changes):
    """Changes config.json; "text_config.hidden_size" names a setting below, "absent" removes it."""
    config = json.loads(path.read_text())
    for key, value in changes.items():
        *above, last = key.split(".")
        part = config
        for name in above:
            part = part[name]
        part[last] = value
        if value == "absent":
            del part[last]
    path.write_text(json.dumps(config))


def equal(a, b):
    a, b = (dict(nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in (a, b))
    assert a.keys() == b.keys()
    for path in a:
        found, wanted = (np.asarray(side[path].get_value()) for side in (a, b))
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


def test_round_trip_is_bit_equal(golden, tmp_path, hub):
    assert hub.dtype == hub.visual.dtype == hub.decoder.dtype == "bfloat16"
    sj.save(hub, tmp_path / "saved")
    before, _ = safetensors.read_folder(golden / "internvl")
    after, metadata = safetensors.read_folder(tmp_path / "saved")
    assert before.keys() == after.keys() and metadata == {"format": "pt"}
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        a, b = (np.asarray(t).view(np.uint16) for t in (tensor, after[name]))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("style", ["config_hub_style.json", "config.json", "original"])
def test_every_style_is_saved_in_the_hubs(golden, tmp_path, hub, style):
    folder = tmp_path / "model"
    if style == "original":
        shutil.copytree(golden / "internvl_opengvlab_keys", folder)
        (folder / "added_tokens.json").write_text('{"<img>": 250, "<IMG_CONTEXT>": 242}')
    else:
        shutil.copytree(golden / "internvl", folder)
        shutil.copy(golden / "internvl" / style, folder / "config.json")
    model = sj.load(folder)
    assert model.config == dataclasses.replace(
        hub.config,
        vision=dataclasses.replace(
            hub.config.vision, initializer_range=model.config.vision.initializer_range
        ),
    )
    equal(model, hub)
    sj.save(model, tmp_path / "saved")
    found = json.loads((tmp_path / "saved" / "config.json").read_text())
    wanted = json.loads((golden / "internvl" / "config_hub_style.json").read_text())
    if style == "original":  # it has no settings that nothing reads
        for part in ("text_config", "vision_config"):
            unread = wanted[part].keys() - found[part].keys()
            assert all(wanted[part].pop(key) in (False, True, None, 0.0) for key in unread)
        wanted["text_config"]["use_cache"] = False
        for key in ("vision_feature_layer", "vision_feature_select_strategy"):
            del wanted[key]  # their only values
    wanted["tie_word_embeddings"] = False  # said, because the classes' defaults disagree
    if style != "config_hub_style.json":
        del wanted["transformers_version"]
    assert found == wanted
    again = sj.load(tmp_path / "saved")
    assert again.config == model.config
    equal(again, hub)


def test_native_names_and_a_tied_head(golden, tmp_path, hub):
    tensors, _ = safetensors.read_folder(golden / "internvl")
    names = {name: internvl._named(name, "native") for name in tensors}
    assert names["language_model.lm_head.weight"] == "lm_head.weight"
    assert names["language_model.model.norm.weight"] == "model.language_model.norm.weight"
    assert names["vision_tower.embeddings.cls_token"] == "model.vision_tower.embeddings.cls_token"
    folder = tmp_path / "native"
    folder.mkdir()
    shutil.copy(golden / "internvl" / "config.json", folder)
    native = {names[name]: np.asarray(tensor) for name, tensor in tensors.items()}
    safetensors.write_folder(folder, native)
    equal(sj.load(folder), hub)

    del native["lm_head.weight"]
    safetensors.write_folder(folder, native)
    tied = sj.load(folder)  # its config says that it is not
    assert tied.config.decoder.tie_word_embeddings and tied.decoder.head is None
    sj.save(tied, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["tie_word_embeddings"] and config["text_config"]["tie_word_embeddings"]
    again, _ = safetensors.read_folder(tmp_path / "saved")
    assert again.keys() == tensors.keys() - {"language_model.lm_head.weight"}


def test_a_model_of_our_own(tmp_path, rng):
    """The options of InternViT-6B: root-mean-square norms, also of q and k, and no biases there."""
    small = SIZES["1B"]
    config = dataclasses.replace(
        small,
        vision=dataclasses.replace(
            small.vision, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, image_size=28, norm_type="rms_norm", use_qk_norm=True,
            attention_bias=False,
        ),
        decoder=dataclasses.replace(
            small.decoder, vocab_size=64, hidden_size=28, intermediate_size=16,
            num_hidden_layers=2,
        ),
        image_token_id=60,
    )  # fmt: skip
    graph, shapes = nnx.split(nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0))))
    values = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape, np.float32)), shapes)
    model = nnx.merge(graph, values)
    sj.save(model, tmp_path / "saved")
    again = sj.load(tmp_path / "saved")
    assert again.config == config
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("size", SIZES)
def test_full_size_manifests_map_one_to_one(golden, size, layout):
    path = golden / "manifests" / f"InternVL3-{size}-{layout}.json.gz"
    manifest = json.loads(gzip.decompress(path.read_bytes()))
    wanted = {name: tuple(shape) for name, (shape, _) in manifest["tensors"].items()}
    for name in [name for name in wanted if ".attn.qkv." in name]:
        rows, *rest = wanted.pop(name)
        for x in "qkv":
            wanted[name.replace(".qkv.", f".qkv.{x}.")] = (rows // 3, *rest)
    model = nnx.eval_shape(lambda: InternVL(SIZES[size], rngs=nnx.Rngs(0)))
    rules = internvl.rules(SIZES[size], "hub" if layout == "hf" else "original")
    assert {name for name in wanted if internvl.layout_of([name]) != "hub"} or layout == "hf"
    tensors = table.dump(nnx.state(model, nnx.Param), rules)
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
    total = sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert total == manifest["n_params"]


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        (
            "internvl",
            {"image_token": 1},
            "unknown key 'image_token': did you mean 'image_token_id'",
        ),
        ("internvl", {"text_config.hiden_size": 1}, "text_config: unknown key 'hiden_size': did"),
        ("internvl", {"text_config.hidden_size": "absent"}, "text_config: hidden_size is missing"),
        ("internvl", {"text_config": "absent"}, "text_config is None, wanted an object"),
        ("internvl", {"text_config.model_type": "internlm2"}, "is 'internlm2', wanted 'qwen2'"),
        ("internvl", {"text_config.vocab_size": 99}, r"\[256, 64\], wanted \[99, 64\] by config"),
        (
            "original",
            {"llm_config.rope_scaling": {"type": "dynamic", "factor": "2"}},
            "factor is '2', wanted a number",
        ),
        ("internvl", {"vision_config.norm": 1}, "vision_config: unknown key 'norm': did you mean"),
        ("internvl", {"vision_config.use_mean_pooling": False}, "is False, wanted True"),
        ("internvl", {"vision_config.image_size": [24, 28]}, r"\[24, 28\], wanted a square"),
        ("internvl", {"vision_config.norm_type": "rms"}, "norm_type is 'rms', wanted one of"),
        ("internvl", {"vision_feature_layer": -2}, "vision_feature_layer is -2, wanted -1"),
        ("internvl", {"image_token_id": "242"}, "image_token_id is '242', wanted a token's id"),
        ("internvl", {"downsample_ratio": 0.25}, "downsample_ratio is 0.25, wanted 1 / n"),
        ("original", {"ps_version": "v1"}, "ps_version is 'v1', wanted 'v2'"),
        ("original", {"select_layer": -4}, "select_layer is -4, wanted -1"),
        ("original", {"llm_confg": {}}, "unknown key 'llm_confg'"),
        ("original", {"vision_config.qkv_bias": "absent"}, "vision_config: qkv_bias is missing"),
        ("original", {"vision_config.use_moe": True}, "use_moe is True, wanted False"),
        ("original", {"vision_config.qkv_biass": 1}, "vision_config: unknown key 'qkv_biass'"),
    ],
)
def test_a_config_that_is_wrong_is_one_line(golden, tmp_path, folder, changes, message):
    name = "internvl_opengvlab_keys" if folder == "original" else "internvl"
    shutil.copytree(golden / name, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        sj.load(tmp_path / "model")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_tensors_that_are_wrong_are_one_line(golden, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(golden / "internvl_opengvlab_keys", folder)
    tensors, _ = safetensors.read_folder(folder)
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    qkv = "vision_model.encoder.layers.1.attn.qkv.weight"

    def refused(changed, message):
        safetensors.write_folder(folder, {k: v for k, v in changed.items() if v is not None})
        with pytest.raises(InputError, match=message):
            sj.load(folder)

    refused(tensors | {qkv: tensors[qkv][:-1]}, r"qkv.weight has shape \[95, 32\], wanted a mult")
    refused(tensors | {qkv: tensors[qkv][:-3]}, r"qkv.q.weight has shape \[31, 32\], wanted \[32")
    refused(tensors | {qkv: None}, "tensor .*layers.1.attn.qkv.q.weight is missing")
    refused(tensors | {"mlp1.2.weight": tensors[qkv]}, "mlp1.2.weight belongs to no part")
    bad = np.full_like(tensors["mlp1.0.bias"], np.nan)
    refused(tensors | {"mlp1.0.bias": bad}, "tensor mlp1.0.bias holds values that are not finite")


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_the_placeholder_is_in_the_tokenizer(golden, tmp_path, file):
    token = {"content": "<IMG_CONTEXT>"}
    content = {
        "added_tokens.json": {"<IMG_CONTEXT>": 242},
        "tokenizer_config.json": {"added_tokens_decoder": {"1": {"content": "a"}, "242": token}},
        "tokenizer.json": {"added_tokens": [{"id": 1, "content": "a"}, token | {"id": 242}]},
    }
    shutil.copy(golden / "internvl_opengvlab_keys" / "config.json", tmp_path)
    (tmp_path / file).write_text(json.dumps(content[file]))
    raw = json.loads((tmp_path / "config.json").read_text())
    model = internvl.blank(raw, tmp_path / "config.json")
    assert model.placeholders == (242,)


def test_a_folded_model_is_not_saved(hub, tmp_path):
    with pytest.raises(ValueError, match="a folded model cannot be saved"):
        sj.save(hub.fold(), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
def test_loading_onto_a_mesh(golden, hub):
    mesh = sj.sharding.make_mesh(fsdp=4, tensor=2)
    model = sj.load(golden / "internvl_opengvlab_keys", mesh=mesh)
    assert len(model.visual.layers.q.kernel[...].sharding.device_set) == 8
    equal(jax.tree.map(jnp.asarray, jax.device_get(model)), hub)
