"""Several tasks in one run: what a step is, wherever it lives, whatever interrupts it."""

import dataclasses
import json
import os
import signal
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from streamjax.data.multitask import multitask_batches
from streamjax.errors import InputError
from streamjax.sharding import make_mesh
from streamjax.train import CheckpointConfig, override, train
from streamjax.train.meter import MACHINE
from streamjax.train.progress import silent
from streamjax.train.state import set_up
from streamjax.train.step import make_step, put
from tests.train import toy, toy_tasks

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

MIXED = {"order": "balanced", "accumulate": 3}


def updates_of(config, count):
    data = multitask_batches(
        config.data, batch_size=config.batch_size, seed=config.seed, order=config.order,
        accumulate=config.accumulate,
    )  # fmt: skip
    return [next(data) for _ in range(count)]


def run(config, updates):
    """Rows of metrics and the last state after these updates on the config's mesh."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(config, mesh)
    rows = []
    with jax.set_mesh(mesh):
        state = setup.make()
        step = make_step(config, setup, mesh)
        for update in updates:
            state, metrics = step(state, put(config, update, mesh))
            rows.append(jax.device_get(metrics))
    return rows, state


def close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), left, right)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every run makes its programs anew: most of what these tests would cost."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {key: getattr(jax.config, key) for key in settings}
    for values in (settings, before):
        for key, value in values.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@pytest.fixture(scope="module")
def alone():
    """(updates, rows, state) of one device."""
    config = toy_tasks.config(**MIXED)
    updates = updates_of(config, 3)
    return updates, *run(config, updates)


def test_the_mesh_changes_nothing(alone):
    updates, rows, state = alone
    mesh = toy.MeshConfig(data=2, fsdp=2, tensor=2)
    found, after = run(toy_tasks.config(mesh=mesh, **MIXED), updates)
    close(found, rows)
    close(after.params, state.params)


def test_a_step_moves_by_the_mean_of_the_mini_batches_means(alone):
    updates, rows, _ = alone
    assert [[task for task, _ in update] for update in updates[:3]] == [
        ["class", "class", "norm"],
        ["pair", "class", "class"],
        ["norm", "pair", "class"],
    ]
    config = toy_tasks.config(**MIXED)
    mesh = make_mesh()
    setup = set_up(config, mesh)
    begun = setup.make()
    update = put(config, updates[2], mesh)

    @jax.jit
    def moved(params, opt_state):
        def mean_of(params):
            model = nnx.merge(setup.graphdef, params, begun.frozen)
            found = [config.objective[task](model, batch)[:2] for task, batch in update]
            losses = jnp.stack([loss / count for loss, count in found])
            return losses.mean(), losses

        (loss, each), grads = jax.value_and_grad(mean_of, has_aux=True)(params)
        changes, _ = setup.tx.update(grads, opt_state, params)
        return loss, each, optax.tree.norm(grads), optax.apply_updates(params, changes)

    loss, each, norm, params = moved(begun.params, begun.opt_state)
    (row,), after = run(config, updates[2:3])
    np.testing.assert_allclose(row["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(row["grad_norm"], norm, rtol=1e-5)
    for (task, _), own in zip(update, each, strict=True):
        np.testing.assert_allclose(row[f"{task}/loss"], own, rtol=1e-5)
    close(after.params, params)
    twice = rows[0]["class/loss"]  # of a task with two turns in an update
    np.testing.assert_allclose(rows[0]["loss"], (2 * twice + rows[0]["norm/loss"]) / 3, rtol=1e-5)


def test_metrics_bear_their_tasks_name_and_add_up_over_its_mini_batches(alone):
    _, rows, _ = alone
    assert set(rows[0]) == {
        "loss", "grad_norm", "lr", "norm/loss", "norm/size",
        "class/loss", "class/tp", "class/fp", "class/fn", "class/share",
    }  # fmt: skip
    assert set(rows[1]) & {"pair/near", "class/share", "norm/loss"} == {"pair/near", "class/share"}
    labels = 2 * 8 * 4
    assert (rows[0]["class/tp"] + rows[0]["class/fn"]).sum() == labels
    assert rows[0]["class/share"] == 1


def test_any_order_runs_in_the_same_programs():
    config = toy_tasks.config(**MIXED)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    toy_tasks.TRACED.clear()
    updates = updates_of(config, 12)
    counts = []

    def counted():
        for update in updates:
            yield update
            counts.append(len(compiled))

    run(config, counted())
    assert sorted(toy_tasks.TRACED) == sorted(toy_tasks.SIZES)  # each task's program is made once
    assert len({tuple(task for task, _ in update) for update in updates}) > 3
    assert counts[0] > 0
    assert counts[5:] == [counts[5]] * 7  # nothing new in the second epoch


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows]


def stop_at(number, how):
    """A display that sends this process a signal when the row of a step has been written."""

    @contextmanager
    def display(name, steps, start):
        del name, steps, start
        yield lambda report: os.kill(os.getpid(), how) if report.step == number else None

    return display


@pytest.mark.parametrize(
    "settings", [{}, {"order": "unique", "accumulate": 2}], ids=["each", "unique"]
)
def test_interrupted_it_goes_on_bit_for_bit(tmp_path, settings):
    small = {"steps": 7, "log_every": 1, "checkpoint": CheckpointConfig(every=3), **settings}
    whole = train(toy_tasks.config(**small), tmp_path / "whole", progress=silent)
    config, broken = toy_tasks.config(**small), tmp_path / "broken"
    with pytest.raises(SystemExit):
        train(config, broken, progress=stop_at(2, signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(override(config, ["data.threads=3"]), broken, progress=stop_at(5, signal.SIGINT))
    assert 2 < len(rows_of(broken)) < 7
    again = train(override(config, ["data.norm.threads=1"]), broken, progress=silent)
    assert rows_of(broken) == rows_of(tmp_path / "whole")
    left, right = nnx.state(whole.model), nnx.state(again.model)
    jax.tree.map(np.testing.assert_array_equal, left, right)
    if not settings:
        last = rows_of(broken)[-1]
        assert last["norm/skipped"] == last["skipped"] >= 3
        assert last["class/skipped"] == last["pair/skipped"] == 0
        assert all(f"{task}/loss" in last for task in toy_tasks.SIZES)


def test_a_line_of_progress_tells_each_tasks_loss(tmp_path, capsys):
    train(toy_tasks.config(steps=2, log_every=2), tmp_path)
    said = capsys.readouterr().err
    rows = rows_of(tmp_path)
    means = {task: np.mean([row[f"{task}/loss"] for row in rows]) for task in toy_tasks.SIZES}
    assert f"({', '.join(f'{task} {loss:.3f}' for task, loss in means.items())})" in said


def test_tasks_in_another_order_are_another_run(tmp_path):
    train(toy_tasks.config(steps=1), tmp_path, progress=silent)
    other = toy_tasks.config(tuple(reversed(toy_tasks.SIZES)), steps=1)
    with pytest.raises(InputError, match=r"the order pair, norm, class \(was class, norm, pair\)"):
        train(other, tmp_path, progress=silent)
    with pytest.raises(InputError, match=r"another recipe: order='unique' \(was 'each'\)"):
        train(toy_tasks.config(steps=1, order="unique"), tmp_path, progress=silent)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": toy.objective}, "objective names the tasks one for all, data class, norm"),
        (
            {"objective": {"class": toy.objective}},
            "the tasks class, data class, norm, pair: wanted",
        ),
        ({"objective": {}, "data": {}}, "objective names the tasks none, data none"),
        ({"accumulate": 2}, "accumulate=2 with order='each', which takes one mini-batch of every"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(InputError, match=told):
        toy_tasks.config(**changes)


def test_one_task_has_no_order_and_mini_batches_divide_over_the_devices():
    with pytest.raises(InputError, match="order='unique' is of runs with several tasks"):
        toy.config(order="unique")
    with pytest.raises(InputError, match=r"batch_size = 4 rows do not divide over mesh data\*fsdp"):
        put(toy_tasks.config(batch_size=4), [], make_mesh(data=-1))


def test_overrides_reach_one_task_or_all():
    config = override(toy_tasks.config(), ["data.workers=2", "data.norm.max_bad=0.25"])
    assert [data.workers for data in config.data.values()] == [2, 2, 2]
    assert [data.max_bad for data in config.data.values()] == [0.5, 0.25, 0.5]
    for text, told in (
        ("data.nrom.workers=2", "unknown key 'nrom', did you mean 'norm'"),
        ("data.norm.wrkers=2", "unknown key 'wrkers', did you mean 'workers'"),
        ("data.norm=2", "names a group, wanted one of data.norm.source, data.norm.transform"),
        ("data=2", "names a group, wanted one of data.class, data.norm, data.pair"),
        ("objective.norm=x", "'objective' has no parts"),
    ):
        with pytest.raises(InputError, match=told):
            override(toy_tasks.config(), [text])
