"""A run's place in its data, carried over to other numbers of processes: nothing twice, nothing lost."""

import asyncio
import json
import random

import numpy as np
import pytest

from streamjax.data.multitask import multitask_batches
from streamjax.data.pipeline import DataConfig, batches
from streamjax.data.places import Places, carried_over
from streamjax.errors import InputError


def fresh(me, ways):
    counts = {"seen": 0, "skipped": 0, "taken": 0}
    return {**counts, "share": [me, ways], "loose": [], "base": 0}


def took(state, count):
    """The places of the next `count` samples, and the state after them."""
    places = Places(*state["share"], tuple(state["loose"]), state["base"])
    found = [places.of(places.number(state["taken"] + i)) for i in range(count)]
    taken = {"seen": state["seen"] + count, "taken": state["taken"] + count}
    return found, state | taken


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_comes_once_however_often_the_number_of_processes_changes(seed):
    rng = random.Random(seed)
    states, seen = [fresh(0, 1)], []
    for _ in range(6):
        ways = rng.randint(1, 5)
        states = [carried_over(states, me, ways) for me in range(ways)]
        assert sum(state["seen"] for state in states) == len(seen)
        for i, state in enumerate(states):  # rows hold unlike numbers of samples: none is level
            found, states[i] = took(state, rng.randint(0, 7))
            seen += found
    rest, _ = took(carried_over(states, 0, 1), 100)
    assert sorted(seen + rest) == list(range(len(seen) + 100))


def test_level_processes_hand_over_as_if_there_had_been_one():
    states = [took(fresh(me, 4), 6)[1] for me in range(4)]
    assert took(carried_over(states, 0, 1), 3)[0] == [24, 25, 26]
    assert took(carried_over(states, 1, 2), 3)[0] == [25, 27, 29]


def test_a_missing_process_is_told():
    states = [fresh(me, 3) for me in (0, 2)]
    with pytest.raises(InputError, match=r"shares \[0, 2\] were saved, wanted those of all 3"):
        carried_over(states, 0, 1)


def source():
    return list(range(37))


def transform(record, rng):
    return {"record": np.int32(record), "drawn": rng.random(dtype=np.float32)}


def opened(me, ways, threads=0, rows=8):
    config = DataConfig(source=source, transform=transform, threads=threads)
    return batches(config, batch_size=rows // ways, seed=3, shard=(me, ways))


def rows_of(parts, steps):
    """The rows of each step, of all processes together, in the order of one."""
    taken = [[next(part) for part in parts] for _ in range(steps)]
    rows = [[np.stack([p[key] for p in step], 1).reshape(-1) for key in sorted(step[0])]
            for step in taken]  # fmt: skip
    return np.array(rows)


@pytest.mark.parametrize("threads", [0, 2])
def test_batches_go_on_with_fewer_and_with_more_processes(tmp_path, threads):
    wanted = rows_of([opened(0, 1)], 9)
    two = [opened(me, 2, threads) for me in range(2)]
    found = [rows_of(two, 4)]
    for me, part in enumerate(two):  # as grain writes it
        (tmp_path / f"process_{me}-of-2.json").write_text(json.dumps(part.get_state()))
    for ways in (1, 4):
        parts = [opened(me, ways, threads) for me in range(ways)]
        for part in parts:
            asyncio.run(loaded(part, tmp_path))
        np.testing.assert_array_equal(rows_of(parts, 5), wanted[4:])
        assert sum(part.seen for part in parts) == 9 * 8
    np.testing.assert_array_equal(found[0], wanted[:4])


async def loaded(part, folder):
    await (await part.load(folder))


def test_several_tasks_go_on_with_another_number_of_processes():
    configs = {name: DataConfig(source=source, transform=transform) for name in "ab"}

    def make(me, ways):
        return multitask_batches(configs, batch_size=4 // ways, seed=1, shard=(me, ways))

    alone = make(0, 1)
    for _ in range(3):
        next(alone)
    two = [make(me, 2) for me in range(2)]
    for part in two:
        for _ in range(3):
            next(part)
    one = make(0, 1)
    one.set_states([part.get_state() for part in two])
    for (name, wanted), (other, found) in zip(next(alone), next(one), strict=True):
        assert name == other
        np.testing.assert_array_equal(found["record"], wanted["record"])
