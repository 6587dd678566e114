"""Checkpoints of a run: written whole or not at all, restored by name onto any mesh.

`run/checkpoints/<step>/` holds the model, the optimiser and the data iterator's place, each an
Orbax checkpointable; a dead writer leaves only a `*.orbax-checkpoint-tmp` folder, which nobody
reads. The model is a flat table of "path.to.parameter" -> array, trained and frozen parts alike:
whoever loads it need not know how the run had split it. Every step says which streamjax wrote it,
in which layout, by which recipe.

A run's folder is local, or in an object store (gs://, s3://) through fsspec's package for it.
"""

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from streamjax import __version__
from streamjax.errors import InputError
from streamjax.sharding import shardings_of

log = logging.getLogger(__name__)

T = TypeVar("T")
Checkpointer = ocp.training.Checkpointer


# The number of how a step is laid out; to be raised when an older streamjax could not read it.
LAYOUT = 2
# Where runs may live besides local folders, and the package that reaches it.
STORES = {"gs": "gcsfs", "s3": "s3fs"}


def place(run: str | os.PathLike) -> Path | epath.Path:
    """The folder of a run, local or by its url.

    Raises InputError for a url of another kind, and when the package for its kind is not installed.
    """
    text = os.fspath(run)
    kind, mark, _ = text.partition("://")
    if not mark:
        return Path(text)
    if kind not in STORES:
        raise InputError(f"{text}: runs live in local folders, gs:// or s3://, found {kind}://")
    if importlib.util.find_spec(STORES[kind]) is None:
        raise InputError(f"{text}: {kind}:// wants {STORES[kind]}: pip install {STORES[kind]}")
    return epath.Path(text)


def open_run(
    run: str | os.PathLike, *, keep: int | None = None, keep_every: int | None = None
) -> Checkpointer:
    """The checkpoints of a run, to be closed after use.

    When one is written the newest `keep` survive (None: all), and those whose step is a multiple of
    `keep_every` (None: no others).
    """
    home = place(run)
    folder = (home.absolute() if isinstance(home, Path) else home) / "checkpoints"
    policies = ocp.training.preservation_policies
    kept: list[Any] = [policies.PreserveAll() if keep is None else policies.LatestN(keep)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    policy: Any = policies.AnyPreservationPolicy(kept)
    return Checkpointer(
        str(folder),
        preservation_policy=policy,
        cleanup_tmp_directories=keep is not None,
    )


def save(
    checkpoints: Checkpointer,
    step: int,
    *,
    model: nnx.State,
    optimizer: Any,
    data: Any,
    recipe: Any = None,
) -> None:
    """Begins to write one step; the next save, or closing, waits for the end of it.

    Training may go on at once and donate these arrays: what is written is what they hold now.
    `data` is a Grain iterator or anything with its `save` and `load`; `recipe`, plain JSON, is
    kept, with its hash, beside the layout's number and the version.
    """
    told = json.dumps(recipe, sort_keys=True).encode()
    about = {"layout": LAYOUT, "streamjax": __version__, "recipe": recipe}
    about["recipe_sha256"] = hashlib.sha256(told).hexdigest()
    checkpoints.save_checkpointables_async(
        step,
        {"model": _flat_model(model), "optimizer": _flat(optimizer), "data": data},
        force=True,
        custom_metadata=about,
    )


def restore(
    checkpoints: Checkpointer, *, model: nnx.State, optimizer: Any, data: Any
) -> tuple[int, nnx.State, Any] | None:
    """The newest good step: (step, model, optimiser), `data` wound to its place; None if none.

    `model` and `optimizer` are abstract; their leaves carry shardings. A step that cannot be read
    is put aside as `broken-<step>` with a loud line, and the one before it is taken.

    Raises InputError when names or shapes of the checkpoint and of the model differ, or when it is
    laid out in a way that this streamjax does not know.
    """

    def load(step: int) -> tuple[int, nnx.State, Any]:
        wanted = {"model": _flat_model(model), "optimizer": _flat(optimizer)}
        _check_layout(checkpoints, step)
        for part, tree in wanted.items():
            _check(checkpoints, step, part, tree)
        found = checkpoints.load_checkpointables(step, wanted)
        checkpoints.load_checkpointables(step, {"data": data})  # once nothing else can fail
        leaves = [found["optimizer"][name] for name in wanted["optimizer"]]
        return (
            step,
            _unflat_model(model, found["model"]),
            jax.tree.unflatten(jax.tree.structure(optimizer), leaves),
        )

    return _newest_good(checkpoints, load, aside=True)


def latest_step(run: str | os.PathLike) -> int | None:
    """The newest finished step of a run, None when there is none."""
    if not (place(run) / "checkpoints").is_dir():
        return None
    with open_run(run) as checkpoints:
        return None if checkpoints.latest is None else checkpoints.latest.step


def latest_params(
    run: str | os.PathLike, abstract: nnx.State, *, mesh: Mesh | None = None
) -> nnx.State:
    """The model's parameters at the newest good step, in the shape of `abstract`.

    `abstract` is the nnx.State of a model of jax.ShapeDtypeStruct; arrays come in its dtypes,
    placed on `mesh` by the rules of streamjax.sharding, or on the default device.

    Raises FileNotFoundError when the run has no finished checkpoint that can be read; InputError
    when names or shapes differ (one line: missing, extra, mis-shaped), or the layout is unknown.
    """
    if latest_step(run) is None:
        raise FileNotFoundError(
            f"{run}: no finished checkpoint under checkpoints/, wanted at least one: train it first"
        )
    if mesh is None:
        single = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: single, abstract)
    else:
        shardings = shardings_of(abstract, mesh)
    wanted = _flat_model(placed(abstract, shardings))
    with open_run(run) as checkpoints:

        def load(step: int) -> nnx.State:
            _check_layout(checkpoints, step)
            _check(checkpoints, step, "model", wanted)
            found = checkpoints.load_checkpointables(step, {"model": wanted})
            return _unflat_model(abstract, found["model"])

        state = _newest_good(checkpoints, load, aside=False)
    if state is None:
        raise FileNotFoundError(f"{run}: no checkpoint can be read, wanted one: see the log")
    return state


def placed(abstract: Any, shardings: Any) -> Any:
    """A tree of shapes with the sharding of each leaf added."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What keeps the arrays `found` from filling `wanted`, in one line; None when nothing does."""
    shapes = {name: tuple(wanted[name].shape) for name in wanted}
    both = [name for name in wanted if name in found]
    parts = {
        "missing": [n for n in wanted if n not in found],
        "extra": [n for n in found if n not in wanted],
        "mis-shaped": [
            f"{n} (found {tuple(found[n].shape)}, wanted {shapes[n]})"
            for n in both
            if tuple(found[n].shape) != shapes[n]
        ],
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in parts.items() if names]
    return "; ".join(told) or None


def _newest_good(checkpoints: Checkpointer, load: Callable[[int], T], *, aside: bool) -> T | None:
    for one in reversed(list(checkpoints.checkpoints)):
        try:
            return load(one.step)
        except InputError:
            raise
        except Exception as error:  # a truncated file may surface as almost anything
            path = checkpoints.directory / str(one.step)
            said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            log.warning("SKIPPED checkpoint %s, which cannot be read (%s)", path, said)
            if aside and jax.process_index() == 0:
                path.rename(path.parent / f"broken-{one.step}")
            checkpoints.reload()
    return None


def _check_layout(checkpoints: Checkpointer, step: int) -> None:
    folder = checkpoints.directory / str(step)
    told = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    layout = told.get("layout", 1)  # the first one, when nothing was said of it
    if layout != LAYOUT:
        raise InputError(
            f"{folder}: layout {layout!r}, written by streamjax {told.get('streamjax')}, wanted "
            f"layout {LAYOUT}, which streamjax {__version__} reads: install the former"
        )


def _check(checkpoints: Checkpointer, step: int, part: str, wanted: Mapping[str, Any]) -> None:
    folder = f"{checkpoints.directory}/{step}"
    stored: Any = ocp.metadata(folder, checkpointable_name=part).metadata
    if stored is None:  # what Orbax says of a damaged file
        raise OSError(f"the table of {part} is damaged")
    told = difference(wanted, stored)
    if told:
        raise InputError(f"{folder}: {part} does not fit: {told}: use the recipe it was made with")


def _flat_model(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(state)}


def _unflat_model(like: nnx.State, arrays: Mapping[str, Any]) -> nnx.State:
    flat = nnx.to_flat_state(like)
    return nnx.from_flat_state([(p, v.replace(arrays[".".join(map(str, p))])) for p, v in flat])


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
