"""The checkpoint that comes with the repository, on held-out videos, hearing only itself.

The thresholds are promises of the README; checkpoints/world-assistant/README.md says how the
checkpoint was made and what it scored.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

import streamjax as sj
from streamjax import demo
from streamjax.data.world_files import write_world
from streamjax.evals.timing import assistant as evals

HOME = Path(__file__).parent.parent / "checkpoints" / "world-assistant"
CLIPS = 24


@pytest.fixture(scope="module")
def scores(tmp_path_factory, optimized):
    world = tmp_path_factory.mktemp("held_out")
    for split, count in (("test", CLIPS), ("novel", CLIPS), ("train", 4)):
        write_world(
            world, split, count, demo.FULL.world, tasks=("streamo",), kinds=demo.SCORED, variants=1
        )
    model = sj.load(HOME, dtype=jnp.float32)
    clips = {
        split: demo.clips_of(world, split, demo.SCORED) for split in ("test", "novel", "train")
    }
    seen = evals.free_run(model, clips["test"], 126)
    novel = evals.free_run(model, clips["novel"], 63)
    return {
        "test": evals.total(seen),
        "novel": evals.total(novel),
        "baselines": demo.baselines(seen, clips["test"], clips["train"]),
    }


def test_it_knows_when_to_speak_and_what_to_say(scores):
    timing = scores["test"]
    assert timing.dialogues >= 120
    assert timing.macro_f1 >= 0.80
    assert timing.precision >= 0.75 and timing.recall >= 0.75
    assert timing.text >= 0.55


def test_combinations_it_never_saw_are_close_behind(scores):
    seen, novel = scores["test"], scores["novel"]
    assert novel.macro_f1 >= seen.macro_f1 - 0.15
    assert novel.precision >= seen.precision - 0.15
    assert novel.recall >= seen.recall - 0.15
    assert novel.text >= seen.text - 0.15


def test_no_trivial_answer_comes_near(scores):
    for name, row in scores["baselines"].items():
        assert row["macro_f1"] <= 0.40, name


def test_it_is_small_and_says_where_it_comes_from():
    assert sum(f.stat().st_size for f in HOME.iterdir()) < 5_000_000
    card = (HOME / "README.md").read_text()
    assert "streamjax demo" in card and "minutes" in card
    assert json.loads((HOME / "config.json").read_text())["model_type"] == "llava_qwen"
