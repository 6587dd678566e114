"""A recipe small enough for tests."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.models.layers import Linear, stack
from streamjax.sharding import constrain
from streamjax.train import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from tests.train.toy_data import records, transform


class Toy(nnx.Module):
    """An encoder, two stacked layers and a head: scalars in, three classes out."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.tower = Linear(8, 16, ("embed", "mlp"), rngs=rngs)
        self.layers = stack(lambda r: Linear(16, 16, ("embed", "mlp"), rngs=r), 2, rngs)
        self.head = Linear(16, 3, ("embed", "vocab"), rngs=rngs)

    def __call__(self, x):
        def body(x, layer):
            return constrain(x + jnp.tanh(layer(x)), "batch", None), None

        # Without the layout of its carry, XLA (jax 0.10) gets a scan's gradients wrong over a mesh
        # of data, fsdp and tensor; every model says it, too.
        x = constrain(jnp.tanh(self.tower(x)), "batch", None)
        return self.head(jax.lax.scan(body, x, self.layers)[0])


def build(rngs):
    return Toy(rngs=rngs)


def objective(model, batch):
    logits = model(batch["x"])[:, None].repeat(4, 1)
    labels = batch["labels"]
    kept = labels >= 0
    losses = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1
    )[..., 0]
    truth, told = jax.nn.one_hot(labels, 3), jax.nn.one_hot(logits.argmax(-1), 3)
    told = told * kept[..., None]
    tp = (truth * told).sum((0, 1))
    return (losses * kept).sum(), kept.sum(), {
        "tp": tp, "fp": told.sum((0, 1)) - tp, "fn": truth.sum((0, 1)) - tp,
        "share": (kept.sum(), jnp.float32(kept.size)),
    }  # fmt: skip


def config(**changes) -> TrainConfig:
    base = TrainConfig(
        name="toy",
        steps=12,
        batch_size=8,
        model=build,
        weights="fresh",
        objective=objective,
        data=DataConfig(source=records, transform=transform),
        optim=OptimConfig(lr=1e-2, weight_decay=0.1, warmup=0.2),
        checkpoint=CheckpointConfig(every=5, keep=2),
        mesh=MeshConfig(),
        log_every=4,
    )
    return dataclasses.replace(base, **changes)
