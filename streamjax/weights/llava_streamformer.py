"""LLaVA-StreamFormer's folder: config.json, vision_tower_config.json, and the original's names.

specs/vlm.md sections 1.4 and 3. The tower's own config stands beside the weights; the path that
config.json gives (`mm_vision_tower`) is a training machine's and is read only where there is none.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.decoder import DecoderConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.weights import safetensors, streamformer, table
from streamjax.weights.config import Extras, read_config
from streamjax.weights.decoder import decoder_config, decoder_rules, hub_settings
from streamjax.weights.table import Rule, linear
from streamjax.weights.tensors import Tensor

TOWER = "model.vision_tower.vision_tower."
TOWER_CONFIG = "vision_tower_config.json"
_LORA = "_lora_"

# Read by no forward: training switches, the tower's path, and what the code hard-wires.
_ALSO = frozenset({
    "add_faster_video", "attention_dropout", "context_length", "faster_token_stride",
    "force_sample", "freeze_mm_mlp_adapter", "freeze_mm_vision_resampler",
    "image_aspect_ratio", "image_crop_resolution", "image_split_resolution", "layer_types",
    "max_window_layers", "max_sequence_length", "mlp_bias", "mm_hidden_size", "mm_patch_merge_type",
    "mm_newline_position", "mm_projector_lr", "mm_projector_type", "mm_resampler_type",
    "mm_spatial_pool_mode", "mm_spatial_pool_stride", "mm_tunable_parts",
    "mm_use_im_patch_token", "mm_use_im_start_end", "mm_vision_select_feature",
    "mm_vision_select_layer", "mm_vision_tower", "mm_vision_tower_lr", "image_grid_pinpoints",
    "pos_skipping_range", "pretraining_tp", "rope_parameters", "rope_scaling", "sliding_window",
    "streaming_mode", "tokenizer_model_max_length", "tokenizer_padding_side",
    "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower", "use_cache",
    "use_mm_proj", "use_pos_skipping", "use_sliding_window",
})  # fmt: skip

# What these keys must say, where they are present: other values are other models.
_WANTED: dict[str, tuple] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "image_aspect_ratio": ("anyres",),
    "mm_vision_select_feature": ("patch",),
    "mm_use_im_start_end": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "add_faster_video": (False,),
}


def config_of(
    raw: Mapping[str, Any], tower: Mapping[str, Any], source: Any, tower_source: Any
) -> LlavaStreamFormerConfig:
    """The configuration of a folder's two config files.

    Raises InputError for an unknown key (naming the nearest right one), a value that makes it
    another model, and sizes that do not fit together.
    """
    for key, wanted in _WANTED.items():
        if key in raw and raw[key] not in wanted:
            raise InputError(f"{source}: {key} is {raw[key]!r}, wanted {wanted[0]!r}")
    decoder = _decoder_config(raw, source)
    # The copy of the tower that LLaVA carries has 8 rows unless told, and always has LoRA.
    tower = {"num_frames": 8, "add_lora_spatial": True} | dict(tower)
    parsed = streamformer.config_of(tower, tower_source)
    if raw.get("mm_hidden_size", parsed.hidden_size) != parsed.hidden_size:
        raise InputError(
            f"{source}: mm_hidden_size is {raw['mm_hidden_size']}, wanted the tower's "
            f"hidden_size={parsed.hidden_size} ({tower_source})"
        )
    names = [f.name for f in dataclasses.fields(LlavaStreamFormerConfig)]
    own = {name: raw[name] for name in names if name in raw}
    if "image_grid_pinpoints" in own:
        own["image_grid_pinpoints"] = tuple(tuple(point) for point in own["image_grid_pinpoints"])
    try:
        return LlavaStreamFormerConfig(tower=parsed, decoder=decoder, **own)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from None


def blank(raw: Mapping[str, Any], source: Any) -> LlavaStreamFormer:
    """The model of a config.json (at the path `source`) with shapes in place of values."""
    tower, tower_source = _tower_config(raw, Path(source))
    return _blank(config_of(raw, tower, source, tower_source), raw, tower)


def load(
    folder: Path,
    raw: Mapping[str, Any],
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> LlavaStreamFormer:
    """Reads a folder of the original; dtype None keeps the stored one.

    The tower has LoRA when its tensors are there, whatever its config says, except all-zero ones
    under add_lora_spatial=false: `dump` writes those for a tower without, because the original
    would make up random ones. An lm_head tensor is used when it is there; else the head is tied.
    Raises InputError for any other tensor, a missing or mis-shaped one, and a bad config.
    """
    source = safetensors.source_of(folder)
    tensors, _ = safetensors.read_folder(folder)
    tower, tower_source = _tower_config(raw, folder / "config.json")
    lora = [name for name in tensors if name.startswith(TOWER) and _LORA in name]
    used = any(np.asarray(tensors[name]).any() for name in lora)
    if tower.get("add_lora_spatial") is False and not used:
        tensors = {name: a for name, a in tensors.items() if name not in lora}
        lora = []
    config = config_of(raw, tower, folder / "config.json", tower_source)
    config = dataclasses.replace(
        config,
        tower=dataclasses.replace(config.tower, add_lora_spatial=bool(lora)),
        decoder=dataclasses.replace(
            config.decoder, tie_word_embeddings="lm_head.weight" not in tensors
        ),
    )
    model = _blank(config, raw, tower)
    graph, shapes = nnx.split(model)
    wanted = rules(config)
    known = table.expected(shapes, wanted)
    masks = _masks(config.tower)
    extras = {name: a for name, a in tensors.items() if name not in known}
    table.refuse((n for n in extras if n not in masks), known, source)
    state = table.load(shapes, wanted, tensors, source=source, dtype=dtype, mesh=mesh)
    filled = table.computing_as_kept(nnx.merge(graph, state))
    filled.assets = Assets(extras=Extras(dict(raw), extras))
    return filled


def dump(model: LlavaStreamFormer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors as the original reads them. Raises ValueError for a folded model."""
    if isinstance(model.decoder.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    c, extras = model.config, model.assets.extras
    tensors: dict[str, Tensor] = {**table.dump(nnx.state(model, nnx.Param), rules(c))}
    if not c.tower.add_lora_spatial:
        tensors |= _zero_lora(c.tower, model.image_newline[...].dtype)
    own = hub_settings(c.decoder) | {"attention_bias": c.decoder.attention_bias}
    own |= {
        f.name: getattr(c, f.name)
        for f in dataclasses.fields(c)
        if f.name not in ("tower", "decoder")
    }
    qwen = c.decoder.attention_bias
    fresh = {
        "architectures": ["LlavaQwenForCausalLM" if qwen else "LlavaLlamaForCausalLM"],
        "model_type": "llava_qwen" if qwen else "llava_llama",
        "mm_vision_tower": "streamformer",  # the tower's class is found by this word
        "mm_hidden_size": c.tower.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_stride": 2,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "anyres",
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
        "torch_dtype": str(model.image_newline[...].dtype),
    }
    raw = fresh if extras is None else dict(extras.config)
    if extras is not None:
        # Keys that the folder did not have stay away: their defaults made the model.
        own = {k: v for k, v in own.items() if k in {*raw, "rope_theta", "tie_word_embeddings"}}
        tensors |= dict(extras.tensors)
    return raw | _jsonable(own), tensors


def companions(model: LlavaStreamFormer) -> dict[str, Any]:
    """The files beside config.json: the tower's config."""
    c, extras = model.config.tower, model.tower.assets.extras
    raw = {
        "architectures": ["TimesformerMultiTaskingModelSigLIP"],
        "model_type": streamformer.MODEL_TYPE,
    }
    raw |= {} if extras is None else dict(extras.config)
    return {TOWER_CONFIG: raw | dataclasses.asdict(c)}


def rules(config: LlavaStreamFormerConfig) -> list[Rule]:
    """The table for one configuration."""
    tower = [
        Rule(TOWER + rule.name, f"tower.{rule.path}", rule.form)
        for rule in streamformer.rules(config.tower)
    ]
    return [
        *tower,
        *linear("model.mm_projector.0", "projector.up"),
        *linear("model.mm_projector.2", "projector.down"),
        Rule("model.image_newline", "image_newline"),
        *decoder_rules(config.decoder),
    ]


def _blank(config: LlavaStreamFormerConfig, raw, tower) -> LlavaStreamFormer:
    model = nnx.eval_shape(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0)))
    model.assets = Assets(extras=Extras(dict(raw)))
    model.tower.assets = Assets(extras=Extras(dict(tower)))
    return model


def _tower_config(raw: Mapping[str, Any], config: Path) -> tuple[dict[str, Any], Path]:
    path = config.parent / TOWER_CONFIG
    if not path.is_file():
        named = config.parent / str(raw.get("mm_vision_tower", "")) / "config.json"
        if not named.is_file() or named == config:
            raise FileNotFoundError(f"{path}: missing, and so is {named} (mm_vision_tower)")
        path = named
    return read_config(path), path


def _decoder_config(raw: Mapping[str, Any], source: Any) -> DecoderConfig:
    settings = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6} | dict(raw)
    if rope := raw.get("rope_parameters"):
        settings["rope_theta"] = rope.get("rope_theta", settings["rope_theta"])
    bias = raw.get("attention_bias", raw.get("model_type") == "llava_qwen")
    return decoder_config(settings, source, also=_ALSO, attention_bias=bias)


def _masks(c: StreamFormerConfig) -> set[str]:
    return {f"{TOWER}encoder.layer.{i}.{streamformer.MASK}" for i in range(c.num_hidden_layers)}


def _zero_lora(c: StreamFormerConfig, dtype: Any) -> dict[str, np.ndarray]:
    with_lora = dataclasses.replace(c, add_lora_spatial=True)
    names = [r for r in streamformer.rules(with_lora) if _LORA in r.name]
    model = nnx.eval_shape(lambda: streamformer.StreamFormer(with_lora, rngs=nnx.Rngs(0)))
    flat = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    zeros = {}
    for rule in names:
        shape = flat[tuple(rule.path.split("."))].get_value().shape
        for name in rule.names(c.num_hidden_layers):
            zeros[TOWER + name] = rule.form.save(np.zeros(shape[1:], dtype))
    return zeros


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: [list(p) for p in v] if isinstance(v, tuple) else v for k, v in values.items()}
