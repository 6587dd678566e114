"""One optimiser step as a pure function: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from streamjax.errors import InputError
from streamjax.sharding import RULES
from streamjax.train.config import Metrics, Objective, TrainConfig
from streamjax.train.optim import make_schedule
from streamjax.train.state import Setup, TrainState

# A batch on the mesh, or of several tasks the mini-batches of an update, each with its task.
Batch = Mapping[str, jax.Array] | Sequence[tuple[str, Mapping[str, jax.Array]]]
HostBatch = Mapping[str, np.ndarray] | Sequence[tuple[str, Mapping[str, np.ndarray]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(config: TrainConfig, setup: Setup, mesh: Mesh | AbstractMesh) -> Step:
    """The step (state, batch) -> (state, metrics); it takes the memory of the state it is given.

    Of one task, a compiled program: losses, gradients and metrics are summed over micro-batches and
    divided once by the sum of the normalizers, the mean of the whole step, however it was cut
    (specs/streamo.md section 5).

    Of several tasks, one program per task that adds a mini-batch's gradients, in float32, and one
    that applies their sum, so that any tasks in any order run without compiling anew. The loss is
    the mean over the mini-batches of each one's own mean. Metrics are named "task/metric".
    """
    if isinstance(config.objective, Mapping):
        return _make_multitask(config, config.objective, setup, mesh)
    sums = _summed(config.objective, setup.graphdef)
    apply = _applied(config, setup)

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if config.accumulate == 1:
            grads, loss, count, metrics = sums(state.params, state.frozen, batch)
        else:
            first = jax.eval_shape(
                sums, state.params, state.frozen, jax.tree.map(lambda a: a[0], batch)
            )
            # Sums are kept in float32 whatever the parameters are.
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), first)

            def add(total: Any, micro: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, sums(state.params, state.frozen, micro)), None

            (grads, loss, count, metrics), _ = jax.lax.scan(add, zeros, batch)
        count = jnp.where(count > 0, count, 1)  # a step without a single label moves nothing
        after, told = apply(state, jax.tree.map(lambda g: g / count, grads), loss / count)
        return after, {**told, **_values(metrics)}

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, everywhere))


class TaskPrograms(NamedTuple):
    """The compiled programs of a step over several tasks.

    A total is (gradients, loss), in float32. `begin()` gives an empty one; `add[task](total,
    params, frozen, batch, share)` adds a mini-batch's and gives its metrics; `apply(state, total)`
    gives the state after the update, and what is told of it.
    """

    begin: Any
    add: Mapping[str, Any]
    apply: Any


def task_programs(
    config: TrainConfig,
    objectives: Mapping[str, Objective],
    setup: Setup,
    mesh: Mesh | AbstractMesh,
) -> TaskPrograms:
    """What a step over several tasks runs; one program per task, whatever order they come in."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    totals = (setup.shardings.params, everywhere)  # of the gradients and the loss

    def nothing() -> Any:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), setup.abstract.params)
        return zeros, jnp.float32(0)

    def adder(objective: Objective) -> Callable[..., tuple[Any, Any]]:
        sums = _summed(objective, setup.graphdef)

        def add(total: Any, params: nnx.State, frozen: nnx.State, batch: Any, share: Any) -> Any:
            grads, loss, count, metrics = sums(params, frozen, batch)
            count = jnp.where(count > 0, count, 1)
            scaled = jax.tree.map(lambda g: g.astype(jnp.float32) * (share / count), (grads, loss))
            found = {**metrics, "loss": (loss / count, jnp.float32(1))}
            return jax.tree.map(jnp.add, total, scaled), found

        return jax.jit(add, donate_argnums=0, out_shardings=(totals, everywhere))

    applied = _applied(config, setup)
    return TaskPrograms(
        begin=jax.jit(nothing, out_shardings=totals),
        add={task: adder(objective) for task, objective in objectives.items()},
        apply=jax.jit(
            lambda state, total: applied(state, *total),
            donate_argnums=0,
            out_shardings=(setup.shardings, everywhere),
        ),
    )


def _make_multitask(
    config: TrainConfig,
    objectives: Mapping[str, Objective],
    setup: Setup,
    mesh: Mesh | AbstractMesh,
) -> Step:
    begin, add, apply = task_programs(config, objectives, setup, mesh)
    plus = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    values = jax.jit(_values)

    def step(
        state: TrainState, batch: Sequence[tuple[str, Mapping[str, jax.Array]]]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        total, found = begin(), {}
        for task, arrays in batch:
            total, new = add[task](total, state.params, state.frozen, arrays, 1 / len(batch))
            found[task] = plus(found[task], new) if task in found else new
        state, told = apply(state, total)
        for task in found:
            told |= {f"{task}/{name}": value for name, value in values(found[task]).items()}
        return state, told

    return step


def put(config: TrainConfig, batch: HostBatch, mesh: Mesh) -> Batch:
    """A host's rows onto the mesh, rows spread over data and fsdp; cut in micro-batches if any.

    Of several tasks each mini-batch for itself. Raises InputError when the rows of a micro-batch,
    or of a mini-batch, do not divide over those devices.
    """
    several = isinstance(config.data, Mapping)
    pieces = 1 if several else config.accumulate
    where = batch_sharding(config, mesh)
    ways = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    rows = config.batch_size // pieces
    if rows % ways:
        told = "batch_size" if several else "batch_size/accumulate"
        raise InputError(
            f"{told} = {rows} rows do not divide over mesh data*fsdp = {ways} "
            f"devices: wanted a multiple of {ways}"
        )
    if not isinstance(batch, Mapping):
        return [(task, _spread(arrays, where)) for task, arrays in batch]
    if pieces > 1:
        batch = {k: v.reshape(pieces, -1, *v.shape[1:]) for k, v in batch.items()}
    return _spread(batch, where)


def batch_sharding(config: TrainConfig, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Where each array of a batch lives: rows over data and fsdp, behind micro-batches if any."""
    several = isinstance(config.data, Mapping)
    leading = () if several or config.accumulate == 1 else (None,)
    return NamedSharding(mesh, PartitionSpec(*leading, RULES["batch"]))


def _spread(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _applied(config: TrainConfig, setup: Setup) -> Callable[[TrainState, Any, Any], Any]:
    """(state, gradients, loss) -> the state after the update, and what is told of it."""
    schedule = make_schedule(config.optim, config.steps)

    def apply(state: TrainState, grads: Any, loss: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        updates, opt_state = setup.tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        after = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return after, {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
        }

    return apply


def _summed(objective: Objective, graphdef: Any) -> Callable[[nnx.State, nnx.State, Any], Any]:
    """(parameters, frozen, micro-batch) -> sums of (gradients, loss, normalizer, metrics)."""

    def loss_of(params: nnx.State, frozen: nnx.State, batch: Any) -> Any:
        model = nnx.merge(graphdef, params, frozen)
        loss, count, metrics = objective(model, batch)
        return loss.astype(jnp.float32), (jnp.asarray(count, jnp.float32), dict(metrics))

    def sums(params: nnx.State, frozen: nnx.State, batch: Any) -> Any:
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (count, metrics)), grads = grad(params, frozen, batch)
        return grads, loss, count, metrics

    return sums


def _values(metrics: Metrics) -> dict[str, jax.Array]:
    """Sums as they are; a (sum, count) as the mean."""

    def value(metric: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
        if not isinstance(metric, tuple):
            return metric
        total, count = metric
        return total / jnp.where(count > 0, count, 1)

    return {name: value(metric) for name, metric in metrics.items()}
