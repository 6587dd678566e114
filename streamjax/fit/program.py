"""What a recipe compiles: its programs in the abstract, without weights, data or devices."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from streamjax.errors import InputError
from streamjax.losses.stream import CHUNK
from streamjax.ops.attention import SLOTS
from streamjax.sharding import RULES, placements, shardings_of, spec_of
from streamjax.stream import program as stream_program
from streamjax.train.config import TrainConfig
from streamjax.train.flops import branches, train_flops, turn_flops
from streamjax.train.state import set_up
from streamjax.train.step import batch_sharding, make_step, task_programs


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a step, `times` of it in each.

    trace: gives the `jax.stages.Traced` of it. useful: operations of one run over all devices,
    without what is worked out twice. turns: of loops that end when the data say so. resident: bytes
    on each device that are none of its arguments and lie there while it runs.
    """

    name: str
    times: float
    trace: Callable[[], Any]
    useful: float
    turns: int = 1
    resident: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe on a mesh: its programs, and the bytes on each device that outlast a step.

    rows: of a micro-batch (training) or streams, over all devices. tokens: of a step.
    """

    mesh: Mesh
    programs: tuple[Program, ...]
    held: Mapping[str, int]
    rows: int
    tokens: int


def training(config: TrainConfig, mesh: Mesh) -> Case:
    """The train step as the loop runs it: of one task a program, of several one each and the
    update. Raises InputError when rows do not divide over the mesh, and as `set_up` does."""
    if config.weights == "loaded":
        raise InputError(
            f"{config.name} reads weights: wanted a recipe whose config() takes shapes=True, "
            "as the published ones do, or one that draws them"
        )
    setup = set_up(config, mesh)
    parts = {
        name: placements(getattr(setup.abstract, part), getattr(setup.shardings, part))
        for name, part in (("trained", "params"), ("frozen", "frozen"), ("moments", "opt_state"))
    }
    held = {name: sum(row.per_device for row in rows) for name, rows in parts.items()}
    state = _placed(setup.abstract, setup.shardings)
    model = nnx.merge(setup.graphdef, setup.abstract.params, setup.abstract.frozen)
    where, rows = batch_sharding(config, mesh), _rows(config, mesh)

    def shaped(data: Any) -> dict[str, Any]:
        leading = (config.accumulate, rows) if _stacked(config) else (rows,)
        return {
            key: jax.ShapeDtypeStruct((*leading, *a.shape), a.dtype, sharding=where)
            for key, a in first_row(data).items()
        }

    def micro(batch: Mapping[str, Any]) -> dict[str, Any]:
        leading = int(_stacked(config))
        return {k: jax.ShapeDtypeStruct(a.shape[leading:], a.dtype) for k, a in batch.items()}

    def useful(batch: Mapping[str, Any], task: str | None = None) -> float:
        return train_flops(model, setup.abstract.params, micro(batch), task=task).step

    if not isinstance(config.data, Mapping) or not isinstance(config.objective, Mapping):
        batch = shaped(config.data)
        step: Any = make_step(config, setup, mesh)
        done = useful(batch) * (config.accumulate if _stacked(config) else 1)
        turns = _loss_turns(model, micro(batch))
        held["batch"] = _per_device(batch)
        whole = Program("step", 1.0, lambda: step.trace(state, batch), done, turns)
        return Case(mesh, (whole,), held, rows, _tokens(batch))

    several = task_programs(config, config.objective, setup, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    total = (
        jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=a.sharding), state.params
        ),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),
    )
    share = 1.0 if config.order == "each" else config.accumulate / len(config.data)
    programs, tokens = [], 0.0
    for task, data in config.data.items():
        batch = shaped(data)
        tokens += share * _tokens(batch)

        def trace(task: str = task, batch: Any = batch) -> Any:
            part = 1 / len(config.data)
            return several.add[task].trace(total, state.params, state.frozen, batch, part)

        # The moments wait while gradients are added up.
        programs.append(Program(task, share, trace, useful(batch, task), 1, held["moments"]))
    update = Program("update", 1.0, lambda: several.apply.trace(state, total), 0.0)
    return Case(mesh, (*programs, update), held, rows, round(tokens))


def streaming(config: TrainConfig, mesh: Mesh, *, capacity: int, tokens: int, streams: int) -> Case:
    """A turn of `streams` streams, as a session runs it: a frame through the tower, `tokens` new
    tokens against a cache of `capacity`, the probabilities of the states.

    Weights are bfloat16. Raises InputError for a recipe that trains no assistant.
    """

    def build() -> Any:
        model: Any = config.model(nnx.Rngs(0))
        if not hasattr(model, "decoder") or not hasattr(model.config, "vision"):
            raise InputError(
                f"--stream: {config.name} trains {type(model).__name__}, wanted a video LLM"
            )
        model.assets = None
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16), model)

    model = nnx.eval_shape(build)
    model.dtype = model.decoder.dtype = jnp.dtype(jnp.bfloat16)
    graph, weights = nnx.split(model)
    where = shardings_of(weights, mesh)
    held = {"weights": sum(row.per_device for row in placements(weights, where))}
    placed = nnx.merge(graph, _placed(weights, where))
    leaves, structure = jax.tree.flatten(placed)
    ids = tuple(config.objective.keywords["state_ids"])  # pyrefly: ignore
    form = stream_program.Form(structure, ids, ())
    rows = NamedSharding(mesh, PartitionSpec(RULES["batch"]))

    def array(shape: tuple[int, ...], dtype: Any, sharding: Any = rows) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def of_cache(a: Any) -> Any:
        names = (None, "batch", "heads", None, None) if a.ndim == 5 else ("batch",)
        names = (*names, *(None,) * (a.ndim - len(names)))
        return array(a.shape, a.dtype, NamedSharding(mesh, spec_of(a.shape, names, mesh)))

    with jax.set_mesh(mesh):
        cache = jax.tree.map(
            of_cache,
            jax.eval_shape(lambda: model.init_cache(streams, capacity=capacity, sink=tokens)),
        )
        pixels, grid = _frame(model)
        frames = jax.eval_shape(lambda: model.init_frames(streams, grid))
    frames = jax.tree.map(lambda a: array(a.shape, a.dtype, NamedSharding(mesh, PartitionSpec())),
                          frames)  # fmt: skip
    pixels = array((streams, *pixels), jnp.float32)
    new = array((streams, tokens), jnp.int32)
    mrope = model.config.decoder.mrope_section is not None
    offsets = new
    if mrope:
        columns = NamedSharding(mesh, PartitionSpec(None, RULES["batch"]))
        offsets = array((3, streams, tokens), jnp.int32, columns)
    number = array((streams,), jnp.int32)

    def trace() -> Any:
        return stream_program.turn.trace(
            form, leaves, pixels, new, offsets, number, number, cache, frames
        )

    shapes = {"tokens": new, "pixels": pixels}
    if hasattr(frames, "slices"):
        sized = {"plan_slices": frames.slices.members}
        sized |= {} if frames.windows is None else {"plan_windows": frames.windows.members}
        shapes |= {k: jax.ShapeDtypeStruct((streams, *a.shape), a.dtype) for k, a in sized.items()}
    done = turn_flops(model, tokens, capacity, shapes)
    held["cache"] = _per_device(cache)
    # Attention against the cache walks the tiles that are in use: here all.
    turn = Program("turn", 1.0, trace, done, -(-capacity // SLOTS))
    return Case(mesh, (turn,), held, streams, streams * tokens)


def first_row(data: Any) -> dict[str, np.ndarray]:
    """One row of a batch as the pipeline makes it, of the first record."""
    sample = dict(data.transform(data.source()[0], np.random.default_rng(0)))
    return dict(sample if data.pack is None else data.pack.row([sample]))


def executed(jaxpr: Any, turns: int = 1) -> float:
    """Operations of a traced program over all devices: every product as often as it is run.

    What is worked out again in the backward pass counts again; of a conditional the larger branch;
    of a kernel all blocks of its grid, or half of them where the kernel is causal. turns: of a loop
    without a known number of them.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contract, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[d] for d in contract)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "scan":
            total += params["length"] * executed(params["jaxpr"].jaxpr, turns)
        elif name == "while":
            total += _turns(equation, turns) * executed(params["body_jaxpr"].jaxpr, turns)
        elif name == "cond":
            total += max(executed(branch.jaxpr, turns) for branch in params["branches"])
        elif name == "shard_map":
            total += _devices(params) * executed(_open(params["jaxpr"]), turns)
        elif name == "pallas_call":
            blocks = math.prod(params["grid_mapping"].grid)
            causal = 0.5 if "splash" in str(params.get("name")) else 1.0
            total += causal * blocks * executed(_open(params["jaxpr"]), turns)
        else:
            total += sum(executed(inner, turns) for inner in jaxprs_in_params(params))
    return total


def _turns(loop: Any, otherwise: int) -> int:
    """Of a loop from one number to another (`jax.lax.fori_loop`), where both are known."""
    consts = loop.params["cond_nconsts"] + loop.params["body_nconsts"]
    match [getattr(v, "val", None) for v in loop.invars[consts : consts + 2]]:
        case [int() | np.integer() as first, int() | np.integer() as last]:
            return max(int(last) - int(first), 0)
    return otherwise


def _loss_turns(model: Any, batch: Mapping[str, Any]) -> int:
    """The loss walks the labelled tokens of a row in chunks: all that no picture stands for."""
    if not hasattr(model, "decoder") or "tokens" not in batch:
        return 1
    head = branches(model, batch)[0][-1]
    return max(-(-round(head.rows / batch["tokens"].shape[0]) // CHUNK), 1)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _devices(params: Mapping[str, Any]) -> int:
    mesh = params["mesh"]
    axes = params.get("manual_axes") or mesh.axis_names
    return math.prod(mesh.shape[axis] for axis in axes)


def _per_device(arrays: Any) -> int:
    """Bytes on each device, without what its layout may add."""
    leaves = jax.tree.leaves(arrays)
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )


def _stacked(config: TrainConfig) -> bool:
    """Whether a batch comes in micro-batches, one behind the other."""
    return not isinstance(config.data, Mapping) and config.accumulate > 1


def _rows(config: TrainConfig, mesh: Mesh) -> int:
    pieces = config.accumulate if _stacked(config) else 1
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    rows = config.batch_size // pieces
    if rows % ways:
        told = "batch_size / accumulate" if pieces > 1 else "batch_size"
        raise InputError(
            f"{told} = {rows} rows do not divide over mesh data * fsdp = {ways}: wanted a multiple "
            f"of {ways}, as by accumulate={max(config.batch_size // ways, 1)}"
        )
    return rows


def _tokens(batch: Mapping[str, Any]) -> int:
    return math.prod(batch["tokens"].shape) if "tokens" in batch else 0


def _frame(model: Any) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """The shape of a frame of 128 visual tokens, and its grid."""
    c = model.config.vision
    if hasattr(c, "spatial_merge_size"):
        m = c.spatial_merge_size
        grid = (1, 8 * m, 16 * m)
        values = c.in_channels * c.temporal_patch_size * c.patch_size**2
        return (math.prod(grid), values), grid
    return (1, 3, c.image_size, c.image_size), (1, c.side, c.side)
