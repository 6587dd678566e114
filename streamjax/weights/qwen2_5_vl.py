"""Qwen2.5-VL's folder: names of the hub and of transformers 5, settings in every style."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from streamjax.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig, VisionConfig
from streamjax.models.qwen_vl import QwenVL, QwenVLConfig
from streamjax.weights import qwen_vl
from streamjax.weights.qwen_vl import Family
from streamjax.weights.table import Rule, linear, norm
from streamjax.weights.tensors import Lazy


def vision_rules(c: VisionConfig, prefix: str) -> list[Rule]:
    """The rules of `visual.*`; `prefix` stands before patch_embed, blocks and merger."""
    block, ours = f"{prefix}blocks.{{i}}.", "visual.layers."
    return [
        Rule(f"{prefix}patch_embed.proj.weight", "visual.patch.proj.kernel", qwen_vl.patch_form(c)),
        *norm(f"{block}norm1", f"{ours}attn_norm", bias=False),
        *linear(f"{block}attn.qkv", f"{ours}attn.qkv"),
        *linear(f"{block}attn.proj", f"{ours}attn.out"),
        *norm(f"{block}norm2", f"{ours}mlp_norm", bias=False),
        *linear(f"{block}mlp.gate_proj", f"{ours}gate"),
        *linear(f"{block}mlp.up_proj", f"{ours}up"),
        *linear(f"{block}mlp.down_proj", f"{ours}down"),
        *norm(f"{prefix}merger.ln_q", "visual.merger.norm", bias=False),
        *linear(f"{prefix}merger.mlp.0", "visual.merger.up"),
        *linear(f"{prefix}merger.mlp.2", "visual.merger.down"),
    ]


FAMILY = Family(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    model=Qwen2_5_VL,
    config=Qwen2_5_VLConfig,
    vision=VisionConfig,
    vision_rules=vision_rules,
    layouts=(("visual.", "model."), ("model.visual.", "model.language_model.")),
    fixed={"attention_bias": True, "mrope_interleaved": False},
    nested=False,
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


def dump(model: Qwen2_5_VL) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """config.json and tensors as the hub has them; see `qwen_vl.dump`."""
    return qwen_vl.dump(FAMILY, model)
