"""A SigLIP folder as the start of a StreamFormer (specs/streamformer.md section 2.8)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data.processors import Assets, ImageProcessor
from streamjax.errors import InputError
from streamjax.models.streamformer import StreamFormer
from streamjax.weights import safetensors, streamformer
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
    released model was trained with; SigLIP itself has "gelu_pytorch_tanh". The text model and the
    logit scale and bias are kept beside the model, and `sj.save` writes them as the original does.

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
    model = streamformer.blank(config, folder / "config.json")
    model.assets = Assets(processor=ImageProcessor.from_folder(folder), extras=model.assets.extras)
    tensors, _ = safetensors.read_folder(folder)
    source = safetensors.source_of(folder)
    renamed = rename(tensors, config["num_hidden_layers"], source)
    renamed |= _temporal(config, np.random.default_rng(seed))
    return streamformer.fill(model, renamed, source=source)


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
