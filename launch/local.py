"""One run as several processes on this host, talking over loopback: `streamjax train`, N times.

    python launch/local.py --processes 2 --devices 4 RECIPE [key=value ...] [--run FOLDER]

Everything from RECIPE on goes to `streamjax train`. With --devices each process has so many fake
CPU devices; without, the host's GPUs are divided among the processes (CUDA_VISIBLE_DEVICES where it
is set, else all that nvidia-smi lists), or each has its one CPU device where there are none.

Assumes: streamjax is installed for the Python that runs this; ends with it (Linux).

What the processes say comes to stderr with their number in front; the first one's results to
stdout as they are. Signals are passed on to all of them (SIGTERM and Ctrl-C: finish the step, save).
When one dies, the others are ended and one line tells it. Exit code: 0, or that of the first one to
fail (128 + the signal's number where it was killed).
"""

import argparse
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

# So long the others may take to end by themselves after one has failed: they mostly say the same.
GRACE_SECONDS = 3.0


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="local.py", description="`streamjax train` as several processes on this host"
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices", type=int, metavar="N", help="fake CPU devices of each")
    parser.add_argument("recipe", metavar="RECIPE", help="and all that `streamjax train` takes")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.processes < 1:
        parser.error(f"--processes {given.processes}, wanted 1 or more")
    shares = device_shares(given.processes, given.devices)
    if shares is None:
        parser.error(f"{_gpus()} GPUs do not divide over {given.processes} processes")
    command = [sys.executable, "-m", "streamjax", "train", given.recipe, *given.rest]
    return Host(command, shares).run()


def device_shares(processes: int, devices: int | None) -> list[dict[str, str]] | None:
    """What the environment of each process says of its devices; None when GPUs do not divide."""
    if devices is not None:
        return [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}] * processes
    gpus = _gpus()
    if not gpus:
        return [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}] * processes
    if len(gpus) % processes:
        return None
    each = len(gpus) // processes
    parts = [gpus[i * each : (i + 1) * each] for i in range(processes)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i, _ in enumerate(told.stdout.splitlines())]


class Host:
    """The processes of a run, their output and their ends."""

    def __init__(self, command: Sequence[str], shares: Sequence[dict[str, str]]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        # One queue for lines, ends and signals, so that a death is told before what follows from it.
        self.events: queue.Queue = queue.Queue()
        self.processes: list[subprocess.Popen] = []
        for rank, share in enumerate(shares):
            own = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(len(shares)),
                "JAX_PROCESS_ID": str(rank),
                "PYTHONUNBUFFERED": "1",
            }
            process = subprocess.Popen(
                command,
                env={**os.environ, **share, **own},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # a terminal's Ctrl-C comes through us, and once
                preexec_fn=_die_with_parent,
            )
            self.processes.append(process)
        self.failed: int | None = None  # the first to fail

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._signal(number))
        readers = []
        for rank, process in enumerate(self.processes):
            for stream in (process.stdout, process.stderr):
                readers.append(threading.Thread(target=self._read, args=(rank, stream)))
            threading.Thread(target=self._wait, args=(rank,), daemon=True).start()
        for reader in readers:
            reader.daemon = True
            reader.start()
        running, deadline = set(range(len(self.processes))), None
        while running:
            try:
                rank, stream, line = self.events.get(timeout=0.2)
            except queue.Empty:
                rank, stream, line = None, None, ""
            # A line may follow from a death that is not in the queue yet.
            if self.failed is None:
                self.failed = next(
                    (r for r in sorted(running) if (self.processes[r].poll() or 0) != 0), None
                )
                if self.failed is not None:
                    deadline = time.monotonic() + self._grace()
            if rank is not None and stream is None:
                running.discard(rank)
            elif rank is not None and self.failed in (None, rank):
                self._print(rank, stream, line)
            if deadline is not None and time.monotonic() > deadline:
                self._send(signal.SIGKILL)
                deadline = None
        for reader in readers:
            reader.join(timeout=1)
        while not self.events.empty():
            rank, stream, line = self.events.get()
            if stream is not None and self.failed in (None, rank):
                self._print(rank, stream, line)
        return self._code()

    def _grace(self) -> float:
        """None for the others of one that was killed: they can only wait, or fail after it."""
        return 0.0 if self.processes[self.failed].returncode < 0 else GRACE_SECONDS

    def _code(self) -> int:
        if self.failed is None:
            return 0
        code = self.processes[self.failed].returncode
        if code < 0:
            name = signal.Signals(-code).name
            _say(
                f"process {self.failed} was killed by {name}, the others were ended: the same "
                f"command goes on from the newest checkpoint"
            )
        return 128 - code if code < 0 else code

    def _read(self, rank: int, stream) -> None:
        for line in stream:
            self.events.put((rank, stream, line))

    def _wait(self, rank: int) -> None:
        self.processes[rank].wait()
        self.events.put((rank, None, ""))

    def _print(self, rank: int, stream, line: str) -> None:
        if line.startswith("[Gloo] Rank "):  # what gloo says on stdout when it is connected
            return
        if rank == 0 and stream is self.processes[0].stdout:
            print(line, end="", flush=True)
        else:
            print(f"[{rank}] {line}", end="", file=sys.stderr, flush=True)

    def _signal(self, number: int) -> None:
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)  # does nothing to one that has ended


def _die_with_parent() -> None:
    set_parent_death_signal = 1  # prctl(2); subprocess has no word for it
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _say(line: str) -> None:
    print("local.py:", line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
