"""The multi-task model: what it begins with, what it refuses, and that a mesh changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.errors import InputError
from streamjax.models.pretraining import Pretraining, frozen, pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.sharding import make_mesh
from streamjax.train.optim import OptimConfig
from streamjax.train.state import set_up
from streamjax.train.video_tasks import objectives
from tests.train import toy

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

TOWER = StreamFormerConfig(
    image_size=16, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=1,
    num_attention_heads=4, intermediate_size=64, enable_causal_temporal=True,
)  # fmt: skip
TEXT = SiglipTextConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, max_position_embeddings=8,
)  # fmt: skip
HURRY = {"xla_backend_optimization_level": 0}  # what is compiled here runs once
KINDS = {
    "Kinetics": "recognition", "TaskRetrieval": "retrieval", "TaskGrounding": "grounding",
    "TaskLocalization": "localization", "TaskVIS": "segmentation", "TaskReferVOS": "referring",
}  # fmt: skip
SETS = {
    "Kinetics": {"K400": (5, 2)},
    "TaskLocalization": {"HACS": (4, 2), "FineAction": (3, 2)},
    "TaskVIS": {"YoutubeVIS": (3, 1), "LVVIS": (7, 1)},
}


def prompts():
    rng = np.random.default_rng(1)
    return {
        task: {name: rng.integers(2, 64, (*size, 8)) for name, size in sets.items()}
        for task, sets in SETS.items()
    }


def build(rngs, lora=True):
    return pretraining(
        StreamFormer(TOWER, rngs=rngs), SiglipText(TEXT, rngs=rngs), kinds=KINDS,
        prompts=prompts(), logit_scale=2.0, logit_bias=-3.0, lora=rngs if lora else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: build(nnx.Rngs(0)), compiler_options=HURRY)()


@pytest.fixture(scope="module")
def batch():
    """Four rows with the fields of all kinds but `classes`, which two kinds understand apart."""
    rng = np.random.default_rng(2)
    return {
        "frames": rng.integers(0, 256, (4, 4, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 5, 4),
        "text": rng.integers(2, 64, (4, 8)),
        "inside": rng.integers(0, 2, (4, 4), dtype=np.uint8),
        "dataset": np.array([0, 1, 1, 0]),
        "choices": np.array([[0, 1, 2, -1], [6, 1, 4, 3], [2, 5, 0, 3], [0, 1, 2, -1]]),
        "mask": rng.integers(0, 2, (4, 4, 16, 16), dtype=np.uint8),
    }


def of_kind(batch, kind):
    rng = np.random.default_rng(3)
    if kind == "localization":
        return batch | {"classes": rng.integers(-1, 3, (4, 4))}
    return batch | {"classes": rng.integers(0, 7, (4, 4, 16, 16))}


def test_what_it_begins_with(model):
    assert model.kinds == KINDS
    assert float(model.logit_scale[...]) == 2.0
    for task, head in model.heads.items():
        assert (float(head.logit_scale[...]), float(head.logit_bias[...])) == (2.0, -3.0)
        assert (head.dense is None) == (KINDS[task] not in ("segmentation", "referring"))
        assert head.datasets == tuple(SETS.get(task, ()))
    path, head = model.heads["TaskVIS"].dense, model.tower.head
    np.testing.assert_array_equal(path.w_v.kernel[...], head.qkv.kernel[:, 64:])
    np.testing.assert_array_equal(path.w_v.bias[...], head.qkv.bias[64:])
    np.testing.assert_array_equal(path.mlp.up.kernel[...], head.mlp.up.kernel[...])
    attn = model.tower.layers.attn
    assert 0.01 < float(attn.qkv.lora_a[...].std()) < 0.03 and not np.any(attn.qkv.lora_b[...])
    assert not np.any(attn.out.lora_b[...]) and model.tower.config.add_lora_spatial
    tables, starts = model.classes("TaskVIS")
    assert tables.shape == (10, 32) and starts.tolist() == [0, 3, 10]
    np.testing.assert_array_equal(tables[3:], model.labels["TaskVIS"]["LVVIS"][...])
    np.testing.assert_allclose(np.linalg.norm(tables, axis=1), 1, rtol=1e-5)  # of one prompt
    lengths = np.linalg.norm(model.classes("Kinetics")[0], axis=1)
    assert np.all(lengths < 1)  # a mean of two, not brought back to 1


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_trains_all_but_what_is_frozen(lora):
    tower = dataclasses.replace(TOWER, add_lora_spatial=lora)
    config = dataclasses.replace(
        toy.config(), model=functools.partial(build, lora=lora), frozen=frozen(tower),
        optim=OptimConfig(lr=1e-3),
    )  # fmt: skip
    setup = set_up(config, make_mesh())
    still = {path for path, _ in nnx.to_flat_state(setup.abstract.frozen)}
    base = {("tower", "layers", "attn", x, y) for x in ("qkv", "out") for y in ("kernel", "bias")}
    assert {path for path in still if path[0] == "tower"} == (base if lora else set())
    assert {path[0] for path in still} - {"tower"} == {
        "text", "labels", "logit_scale", "logit_bias"
    }  # fmt: skip
    trained = {path for path, _ in nnx.to_flat_state(setup.abstract.params)}
    assert {path[0] for path in trained} == {"tower", "heads"}
    assert ("heads", "TaskVIS", "dense", "w_v", "kernel") in trained


def test_no_copy_shares_its_memory(model):
    """The state of a run is donated, and a buffer can be given away once only."""
    eager = Pretraining(
        model.tower, model.text, kinds={"a": "referring", "b": "referring"}, labels={},
        logit_scale=np.float32(1), logit_bias=np.float32(0),
    )  # fmt: skip
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(eager))]
    assert len(set(buffers)) == len(buffers)


def test_the_mesh_changes_nothing(model, batch):
    """Retrieval is a ring and referring looks at all captions: both see the global batch."""

    def paid(batch, mesh):
        @functools.partial(jax.jit, compiler_options=HURRY)
        def run(model, batches):
            return {
                task: objective(model, batches[task])
                for task, objective in objectives(KINDS).items()
            }

        with jax.set_mesh(mesh):
            rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
            return run(model, jax.device_put(batch, rows))

    batches = {task: of_kind(batch, kind) for task, kind in KINDS.items()}
    one, many = (paid(batches, make_mesh(**axes)) for axes in ({}, {"data": 2, "fsdp": 2}))
    for task in KINDS:
        total, count, metrics = many[task]
        np.testing.assert_allclose(total, one[task][0], rtol=1e-5, err_msg=task)
        assert count == 4 and np.isfinite(total) and total > 0
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, one[task][2]
        )
    with pytest.raises(InputError, match="Kinetics is recognition, which has no dense features"):
        model.dense("Kinetics", jnp.ones((1, 1, 4, 32)))


def test_what_does_not_fit_is_said(model):
    def make(kinds, labels):
        return Pretraining(
            model.tower, model.text, kinds=kinds, labels=labels, logit_scale=0.0, logit_bias=0.0
        )

    table, wide = np.ones((3, 32), np.float32), np.ones((3, 16), np.float32)
    for kinds, labels, told in (
        ({"a": "tracking"}, {}, "task a is of kind 'tracking', wanted one of recognition"),
        ({"a": "recognition"}, {}, "found 0 label tables, recognition wants one table"),
        ({"a": "recognition"}, {"a": {"x": table, "y": table}}, "found 2 label tables"),
        ({"a": "localization"}, {"a": {"x": table, "y": wide}}, r"labels of y are \[3, 16\]"),
        ({"a": "segmentation"}, {"a": {"x": table[:0]}}, r"labels of x are \[0, 32\]"),
        ({"a": "grounding"}, {"a": {"x": table}}, "grounding reads captions"),
        ({"a": "grounding"}, {"b": {"x": table}}, "labels of b, which is no task: a are"),
    ):
        with pytest.raises(InputError, match=told):
            make(kinds, labels)
