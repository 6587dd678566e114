"""A recipe of three small tasks on the toy model, each with data and a loss of its own."""

import functools

import jax.numpy as jnp
import numpy as np

from streamjax.train import DataConfig, TrainConfig
from tests.train import toy

SIZES = {"class": 64, "norm": 12, "pair": 33}
BAD = 5
TRACED: list[str] = []  # every objective's name, each time it is traced


def source(task: str):
    return [{"path": f"{task}{i}.mp4", "label": i % 3} for i in range(SIZES[task])]


def transform(record, rng, task):
    if record["path"] == f"norm{BAD}.mp4":
        raise ValueError("no frames in it")
    x = rng.normal(size=(2, 8) if task == "pair" else 8).astype(np.float32)
    return {"x": x, "labels": np.full(4, record["label"], np.int32)}


def objective(model, batch, task):
    TRACED.append(task)
    if task == "class":
        return toy.objective(model, batch)
    y = model(batch["x"].reshape(-1, 8))
    if task == "norm":
        return (y**2).sum(), jnp.float32(y.size), {"size": jnp.abs(y).max()}
    left, right = jnp.moveaxis(y.reshape(-1, 2, 3), 1, 0)
    rows = jnp.float32(len(left))
    return ((left - right) ** 2).sum(), rows, {"near": ((left * right).sum(), rows)}


def config(tasks=tuple(SIZES), **changes) -> TrainConfig:
    data = {
        task: DataConfig(
            source=functools.partial(source, task),
            transform=functools.partial(transform, task=task),
            max_bad=0.5,
        )
        for task in tasks
    }
    objectives = {task: functools.partial(objective, task=task) for task in tasks}
    settings: dict = {"mesh": toy.MeshConfig(data=1)}
    # These losses are small: divided by less, gradients would be their rounding.
    settings["optim"] = toy.OptimConfig(lr=1e-2, weight_decay=0.1, eps=1e-2)
    return toy.config(
        **{"name": "tasks", "data": data, "objective": objectives, **settings, **changes}
    )
