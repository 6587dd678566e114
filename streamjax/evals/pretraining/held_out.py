"""Records nobody trained on, as batches of one shape; those that give no sample are told and left.

Samples are made ahead by threads (decoders and resizers let go of the interpreter); their order is
that of the records, whatever the threads do.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from streamjax.errors import InputError

Sample = Mapping[str, np.ndarray]
_AHEAD = 8  # samples a thread


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records and their samples [n ...], repeated up to the batch size where they are the last."""

    records: list[Any]
    samples: dict[str, np.ndarray]


@dataclasses.dataclass
class HeldOut:
    """A sequence of records as batches, once through.

    make: record -> sample, a dict of arrays of one shape each. limit: so many of the records,
    spread evenly over all; None is all. max_bad: the share of them that may give no sample. `used`
    and `skipped` (the reasons) are known when all batches have been taken.

    Iterating raises InputError when more are bad, or all.
    """

    records: Sequence[Any]
    make: Callable[[Any], Sample]
    batch_size: int
    limit: int | None = None
    max_bad: float = 0.01
    threads: int = 2
    progress: Callable[[int, int], Any] | None = None
    used: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)

    def places(self) -> list[int]:
        """Which of the records are looked at."""
        total = len(self.records)
        count = total if self.limit is None else min(self.limit, total)
        return np.linspace(0, total, count, endpoint=False).astype(int).tolist()

    def __iter__(self) -> Iterator[Batch]:
        self.used, self.skipped = 0, []
        places = self.places()
        waiting: list[tuple[Any, Sample]] = []
        for done, (record, sample) in enumerate(self._made(places), 1):
            if isinstance(sample, str):
                self._skip(sample, len(places))
            else:
                waiting.append((record, sample))
            if len(waiting) == self.batch_size:
                yield self._batch(waiting)
                waiting = []
            if self.progress is not None:
                self.progress(done, len(places))
        if waiting:
            yield self._batch(waiting)
        if not self.used:
            reason = f": {self.skipped[0]}" if self.skipped else ""
            raise InputError(f"none of {len(places)} records could be used{reason}")

    def _made(self, places: Iterable[int]) -> Iterator[tuple[Any, Sample | str]]:
        def one(place: int) -> tuple[Any, Sample | str]:
            try:
                record = self.records[place]
                return record, self.make(record)
            except Exception as error:
                name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                return None, f"record {place}: {name}{' '.join(str(error).split())}"

        coming: deque[Future] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for place in places:
                    coming.append(pool.submit(one, place))
                    if len(coming) >= _AHEAD * self.threads:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _skip(self, reason: str, total: int) -> None:
        self.skipped.append(reason)
        if len(self.skipped) > self.max_bad * total:
            raise InputError(
                f"{len(self.skipped)} of {total} records could not be used, more than the share "
                f"max_bad={self.max_bad:g} that may be: {self.skipped[0]}"
            )

    def _batch(self, waiting: list[tuple[Any, Sample]]) -> Batch:
        self.used += len(waiting)
        rows = [sample for _, sample in waiting]
        rows += [rows[-1]] * (self.batch_size - len(rows))
        return Batch([r for r, _ in waiting], {k: np.stack([s[k] for s in rows]) for k in rows[0]})
