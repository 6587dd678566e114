"""What a model is trained to do, as functions (model, batch) -> (sum of losses, count, metrics)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.data.dense import ASPECTS
from streamjax.losses import chunked_stream_loss
from streamjax.losses.alignment import dense_alignment
from streamjax.models.layers import parameter
from streamjax.models.streamformer import StreamFormer

Batch = Mapping[str, jax.Array]


class AlignedTower(nnx.Module):
    """A tower and, for each aspect, the embeddings of its labels; `log_scale` as SigLIP's."""

    def __init__(self, tower: StreamFormer, sizes: Mapping[str, int], *, rngs: nnx.Rngs):
        width = tower.config.hidden_size
        self.tower = tower
        self.words = nnx.Dict(
            {
                name: parameter(rngs, (size, width), (None, None), jax.nn.initializers.normal(1.0))
                for name, size in sizes.items()
            }
        )
        self.log_scale = parameter(rngs, (), (), jax.nn.initializers.constant(np.log(10.0)))


def normalise(frames: jax.Array) -> jax.Array:
    """uint8 pixels -> StreamFormer's range [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def align_patches(model: AlignedTower, batch: Batch, *, background: float = 0.15):
    """Dense alignment of every aspect; each aspect counts alike, whatever it labels.

    batch: frames uint8 [b t h w 3], labels int [b 4 t p] (`data.dense.patch_labels`).
    """
    config = model.tower.config
    frames = normalise(batch["frames"])
    tokens = model.tower(frames, time_rule="hold", window=config.num_frames).tokens
    rows = jnp.float32(len(frames))
    total, metrics = jnp.float32(0), {}
    for i, name in enumerate(ASPECTS):
        loss, count, found = dense_alignment(
            tokens,
            model.words[name][...],
            jnp.exp(model.log_scale[...]),
            batch["labels"][:, i].astype(jnp.int32),
            background=background,
        )
        total = total + loss / jnp.maximum(count, 1e-6)
        metrics[f"f1_{name}"] = (2 * found[0], 2 * found[0] + found[1] + found[2])
    return total * rows, rows, metrics


def assist(
    model: Any,
    batch: Batch,
    *,
    state_ids: tuple[int, int, int],
    kind: str = "focal",
    gamma: float = 2.0,
):
    """Streamo's loss over the dialogues of each clip, every dialogue weighted by its own states.

    batch: frames uint8 [b t h w 3], tokens and labels int32 [b k l]: k dialogues about a clip,
    which is looked at once.
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
    loss, found = chunked_stream_loss(
        hidden, model.head_kernel(), labels, state_ids, kind=kind, gamma=gamma, segments=rows,
        normalizer=1.0,
    )  # fmt: skip
    metrics = {
        "accuracy": (found.correct, found.tokens),
        "tp": found.tp,
        "fp": found.fp,
        "fn": found.fn,
    }
    return loss, found.tokens, metrics
