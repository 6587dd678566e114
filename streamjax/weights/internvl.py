"""InternVL3's folders, in three layouts of names and three styles of config.json.

Names and settings as Hugging Face's hub has them ("hub"), as transformers 5 has them in memory
("native"), and as OpenGVLab's own code has them ("original"); the first is what is written.
specs/vlm.md section 3.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.internvl import InternViTConfig, InternVL, InternVLConfig
from streamjax.weights import safetensors, table
from streamjax.weights.config import Extras, parse_config, read_config
from streamjax.weights.decoder import decoder_config, decoder_rules, hub_settings
from streamjax.weights.table import Form, Rule, linear, norm
from streamjax.weights.tensors import Lazy, Stored

PLACEHOLDER = "<IMG_CONTEXT>"

# The other layouts' names, from the hub's: what to replace, in this order.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "hub": (),
    "native": (
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    "original": (
        ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
        ("embeddings.position_embeddings", "embeddings.position_embedding"),
        ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
        ("vision_tower.", "vision_model."),
        ("encoder.layer.", "encoder.layers."),
        ("attention.projection_layer", "attn.proj"),
        # One tensor there; `_thirds` takes it apart.
        *((f".attention.{x}_proj.", f".attn.qkv.{x}.") for x in "qkv"),
        (".attention.", ".attn."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("lambda_", "ls"),
        ("multi_modal_projector.layer_norm", "mlp1.0"),
        ("multi_modal_projector.linear_1", "mlp1.1"),
        ("multi_modal_projector.linear_2", "mlp1.3"),
    ),
}
_STARTS = {
    "hub": ("vision_tower.", "multi_modal_projector."),
    "native": ("model.",),
    "original": ("vision_model.", "mlp1."),
}

# Settings by place: what they must say where they are present, for other values are other models;
# and those that no forward reads.
_WANTED = {
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "ps_version": "v2",
    "select_layer": -1, "use_backbone_lora": 0, "use_llm_lora": 0,
}  # fmt: skip
_ALSO = frozenset({
    "text_config", "vision_config", "image_seq_length", "vision_feature_layer",
    "vision_feature_select_strategy",
})  # fmt: skip
_VISION_WANTED = {
    "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
    "use_moe": False,
}  # fmt: skip
_VISION_ALSO = frozenset({
    "attention_dropout", "dropout", "hidden_dropout_prob", "initializer_factor",
    "projection_dropout", "use_absolute_position_embeddings", "use_mask_token", "use_mean_pooling",
})  # fmt: skip

# The original's config.json: its names for the hub's settings, and what else it holds. The folders
# that were converted to the hub's style have some of the latter too.
_VISION_NAMES = {
    "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm",
    "initializer_factor": "layer_scale_init_value", "dropout": "hidden_dropout_prob",
}  # fmt: skip
_ORIGINAL = frozenset({
    "dynamic_image_size", "force_image_size", "hidden_size", "image_fold", "llm_config",
    "max_dynamic_patch", "min_dynamic_patch", "pad2square", "ps_version", "select_layer",
    "system_message", "template", "use_backbone_lora", "use_llm_lora", "use_thumbnail",
})  # fmt: skip
_ORIGINAL_VISION = frozenset({
    "attn_implementation", "capacity_factor", "drop_path_rate", "eval_capacity_factor",
    "laux_allreduce", "moe_coeff_ratio", "moe_intermediate_size", "moe_output_scale",
    "noisy_gate_policy", "num_experts", "num_routed_experts", "num_shared_experts",
    "shared_expert_intermediate_size", "use_flash_attn", "use_moe", "use_residual", "use_rts",
    "use_weighted_residual",
})  # fmt: skip
_ORIGINAL_TEXT = frozenset({"attn_implementation", "moe_config"})
_CODE = frozenset({"architectures", "auto_map"})  # name the original's own classes
# What 5.x writes and 4.x reads wrongly or not at all (specs/vlm.md 3.4).
_NEWER = frozenset({"dtype", "layer_types", "rope_parameters"})


def config_of(raw: Mapping[str, Any], source: Any) -> InternVLConfig:
    """The configuration in a config.json (at the path `source`) of any of the three styles.

    The original's does not say which token is the placeholder; the tokenizer beside it does.
    Raises InputError for an unknown key (naming the nearest right one), a missing one, another
    language model than Qwen2, and a value that no released model uses or that does not fit.
    """
    ids = {"image_token_id": _placeholder(Path(source).parent)} if _is_original(raw) else {}
    raw = _hub_style(raw, source) | ids
    _check(raw, _WANTED, source)
    text, vision = (_part(raw, key, source) for key in ("text_config", "vision_config"))
    text = {key: value for key, value in text.items() if value is not None}
    if text.get("model_type", "qwen2") != "qwen2":
        raise InputError(
            f"{source}: the language model is {text['model_type']!r}, wanted 'qwen2' (InternVL3 "
            "of 1B, 2B, 8B, 14B, 38B and 78B)"
        )
    text.setdefault("tie_word_embeddings", bool(raw.get("tie_word_embeddings", False)))
    decoder = decoder_config(
        text, f"{source}: text_config", also=_ORIGINAL_TEXT, attention_bias=True
    )
    tower = _vision_config(vision, f"{source}: vision_config")
    own = parse_config(_Own, raw, source=source, also=_ALSO)
    try:
        return InternVLConfig(vision=tower, decoder=decoder, **dataclasses.asdict(own))
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def blank(raw: Mapping[str, Any], source: Any) -> InternVL:
    """The model of a config.json (at the path `source`) with shapes in place of values."""
    return _blank(config_of(raw, source), raw)


def load(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> InternVL:
    """Reads a folder in any of the three layouts; dtype None keeps the stored one.

    An lm_head tensor is used when it is there; else the head is tied, whatever the config says.
    Raises InputError for a tensor that is unknown, missing or mis-shaped, and for a bad config.
    """
    source = safetensors.source_of(folder)
    tensors, _ = safetensors.read_folder(folder)
    layout = layout_of(tensors)
    if layout == "original":
        tensors = _thirds(tensors, source)
    config = config_of(raw, folder / "config.json")
    tied = _named("language_model.lm_head.weight", layout) not in tensors
    decoder = dataclasses.replace(config.decoder, tie_word_embeddings=tied)
    config = dataclasses.replace(config, decoder=decoder)
    wanted = rules(config, layout)
    return table.fill(_blank(config, raw), wanted, tensors, source=source, dtype=dtype, mesh=mesh)


def dump(model: InternVL) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """config.json and tensors in the hub's style and layout, which transformers 4 and 5 both read.

    Raises ValueError for a folded model.
    """
    if isinstance(model.decoder.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    c, kind = model.config, jnp.dtype(model.decoder.embed[...].dtype).name
    extras = model.assets.extras
    found = {} if extras is None else _hub_style(extras.config, "config.json")
    if str(found.get("transformers_version", "")) >= "5":
        del found["transformers_version"]
    kept, text, vision = (
        {key: value for key, value in part.items() if key not in _NEWER}
        for part in (found, found.get("text_config", {}), found.get("vision_config", {}))
    )
    sizes = dataclasses.asdict(c.vision)
    sizes |= {key: [sizes[key]] * 2 for key in ("image_size", "patch_size")}
    raw = kept | {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": c.downsample_ratio,
        "image_seq_length": (c.vision.side // c.merge) ** 2,
        "projector_hidden_act": c.projector_hidden_act,
        "text_config": text | hub_settings(c.decoder) | {"model_type": "qwen2"},
        "tie_word_embeddings": c.decoder.tie_word_embeddings,
        "torch_dtype": kind,
        "vision_config": vision | sizes | {"model_type": "internvl_vision"},
    }
    if c.image_token_id is not None:
        raw["image_token_id"] = c.image_token_id
    return raw, table.dump(nnx.state(model, nnx.Param), rules(c))


def rules(config: InternVLConfig, layout: str = "hub") -> list[Rule]:
    """The table for one configuration; layout: "hub", "native" or "original"."""
    c = config.vision
    row = Form(lambda a: a[0], lambda a: a[None])
    corner = Form(lambda a: a[0, 0], lambda a: a[None, None])
    shape = (-1, c.num_channels, c.patch_size, c.patch_size)
    patch = Form(lambda a: a.reshape(len(a), -1).T, lambda a: a.T.reshape(shape))
    tower, layer, ours = "vision_tower.embeddings.", "vision_tower.encoder.layer.{i}.", "layers."
    biased = c.norm_type == "layer_norm"
    visual = [
        Rule(f"{tower}cls_token", "cls", corner),
        Rule(f"{tower}position_embeddings", "position", row),
        Rule(f"{tower}patch_embeddings.projection.weight", "patch.kernel", patch),
        Rule(f"{tower}patch_embeddings.projection.bias", "patch.bias"),
        *norm(f"{layer}layernorm_before", f"{ours}attn_norm", biased),
    ]
    for x in "qkv":
        visual += linear(f"{layer}attention.{x}_proj", ours + x, c.attention_bias)
    if c.use_qk_norm:
        for x in "qk":
            visual += norm(f"{layer}attention.{x}_norm", f"{ours}{x}_norm", False)
    visual += [
        *linear(f"{layer}attention.projection_layer", f"{ours}out"),
        Rule(f"{layer}lambda_1", f"{ours}attn_scale"),
        *norm(f"{layer}layernorm_after", f"{ours}mlp_norm", biased),
        *linear(f"{layer}mlp.fc1", f"{ours}up"),
        *linear(f"{layer}mlp.fc2", f"{ours}down"),
        Rule(f"{layer}lambda_2", f"{ours}mlp_scale"),
    ]
    every = [
        *(dataclasses.replace(rule, path=f"visual.{rule.path}") for rule in visual),
        *norm("multi_modal_projector.layer_norm", "projector.norm"),
        *linear("multi_modal_projector.linear_1", "projector.up"),
        *linear("multi_modal_projector.linear_2", "projector.down"),
        *decoder_rules(
            config.decoder, model="language_model.model.", head="language_model.lm_head.weight"
        ),
    ]
    return [dataclasses.replace(rule, name=_named(rule.name, layout)) for rule in every]


def layout_of(names: Any) -> str:
    """Which layout these tensors are in: the one whose beginnings most of them have."""
    counts = {
        layout: sum(name.startswith(starts) for name in names) for layout, starts in _STARTS.items()
    }
    return max(counts, key=counts.__getitem__)


@dataclasses.dataclass(frozen=True)
class _Own:
    """What InternVLConfig reads at the top of config.json, with transformers' defaults."""

    image_token_id: Any = 151667
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"

    def __post_init__(self):
        if self.image_token_id is not None and type(self.image_token_id) is not int:
            raise ValueError(f"image_token_id is {self.image_token_id!r}, wanted a token's id")


def _blank(config: InternVLConfig, raw: Mapping[str, Any]) -> InternVL:
    model = nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))
    model.assets = Assets(extras=Extras(dict(raw)))
    return model


def _is_original(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == "internvl_chat"


def _hub_style(raw: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """The settings under the hub's names; those of the original are translated."""
    if not _is_original(raw):
        return dict(raw)
    _check(raw, _WANTED, source)
    text, vision = (_part(raw, key, source) for key in ("llm_config", "vision_config"))
    _check(vision, _VISION_WANTED, f"{source}: vision_config")
    # The original's own defaults are those of its 6B model, so nothing is left to a default.
    for key in ("norm_type", "qkv_bias", "qk_normalization", "image_size", "patch_size"):
        if key not in vision:
            raise InputError(f"{source}: vision_config: {key} is missing")
    vision = {
        _VISION_NAMES.get(key, key): value
        for key, value in vision.items()
        if key not in _ORIGINAL_VISION | _CODE
    }
    own = {key: value for key, value in raw.items() if key not in _ORIGINAL | _CODE}
    return own | {
        "text_config": {k: v for k, v in text.items() if k not in _ORIGINAL_TEXT | _CODE},
        "vision_config": vision,
    }


def _part(raw: Mapping[str, Any], key: str, source: Any) -> Mapping[str, Any]:
    part = raw.get(key)
    if not isinstance(part, Mapping):
        raise InputError(f"{source}: {key} is {part!r}, wanted an object of settings")
    return part


def _vision_config(raw: Mapping[str, Any], source: Any) -> InternViTConfig:
    _check(raw, _VISION_WANTED, source)
    settings = dict(raw)
    for key in ("image_size", "patch_size"):
        value = settings.get(key)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1:
                raise InputError(f"{source}: {key} is {value}, wanted a square")
            settings[key] = value[0]
    also = _VISION_ALSO | _ORIGINAL_VISION
    return parse_config(InternViTConfig, settings, source=source, also=also)


def _placeholder(folder: Path) -> int | None:
    """The id of <IMG_CONTEXT> in the folder's tokenizer, None without one."""
    if (path := folder / "added_tokens.json").is_file():
        ids = read_config(path)
        if PLACEHOLDER in ids:
            return int(ids[PLACEHOLDER])
    if (path := folder / "tokenizer_config.json").is_file():
        for id_, token in read_config(path).get("added_tokens_decoder", {}).items():
            if token.get("content") == PLACEHOLDER:
                return int(id_)
    if (path := folder / "tokenizer.json").is_file():
        for token in read_config(path).get("added_tokens", []):
            if token.get("content") == PLACEHOLDER:
                return int(token["id"])
    return None


def _check(raw: Mapping[str, Any], wanted: Mapping[str, Any], source: Any) -> None:
    for key, value in wanted.items():
        if key in raw and raw[key] != value:
            raise InputError(f"{source}: {key} is {raw[key]!r}, wanted {value!r}")


def _named(name: str, layout: str) -> str:
    """A name of the hub's layout in another one."""
    for old, new in _NAMES[layout]:
        name = name.replace(old, new)
    return name


def _thirds(tensors: Mapping[str, Stored], source: Any) -> dict[str, Stored]:
    """The original's tensors with each attn.qkv as attn.qkv.q, .k and .v, still in the file."""
    out = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." not in name:
            out[name] = tensor
            continue
        if not tensor.shape or tensor.shape[0] % 3:
            raise InputError(
                f"{source}: tensor {name} has shape {list(tensor.shape)}, wanted a multiple of 3 "
                "rows: q, k and v"
            )
        size = tensor.shape[0] // 3
        for i, x in enumerate("qkv"):
            part = tensor.part(i * size, (i + 1) * size)
            out[name.replace(".attn.qkv.", f".attn.qkv.{x}.")] = part
    return out
