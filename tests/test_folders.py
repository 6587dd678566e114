"""Folders: what is loaded is saved bit for bit, and what is wrong is told in one line."""

import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.errors import InputError
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig, fold, with_lora
from streamjax.weights import safetensors

CASES = [
    "a_backbone_causal_lora",
    "b_backbone_bidirectional_nolora",
    "b2_backbone_causal_nolora",
    "g_init_from_siglip",
]


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the released architecture's case that a test may damage."""
    source = golden / "streamformer" / "c_time_embedding_T"
    home = tmp_path / "model"
    home.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, home / name)
    return home


def tensors_of(folder):
    return {name: np.asarray(a) for name, a in safetensors.read_folder(folder)[0].items()}


def rewrite(folder, change):
    """Applies `change` to a dict of the folder's tensors and writes it back."""
    tensors = {name: np.array(a) for name, a in tensors_of(folder).items()}
    change(tensors)
    safetensors.write_file(folder / "model.safetensors", tensors, {})


def configure(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def equal(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_is_bit_equal(golden, tmp_path, name):
    source = golden / "streamformer" / name
    model = sj.load(source)
    sj.save(model, tmp_path / "out")
    equal(tensors_of(tmp_path / "out"), tensors_of(source))
    before, after = (
        json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "out")
    )
    assert after.items() >= before.items() and after["model_type"] == "timesformer"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    sj.save(sj.load(tmp_path / "out"), tmp_path / "out")  # onto the files it came from
    equal(tensors_of(tmp_path / "out"), tensors_of(source))


def test_the_multi_task_form_keeps_what_stands_beside_the_backbone(folder, tmp_path):
    beside = {
        "logit_scale": np.float32(2), "logit_bias": np.float32(-1),
        "text_encoder.text_model.head.weight": np.ones((2, 2), np.float16),
        "task_heads.TaskVIS.w_v.weight": np.full((3, 3), np.nan, np.float32),
    }  # fmt: skip

    def prefix(tensors):
        for name in list(tensors):
            tensors[f"timesformer.{name}"] = tensors.pop(name)
        tensors.update({name: np.asarray(a) for name, a in beside.items()})

    bare = sj.load(folder)
    rewrite(folder, prefix)
    configure(folder, architectures=["X"], transformers_version="4.52.3", clip_config={"a": [1]})
    model = sj.load(folder)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(bare))
    sj.save(model, tmp_path / "out")
    equal(tensors_of(tmp_path / "out"), tensors_of(folder))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["clip_config"] == {"a": [1]} and config["architectures"] == ["X"]

    rewrite(folder, lambda t: t.update({"optimizer.step": np.zeros((), np.float32)}))
    with pytest.raises(InputError, match=r"optimizer.step belongs to no part"):
        sj.load(folder)


def test_trained_parameters_are_saved_and_extras_survive_a_step(folder, tmp_path):
    model = sj.load(folder)
    graph, state = nnx.split(model)
    state = jax.tree.map(lambda a: a + 1, state)
    sj.save(nnx.merge(graph, state), tmp_path / "out")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    for name in before:
        grown = 0 if name.endswith("mask") else 1
        np.testing.assert_allclose(after[name], before[name] + grown, rtol=1e-6)


def test_a_copy_without_mask_buffers_is_saved_without_them(folder, tmp_path):
    def drop(tensors):
        for name in [n for n in tensors if n.endswith(".mask")]:
            del tensors[name]

    rewrite(folder, drop)
    sj.save(sj.load(folder), tmp_path / "out")
    equal(tensors_of(tmp_path / "out"), tensors_of(folder))


def test_a_fresh_model_is_saved_as_the_strict_original_wants_it(folder, tmp_path):
    config = StreamFormerConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, enable_causal_temporal=True,
    )  # fmt: skip
    plain = StreamFormer(config, rngs=nnx.Rngs(0))
    model = with_lora(plain, rngs=nnx.Rngs(1))
    sj.save(model, tmp_path / "out")
    found, wanted = tensors_of(tmp_path / "out"), tensors_of(folder)
    assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in wanted.items()}
    frames = jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 3))
    loaded = sj.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded(frames).tokens, model(frames).tokens)
    np.testing.assert_allclose(plain(frames).tokens, model(frames).tokens, atol=1e-6)
    with pytest.raises(ValueError, match="folded model cannot be saved"):
        sj.save(fold(model), tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_dtype_none_keeps_what_is_stored_and_dtype_casts(folder, tmp_path):
    half = sj.load(folder, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16 and half.time[...].dtype == jnp.bfloat16
    frames = jax.random.normal(jax.random.key(0), (1, 3, 16, 16, 3))
    exact, rough = sj.load(folder)(frames).tokens, half(frames).tokens
    assert rough.dtype == jnp.bfloat16
    assert float(jnp.abs(rough - exact).mean()) < 0.05
    sj.save(half, tmp_path / "half")
    again = sj.load(tmp_path / "half")
    assert again.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again(frames).tokens, rough)


def test_assets_come_from_the_folder_and_go_with_the_model(folder, tmp_path):
    assert sj.load(folder).assets.processor is None and sj.load(folder).assets.tokenizer is None
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 16, "width": 16}}')
    model = sj.load(folder)
    assert model.assets.tokenizer == str(folder)
    assert model.assets.chat_template == "{{ x }}"
    assert model.assets.processor.size == (16, 16)
    hash(model.assets)
    sj.save(model, tmp_path / "out")
    assert sj.load(tmp_path / "out").assets.chat_template == "{{ x }}"
    assert sj.load(tmp_path / "out").assets.processor.size == (16, 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ é }}"),
        ("chat_template.json", '{"chat_template": "{{ é }}"}'),
        ("tokenizer_config.json", '{"chat_template": "{{ é }}"}'),
        ("tokenizer_config.json",
         '{"chat_template": [{"name": "rag", "template": "x"},'
         ' {"name": "default", "template": "{{ é }}"}]}'),
    ],
)  # fmt: skip
def test_the_chat_template_wherever_it_stands(folder, name, content):
    (folder / name).write_text(content, "utf-8")
    assert sj.load(folder).assets.chat_template == "{{ é }}"


def test_the_processors_that_are_not_ours_go_along(folder, tmp_path):
    """For transformers: of videos, and which class puts text and pictures together."""
    (folder / "tokenizer.json").write_text("{}")
    (folder / "video_preprocessor_config.json").write_text('{"fps": 2}')
    picture = {"size": {"height": 16, "width": 16}, "image_processor_type": "SiglipImageProcessor"}
    kept = {"processor_class": "XProcessor", "video_processor": {"fps": 3}}
    (folder / "processor_config.json").write_text(json.dumps(kept | {"image_processor": picture}))
    model = sj.load(folder)
    assert model.assets.processor.size == (16, 16)
    sj.save(model, tmp_path / "out")
    assert (tmp_path / "out" / "video_preprocessor_config.json").read_text() == '{"fps": 2}'
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text()) == kept
    assert sj.load(tmp_path / "out").assets.processor.size == (16, 16)


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
def test_a_mesh_places_every_parameter(folder):
    from streamjax.sharding import make_mesh

    model = sj.load(folder, mesh=make_mesh(fsdp=4, tensor=2))
    kernel = model.layers.mlp.up.kernel[...]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert len(kernel.sharding.device_set) == 8
    frames = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 3))
    out = jax.jit(lambda m, x: m(x))(model, frames)
    np.testing.assert_allclose(out.tokens, sj.load(folder)(frames).tokens, atol=2e-5)


LAYER = "encoder.layer.1."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(LAYER + "temporal_dense.bias"),
         r"tensor encoder.layer.1.temporal_dense.bias is missing, wanted shape \[32\]"),
        (lambda t: t.update({LAYER + "extra": np.zeros(2, np.float32)}),
         "encoder.layer.1.extra belongs to no part of the model"),
        (lambda t: t.update({"encoder.layer.2.temporal_attention_gating": np.zeros((), np.float32)}),
         "encoder.layer.2.temporal_attention_gating belongs to no part of the model"),
        (lambda t: t.update({"head.probe": np.zeros((1, 32), np.float32)}),
         r"head.probe has shape \[1, 32\], wanted \[1, 1, 32\]"),
        (lambda t: t.update({LAYER + "temporal_attention.attention.mask": np.ones((3, 3), np.float32)}),
         r"mask has shape \[3, 3\], wanted \[4, 4\]"),
        (lambda t: t.update({"head.probe": np.full((1, 1, 32), np.nan, np.float32)}),
         "head.probe holds values that are not finite"),
        (lambda t: t.update({"head.probe": np.zeros((1, 1, 32), np.int64)}),
         "head.probe has dtype int64, wanted a float type"),
        (lambda t: t.update({"logit_scale": np.zeros((), np.float32)}),
         "logit_scale belongs to no part of the model"),
        (lambda t: t.clear(), "embeddings.position_embeddings is missing"),
    ],
)  # fmt: skip
def test_wrong_tensors(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as error:
        sj.load(folder)
    assert "\n" not in str(error.value) and "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_frame": 4}, "unknown key 'num_frame': did you mean 'num_frames'"),
        ({"zzz": 4}, "unknown key 'zzz': remove it"),
        ({"attention_type": "space_only"}, "'space_only', wanted 'divided_space_time'"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish', wanted one of gelu"),
        ({"num_frames": "4"}, "num_frames is '4', wanted int"),
        ({"num_attention_heads": 5}, "hidden_size is 32, wanted a multiple of"),
        ({"patch_size": 0}, "patch_size is 0, wanted a positive number"),
        ({"model_type": "timesformers"}, "did you mean 'timesformer'"),
        ({"model_type": 7}, "model_type is 7"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is there, wanted weights that"),
        ({"num_frames": 8}, r"has shape \[4, 4\], wanted \[8, 8\] by num_frames"),
        ({"add_lora_spatial": False}, "lora_a.weight belongs to no part"),
        ({"enable_causal_temporal": False}, "mask belongs to no part"),
    ],
)
def test_wrong_config(folder, keys, message):
    configure(folder, **keys)
    with pytest.raises(InputError, match=message) as error:
        sj.load(folder)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_broken(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing, wanted a folder"):
        sj.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a file, wanted a folder"):
        sj.load(folder / "config.json")
    with pytest.raises(FileNotFoundError, match="no such folder, and the hub gave nothing"):
        sj.load("nobody/nothing")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=re.escape(f"{path}: truncated")):
        sj.load(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no weights: wanted model.safetensors"):
        sj.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not JSON"):
        sj.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        sj.load(folder)


def test_a_failed_save_leaves_what_was_there(folder, monkeypatch):
    model = sj.load(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors, "write_file", fail)
    with pytest.raises(OSError, match="disk full"):
        sj.save(model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(OSError, match="disk full"):
        sj.save(model, folder.parent / "new" / "place")
    assert list((folder.parent / "new").iterdir()) == []
    with pytest.raises(InputError, match="config.json: a file, wanted a folder"):
        sj.save(model, folder / "config.json")
    with pytest.raises(ValueError, match="cannot save a SimpleNamespace"):
        sj.save(types.SimpleNamespace(), folder)


def test_a_tensor_that_cannot_be_made_leaves_no_folder(folder, tmp_path):
    """Tensors are fetched while they are written, so that is where a failure may come up."""
    model = sj.load(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])  # the mask buffers are still there, unread
    with pytest.raises(InputError, match="truncated while it was read"):
        sj.save(model, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def damage_shard(change):
    """A change of the tensors of the second shard."""

    def do(folder):
        path = folder / "model-00002-of-00003.safetensors"
        tensors, metadata = safetensors.read_file(path)
        name = min(n for n in tensors if n.endswith("proj.weight"))
        safetensors.write_file(path, tensors | {name: change(tensors[name])}, metadata)

    return do


def cut(folder):
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lead_out(folder):
    path = folder / safetensors.INDEX
    path.write_text(path.read_text().replace("model-00002", "../model-00002"))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (cut, "model-00002-of-00003.safetensors: truncated: tensor"),
        (lambda f: (f / "model-00003-of-00003.safetensors").unlink(), "00003.safetensors: missing, but"),
        (lead_out, "names the file '../model-00002-of-00003.safetensors', wanted one in the same"),
        (damage_shard(lambda a: a * np.nan), "proj.weight holds values that are not finite"),
        (damage_shard(lambda a: a.view(np.int16)), "proj.weight has dtype int16, wanted a float type"),
        (damage_shard(lambda a: a.T[:-1]), r"proj.weight has shape \[\d+, \d+\], wanted \[\d+, \d+\]"),
        (lambda f: configure(f, model_type="qwen2_vl"), "'qwen2_vl', wanted one of timesformer, .*qwen3_vl, internvl"),
    ],
)  # fmt: skip
def test_a_video_language_model_in_shards_that_is_wrong(golden, tmp_path, do, message):
    folder = tmp_path / "model"
    shutil.copytree(golden / "qwen2_5_vl_tied_sharded", folder)
    do(folder)
    with pytest.raises((InputError, FileNotFoundError), match=message) as error:
        sj.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
