"""Sigmoid losses of clips and frames against texts: four of StreamFormer's six tasks.

Every function gives one loss per row of the batch, and the published loss is their mean; what is
summed and divided inside a row differs from task to task and is said in each. All of it is float32.
specs/streamformer.md sections 5.1 to 5.4.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from streamjax.sharding import RULES

Scalar = Float[Array, ""]


def similarity(
    seen: Float[Array, "*b r d"], texts: Float[Array, "*or_none c d"], scale: Scalar, bias: Scalar
) -> Float[Array, "*b r c"]:
    """exp(scale) * cosine + bias, float32 and exact on any device; both sides already unit rows.

    texts: of each row of the batch, or the same [c d] for all. scale and bias are a head's
    `logit_scale` and `logit_bias`.
    """
    # Ask for the highest precision: by default a TPU rounds the factors to bfloat16, which a scale
    # of about 100 turns into errors of the size of the logits' differences.
    cosine = jnp.einsum("...rd,...cd->...rc", seen, texts, precision="highest")
    return jnp.exp(scale) * cosine + bias


def recognition(logits: Float[Array, "b c"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Sum over all classes of the sigmoid loss, the label's class positive (5.1)."""
    return _sigmoid(logits, labels[:, None] == jnp.arange(logits.shape[-1])).sum(-1)


def localization(
    logits: Float[Array, "b t c"], labels: Int[Array, "b t"], competing: Bool[Array, "b c"]
) -> Float[Array, " b"]:
    """Sum over classes, mean over frames of the sigmoid loss (5.3).

    labels: the frame's class, -1 where nothing happens and all classes are negative. competing:
    the classes of the row's own data set; the others are of no matter to it.
    """
    positive = labels[..., None] == jnp.arange(logits.shape[-1])
    losses = jnp.where(competing[:, None], _sigmoid(logits, positive), 0.0)
    return losses.sum((1, 2)) / logits.shape[1]


def grounding(logits: Float[Array, "b t"], inside: Bool[Array, "b t"]) -> Float[Array, " b"]:
    """Sum over frames, not their mean: twice the frames, twice the loss (5.4, quirk Q11).

    A caption is scored against the frames of its own video only.
    """
    return _sigmoid(logits, inside).sum(-1)


def retrieval(
    video: Float[Array, "b d"], text: Float[Array, "b d"], scale: Scalar, bias: Scalar
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """SigLIP's loss of each video against all texts of the global batch, its own positive (5.2).

    video, text: unit rows. Also 1.0 where a video's own text is the nearest of the batch (no
    gradient), else 0.0. The same video or caption twice in a batch counts as negative.

    Where the batch is spread over devices (`jax.set_mesh`) the texts travel round them as a ring,
    and their gradients with them: no device ever holds the texts of all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(a for a in RULES["batch"] if mesh.shape[a] > 1)
    ways = math.prod(mesh.shape[a] for a in axes)
    scale = jnp.exp(scale)
    if ways == 1 or len(video) % ways:
        return _ring((), 1, video, text, scale, bias)

    def part(video, text, scale, bias):
        # Every device has its own share of these gradients; what they share is summed outside.
        scale, bias = (jax.lax.pcast(x, axes, to="varying") for x in (scale, bias))
        return _ring(axes, ways, video, text, scale, bias)

    rows, everywhere = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(
        part, in_specs=(rows, rows, everywhere, everywhere), out_specs=(rows, rows)
    )(video, text, scale, bias)


def _sigmoid(logits: Float[Array, "*r"], positive: Bool[Array, "*r"]) -> Float[Array, "*r"]:
    """-log sigmoid(z) of positives, -log sigmoid(-z) of the rest."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(positive, -logits, logits))


# Without the backward pass spelt out, autodiff would keep the text of every turn: all of it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(axes, ways, video, text, scale, bias):
    """Losses of this device's videos, and whether their own text wins, over `ways` turns."""
    pairs = jnp.eye(len(video), dtype=bool)  # own texts are here at the first turn

    def turn(text):
        return _turn(video, text, scale, bias)[0]

    logits = turn(text)
    own, losses = jnp.diagonal(logits), _sigmoid(logits, pairs).sum(-1)
    rival = jnp.where(pairs, -jnp.inf, logits).max(-1)

    def step(_, carry):
        losses, rival, text = carry
        text = _pass_on(text, axes, ways)
        logits = turn(text)
        losses = losses + jax.nn.softplus(logits).sum(-1)
        return losses, jnp.maximum(rival, logits.max(-1)), text

    losses, rival, _ = jax.lax.fori_loop(1, ways, step, (losses, rival, text))
    return losses, (own > rival).astype(jnp.float32)


def _ring_forward(axes, ways, video, text, scale, bias):
    return _ring(axes, ways, video, text, scale, bias), (video, text, scale, bias)


def _ring_backward(axes, ways, kept, gradients):
    """The texts go round once more, each with its gradient so far; the last turn brings it home."""
    video, text, scale, bias = kept
    weight = gradients[0][:, None]

    def turn(text, positive):
        logits, cosine = _turn(video, text, scale, bias)
        logits = weight * (jax.nn.sigmoid(logits) - positive)
        to_video = scale * jnp.matmul(logits, text, precision="highest")
        to_text = scale * jnp.matmul(logits.T, video, precision="highest")
        return to_video, to_text, (logits * cosine).sum(), logits.sum()

    def step(_, carry):
        text, to_video, to_text, *scalars = carry
        text, to_text = (_pass_on(x, axes, ways) for x in (text, to_text))
        more, back, *others = turn(text, 0.0)
        sums = (a + b for a, b in zip(scalars, others, strict=True))
        return text, to_video + more, to_text + back, *sums

    first = text, *turn(text, jnp.eye(len(video)))
    _, to_video, to_text, to_scale, to_bias = jax.lax.fori_loop(1, ways, step, first)
    return to_video, _pass_on(to_text, axes, ways), to_scale, to_bias


_ring.defvjp(_ring_forward, _ring_backward)


def _turn(video, text, scale, bias):
    cosine = jnp.matmul(video, text.T, precision="highest")
    return scale * cosine + bias, cosine


def _pass_on(x, axes, ways):
    if ways == 1:
        return x
    return jax.lax.ppermute(x, axes, [(i, (i + 1) % ways) for i in range(ways)])
