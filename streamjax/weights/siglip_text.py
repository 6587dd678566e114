"""SigLIP's text tower by transformers' names, alone in a folder or beside something else.

transformers 4 puts `text_model.` before the names of a text model of its own, transformers 5 does
not; inside a whole SigLIP they have it, inside StreamFormer's multi-task model they have
`text_encoder.text_model.` (of transformers 4) or `text_encoder.`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from streamjax.errors import InputError
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer
from streamjax.weights import safetensors, table
from streamjax.weights.config import parse_config, read_config
from streamjax.weights.table import Rule, linear, norm
from streamjax.weights.tensors import Lazy, Tensor

# Where the tower's own names may begin, the longest first.
PREFIXES = ("text_encoder.text_model.", "text_encoder.", "text_model.", "")
_MARK = "embeddings.token_embedding.weight"
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
# Settings that transformers has and no forward reads.
ALSO = frozenset({"attention_dropout", "initializer_factor", "initializer_range"})


class TextSide(NamedTuple):
    """A text tower, and the scale (its logarithm) and bias of SigLIP's similarities, if stored."""

    text: SiglipText
    logit_scale: float | None
    logit_bias: float | None


def read_text(
    folder: Path | str, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None
) -> TextSide:
    """The text side of a SigLIP folder, of a text model alone, or of a StreamFormer's folder.

    dtype: of parameters and computation; None keeps the stored one. Raises FileNotFoundError when
    config.json or the weights are missing; InputError for a folder without a text tower, and as
    `sj.load` does.
    """
    folder = Path(folder)
    tensors, _ = safetensors.read_folder(folder)
    raw = read_config(folder / "config.json")
    source = safetensors.source_of(folder)
    return _text_side(raw, tensors, source=source, dtype=dtype, mesh=mesh)


def text_of(
    model: StreamFormer, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None
) -> TextSide:
    """The text side that came along with a StreamFormer: from its folder, or from SigLIP's.

    Raises InputError when none did.
    """
    extras = model.assets.extras
    raw, tensors = ({}, {}) if extras is None else (extras.config, extras.tensors)
    return _text_side(raw, tensors, source="the model's folder", dtype=dtype, mesh=mesh)


def config_of(raw: Mapping[str, Any], source: Any) -> SiglipTextConfig:
    """The configuration in a `text_config`, or in the config.json of a text model alone.

    What transformers leaves out has the base model's value. Raises InputError for an unknown key
    (naming the nearest right one) and for values that do not fit.
    """
    given = {key: value for key, value in raw.items() if value is not None}
    size = given.pop("projection_size", None)
    if size is not None and type(size) is not int:
        raise InputError(f"{source}: projection_size is {size!r}, wanted int")
    config = parse_config(SiglipTextConfig, given, source=source, also=ALSO)
    return dataclasses.replace(config, projection_size=size)


def guess_config(
    tensors: Mapping[str, Tensor], prefix: str, *, heads: int | None = None
) -> SiglipTextConfig:
    """The configuration that a tower's tensors imply, for folders whose config.json has none.

    Shapes do not say how many heads there are: None is one for every 64 channels, as all of
    SigLIP's towers have.
    """
    vocabulary, d = tensors[prefix + _MARK].shape
    inside = (_LAYER.match(n.removeprefix(prefix)) for n in tensors if n.startswith(prefix))
    return SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=tensors[prefix + "encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(found[1]) for found in inside if found),
        num_attention_heads=heads or max(d // 64, 1),
        max_position_embeddings=tensors[prefix + "embeddings.position_embedding.weight"].shape[0],
        projection_size=tensors[prefix + "head.weight"].shape[0],
    )


def prefix_of(names: Iterable[str]) -> str | None:
    """What stands before a text tower's names among these; None without a text tower."""
    known = set(names)
    return next((prefix for prefix in PREFIXES if prefix + _MARK in known), None)


def fill(
    config: SiglipTextConfig,
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> SiglipText:
    """The tower of these tensors, which may hold more than the tower under other beginnings.

    dtype: of parameters and computation; None keeps the stored one. Raises InputError for a tensor
    of the tower that is unknown, missing or mis-shaped.
    """
    prefix = prefix_of(tensors) or ""
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        # Buffers of old checkpoints: 0, 1, 2, ...
        if name.startswith(prefix) and not name.endswith("embeddings.position_ids")
    }
    model = nnx.eval_shape(lambda: SiglipText(config, rngs=nnx.Rngs(0)))
    return table.fill(model, rules(), own, source=source, dtype=dtype, mesh=mesh)


def dump(model: SiglipText, *, prefix: str) -> dict[str, Lazy]:
    """The tower's tensors under transformers' names; prefix: one of PREFIXES."""
    return table.dump(nnx.state(model, nnx.Param), rules(), prefix=prefix)


def settings(config: SiglipTextConfig) -> dict[str, Any]:
    """A `text_config` for config.json, every setting written out."""
    return dataclasses.asdict(config) | {
        "model_type": "siglip_text_model",
        "projection_size": config.width,
    }


def _text_side(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    dtype: Any,
    mesh: jax.sharding.Mesh | None,
) -> TextSide:
    prefix = prefix_of(tensors)
    if prefix is None:
        raise InputError(
            f"{source}: no text tower (no tensor ends in {_MARK}): take a SigLIP folder, or a "
            "StreamFormer's that was saved with its text_encoder"
        )
    if str(raw.get("model_type")).startswith("siglip"):
        config = config_of(raw.get("text_config", raw), f"{source}: text_config")
    elif isinstance(told := (raw.get("clip_config") or {}).get("text_config"), Mapping):
        config = config_of(told, f"{source}: clip_config.text_config")
    else:
        # StreamFormer's own config.json; SigLIP's two towers have as many heads.
        same = raw.get("hidden_size") == tensors[prefix + _MARK].shape[1]
        config = guess_config(
            tensors, prefix, heads=raw.get("num_attention_heads") if same else None
        )
    text = fill(config, tensors, source=source, dtype=dtype, mesh=mesh)
    numbers = (tensors.get(name) for name in ("logit_scale", "logit_bias"))
    scale, bias = (None if a is None else np.asarray(a, np.float32).item() for a in numbers)
    return TextSide(text, scale, bias)


def rules() -> list[Rule]:
    """The table, which is the same for every configuration."""
    layer = "encoder.layers.{i}."
    return [
        Rule(_MARK, "embed"),
        Rule("embeddings.position_embedding.weight", "position"),
        *norm(layer + "layer_norm1", "layers.attn_norm"),
        *linear(layer + "self_attn.q_proj", "layers.q"),
        *linear(layer + "self_attn.k_proj", "layers.k"),
        *linear(layer + "self_attn.v_proj", "layers.v"),
        *linear(layer + "self_attn.out_proj", "layers.out"),
        *norm(layer + "layer_norm2", "layers.mlp_norm"),
        *linear(layer + "mlp.fc1", "layers.up"),
        *linear(layer + "mlp.fc2", "layers.down"),
        *norm("final_layer_norm", "norm"),
        *linear("head", "head"),
    ]
