"""The multi-task model by its original names: runs, folders, and the original's checkpoints."""

import json
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import checkpoint, folders
from streamjax.data.captions import build_caption_tokenizer
from streamjax.errors import InputError
from streamjax.models.pretraining import Pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.weights import pretraining, safetensors, siglip_text, streamformer
from streamjax.weights.config import read_config

KINDS = {
    "Kinetics": "recognition", "TaskRetrieval": "retrieval", "TaskVIS": "segmentation",
    "TaskReferVOS": "referring",
}  # fmt: skip
TOWER = StreamFormerConfig(
    image_size=8, patch_size=4, num_frames=2, hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=12, enable_causal_temporal=True,
    add_lora_spatial=True,
)  # fmt: skip
TEXT = SiglipTextConfig(
    vocab_size=300, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """Every number its own, as after some training."""

    def make():
        rngs, table = nnx.Rngs(0), lambda rows: jnp.zeros((rows, 8))
        return Pretraining(
            StreamFormer(TOWER, rngs=rngs), SiglipText(TEXT, rngs=rngs), kinds=KINDS,
            labels={"Kinetics": {"K400": table(3)}, "TaskVIS": {"Z": table(2), "A": table(4)}},
            logit_scale=0.0, logit_bias=0.0,
        )  # fmt: skip

    model, rng = nnx.eval_shape(make), np.random.default_rng(0)
    state = nnx.state(model)
    noise = jax.tree.map(lambda a: jnp.array(rng.standard_normal(a.shape, np.float32)), state)
    nnx.update(model, noise)
    return model


def arrays(tensors):
    return {name: np.asarray(a) for name, a in tensors.items()}


def equal(a, b):
    a, b = nnx.state(a), nnx.state(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_for_the_original_and_back(model, tmp_path):
    build_caption_tokenizer(["a red circle"], tmp_path / "words")
    sj.save(model, tmp_path / "saved")
    found = arrays(safetensors.read_folder(tmp_path / "saved")[0])
    dense = {"w_v", "v_proj", "head_layernorm", "head_mlp"}
    for task, kind in KINDS.items():
        own = {n.split(".")[2] for n in found if n.startswith(f"task_heads.{task}.")}
        pixels = dense if kind in ("segmentation", "referring") else set()
        tables = {"label_embeddings"} if task in model.labels else set()
        assert own == {"logit_scale", "logit_bias"} | pixels | tables, task
    d = TOWER.hidden_size
    theirs = found["task_heads.TaskVIS.w_v.weight"]
    np.testing.assert_array_equal(theirs, model.heads["TaskVIS"].dense.w_v.kernel[...].T)
    assert found["timesformer.encoder.layer.1.attention.output.dense_lora_b.weight"].shape == (
        d,
        32,
    )
    assert found["timesformer.encoder.layer.0." + streamformer.MASK].shape == (2, 2)
    assert "text_encoder.text_model.head.weight" in found

    # The backbone, as the original reads it, with everything else kept beside it.
    tower = sj.load(tmp_path / "saved")
    assert isinstance(tower, StreamFormer)
    equal(tower, model.tower)
    equal(siglip_text.text_of(tower).text, model.text)
    sj.save(tower, tmp_path / "again")
    again = arrays(safetensors.read_folder(tmp_path / "again")[0])
    assert set(again) == set(found) and all((again[n] == found[n]).all() for n in found)
    # And the whole, from either folder.
    equal(pretraining.whole_of(tower), model)
    with pytest.raises(InputError, match="streamjax_tasks is missing"):
        pretraining.whole_of(model.tower)
    for name in ("saved", "again"):
        raw = read_config(tmp_path / name / "config.json")
        whole = pretraining.load(tmp_path / name, raw)
        equal(whole, model)
        assert whole.kinds == KINDS and whole.heads["TaskVIS"].datasets == ("Z", "A")


def test_a_run_is_loaded_as_what_was_trained(model, tmp_path):
    folders.describe(model, tmp_path / "model")
    with checkpoint.open_run(tmp_path) as checkpoints:
        place = iter(grain.MapDataset.range(2).to_iter_dataset())
        checkpoint.save(checkpoints, 1, model=nnx.state(model), optimizer=jnp.int32(0), data=place)
    found = sj.load(tmp_path)
    equal(found, model)
    assert found.kinds == KINDS and found.assets is found.tower.assets
    sj.save(found, tmp_path / "out")
    config = read_config(tmp_path / "out" / "config.json")
    assert config["model_type"] == "timesformer" and "streamjax_class" not in config
    equal(sj.load(tmp_path / "out"), model.tower)


def test_checkpoints_of_the_original(model, tmp_path):
    """With the duplicates that each head holds, in text names of transformers 4 and 5."""
    raw, tensors = pretraining.dump(model)
    found = arrays(tensors)
    copies = {
        name.replace(start, f"task_heads.{task}.{again}"): a
        for name, a in found.items()
        for start, again in (("text_encoder.", "text_encoder."), ("timesformer.head.", "head."))
        if name.startswith(start)
        for task in KINDS
    }
    equal(pretraining.fill(pretraining.blank(raw, "here"), found | copies, source="here"), model)
    newer = {
        name.replace("text_encoder.text_model.", "text_encoder."): a for name, a in found.items()
    }
    equal(pretraining.fill(pretraining.blank(raw, "here"), newer, source="here"), model)

    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[2] / "convert"))
    from streamformer import from_checkpoint

    kept = {n: torch.from_numpy(a.copy()) for n, a in (found | copies).items()}
    kept = {n: a for n, a in kept.items() if "label_embeddings" not in n}
    torch.save({"model": kept, "epoch": 1}, tmp_path / "checkpoint-epoch.pth")
    (tmp_path / "config.json").write_text(json.dumps(raw | {"add_lora_spatial": False}))
    for keep in (False, True):
        tower = from_checkpoint(
            tmp_path / "checkpoint-epoch.pth", tmp_path / "config.json", keep_heads=keep
        )
        equal(tower, model.tower)
        assert ("task_heads.TaskVIS.head.probe" in tower.assets.extras.tensors) == keep
    equal(siglip_text.text_of(tower).text, model.text)


def test_what_is_refused(model, tmp_path):
    raw, tensors = pretraining.dump(model)
    tensors = arrays(tensors)
    empty = pretraining.blank(raw, "here")
    with pytest.raises(InputError, match="tensor task_heads.TaskVOS.logit_scale belongs to no"):
        pretraining.fill(
            empty, tensors | {"task_heads.TaskVOS.logit_scale": np.zeros(())}, source="x"
        )
    stray = {"task_heads.Kinetics.w_v.bias": np.zeros(8)}
    with pytest.raises(InputError, match="task_heads.Kinetics.w_v.bias belongs to no part"):
        pretraining.fill(empty, tensors | stray, source="x")
    del tensors["task_heads.TaskVIS.label_embeddings.A"]
    with pytest.raises(InputError, match="label_embeddings.A is missing, wanted shape .4, 8."):
        pretraining.fill(empty, tensors, source="x")
    for key, value, message in (
        ("streamjax_tasks", None, "streamjax_tasks is missing, wanted the tasks"),
        ("streamjax_tasks", {"A": {"kind": "retrieval"}}, "streamjax_tasks.A is .*wanted"),
        ("streamjax_tasks", {"A": {"kind": "x", "labels": {}}}, "task A is of kind 'x'"),
        ("clip_config", None, "clip_config.text_config is missing"),
    ):
        with pytest.raises(InputError, match=message):
            pretraining.blank(raw | {key: value}, "here")
    folders.describe(model, tmp_path / "model")
    config = read_config(tmp_path / "model" / "config.json") | {"streamjax_class": "Other"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="streamjax_class is 'Other', wanted one of StreamFormer"):
        sj.load(tmp_path)
