"""A run that is killed, interrupted or resumed gives the numbers of one that never was."""

import functools
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.data.processors import Assets, ImageProcessor
from streamjax.errors import InputError
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.train import CheckpointConfig, DataConfig, NotFiniteError, train
from streamjax.train.meter import MACHINE
from streamjax.train.metrics import MetricsFile, macro_f1
from streamjax.train.progress import Report, auto, silent, tell
from streamjax.weights.safetensors import read_folder
from tests.train import toy

devices = pytest.mark.devices
pytestmark = [pytest.mark.xdist_group("devices")]

STEPS = 60
SCRIPT = """
import sys
from streamjax.train import override, train
from streamjax.weights.safetensors import read_folder
from tests.train import toy
train(override(toy.config(), sys.argv[3:]), sys.argv[1], compilation_cache=sys.argv[2])
"""


def start(run: Path, *overrides: str) -> subprocess.Popen:
    """The toy's training in a process (and process group) of its own."""
    cache = str(run.parent / "cache")
    command = [sys.executable, "-c", SCRIPT, str(run), cache, f"steps={STEPS}", *overrides]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict]:
    """The rows without clock times: what must be the same bit for bit."""
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows(run)]


def wait_for_rows(run: Path, process: subprocess.Popen, count: int) -> None:
    file, until = run / "metrics.jsonl", time.monotonic() + 300
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.001)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow  # test_chaos.py kills a run three times in every test run
def test_killed_and_interrupted_at_random_moments_it_goes_on_bit_for_bit(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = start(whole)
    told = []

    def disturb(first: int, last: int, stop: Callable[[subprocess.Popen], None], *how: str) -> str:
        process, moment = start(broken, *how), random.randint(first, last)
        wait_for_rows(broken, process, moment)
        stop(process)
        said = process.communicate(timeout=120)[1]
        told.append(f"{how} stopped after row {moment}, returned {process.returncode}")
        until = time.monotonic() + 60
        while alive(process.pid) and time.monotonic() < until:
            time.sleep(0.1)
        assert not alive(process.pid), "workers outlived their parent"
        return said

    disturb(3, 15, subprocess.Popen.kill, "data.workers=2")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 57, "lo')  # what a death in the middle of a write may leave
    # A scheduler's SIGTERM, to every process of the job: saved and done, as far as it is concerned.
    disturb(18, 33, lambda p: os.killpg(p.pid, signal.SIGTERM), "data.workers=1")
    assert told[-1].endswith("returned 0")
    # Ctrl-C, as a terminal sends it: workers hear it too.
    said = disturb(36, 45, lambda p: os.killpg(p.pid, signal.SIGINT), "data.workers=1")
    stopped = len(rows(broken))
    assert told[-1].endswith(("returned 130", f"returned {-signal.SIGINT}"))
    assert f"stopped at step {stopped} of {STEPS} and saved it" in said
    assert (broken / "checkpoints" / str(stopped)).is_dir()
    assert f"toy: step {stopped} of {STEPS}" in finish(start(broken))

    finish(undisturbed)
    assert [row["step"] for row in rows(whole)] == [*range(1, STEPS + 1)]
    assert numbers(broken) == numbers(whole), told


@pytest.fixture
def small():
    """Six steps on one row of devices, a checkpoint every second."""
    return {"steps": 6, "checkpoint": CheckpointConfig(every=2, keep=2), "log_every": 2}


@devices
def test_a_run_writes_its_recipe_rows_and_checkpoints(tmp_path, small, capsys):
    result = train(toy.config(**small), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoints", "metrics.jsonl", "recipe.json",
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "6"]
    assert result.step == 6
    assert result.metrics == rows(tmp_path / "run")[-1]
    assert result.model(jnp.zeros((2, 8))).shape == (2, 3)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert recipe["objective"] == "tests.train.toy.objective"
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"toy: step 4/6 loss \d\.\d+ state F1 0\.\d+ .* examples/s data wait", err)

    # Asked again it is done; another recipe is refused; what decides nothing may change.
    moved = toy.config(**small, mesh=toy.MeshConfig(fsdp=4))
    again = train(moved, tmp_path / "run", progress=silent)
    assert again.metrics == result.metrics
    assert again.model.head.kernel.get_value().sharding.spec[0] == "fsdp"
    other = toy.config(**{**small, "seed": 1, "log_every": 3})
    with pytest.raises(InputError, match=r"another recipe: seed=1 \(was 0\): choose"):
        train(other, tmp_path / "run", progress=silent)
    with pytest.raises(InputError, match="holds a run already"):
        train(toy.config(**small), tmp_path / "run", resume=False)


@devices
def test_bad_samples_are_counted_and_a_loss_that_is_no_number_stops_the_run(tmp_path, small):
    def explode(model, batch):
        loss, count, metrics = toy.objective(model, batch)
        return jnp.where(batch["bad"].any(), jnp.nan, loss), count, metrics

    def transform(record, rng):
        if record["path"] == "clip11.mp4":
            raise ValueError("truncated")
        return {**toy.transform(record, rng), "bad": np.bool_(record["path"] == "clip41.mp4")}

    data = DataConfig(source=toy.records, transform=transform, shuffle=False, max_bad=0.1)
    config = toy.config(**small, objective=explode, data=data)
    with pytest.raises(NotFiniteError) as told:
        train(config, tmp_path, progress=silent)
    assert "step 6: loss is nan, wanted a finite number; step 4 is kept" in str(told.value)
    assert [(row["step"], row["skipped"]) for row in rows(tmp_path)] == [
        (1, 0), (2, 1), (3, 1), (4, 1), (5, 1),
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


@devices
def test_loaded_weights_are_let_go_of_when_the_run_begins(tmp_path, small):
    loaded, alive = [], []

    def load(rngs, mesh):
        assert mesh.shape["fsdp"] == 2
        model = toy.build(rngs)
        loaded.append(weakref.ref(model.head.kernel.get_value()))
        return model

    def objective(model, batch):
        gc.collect()
        kernel = loaded[-1]()
        alive.append(kernel is not None and not kernel.is_deleted())
        return toy.objective(model, batch)

    mesh = toy.MeshConfig(fsdp=2)
    config = toy.config(**small, weights="loaded", model=load, objective=objective, mesh=mesh)
    train(config, tmp_path, progress=silent)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    train(config, tmp_path, progress=silent)  # from step 4: nothing that was loaded is needed
    assert len(loaded) == 2 and alive and not any(alive)


@devices
def test_a_run_of_a_known_family_is_loaded_by_its_folder(tmp_path):
    size = StreamFormerConfig(
        image_size=4, patch_size=2, num_frames=2, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8, enable_causal_temporal=True,
    )  # fmt: skip
    eye = Assets(processor=ImageProcessor(size=(4, 4)))

    def build(rngs):
        model = StreamFormer(size, rngs=rngs)
        model.assets = eye
        return model

    def objective(model, batch):
        pooled = model(batch["frames"]).pooled
        return (pooled**2).sum(), jnp.float32(pooled.size), {}

    def transform(record, rng):
        return {"frames": rng.normal(size=(2, 4, 4, 3)).astype(np.float32)}

    data = DataConfig(source=toy.records, transform=transform)
    config = toy.config(steps=1, model=build, objective=objective, data=data, frozen=("position",))
    run = train(config, tmp_path, progress=silent)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json", "preprocessor_config.json",
    ]  # fmt: skip
    loaded = sj.load(tmp_path)
    assert loaded.assets.processor.size == (4, 4)
    assert loaded.dtype == "float32" and sj.load(tmp_path, dtype="bfloat16").dtype == "bfloat16"
    sj.save(loaded, tmp_path / "hf")  # the original's strict loader asks for the mask buffers
    assert any(".mask" in name for name in read_folder(tmp_path / "hf")[0])
    close = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    close(nnx.state(run.model, nnx.Param), jax.device_get(nnx.state(loaded, nnx.Param)))


def test_rows_past_the_restored_step_and_torn_ones_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with MetricsFile(path, 2) as file:
        assert file.last == {"step": 2}
        file.write({"step": 3, "loss": 1.0})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'


def test_f1_is_the_mean_over_the_classes_that_occur():
    assert macro_f1([{"loss": 1.0}]) is None
    rows = [{"tp": [1, 0, 0], "fp": [1, 0, 0], "fn": [0, 1, 0]},
            {"tp": [1, 0, 0], "fp": [0, 0, 0], "fn": [0, 0, 0]}]  # fmt: skip
    assert macro_f1(rows) == pytest.approx((4 / 5 + 0) / 2)


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(capsys, monkeypatch):
    report = Report(3, 0.5, None, 12.0, 0.25, 61.0)
    assert tell(report) == "loss 0.5000 12.0 examples/s data wait 25% left 1:01"
    with auto("toy", 10, 0) as show:
        show(report)
    assert "toy: step 3/10 loss 0.5000" in capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with auto("toy", 10, 0) as show:
        show(report)
    said = capsys.readouterr().err
    assert "3/10" in said
    assert "data wait 25%" in said
