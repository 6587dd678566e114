"""What a model is trained to do, as functions (model, batch) -> (sum of losses, count, metrics)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.data.dense import FRAME_ASPECTS, PATCH_ASPECTS
from streamjax.errors import InputError
from streamjax.losses import chunked_stream_loss
from streamjax.losses.alignment import dense_alignment
from streamjax.models.layers import parameter
from streamjax.models.qwen_vision import VisionPlan
from streamjax.models.streamformer import StreamFormer
from streamjax.models.vlm import VideoLM

Batch = Mapping[str, jax.Array]


class AlignedTower(nnx.Module):
    """A tower and the embeddings of its labels; `log_scale` as SigLIP's.

    `words` align patches and `actors` whole frames, each with one table per aspect.
    """

    def __init__(self, tower: StreamFormer, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        width = tower.config.hidden_size
        self.tower = tower
        self.words = _tables({name: sizes[name] for name in PATCH_ASPECTS}, width, rngs)
        self.actors = _tables({name: sizes[name] for name in FRAME_ASPECTS}, width, rngs)
        self.log_scale = parameter(rngs, (), (), jax.nn.initializers.constant(np.log(10.0)))


def _tables(sizes: Mapping[str, int], width: int, rngs: nnx.Rngs) -> nnx.Dict:
    init = jax.nn.initializers.normal(1.0)
    return nnx.Dict({k: parameter(rngs, (n, width), (None, None), init) for k, n in sizes.items()})


def normalise(frames: jax.Array) -> jax.Array:
    """uint8 pixels -> StreamFormer's range [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def align(model: AlignedTower, batch: Batch, *, background: tuple[float, float] = (0.15, 0.5)):
    """Dense alignment at two granularities: every patch with its words, every frame with its actor.

    A frame is the mean of its patches, so that what a frame says can be read off any pool of them.
    Each aspect counts alike, however many patches or frames it labels; `background` weighs "none"
    (of patches, of frames).

    batch: frames uint8 [b t h w 3], patches int [b 4 t p] (`data.dense.patch_labels`), actors int
    [b 6 t] (`data.dense.frame_labels`).
    """
    config = model.tower.config
    frames = normalise(batch["frames"])
    tokens = model.tower(frames, time_rule="hold", window=config.num_frames).tokens
    whole = tokens.mean(2, keepdims=True)
    scale = jnp.exp(model.log_scale[...])
    total, metrics = jnp.float32(0), {}
    for kind, aspects, seen, tables, labels, weight in (
        ("patch", PATCH_ASPECTS, tokens, model.words, batch["patches"], background[0]),
        ("frame", FRAME_ASPECTS, whole, model.actors, batch["actors"][..., None], background[1]),
    ):
        for i, name in enumerate(aspects):
            loss, count, found = dense_alignment(
                seen, tables[name][...], scale, labels[:, i].astype(jnp.int32), background=weight
            )
            total = total + loss / jnp.maximum(count, 1e-6)
            metrics[f"{kind}_f1_{name}"] = (2 * found[0], 2 * found[0] + found[1] + found[2])
    rows = jnp.float32(len(frames))
    return total * rows, rows, metrics


def assist(
    model: Any,
    batch: Batch,
    *,
    state_ids: tuple[int, int, int],
    kind: str = "focal",
    gamma: float = 2.0,
    alpha: str | None = "present",
    whole: bool = False,
):
    """Streamo's loss over the dialogues of each clip, every dialogue weighted by its own states.

    kind, gamma, alpha: of `losses.stream_loss`. whole: the states are counted over the whole batch
    instead, as the paper has it. batch: frames uint8 [b t h w 3], tokens and labels int32 [b k l]:
    k dialogues about a clip, which is looked at once.
    """
    frames = normalise(batch["frames"])
    b, t, height, width, _ = frames.shape
    k, length = batch["tokens"].shape[1:]
    patch = model.config.tower.patch_size
    pixels = jnp.moveaxis(frames, -1, 2).reshape(b * t, 3, height, width)
    grid = np.array([[t, height // patch, width // patch]] * b)
    features = model.encode_images(pixels, grid)
    features = jnp.repeat(features.reshape(b, -1, features.shape[-1]), k, axis=0)
    tokens = batch["tokens"].reshape(b * k, length)
    labels = batch["labels"].reshape(b * k, length)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
    hidden = model.decoder(model.embed(tokens, features), positions)
    # One segment a row: alpha counts the states of that dialogue alone.
    rows = jnp.broadcast_to(jnp.arange(b * k, dtype=jnp.int32)[:, None], tokens.shape)
    segments = None if whole else rows
    return _spoken(hidden, model, labels, segments, state_ids, kind=kind, gamma=gamma, alpha=alpha)


def converse(
    model: VideoLM,
    batch: Batch,
    *,
    state_ids: tuple[int, int, int],
    kind: str = "focal",
    gamma: float = 2.0,
    alpha: str | None = "present",
):
    """Streamo's loss over dialogues with frames, every dialogue weighted by its own states.

    batch: rows of `data.rows.Rows`; frames are normalised here, as `model.assets.processor` says.
    kind, gamma, alpha: of `losses.stream_loss`. specs/streamo.md sections 5 and 7. Raises
    InputError for a model without an image processor.
    """
    processor, pixels = model.assets.processor, batch["pixels"]
    if processor is None:
        raise InputError("the model has no image processor, by which its frames are normalised")
    mean, std = (
        np.reshape(a, (3, *[1] * (pixels.ndim - 3))).astype(np.float32)
        for a in (processor.mean, processor.std)
    )
    pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
    plan, positions = None, None
    if "positions" in batch:  # patches [b p 3 d]
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        plan = VisionPlan.of({k.removeprefix("plan_"): a for k, a in batch.items()})
        positions = batch["positions"].swapaxes(0, 1)
    segments = batch["segments"]
    hidden = model.hidden(batch["tokens"], pixels, plan, segments=segments, positions=positions)
    return _spoken(
        hidden, model, batch["labels"], segments, state_ids, kind=kind, gamma=gamma, alpha=alpha
    )


def _spoken(hidden, model, labels, segments, state_ids, **weights):
    """What is paid for the answers, and how many of them and of the states are right."""
    loss, found = chunked_stream_loss(
        hidden, model.head_kernel(), labels, state_ids, segments=segments, normalizer=1.0, **weights
    )  # fmt: skip
    metrics = {
        "accuracy": (found.correct, found.tokens),
        "tp": found.tp,
        "fp": found.fp,
        "fn": found.fn,
    }
    return loss, found.tokens, metrics
