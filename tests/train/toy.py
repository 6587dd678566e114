"""A recipe small enough for tests, and a script that trains it: `python toy.py RUN [key=value]`."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.models.layers import Linear, stack
from streamjax.train import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    override,
    train,
)


class Toy(nnx.Module):
    """An encoder, two stacked layers and a head: scalars in, three classes out."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.tower = Linear(8, 16, ("embed", "mlp"), rngs=rngs)
        self.layers = stack(lambda r: Linear(16, 16, ("embed", "mlp"), rngs=r), 2, rngs)
        self.head = Linear(16, 3, ("embed", "vocab"), rngs=rngs)

    def __call__(self, x):
        def body(x, layer):
            return x + jnp.tanh(layer(x)), None

        return self.head(jax.lax.scan(body, jnp.tanh(self.tower(x)), self.layers)[0])


def build(rngs):
    return Toy(rngs=rngs)


def records():
    return [{"path": f"clip{i}.mp4", "label": i % 3} for i in range(64)]


def transform(record, rng):
    x = rng.normal(size=8).astype(np.float32)
    x[record["label"]] += 2
    # Every third row has half its labels, so that a token mean is not a row mean.
    labels = np.full(4, record["label"], np.int32)
    labels[2:] = -100 if record["label"] == 0 else labels[2:]
    return {"x": x, "labels": labels}


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


if __name__ == "__main__":
    train(override(config(), sys.argv[2:]), sys.argv[1])
