"""Golden i: the original's mini-batches, given its permutations; and not its faults."""

import itertools
import json
import random

import pytest

from streamjax.data.samplers import (
    balance,
    balanced_order,
    mini_batches,
    permuted,
    unique_order,
)
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def cases(golden):
    """File -> its JSON."""
    folder = golden / "streamformer" / "i_sampler"
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def epochs_of(case, order_of):
    """(the epoch as it was recorded, ours per rank): indices count through all tasks, as there."""
    sizes, rows, ranks = case["sizes"], case["batch_size"], case["num_replicas"]
    firsts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
    orders = {task: list(range(size)) for task, size in sizes.items()}
    for epoch in case["epochs"]:
        drawn = epoch["torch_randperm_per_task"]
        orders = {task: permuted(orders[task], drawn[task]) for task in sizes}
        tasks = order_of(sizes, rows * ranks, epoch["epoch"])
        ours = [list(mini_batches(tasks, orders, rows, (rank, ranks))) for rank in range(ranks)]
        told = [[[firsts[task] + i for i in picked] for task, picked in rank] for rank in ours]
        yield epoch, tasks, told


def balanced(sizes, rows, epoch):
    del epoch
    return balanced_order(sizes, rows)


def unique(sizes, rows, epoch):
    return unique_order(sizes, rows, random.Random(epoch))


@pytest.mark.parametrize(
    ("file", "order_of"), [("balanced.min.json", balanced), ("unique.min.json", unique)]
)
def test_given_the_permutations_mini_batches_are_the_originals(cases, file, order_of):
    for case in cases[file]:
        for epoch, tasks, told in epochs_of(case, order_of):
            assert tasks == epoch["task_of_batch_rank0"]
            assert told == epoch["batches_by_rank"]
            assert len(tasks) == epoch["len_after_iter"]


def test_small_tasks_are_repeated_up_to_the_largest(cases):
    for case in cases["balancing.json"]:
        copies = balance(case["sizes"], case["scale"])
        assert copies == {task: n or 1 for task, n in case["copies"].items()}
        assert {t: n * copies[t] for t, n in case["sizes"].items()} == case["balanced_sizes"]


def test_where_the_original_mixes_tasks_or_fails_each_task_stops_at_its_own_end(cases):
    for case in cases["upstream_bugs.min.json"].values():
        rows = case["batch_size"] * case["num_replicas"]
        for order_of in (balanced, unique):
            for _, tasks, told in epochs_of(case, order_of):
                assert {task: tasks.count(task) for task in set(tasks)} == {
                    task: size // rows for task, size in case["sizes"].items() if size >= rows
                }
                seen = [index for rank in told for picked in rank for index in picked]
                assert len(seen) == len(set(seen)) == rows * len(tasks)
                assert all(len(picked) == case["batch_size"] for rank in told for picked in rank)


def test_a_longer_task_gives_several_in_a_row_and_its_rest_at_the_end():
    assert "".join(balanced_order({"a": 11, "b": 4, "c": 1}, 2)) == "aab" * 2 + "a"


def test_bad_sizes_are_told():
    with pytest.raises(InputError, match="task b has 0 samples, wanted at least one"):
        balance({"a": 3, "b": 0})
    with pytest.raises(InputError, match="task a has 3 samples, fewer than the 4"):
        list(mini_batches(["a", "a"], {"a": [0, 1, 2]}, 2))
    assert balanced_order({"a": 3}, 4) == []
