"""SigLIP's text tower by transformers' names, alone in a folder or beside something else.

transformers 4 puts `text_model.` before the names of a text model of its own, transformers 5 does
not; inside a whole SigLIP they have it, inside StreamFormer's multi-task model they have
`text_encoder.text_model.` (of transformers 4) or `text_encoder.`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import nnx

from streamjax.errors import InputError
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.weights import table
from streamjax.weights.config import parse_config
from streamjax.weights.table import Rule, linear, norm
from streamjax.weights.tensors import Lazy, Tensor

# Where the tower's own names may begin, the longest first.
PREFIXES = ("text_encoder.text_model.", "text_encoder.", "text_model.", "")
_MARK = "embeddings.token_embedding.weight"
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
# Settings that transformers has and no forward reads.
ALSO = frozenset({"attention_dropout", "initializer_factor", "initializer_range"})


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


def config_from(tensors: Mapping[str, Tensor], prefix: str, *, heads: int) -> SiglipTextConfig:
    """The configuration that a tower's tensors imply; their shapes say all but `heads`.

    For StreamFormer's folders, whose config.json does not describe the text tower.
    """
    vocabulary, d = tensors[prefix + _MARK].shape
    positions = tensors[prefix + "embeddings.position_embedding.weight"].shape[0]
    mlp = tensors[prefix + "encoder.layers.0.mlp.fc1.weight"].shape[0]
    inside = (_LAYER.match(n.removeprefix(prefix)) for n in tensors if n.startswith(prefix))
    return SiglipTextConfig(
        vocab_size=vocabulary,
        hidden_size=d,
        intermediate_size=mlp,
        num_hidden_layers=1 + max(int(found[1]) for found in inside if found),
        num_attention_heads=heads,
        max_position_embeddings=positions,
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

    dtype: of parameters and computation; None keeps the stored one. Raises InputError when there
    is no text tower, for a tensor of it that is unknown, missing or mis-shaped.
    """
    prefix = prefix_of(tensors)
    if prefix is None:
        raise InputError(
            f"{source}: no text tower (no tensor ends in {_MARK}): load a SigLIP folder, or a "
            "StreamFormer folder that was saved with its text_encoder"
        )
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
