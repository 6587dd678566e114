"""What a run says when it cannot go on: one line, and the last good step is there to go on from."""

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from streamjax import checkpoint, cli
from streamjax.data.pipeline import batches, patiently
from streamjax.errors import InputError, RunError
from streamjax.train import CheckpointConfig, DataConfig, NotFiniteError, train
from streamjax.train.progress import silent
from tests.train import toy
from tests.train.toy_data import records, transform

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

OFTEN = CheckpointConfig(every=2, keep=2)


def dies_at(record, rng, number):
    if record["path"] == f"clip{number}.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return transform(record, rng)


def hangs_at(record, rng, number):
    if record["path"] == f"clip{number}.mp4":
        time.sleep(3600)
    return transform(record, rng)


def run_with(transform, path, **data):
    ordered = DataConfig(source=records, transform=transform, shuffle=False, **data)
    config = toy.config(steps=6, data=ordered, checkpoint=OFTEN)
    with pytest.raises(RunError) as told:
        train(config, path, progress=silent)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_data_worker_that_dies_ends_the_run_in_one_line(tmp_path):
    said = run_with(functools.partial(dies_at, number=35), tmp_path, workers=1, ahead=1)
    assert "a data worker died (exit code -9" in said
    assert said.endswith("step 4 is kept")
    assert checkpoint.latest_step(tmp_path) == 4
    assert not multiprocessing.active_children()


def test_data_that_hang_end_the_run_after_the_patience_that_it_has(tmp_path):
    begun = time.monotonic()
    said = run_with(functools.partial(hangs_at, number=35), tmp_path, patience=3.0)
    assert "no sample came for 3 s (data.patience), after 35" in said
    assert said.endswith("step 4 is kept")
    assert time.monotonic() - begun < 60


def test_a_hung_worker_is_killed():
    data = DataConfig(
        source=records, transform=functools.partial(hangs_at, number=9), shuffle=False, workers=1,
        patience=15.0, ahead=1,
    )  # fmt: skip
    rows = batches(data, batch_size=4, seed=0)
    for _ in range(2):
        next(rows)
    with pytest.raises(RunError, match="no sample came"):
        next(rows)
    begun = time.monotonic()
    rows.close()
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not multiprocessing.active_children()
    assert time.monotonic() - begun < 10


def test_slow_is_not_hung():
    seen = [0]

    def slowly():
        for _ in range(4):
            time.sleep(0.3)
            seen[0] += 1
        return "done"

    late = lambda: RunError("late")
    assert patiently(slowly, lambda: seen[0], 0.6, late) == "done"
    with pytest.raises(RunError, match="late"):
        patiently(lambda: time.sleep(5), lambda: 0, 0.1, late)
    with pytest.raises(KeyError):
        patiently(lambda: {}["x"], lambda: 0, 1.0, late)


def explode(model, batch):
    loss, count, metrics = toy.objective(model, batch)
    return jnp.where(batch["bad"].any(), jnp.nan, loss), count, metrics


def test_the_batch_of_a_loss_that_is_no_number_is_told(tmp_path):
    def marked(record, rng):
        if record["path"] == "clip3.mp4":
            raise ValueError("truncated")
        return {**transform(record, rng), "bad": np.bool_(record["path"] == "clip29.mp4")}

    data = DataConfig(source=records, transform=marked, shuffle=False, max_bad=0.1)
    config = toy.config(steps=6, objective=explode, data=data, checkpoint=OFTEN)
    with pytest.raises(NotFiniteError) as told:
        train(config, tmp_path, progress=silent)
    assert "step 4: loss is nan" in str(told.value) and "step 2 is kept" in str(told.value)
    assert str(tmp_path / "nan_batch.json") in str(told.value)
    found = json.loads((tmp_path / "nan_batch.json").read_text())
    assert (found["step"], found["loss"]) == (4, "nan")
    assert found["samples"] == [  # one was skipped before
        {"row": i, "sample": 25 + i, "record": 25 + i, "where": f"clip{25 + i}.mp4"}
        for i in range(8)
    ]


SCRIPT = """
import dataclasses, sys
from streamjax import cli, verbs
from streamjax.verbs import training
sys.exit(cli.main(["train", sys.argv[1], "--run", sys.argv[2], *sys.argv[3:]]))
"""
RECIPE = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from tests.train import toy
from streamjax.train import CheckpointConfig

def build(rngs):
    model = toy.build(rngs)
    model.ballast = toy.nnx.Param(toy.jax.random.normal(rngs.params(), (1 << 19,)))
    return model

def objective(model, batch):
    loss, count, metrics = toy.objective(model, batch)
    return loss + 0 * model.ballast[...].sum(), count, metrics

def config():
    return toy.config(steps=20, model=build, objective=objective,
                      checkpoint=CheckpointConfig(every=2, keep=1, keep_every=2))
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    home = tmp_path / "disk"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(home)], capture_output=True,
        check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("only root mounts a small file system here")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_told_in_one_line(small_disk, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(recipe), str(small_disk / "run")]
    first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert first.returncode == 1, first.stderr
    # Threads of Orbax that the failure has orphaned may say more while Python ends.
    (line,) = [line for line in first.stderr.splitlines() if "the disk is full" in line]
    kept = checkpoint.latest_step(small_disk / "run")
    assert kept and f"step {kept} is kept: free some space" in line
    # Given room, the same command goes on from there.
    subprocess.run(["mount", "-o", "remount,size=90m", str(small_disk)], check=True)
    second = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert f"toy: step {kept} of 20" in second.stderr


@pytest.mark.parametrize("where", ["save", "rows"])
def test_a_full_disk_is_told_wherever_it_strikes(tmp_path, monkeypatch, where):
    full = OSError(28, "No space left on device")
    if where == "save":
        save = checkpoint.save

        def failing(checkpoints, step, **parts):
            if step == 4:
                raise full
            save(checkpoints, step, **parts)

        monkeypatch.setattr(checkpoint, "save", failing)
    else:
        from streamjax.train.metrics import MetricsFile

        write = MetricsFile.write

        def failing_row(self, row):
            if row["step"] == 4:
                raise full
            write(self, row)

        monkeypatch.setattr(MetricsFile, "write", failing_row)
    config = toy.config(steps=6, checkpoint=OFTEN)
    with pytest.raises(RunError) as told:
        train(config, tmp_path, progress=silent)
    assert str(told.value) == (
        f"{tmp_path}: the disk is full (No space left on device); step 2 is kept: free some space, "
        "and the same command goes on"
    )
    monkeypatch.undo()
    assert train(config, tmp_path, progress=silent).step == 6


def test_the_command_line_says_it_in_a_line_and_returns_1(monkeypatch, capsys):
    def fail(*_, **__):
        raise RunError("a data worker died;\n step 4 is kept")

    monkeypatch.setattr("streamjax.verbs.doctor", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "streamjax: a data worker died; step 4 is kept\n"


def test_numbers_that_keep_no_checkpoint_are_refused():
    for wrong in ({"every": 0}, {"keep": 0}, {"every": 5, "keep_every": 12}):
        with pytest.raises(InputError, match="wanted"):
            CheckpointConfig(**wrong)
