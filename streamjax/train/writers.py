"""The rows of metrics for other eyes: TensorBoard, Weights & Biases. metrics.jsonl is always there.

A writer is a context that yields a function of a row; `start` is the step that the run goes on
from. Another one is an entry of WRITERS.
"""

import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from streamjax.errors import InputError

Row = Mapping[str, Any]
Write = Callable[[Row], None]
# writer(run, name, recipe, start): `recipe` is the run's, as plain JSON.
Writer = Callable[[Path | epath.Path, str, Any, int], AbstractContextManager[Write]]


@contextmanager
def tensorboard(run: Path | epath.Path, name: str, recipe: Any, start: int) -> Iterator[Write]:
    """An event file in run/tensorboard; steps after `start` that an earlier one told are purged.

    Raises InputError when the package is not installed.
    """
    files = _package("tensorboard.summary.writer.event_file_writer", "tensorboard")
    event = importlib.import_module("tensorboard.compat.proto.event_pb2")
    summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
    writer = files.EventFileWriter(str(run / "tensorboard"))

    def put(**fields: Any) -> None:
        writer.add_event(event.Event(wall_time=time.time(), **fields))

    def write(row: Row) -> None:
        values = [summary.Summary.Value(tag=k, simple_value=v) for k, v in scalars(row).items()]
        put(step=row["step"], summary=summary.Summary(value=values))

    try:
        if start:
            put(step=start + 1, session_log=event.SessionLog(status=event.SessionLog.START))
        yield write
    finally:
        writer.close()


@contextmanager
def wandb(run: Path | epath.Path, name: str, recipe: Any, start: int) -> Iterator[Write]:
    """A run of the project that WANDB_PROJECT names ("streamjax" without), kept on when resumed.

    Its id is kept in run/wandb.json. W&B's own variables (WANDB_MODE=offline, ...) say the rest.
    Raises InputError when the package is not installed.
    """
    package = _package("wandb", "wandb")
    file = run / "wandb.json"
    if not file.exists():
        file.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    settings: dict[str, Any] = {"id": json.loads(file.read_text())["id"], "resume": "allow"}
    if isinstance(run, Path):
        settings["dir"] = str(run)
    on = package.init(
        name=name,
        config=recipe,
        **{"project": os.environ.get("WANDB_PROJECT", "streamjax"), **settings},
    )
    try:
        yield lambda row: on.log(scalars(row), step=row["step"])
    finally:
        on.finish()


WRITERS: dict[str, Writer] = {"tensorboard": tensorboard, "wandb": wandb}


@contextmanager
def opened(
    names: Sequence[str], run: Path | epath.Path, name: str, recipe: Any, start: int
) -> Iterator[Write]:
    """All the writers named, as one; of several processes the first one's.

    Raises InputError for an unknown name, and when a writer's package is not installed.
    """
    for one in names:
        if one not in WRITERS:
            raise InputError(f"log {one!r}, wanted one of {', '.join(WRITERS)}")
    with ExitStack() as stack:
        first = jax.process_index() == 0
        ours = [stack.enter_context(WRITERS[one](run, name, recipe, start)) for one in names] if (
            first
        ) else []  # fmt: skip

        def write(row: Row) -> None:
            for one in ours:
                one(row)

        yield write


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row; those of an array one by one, as "name/0", "name/1", ..."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if key == "step":
            continue
        if isinstance(value, list):
            for index, item in enumerate(np.asarray(value, np.float64).ravel().tolist()):
                flat[f"{key}/{index}"] = item
        else:
            flat[key] = float(value)
    return flat


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"log {extra!r} wants the package {extra} ({error}): pip install 'streamjax[{extra}]'"
        ) from None
