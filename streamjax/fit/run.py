"""`fit`: a recipe compiled for a pod that is not there, in a process of its own."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamjax.errors import InputError
from streamjax.fit.report import Report, report_of
from streamjax.fit.topology import check_libtpu, environment, topology

TURN = 148  # tokens of a turn: a frame of 128 and its words


class CompileError(RuntimeError):
    """The compiler failed; the message is its own."""


def fit(
    recipe: str | Path,
    pod: str,
    *,
    overrides: Sequence[str] = (),
    stream: bool = False,
    capacity: int = 16384,
    search: int = 4,
    thorough: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compiles the train step of a recipe for a pod, and says whether it fits and how fast it is.

    recipe and overrides: as `train` takes them; a recipe whose `config` has a parameter `shapes` is
    built in shapes alone, without weights and data. pod: a name of `topology.topology`. stream: a
    turn of a streaming session instead, with a cache of `capacity` tokens. search: how many more
    compiles may go into finding the largest batch (0: none). thorough: for TPUs, compile as a run
    on them would: it takes many minutes, where a hurried compile gives another schedule and nearly
    the same memory in two or three. progress: is told what is compiled.

    Raises InputError for a name, recipe, mesh or batch that is wrong, and where libtpu is missing
    or not of the version that this jax wants; CompileError when the compiler fails.
    """
    where = topology(pod)
    if where.tpu:
        check_libtpu()
    request = {
        "recipe": str(recipe), "topology": where.name, "overrides": list(overrides),
        "stream": stream, "capacity": capacity, "turn": TURN, "search": search,
        "thorough": thorough,
    }  # fmt: skip
    return report_of(_asked(request, environment(where), progress), _versions(where.tpu))


def _asked(
    request: dict[str, Any], variables: dict[str, str], progress: Callable[[str], None]
) -> dict[str, Any]:
    """The child's answer."""
    package = Path(__file__).parent.parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    around = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "streamjax.fit.child", json.dumps(request)]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            command, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            text=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            for line in child.stdout:
                message = _message(line)
                if "progress" in message:
                    progress(message["progress"])
                elif "wrong" in message:
                    raise InputError(message["wrong"])
                elif "done" in message:
                    return message["done"]
            child.wait()
            said.seek(0)
            raise CompileError(_last_words(said.read(), child.returncode))
        finally:
            child.terminate()
            child.wait()
            child.stdin.close()
            child.stdout.close()


def _message(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # something that a library printed
        return {}
    return found if isinstance(found, dict) else {}


def _last_words(text: str, code: int) -> str:
    """The line of an error that says what it is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if ("Error" in line or "Check failed" in line)]
    last = (told or lines or ["it said nothing"])[-1]
    return f"the compiler's process ended with {code}: {last[:500]}"


def _versions(tpu: bool) -> dict[str, str]:
    names = ("jax", "libtpu") if tpu else ("jax",)
    return {name: importlib.metadata.version(name) for name in names}
