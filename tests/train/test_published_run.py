"""The original's optimiser groups and its training loop, through our optimiser and step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.models.pretraining import KINDS, Pretraining, frozen
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import StreamFormer
from streamjax.sharding import make_mesh
from streamjax.train import DataConfig, OptimConfig, TrainConfig
from streamjax.train.config import streamformer_undecayed
from streamjax.train.optim import make_optimizer
from streamjax.train.state import set_up, trainable_filter
from streamjax.train.step import make_step, put
from streamjax.train.video_tasks import objectives
from streamjax.weights import safetensors, siglip_text, streamformer, table

KIND = {
    "Kinetics": "recognition",
    "SSV2": "recognition",
    "TaskRetrieval": "retrieval",
    "TaskGrounding": "grounding",
    "TaskLocalization": "localization",
    "TaskVIS": "segmentation",
    "TaskReferVOS": "referring",
}
TEXT = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
OPTIM = {"weight_decay": 0.05, "no_decay": streamformer_undecayed, "clip": None}


def names_of(model):
    """Our paths -> the original's names, of all parameters."""
    config, depths = model.tower.config, {"tower": model.tower, "text": model.text}
    rules = {
        "tower": ("timesformer.", streamformer.rules(config)),
        "text": ("text_encoder.text_model.", siglip_text.rules()),
    }
    names = {}
    for part, (prefix, listed) in rules.items():
        depth = jax.tree.leaves(nnx.state(depths[part].layers))[0].shape[0]
        for rule in listed:
            path = f"{part}/{rule.path.replace('.', '/')}"
            names[path] = [prefix + name for name in rule.names(depth)]
    dense = [
        *table.linear("w_v", "w_v"),
        *table.linear("v_proj", "v_proj"),
        *table.norm("head_layernorm", "norm"),
        *table.linear("head_mlp.fc1", "mlp.up"),
        *table.linear("head_mlp.fc2", "mlp.down"),
    ]
    for task, head in model.heads.items():
        for name in ("logit_scale", "logit_bias"):
            names[f"heads/{task}/{name}"] = [f"task_heads.{task}.{name}"]
        for rule in dense if head.dense is not None else ():
            path = f"heads/{task}/dense/{rule.path.replace('.', '/')}"
            names[path] = [f"task_heads.{task}.{rule.name}"]
    return names


def test_what_is_trained_and_what_is_decayed_is_the_originals(golden):
    folder = golden / "streamformer" / "h_param_groups"
    wanted = json.loads((folder / "param_groups.json").read_text())
    raw = json.loads((folder / "config.json").read_text()) | {"add_lora_spatial": True}
    config = streamformer.config_of(raw, folder)
    assert set(KIND.values()) == set(KINDS)

    def build():
        rngs = nnx.Rngs(0)
        sets = {"one": jnp.ones((3, 16)), "two": jnp.ones((2, 16))}
        counts = {"recognition": 1, "localization": 2, "segmentation": 2}
        labels = {
            task: dict(list(sets.items())[: counts[kind]])
            for task, kind in KIND.items()
            if kind in counts
        }
        return Pretraining(
            StreamFormer(config, rngs=rngs),
            SiglipText(siglip_text.config_of(TEXT, folder), rngs=rngs),
            kinds=KIND, labels=labels, logit_scale=0.0, logit_bias=0.0,
        )  # fmt: skip

    model = nnx.eval_shape(build)
    run = TrainConfig(
        name="groups", steps=1, batch_size=1, model=lambda rngs: model, weights="loaded",
        objective=objectives(KIND), optim=OptimConfig(lr=1.0, schedule="constant", **OPTIM),
        data=dict.fromkeys(KIND, DataConfig(source=list, transform=dict)), frozen=frozen(config),
    )  # fmt: skip
    _, params, rest = nnx.split(model, trainable_filter(run, nnx.state(model)), ...)
    ones = jax.tree.map(lambda a: jnp.ones(a.shape), params)
    tx = make_optimizer(run.optim, 1, params)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    moved, _ = jax.jit(tx.update)(zeros, tx.init(ones), ones)

    names = names_of(model)
    found = {}
    for path, value in nnx.to_flat_state(moved):
        for name in names["/".join(map(str, path))]:
            found[name] = float(-value.get_value().min())
    never = {"logit_scale", "logit_bias"}  # in its groups, but in no loss: torch never moves them
    groups = {name: group["weight_decay"] for name, group in wanted["trainable"].items()}
    assert found == pytest.approx({n: decay for n, decay in groups.items() if n not in never})
    kept = [
        name
        for path, value in nnx.to_flat_state(rest)
        if isinstance(value, nnx.Param)
        for name in names["/".join(map(str, path))]
    ]
    assert sorted(kept) == sorted(wanted["frozen"])


@pytest.fixture(scope="module")
def epochs(golden):
    """The case, and after each epoch the rows of metrics and all of the original's tensors."""
    folder = golden / "streamformer" / "j_train_two_epochs"
    case = json.loads((folder / "case.json").read_text())
    raw = json.loads((folder / "config.json").read_text()) | {"add_lora_spatial": True}
    io = safetensors.read_file(folder / "io.safetensors")[0]
    state = dict(safetensors.read_file(folder / "model.safetensors")[0])
    kinds = {task: KIND[task] for task in case["multi_task_config"]}

    def build(rngs):
        del rngs
        text = siglip_text.config_of(case["text_config"], folder)
        return Pretraining(
            streamformer.fill(streamformer.blank(raw, folder), state, source=folder),
            siglip_text.fill(text, state, source=folder),
            kinds=kinds,
            labels={"Kinetics": {"K400": io["label_embeddings.Kinetics"]}},
            logit_scale=state["logit_scale"],
            logit_bias=state["logit_bias"],
        )

    def mini_batch(task, name):
        video = np.asarray(io[f"{name}.video"])
        batch = {"frames": (video.transpose(0, 1, 3, 4, 2) + 1) * 127.5}
        if task == "Kinetics":
            return task, {**batch, "label": io[f"{name}.label"]}
        batch["text"] = io[f"{name}.caption_input_ids"]
        if task == "TaskGrounding":
            batch["inside"] = np.asarray(io[f"{name}.label"]).astype(np.uint8)
        return task, batch

    per_update, per_epoch = case["update_freq"], case["niter_per_epoch_given_to_schedule"]
    run = TrainConfig(
        name="two_epochs", steps=case["epochs"] * per_epoch, batch_size=2, model=build,
        weights="loaded", objective=objectives(kinds), order="balanced", accumulate=per_update,
        data=dict.fromkeys(kinds, DataConfig(source=list, transform=dict)),
        optim=OptimConfig(lr=case["lr_base"], restart=per_epoch, **OPTIM),
        frozen=frozen(streamformer.config_of(raw, folder)),
    )  # fmt: skip
    mesh = make_mesh()
    setup = set_up(run, mesh)
    tasks = case["tasks_of_micro_batches"]
    told = []
    with jax.set_mesh(mesh):
        now, step = setup.make(), make_step(run, setup, mesh)
        for epoch in range(case["epochs"]):
            rows = []
            # Mini-batches left over at the end of an epoch are dropped.
            for start in range(0, len(tasks) // per_update * per_update, per_update):
                update = [
                    mini_batch(tasks[i], f"epoch{epoch}.batch{i}")
                    for i in range(start, start + per_update)
                ]
                now, metrics = step(now, put(run, update, mesh))
                rows.append(jax.device_get(metrics))
            told.append((rows, tensors(nnx.merge(setup.graphdef, now.params, now.frozen))))
    return case, io, state, told


def tensors(model):
    """The parameters under the original's names."""
    listed = streamformer.rules(model.tower.config)
    state = nnx.state(model.tower, nnx.Param)
    named = dict(table.dump(state, listed, prefix=streamformer.PREFIX))
    for task, head in model.heads.items():
        for name in ("logit_scale", "logit_bias"):
            named[f"task_heads.{task}.{name}"] = getattr(head, name)[...]
    named |= {"logit_scale": model.logit_scale[...], "logit_bias": model.logit_bias[...]}
    return {name: np.asarray(value) for name, value in named.items()}


def test_each_update_pays_what_the_originals_paid(epochs):
    case, _, _, told = epochs
    tasks, losses = case["tasks_of_micro_batches"], case["micro_batch_losses_unscaled"]
    rows = [row for each, _ in told for row in each]
    assert len(rows) == len(case["optimizer_steps"])
    for number, (row, wanted) in enumerate(zip(rows, case["optimizer_steps"], strict=True)):
        np.testing.assert_allclose(row["lr"], wanted["lr"], rtol=1e-6)
        np.testing.assert_allclose(row["grad_norm"], wanted["grad_norm"], rtol=1e-3)
        epoch, place = divmod(number, len(told[0][0]))
        first = epoch * len(tasks) + place * case["update_freq"]
        paid = losses[first : first + case["update_freq"]]
        np.testing.assert_allclose(row["loss"], np.mean(paid), rtol=1e-4, atol=1e-4)
        window = tasks[place * case["update_freq"] :]
        for task, loss in zip(window, paid, strict=False):
            np.testing.assert_allclose(row[f"{task}/loss"], loss, rtol=1e-4, atol=1e-4)


def test_after_each_epoch_parameters_are_the_originals(epochs):
    case, io, _, told = epochs
    tolerance = {key: case["tolerance"]["parameters"][key] for key in ("atol", "rtol")}
    for epoch, (_, found) in enumerate(told):
        prefix = f"after_epoch{epoch}."
        wanted = {n.removeprefix(prefix): a for n, a in io.items() if n.startswith(prefix)}
        masks = {name for name in wanted if name.endswith("." + streamformer.MASK)}
        assert set(found) == set(wanted) - masks
        for name, ours in found.items():
            theirs = np.asarray(wanted[name])
            if name.endswith(("temporal_attention.attention.qkv.bias", "in_proj_bias")):
                # The bias of keys shifts a softmax alike: its gradient is rounding.
                ours, theirs = (np.delete(a.reshape(3, -1), 1, axis=0) for a in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, err_msg=prefix + name, **tolerance)


def test_what_has_no_gradient_is_not_touched_not_even_by_decay(epochs):
    _, _, state, told = epochs
    found = told[-1][1]
    base = "timesformer.encoder.layer.0.attention."
    for name in (
        "logit_scale",
        "logit_bias",
        *(
            f"{base}{layer}.{x}"
            for layer in ("attention.qkv", "output.dense")
            for x in ("weight", "bias")
        ),
    ):
        np.testing.assert_array_equal(found[name], state[name], err_msg=name)
    assert not np.array_equal(
        found["task_heads.Kinetics.logit_scale"], state["task_heads.Kinetics.logit_scale"]
    )
