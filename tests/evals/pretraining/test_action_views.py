"""A tiny model's views of a video: how many, which pixels, and that its answers are scored."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.data.video import write_video
from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.pretraining.action_views import TASKS, check, view_logits, views_of
from streamjax.models.pretraining import Pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig

FRAMES, SIZE = 2, 16
TOWER = StreamFormerConfig(
    image_size=SIZE, patch_size=8, num_frames=FRAMES, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
)  # fmt: skip
TEXT = SiglipTextConfig(
    vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
)


def _noise(make):
    module, rng = nnx.eval_shape(make), np.random.default_rng(0)
    draw = lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape).astype(np.float32))
    nnx.update(module, jax.tree.map(draw, nnx.state(module)))
    return module


@pytest.fixture(scope="module")
def model() -> Pretraining:
    labels = {
        task: {"": np.random.default_rng(1).normal(size=(n, 16)).astype(np.float32)}
        for task, n in TASKS.values()
    }
    return Pretraining(
        _noise(lambda: StreamFormer(TOWER, rngs=nnx.Rngs(0))),
        _noise(lambda: SiglipText(TEXT, rngs=nnx.Rngs(0))),
        kinds=dict.fromkeys(labels, "recognition"), labels=labels, logit_scale=1.5, logit_bias=-2.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "one.mp4"
    frames = (
        np.zeros((9, 16, 32, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    )
    frames[:, :, 24:] = 255
    write_video(path, frames, 8)
    return path


def test_views(video):
    found = list(views_of("ar_k400", video, frames=FRAMES, size=SIZE))
    assert len(found) == 4 and {part.shape for part in found} == {(3, FRAMES, SIZE, SIZE, 3)}
    assert found[0][2, ..., 10:, :].min() > 200 > found[0][0].max()  # the end, and the beginning
    assert len(list(views_of("ar_ssv2", video, frames=FRAMES, size=SIZE))) == 2
    with pytest.raises(InputError, match="nothing.mp4"):
        next(views_of("ar_ssv2", video.with_name("nothing.mp4")))


@pytest.mark.parametrize("name", list(TASKS))
def test_answers_are_scored(model, video, name, tmp_path):
    check(model, name)
    answer = view_logits(model, name, video)
    views = np.array(list(answer.values()))
    _, classes = TASKS[name]
    assert views.shape == (12 if name == "ar_k400" else 6, classes)
    best = int(views.mean(0).argmax())
    (tmp_path / "test.csv").write_text(f"one.mp4,{best}\n")
    bench = find(name)
    (tmp_path / "said.jsonl").write_text(json.dumps({"id": "one", "answer": answer}) + "\n")
    scores = bench.score(bench.read(tmp_path), bench.answers(tmp_path / "said.jsonl"), "official")
    assert scores.problems == () and scores.table["top5"] == 100.0


def test_logits_are_scaled_cosines_of_unit_features(model, video):
    logits = np.array(list(view_logits(model, "ar_ssv2", video).values()))
    table = np.asarray(model.classes("SSV2")[0], np.float64)
    features, residual, *_ = np.linalg.lstsq(table, (logits + 2.0).T / np.exp(1.5))
    np.testing.assert_allclose(residual, 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(features, axis=0), 1, atol=1e-5)
    assert np.abs(features[:, 0] - features[:, 2]).max() > 1e-4  # another place
    assert np.abs(features[:, 0] - features[:, 3]).max() > 1e-4  # another time


def test_a_model_of_other_tasks(model):
    labels = {"Kinetics": {"": np.ones((7, 16), np.float32)}}
    other = Pretraining(
        model.tower, model.text, kinds={"Kinetics": "recognition"}, labels=labels,
        logit_scale=1.0, logit_bias=0.0,
    )  # fmt: skip
    with pytest.raises(InputError, match="Kinetics has 7 classes; ar_k400 has 400"):
        check(other, "ar_k400")
    with pytest.raises(InputError, match="has the tasks Kinetics; ar_ssv2 wants SSV2"):
        check(other, "ar_ssv2")
