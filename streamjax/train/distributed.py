"""One run on many processes: how they find each other, stop at the same step, and end together."""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from streamjax.errors import InputError, RunError
from streamjax.sharding import RULES

JOIN_SECONDS = 300
# A process that says nothing for so long is dead, and the others end. Compiling is no silence:
# the beats come from a thread of jax's own.
HEARTBEAT_SECONDS = 30
# The exit code that asks for another try (EX_TEMPFAIL of sysexits.h).
OTHERS_LOST = 75


class Stopped(SystemExit):
    """SIGTERM asked the run to stop: the step is finished and saved. Its code is 0."""


# The argument of a KeyboardInterrupt that leaves all processes at the same step. (No class of its
# own: Python ends a script by SIGINT for KeyboardInterrupt itself only.)
SAVED = "the step is finished and saved"


class Group(NamedTuple):
    """What the environment says of a run's processes: how jax is told, who we are, for messages."""

    options: Mapping[str, Any]
    me: str
    where: str


_joined: Group | None = None


@contextmanager
def joined(wait: float = JOIN_SECONDS) -> Iterator[None]:
    """The body runs as one of the run's processes, if the environment says that there are several.

    To be entered before jax knows its devices. When the body ends, or Stopped,
    KeyboardInterrupt(SAVED) or a FloatingPointError leaves it, all processes have come to that
    point and part together; of the latter only the first one tells. Any other error ends this
    process at once with a line on stderr (exit code 2 for bad input, 75 when the others are lost,
    else 1): the others cannot go on without it, and it would wait for them. So does waiting longer
    than `wait` seconds for them to come.

    Raises InputError as `group_of` does.
    """
    global _joined
    _joined = group_of(os.environ)
    if _joined is None:
        yield
        return
    _keep_stdout_for_results()
    try:
        _start(_joined, wait)
        yield
    except BaseException as error:
        alike = isinstance(error, Stopped | FloatingPointError) or error.args == (SAVED,)
        if not alike:
            _end(error, _joined)
        jax.distributed.shutdown()
        if jax.process_index() and isinstance(error, FloatingPointError):
            raise SystemExit(1) from None
        raise
    else:
        jax.distributed.shutdown()
    finally:
        _joined = None


@contextmanager
def stoppable(code: int) -> Iterator[None]:
    """In the body SIGTERM ends the process at once with `code`, but for the steps of a run.

    These stop as `streamjax.train.train` says; before and after them there is nothing to save.
    Without effect outside the main thread, which alone hears signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        _say("stopped with nothing to save: the same command goes on")
        os._exit(code)

    # A handler waits for Python's turn, minutes while peers are awaited or a program is compiled;
    # the byte that the signal puts into a pipe is read at once.
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)

    def listen() -> None:
        while heard := os.read(ears, 64):
            if signal.SIGTERM in heard and signal.getsignal(signal.SIGTERM) is stop:
                stop()
        os.close(ears)

    threading.Thread(target=listen, daemon=True).start()
    before = signal.signal(signal.SIGTERM, stop), signal.set_wakeup_fd(mouth)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGTERM, before[0] or signal.SIG_DFL)
        os.close(mouth)


def group_of(env: Mapping[str, str]) -> Group | None:
    """The processes that the environment speaks of; None for a process that is alone.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID name
    them; Slurm's steps and GKE's TPU slices are recognised, and JAX_NUM_PROCESSES=auto leaves the
    whole search to jax.distributed.initialize(), as a TPU VM wants it.

    Raises InputError when one of the three variables is missing or is not of its form.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, rank = (env.get(name) for name in names)
    if count == "auto":
        return Group({}, "this process", address or "the coordinator that jax looks up")
    if count is not None or rank is not None:
        missing = [name for name in names if not env.get(name)]
        if missing:
            raise InputError(f"{' and '.join(missing)} not set, wanted all of {', '.join(names)}")
        for name, value in ((names[1], count), (names[2], rank)):
            if not f"{value}".isdecimal():
                raise InputError(f"{name}={value!r}, wanted a number")
        if not f"{address}".rpartition(":")[2].isdecimal():
            raise InputError(f"{names[0]}={address!r}, wanted host:port of process 0")
        options: dict[str, Any] = {
            "coordinator_address": address,
            "num_processes": int(f"{count}"),
            "process_id": int(f"{rank}"),
            # Without this jax would still ask the cluster for the devices that are ours.
            "cluster_detection_method": "deactivate",
        }
        if options["process_id"] >= options["num_processes"]:
            raise InputError(f"JAX_PROCESS_ID={rank}, wanted less than JAX_NUM_PROCESSES={count}")
        return Group(options, f"process {rank} of {count}", f"{address}") if count != "1" else None
    # The step's nodes: a shell inside of an allocation has the other variables too.
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        me = f"process {env['SLURM_PROCID']} of {env['SLURM_NTASKS']}"
        return Group({}, me, f"the first of Slurm's nodes {env['SLURM_STEP_NODELIST']}")
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return Group({}, f"worker {env.get('TPU_WORKER_ID')}", f"the first of the hosts {hosts}")
    return None


def in_turn(make: Callable[[], Any]) -> Any:
    """`make()` by the first process, then by the others: it may write files that they find."""
    if _joined is None or jax.process_count() == 1:
        return make()
    if jax.process_index() == 0:
        made = make()
        multihost_utils.sync_global_devices("the first has made it")
        return made
    multihost_utils.sync_global_devices("the first has made it")
    return make()


def together(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def none_alone() -> Iterator[None]:
    """An error in the body ends this process at once, as in `joined`, if it is one of several.

    For bodies whose callers would first wait for the others, such as checkpoints being closed. An
    error that all processes meet alike (FloatingPointError) goes the usual way.
    """
    try:
        yield
    except FloatingPointError:
        raise
    except Exception as error:
        if _joined is None:
            raise
        _end(error, _joined)


def agreed(caught: Callable[[], int | None]) -> Callable[[], int | None]:
    """`caught` (which signal came, if any) as all processes see it, to be asked once a step.

    Of several processes each adds its own to a largest-of-all that is read at the next call, when
    the step that it followed has ended anyway: so all learn of a signal to any of them at the same
    step, a step late, at the price of a 4-byte collective.

    Raises InputError when jax runs on several processes that were not joined.
    """
    # jax's own preemption notice is not used: Orbax, which asks it too when a save ends, may set
    # its count of steps back, and it knows nothing of Ctrl-C.
    if jax.process_count() == 1:
        return caught
    if not jax.distributed.is_initialized():
        raise InputError(
            f"{jax.process_count()} processes share these devices, but they were not joined: set "
            f"JAX_NUM_PROCESSES=auto"
        )
    mesh = Mesh(np.array(jax.devices()), ("all",))
    mine = NamedSharding(mesh, PartitionSpec("all"))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    asked: list[jax.Array] = []

    def all_caught() -> int | None:
        here = np.full(jax.local_device_count(), caught() or 0, np.int32)
        asked.append(largest(jax.make_array_from_process_local_data(mine, here)))
        return int(asked.pop(0)) or None if len(asked) > 1 else None

    return all_caught


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch this process loads: (i, n) for the i-th of n equal ones.

    Processes whose devices hold the same rows (they share a tensor or context axis) load the same
    share. Raises InputError when the devices of a process hold no such share.
    """
    ways = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    rows = NamedSharding(mesh, PartitionSpec(RULES["batch"])).devices_indices_map((ways,))
    held: dict[int, set[int]] = {}
    for device, (index,) in rows.items():
        held.setdefault(device.process_index, set()).update(range(*index.indices(ways)))
    return share_of(held, ways, jax.process_index())


def share_of(held: Mapping[int, Set[int]], ways: int, me: int) -> tuple[int, int]:
    """`data_shard` for process `me`, from which of a batch's `ways` parts each process holds.

    Raises InputError as `data_shard` does.
    """
    if me not in held:
        raise InputError(f"the mesh holds no device of process {me}: make it larger")
    shares = sorted({tuple(sorted(parts)) for parts in held.values()})
    if any(len(share) * len(shares) != ways for share in shares):
        raise InputError(
            f"the {ways} parts of a batch (mesh data*fsdp) do not divide over {len(held)} "
            f"processes: wanted a multiple or a divisor of their number"
        )
    return shares.index(tuple(sorted(held[me]))), len(shares)


def _start(group: Group, wait: float) -> None:
    """jax.distributed.initialize, with one line where jax would abort with a stack."""

    def late() -> None:
        _say(
            f"{group.me} waited {wait:g} s for all the others at {group.where}, in vain: look "
            f"whether every one of them runs and reaches that address"
        )
        os._exit(1)

    if group.options.get("process_id") == 0:
        _port_is_free(group.where)
    timer = threading.Timer(wait, late)
    timer.daemon = True
    timer.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            **group.options,
            initialization_timeout=int(wait) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    finally:
        timer.cancel()


def _keep_stdout_for_results() -> None:
    """What libraries below Python print there (gloo, whenever it connects) goes to stderr."""
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)
    sys.stdout = results


def _port_is_free(address: str) -> None:
    """Raises InputError where jax's coordinator would crash for want of its port."""
    port = address.rpartition(":")[2]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"{address}: cannot wait there for the others ({error})") from None


def _end(error: BaseException, group: Group) -> None:
    """Ends this process with a line and without the goodbye that waits for the others."""
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    code = error.code if isinstance(error, SystemExit) else 1
    if isinstance(error, InputError | OSError):
        _say(f"{group.me}: {error}")
        code = 2
    elif isinstance(error, RunError):
        _say(f"{group.me}: {error}")
    elif isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in told:
        _say(f"{group.me}: lost the others ({told}): what the first to die said tells why")
        code = OTHERS_LOST
    elif isinstance(error, Exception):
        traceback.print_exception(error)
        _say(f"{group.me}: {told}")
    sys.stdout.flush()
    if group.me.startswith("process 0 "):
        time.sleep(1)  # the others lose their coordinator with us: let them say the same first
    os._exit(code if isinstance(code, int) else 1)


def _say(line: str) -> None:
    print("streamjax:", " ".join(line.split()), file=sys.stderr, flush=True)
