"""SigLIP and transformers: the same features from each other's folders."""

import jax
import numpy as np
import pytest

from streamjax.weights import safetensors, siglip_text
from streamjax.weights.config import read_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = dict(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=16,
)  # fmt: skip


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model.eval()


@pytest.mark.parametrize("more", [{}, {"projection_size": 24, "hidden_act": "gelu"}])
def test_text_features(tmp_path, rng, more):
    """Of a text model alone, as transformers writes it."""
    config = transformers.SiglipTextConfig(**TEXT, **more)
    config._attn_implementation = "eager"
    original = randomise(transformers.SiglipTextModel(config))
    original.save_pretrained(tmp_path)
    tokens = rng.integers(0, 40, (3, 16))
    with torch.no_grad():
        wanted = original(torch.from_numpy(tokens)).pooler_output.numpy()
    raw = read_config(tmp_path / "config.json")
    tensors, _ = safetensors.read_folder(tmp_path)
    ours = siglip_text.fill(siglip_text.config_of(raw, tmp_path), tensors, source=tmp_path)
    found = jax.jit(lambda text, tokens: text(tokens))(ours, tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
