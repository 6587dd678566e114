"""A SigLIP folder as the start of a StreamFormer, and one written from its two towers.

specs/streamformer.md section 2.8.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from streamjax.data.processors import Assets, ImageProcessor
from streamjax.errors import InputError
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import StreamFormer
from streamjax.weights import folder as folders
from streamjax.weights import safetensors, siglip_text, streamformer, table
from streamjax.weights.config import read_config
from streamjax.weights.streamformer import PREFIX
from streamjax.weights.tensors import Tensor

# SigLIP's vision model -> StreamFormer, without the prefixes; {i} is the layer.
_COPIED = {
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
    "encoder.layers.{i}.layer_norm1": "encoder.layer.{i}.layernorm_before",
    "encoder.layers.{i}.self_attn.out_proj": "encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.layer_norm2": "encoder.layer.{i}.layernorm_after",
    "encoder.layers.{i}.mlp.fc1": "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.mlp.fc2": "encoder.layer.{i}.output.dense",
    "post_layernorm": "post_layernorm",
    "head.attention.out_proj": "head.attention.out_proj",
    "head.layernorm": "head.layernorm",
    "head.mlp.fc1": "head.mlp.fc1",
    "head.mlp.fc2": "head.mlp.fc2",
}
_ALONE = ("head.probe", "head.attention.in_proj_weight", "head.attention.in_proj_bias")
# What SiglipVisionConfig leaves out of config.json when it has the value of the base model.
_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 16,
    "layer_norm_eps": 1e-6,
}  # fmt: skip


def streamformer_from_siglip(
    folder: Path | str, *, seed: int, num_frames: int = 16, hidden_act: str = "gelu"
) -> StreamFormer:
    """A causal StreamFormer without LoRA whose spatial part is a SigLIP folder's vision model.

    The temporal part starts behind closed gates: all its weights and biases and the time table are
    N(0, 0.02^2) drawn from `seed`, its norms 1 and 0, its gates 0. `hidden_act` "gelu" is what the
    released model was trained with; SigLIP itself has "gelu_pytorch_tanh". The text model, the
    logit scale and bias, and the tokenizer's files are kept beside the model: `sj.save` writes
    them, and `siglip_text.text_of` makes the text tower of them.

    Raises FileNotFoundError and InputError as `sj.load` does, InputError for a folder that is not
    SigLIP's.
    """
    folder = Path(folder)
    raw = read_config(folder / "config.json")
    if not str(raw.get("model_type", "siglip")).startswith("siglip"):
        raise InputError(
            f"{folder / 'config.json'}: model_type is {raw['model_type']!r}, wanted 'siglip'"
        )
    vision = _DEFAULTS | raw.get("vision_config", raw)
    config = {key: vision[key] for key in _DEFAULTS}
    config |= {"num_frames": num_frames, "hidden_act": hidden_act, "add_lora_spatial": False}
    config |= {"model_type": streamformer.MODEL_TYPE, "enable_causal_temporal": True}
    model = streamformer.blank(config | {"clip_config": raw}, folder / "config.json")
    model.assets = Assets(
        tokenizer=str(folder) if folders.has_tokenizer(folder) else None,
        processor=ImageProcessor.from_folder(folder),
        extras=model.assets.extras,
    )
    tensors, _ = safetensors.read_folder(folder)
    source = safetensors.source_of(folder)
    renamed = rename(tensors, config["num_hidden_layers"], source)
    renamed |= _temporal(config, np.random.default_rng(seed))
    return streamformer.fill(model, renamed, source=source)


def save_siglip(
    tower: StreamFormer,
    text: SiglipText,
    folder: Path | str,
    *,
    logit_scale: Any,
    logit_bias: Any,
    tokenizer: Path | str | None = None,
) -> None:
    """Writes a SigLIP folder as transformers does: weights, config.json, processor, tokenizer.

    tower: the spatial part is written. The temporal part, the time table with it, is left out, so
    whoever trains a SigLIP keeps the table zero and the gates closed, and both frozen. logit_scale
    (a logarithm) and logit_bias: one number each. tokenizer: a folder that holds one (default: the
    tower's own). The processor is the tower's, without one SigLIP's at the tower's native size.

    Raises ValueError for a tower that a SigLIP cannot be: with open gates, LoRA, or folded;
    InputError when `folder` is a file.
    """
    raw, tensors = dump(tower, text, logit_scale=logit_scale, logit_bias=logit_bias)
    c = tower.config
    processor = tower.assets.processor
    if processor is None:
        processor = ImageProcessor(size=(c.image_size, c.image_size), patch=c.patch_size)
    home = tower.assets.tokenizer if tokenizer is None else str(tokenizer)
    texts = {"config.json": json.dumps(raw, indent=2) + "\n"}
    folders.write(Path(folder), texts, Assets(tokenizer=home, processor=processor), tensors)


def dump(
    tower: StreamFormer, text: SiglipText, *, logit_scale: Any, logit_bias: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of `save_siglip`."""
    c = tower.config
    if isinstance(tower.layers, tuple):
        raise ValueError("a folded model cannot be saved: save the one it was folded from")
    if c.add_lora_spatial:
        raise ValueError("the tower has LoRA, which a SigLIP has not: save a StreamFormer")
    if np.asarray(tower.layers.gate[...]).any():
        raise ValueError(
            "the tower's temporal gates are open, and a SigLIP has no temporal part: freeze "
            "layers.gate while it is trained, or save a StreamFormer"
        )
    back = {ours: theirs for theirs, ours in _COPIED.items()}
    tensors: dict[str, Tensor] = {
        name: np.asarray(a, np.float32).reshape(1)
        for name, a in (("logit_scale", logit_scale), ("logit_bias", logit_bias))
    }
    found = table.dump(nnx.state(tower, nnx.Param), streamformer.rules(c))
    for name, tensor in found.items():
        module, _, kind = name.rpartition(".")
        layer = re.search(r"\.layer\.(\d+)\.", module)
        pattern = module.replace(layer[0], ".layer.{i}.") if layer else module
        if name == "embeddings.position_embeddings":
            place = "vision_model.embeddings.position_embedding.weight"
            tensors[place] = np.asarray(tensor)[0]
        elif layer and module.endswith(".attention.attention.qkv") and "temporal" not in module:
            attn = f"vision_model.encoder.layers.{layer[1]}.self_attn."
            for x, part in zip("qkv", np.split(np.asarray(tensor), 3), strict=True):
                tensors[f"{attn}{x}_proj.{kind}"] = part
        elif name in _ALONE:
            tensors[f"vision_model.{name}"] = tensor
        elif pattern in back:
            theirs = back[pattern].replace("{i}", layer[1] if layer else "")
            tensors[f"vision_model.{theirs}.{kind}"] = tensor
    tensors |= siglip_text.dump(text, prefix="text_model.")
    raw = {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": siglip_text.settings(text.config),
        "torch_dtype": str(found["post_layernorm.weight"].dtype),
        "vision_config": {key: getattr(c, key) for key in _DEFAULTS}
        | {"hidden_act": c.hidden_act, "model_type": "siglip_vision_model"},
    }
    return raw, tensors


def rename(tensors: Mapping[str, Tensor], layers: int, source: Any) -> dict[str, Tensor]:
    """SigLIP's tensors under the names of StreamFormer's multi-task model; all of them.

    Raises InputError for a tensor that has no place there, and for a missing q, k, v or table.
    """
    left = dict(tensors)
    out: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in left:
            raise InputError(f"{source}: tensor {name} is missing, wanted in a SigLIP folder")
        return left.pop(name)

    out[PREFIX + "embeddings.position_embeddings"] = np.asarray(
        take("vision_model.embeddings.position_embedding.weight")
    )[None]
    for i in range(layers):
        attn = f"vision_model.encoder.layers.{i}.self_attn."
        for kind in ("weight", "bias"):
            parts = [np.asarray(take(f"{attn}{x}_proj.{kind}")) for x in "qkv"]
            name = f"encoder.layer.{i}.attention.attention.qkv.{kind}"
            out[PREFIX + name] = np.concatenate(parts)
    for name in list(left):
        module, _, kind = name.removeprefix("vision_model.").rpartition(".")
        layer = re.search(r"\.layers\.(\d+)\.", module)
        pattern = module.replace(layer[0], ".layers.{i}.") if layer else module
        if name.startswith("vision_model.") and f"{module}.{kind}" in _ALONE:
            out[f"{PREFIX}{module}.{kind}"] = left.pop(name)
        elif name.startswith("vision_model.") and pattern in _COPIED:
            ours = _COPIED[pattern].replace("{i}", layer[1] if layer else "")
            out[f"{PREFIX}{ours}.{kind}"] = left.pop(name)
        elif name.startswith("text_model."):
            out[f"text_encoder.{name}"] = left.pop(name)
        elif name in ("logit_scale", "logit_bias"):
            out[name] = np.asarray(left.pop(name)).reshape(())
    if left:
        raise InputError(f"{source}: tensor {min(left)} belongs to no part of a SigLIP model")
    return out


def _temporal(config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The part that SigLIP does not have."""
    d, frames = config["hidden_size"], config["num_frames"]

    def noise(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)

    out = {"embeddings.time_embeddings": noise(1, frames, d)}
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for name, f in (
            ("temporal_attention.attention.qkv", 3 * d),
            ("temporal_attention.output.dense", d),
            ("temporal_dense", d),
        ):
            out[f"{layer}{name}.weight"] = noise(f, d)
            out[f"{layer}{name}.bias"] = noise(f)
        out[f"{layer}temporal_layernorm.weight"] = np.ones(d, np.float32)
        out[f"{layer}temporal_layernorm.bias"] = np.zeros(d, np.float32)
        out[f"{layer}temporal_attention_gating"] = np.zeros((), np.float32)
        out[layer + streamformer.MASK] = np.tril(np.ones((frames, frames), np.float32))
    return {PREFIX + name: tensor for name, tensor in out.items()}
