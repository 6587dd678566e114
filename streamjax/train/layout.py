"""Where everything of a training step lives: its state, its batch, the activations it pins."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from streamjax.sharding import Placement, placement, placements
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
    micro-batch pins the same one each time, and it stands here once.
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
    for equation in _equations(program.jaxpr):
        if equation.primitive.name == "sharding_constraint":
            aval = equation.outvars[0].aval
            where = NamedSharding(abstract, equation.params["sharding"].spec)
            name = f"activations/{_place(equation)}"
            found[placement(name, aval.shape, aval.dtype, where)] = None
    return list(found)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program and of the programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _place(equation: Any) -> str:
    """The file and function of ours, outside of sharding.py, that made an equation."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        path = PurePath(frame.file_name)
        if "streamjax" in path.parts and path.name != "sharding.py":
            return f"{path.stem}.{frame.function_name}"
    return "unknown"
