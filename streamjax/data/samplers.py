"""Which task each mini-batch of an epoch takes, and which of its samples.

StreamFormer's samplers (specs/streamformer.md section 6.4) as pure functions, without three faults
of the original: a task stops at its own end instead of running into the next one's samples, a task
smaller than one mini-batch gives none instead of a ragged one, and no mini-batch mixes tasks.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from streamjax.errors import InputError


def balance(sizes: Mapping[str, int], scale: float = 2.0) -> dict[str, int]:
    """How often each task's samples are repeated: small tasks up to the size of the largest.

    A task with fewer than largest / scale samples is repeated largest // size times, others once.
    Raises InputError for a task without samples.
    """
    for task, size in sizes.items():
        if size < 1:
            raise InputError(f"task {task} has {size} samples, wanted at least one")
    largest = max(sizes.values())
    return {task: largest // n if n < largest / scale else 1 for task, n in sizes.items()}


def permuted(order: Sequence[int], permutation: Sequence[int]) -> list[int]:
    """The next epoch's order of a task: the last epoch's, permuted (the original goes on so)."""
    return [order[i] for i in permutation]


def balanced_order(sizes: Mapping[str, int], batch_size: int) -> list[str]:
    """The task of every mini-batch of an epoch, in rounds: each task as often as it is longer.

    batch_size counts the rows of all devices. A task with k times as many mini-batches as the
    shortest one gives k (rounded down) in a row; a task at its end is left out of further rounds.
    """
    left = {task: size // batch_size for task, size in sizes.items() if size >= batch_size}
    shortest = min(left.values(), default=1)
    turn = {task: count // shortest for task, count in left.items()}
    order: list[str] = []
    while any(left.values()):
        for task in left:
            now = min(turn[task], left[task])
            order += [task] * now
            left[task] -= now
    return order


def unique_order(sizes: Mapping[str, int], batch_size: int, draw: random.Random) -> list[str]:
    """The task of every mini-batch of an epoch, drawn in proportion to the samples each has left.

    batch_size counts the rows of all devices. The original draws with `random.Random(epoch)`.
    """
    left = {task: size for task, size in sizes.items() if size >= batch_size}
    order: list[str] = []
    while left:
        (task,) = draw.choices(list(left), weights=list(left.values()))
        order.append(task)
        left[task] -= batch_size
        if left[task] < batch_size:
            del left[task]
    return order


def mini_batches(
    tasks: Iterable[str],
    orders: Mapping[str, Sequence[int]],
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, list[int]]]:
    """The samples of each mini-batch on one device: (task, indices within the task).

    tasks: of the mini-batches (`balanced_order`, `unique_order`); orders: the epoch's permutation
    of each task; batch_size: rows of one device; shard = (i, n): the i-th of n devices, which takes
    every n-th sample. Raises InputError when a task is asked for more mini-batches than it fills.
    """
    device, devices = shard
    rows = batch_size * devices
    begun = dict.fromkeys(orders, 0)
    for task in tasks:
        start = begun[task]
        if start + rows > len(orders[task]):
            raise InputError(
                f"task {task} has {len(orders[task])} samples, fewer than the {start + rows} that "
                f"its mini-batches take: make the order of tasks with the same sizes"
            )
        begun[task] = start + rows
        yield task, list(orders[task][start + device : start + rows : devices])
