"""The multi-task model's tensors by their original names (specs/streamformer.md 2.7, its end).

The backbone under `timesformer.`, the text tower under `text_encoder.`, each task's own under
`task_heads.<task>.`. In a folder of weights config.json describes a StreamFormer, which is what the
original reads from it and `sj.load` too; one more key, which the original ignores, says which tasks
there are, and with it the whole model can be read (`load`). A run's model/ is always the whole.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.pretraining import Pretraining
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import StreamFormer
from streamjax.weights import safetensors, siglip_text, streamformer, table
from streamjax.weights.config import Extras
from streamjax.weights.streamformer import PREFIX, TASKS
from streamjax.weights.table import Rule, linear, norm
from streamjax.weights.tensors import Tensor

TEXT = "text_encoder.text_model."
# The original registers the shared text tower and pooling head again under every task.
_AGAIN = re.compile(r"task_heads\.([^.]+)\.(text_encoder|head)\..+")


def blank(raw: Mapping[str, Any], source: Any) -> Pretraining:
    """The model of a config.json with shapes in place of values.

    Raises InputError for a config.json that names no tasks, and for tasks that cannot be.
    """
    tasks = _tasks(raw, source)
    config = streamformer.config_of(raw, source)
    told = raw.get("clip_config") or {}
    settings = told.get("text_config") if isinstance(told, Mapping) else None
    if not isinstance(settings, Mapping):
        raise InputError(f"{source}: clip_config.text_config is missing, wanted the text tower's")
    side = siglip_text.config_of(settings, f"{source}: clip_config.text_config")

    def make() -> Pretraining:
        rngs = nnx.Rngs(0)
        labels = {
            task: {name: jnp.zeros((rows, side.width)) for name, rows in about["labels"].items()}
            for task, about in tasks.items()
            if about["labels"]
        }
        return Pretraining(
            StreamFormer(config, rngs=rngs), SiglipText(side, rngs=rngs),
            kinds={task: about["kind"] for task, about in tasks.items()}, labels=labels,
            logit_scale=0.0, logit_bias=0.0,
        )  # fmt: skip

    try:
        model = nnx.eval_shape(make)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    model.tower.assets = Assets(extras=Extras(config=dict(raw), prefix=PREFIX))
    return model


def load(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Pretraining:
    """The whole model of a folder that `sj.save` has written; dtype None keeps the stored one.

    Raises InputError when config.json names no tasks (the folder of a backbone), for a tensor that
    is unknown, missing or mis-shaped, and for a bad config.
    """
    model = blank(raw, folder / "config.json")
    tensors, _ = safetensors.read_folder(folder)
    return fill(model, tensors, source=safetensors.source_of(folder), dtype=dtype, mesh=mesh)


def whole_of(tower: StreamFormer) -> Pretraining:
    """The whole model that a StreamFormer is the backbone of, from what its folder held beside it.

    Raises InputError when that folder named no tasks, and as `load` does.
    """
    raw, tensors = streamformer.dump(tower)
    source = "the model's folder"
    model = fill(blank(raw, source), tensors, source=source)
    model.tower.assets = tower.assets
    return model


def fill(
    model: Pretraining,
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Pretraining:
    """A `blank` model with the values of the tensors; every tensor must have a place.

    A training checkpoint of the original has all but the label tables, which it computes at its
    start: add them as `task_heads.<task>.label_embeddings.<data set>`. Its duplicates of the text
    tower and the pooling head under each task, and its mask buffers, are accepted and dropped.
    """
    graph, shapes = nnx.split(model)
    prefix = siglip_text.prefix_of(tensors) or ""
    wanted = rules(model, text=prefix if prefix.startswith("text_encoder.") else TEXT)
    c = model.tower.config
    known = table.expected(shapes, wanted)
    masks = {f"{PREFIX}encoder.layer.{i}.{streamformer.MASK}" for i in range(c.num_hidden_layers)}
    masks = masks if c.enable_causal_temporal else set()
    again = {
        n for n in tensors if (found := _AGAIN.fullmatch(n)) and found[1] in model.kinds
    } - known
    table.refuse((n for n in tensors if n not in known | masks | again), known | masks, source)
    state = table.load(shapes, wanted, tensors, source=source, dtype=dtype, mesh=mesh)
    return table.computing_as_kept(nnx.merge(graph, state))


def dump(model: Pretraining) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors as the original's multi-task class has them, duplicates left out.

    Label tables are written too, as `task_heads.<task>.label_embeddings.<data set>`, which the
    original does not look at. Raises ValueError for a folded tower and for names with a dot.
    """
    tower = model.tower
    if isinstance(tower.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    extras = tower.assets.extras
    found = {} if extras is None else dict(extras.config)
    clip = found.get("clip_config")
    raw = {"architectures": ["TimesformerMultiTaskingModelSigLIP"]} | found
    raw |= dataclasses.asdict(tower.config)
    raw |= {
        "model_type": streamformer.MODEL_TYPE,
        "clip_config": {"model_type": "siglip"}
        | (dict(clip) if isinstance(clip, Mapping) else {})
        | {"text_config": siglip_text.settings(model.text.config)},
        TASKS: {
            task: {
                "kind": head.kind,
                "labels": {n: len(model.labels[task][n][...]) for n in head.datasets},
            }
            for task, head in model.heads.items()
        },
    }
    tensors: dict[str, Tensor] = dict(table.dump(nnx.state(model), rules(model)))
    masks = streamformer.buffers(tower.config)
    return raw, tensors | {PREFIX + name: mask for name, mask in masks.items()}


def rules(model: Pretraining, *, text: str = TEXT) -> list[Rule]:
    """The table of one model; text: what stands before the text tower's names."""
    every = [
        *_under(PREFIX, "tower.", streamformer.rules(model.tower.config)),
        *_under(text, "text.", siglip_text.rules()),
        Rule("logit_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias"),
    ]
    for task, head in model.heads.items():
        own = [Rule("logit_scale", "logit_scale"), Rule("logit_bias", "logit_bias")]
        if head.dense is not None:
            own += [
                *linear("w_v", "dense.w_v"),
                *linear("v_proj", "dense.v_proj"),
                *norm("head_layernorm", "dense.norm"),
                *linear("head_mlp.fc1", "dense.mlp.up"),
                *linear("head_mlp.fc2", "dense.mlp.down"),
            ]
        every += _under(f"task_heads.{task}.", f"heads.{task}.", own)
        for name in head.datasets:
            if "." in task or "." in name:
                raise ValueError(f"label table {task}/{name}: wanted names without a dot")
            place = f"task_heads.{task}.label_embeddings.{name}"
            every.append(Rule(place, f"labels.{task}.{name}"))
    return every


def _under(name: str, path: str, rules: list[Rule]) -> list[Rule]:
    return [dataclasses.replace(r, name=name + r.name, path=path + r.path) for r in rules]


def _tasks(raw: Mapping[str, Any], source: Any) -> Mapping[str, Mapping[str, Any]]:
    """What config.json says of the tasks, checked as far as the model itself does not."""
    tasks = raw.get(TASKS)
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(
            f"{source}: {TASKS} is missing, wanted the tasks and their kinds: this folder holds a "
            "backbone, or was not written by streamjax"
        )
    for task, about in tasks.items():
        labels = about.get("labels") if isinstance(about, Mapping) else None
        fine = isinstance(labels, Mapping) and isinstance(about.get("kind"), str)
        if not fine or any(type(rows) is not int for rows in labels.values()):
            raise InputError(
                f"{source}: {TASKS}.{task} is {about!r}, wanted "
                '{"kind": ..., "labels": {data set: number of classes}}'
            )
    return tasks
