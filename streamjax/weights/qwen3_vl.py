"""Qwen3-VL's folder: one layout of names, settings in the hub's style and in transformers 5's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from streamjax.models.qwen3_vl import Qwen3_VL, Qwen3_VLConfig, VisionConfig
from streamjax.models.qwen_vl import QwenVL, QwenVLConfig
from streamjax.weights import qwen_vl
from streamjax.weights.qwen_vl import Family
from streamjax.weights.table import Rule, linear, norm
from streamjax.weights.tensors import Lazy


def vision_rules(c: VisionConfig, prefix: str) -> list[Rule]:
    """The rules of `visual.*`; `prefix` stands before patch_embed, blocks and the mergers."""
    block, ours = f"{prefix}blocks.{{i}}.", "visual.layers."
    table = [
        Rule(f"{prefix}patch_embed.proj.weight", "visual.patch.proj.kernel", qwen_vl.patch_form(c)),
        Rule(f"{prefix}patch_embed.proj.bias", "visual.patch.proj.bias"),
        Rule(f"{prefix}pos_embed.weight", "visual.position"),
        *norm(f"{block}norm1", f"{ours}attn_norm"),
        *linear(f"{block}attn.qkv", f"{ours}attn.qkv"),
        *linear(f"{block}attn.proj", f"{ours}attn.out"),
        *norm(f"{block}norm2", f"{ours}mlp_norm"),
        *linear(f"{block}mlp.linear_fc1", f"{ours}up"),
        *linear(f"{block}mlp.linear_fc2", f"{ours}down"),
    ]
    mergers = [(f"{prefix}merger", "visual.merger")]
    if c.deepstack_visual_indexes:
        mergers.append((f"{prefix}deepstack_merger_list.{{i}}", "visual.deepstack"))
    for name, path in mergers:
        table += norm(f"{name}.norm", f"{path}.norm")
        table += linear(f"{name}.linear_fc1", f"{path}.up")
        table += linear(f"{name}.linear_fc2", f"{path}.down")
    return table


FAMILY = Family(
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    model=Qwen3_VL,
    config=Qwen3_VLConfig,
    vision=VisionConfig,
    vision_rules=vision_rules,
    layouts=(("model.visual.", "model.language_model."),),
    fixed={"attention_bias": False, "qk_norm": True, "mrope_interleaved": True},
    nested=True,
)


def config_of(raw: Mapping[str, Any], source: Any) -> QwenVLConfig:
    """The configuration in a config.json; see `qwen_vl.config_of`."""
    return qwen_vl.config_of(FAMILY, raw, source)


def blank(raw: Mapping[str, Any], source: Any) -> QwenVL:
    """The model of a config.json (at the path `source`) with shapes in place of values."""
    return qwen_vl.blank(FAMILY, raw, source)


def load(
    folder: Path, raw: Mapping[str, Any], *, dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> QwenVL:  # fmt: skip
    """Reads a folder; see `qwen_vl.load`."""
    return qwen_vl.load(FAMILY, folder, raw, dtype=dtype, mesh=mesh)


def dump(model: Qwen3_VL) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """config.json and tensors as the hub has them; see `qwen_vl.dump`."""
    return qwen_vl.dump(FAMILY, model)
