"""From a list of records to batches: shuffled, decoded in workers, resumable, bad samples skipped.

The order of the samples depends on the seed alone. Workers and threads only prepare samples ahead;
batches are put together in the main process, so that any number of them gives the same bytes.
"""

import dataclasses
import logging
import multiprocessing
import os
import queue
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import grain
import numpy as np
from absl import flags

from streamjax.data.places import Places, Resumable, carried_over
from streamjax.errors import InputError, RunError

log = logging.getLogger(__name__)

T = TypeVar("T")
Transform = Callable[[Any, np.random.Generator], Mapping[str, Any]]


@runtime_checkable
class Packer(Protocol):
    """How samples of any length become rows of one shape, several to a row where they fit."""

    def fits(self, samples: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these samples, two or more, make one row; each of them does alone."""
        ...

    def row(self, samples: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The row of samples that fit, padded."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on: a source of records and the function that makes a sample of one.

    `source()` gives a sequence (`len` and `[i]`); it is called once a process. `transform(record,
    rng)` gives a dict of arrays of the same shapes for every record; `rng` is seeded by the seed,
    the epoch and the place in it. With `pack` the shapes may differ: samples are put side by side
    in their order, and the one that does not fit a row any more begins the next. A record that
    either function cannot deliver (an exception) is skipped, counted and logged; past `max_bad`, a
    share of the samples seen, the run stops. `workers` are processes, `threads` belong to each of
    them (or to the main process when there are none); `ahead` samples are prepared by each. When
    for `patience` seconds no sample comes the run ends. None of these four changes what is trained
    on.
    """

    source: Callable[[], Sequence[Any]]
    transform: Transform
    pack: Packer | None = None
    shuffle: bool = True
    workers: int = 0
    threads: int = 0
    ahead: int = 16
    patience: float = 600.0
    max_bad: float = 0.01


class Bad(NamedTuple):
    """Travels from a worker in the place of a sample that could not be made."""

    where: str
    error: str


class Made(NamedTuple):
    """A sample, the index of its record in the source, and the record's path where it is known."""

    record: int
    where: str
    sample: Mapping[str, Any]


class Used(NamedTuple):
    """What one sample of a batch was: its place in the run's order of samples, and its record."""

    row: int
    sample: int
    record: int
    where: str


@dataclasses.dataclass
class _Load:
    """Index -> Made or Bad; opens the source on first use, in the process that uses it."""

    open: Callable[[], Sequence[Any]]
    transform: Transform
    source: Any = None

    def __call__(self, index: int, rng: np.random.Generator) -> Any:
        where = f"sample {index}"
        try:
            if self.source is None:
                self.source = self.open()
            record = self.source[index]
            where = _path_of(record) or where
            return Made(int(index), where, dict(self.transform(record, rng)))
        except Exception as error:
            return Bad(where, _told(error))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}  # open files do not travel to workers


def batches(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    name: str = "",
) -> "Batches":
    """The endless, resumable iterator of batches: dicts of arrays [batch_size ...].

    `shard` = (i, n) gives every n-th sample from the i-th on: one shard per JAX process, and
    `batch_size` counts the rows of one shard. Every epoch is shuffled anew. `name` tells these data
    from others of the same run, in the log and in errors.

    Raises InputError when the source is empty.
    """
    told = f"{name}: " if name else ""
    size = len(config.source())
    if not size:
        raise InputError(
            f"{told}the data source is empty, wanted at least one record: check its path"
        )
    load = _Load(config.source, config.transform)
    dataset = grain.MapDataset.range(size).seed(seed)
    if config.shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.random_map(load).repeat()

    def samples(start: int) -> grain.DatasetIterator:
        stream = dataset.slice(slice(start, None, shard[1])).to_iter_dataset(
            grain.ReadOptions(
                num_threads=config.threads,
                prefetch_buffer_size=max(config.ahead, config.threads) if config.threads else 0,
            )
        )
        if config.workers:
            if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags; nobody sets any
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=config.workers, per_worker_buffer_size=config.ahead
                ),
                worker_init_fn=_mind_the_parent,
            )
        return iter(stream)

    alone = dataset.__getitem__
    return Batches(samples, alone, batch_size, config, told=told, size=size, shard=shard)


class Batches(Resumable):
    """Stacks good samples into batches; Orbax saves and restores its place in the data.

    The place is a number of samples, so that a run may go on with other workers or threads, and
    with another number of processes. samples(place): all of this shard from there on, by workers
    and threads; alone(place): one.
    `seen` and `skipped` count samples since the first step of the run, restarts included; `used`
    says what the last batch was made of; `size` is the number of records of the source.
    """

    def __init__(
        self,
        samples: Callable[[int], grain.DatasetIterator],
        alone: Callable[[int], Any],
        batch_size: int,
        config: DataConfig,
        *,
        told: str,
        size: int,
        shard: tuple[int, int],
    ):
        super().__init__()
        self.samples = samples
        self.alone = alone
        self.batch_size = batch_size
        self.config = config
        self.seen = 0
        self.skipped = 0
        self.told = told  # the name that messages begin with
        self.size = size
        self.places = Places(*shard)
        self.taken = 0  # of what was left when the number of processes last changed
        self.used: list[Used] = []
        self.waiting: tuple[int, Made] | None = None  # the last sample, for which no row had room
        self.stream: grain.DatasetIterator | None = None
        self.stuck = False

    def __next__(self) -> dict[str, np.ndarray]:
        """Raises InputError when too many samples are bad or two differ in keys or shapes, RunError
        when a worker has died or no sample has come for `patience` seconds.
        """
        rows, self.used = patiently(self._rows, lambda: self.seen, self.config.patience, self._late)
        try:
            return stack_rows(rows)
        except InputError as error:
            raise InputError(f"{self.told}{error}") from None

    def counts(self) -> dict[str, int]:
        """What a row of metrics says of the data."""
        return {"skipped": self.skipped}

    def get_state(self) -> dict[str, Any]:
        # The waiting sample is the last one seen, and is seen again.
        again = int(self.waiting is not None)
        return {
            "seen": self.seen - again,
            "skipped": self.skipped,
            "taken": self.taken - again,
            "share": [self.places.me, self.places.ways],
            "loose": list(self.places.loose),
            "base": self.places.base,
        }

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Raises InputError when these are not the states of all processes."""
        state = carried_over(states, self.places.me, self.places.ways)
        self._stop()
        self.waiting = None
        self.seen, self.skipped, self.taken = state["seen"], state["skipped"], state["taken"]
        me, ways = state["share"]
        self.places = Places(me, ways, tuple(state["loose"]), state["base"])

    def close(self) -> None:
        """Ends the workers and threads; the iterator gives nothing afterwards."""
        self._stop()
        super().close()

    def _rows(self) -> tuple[list[Mapping[str, Any]], list[Used]]:
        rows, used = [], []
        for number in range(self.batch_size):
            made = self._row()
            samples = [sample.sample for _, sample in made]
            rows.append(samples[0] if self.config.pack is None else self.config.pack.row(samples))
            used += [Used(number, place, one.record, one.where) for place, one in made]
        return rows, used

    def _row(self) -> list[tuple[int, Made]]:
        """The samples of one row, each with its place."""
        first, self.waiting = self.waiting, None
        made = [self._sample() if first is None else first]
        pack = self.config.pack
        while pack is not None and self.waiting is None:
            more = self._sample()
            if pack.fits([sample.sample for _, sample in [*made, more]]):
                made.append(more)
            else:
                self.waiting = more
        return made

    def _sample(self) -> tuple[int, Made]:
        """The next good sample."""
        while True:
            number = self.places.number(self.taken)
            place = self.places.of(number)
            try:
                if number < len(self.places.loose):
                    sample = self.alone(place)
                else:
                    if self.stream is None:
                        self.stream = self.samples(place)
                    sample = next(self.stream)
            except RuntimeError as error:
                # Grain's words for a worker that was killed, by want of memory for one.
                if "terminated unexpectedly" not in str(error):
                    raise
                code = re.search(r"exit code (-?\d+)", str(error))
                raise RunError(
                    f"{self.told}a data worker died (exit code {code and code[1]}; -9: killed, "
                    f"often for want of memory): lower data.workers or data.ahead, or look above "
                    f"for what it said"
                ) from None
            self.seen += 1
            self.taken += 1
            if not isinstance(sample, Bad):
                return place, sample
            self._skip(sample)

    def _late(self) -> RunError:
        self.stuck = True
        return RunError(
            f"{self.told}no sample came for {self.config.patience:g} s (data.patience), after "
            f"{self.seen}: a data worker, a file or a mount hangs"
        )

    def _stop(self) -> None:
        stream, self.stream = self.__dict__.get("stream"), None
        if stream is None:
            return
        if self.stuck:  # closing would wait for what hangs
            for worker in multiprocessing.active_children():
                if worker.name.startswith("grain-"):
                    worker.kill()
        else:
            stream.close()

    def _skip(self, bad: Bad) -> None:
        self.skipped += 1
        log.warning("skipped %s%s: %s", self.told, bad.where, bad.error)
        # A rate over fewer than a hundred samples says nothing: the first may well be the bad one.
        if self.skipped > self.config.max_bad * max(self.seen, 100):
            raise InputError(
                f"{self.told}{self.skipped} of {self.seen} samples are bad, wanted at most "
                f"{self.config.max_bad:.2%} (last: {bad.where}: {bad.error}): mend the data "
                f"or raise data.max_bad"
            )


def patiently(
    make: Callable[[], T],
    progress: Callable[[], int],
    patience: float,
    late: Callable[[], Exception],
) -> T:
    """`make()`, in a thread that is left behind when `progress()` stands still for too long.

    Raises what `make` does, and `late()` after `patience` seconds without progress.
    """
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((make(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True, name="next batch").start()
    at, since = progress(), time.monotonic()
    while True:
        try:
            made, error = done.get(timeout=min(patience, 1.0))
        except queue.Empty:
            if progress() != at:
                at, since = progress(), time.monotonic()
            elif time.monotonic() - since >= patience:
                raise late() from None
            continue
        if error is not None:
            raise error
        return cast(T, made)


def stack_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Samples -> one batch. Raises InputError when two differ in keys or shapes."""
    first = {key: np.shape(value) for key, value in rows[0].items()}
    for row in rows:
        found = {key: np.shape(value) for key, value in row.items()}
        if found != first:
            key = next(k for k in sorted({*first, *found}) if first.get(k) != found.get(k))
            raise InputError(
                f"two samples of one batch differ in {key!r}: {first.get(key, 'absent')} and "
                f"{found.get(key, 'absent')}: pad to one shape in the transform"
            )
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class ArrayRecords:
    """The records of ArrayRecord files as a sequence of `parse(bytes)`.

    Raises FileNotFoundError when a file is missing.
    """

    def __init__(self, files: Sequence[str | Path], parse: Callable[[bytes], Any]):
        for file in files:
            if not Path(file).is_file():
                raise FileNotFoundError(f"{file}: no such ArrayRecord file")
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.records = ArrayRecordDataSource([str(file) for file in files])
        self.parse = parse

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.parse(self.records[index])


def _told(error: Exception) -> str:
    """The error in one line; with the place in the code, when it looks like one of the code."""
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, ValueError | OSError):
        return line
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{line} ({Path(frame.filename).name}:{frame.lineno})"


def _path_of(record: Any) -> str | None:
    """The file that a raw record speaks of (specs/streamo.md section 1.1), for the log."""
    if isinstance(record, Mapping):
        for key in ("video_path", "video", "path"):
            if record.get(key):
                return str(record[key])
    return None


def _mind_the_parent(*_: Any) -> None:
    """Runs in every worker: signals are the parent's business, its death is the worker's end."""
    # A scheduler signals every process of a job; the step that is finished still wants its data.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(0)

        threading.Thread(target=follow, daemon=True).start()
