"""Several tasks, one iterator: whose turn it is, and each task's own place in its data."""

import dataclasses
import json
import logging
from collections import Counter

import numpy as np
import pytest

from streamjax.data import multitask
from streamjax.data.multitask import multitask_batches
from streamjax.data.pipeline import DataConfig, batches
from streamjax.errors import InputError

SIZES = {"b": 20, "a": 6, "c": 11}
BAD = 3


def transform(record, rng):
    if record == BAD:
        raise ValueError("no frames in it")
    return {"value": np.int32(record), "noise": rng.random(2)}


class Records:
    """A source of so many records; of the module, so that worker processes know it."""

    def __init__(self, size):
        self.size = size

    def __call__(self):
        return range(self.size)


def configs(**changes):
    return {
        name: DataConfig(source=Records(size), transform=transform, max_bad=0.5, **changes)
        for name, size in SIZES.items()
    }


def make(data=None, *, order="each", **changes):
    settings = {"batch_size": 2, "seed": 1, "accumulate": 1 if order == "each" else 5, **changes}
    return multitask_batches(data or configs(), order=order, **settings)


def take(data, count):
    try:
        return [next(data) for _ in range(count)]
    finally:
        data.close()


def same(left, right):
    return [[(t, {k: a.tolist() for k, a in b.items()}) for t, b in update] for update in left] == [
        [(t, {k: a.tolist() for k, a in b.items()}) for t, b in update] for update in right
    ]


def tasks_of(updates):
    return ["".join(task for task, _ in update) for update in updates]


def test_each_takes_one_mini_batch_of_every_task_in_the_order_of_the_mapping():
    assert tasks_of(take(make(), 3)) == ["bac"] * 3


def test_balanced_runs_through_the_originals_order_and_leaves_out_what_no_update_takes():
    # a is repeated 3 times (20 // 6 while 6 < 20 / 2): 10, 9 and 5 mini-batches, 24 in rounds.
    updates = tasks_of(take(make(order="balanced"), 8))
    assert updates == ["bbacb", "bacbb", "acbba", "cbbac"] * 2
    assert tasks_of(take(make(order="balanced", accumulate=24), 1)) == ["bbac" * 5 + "aaaa"]


def test_unique_draws_another_order_every_epoch_and_seed():
    updates = tasks_of(take(make(order="unique", accumulate=24), 2))
    assert [Counter(update) for update in updates] == [Counter(b=10, a=9, c=5)] * 2
    assert updates[0] != updates[1]
    assert tasks_of(take(make(order="unique", accumulate=24, seed=2), 1))[0] not in updates


@pytest.mark.parametrize("order", ["each", "balanced", "unique"])
def test_stopped_at_any_update_it_goes_on_with_the_same_batches(order):
    whole = take(make(order=order), 12)
    for stop in range(1, 12, 2):
        data = make(configs(threads=2), order=order)
        first = [next(data) for _ in range(stop)]
        state = json.loads(json.dumps(data.get_state()))
        data.close()
        rest = make(order=order)
        rest.set_state(state)
        assert same(whole, first + take(rest, 12 - stop))


def test_workers_change_nothing():
    whole = take(make(), 6)
    data = make(configs(workers=1))
    first = [next(data) for _ in range(2)]
    rest = make()
    rest.set_state(data.get_state())
    data.close()
    assert same(whole, first + take(rest, 4))


@pytest.mark.parametrize("order", ["each", "balanced"])
def test_no_sample_is_lost_or_seen_twice(order):
    seen = {name: [] for name in SIZES}
    for update in take(make(order=order), 20):
        for task, batch in update:
            seen[task] += batch["value"].tolist()
    for name, size in SIZES.items():
        good = sorted(set(range(size)) - {BAD})
        for start in range(0, len(seen[name]) - len(good) + 1, len(good)):
            assert sorted(seen[name][start : start + len(good)]) == good


def test_another_task_beside_it_changes_no_task():
    alone = {name: config for name, config in configs().items() if name != "b"}
    for task, update in zip("ac", zip(*take(make(alone), 3), strict=True), strict=True):
        beside = [dict(u)[task] for u in take(make(), 3)]
        assert same([[(task, b)] for b in beside], [[mini] for mini in update])
    assert not same(
        [[next(make())[0]]], [[("b", next(batches(configs()["b"], batch_size=2, seed=1)))]]
    )


def test_shards_share_every_mini_batch_out():
    parts = [take(make(shard=(i, 2), batch_size=1), 5) for i in range(2)]
    values = [dict(update)["b"]["value"] for part in parts for update in part]
    assert len({*np.concatenate(values).tolist()}) == 10


def test_skipped_samples_are_counted_per_task_and_told_with_its_name(caplog):
    data = make()
    with caplog.at_level(logging.WARNING):
        take(data, 4)
    counts = data.counts()
    assert counts["a/skipped"] >= 1
    assert counts["skipped"] == sum(n for key, n in counts.items() if "/" in key)
    assert "skipped a: sample 3: ValueError: no frames in it" in caplog.text
    assert data.get_state()["tasks"]["a"]["skipped"] == counts["a/skipped"]


def test_errors_name_the_task():
    def broken(record, rng):
        raise OSError("truncated")

    def ragged(record, rng):
        return {"value": np.zeros(record)}

    for change, told in (
        ({"transform": broken, "max_bad": 0.1}, "a: 11 of 11 samples are bad"),
        ({"transform": ragged}, "a: two samples of one batch differ in 'value'"),
    ):
        data = {**configs(), "a": dataclasses.replace(configs()["a"], **change)}
        with pytest.raises(InputError, match=told):
            take(make(data), 1)
    with pytest.raises(InputError, match="a: the data source is empty"):
        make({**configs(), "a": dataclasses.replace(configs()["a"], source=Records(0))})


def test_bad_settings_are_told():
    with pytest.raises(InputError, match="order='random', wanted one of each, balanced, unique"):
        make(order="random")
    with pytest.raises(InputError, match="data names no task"):
        multitask_batches({}, batch_size=2, seed=0)
    with pytest.raises(InputError, match="24 mini-batches, fewer than the accumulate=25"):
        make(order="balanced", accumulate=25)
    with pytest.raises(
        InputError, match="c: 11 records, repeated 1 times, fill no mini-batch of 16"
    ):
        make(order="balanced", batch_size=8, shard=(0, 2))
    data = make()
    with pytest.raises(InputError, match="is of the tasks a, b, c, wanted b, a, c in this order"):
        data.set_state({"updates": 1, "tasks": {name: {} for name in "abc"}})


def test_the_runs_workers_are_shared_out():
    data = configs(workers=4, threads=3)
    data["c"] = dataclasses.replace(data["c"], workers=0)
    shared = multitask._share_workers(data)
    assert {name: (c.workers, c.threads) for name, c in shared.items()} == {
        "b": (2, 3), "a": (2, 3), "c": (0, 3),
    }  # fmt: skip
    shared = multitask._share_workers(configs(threads=2))
    assert [c.threads for c in shared.values()] == [1, 1, 1]
    data = configs()
    assert multitask._share_workers(data) == data
