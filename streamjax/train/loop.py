"""The loop of a run: data in, steps, metrics and checkpoints out; killed anywhere, it goes on."""

import dataclasses
import json
import logging
import math
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from streamjax import __version__, checkpoint, folders
from streamjax.data.multitask import MultiTask, multitask_batches
from streamjax.data.pipeline import Batches, batches
from streamjax.errors import InputError
from streamjax.sharding import make_mesh
from streamjax.train import progress as displays
from streamjax.train.config import TrainConfig
from streamjax.train.distributed import (
    SAVED,
    Stopped,
    agreed,
    data_shard,
    none_alone,
    together,
)
from streamjax.train.metrics import MetricsFile, report
from streamjax.train.recipes import changes, describe
from streamjax.train.state import Setup, TrainState, set_up
from streamjax.train.step import make_step, put

log = logging.getLogger(__name__)

# What may change between a run and its resumption: it decides no number (the mesh only rounding).
NEUTRAL = ("checkpoint", "log_every", "mesh")
NEUTRAL_OF_DATA = ("workers", "threads", "ahead")


class NotFiniteError(FloatingPointError):
    """The loss or the gradient is no longer a number; the run's last checkpoint is good."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run: its model on the run's mesh, the steps done, the last row of metrics."""

    model: nnx.Module
    step: int
    metrics: Mapping[str, Any]
    run_dir: Path


def train(
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = True,
    progress: displays.Display = displays.auto,
    compilation_cache: str | Path | None = None,
) -> TrainResult:
    """Trains to the last step, from the newest good checkpoint in `run_dir` if there is one.

    Writes recipe.json, metrics.jsonl (one row a step: step, loss, grad_norm, lr, the objective's
    metrics, skipped samples so far, seconds, seconds waited for data; of several tasks each one's
    metrics and skipped samples as "task/name"), checkpoints/, and, for the families of
    streamjax.folders, model/, so that `sj.load(run_dir)` works. A run that was interrupted or
    killed and is called again gives the numbers of one that was not, bit for bit. Ctrl-C finishes
    the step, saves and raises KeyboardInterrupt (a second one does not wait); SIGTERM the same with
    SystemExit(0); of several processes all stop at the same step, whichever heard it.
    `compilation_cache` is a folder that keeps compiled programs between processes.

    Raises InputError when the run there was begun with another recipe, exists although `resume` is
    False, or its checkpoint does not fit, and as the data and the model do; NotFiniteError when the
    loss or the gradient norm stops being finite: that step is neither logged nor saved.
    """
    run_dir = Path(run_dir)
    if compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    _write_recipe(config, run_dir, resume)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(config, mesh)
    shard = data_shard(mesh)
    if config.batch_size % shard[1]:
        raise InputError(
            f"batch_size={config.batch_size} does not divide into {shard[1]} processes' shares"
        )
    data = _open_data(config, shard)
    keep = config.checkpoint.keep
    _describe_model(setup, run_dir)
    try:
        with (
            jax.set_mesh(mesh),
            checkpoint.open_run(run_dir, keep=keep) as checkpoints,
            none_alone(),
        ):
            start, state = _begin(setup, checkpoints, data)
            setup = setup._replace(make=_begun)  # lets go of loaded weights
            rows_file = MetricsFile(run_dir / "metrics.jsonl", start)
            run = _Run(config, setup, mesh, data, checkpoints, rows_file)
            shown = progress if jax.process_index() == 0 else displays.silent
            with rows_file, _stop_signals() as stopped:
                state = run.steps(start, state, shown, agreed(stopped))
            model = nnx.merge(setup.graphdef, state.params, state.frozen)
    finally:
        data.close()
    return TrainResult(model, int(state.step), rows_file.last, run_dir)


@dataclasses.dataclass
class _Run:
    """What the loop works with."""

    config: TrainConfig
    setup: Setup
    mesh: jax.sharding.Mesh
    data: Batches | MultiTask
    checkpoints: checkpoint.Checkpointer
    rows: MetricsFile

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
        stop, saved = None, start
        # One step stays in flight: its numbers are read while the next one already runs.
        flying: tuple[int, dict[str, jax.Array], dict[str, Any]] | None = None
        with progress(config.name, config.steps, start) as show:

            def land() -> None:
                if flying is not None:
                    window.append(self._log(*flying))
                    if flying[0] % config.log_every == 0 or flying[0] == config.steps:
                        show(report(window, config))

            clock = time.perf_counter()
            for number in range(start + 1, config.steps + 1):
                begun = time.perf_counter()
                batch = next(self.data)
                waited = time.perf_counter() - begun
                state, metrics = step_fn(state, put(config, batch, self.mesh))
                land()
                now = time.perf_counter()
                times = {"seconds": round(now - clock, 6), "data_seconds": round(waited, 6)}
                clock = now
                compiled = {"compiled": True} if number == start + 1 else {}
                flying = (number, metrics, {**self.data.counts(), **times, **compiled})
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

    def _log(
        self, step: int, metrics: dict[str, jax.Array], extra: dict[str, Any]
    ) -> dict[str, Any]:
        values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
        row = {"step": step, **values, **extra}
        for key in ("loss", "grad_norm"):
            if not math.isfinite(row[key]):
                self.checkpoints.wait()
                good = self.checkpoints.latest
                kept = f"step {good.step} is kept" if good else "no checkpoint was written yet"
                raise NotFiniteError(
                    f"step {step}: {key} is {row[key]}, wanted a finite number; {kept}: lower "
                    f"optim.lr or optim.clip, or look at the data of this step"
                )
        self.rows.write(row)
        return row

    def _save(self, step: int, state: TrainState) -> None:
        self.rows.sync()
        model = nnx.merge_state(state.params, state.frozen)
        checkpoint.save(
            self.checkpoints, step, model=model, optimizer=state.opt_state, data=self.data
        )


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


def _write_recipe(config: TrainConfig, run_dir: Path, resume: bool) -> None:
    """Writes recipe.json, or holds the recipe against the one that the run began with."""
    path = run_dir / "recipe.json"
    recipe = describe(config)
    found = path.exists()
    together("looked for a recipe")  # before the first process writes it
    if found:
        before = json.loads(path.read_text())["recipe"]
        if not resume:
            raise InputError(f"{run_dir} holds a run already: resume it or choose another folder")
        datas = [f"data.{t}" for t in config.data] if isinstance(config.data, Mapping) else ["data"]
        neutral = *NEUTRAL, *(f"{data}.{key}" for data in datas for key in NEUTRAL_OF_DATA)
        told = [c for c in changes(before, recipe) if not c.startswith(neutral)]
        old, new = list(before["data"]), list(recipe["data"])
        if not told and old != new:
            told = [f"tasks in the order {', '.join(new)} (was {', '.join(old)})"]
        if told:
            raise InputError(
                f"{run_dir} was begun with another recipe: {'; '.join(told)}: choose another folder"
            )
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        versions = {"streamjax": __version__, "python": platform.python_version()}
        versions |= {"jax": jax.__version__, "devices": str(jax.devices())}
        temporary = path.with_name(".recipe.json.tmp")
        temporary.write_text(json.dumps({"recipe": recipe, "made_with": versions}, indent=2) + "\n")
        temporary.replace(path)


def _describe_model(setup: Setup, run_dir: Path) -> None:
    """Writes model/, by which `sj.load(run)` knows what the checkpoints hold."""
    model = nnx.merge(setup.graphdef, setup.abstract.params, setup.abstract.frozen)
    known = type(model).__name__ in folders.CLASSES
    if known and jax.process_index() == 0 and not (run_dir / "model").exists():
        folders.describe(model, run_dir / "model")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells which signal asked to stop, if any; only the main thread can."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])  # the second one does not wait

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
