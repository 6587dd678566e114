"""What all video language models share: 1-D positions, and what is said of input that is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.data.positions import mrope_positions
from streamjax.models import internvl
from streamjax.models.decoder import DecoderConfig


@pytest.fixture(scope="module")
def model():
    config = internvl.InternVLConfig(
        vision=internvl.InternViTConfig(
            image_size=8, patch_size=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8,
        ),
        decoder=DecoderConfig(
            vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1,
        ),
        image_token_id=99,
    )  # fmt: skip
    return internvl.InternVL(config, rngs=nnx.Rngs(0))


def test_positions_count_real_tokens_anew_in_every_segment(model, rng):
    """As M-RoPE's do of text; padding stands anywhere, in front of a segment too."""
    shape = (40, 10)
    tokens, mask = np.zeros(shape, int), rng.random(shape) < 0.7
    segments = np.sort(rng.integers(0, 3, shape), axis=1)
    for padding, packing in ((mask, segments), (mask, None), (None, segments), (None, None)):
        found, delta = model.positions(tokens, mask=padding, segments=packing)
        wanted, wanted_delta = mrope_positions(
            tokens, image_id=1, mask=padding, segments=packing
        )  # fmt: skip
        np.testing.assert_array_equal(found, wanted[0])
        np.testing.assert_array_equal(delta, wanted_delta)


def test_tokens_that_the_embeddings_do_not_have(model):
    with pytest.raises(ValueError, match="token 32 for 32 rows of embeddings: is the tokenizer"):
        model.embed(np.array([[31, 32]]))
    # Placeholders need no row: they are written over.
    features = jnp.full((1, 8), 7.0)
    np.testing.assert_array_equal(model.embed(np.array([[99]]), features)[0], features)
    extend = jax.jit(lambda m, t, c: m.extend(t, c)[0].logits.shape)
    assert extend(model, np.array([[40]]), model.init_cache(1, capacity=2)) == (1, 1, 32)


def test_pixels_of_other_shapes(model):
    tokens = np.array([[1, 2]])
    no_tiles = np.zeros((0, 3, 8, 8), np.float32)
    assert model.hidden(tokens, no_tiles).shape == (1, 2, 8)  # a text in a batch of pictures
    with pytest.raises(ValueError, match=r"pixels have shape \[0, 3, 8, 8\], wanted \[tiles"):
        model.encode_images(no_tiles)
    with pytest.raises(ValueError, match="tiles of 6x8 pixels, wanted sides .* multiples of 4"):
        model.encode_images(np.zeros((1, 3, 6, 8), np.float32))
