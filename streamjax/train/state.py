"""What a step carries from one call to the next, where it lives, and how it begins."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from streamjax.errors import InputError
from streamjax.sharding import shardings_of
from streamjax.train.config import TrainConfig
from streamjax.train.optim import make_optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The number of steps done, the parameters trained and not, and the optimiser's moments.

    The leaves are arrays, or their shapes or shardings in a tree that describes a state.
    """

    step: Any  # int32 []
    params: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState


class Setup(NamedTuple):
    """A run before its first step: `make()` gives a fresh state, laid out as `shardings`.

    Once, where weights were loaded: the state takes their memory. Until then the setup holds them.
    """

    graphdef: Any
    tx: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState
    make: Callable[[], TrainState]


def set_up(config: TrainConfig, mesh: Mesh | AbstractMesh) -> Setup:
    """Builds the model in the abstract, splits it, and lays its state out on the mesh.

    Raises InputError when a name in `trainable` or `frozen` is in no parameter's path, or when
    nothing is left to train.
    """

    def build() -> nnx.Module:
        return config.model(nnx.Rngs(config.seed), **placed)

    loaded = config.weights == "loaded"
    asks = loaded and "mesh" in inspect.signature(config.model).parameters
    placed: dict[str, Any] = {"mesh": mesh} if asks else {}
    # Loaded weights are read once, here, and are never constants of a program.
    model = build() if loaded else nnx.eval_shape(build)
    wanted = trainable_filter(config, nnx.state(model))
    graphdef, params, frozen = nnx.split(model, wanted, ...)
    shapes: Any = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, frozen))
    tx = make_optimizer(config.optim, config.steps, shapes[0])

    def begin(params: nnx.State, frozen: nnx.State) -> TrainState:
        return TrainState(jnp.int32(0), params, frozen, tx.init(params))

    abstract: TrainState = jax.eval_shape(begin, *shapes)
    shardings = shardings_of(abstract, mesh)

    def make() -> TrainState:
        # Without out_shardings the moments would be replicated. Drawing runs once, so that on the
        # CPU it is compiled in a hurry: half the time for many parameters.
        hurry = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        if loaded:
            arrays = jax.device_put((params, frozen), (shardings.params, shardings.frozen))
            return jax.jit(begin, out_shardings=shardings, donate_argnums=(0, 1))(*arrays)
        draw = jax.jit(
            lambda: begin(*nnx.split(build(), wanted, ...)[1:]),
            out_shardings=shardings,
            compiler_options=hurry,
        )
        return draw()

    return Setup(graphdef, tx, abstract, shardings, make)


def trainable_filter(config: TrainConfig, state: nnx.State) -> Callable[[tuple, Any], bool]:
    """The nnx filter of what is trained: parameters only, chosen by `trainable` and `frozen`.

    Raises InputError as `set_up` does.
    """
    paths = [path for path, value in nnx.to_flat_state(state) if isinstance(value, nnx.Param)]
    parts = sorted({str(part) for path in paths for part in path})
    for key in ("trainable", "frozen"):
        for name in getattr(config, key):
            if not any(named(path, name) for path in paths):
                near = difflib.get_close_matches(name.split("/")[-1], parts, n=1)
                hint = f"did you mean {near[0]!r}" if near else f"the parts are {', '.join(parts)}"
                raise InputError(f"{key}: no parameter's path holds {name!r}: {hint}")

    def wanted(path: tuple, value: Any) -> bool:
        if not isinstance(value, nnx.Param) or any(named(path, n) for n in config.frozen):
            return False
        return not config.trainable or any(named(path, n) for n in config.trainable)

    if not any(wanted(path, value) for path, value in nnx.to_flat_state(state)):
        raise InputError(
            f"nothing is left to train with trainable={config.trainable} frozen={config.frozen}"
        )
    return wanted


def named(path: tuple, name: str) -> bool:
    """Whether the parts of `name` ("decoder/layers") stand in a path, one after another."""
    return f"/{name.strip('/')}/" in f"/{'/'.join(map(str, path))}/"
