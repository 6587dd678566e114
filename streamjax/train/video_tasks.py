"""The six tasks of StreamFormer's pre-training as objectives: (sum of losses, rows, metrics).

Each is given the `task` that it serves, which says whose head and label tables it reads. All weigh
alike: the loss of a mini-batch is the mean over its rows. Metrics judge a frame by the sign of its
logit, a clip or pixel by the highest one. specs/streamformer.md section 5.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from streamjax.losses import segmentation, video_text
from streamjax.losses.video_text import similarity
from streamjax.models.pretraining import Pretraining
from streamjax.train.config import Metrics, Objective
from streamjax.train.objectives import Batch, normalise

Paid = tuple[Float[Array, ""], Float[Array, ""], Metrics]


def recognise(model: Pretraining, batch: Batch, *, task: str) -> Paid:
    """The clip, seen from its last frame, against all classes (5.1); metric: top-1, top-5.

    batch: frames uint8 [b t h w 3], label int [b].
    """
    classes, _ = model.classes(task)
    logits = similarity(_frames(model, batch)[:, -1], classes, *_scale(model, task))
    labels = batch["label"]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (jax.lax.stop_gradient(logits) > jax.lax.stop_gradient(own)).sum(-1)
    hits = {f"top{k}": _mean(rank < k) for k in (1, 5)}
    return _paid(video_text.recognition(logits, labels), hits)


def retrieve(model: Pretraining, batch: Batch, *, task: str) -> Paid:
    """Each clip against the captions of the global batch (5.2); metric: its own is nearest.

    batch: frames uint8 [b t h w 3], text int [b 64].
    """
    video, text = _frames(model, batch)[:, -1], model.texts(batch["text"])
    losses, nearest = video_text.retrieval(video, text, *_scale(model, task))
    return _paid(losses, {"top1": _mean(nearest)})


def localise(model: Pretraining, batch: Batch, *, task: str) -> Paid:
    """Each frame against the classes of its clip's data set (5.3); metric: F1 of (frame, class).

    batch: frames uint8 [b t h w 3], classes int [b t] (-1 background), dataset int [b].
    """
    tables, starts = model.classes(task)
    first, last = jnp.asarray(starts)[batch["dataset"] + jnp.array([[0], [1]])]
    columns = jnp.arange(len(tables))
    competing = (first[:, None] <= columns) & (columns < last[:, None])
    classes = batch["classes"]
    labels = jnp.where(classes >= 0, classes + first[:, None], -1)
    logits = similarity(_frames(model, batch), tables, *_scale(model, task))
    said, true = (logits > 0) & competing[:, None], labels[..., None] == columns
    losses = video_text.localization(logits, labels, competing)
    return _paid(losses, {"f1": _f1(said, true)})


def ground(model: Pretraining, batch: Batch, *, task: str) -> Paid:
    """Each frame against the clip's caption (5.4); metric: F1 of the frames inside.

    batch: frames uint8 [b t h w 3], text int [b 64], inside uint8 [b t].
    """
    text, inside = model.texts(batch["text"]), batch["inside"] > 0
    logits = similarity(_frames(model, batch), text[:, None], *_scale(model, task))[..., 0]
    return _paid(video_text.grounding(logits, inside), {"f1": _f1(logits > 0, inside)})


def segment(model: Pretraining, batch: Batch, *, task: str, parity: str = "fixed") -> Paid:
    """Each patch against the classes that compete in its clip (5.5); metric: accuracy of pixels.

    batch: frames uint8 [b t h w 3], classes int [b t h w] (0 not counted), dataset int [b],
    choices int [b k]. parity: "upstream" makes background a positive of class 0 where the choices
    were drawn and hold it (quirk Q4).
    """
    tables, starts = model.classes(task)
    starts, dataset, choices = jnp.asarray(starts), batch["dataset"], batch["choices"]
    first = starts[dataset]
    classes = tables[first[:, None] + jnp.maximum(choices, 0)]  # [b k d]
    drawn = starts[dataset + 1] - first > choices.shape[-1]
    patches = _patches(model, batch, task)
    b, t, hp, wp, d = patches.shape
    logits = similarity(patches.reshape(b, -1, d), classes, *_scale(model, task))
    paid = segmentation.segmentation(
        logits.reshape(b, t, hp, wp, -1), choices, batch["classes"],
        count_zero=drawn if parity == "upstream" else None,
    )  # fmt: skip
    return _pixels(paid)


def refer(model: Pretraining, batch: Batch, *, task: str) -> Paid:
    """Each masked patch against the captions of the global batch (5.6); metric: accuracy of pixels.

    batch: frames uint8 [b t h w 3], text int [b 64], mask uint8 [b t h w].
    """
    patches, text = _patches(model, batch, task), model.texts(batch["text"])
    b, t, hp, wp, d = patches.shape
    logits = similarity(patches.reshape(-1, d), text, *_scale(model, task))
    logits = logits.reshape(b, t, hp, wp, -1)
    return _pixels(segmentation.referring(logits, jnp.arange(b), batch["mask"]))


# The objective of each kind of task.
OBJECTIVES = {
    "recognition": recognise,
    "retrieval": retrieve,
    "grounding": ground,
    "localization": localise,
    "segmentation": segment,
    "referring": refer,
}


def objectives(kinds: Mapping[str, str]) -> dict[str, Objective]:
    """Task -> its objective, for tasks of these kinds (`TrainConfig.objective`)."""
    return {task: functools.partial(OBJECTIVES[kind], task=task) for task, kind in kinds.items()}


def _frames(model: Pretraining, batch: Batch) -> Float[Array, "b t d"]:
    return model.pooled(normalise(batch["frames"]))


def _patches(model: Pretraining, batch: Batch, task: str) -> Float[Array, "b t hp wp d"]:
    frames, patch = batch["frames"], model.tower.config.patch_size
    features = model.dense(task, model.tower(normalise(frames)).tokens)
    rows, columns = (n // patch for n in frames.shape[2:4])
    return features.reshape(*features.shape[:2], rows, columns, -1)


def _scale(model: Pretraining, task: str) -> tuple[Float[Array, ""], Float[Array, ""]]:
    head = model.heads[task]
    return head.logit_scale[...], head.logit_bias[...]


def _paid(losses: Float[Array, " b"], metrics: Mapping) -> Paid:
    return losses.sum(), jnp.float32(len(losses)), metrics


def _pixels(found: segmentation.PixelLosses) -> Paid:
    return _paid(found.losses, {"pixel_accuracy": (found.right.sum(), found.pixels.sum())})


def _mean(hits: Array) -> tuple[Array, Array]:
    return hits.sum(dtype=jnp.float32), jnp.float32(len(hits))


def _f1(said: Bool[Array, "*r"], true: Bool[Array, "*r"]) -> tuple[Array, Array]:
    """2 TP / (2 TP + FP + FN) as a (sum, count), so that micro-batches add up."""
    both = 2.0 * (said & true).sum()
    return both, (said.sum() + true.sum()).astype(jnp.float32)
