"""Dense alignment against a plain numpy form."""

import jax
import jax.numpy as jnp
import numpy as np

from streamjax.losses.alignment import dense_alignment


def test_equals_the_plain_form(rng):
    tokens = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
    words = rng.normal(size=(5, 8)).astype(np.float32)
    labels = rng.integers(-1, 5, (2, 3, 4))
    loss, count, found = dense_alignment(
        jnp.asarray(tokens), jnp.asarray(words), jnp.float32(7.0), jnp.asarray(labels),
        background=0.25,
    )  # fmt: skip
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    logits = 7.0 * unit @ (words / np.linalg.norm(words, axis=-1, keepdims=True)).T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    weights = np.where(labels > 0, 1.0, 0.25) * (labels >= 0)
    picked = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -(weights * picked).sum(), rtol=1e-5)
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)
    said = logits.argmax(-1)
    right = said == labels
    wanted = [
        (right & (labels > 0)).sum(),
        (~right & (said > 0) & (labels >= 0)).sum(),
        (~right & (labels > 0)).sum(),
    ]
    np.testing.assert_array_equal(found, wanted)


def test_padding_moves_nothing(rng):
    tokens = jnp.asarray(rng.normal(size=(1, 2, 3, 8)), jnp.float32)
    words = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
    labels = jnp.full((1, 2, 3), -1).at[0, 0].set(2)
    grad = jax.grad(lambda x: dense_alignment(x, words, jnp.float32(5.0), labels)[0])(tokens)
    assert np.abs(grad[0, 0]).max() > 0 and not np.abs(grad[0, 1]).any()
