"""Full-size folders, by name and shape alone: language models, LLaVA-StreamFormer, SigLIP."""

import dataclasses
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from streamjax.models.decoder import Decoder, DecoderConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.weights import llava_streamformer, siglip, streamformer, table
from streamjax.weights.decoder import decoder_rules

LANGUAGE = {
    "vicuna-7b-v1.5": DecoderConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, attention_bias=False, rms_norm_eps=1e-5,
        rope_theta=1e4, max_position_embeddings=4096,
    ),
    "Qwen2.5-7B-Instruct": DecoderConfig(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
    ),
}  # fmt: skip


def manifest(golden: Path, name: str) -> dict:
    """Name -> shape, and under "" the number of parameters."""
    found = json.loads(gzip.decompress((golden / "manifests" / f"{name}.json.gz").read_bytes()))
    shapes = {tensor: tuple(shape) for tensor, (shape, _) in found["tensors"].items()}
    return shapes | {"": found["n_params"]}


def shapes_of(module, rules, prefix=""):
    """The same of what `sj.save` would write."""
    state = nnx.state(module, nnx.Param)
    tensors = table.dump(state, rules, prefix=prefix)
    total = sum(a.size for a in jax.tree.leaves(state))
    return {name: tensor.shape for name, tensor in tensors.items()} | {"": total}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models(golden, name):
    model = nnx.eval_shape(lambda: Decoder(LANGUAGE[name], rngs=nnx.Rngs(0)))
    rules = [
        dataclasses.replace(rule, path=rule.path.removeprefix("decoder."))
        for rule in decoder_rules(LANGUAGE[name])
    ]
    assert shapes_of(model, rules) == manifest(golden, name)


@pytest.mark.parametrize("name", LANGUAGE)
def test_llava_streamformer(golden, name):
    tower = StreamFormerConfig(enable_causal_temporal=True, add_lora_spatial=True)
    config = LlavaStreamFormerConfig(tower=tower, decoder=LANGUAGE[name])
    model = nnx.eval_shape(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0)))
    found = shapes_of(model, llava_streamformer.rules(config))
    assert found == manifest(golden, f"streamformer-llava-{name}")


def test_siglip_becomes_streamformers_spatial_part(golden):
    config = StreamFormerConfig(enable_causal_temporal=True)
    tensors = manifest(golden, "siglip-base-patch16-224")
    del tensors[""]
    hollow = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors.items()}
    found = {
        name.removeprefix(streamformer.PREFIX): tensor.shape
        for name, tensor in siglip.rename(hollow, config.num_hidden_layers, "siglip").items()
        if name.startswith(streamformer.PREFIX)
    }
    model = nnx.eval_shape(lambda: StreamFormer(config, rngs=nnx.Rngs(0)))
    wanted = shapes_of(model, streamformer.rules(config))
    ours = {name for name in wanted if "temporal" in name or "time_" in name or not name}
    assert found == {name: shape for name, shape in wanted.items() if name not in ours}
