"""One optimiser step as a pure function: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from streamjax.errors import InputError
from streamjax.sharding import RULES
from streamjax.train.config import Objective, TrainConfig
from streamjax.train.optim import make_schedule
from streamjax.train.state import Setup, TrainState

Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_step(config: TrainConfig, setup: Setup, mesh: Mesh) -> Step:
    """The compiled step; it takes the memory of the state it is given (donated).

    Losses, gradients and metrics are summed over micro-batches and divided once by the sum of the
    normalizers: the mean of the whole step, however it was cut (specs/streamo.md section 5).
    """
    schedule = make_schedule(config.optim, config.steps)
    sums = _summed(config.objective, setup.graphdef)

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if config.accumulate == 1:
            grads, loss, count, metrics = sums(state, batch)
        else:
            first = jax.eval_shape(sums, state, jax.tree.map(lambda a: a[0], batch))
            # Sums are kept in float32 whatever the parameters are.
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), first)

            def add(total: Any, micro: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, sums(state, micro)), None

            (grads, loss, count, metrics), _ = jax.lax.scan(add, zeros, batch)
        count = jnp.where(count > 0, count, 1)  # a step without a single label moves nothing
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = setup.tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        after = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return after, {
            "loss": loss / count,
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            **{name: _value(metric) for name, metric in metrics.items()},
        }

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, everywhere))


def put(config: TrainConfig, batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host's rows onto the mesh, rows spread over data and fsdp; cut in micro-batches if any.

    Raises InputError when the rows of a micro-batch do not divide over those devices.
    """
    spec = PartitionSpec(RULES["batch"])
    ways = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    rows = config.batch_size // config.accumulate
    if rows % ways:
        raise InputError(
            f"batch_size/accumulate = {rows} rows do not divide over mesh data*fsdp = {ways} "
            f"devices: wanted a multiple of {ways}"
        )
    if config.accumulate > 1:
        spec = PartitionSpec(None, *spec)
        batch = {k: v.reshape(config.accumulate, -1, *v.shape[1:]) for k, v in batch.items()}
    sharding = NamedSharding(mesh, spec)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _summed(objective: Objective, graphdef: Any) -> Callable[[TrainState, Any], Any]:
    """(state, micro-batch) -> sums of (gradients, loss, normalizer, metrics)."""

    def loss_of(params: nnx.State, frozen: nnx.State, batch: Any) -> Any:
        model = nnx.merge(graphdef, params, frozen)
        loss, count, metrics = objective(model, batch)
        return loss.astype(jnp.float32), (jnp.asarray(count, jnp.float32), dict(metrics))

    def sums(state: TrainState, batch: Any) -> Any:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (count, metrics)), grads = grad(state.params, state.frozen, batch)
        return grads, loss, count, metrics

    return sums


def _value(metric: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
    """A sum as it is; a (sum, count) as the mean."""
    if not isinstance(metric, tuple):
        return metric
    total, count = metric
    return total / jnp.where(count > 0, count, 1)
