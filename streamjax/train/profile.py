"""A profile of some steps of a run: what the devices and the host did, for xprof to show."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
from etils import epath

from streamjax.errors import InputError
from streamjax.train.run_folder import copy_into

log = logging.getLogger(__name__)


def steps_of(text: str) -> tuple[int, int]:
    """ "10:13" -> (10, 13): the first and the last step. Raises InputError for any other form."""
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise InputError(f"profile {text!r}, wanted FIRST:LAST, two steps such as 10:13")
    return int(first), int(last)


class Profile:
    """Writes run/profile/ of the steps `first` to `last`, both included; None: of none.

    Raises InputError when they are not among the steps that the run will do, `start` + 1 to
    `steps`.
    """

    def __init__(
        self, wanted: tuple[int, int] | None, run: Path | epath.Path, start: int, steps: int
    ):
        self.run = run
        self.first, self.last = wanted or (0, 0)
        self.folder: str | None = None
        if wanted and not start < self.first <= self.last <= steps:
            raise InputError(
                f"profile {self.first}:{self.last}, wanted steps from {start + 1} to {steps}, "
                f"which this run does, the first one first"
            )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The body is the loop: a trace that is on when it ends, however, is given up."""
        try:
            yield
        finally:
            if self.folder is not None:
                jax.profiler.stop_trace()

    def step(self, number: int, pending: Any) -> AbstractContextManager[Any]:
        """To be entered around a step; `pending` is what the one before it has not yet computed."""
        if number == self.first:
            jax.block_until_ready(pending)
            local = isinstance(self.run, Path)
            self.folder = str(self.run / "profile") if local else tempfile.mkdtemp()
            jax.profiler.start_trace(self.folder)
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, pending: Any) -> None:
        """To be called when a step was begun; `pending` is what it has not yet computed."""
        if self.folder is None or number != self.last:
            return
        jax.block_until_ready(pending)
        folder, self.folder = self.folder, None
        jax.profiler.stop_trace()
        if isinstance(self.run, epath.Path) and not isinstance(self.run, Path):
            copy_into(Path(folder), self.run / "profile")
        log.warning(
            "wrote the profile of steps %d to %d to %s: see it with `xprof --logdir`",
            self.first, self.last, self.run / "profile",
        )  # fmt: skip
