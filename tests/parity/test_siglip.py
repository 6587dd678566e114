"""SigLIP and transformers: the same features from each other's folders."""

import jax
import numpy as np
import pytest
from flax import nnx

from streamjax.data.captions import build_caption_tokenizer
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.weights import safetensors, siglip, siglip_text
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


VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    image_size=24, patch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A random SigLIP as transformers writes it."""
    folder = tmp_path_factory.mktemp("siglip")
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    config._attn_implementation = "eager"
    model = randomise(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    build_caption_tokenizer(["a red circle"], folder)
    return model, folder


def features(model, pixels, tokens):
    """Pooled features of both sides by transformers."""
    with torch.no_grad():
        images = model.vision_model(torch.from_numpy(pixels)).pooler_output.numpy()
        return images, model.text_model(torch.from_numpy(tokens)).pooler_output.numpy()


def reopened(folder):
    model, report = transformers.SiglipModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    return model.eval()


def test_a_folder_of_transformers_and_back(whole, tmp_path, rng):
    """Bit for bit, what goes along included."""
    original, folder = whole
    tower = siglip.streamformer_from_siglip(folder, seed=0, num_frames=2)
    side = siglip_text.text_of(tower)
    assert side.text.config == siglip_text.read_text(folder).text.config
    np.testing.assert_array_equal(side.logit_scale, original.logit_scale.detach().item())
    numbers = {"logit_scale": side.logit_scale, "logit_bias": side.logit_bias}
    siglip.save_siglip(tower, side.text, tmp_path / "saved", **numbers)
    wanted, found = (safetensors.read_folder(f)[0] for f in (folder, tmp_path / "saved"))
    assert set(found) == set(wanted)
    for name in wanted:
        assert np.asarray(found[name]).tobytes() == np.asarray(wanted[name]).tobytes(), name
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "saved" / name).is_file()
    again = reopened(tmp_path / "saved")
    assert again.config.vision_config.hidden_act == "gelu"  # the released StreamFormer's (Q1)
    tokens = rng.integers(0, 40, (2, 16))
    pixels = rng.standard_normal((2, 3, 24, 24), np.float32)
    images, texts = features(again, pixels, tokens)
    np.testing.assert_array_equal(texts, features(original, pixels, tokens)[1])
    tower.time[...] = 0 * tower.time[...]
    np.testing.assert_allclose(pooled(tower, pixels), images, atol=1e-5)


def drawn(make, rng):
    """A module with noise in place of its initial values, for which nothing is compiled."""
    model = nnx.eval_shape(make)
    nnx.update(
        model,
        jax.tree.map(lambda a: 0.2 * rng.standard_normal(a.shape, np.float32), nnx.state(model)),
    )
    return model


def pooled(tower, pixels):
    """The same by ours, of pictures as clips of one frame."""
    frames = pixels.transpose(0, 2, 3, 1)[:, None]
    return jax.jit(lambda tower, frames: tower(frames).pooled[:, 0])(tower, frames)


def test_a_siglip_of_our_own(tmp_path, rng):
    """A tower whose gates are closed and whose time table is zero is an image tower."""
    config = StreamFormerConfig(**VISION, num_frames=1, hidden_act="gelu_pytorch_tanh")
    tower = drawn(lambda: StreamFormer(config, rngs=nnx.Rngs(0)), rng)
    text = drawn(lambda: SiglipText(SiglipTextConfig(**TEXT), rngs=nnx.Rngs(0)), rng)
    tower.time[...], tower.layers.gate[...] = np.zeros((1, 32)), np.zeros(2)
    siglip.save_siglip(tower, text, tmp_path, logit_scale=2.3, logit_bias=np.float32(-10))
    original = reopened(tmp_path)
    assert original.logit_scale.item() == np.float32(2.3) and original.logit_bias.item() == -10
    pixels, tokens = rng.standard_normal((2, 3, 24, 24), np.float32), rng.integers(0, 40, (3, 16))
    images, texts = features(original, pixels, tokens)
    np.testing.assert_allclose(pooled(tower, pixels), images, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda t, y: t(y))(text, tokens), texts, atol=1e-5)
    with pytest.raises(ValueError, match="gates are open"):
        tower.layers.gate[...] = tower.layers.gate[...] + 0.1
        siglip.save_siglip(tower, text, tmp_path, logit_scale=0, logit_bias=0)
