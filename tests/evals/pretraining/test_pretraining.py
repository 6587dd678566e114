"""Six tasks of a tiny world with a tiny random model: shapes, n, and what is known beforehand."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import cli
from streamjax.data.annotations.masks import Referred
from streamjax.data.captions import CaptionTokenizer, build_caption_tokenizer
from streamjax.data.processors import Assets
from streamjax.data.sampling import view_indices
from streamjax.data.tasks import open_tasks
from streamjax.data.video import open_clip
from streamjax.data.world import WorldConfig
from streamjax.data.world_files import write_world
from streamjax.errors import InputError
from streamjax.evals.pretraining import evaluate as pretraining
from streamjax.evals.pretraining.evaluate import ZeroShot, evaluate, head_for, otsu
from streamjax.folders import load_with_text
from streamjax.models.pretraining import DensePath, Pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.weights.siglip import save_siglip

SIZE, FRAMES, CLIPS = 32, 4, 4
TASKS = ("kinetics", "retrieval", "grounding", "localization", "vis", "refvos")
TOWER = StreamFormerConfig(
    image_size=SIZE, patch_size=8, num_frames=FRAMES, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(height=40, width=48, seconds=(8, 9), events=(2, 2), things=(2, 2))
    write_world(folder, "test", CLIPS, config, tasks=TASKS)
    shutil.copyfile(folder / "kinetics" / "test.csv", folder / "kinetics" / "train.csv")
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> CaptionTokenizer:
    folder = tmp_path_factory.mktemp("words")
    return build_caption_tokenizer(["a the red green blue circle square light moves"], folder)


@pytest.fixture(scope="module")
def model(tokens) -> ZeroShot:
    config = SiglipTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    tower, text = (
        noise(lambda: StreamFormer(TOWER, rngs=nnx.Rngs(0))),
        noise(lambda: SiglipText(config, rngs=nnx.Rngs(0))),
    )
    tower.layers.gate.set_value(jnp.zeros(1))  # as a SigLIP has it
    return ZeroShot(tower, text, 1.0, -2.0)


def noise(make):
    """The module with numbers of numpy's: a tenth of the time that jax takes to draw them."""
    module, rng = nnx.eval_shape(make), np.random.default_rng(0)
    state = nnx.state(module)
    draw = lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape).astype(np.float32))
    nnx.update(module, jax.tree.map(draw, state))
    return module


@pytest.fixture(scope="module")
def tasks(world, tokens):
    return open_tasks(world, "test", tokens=tokens, frames=FRAMES, size=SIZE, train=False)


@pytest.fixture(scope="module")
def found(model, tasks, tokens):
    told = []
    results = evaluate(
        model, tasks, tokens, batch_size=3, probe=tasks, views=2,
        progress=lambda task, done, total: told.append((task, done, total)),
    )  # fmt: skip
    return {result.kind: result for result in results}, told


def test_every_task_is_scored(found, tasks):
    results, told = found
    assert [r.task for r in results.values()] == list(tasks)
    n = {kind: r.n for kind, r in results.items()}
    assert n["retrieval"] == n["localization"] == n["segmentation"] == CLIPS
    assert n["recognition"] > CLIPS and n["grounding"] >= CLIPS and n["referring"] > CLIPS
    for result in results.values():
        shares = [s for name, s in result.scores.items() if isinstance(s, float)]
        assert not result.skipped and np.isfinite(shares).all()
        assert all(0 <= s <= 1 for s in shares if result.kind != "retrieval"), result
    assert results["segmentation"].scores["pixels"] > 0
    assert results["segmentation"].dataset == "World" and results["referring"].dataset == ""
    count = n["recognition"]
    assert ("TaskVIS", CLIPS, CLIPS) in told
    assert ("Kinetics (training clips)", count, count) in told


def test_a_probe_fits_the_clips_that_it_was_fitted_on(found):
    scores = found[0]["recognition"].scores
    assert scores["probe_clips"] == found[0]["recognition"].n
    assert scores["probe_top1"] > scores["top1"]


def test_views_are_clips_of_one_video(tasks):
    task = tasks["Kinetics"]
    record = task.source()[0]
    views = pretraining._sample(task, 3, record)["frames"]
    assert views.shape == (3, FRAMES, SIZE, SIZE, 3)
    with open_clip(record.video) as clip:
        total = clip.frames
    picked = np.stack([view_indices(total, FRAMES, i, 3) for i in range(3)])
    assert not (picked[0] == picked[2]).all() and not (views[0] == views[2]).all()
    once = pretraining._sample(task, 1, record)["frames"]
    np.testing.assert_array_equal(
        once[0], task.transform(record, np.random.default_rng(1))["frames"]
    )


def test_the_last_batch_is_padded_and_its_padding_not_counted(found, model, tasks, tokens):
    """Four videos in batches of three are three videos and one."""
    task = tasks["TaskVIS"]
    parts = []
    for part in (slice(0, 3), slice(3, 4)):
        some = dataclasses.replace(task, source=lambda part=part: task.source()[part])
        parts += evaluate(model, {"TaskVIS": some}, tokens, batch_size=3)
    whole = found[0]["segmentation"].scores
    assert [part.n for part in parts] == [3, 1]
    pixels = np.array([part.scores["pixels"] for part in parts])
    right = [part.scores["pixel_accuracy"] for part in parts]
    assert pixels.sum() == whole["pixels"]
    assert (pixels * right).sum() / pixels.sum() == pytest.approx(whole["pixel_accuracy"])


def test_pixels_take_the_nearest_class_that_competes():
    # Two patches side by side, of which the left is class 1's feature and the right class 2's.
    patches = jnp.asarray(np.eye(2, dtype=np.float32)).reshape(1, 1, 1, 2, 2)
    classes = jnp.asarray([[[1.0, 1.0], [1, 0], [0, 1], [9, 9]]])  # 0 and 3 would win everywhere
    said = pretraining._nearest(patches, classes, jnp.asarray([3]), size=(4, 8))
    assert said.shape == (1, 1, 4, 8)
    assert (said[..., :4] == 1).all() and (said[..., 4:] == 2).all()


def test_closeness_is_bilinear_and_knows_rivals():
    patches = jnp.asarray(np.eye(2, dtype=np.float32)).reshape(1, 1, 1, 2, 2)
    columns = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])
    near, first = pretraining._closeness(patches, columns, size=(2, 8))
    np.testing.assert_allclose(near[0, 0, 0], [1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0], atol=1e-6)
    assert first[0, 0, 1].tolist() == [True] * 4 + [False] * 4
    alone = jnp.repeat(columns[:, :1], 3, axis=1)
    assert pretraining._closeness(patches, alone, size=(2, 8))[1].all()


def test_the_threshold_parts_two_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.1, 0.02, 900), rng.normal(0.5, 0.02, 100)])
    assert 0.18 < otsu(values) < 0.42
    assert otsu(values + 7) == pytest.approx(otsu(values) + 7, abs=0.01)
    assert not (np.full(4, 0.3) > otsu(np.full(4, 0.3))).any()


def test_who_is_a_rival():
    def said(text, video, *masks, object_id=None):
        return Referred((f"{video}/0.jpg",), text, masks, object_id, f"{video}: {text}")

    records = [
        said("the dog", "a", "a_0.json"), said("the brown one", "a", "a_0.json"),
        said("the cat", "a", "a_1.json"), said("both", "a", "a_0.json", "a_1.json"),
        said("the bird", "b", "b_0.json"),
        said("left", "c", "c.png", object_id=1), said("right", "c", "c.png", object_id=2),
    ]  # fmt: skip
    rivals = pretraining._rivals(records)
    assert rivals["a: the dog"] == ("the cat",) and rivals["a: both"] == ()
    assert rivals["a: the cat"] == ("the dog", "the brown one") and rivals["b: the bird"] == ()
    assert rivals["c: left"] == ("right",)


def test_bad_records_are_told_and_left_out_up_to_a_share(model, tasks, tokens):
    task = tasks["TaskGrounding"]
    good = task.source()
    missing = dataclasses.replace(good[0], video="nowhere.mp4")
    broken = dataclasses.replace(task, source=lambda: [missing, *good])
    (result,) = evaluate(model, {"TaskGrounding": broken}, tokens, batch_size=3, max_bad=0.5)
    assert result.n == len(good) and len(result.skipped) == 1
    assert "record 0" in result.skipped[0] and "nowhere.mp4" in result.skipped[0]
    with pytest.raises(InputError, match="1 of .* could not be used.*nowhere.mp4"):
        evaluate(model, {"TaskGrounding": broken}, tokens, batch_size=3)
    empty = dataclasses.replace(task, source=lambda: [missing])
    with pytest.raises(InputError, match="none of 1 records could be used.*nowhere"):
        evaluate(model, {"TaskGrounding": empty}, tokens, batch_size=3, max_bad=1.0)


def test_a_tokenizer_that_is_not_the_models(model, tokens):
    small = dataclasses.replace(model.text.config, vocab_size=4)
    other = dataclasses.replace(model, text=noise(lambda: SiglipText(small, rngs=nnx.Rngs(0))))
    with pytest.raises(InputError, match="the text tower has 4"):
        evaluate(other, {}, tokens)


def test_heads_are_found_by_name_or_by_kind(model, tmp_path):
    assert isinstance(head_for(model, "any", "referring").dense, DensePath)
    kinds = {"A": "retrieval", "B": "retrieval", "C": "grounding"}
    whole = Pretraining(
        model.tower, model.text, kinds=kinds, labels={}, logit_scale=3.0, logit_bias=0.0
    )
    whole.heads["B"].logit_scale.set_value(jnp.float32(5.0))
    sj.save(whole, tmp_path / "whole")
    found = load_with_text(tmp_path / "whole")  # as the verb does
    assert isinstance(found, Pretraining) and found.kinds == kinds
    assert float(head_for(found, "B", "retrieval").logit_scale[...]) == 5.0
    assert head_for(found, "TaskGrounding", "grounding") is found.heads["C"]
    with pytest.raises(InputError, match="TaskRetrieval is retrieval, and the model has A, B of"):
        head_for(found, "TaskRetrieval", "retrieval")
    with pytest.raises(InputError, match="the model has no head of that kind"):
        head_for(found, "C", "referring")


def test_the_verb(model, world, tokens, tmp_path, capsys):
    model.tower.assets = Assets(tokenizer=str(tokens.folder))
    save_siglip(model.tower, model.text, tmp_path / "siglip", logit_scale=1.0, logit_bias=-2.0)
    given = ["eval", str(tmp_path / "siglip"), "pretraining", "--data", str(world), "--tasks",
             "grounding", "--frames", str(FRAMES), "--batch-size", "3", "--limit", "2",
             "--out", str(tmp_path / "out" / "result.json")]  # fmt: skip
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    assert "TaskGrounding/World" in printed and "r1@0.5_f0.5" in printed
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(r["task"], r["n"]) for r in content["results"]] == [("TaskGrounding", 2)]
    decided = content["decided_by"]
    assert decided["frames"] == FRAMES and decided["size"] == SIZE and decided["zero_shot"]
    assert decided["weights"].startswith("sha256") and decided["split"] == "test"

    for wrong, line in (
        (["eval", "x", "pretrain", "--data", "y"], "benchmark 'pretrain': wanted one of"),
        ([*given, "--tasks", "vos"], "--tasks 'vos'"),
        ([*given, "--split", "val"], "no annotations of split 'val'"),
        ([*given, "--probe"], "none of the tasks is recognition"),
        ([*given, "--out", str(world)], "is a folder, wanted a file to write"),
        ([*given, "--out", "/proc/nowhere/r.json"], "r.json: cannot be written ("),
        (["eval", str(world), *given[2:]], "config.json: missing, wanted a folder with"),
    ):
        assert cli.main(wrong) == 2
        assert line in capsys.readouterr().err
