"""launch/local.py: real processes over loopback, stopped, killed, and compared with one process."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamjax.checkpoint import latest_step
from streamjax.train import load_recipe, train
from streamjax.train.progress import silent

# Several processes at once: with the tests of several devices, on one worker.
pytestmark = [pytest.mark.devices]

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launch" / "local.py"
RECIPE = ROOT / "tests" / "launch" / "recipe.py"
STEPS = 30


def load_local():
    spec = importlib.util.spec_from_file_location("local", LOCAL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    return [
        json.loads(line) for line in file.read_text().splitlines(keepends=True) if line[-1:] == "\n"
    ]


def launch(run: Path, *more: str, processes: int = 2, devices: int = 4) -> subprocess.Popen:
    command = [
        sys.executable, str(LOCAL), "--processes", str(processes), "--devices", str(devices),
        str(RECIPE), f"steps={STEPS}", *more, "--run", str(run),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_rows(run: Path, process: subprocess.Popen, count: int) -> None:
    until = time.monotonic() + 240
    while len(rows(run)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def rank_of(launcher: subprocess.Popen, rank: int) -> int:
    """The process id of a rank, found among the launcher's children as an administrator would."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            env = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == launcher.pid and f"JAX_PROCESS_ID={rank}".encode() in env:
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of the run in one process of eight devices."""
    run = tmp_path_factory.mktemp("whole")
    train(load_recipe(RECIPE, [f"steps={STEPS}", "mesh.fsdp=2"]), run, progress=silent)
    return rows(run)


def same_curve(found: list[dict], wanted: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in wanted], rel=1e-5)
    assert [row["tp"] for row in found] == [row["tp"] for row in wanted]


def test_two_processes_stop_by_one_signal_go_on_and_do_not_outlive_each_other(tmp_path, whole):
    run = tmp_path / "run"
    given = ("mesh.fsdp=2", "pause=0.1", "--stopped-exit", "75")
    first = launch(run, *given)
    wait_for_rows(run, first, 2)
    os.kill(rank_of(first, 1), signal.SIGTERM)
    out, err = first.communicate(timeout=240)
    stopped = len(rows(run))
    assert first.returncode == 75 and out == "", err
    assert latest_step(run) == stopped < STEPS
    assert err.count(f"stopped at step {stopped} of {STEPS} and saved it") == 1

    second = launch(run, *given)
    wait_for_rows(run, second, stopped + 3)
    killed, other = time.monotonic(), rank_of(second, 0)
    os.kill(rank_of(second, 1), signal.SIGKILL)
    out, err = second.communicate(timeout=240)
    assert time.monotonic() - killed < 20
    assert not Path(f"/proc/{other}").exists()
    assert second.returncode == 128 + signal.SIGKILL and out == ""
    assert f"[0] toy: step {stopped} of {STEPS}" in err and "[1] toy" not in err
    assert not re.search("Traceback|Terminating process|lost the others", err)
    assert [line for line in err.splitlines() if not line.startswith("[0] ")] == [
        "local.py: process 1 was killed by SIGKILL, the others were ended: the same command goes "
        "on from the newest checkpoint"
    ]
    assert latest_step(run) is not None
    done = rows(run)
    same_curve(done, whole[: len(done)])

    # One process goes on where two were, with the samples that neither had taken.
    train(load_recipe(RECIPE, [f"steps={STEPS}", *given[:2]]), run, progress=silent)
    same_curve(rows(run), whole)


@pytest.mark.slow
def test_four_processes_have_the_curve_of_one(tmp_path, whole):
    process = launch(tmp_path / "run", "mesh.fsdp=2", processes=4, devices=2)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert json.loads(out)["step"] == STEPS  # stdout is the first one's, and as it is
    same_curve(rows(tmp_path / "run"), whole)


@pytest.fixture
def host() -> Callable:
    """Runs a piece of Python as two processes of local.py, in a process of its own."""

    def run(code: str) -> subprocess.CompletedProcess:
        starter = (
            f"import sys; sys.path.insert(0, {str(LOCAL.parent)!r}); import local\n"
            f"sys.exit(local.Host([sys.executable, '-c', {code!r}], [{{}}, {{}}]).run())"
        )
        return subprocess.run(
            [sys.executable, "-c", starter], capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip

    return run


def test_output_is_told_apart_and_the_first_failure_counts(host):
    said = host(
        "import os, sys; rank = os.environ['JAX_PROCESS_ID']; print('result', rank);"
        "print('is connected to \\n3\\n\\n', file=sys.stderr); print('note', rank, file=sys.stderr)"
    )
    assert (said.returncode, said.stdout) == (0, "result 0\n")
    assert sorted(said.stderr.splitlines()) == ["[0] note 0", "[1] note 1", "[1] result 1"]

    # The first to fail says why; what that does to the others is left out.
    said = host(
        "import os, sys, time; rank = os.environ['JAX_PROCESS_ID']\n"
        "if rank == '0': sys.exit('wrong input')\n"
        "print('lost my peer', file=sys.stderr, flush=True); time.sleep(60)"
    )
    assert (said.returncode, said.stderr) == (1, "[0] wrong input\n")
    assert "--processes" in subprocess.run(
        [sys.executable, str(LOCAL), "--help"], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def test_devices_are_shared_out(monkeypatch):
    local = load_local()
    assert local.device_shares(2, 4) == [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    shares = local.device_shares(2, None)
    assert shares == [{"CUDA_VISIBLE_DEVICES": "2,3"}, {"CUDA_VISIBLE_DEVICES": "5,7"}]
    assert local.device_shares(3, None) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.device_shares(1, None)[0]["JAX_PLATFORMS"] == "cpu"
