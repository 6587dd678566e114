"""The language model's part of a family's folder: its tensors' names and its settings.

Names: specs/vlm.md section 3.2, the same below every family's prefix. Settings stand in config.json
in three styles: flat, under `text_config`, or both (transformers 4.57 writes some twice); rotation
as `rope_theta` + `rope_scaling` (what the hub has) or as `rope_parameters` (transformers 5).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from streamjax.errors import InputError
from streamjax.models.decoder import DecoderConfig
from streamjax.weights.config import parse_config
from streamjax.weights.table import TRANSPOSED, Rule

# Of a language model's settings: what no forward reads, at any of the places above.
ALSO = frozenset({
    "attention_dropout", "layer_types", "max_window_layers", "mlp_bias", "model_type",
    "pretraining_tp", "rope_parameters", "rope_scaling", "sliding_window", "use_cache",
    "use_sliding_window",
})  # fmt: skip


def decoder_rules(
    config: DecoderConfig, *, model: str = "model.", head: str = "lm_head.weight"
) -> list[Rule]:
    """The rules of `decoder.*`; `model` stands before embed_tokens, layers and norm."""
    layer, ours = f"{model}layers.{{i}}.", "decoder.layers."
    attention = [
        Rule(f"{layer}self_attn.{x}_proj.weight", f"{ours}{x}.kernel", TRANSPOSED) for x in "qkv"
    ]
    if config.attention_bias:
        attention += [Rule(f"{layer}self_attn.{x}_proj.bias", f"{ours}{x}.bias") for x in "qkv"]
    if config.qk_norm:
        attention += [
            Rule(f"{layer}self_attn.{x}_norm.weight", f"{ours}{x}_norm.scale") for x in "qk"
        ]
    untied = [] if config.tie_word_embeddings else [Rule(head, "decoder.head", TRANSPOSED)]
    return [
        Rule(f"{model}embed_tokens.weight", "decoder.embed"),
        Rule(f"{layer}input_layernorm.weight", f"{ours}attn_norm.scale"),
        *attention,
        Rule(f"{layer}self_attn.o_proj.weight", f"{ours}out.kernel", TRANSPOSED),
        Rule(f"{layer}post_attention_layernorm.weight", f"{ours}mlp_norm.scale"),
        *(
            Rule(f"{layer}mlp.{x}_proj.weight", f"{ours}{x}.kernel", TRANSPOSED)
            for x in ("gate", "up", "down")
        ),
        Rule(f"{model}norm.weight", "decoder.norm.scale"),
        *untied,
    ]


def text_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's settings of a config.json in any style; `text_config` wins."""
    nested = raw.get("text_config") or {}
    names = {f.name for f in dataclasses.fields(DecoderConfig)} | ALSO
    flat = {key: value for key, value in raw.items() if key in names}
    return flat | {key: value for key, value in nested.items() if value is not None}


def decoder_config(
    settings: Mapping[str, Any],
    source: Any,
    *,
    also: frozenset[str] = frozenset(),
    **fixed: Any,
) -> DecoderConfig:
    """DecoderConfig from `text_settings`; `fixed`: what the family decides (attention_bias, ...).

    Raises InputError for an unknown or a missing key, for what the family decides otherwise, and
    for a rotation or a window of attention that no released model of these families uses.
    """
    flat = dict(settings)
    rope = flat.get("rope_parameters") or flat.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{source}: rope_scaling is {rope!r}, wanted an object of settings")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope", "dynamic"):
        raise InputError(f"{source}: rope of type {kind!r}, wanted default, mrope or dynamic")
    if flat.get("use_sliding_window"):
        raise InputError(f"{source}: use_sliding_window is true, wanted false")
    if flat.get("rope_theta") is None:
        flat["rope_theta"] = rope.get("rope_theta")
    if (sections := rope.get("mrope_section")) is not None:
        if not isinstance(sections, list) or [type(n) for n in sections] != [int] * 3:
            raise InputError(f"{source}: mrope_section is {sections!r}, wanted three whole numbers")
        flat["mrope_section"] = tuple(sections)
        flat["mrope_interleaved"] = rope.get("mrope_interleaved")
    if kind == "dynamic":
        factor = rope.get("factor", 1.0)
        if not isinstance(factor, int | float):
            raise InputError(f"{source}: factor is {factor!r}, wanted a number (rope_scaling)")
        flat["rope_dynamic_factor"] = float(factor)
    for key, value in fixed.items():
        if flat.get(key) not in (None, value):
            raise InputError(f"{source}: {key} is {flat[key]!r}, wanted {value!r} of this family")
    flat |= fixed
    flat.setdefault("num_key_value_heads", flat.get("num_attention_heads"))
    flat = {key: value for key, value in flat.items() if value is not None}
    needed = [f.name for f in dataclasses.fields(DecoderConfig) if f.default is dataclasses.MISSING]
    for key in [*needed, "rope_theta", "rms_norm_eps"]:  # classes' defaults are not the hub's
        if key not in flat:
            raise InputError(f"{source}: {key} is missing, wanted a number")
    return parse_config(DecoderConfig, flat, source=source, also=ALSO | also)


def hub_settings(config: DecoderConfig) -> dict[str, Any]:
    """The settings in the style of the hub, which transformers 4 and 5 both read right."""
    own = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ("qk_norm", "attention_bias", "mrope_section", "mrope_interleaved",
                          "rope_dynamic_factor", "head_dim")
    }  # fmt: skip
    if config.head_dim is not None or config.qk_norm:  # Qwen3's default is not hidden / heads
        own["head_dim"] = config.head
    if config.rope_dynamic_factor is not None:
        factor = config.rope_dynamic_factor
        own["rope_scaling"] = {"type": "dynamic", "rope_type": "dynamic", "factor": factor}
    if config.mrope_section is not None:
        own["rope_scaling"] = {"type": "mrope", "mrope_section": list(config.mrope_section)}
        if config.mrope_interleaved:
            own["rope_scaling"] = {
                "rope_type": "default",
                "mrope_section": list(config.mrope_section),
                "mrope_interleaved": True,
            }
    return own
