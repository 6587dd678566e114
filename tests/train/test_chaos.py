"""A run that is killed again and again has the rows of one that never was, every sample once."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamjax.train import CheckpointConfig, DataConfig, TrainConfig
from streamjax.train.meter import MACHINE
from tests.train import toy, toy_data

pytestmark = [pytest.mark.xdist_group("devices")]

SCRIPT = """
import sys
from streamjax.train import train
from tests.train import test_chaos
from streamjax.train.progress import silent
train(test_chaos.config(int(sys.argv[3])), sys.argv[1], compilation_cache=sys.argv[2], progress=silent)
"""


def source():
    return [{**record, "number": i} for i, record in enumerate(toy_data.records())]


def numbered(record, rng):
    time.sleep(0.002)  # so that steps are long enough to be met
    return {**toy_data.transform(record, rng), "number": np.int32(record["number"])}


def objective(model, batch):
    loss, count, metrics = toy.objective(model, batch)
    return loss, count, {**metrics, "numbers": batch["number"]}  # as they are, into the row


def config(steps: int) -> TrainConfig:
    data = DataConfig(source=source, transform=numbered)
    often = CheckpointConfig(every=3, keep=2, keep_every=12)
    return toy.config(steps=steps, objective=objective, data=data, checkpoint=often)


def start(run: Path, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(run), str(run.parent / "cache"), str(steps)]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def rows(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def numbers(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows(run)]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Whether it happened before the process ended."""
    until = time.monotonic() + 300
    while not happened():
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return False
        assert time.monotonic() < until
        time.sleep(0.0005)
    return True


def chaos(run: Path, steps: int, kills: int, rng: random.Random) -> list[str]:
    """Kills and restarts the run `kills` times, every other time in the middle of a save."""
    told: list[str] = []
    while len(told) < kills:
        process = start(run, steps)
        at, done = len(rows(run)), len(told)
        # A kill must not come before any step is new, or the run would not get on; nor so late
        # that the run is over before all the kills are spent.
        if done % 2:
            saving = lambda: any(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
            happened, delay = saving, rng.uniform(0, 0.03)
        else:
            wanted = at + rng.randint(1, 2)
            happened, delay = lambda w=wanted: len(rows(run)) >= w, rng.uniform(0, 0.02)
        if not wait_until(happened, process):
            told.append("too late: the run was done")
            break
        time.sleep(delay)
        half = any(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
        process.kill()
        process.communicate()
        told.append(f"row {len(rows(run))}{', saving' if half else ''}")
    process = start(run, steps)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return told


def nothing_is_lost(tmp_path: Path, steps: int, kills: int) -> list[str]:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seed = random.randrange(2**32)
    process = start(whole, steps)
    assert process.wait(300) == 0
    told = [f"seed {seed}", *chaos(broken, steps, kills, random.Random(seed))]
    assert [row["step"] for row in rows(broken)] == [*range(1, steps + 1)], told
    assert numbers(broken) == numbers(whole), told
    seen = [number for row in rows(broken) for number in row["numbers"]]
    epoch = len(source())
    for first in range(0, len(seen) - epoch + 1, epoch):
        assert sorted(seen[first : first + epoch]) == [*range(epoch)], told
    return told


def test_three_kills_change_nothing(tmp_path):
    told = nothing_is_lost(tmp_path, steps=16, kills=3)
    assert any("saving" in one for one in told), told


@pytest.mark.slow
def test_thirty_kills_change_nothing(tmp_path):
    told = nothing_is_lost(tmp_path, steps=180, kills=30)
    print("\n".join(told))
    assert len(told) == 31, told
    assert sum("saving" in one for one in told) >= 5, told
