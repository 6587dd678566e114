"""The loop of a run: data in, steps, metrics and checkpoints out; killed anywhere, it goes on."""

import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from streamjax import checkpoint
from streamjax.data.multitask import MultiTask, multitask_batches
from streamjax.data.pipeline import Batches, batches
from streamjax.errors import InputError, RunError
from streamjax.sharding import make_mesh
from streamjax.train import failures, writers
from streamjax.train import progress as displays
from streamjax.train.config import TrainConfig
from streamjax.train.distributed import (
    SAVED,
    Stopped,
    agreed,
    data_shard,
    none_alone,
)
from streamjax.train.meter import Meter, Work
from streamjax.train.metrics import MetricsFile, report
from streamjax.train.profile import Profile
from streamjax.train.recipes import describe
from streamjax.train.run_folder import describe_model, write_recipe
from streamjax.train.state import Setup, TrainState, set_up
from streamjax.train.step import make_step, put

log = logging.getLogger(__name__)

# Waiting for data longer than this share of the time is worth a warning.
STALLED = 0.5


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run: its model on the run's mesh, the steps done, the last row of metrics."""

    model: nnx.Module
    step: int
    metrics: Mapping[str, Any]
    run_dir: Path | epath.Path


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    resume: bool = True,
    progress: displays.Display = displays.auto,
    log_to: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
    compilation_cache: str | Path | None = None,
) -> TrainResult:
    """Trains to the last step, from the newest good checkpoint in `run_dir` if there is one.

    Writes recipe.json, metrics.jsonl (one row a step: step, loss, grad_norm, lr, the objective's
    metrics, skipped samples so far, and the time, speed and memory that `meter` tells; of several
    tasks each one's metrics and skipped samples as "task/name"), checkpoints/, and, for the
    families of streamjax.folders, model/, so that `sj.load(run_dir)` works. The same rows go to the
    writers of train.writers that `log_to` names. `profile` = (first, last) steps leave a trace in
    profile/. `run_dir` may be a url (`checkpoint.place`); metrics.jsonl is then written anew with
    every checkpoint.

    A run that was interrupted or killed and is called again gives the numbers of one that was not,
    bit for bit. Ctrl-C finishes the step, saves and raises KeyboardInterrupt (a second one does not
    wait); SIGTERM the same with SystemExit(0); of several processes all stop at the same step,
    whichever heard it. `compilation_cache` is a folder that keeps compiled programs between
    processes.

    Raises InputError when the run there was begun with another recipe, exists although `resume` is
    False, or its checkpoint does not fit, for a `profile` of steps that it does not do, an unknown
    writer or one whose package is missing, and as the data and the model do; NotFiniteError when
    the loss or the gradient norm stops being finite: that step is neither logged nor saved, and the
    samples of its batch are told in nan_batch.json; RunError when a data worker dies or hangs, and
    when the disk is full. All of them leave the last good checkpoint.
    """
    run = checkpoint.place(run_dir)
    if compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    write_recipe(config, run, resume=resume)
    recipe = describe(config)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(config, mesh)
    shard = data_shard(mesh)
    if config.batch_size % shard[1]:
        raise InputError(
            f"batch_size={config.batch_size} does not divide into {shard[1]} processes' shares"
        )
    data = _open_data(config, shard)
    kept = config.checkpoint
    describe_model(setup, run)
    meter = Meter(config, setup, mesh)
    try:
        checkpoints = checkpoint.open_run(run, keep=kept.keep, keep_every=kept.keep_every)
        # Of a save in the background the loop may hear, or whoever closes the checkpoints.
        told = failures.told_when_full(checkpoints), failures.told_when_full(checkpoints)
        with jax.set_mesh(mesh), told[0], checkpoints, none_alone(), told[1]:
            start, state = _begin(setup, checkpoints, data)
            setup = setup._replace(make=_begun)  # lets go of loaded weights
            rows_file = MetricsFile(run / "metrics.jsonl", start)
            shown = progress if jax.process_index() == 0 else displays.silent
            with (
                rows_file,
                writers.opened(log_to, run, config.name, recipe, start) as write,
                _stop_signals() as stopped,
            ):
                traced = Profile(profile, run, start, config.steps)
                rows = _Rows(rows_file, write)
                work = _Run(
                    config, setup, mesh, run, recipe, data, checkpoints, rows, meter, traced
                )
                state = work.steps(start, state, shown, agreed(stopped))
            model = nnx.merge(setup.graphdef, state.params, state.frozen)
    finally:
        data.close()
    return TrainResult(model, int(state.step), rows_file.last, run)


@dataclasses.dataclass
class _Rows:
    """Where rows go: the file, which decides what a run has done, and other eyes."""

    file: MetricsFile
    other: writers.Write

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(row)
        self.other(row)


@dataclasses.dataclass
class _Flight:
    """A step that was begun: its number, what it will have computed, and what is known by then."""

    step: int
    metrics: dict[str, jax.Array]
    work: Work
    counts: dict[str, int]
    used: failures.Batch
    waited: float
    seconds: float = 0.0
    compiled: bool = False


@dataclasses.dataclass
class _Run:
    """What the loop works with."""

    config: TrainConfig
    setup: Setup
    mesh: jax.sharding.Mesh
    place: Path | epath.Path
    recipe: Any
    data: Batches | MultiTask
    checkpoints: checkpoint.Checkpointer
    rows: _Rows
    meter: Meter
    profile: Profile

    def steps(
        self,
        start: int,
        state: TrainState,
        progress: displays.Display,
        stopped: Callable[[], int | None],
    ) -> TrainState:
        config = self.config
        if start >= config.steps:
            return state
        step_fn = make_step(config, self.setup, self.mesh)
        window: deque[dict[str, Any]] = deque(maxlen=max(50, config.log_every))
        stop, saved, stalled = None, start, False
        # One step stays in flight: its numbers are read while the next one already runs.
        flying: _Flight | None = None
        with progress(config.name, config.steps, start) as show, self.profile.whole():

            def land() -> None:
                nonlocal stalled
                if flying is None:
                    return
                window.append(self._log(flying))
                if flying.step % config.log_every == 0 or flying.step == config.steps:
                    told = report(window, config)
                    show(told)
                    stalled = _warn_of_a_stall(told, len(window), before=stalled)

            clock = time.perf_counter()
            for number in range(start + 1, config.steps + 1):
                with self.profile.step(number, state):
                    begun = time.perf_counter()
                    batch = self._batch()
                    waited = time.perf_counter() - begun
                    spread = put(config, batch, self.mesh)
                    state, metrics = step_fn(state, spread)
                    land()
                now = time.perf_counter()
                flying = _Flight(
                    number, metrics, self.meter.work(spread), self.data.counts(), self.data.used,
                    waited, now - clock, compiled=number == start + 1,
                )  # fmt: skip
                clock = now
                self.profile.after(number, state)
                stop = stopped()
                last = number == config.steps or stop is not None
                if last or number % config.checkpoint.every == 0:
                    land()
                    flying = None
                    self._save(number, state)
                    saved = number
                if stop is not None:
                    break
        _leave(stop, saved, config.steps)
        return state

    def _batch(self) -> Any:
        try:
            return next(self.data)
        except RunError as error:
            self.checkpoints.wait()
            raise RunError(f"{error}; {failures.kept(self.checkpoints)}") from None

    def _log(self, flight: _Flight) -> dict[str, Any]:
        values = {name: v.tolist() for name, v in jax.device_get(flight.metrics).items()}
        times = self.meter.row(flight.work, flight.seconds, flight.waited)
        row = {"step": flight.step, **values, **flight.counts, **times}
        if flight.compiled:
            row["compiled"] = True
        for key in ("loss", "grad_norm"):
            if not math.isfinite(row[key]):
                self.checkpoints.wait()
                safe = failures.kept(self.checkpoints)
                raise failures.not_finite(flight.step, key, row[key], flight.used, self.place, safe)
        self.rows.write(row)
        return row

    def _save(self, step: int, state: TrainState) -> None:
        self.rows.file.sync()
        model = nnx.merge_state(state.params, state.frozen)
        checkpoint.save(
            self.checkpoints,
            step,
            model=model,
            optimizer=state.opt_state,
            data=self.data,
            recipe=self.recipe,
        )


def _warn_of_a_stall(told: displays.Report, rows: int, *, before: bool) -> bool:
    """Whether the last rows waited for data most of the time; said once each time it begins."""
    stalled = told.waiting > STALLED
    if stalled and not before and jax.process_index() == 0:
        log.warning(
            "step %d: the run waits for data, %.0f %% of the time over the last %d steps: more "
            "data.workers or data.threads, or a faster disk",
            told.step, 100 * told.waiting, rows,
        )  # fmt: skip
    return stalled


def _open_data(config: TrainConfig, shard: tuple[int, int]) -> Batches | MultiTask:
    """This process's share of the data of one task, or of several."""
    rows = config.batch_size // shard[1]
    if not isinstance(config.data, Mapping):
        return batches(config.data, batch_size=rows, seed=config.seed, shard=shard)
    return multitask_batches(
        config.data,
        batch_size=rows,
        seed=config.seed,
        order=config.order,
        accumulate=config.accumulate,
        shard=shard,
    )


def _begin(
    setup: Setup, checkpoints: checkpoint.Checkpointer, data: Batches | MultiTask
) -> tuple[int, TrainState]:
    """The newest good checkpoint, or a fresh state at step 0."""
    abstract = checkpoint.placed(setup.abstract, setup.shardings)
    restored = checkpoint.restore(
        checkpoints,
        model=nnx.merge_state(abstract.params, abstract.frozen),
        optimizer=abstract.opt_state,
        data=data,
    )
    if restored is None:
        return 0, setup.make()
    step, model, opt_state = restored
    trained = {path for path, _ in nnx.to_flat_state(abstract.params)}
    params, frozen = nnx.split_state(model, lambda path, _: path in trained, ...)
    number = jax.device_put(np.int32(step), setup.shardings.step)
    return step, TrainState(number, params, frozen, opt_state)


def _begun() -> TrainState:
    raise RuntimeError("the run has begun: its state was made")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells which signal asked to stop, if any; only the main thread can."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        # The second one does not wait. It gets a handler of its own: a thread that hears of the
        # first one late (`distributed.stoppable`) must not take it for one outside of the steps.
        old = before[number]
        signal.signal(number, (lambda *told: old(*told)) if callable(old) else old)

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, catch)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int | None, step: int, steps: int) -> None:
    """Raises what the signal means, now that everything is saved."""
    if number is None or step == steps:
        return
    if jax.process_index() == 0:
        log.warning("stopped at step %d of %d and saved it: the same command goes on", step, steps)
    raise Stopped(0) if number == signal.SIGTERM else KeyboardInterrupt(SAVED)
