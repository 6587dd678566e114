"""Pixel losses against a plain form; the original's numbers are in tests/train/test_video_tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.losses import segmentation


def plain(logits, ids, labels):
    """Everything at once: (loss of each row, share of its counted pixels that are right)."""
    b, t, *_, k = logits.shape
    z = jax.image.resize(logits, (b, t, *labels.shape[2:], k), "linear", antialias=False)
    z = jnp.where(ids[:, None, None, None] >= 0, z, -jnp.inf)
    hit = (labels[..., None] == ids[:, None, None, None]) & (labels[..., None] >= 0)
    counted = hit.any(-1)
    losses = -jnp.where(hit, jax.nn.log_softmax(z), 0).sum((1, 2, 3, 4))
    right = (jnp.take_along_axis(hit, z.argmax(-1)[..., None], -1)[..., 0]).sum((1, 2, 3))
    return losses / jnp.maximum(counted.sum((1, 2, 3)), 1), right, counted.sum((1, 2, 3))


@pytest.fixture
def logits(rng):
    return jnp.asarray(rng.normal(size=(3, 2, 4, 3, 5)) * 3, jnp.float32)


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_classes_compete_row_by_row(rng, logits):
    choices = jnp.array([[1, 2, 3, 0, 7], [9, 4, -1, -1, -1], [1, 2, 3, 4, 5]])
    # 8 is among no choices, and the last row shows nothing but background.
    classes = jnp.asarray(rng.choice([0, 1, 4, 7, 8, 9], (3, 2, 20, 18))).at[2].set(0)

    def pay(z, **how):
        found = segmentation.segmentation(z, choices, classes, **how)
        return found.losses.sum(), found

    def told(z, labels):
        losses, right, counted = plain(z, choices, labels)
        return losses.sum(), (losses, counted, right)

    (_, found), grad = jax.jit(jax.value_and_grad(pay, has_aux=True))(logits)
    labels = jnp.where(classes > 0, classes, -1)
    (_, wanted), slow = jax.jit(jax.value_and_grad(told, has_aux=True))(logits, labels)
    close(found, wanted)
    np.testing.assert_allclose(grad, slow, atol=1e-6)
    assert found.losses[2] == 0 and not np.any(grad[2]) and not np.any(grad[1, ..., 2:])

    every = jnp.array([True, True, True])
    close(pay(logits, count_zero=every)[1], told(logits, classes)[1])


def test_captions_compete_within_the_mask(rng, logits):
    mask = jnp.asarray(rng.integers(0, 2, (3, 2, 16, 7)), jnp.uint8).at[1].set(0)
    own = jnp.array([4, 0, 2])

    def pay(z):
        found = segmentation.referring(z, own, mask)
        return found.losses.sum(), found

    (_, found), grad = jax.jit(jax.value_and_grad(pay, has_aux=True))(logits)
    ids = jnp.broadcast_to(jnp.arange(5), (3, 5))
    labels = jnp.where(mask == 1, own[:, None, None, None], -1)
    losses, right, counted = plain(logits, ids, labels)
    close(found, (losses, counted, right))
    assert found.losses[1] == 0 and not np.any(grad[1]) and np.any(grad[0])
    alone = segmentation.referring(logits[..., :1], jnp.zeros(3, jnp.int32), mask)
    np.testing.assert_array_equal(alone.losses, 0)


def test_enlarging_is_the_half_pixel_rule():
    for size, grid in ((32, 4), (24, 4), (31, 14), (7, 3), (5, 5), (3, 1)):
        wanted = jax.image.resize(np.eye(grid), (size, grid), "linear", antialias=False)
        np.testing.assert_allclose(segmentation.enlarging(size, grid), wanted, atol=1e-6)


def test_the_pixels_are_never_all_there():
    """A clip of the published size: 16 frames of 224 x 224 and 100 classes, 321 MB at once."""

    def pay(z, choices, classes):
        return segmentation.segmentation(z, choices, classes).losses.sum()

    shapes = (
        jax.ShapeDtypeStruct((1, 16, 14, 14, 100), jnp.float32),
        jax.ShapeDtypeStruct((1, 100), jnp.int32),
        jax.ShapeDtypeStruct((1, 16, 224, 224), jnp.int32),
    )
    compiled = jax.jit(jax.grad(pay)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 32e6
