"""StreamFormer's pre-training from pixels to losses, against the original's (golden f7)."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.models.pretraining import Pretraining, frozen
from streamjax.train.objectives import normalise
from streamjax.train.state import trainable_filter
from streamjax.train.video_tasks import OBJECTIVES
from streamjax.weights import safetensors, siglip_text, streamformer, table
from streamjax.weights.table import Rule
from tests.train import toy

KINDS = {
    "Kinetics": "recognition",
    "TaskRetrieval": "retrieval",
    "TaskGrounding": "grounding",
    "TaskLocalization": "localization",
    "TaskVIS": "segmentation",
}
OUTER = [Rule("logit_scale", "logit_scale"), Rule("logit_bias", "logit_bias")]
HEAD = [
    *OUTER,
    *table.linear("w_v", "dense.w_v"),
    *table.linear("v_proj", "dense.v_proj"),
    *table.norm("head_layernorm", "dense.norm"),
    *table.linear("head_mlp.fc1", "dense.mlp.up"),
    *table.linear("head_mlp.fc2", "dense.mlp.down"),
]


@pytest.fixture(scope="module")
def folder(golden):
    return golden / "streamformer" / "f7_end_to_end_losses"


@pytest.fixture(scope="module")
def io(folder):
    return safetensors.read_file(folder / "io.safetensors")[0]


@pytest.fixture(scope="module")
def about(folder):
    return json.loads((folder / "case.json").read_text())


@pytest.fixture(scope="module")
def model(folder, io, about):
    """The case's state dict in our model."""
    state = dict(safetensors.read_file(folder / "model.safetensors")[0])
    text = siglip_text.config_of(about["text_config"], folder)
    labels = {"Kinetics": {"Kinetics": io["label_embeddings.Kinetics"]}}
    for task in ("TaskLocalization", "TaskVIS"):
        begin = f"label_embeddings.{task}."
        labels[task] = {n.removeprefix(begin): a for n, a in io.items() if n.startswith(begin)}
    made = Pretraining(
        sj.load(folder), siglip_text.fill(text, state, source=folder), kinds=KINDS, labels=labels,
        logit_scale=state["logit_scale"], logit_bias=state["logit_bias"],
    )  # fmt: skip
    for task, head in made.heads.items():
        rules = HEAD if head.dense is not None else OUTER
        filled = table.load(
            nnx.state(head), rules, state, source=folder, prefix=f"task_heads.{task}."
        )
        nnx.update(head, filled)
    return made


def named(state, made):
    """Every tensor of a state like the model's under its name in the original."""
    tensors = table.dump(
        state["tower"], streamformer.rules(made.tower.config), prefix="timesformer."
    )
    if "text" in state:
        tensors |= table.dump(state["text"], siglip_text.rules(), prefix="text_encoder.text_model.")
    for task, head in made.heads.items():
        rules = HEAD if head.dense is not None else OUTER
        tensors |= table.dump(state["heads"][task], rules, prefix=f"task_heads.{task}.")
    return tensors


def trained(made):
    """The filter by which a run would split the model."""
    config = dataclasses.replace(toy.config(), frozen=frozen(made.tower.config))
    return trainable_filter(config, nnx.state(made))


class Seen(nnx.Module):
    """A tower that has looked already."""

    def __init__(self, config, out):
        self.config, self.out = config, out

    def __call__(self, frames):
        return self.out


def batch_of(io, about, task, made):
    def told(name):
        return jnp.asarray(io[f"{task}.{name}"])

    # The case's pixels are normalised already; they come back to the same.
    batch = {"frames": (jnp.moveaxis(told("video"), 2, -1) + 1) * 127.5}
    if f"{task}.caption_input_ids" in io:
        batch["text"] = told("caption_input_ids")
    if task == "Kinetics":
        batch["label"] = told("label")
    elif task == "TaskGrounding":
        batch["inside"] = told("label").astype(jnp.uint8)
    elif task in about["dataset_of_sample"]:
        names = made.heads[task].datasets
        batch["dataset"] = jnp.array([names.index(n) for n in about["dataset_of_sample"][task]])
        target = told("label" if task == "TaskLocalization" else "mask_target")
        batch["classes"] = target.astype(jnp.int32)
        batch["choices"] = jnp.arange(3)[None].repeat(2, 0)
    return batch


def test_what_is_frozen_never_had_a_gradient(model, folder):
    norms = json.loads((folder / "grad_norms.json").read_text()).values()
    untouched = {name for name in next(iter(norms)) if all(n[name] is None for n in norms)}
    wanted = trained(model)
    ours = {path for path, v in nnx.to_flat_state(nnx.state(model)) if not wanted(path, v)}
    marked = jax.tree.map(lambda a: a, nnx.state(model))
    for path, variable in nnx.to_flat_state(marked):
        variable.set_value(jnp.full(variable.get_value().shape, path in ours, jnp.float32))
    found = {name for name, a in named(marked, model).items() if np.all(np.asarray(a) == 1)}
    assert found | {"logit_scale", "logit_bias"} == untouched
    assert ("logit_scale",) in ours and ("labels", "TaskVIS", "YoutubeVIS") in ours
    assert wanted(("heads", "TaskVIS", "logit_scale"), model.heads["TaskVIS"].logit_scale)


@pytest.fixture(scope="module")
def paid(model, io, about):
    """The loss of every task, and its gradients by the original's names: one program for all.

    The tower looks at the clips of all tasks at once, because compiling is what takes time here;
    gradients are pulled back from each loss alone.
    """
    graph, params, rest = nnx.split(model, trained(model), ...)
    batches = {task: batch_of(io, about, task, model) for task in KINDS}

    def losses(params):
        made = nnx.merge(graph, params, rest)
        config, found = made.tower.config, []
        frames = jnp.concatenate([batch["frames"] for batch in batches.values()])
        whole = made.tower(normalise(frames))
        for i, (task, batch) in enumerate(batches.items()):
            made.tower = Seen(config, jax.tree.map(lambda a, i=i: a[2 * i : 2 * i + 2], whole))
            total, count, _ = OBJECTIVES[KINDS[task]](made, batch, task=task)
            found.append(total / count)
        return jnp.stack(found)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params):
        values, back = jax.vjp(losses, params)
        return values, jax.vmap(back)(jnp.eye(len(batches)))[0]

    values, grads = run(params)
    nothing = jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan), rest)
    out = {}
    for i, task in enumerate(batches):
        whole = nnx.merge_state(jax.tree.map(lambda a, i=i: a[i], grads), nothing)
        out[task] = values[i], {n: np.asarray(a) for n, a in named(whole, model).items()}
    return out


@pytest.mark.parametrize("task", KINDS)
def test_loss_and_gradients_equal_the_original(paid, io, folder, task):
    norms = json.loads((folder / "grad_norms.json").read_text())[task]
    loss, grads = paid[task]
    np.testing.assert_allclose(loss, io[f"{task}.loss"], atol=1e-4, rtol=1e-5)
    for name, norm in norms.items():
        if norm is not None:
            ours = np.linalg.norm(grads[name])
            np.testing.assert_allclose(ours, norm, rtol=2e-3, atol=1e-6, err_msg=name)
        elif name in grads:  # frozen, which is not a number here, or in no loss of this task
            assert np.isnan(grads[name]).all() or not grads[name].any(), name
    for name in (n for n in io if n.startswith(f"{task}.grad.")):
        ours = grads[name.removeprefix(f"{task}.grad.")]
        np.testing.assert_allclose(ours, io[name], atol=2e-5, rtol=2e-3, err_msg=name)
