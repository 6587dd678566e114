"""SigLIP's text tower: the original's class features, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.errors import InputError
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.weights import safetensors, siglip_text

SMALL = SiglipTextConfig(
    vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=8, projection_size=6,
)  # fmt: skip


def test_class_features_of_the_original(golden):
    """Golden f1: unit features of 28 prompts a class, averaged and not normalised again."""
    folder = golden / "streamformer" / "f1_head_action_recognition"
    about = json.loads((folder / "case.json").read_text())
    tensors, _ = safetensors.read_file(folder / "model.safetensors")
    io, _ = safetensors.read_file(folder / "io.safetensors")
    own = {name: a for name, a in tensors.items() if name.startswith("text_encoder.")}
    config = siglip_text.config_of(about["text_config"], folder)
    assert siglip_text.guess_config(own, "text_encoder.text_model.", heads=4) == config
    text = siglip_text.fill(config, own, source=folder)
    tokens = np.array(io["label_input_ids"])
    features = jax.jit(lambda text, tokens: text(tokens))(text, tokens.reshape(-1, 64))
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    found = unit.reshape(*tokens.shape[:2], -1).mean(1)
    np.testing.assert_allclose(found, io["label_embeddings"], atol=5e-6, rtol=1e-5)


def test_names_both_ways():
    """With every beginning that transformers and the original have put before them."""
    model = jax.jit(lambda: SiglipText(SMALL, rngs=nnx.Rngs(0)))()
    for prefix in siglip_text.PREFIXES:
        tensors = {n: np.asarray(a) for n, a in siglip_text.dump(model, prefix=prefix).items()}
        assert siglip_text.prefix_of(tensors) == prefix
        assert siglip_text.guess_config(tensors, prefix, heads=2) == SMALL
        position = {prefix + "embeddings.position_ids": np.arange(8)[None]}  # an old buffer
        again = siglip_text.fill(SMALL, tensors | position, source="here")
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(again))
    raw = siglip_text.settings(SMALL)
    assert siglip_text.config_of(raw, "here") == SMALL
    assert siglip_text.config_of({"hidden_size": 24}, "here").width == 24


def test_bad_input():
    model = jax.jit(lambda: SiglipText(SMALL, rngs=nnx.Rngs(0)))()
    with pytest.raises(ValueError, match="texts are 9 tokens long, wanted at most 8"):
        model(jnp.ones((1, 9), jnp.int32))
    tensors = dict(siglip_text.dump(model, prefix=""))
    with pytest.raises(InputError, match="tensor haed.bias belongs to no part.*head.bias"):
        siglip_text.fill(SMALL, tensors | {"haed.bias": np.zeros(6)}, source="here")
    with pytest.raises(InputError, match="unknown key 'hidden_sise': did you mean 'hidden_size'"):
        siglip_text.config_of({"hidden_sise": 4}, "here")
    with pytest.raises(InputError, match="projection_size is '6', wanted int"):
        siglip_text.config_of({"projection_size": "6"}, "here")
    with pytest.raises(InputError, match="hidden_act is 'quick', wanted one of"):
        siglip_text.config_of({"hidden_act": "quick"}, "here")
    with pytest.raises(ValueError, match="hidden_size is 10, wanted a multiple"):
        SiglipTextConfig(hidden_size=10)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        SiglipTextConfig(vocab_size=0)
