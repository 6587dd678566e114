"""Where everything of a training step lives: its state, its batch, the activations it pins."""

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from streamjax.sharding import Placement, mesh_axes, placement, placements
from streamjax.train.config import TrainConfig
from streamjax.train.state import Setup
from streamjax.train.step import batch_sharding, make_step


def layout(
    config: TrainConfig, setup: Setup, batch: Mapping[str, Any], mesh: Mesh | AbstractMesh
) -> list[Placement]:
    """A row for every array of the state and the batch, and every layout pinned within the step.

    batch: shapes of one step's arrays, as `put` lays them out. Nothing is computed and no device
    is needed: the mesh may be abstract, the model of any size. Activations are named by the place
    in the code that pins them ("decoder.Block.__call__"); a program that runs per layer or per
    micro-batch pins the same one each time, and it stands here once. Of attention and loss, which
    devices run each for itself, it is what goes in and a device's largest product.
    """
    state = [
        row
        for part in ("params", "frozen", "opt_state")
        for row in placements(getattr(setup.abstract, part), getattr(setup.shardings, part), part)
    ]
    return [
        *state,
        *placements(dict(batch), batch_sharding(config, mesh), "batch"),
        *pinned(config, setup, batch, mesh),
    ]


def pinned(
    config: TrainConfig, setup: Setup, batch: Mapping[str, Any], mesh: Mesh | AbstractMesh
) -> list[Placement]:
    """The activations whose layout the step says; XLA derives the layout of the others."""
    abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(abstract):
        program = jax.make_jaxpr(make_step(config, setup, mesh))(setup.abstract, dict(batch))
    found: dict[Placement, None] = {}
    for equation in equations(program.jaxpr):
        if equation.primitive.name == "sharding_constraint":
            specs = [(equation.outvars[0].aval, equation.params["sharding"].spec)]
            name = f"activations/{_place(equation)[0]}"
        elif equation.primitive.name == "shard_map":
            given = [v.aval for v in equation.invars]
            specs = list(zip(given, equation.params["in_specs"], strict=True))
            name = f"activations/{_place(equation)[-1]}"
            found |= dict.fromkeys(_products(name, equation, abstract))
            # What one such part leaves to its own backward pass is cut over everything.
            specs = [s for s in specs if mesh_axes((*s[1], None)[0]) != abstract.axis_names]
        else:
            continue
        for aval, spec in specs:
            if aval.ndim:
                where = NamedSharding(abstract, spec)
                found[placement(name, aval.shape, aval.dtype, where)] = None
    return list(found)


def _products(name: str, equation: Any, mesh: AbstractMesh) -> list[Placement]:
    """Of a part that devices run each for itself: a device's largest product that has rows."""
    made = [e.outvars[0].aval for e in equations(equation.params["jaxpr"])
            if e.primitive.name == "dot_general" and e.outvars[0].aval.ndim > 2]  # fmt: skip
    if not made:
        return []
    largest = max(made, key=lambda aval: math.prod(aval.shape))
    row = placement(name, largest.shape, largest.dtype, NamedSharding(mesh, PartitionSpec()))
    return [row._replace(path=f"{name}/on a device", bytes=row.bytes * mesh.size, copies=1)]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program and of the programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def _place(equation: Any) -> list[str]:
    """The functions of ours that made an equation, as far as they stand in one file, inmost first.

    sharding.py's own do not count.
    """
    traceback, found, file = equation.source_info.traceback, [], None
    for frame in traceback.frames if traceback else ():
        path = PurePath(frame.file_name)
        if "streamjax" not in path.parts or path.name == "sharding.py":
            continue
        file = file or path
        if path != file:
            break
        found.append(f"{path.stem}.{frame.function_name.split('.<locals>')[0]}")
    return found or ["unknown"]
