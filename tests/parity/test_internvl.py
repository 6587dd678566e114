"""InternVL3 and transformers read each other's folders, and mean the same by them."""

import dataclasses

import jax
import numpy as np
import pytest

import streamjax as sj

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE = 60
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=64, max_position_embeddings=64, rms_norm_eps=1e-6,
    use_sliding_window=False,
)  # fmt: skip
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    image_size=[24, 24], patch_size=[4, 4], hidden_act="gelu", layer_norm_eps=1e-6,
)  # fmt: skip
TOWERS = {
    "300M": dict(attention_bias=True, norm_type="layer_norm", use_qk_norm=False),
    "6B": dict(attention_bias=False, norm_type="rms_norm", use_qk_norm=True),
}


def theirs(folder):
    model, report = transformers.InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values())
    return model


@pytest.fixture(scope="module", params=TOWERS)
def both(request, tmp_path_factory):
    """A random model of transformers, and ours from the folder that it wrote."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(
            **TEXT, rope_parameters=rope, tie_word_embeddings=False
        ),
        vision_config=VISION | TOWERS[request.param],
        image_token_id=IMAGE, image_seq_length=9, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, sj.load(folder)


def logits_of(original, tokens, pixels):
    with torch.no_grad():
        # A short call first: the original keeps the base of its longest one until then.
        original(input_ids=torch.zeros((1, 2), dtype=int))
        return original(
            input_ids=torch.from_numpy(tokens),
            pixel_values=None if pixels is None else torch.from_numpy(pixels),
        ).logits.numpy()


def compare(original, ours, tokens, pixels, atol):
    wanted = logits_of(original, tokens, pixels)
    found = jax.jit(lambda m, t, p: m(t, p).logits)(ours, tokens, pixels)
    np.testing.assert_allclose(found, wanted, atol=atol)
    return wanted


def test_what_transformers_wrote(both, rng):
    """Beyond the trained length too, and with tiles of another size than the native one."""
    original, ours = both
    c = ours.config
    assert c.decoder.rope_dynamic_factor == 2 and c.decoder.max_position_embeddings == 64
    tokens = rng.integers(0, IMAGE, (1, 100))
    long = compare(original, ours, tokens, None, 1e-4)
    short = compare(original, ours, tokens[:, :64], None, 1e-4)
    assert np.abs(long[:, :64] - short).max() > 0.01  # another base: another function

    tokens = rng.integers(0, IMAGE, (1, 40))
    tokens[:, 5:37] = IMAGE
    pixels = rng.standard_normal((2, 3, 32, 32), np.float32)
    compare(original, ours, tokens, pixels, 1e-4)


def test_what_we_wrote(both, tmp_path, rng):
    original, ours = both
    sj.save(ours, tmp_path / "saved")
    tokens = rng.integers(0, IMAGE, (1, 70))
    tokens[:, 5:14] = IMAGE
    pixels = rng.standard_normal((1, 3, 24, 24), np.float32)
    wanted = compare(original, ours, tokens, pixels, 1e-4)
    again = logits_of(theirs(tmp_path / "saved"), tokens, pixels)
    np.testing.assert_array_equal(again, wanted)


def test_an_original_folder_becomes_one_of_the_hub(golden, tmp_path, rng):
    model = sj.load(golden / "internvl_opengvlab_keys", dtype="float32")
    model.config = dataclasses.replace(model.config, image_token_id=242)
    sj.save(model, tmp_path / "saved")
    tokens = rng.integers(0, 240, (1, 20))
    tokens[:, 5:14] = 242
    pixels = rng.standard_normal((1, 3, 24, 24), np.float32)
    compare(theirs(tmp_path / "saved"), model, tokens, pixels, 2e-4)
