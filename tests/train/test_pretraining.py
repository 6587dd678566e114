"""The recipes of StreamFormer's pre-training: what they say, and a run of each from the start."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import streamjax as sj
from streamjax.data.captions import CaptionTokenizer
from streamjax.models.pretraining import KINDS, Pretraining
from streamjax.sharding import make_mesh
from streamjax.train import load_recipe, train
from streamjax.train.progress import silent
from streamjax.train.recipes import load_module
from streamjax.train.siglip import make_world
from streamjax.train.state import set_up


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def published(home):
    return load_recipe("streamformer_pretrain", run=home, tiny=True)


def test_the_published_values(published):
    optim = published.optim
    assert (optim.kind, optim.lr, optim.b1, optim.b2, optim.eps) == (
        "adamw",
        7e-5,
        0.9,
        0.999,
        1e-8,
    )
    assert (optim.weight_decay, optim.clip, optim.warmup, published.seed) == (0.05, None, 0.0, 42)
    assert published.order == "balanced" and published.accumulate == len(published.data) == 6
    assert load_module("streamformer_pretrain").CLIPS * 7 == 896


def test_the_rate_begins_anew_every_epoch_or_falls_to_the_end(home, published):
    assert published.optim.restart == published.steps  # --tiny: one epoch
    whole = load_recipe("streamformer_pretrain", ["cosine=whole"], run=home, tiny=True)
    assert whole.optim.restart is None


@pytest.fixture(scope="module")
def run(home, published):
    return train(dataclasses.replace(published, steps=1), home, progress=silent)


def test_one_update_of_all_tasks(run):
    row = json.loads((run.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    tasks = {key.split("/")[0] for key in row if key.endswith("/loss")}
    assert tasks == {"Kinetics", "TaskRetrieval", "TaskGrounding", "TaskLocalization", "TaskVIS",
                     "TaskReferVOS"}  # fmt: skip
    assert np.isfinite(row["loss"])


def test_a_run_loads_whole_and_is_saved_as_a_backbone(run, tmp_path):
    model = sj.load(run.run_dir)
    assert isinstance(model, Pretraining) and set(model.kinds.values()) == set(KINDS)
    sj.save(model, tmp_path / "hf")
    tower = sj.load(tmp_path / "hf")
    frames = jnp.zeros((1, 2, 64, 64, 3))
    np.testing.assert_array_equal(tower(frames).pooled, model.tower(frames).pooled)


@pytest.mark.slow
def test_the_world_in_miniature_begins_from_its_siglip(home):
    """Only what the recipe builds: benchmarks/multitask.py trains it."""
    pictures = load_module("siglip_world")
    world = make_world(home / "small", pictures.WORLD, train=3, held_out=1)
    first = load_recipe("siglip_world", ["steps=1", "batch_size=4"], run=home, world=world)
    assert len(CaptionTokenizer(world)) == first.model.keywords["text"].vocab_size
    recipe = load_module("streamformer_world")
    # A SigLIP of one step: its temporal part is shut, and opened by the recipe.
    model = train(first, home / "first", progress=silent).model
    assert not np.asarray(model.tower.layers.gate[...]).any()
    scale, bias = model.logit_scale[...], model.logit_bias[...]
    recipe.save_siglip(model.tower, model.text, home / "one", logit_scale=scale, logit_bias=bias)
    config = recipe.config(run=home, world=world, siglip=home / "one")
    assert set(config.data) == set(config.objective) and len(config.data) == 6
    setup = set_up(config, make_mesh())
    gates = setup.make().params["tower"]["layers"]["gate"].get_value()
    np.testing.assert_array_equal(gates, 1.0)
    only = recipe.config(run=home, world=world, siglip=home / "one", tasks=("TaskRetrieval",))
    assert list(only.data) == ["TaskRetrieval"]


def test_a_siglip_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="siglip"):
        load_recipe("streamformer_pretrain", [f"siglip={tmp_path}/siglip", "data=x"])
