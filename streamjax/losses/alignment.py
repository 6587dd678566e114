"""Aligning what a tower sees with words: per patch, against a table of label embeddings.

StreamFormer's dense alignment (specs/streamformer.md section 5.5): cosine similarity of a patch and
each label, scaled, softmax over the labels, averaged over the counted patches.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def dense_alignment(
    tokens: Float[Array, "b t p d"],
    words: Float[Array, "c d"],
    scale: Float[Array, ""],
    labels: Int[Array, "b t p"],
    *,
    background: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "3"]]:
    """Sum of weighted cross-entropy over the patches, the sum of weights, and F1 counts.

    labels: the row of `words` that names the patch; 0 is the background, weighted `background`
    (most patches show it); -1 is not counted (padding). `scale` multiplies the cosine, as
    exp(logit_scale) does. The counts are (true positives, false positives, false negatives) of the
    labels above 0.
    """
    seen = tokens.astype(jnp.float32)
    seen = seen / jnp.linalg.norm(seen, axis=-1, keepdims=True)
    words = words / jnp.linalg.norm(words, axis=-1, keepdims=True)
    logits = scale * jnp.einsum("btpd,cd->btpc", seen, words)
    weights = jnp.where(labels > 0, 1.0, background) * (labels >= 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    said = jax.lax.stop_gradient(logits).argmax(-1)
    right = said == labels
    counts = jnp.stack(
        [
            (right & (labels > 0)).sum(),
            (~right & (said > 0) & (labels >= 0)).sum(),
            (~right & (labels > 0)).sum(),
        ]
    )
    return (weights * losses).sum(), weights.sum(), counts.astype(jnp.float32)
