"""The batches of a run that trains several tasks: which task when, each at its own place.

A mini-batch holds rows of one task; an update is a list of mini-batches. Every task runs through
its own records, epoch after epoch, as if it were alone, so that no sample is lost where an epoch of
the run ends, however the tasks take turns.
"""

import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from streamjax.data.pipeline import Batches, DataConfig, Used, batches
from streamjax.data.places import Resumable
from streamjax.data.samplers import balance, balanced_order, unique_order
from streamjax.errors import InputError

Order = Literal["each", "balanced", "unique"]
MiniBatch = tuple[str, dict[str, np.ndarray]]


def multitask_batches(
    configs: Mapping[str, DataConfig],
    *,
    batch_size: int,
    seed: int,
    order: str = "each",
    accumulate: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> "MultiTask":
    """The endless, resumable iterator of updates: lists of (task, batch as `batches` gives it).

    `batch_size` rows of one shard go into a mini-batch. `order` (an `Order`) says what an update
    takes: "each", one mini-batch of every task, as `configs` lists them; "balanced" and "unique",
    the next `accumulate` ones of StreamFormer's samplers (`data.samplers`: small tasks repeated by
    `balance`, left-over mini-batches at the end of an epoch left out). A task's records are
    shuffled by the seed and its name alone, so that other tasks beside it change nothing.

    `workers` and `threads` are what the run may use: the largest number that a task names is shared
    out over the tasks that name any, at least one each.

    Raises InputError for an unknown order, no tasks, a task without records or (unless "each") with
    fewer than fill one mini-batch, and fewer mini-batches in an epoch than one update takes.
    """
    if order not in get_args(Order):
        raise InputError(f"order={order!r}, wanted one of {', '.join(get_args(Order))}")
    if not configs:
        raise InputError("data names no task, wanted at least one")
    tasks = {
        name: batches(
            config,
            batch_size=batch_size,
            seed=_seed(seed, name),
            shard=shard,
            name=name,
        )
        for name, config in _share_workers(configs).items()
    }
    if order == "each":
        names = list(tasks)
        return MultiTask(tasks, lambda update: names)
    copies = balance({name: task.size for name, task in tasks.items()})
    sizes = {name: task.size * copies[name] for name, task in tasks.items()}
    rows = batch_size * shard[1]
    for name, size in sizes.items():
        if size < rows:
            raise InputError(
                f"{name}: {tasks[name].size} records, repeated {copies[name]} times, fill no "
                f"mini-batch of {rows} rows: lower batch_size or set order='each'"
            )

    @functools.lru_cache(maxsize=1)
    def epoch_of(epoch: int) -> list[str]:
        if order == "balanced":
            return balanced_order(sizes, rows)
        return unique_order(sizes, rows, random.Random(_seed(seed, f"epoch {epoch}")))

    updates = len(epoch_of(0)) // accumulate
    if not updates:
        raise InputError(
            f"an epoch has {len(epoch_of(0))} mini-batches, fewer than the accumulate={accumulate} "
            f"of one update: lower one or the other's batch_size"
        )

    def turn(update: int) -> list[str]:
        epoch, place = divmod(update, updates)
        return epoch_of(epoch)[place * accumulate : (place + 1) * accumulate]

    return MultiTask(tasks, turn)


class MultiTask(Resumable):
    """Puts updates together from each task's batches; Orbax saves and restores its place.

    `turn(n)` names the tasks of the mini-batches of update n. The place is n and each task's own,
    so that a run may go on with other workers, threads or processes.
    """

    def __init__(self, tasks: Mapping[str, Batches], turn: Callable[[int], list[str]]):
        super().__init__()
        self.tasks = dict(tasks)
        self.turn = turn
        self.updates = 0
        self.used: list[tuple[str, list[Used]]] = []  # as `Batches` has it, of each mini-batch

    def __next__(self) -> list[MiniBatch]:
        """Raises as `Batches` does, naming the task."""
        update, self.used = [], []
        for name in self.turn(self.updates):
            update.append((name, next(self.tasks[name])))
            self.used.append((name, self.tasks[name].used))
        self.updates += 1
        return update

    def counts(self) -> dict[str, int]:
        """What a row of metrics says of the data: samples skipped, in all and of each task."""
        skipped = {f"{name}/skipped": task.skipped for name, task in self.tasks.items()}
        return {"skipped": sum(skipped.values()), **skipped}

    def get_state(self) -> dict[str, Any]:
        tasks = {name: task.get_state() for name, task in self.tasks.items()}
        return {"updates": self.updates, "tasks": tasks}

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Raises InputError when the states are of other tasks, or of another order of them."""
        state = states[0]
        if list(state["tasks"]) != list(self.tasks):
            raise InputError(
                f"the place in the data is of the tasks {', '.join(state['tasks'])}, wanted "
                f"{', '.join(self.tasks)} in this order"
            )
        self.updates = state["updates"]
        for name, task in self.tasks.items():
            task.set_states([state["tasks"][name] for state in states])

    def close(self) -> None:
        """Ends the workers and threads of all tasks; the iterator gives nothing afterwards."""
        for task in self.__dict__.get("tasks", {}).values():
            task.close()
        super().close()


def _seed(seed: int, name: str) -> int:
    """32 bits out of the run's seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def _share_workers(configs: Mapping[str, DataConfig]) -> dict[str, DataConfig]:
    """The same with the run's processes, and threads where there are none, shared out."""
    shared = dict(configs)
    processes = {name: config.workers for name, config in configs.items() if config.workers}
    threads = {name: c.threads for name, c in configs.items() if c.threads and not c.workers}
    for name, part in _shares(processes).items():
        shared[name] = replace(shared[name], workers=part)
    for name, part in _shares(threads).items():
        shared[name] = replace(shared[name], threads=part)
    return shared


def _shares(asked: Mapping[str, int]) -> dict[str, int]:
    """The largest number asked for, in equal parts; the first ones take what is left over."""
    most = max(asked.values(), default=0)
    count = len(asked)
    return {name: max(most // count + (i < most % count), 1) for i, name in enumerate(asked)}
