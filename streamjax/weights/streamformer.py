"""StreamFormer's tensors by their original names (specs/streamformer.md section 2.7)."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.weights import safetensors, table
from streamjax.weights.config import Extras, parse_config
from streamjax.weights.table import TRANSPOSED, Form, Rule, linear, norm
from streamjax.weights.tensors import Tensor

MODEL_TYPE = "timesformer"
PREFIX = "timesformer."  # before every name when saved from the multi-task model
TASKS = "streamjax_tasks"  # a key of config.json that weights/pretraining.py reads
MASK = "temporal_attention.attention.mask"  # a buffer of the original that nothing reads
# What the multi-task model holds beside the backbone.
_BESIDE = re.compile(r"(text_encoder|task_heads)\..+|logit_(scale|bias)")


def config_of(raw: Mapping[str, Any], source: Any) -> StreamFormerConfig:
    """The configuration in a config.json; `clip_config` is informational in the original too."""
    also = frozenset({"clip_config", TASKS})
    return parse_config(StreamFormerConfig, raw, source=source, also=also)


def blank(raw: Mapping[str, Any], source: Any) -> StreamFormer:
    """The model of a config.json with shapes in place of values, and the buffers it implies."""
    config = config_of(raw, source)
    model = nnx.eval_shape(lambda: StreamFormer(config, rngs=nnx.Rngs(0)))
    model.assets = Assets(extras=Extras(config=dict(raw), tensors=buffers(config)))
    return model


def load(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> StreamFormer:
    """Reads a folder in either of the original's layouts: bare names, or the multi-task prefix.

    dtype: of parameters and computation; None keeps the stored one. Beside the parameters the mask
    buffers are accepted and, in the prefixed layout, text_encoder.*, task_heads.*, logit_scale and
    logit_bias; all are kept for saving. LoRA in the prefixed layout is taken as it is, whatever
    add_lora_spatial says, and saved with true. Raises InputError for any other tensor, a missing or
    mis-shaped one, and a bad config.
    """
    tensors, _ = safetensors.read_folder(folder)
    # The multi-task training adds LoRA to its model without writing so into the config.
    if any(n.startswith(PREFIX) and n.endswith(".qkv_lora_a.weight") for n in tensors):
        raw = {**raw, "add_lora_spatial": True}
    model = blank(raw, folder / "config.json")
    return fill(model, tensors, source=safetensors.source_of(folder), dtype=dtype, mesh=mesh)


def fill(
    model: StreamFormer,
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> StreamFormer:
    """A `blank` model with the values of the tensors; every tensor must have a place."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    graph, shapes = nnx.split(model)
    wanted = rules(model.config)
    known = table.expected(shapes, wanted, prefix=prefix)
    extras = {name: a for name, a in tensors.items() if name not in known}
    _check_extras(extras, known, model.config, prefix, source)
    state = table.load(
        shapes, wanted, tensors, source=source, prefix=prefix, dtype=dtype, mesh=mesh
    )
    filled = table.computing_as_kept(nnx.merge(graph, state))
    kept = dataclasses.replace(model.assets.extras, tensors=extras, prefix=prefix)
    filled.assets = dataclasses.replace(model.assets, extras=kept)
    return filled


def dump(model: StreamFormer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors as the original reads them, in the layout the model came in.

    A model that came from no folder is written with bare names and the mask buffers that the
    original's strict loader asks for. Raises ValueError for a folded model.
    """
    if isinstance(model.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    c, extras = model.config, model.assets.extras
    raw = {"architectures": ["TimesformerMultiTaskingModelSigLIP"], "model_type": MODEL_TYPE}
    if extras is None:
        extras = Extras(config=raw, tensors=buffers(c))
    tensors = table.dump(nnx.state(model, nnx.Param), rules(c), prefix=extras.prefix)
    return raw | dict(extras.config) | dataclasses.asdict(c), tensors | dict(extras.tensors)


def buffers(c: StreamFormerConfig) -> dict[str, np.ndarray]:
    """The mask buffers that the original's strict loader asks for."""
    if not c.enable_causal_temporal:
        return {}
    mask = np.tril(np.ones((c.num_frames, c.num_frames), np.float32))
    return {f"encoder.layer.{i}.{MASK}": mask for i in range(c.num_hidden_layers)}


def _check_extras(
    extras: Mapping[str, Tensor], known: set[str], c: StreamFormerConfig, prefix: str, source
) -> None:
    masks = {f"{prefix}encoder.layer.{i}.{MASK}" for i in range(c.num_hidden_layers)}
    masks = masks if c.enable_causal_temporal else set()
    table.refuse(
        (n for n in extras if not (n in masks or (prefix and _BESIDE.fullmatch(n)))),
        known | masks,
        source,
    )
    for name in masks & set(extras):
        if extras[name].shape != (c.num_frames, c.num_frames):
            raise InputError(
                f"{source}: tensor {name} has shape {list(extras[name].shape)}, wanted "
                f"{[c.num_frames] * 2} by num_frames in config.json"
            )


def rules(config: StreamFormerConfig) -> list[Rule]:
    """The table for one configuration; names without the multi-task model's prefix."""
    c = config
    layer = "encoder.layer.{i}."
    conv = Form(
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(c.patch_size, c.patch_size, c.num_channels, -1).transpose(3, 2, 0, 1),
    )
    row = Form(lambda a: a[0], lambda a: a[None])
    probe = Form(lambda a: a[0, 0], lambda a: a[None, None])
    table = [
        Rule("embeddings.position_embeddings", "position", row),
        Rule("embeddings.time_embeddings", "time", row),
        Rule("embeddings.patch_embeddings.projection.weight", "patch.kernel", conv),
        Rule("embeddings.patch_embeddings.projection.bias", "patch.bias"),
        Rule(layer + "temporal_attention_gating", "layers.gate"),
        *norm(layer + "temporal_layernorm", "layers.temporal_norm"),
        *linear(layer + "temporal_attention.attention.qkv", "layers.temporal.qkv", c.qkv_bias),
        *linear(layer + "temporal_attention.output.dense", "layers.temporal.out"),
        *linear(layer + "temporal_dense", "layers.temporal_dense"),
        *norm(layer + "layernorm_before", "layers.attn_norm"),
        *linear(layer + "attention.attention.qkv", "layers.attn.qkv", c.qkv_bias),
        *linear(layer + "attention.output.dense", "layers.attn.out"),
        *norm(layer + "layernorm_after", "layers.mlp_norm"),
        *linear(layer + "intermediate.dense", "layers.mlp.up"),
        *linear(layer + "output.dense", "layers.mlp.down"),
        *norm("post_layernorm", "norm"),
        Rule("head.probe", "head.probe", probe),
        Rule("head.attention.in_proj_weight", "head.qkv.kernel", TRANSPOSED),
        Rule("head.attention.in_proj_bias", "head.qkv.bias"),
        *linear("head.attention.out_proj", "head.out"),
        *norm("head.layernorm", "head.norm"),
        *linear("head.mlp.fc1", "head.mlp.up"),
        *linear("head.mlp.fc2", "head.mlp.down"),
    ]
    if c.add_lora_spatial:
        table += [
            Rule(f"{layer}attention.{theirs}_{x}.weight", f"layers.attn.{ours}.{x}", TRANSPOSED)
            for theirs, ours in (("attention.qkv", "qkv"), ("output.dense", "out"))
            for x in ("lora_a", "lora_b")
        ]
    return table
