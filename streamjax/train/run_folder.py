"""What lies in a run's folder beside rows and checkpoints: the recipe, and what the model is."""

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
from etils import epath
from flax import nnx

from streamjax import __version__, folders
from streamjax.errors import InputError
from streamjax.train.config import TrainConfig
from streamjax.train.distributed import together
from streamjax.train.recipes import changes, describe
from streamjax.train.state import Setup

# What may change between a run and its resumption: it decides no number (the mesh only rounding).
NEUTRAL = ("checkpoint", "log_every", "mesh")
NEUTRAL_OF_DATA = ("workers", "threads", "ahead", "patience")


def write_recipe(config: TrainConfig, run: Path | epath.Path, *, resume: bool) -> None:
    """Writes recipe.json, or holds the recipe against the one that the run began with.

    Raises InputError when they differ, or when there is a run and `resume` is False.
    """
    path = run / "recipe.json"
    recipe = describe(config)
    found = path.exists()
    together("looked for a recipe")  # before the first process writes it
    if found:
        before = json.loads(path.read_text())["recipe"]
        if not resume:
            raise InputError(f"{run} holds a run already: resume it or choose another folder")
        datas = [f"data.{t}" for t in config.data] if isinstance(config.data, Mapping) else ["data"]
        neutral = *NEUTRAL, *(f"{data}.{key}" for data in datas for key in NEUTRAL_OF_DATA)
        told = [c for c in changes(before, recipe) if not c.startswith(neutral)]
        old, new = list(before["data"]), list(recipe["data"])
        if not told and sorted(old) == sorted(new) and old != new:
            told = [f"tasks in the order {', '.join(new)} (was {', '.join(old)})"]
        if told:
            raise InputError(
                f"{run} was begun with another recipe: {'; '.join(told)}: choose another folder"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        versions = {"streamjax": __version__, "python": platform.python_version()}
        versions |= {"jax": jax.__version__, "devices": str(jax.devices())}
        temporary = run / ".recipe.json.tmp"
        temporary.write_text(json.dumps({"recipe": recipe, "made_with": versions}, indent=2) + "\n")
        temporary.replace(path)


def describe_model(setup: Setup, run: Path | epath.Path) -> None:
    """Writes model/, by which `sj.load(run)` knows what the checkpoints hold."""
    model = nnx.merge(setup.graphdef, setup.abstract.params, setup.abstract.frozen)
    known = type(model).__name__ in folders.CLASSES
    if not known or jax.process_index() != 0 or (run / "model").exists():
        return
    if isinstance(run, Path):
        folders.describe(model, run / "model")
        return
    with tempfile.TemporaryDirectory() as home:
        folders.describe(model, home)
        copy_into(Path(home), run / "model")


def copy_into(folder: Path, target: epath.Path) -> None:
    """Copies the files of a local folder, and of those in it, to a folder anywhere."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            there = target / str(file.relative_to(folder))
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(file.read_bytes())
