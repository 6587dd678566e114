"""The folders of Qwen2.5-VL and Qwen3-VL: what is the same in both (specs/vlm.md section 3)."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.decoder import DecoderConfig
from streamjax.models.qwen_vl import QwenVL, QwenVLConfig
from streamjax.weights import safetensors, table
from streamjax.weights.config import INFORMATIONAL, Extras, parse_config
from streamjax.weights.decoder import (
    ALSO,
    decoder_config,
    decoder_rules,
    hub_settings,
    text_settings,
)
from streamjax.weights.table import Form, Rule
from streamjax.weights.tensors import Lazy

_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Names that transformers 4 and 5 give the tower's settings, and settings that no forward reads.
_RENAMED = {"in_chans": "in_channels"}
_VISION_ALSO = frozenset({"model_type", "rope_parameters", "spatial_patch_size"})
_ROTATION = {"rope_theta": 10000.0, "rope_type": "axial"}
# What 5.x writes and 4.x must not read (specs/vlm.md 3.4); both are said in the older words.
_NEWER = ("dtype", "rope_parameters", "layer_types", "text_config")
# Of a text_config: what is not the language model's alone.
_TEXT_ONLY = (*_IDS, "vision_token_id", "model_type", "architectures", "torch_dtype")


@dataclasses.dataclass(frozen=True)
class Family:
    """What distinguishes a family's folder.

    layouts: what stands before the tower's and the language model's names, the hub's first.
    fixed: settings of the decoder that config.json does not carry. nested: whether the hub keeps
    the language model's settings under `text_config`.
    """

    model_type: str
    architecture: str
    model: type[QwenVL]
    config: type[QwenVLConfig]
    vision: type
    vision_rules: Callable[[Any, str], list[Rule]]
    layouts: tuple[tuple[str, str], ...]
    fixed: Mapping[str, Any]
    nested: bool


def config_of(family: Family, raw: Mapping[str, Any], source: Any) -> QwenVLConfig:
    """The configuration in a config.json of any style: flat, nested, or both at once.

    Raises InputError for an unknown key (naming the nearest right one), a missing one, a value of
    the wrong type or one that no released model uses, and sizes that do not fit together.
    """
    if not isinstance(raw.get("text_config") or {}, Mapping):
        raise InputError(f"{source}: text_config is {raw['text_config']!r}, wanted an object")
    flat = text_settings(raw)
    own = {*_IDS, "vision_token_id", "vision_config", "text_config"}
    own |= {field.name for field in dataclasses.fields(DecoderConfig)}
    for key in raw:
        if key not in own | INFORMATIONAL | ALSO:
            near = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
            raise InputError(
                f"{source}: unknown key {key!r}"
                + (f": did you mean {near[0]!r}?" if near else ": remove it")
            )
    also = frozenset({*_IDS, "vision_token_id"})  # transformers 4.57 repeats them in text_config
    decoder = decoder_config(flat, source, also=also, **family.fixed)
    if decoder.mrope_section is None:
        raise InputError(
            f"{source}: mrope_section is missing, wanted three numbers in rope_scaling "
            "(or rope_parameters)"
        )
    ids = {key: raw[key] for key in _IDS if raw.get(key) is not None}
    for key, value in ids.items():
        if type(value) is not int:
            raise InputError(f"{source}: {key} is {value!r}, wanted a token's id")
    vision = _vision_config(family.vision, raw.get("vision_config"), source)
    try:
        return family.config(vision=vision, decoder=decoder, **ids)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def rules(family: Family, config: QwenVLConfig, layout: tuple[str, str]) -> list[Rule]:
    """The table for one configuration; layout: one of `family.layouts`."""
    visual, language = layout
    return [
        *family.vision_rules(config.vision, visual),
        *decoder_rules(config.decoder, model=language),
    ]


def blank(family: Family, raw: Mapping[str, Any], source: Any) -> QwenVL:
    """The model of a config.json (at the path `source`) with shapes in place of values."""
    return _blank(family, config_of(family, raw, source), raw)


def load(
    family: Family,
    folder: Path,
    raw: Mapping[str, Any],
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> QwenVL:
    """Reads a folder in any of the family's layouts; dtype None keeps the stored one.

    An lm_head tensor is used when it is there; else the head is tied, whatever the config says.
    Raises InputError for a tensor that is unknown, missing or mis-shaped, and for a bad config.
    """
    source = safetensors.source_of(folder)
    tensors, _ = safetensors.read_folder(folder)
    config = config_of(family, raw, folder / "config.json")
    tied = "lm_head.weight" not in tensors
    decoder = dataclasses.replace(config.decoder, tie_word_embeddings=tied)
    model = _blank(family, dataclasses.replace(config, decoder=decoder), raw)
    wanted = rules(family, model.config, layout_of(family, tensors))
    return table.fill(model, wanted, tensors, source=source, dtype=dtype, mesh=mesh)


def dump(family: Family, model: QwenVL) -> tuple[dict[str, Any], dict[str, Lazy]]:
    """config.json and tensors in the hub's layout and style, which transformers 4 and 5 both read.

    Raises ValueError for a folded model.
    """
    if isinstance(model.decoder.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    c, extras = model.config, model.assets.extras
    tensors = table.dump(nnx.state(model, nnx.Param), rules(family, c, family.layouts[0]))
    found = {} if extras is None else dict(extras.config)
    kind = jnp.dtype(model.decoder.embed[...].dtype).name
    text = {k: v for k, v in (found.get("text_config") or {}).items() if k not in _TEXT_ONLY}
    found = {k: v for k, v in found.items() if not _is_newer(k, v)}
    text = {k: v for k, v in text.items() if not _is_newer(k, v)}
    if family.nested:
        flat = {*hub_settings(c.decoder), *ALSO} - {"tie_word_embeddings"}
        found = {k: v for k, v in found.items() if k not in flat}
        text |= hub_settings(c.decoder) | {"attention_bias": c.decoder.attention_bias}
        text |= {"model_type": f"{family.model_type}_text", "dtype": kind}
        found["text_config"] = text
    else:
        found = text | found | hub_settings(c.decoder)
    return (
        {"architectures": [family.architecture]}
        | found
        | {key: getattr(c, key) for key in _IDS}
        | {
            "model_type": family.model_type,
            "tie_word_embeddings": c.decoder.tie_word_embeddings,
            "torch_dtype": kind,
            "vision_config": _vision_settings(family, c.vision),
        },
        tensors,
    )


def layout_of(family: Family, names: Any) -> tuple[str, str]:
    """Which layout these tensors are in: the one whose prefixes most of them have."""

    def fits(layout):
        return sum(name.startswith(layout) for name in names)

    # The longest prefixes win a draw: "model." begins those of the others.
    return max(family.layouts, key=lambda layout: (fits(layout), len(layout[1])))


def patch_form(c: Any) -> Form:
    """The 3-D convolution over disjoint patches as a matrix, and back."""
    shape = (-1, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    return Form(lambda a: a.reshape(len(a), -1).T, lambda a: a.T.reshape(shape))


def _blank(family: Family, config: QwenVLConfig, raw: Mapping[str, Any]) -> QwenVL:
    model = nnx.eval_shape(lambda: family.model(config, rngs=nnx.Rngs(0)))
    model.assets = Assets(extras=Extras(dict(raw)))
    return model


def _vision_config(cls: type, raw: Any, source: Any) -> Any:
    where = f"{source}: vision_config"
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} is {raw!r}, wanted an object of settings")
    settings = {_RENAMED.get(key, key): value for key, value in raw.items()}
    if settings.get("rope_parameters", _ROTATION) != _ROTATION:
        raise InputError(
            f"{where}: rope_parameters are {raw['rope_parameters']}, wanted {_ROTATION}"
        )
    if settings.get("spatial_patch_size", settings.get("patch_size")) != settings.get("patch_size"):
        raise InputError(f"{where}: spatial_patch_size differs from patch_size")
    fields = dataclasses.fields(cls)  # pyrefly: ignore[bad-argument-type]
    for field in fields:
        value = settings.get(field.name)
        if value is None and field.default is dataclasses.MISSING:
            raise InputError(f"{where}: {field.name} is missing")
        if isinstance(value, list):
            if not all(type(i) is int for i in value):
                raise InputError(f"{where}: {field.name} is {value}, wanted whole numbers")
            settings[field.name] = tuple(value)
    return parse_config(cls, settings, source=where, also=_VISION_ALSO)


def _vision_settings(family: Family, c: Any) -> dict[str, Any]:
    own = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(c).items()
    }
    if family.nested:
        return own | {"model_type": family.model_type}
    return own | {"in_chans": own.pop("in_channels"), "spatial_patch_size": c.patch_size}


def _is_newer(key: str, value: Any) -> bool:
    """Whether a setting is transformers 5's way of saying what is said in the hub's."""
    return key in _NEWER or (key == "transformers_version" and str(value).startswith("5."))
