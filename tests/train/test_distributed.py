"""What the environment says of a run's processes, and what one of them does that stays alone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.sharding import make_mesh
from streamjax.train import distributed
from streamjax.train.distributed import agreed, data_shard, group_of, joined, share_of

THREE = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip


def test_the_environment_names_the_processes():
    group = group_of(THREE)
    assert group is not None
    assert group.options == {
        "coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 2,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip
    assert (group.me, group.where) == ("process 2 of 4", "10.0.0.1:1234")
    # What a scheduler says is left to jax, and what we set goes before it.
    assert group_of({**SLURM, **THREE}) == group
    found = {
        "process 1 of 2": SLURM,
        "worker 3": {"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"},
        "this process": {"JAX_NUM_PROCESSES": "auto"},
    }
    for me, env in found.items():
        group = group_of(env)
        assert group is not None and (dict(group.options), group.me) == ({}, me)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {**THREE, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"},  # some clusters set it everywhere
        {**SLURM, "SLURM_NTASKS": "1"},
        {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"},  # the sbatch file itself
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_one_process_stays_alone(env):
    assert group_of(env) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID not set, wanted all of JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4, wanted less than JAX_NUM_PROCESSES=4"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two', wanted a number"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "'10.0.0.1', wanted host:port of process 0"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change, told):
    env = {key: value for key, value in {**THREE, **change}.items() if value is not None}
    with pytest.raises(InputError, match=told):
        group_of(env)


def test_processes_load_the_rows_that_their_devices_hold():
    # Two parts for each of two processes; the order of the devices may be any.
    assert [share_of({0: {0, 1}, 1: {2, 3}}, 4, me) for me in (0, 1)] == [(0, 2), (1, 2)]
    assert share_of({0: {2, 3}, 1: {0, 1}}, 4, 0) == (1, 2)
    # A tensor axis over both: the same rows for both.
    assert [share_of({0: {0}, 1: {0}}, 1, me) for me in (0, 1)] == [(0, 1), (0, 1)]
    # A pair of processes for each half.
    held = {0: {0}, 1: {0}, 2: {1}, 3: {1}}
    assert [share_of(held, 2, me) for me in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    with pytest.raises(InputError, match="3 parts of a batch .* do not divide over 2 processes"):
        share_of({0: {0, 1}, 1: {1, 2}}, 3, 0)
    with pytest.raises(InputError, match="no device of process 1"):
        share_of({0: {0, 1}}, 2, 1)


@pytest.mark.devices
def test_a_process_that_is_alone_loads_and_hears_everything(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert data_shard(make_mesh(data=4, tensor=2)) == (0, 1)
    assert agreed(lambda: signal.SIGTERM)() == signal.SIGTERM
    with joined(), pytest.raises(ValueError), distributed.none_alone():
        raise ValueError("as ever")
    assert distributed.in_turn(lambda: 3) == 3


def alone(rank: int, port: int, wait: int = 1) -> subprocess.Popen:
    """One of two processes, whose peer never comes."""
    code = f"""
import sys
from streamjax.train import distributed
with distributed.stoppable(75):
    print("ready", flush=True)
    with distributed.joined(wait={wait}):
        pass
"""
    env = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(rank),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_peer_that_does_not_come_and_a_port_that_is_taken_are_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first = alone(0, port)
        second = alone(1, port + 1, wait=300)  # it waits in vain, until it is told to stop
        told = first.communicate(timeout=120)[1]
    assert first.returncode == 2
    assert f"process 0 of 2: 127.0.0.1:{port}: cannot wait there for the others" in told

    assert second.stdout is not None and second.stdout.readline() == "ready\n"
    second.terminate()
    assert "stopped with nothing to save" in second.communicate(timeout=120)[1]
    assert second.returncode == 75

    late = alone(1, port)
    told = late.communicate(timeout=120)[1]
    assert late.returncode == 1
    assert told.splitlines()[-1] == (
        f"streamjax: process 1 of 2 waited 1 s for all the others at 127.0.0.1:{port}, in vain: "
        f"look whether every one of them runs and reaches that address"
    )


def test_a_signal_among_the_steps_is_not_taken_for_one_outside_of_them():
    """The thread that hears signals may look when the loop's handler has already run."""
    code = (
        "import os, signal, time\n"
        "from streamjax.train.distributed import stoppable\n"
        "from streamjax.train.loop import _stop_signals\n"
        "with stoppable(75):\n"
        "    for _ in range(40):\n"
        "        with _stop_signals() as heard:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            time.sleep(0.01)\n"
        "            assert heard() == signal.SIGTERM\n"
        "            time.sleep(0.05)\n"
        "print('saved')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr
