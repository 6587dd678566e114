"""One run as several processes on this host, talking over loopback: `streamjax train`, N times.

    python launch/local.py --processes 2 --devices 4 RECIPE [key=value ...] [--run FOLDER]

Everything from RECIPE on goes to `streamjax train`. With --devices each process has so many fake
CPU devices; without, the host's GPUs are divided among the processes (CUDA_VISIBLE_DEVICES where it
is set, else all that nvidia-smi lists), or each has its one CPU device where there are none.

Assumes: streamjax is installed for the Python that runs this; ends with it (Linux).

What the processes say comes to stderr with their number in front; the first one's results to
stdout as they are. Signals are passed on to all of them (SIGTERM and Ctrl-C: finish the step and
save). When one dies, the others are ended, and one line tells it. Exit code: 0, or that of the
first one to fail (128 + the signal's number where it was killed).
"""

import argparse
import contextlib
import ctypes
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

# So long the others may take to end by themselves after one has failed: most often they fail alike.
GRACE_SECONDS = 3.0
# A line is held for so long before it is printed: what the others say when one has died comes
# before the news of its death, and explains nothing.
HOLD_SECONDS = 0.3
# What gloo says whenever it connects: several threads at once, so in pieces.
GLOO = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected|peer ranks is :|\d|\s"
)


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
        parser.error(f"{len(_gpus())} GPUs do not divide over {given.processes} processes")
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


class Line(NamedTuple):
    """A line that process `rank` wrote, to stdout (`results`) or to stderr."""

    time: float
    rank: int
    results: bool
    text: str


class Host:
    """The processes of a run, their output and their ends."""

    def __init__(self, command: Sequence[str], shares: Sequence[dict[str, str]]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.lines: queue.Queue[Line | None] = queue.Queue()  # None: a process has ended
        self.processes: list[subprocess.Popen] = []
        self.failed: int | None = None  # the first to fail
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._send(number))
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

    def run(self) -> int:
        """Waits for all of them and returns the exit code."""
        readers = [
            threading.Thread(target=self._read, args=(rank, results), daemon=True)
            for rank in range(len(self.processes))
            for results in (True, False)
        ]
        for thread in readers:
            thread.start()
        for process in self.processes:
            threading.Thread(target=self._wait, args=(process,), daemon=True).start()
        held: deque[Line] = deque()
        end = None  # when patience with the others ends
        while any(process.poll() is None for process in self.processes):
            with contextlib.suppress(queue.Empty):
                line = self.lines.get(timeout=HOLD_SECONDS / 3)
                held.extend([line] if line else [])
            if self.failed is None and self._any_failed():
                end = time.monotonic() + (0 if self._killed() else GRACE_SECONDS)
            while self.failed is None and held and held[0].time < time.monotonic() - HOLD_SECONDS:
                _print(held.popleft())
            if end is not None and time.monotonic() >= end:
                self._send(signal.SIGKILL)
                end = None
        for thread in readers:
            thread.join(timeout=1)  # a grandchild may hold the pipe
        self._any_failed()
        while not self.lines.empty():
            line = self.lines.get()
            held.extend([line] if line else [])
        for line in held:
            # Who ended with the same code has its own to say; the others speak of the first's end.
            alike = not self._killed() and self._ended(line.rank) == self._ended(self.failed or 0)
            if line.rank == self.failed or self.failed is None or alike:
                _print(line)
        return self._code()

    def _any_failed(self) -> bool:
        if self.failed is None:
            ranks = range(len(self.processes))
            self.failed = next((rank for rank in ranks if self._ended(rank)), None)
        return self.failed is not None

    def _ended(self, rank: int) -> int | None:
        return self.processes[rank].poll()

    def _killed(self) -> bool:
        return self.failed is not None and (self._ended(self.failed) or 0) < 0

    def _code(self) -> int:
        if self.failed is None:
            return 0
        code = self._ended(self.failed) or 0
        if self._killed():
            _say(
                f"process {self.failed} was killed by {signal.Signals(-code).name}, the others "
                f"were ended: the same command goes on from the newest checkpoint"
            )
        return 128 - code if code < 0 else code

    def _read(self, rank: int, results: bool) -> None:
        process = self.processes[rank]
        for text in process.stdout if results else process.stderr:
            self.lines.put(Line(time.monotonic(), rank, results, text))

    def _wait(self, process: subprocess.Popen) -> None:
        process.wait()
        self.lines.put(None)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)  # does nothing to one that has ended


def _print(line: Line) -> None:
    if not GLOO.sub("", line.text):
        return
    if line.rank == 0 and line.results:
        print(line.text, end="", flush=True)
    else:
        print(f"[{line.rank}] {line.text}", end="", file=sys.stderr, flush=True)


def _die_with_parent() -> None:
    set_parent_death_signal = 1  # prctl(2); subprocess has no word for it
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _say(line: str) -> None:
    print("local.py:", line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
