"""The process in which `streamjax fit` compiles: `python -m streamjax.fit.child REQUEST`.

libtpu wants an environment of its own, says things on stderr that nobody can stop, may abort, and
keeps memory; so it never enters the process that asks. Lines of JSON on stdout: {"progress": ...}
while it works, and {"done": ...} or {"wrong": ...} at the end.
"""

import dataclasses
import json
import math
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

# Programs compiled in a hurry are searched with: a tenth of the time, and nearly the same memory.
HURRY = {"exec_time_optimization_effort": -1.0}
# In the place of GPUs: what the CPU's compiler would do to loops and registers changes no sizes.
UNRUN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def main(text: str) -> None:
    """Does what a request says; see `streamjax.fit.run` for its keys."""
    from streamjax.errors import InputError

    request = json.loads(text)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say({"done": answer(request)})
    except (InputError, FileNotFoundError) as error:
        say({"wrong": str(error)})


def _end_with_parent() -> None:
    """stdin is a pipe from the process that asked: it closes when that is gone, killed even."""
    os.read(0, 1)  # not through sys.stdin, whose lock the end of the interpreter wants
    os._exit(1)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain values: settings, programs, and what the search found."""
    from streamjax.fit.topology import devices_of, topology
    from streamjax.sharding import make_mesh

    begin = time.perf_counter()
    where = topology(request["topology"])
    config = load(request)
    devices = devices_of(where)
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    used = math.prod(mesh.shape.values())
    if used != where.devices:
        told = " ".join(f"mesh.{axis}={size}" for axis, size in mesh.shape.items())
        from streamjax.errors import InputError

        raise InputError(
            f"{told} uses {used} of the {where.devices} devices of {where.name}: wanted all, as by "
            f"mesh.data=-1"
        )
    work = Work(request, config, mesh, where)
    hurried = where.tpu and not request["thorough"]
    usual = UNRUN if not where.tpu else HURRY if hurried else {}
    case = work.case()
    programs = work.compiled(case, usual)
    result = {
        "recipe": config.name,
        "mode": "stream" if request["stream"] else "train",
        "topology": where.name,
        "mesh": dict(mesh.shape),
        "rows": case.rows,
        "length": work.length,
        "tokens": case.tokens,
        "accumulate": config.accumulate if not request["stream"] else 1,
        "hurried": hurried,
        "held": dict(case.held),
        "programs": programs,
        "bandwidth": bandwidths(programs, mesh, where),
    }
    result["largest"] = work.search(case, programs) if request["search"] else None
    result["seconds"] = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    result["rss"] = usage.ru_maxrss * 1024
    return result


def load(request: Mapping[str, Any]) -> Any:
    """The recipe, in shapes alone where it can be."""
    import inspect

    from streamjax.train.config import MeshConfig
    from streamjax.train.recipes import load_module, load_recipe

    make = getattr(load_module(request["recipe"]), "config", None)
    known = inspect.signature(make).parameters if make else {}
    given: dict[str, Any] = {"shapes": True} if "shapes" in known else {}
    config = load_recipe(request["recipe"], request["overrides"], **given)
    if request["stream"] and not any(t.startswith("mesh.") for t in request["overrides"]):
        config = dataclasses.replace(config, mesh=MeshConfig())  # every chip its own streams
    return config


class Work:
    """Compiles one recipe with any number of rows, and measures what comes out."""

    def __init__(self, request: Mapping[str, Any], config: Any, mesh: Any, where: Any):
        self.request, self.config, self.mesh, self.where = request, config, mesh, where
        self.length: int | None = None

    def case(self, rows: int | None = None) -> Any:
        """rows: of a micro-batch, or streams, over all devices; None as the recipe says."""
        from streamjax.fit import program

        if self.request["stream"]:
            ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            self.length = self.request["capacity"]
            return program.streaming(
                self.config, self.mesh, capacity=self.request["capacity"],
                tokens=self.request["turn"], streams=rows or ways,
            )  # fmt: skip
        config = self.config
        if rows is not None:
            config = with_rows(config, rows)
        if not isinstance(config.data, Mapping):
            self.length = getattr(config.data.pack, "length", None)
        return program.training(config, self.mesh)

    def compiled(self, case: Any, options: Mapping[str, Any], note: str = "") -> list[dict]:
        """Every program of a case, measured; stops at the first that does not fit."""
        found = []
        for program in case.programs:
            progress(f"compiling {program.name}{note}")
            found.append(self.measured(program, options))
            if not found[-1]["fits"]:
                break
        return found

    def measured(self, program: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        import jax

        from streamjax.fit import hlo
        from streamjax.fit.program import executed

        begin = time.perf_counter()
        with jax.set_mesh(self.mesh):
            traced = program.trace()
            told: dict[str, Any] = {
                "name": program.name,
                "times": program.times,
                "useful": program.useful,
                "executed": executed(traced.jaxpr.jaxpr, program.turns),
                "turns": program.turns,
                "resident": program.resident,
            }
            try:
                done = traced.lower().compile(compiler_options=dict(options) or None)
            except jax.errors.JaxRuntimeError as error:
                needs = out_of_memory(str(error))
                if needs is None:
                    raise
                return told | {
                    "fits": False, "needs": needs[0], "of": needs[1], "why": needs[2],
                    "seconds": time.perf_counter() - begin,
                }  # fmt: skip
        memory = done.memory_analysis()
        sizes = {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }
        needed = (
            sizes["arguments"] + sizes["outputs"] - sizes["aliased"] + sizes["temporaries"]
            + sizes["code"] + program.resident
        )  # fmt: skip
        reading = hlo.read(done.as_text() or "", dict(self.mesh.shape), turns=program.turns)
        sizes["activations"] = min(reading.stacked, sizes["temporaries"])
        return told | {
            "fits": needed <= self.where.chip.memory,
            "needs": needed,
            "of": self.where.chip.memory,
            "why": "",
            "bytes": sizes,
            "traffic": reading.traffic,
            "unknown_loops": reading.unknown_loops,
            "collectives": [dataclasses.astuple(c) for c in reading.collectives],
            "seconds": time.perf_counter() - begin,
        }

    def search(self, case: Any, programs: list[dict]) -> dict[str, Any]:
        """The most rows at a time that fit, by doubling and halving, in `search` compiles.

        They are compiled in a hurry; what that saves in memory is measured once, with the recipe's
        own rows, and added on.
        """
        limit = self.where.chip.memory
        unit = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        left, factor = self.request["search"], 1.0
        hurry = HURRY if self.where.tpu else UNRUN
        top = self._most()
        fits: dict[int, float] = {}  # rows -> bytes
        fails: set[int] = set()
        if programs[-1]["fits"]:
            fits[case.rows] = max(p["needs"] for p in programs)
        else:
            fails.add(case.rows)
        if self.where.tpu and self.request["thorough"] and fits:
            left -= 1
            again = self.compiled(case, hurry, f", {case.rows} rows in a hurry")
            if again[-1]["fits"]:
                factor = max(1.0, fits[case.rows] / max(p["needs"] for p in again))
        while left > 0:
            rows = next_rows(fits, fails, unit, top, limit)
            if rows is None:
                break
            left -= 1
            found = self.compiled(
                self.case(rows), hurry, f", {rows} rows" + " in a hurry" * self.where.tpu
            )
            needs = max(p["needs"] for p in found) * factor
            if found[-1]["fits"] and needs <= limit:
                fits[rows] = needs
            else:
                fails.add(rows)
        best = max(fits, default=0)
        return {
            "rows": best,
            "needs": fits.get(best, 0),
            "exact": not fits or next_rows(fits, fails, unit, top, limit) is None,
            "fails": min(fails, default=None),
            "most": top,
        }

    def _most(self) -> int:
        """More rows than the recipe has in a step are never wanted; streams are, up to 4096."""
        if self.request["stream"]:
            return 4096
        several = isinstance(self.config.data, Mapping)
        return self.config.batch_size * (8 if several else 1)


def with_rows(config: Any, rows: int) -> Any:
    """The recipe with so many rows at a time; a step of one task keeps about its rows, in fewer or
    more micro-batches."""
    if isinstance(config.data, Mapping):
        return dataclasses.replace(config, batch_size=rows)
    pieces = max(config.batch_size // rows, 1)
    return dataclasses.replace(config, batch_size=rows * pieces, accumulate=pieces)


def next_rows(
    fits: Mapping[int, float], fails: set[int], unit: int, top: int, limit: float
) -> int | None:
    """Which number of rows to try next, a multiple of `unit` up to `top`; None when it is known.

    Memory grows about linearly with rows: with two points that fit the line says where to look,
    with one the rows are doubled.
    """
    low, high = max(fits, default=0), min(fails, default=top + unit)
    if high - low <= unit:
        return None
    if low == 0:
        return max(unit, high // 2 // unit * unit)
    if len(fits) > 1:
        before = max(rows for rows in fits if rows < low)
        slope = (fits[low] - fits[before]) / (low - before)
        guess = low + int((limit - fits[low]) / max(slope, 1.0))
    else:
        guess = low * 2
    guess = guess // unit * unit
    return min(max(guess, low + unit), high - unit)


def bandwidths(programs: list[dict], mesh: Any, where: Any) -> list[tuple[list[str], float]]:
    """Bytes per second along every set of axes that some collective uses."""
    import numpy as np

    from streamjax.fit.roofline import link_bandwidth

    coords = None
    if where.tpu:
        coords = np.array([d.coords for d in mesh.devices.reshape(-1)])
    sets = {tuple(c[1]) for p in programs for c in p.get("collectives", ())}
    sizes = dict(mesh.shape)
    return [(list(axes), link_bandwidth(axes, sizes, coords, where)) for axes in sorted(sets)]


def out_of_memory(text: str) -> tuple[float, float, str] | None:
    """(needed, available, sentence) of a compiler's message; None when it says something else."""
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    patterns = (
        r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) (?:hbm|HBM)",
        r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
    )
    line = text.split("\n", 1)[0].removeprefix("RESOURCE_EXHAUSTED: ")
    for pattern in patterns:
        if found := re.search(pattern, text):
            return size_of(found[1]), size_of(found[2]), line[:200]
    return math.nan, math.nan, line[:200]


def size_of(text: str) -> float:
    """`15.75G` in bytes."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(text.rstrip("KMGT")) * units.get(text[-1], 1)


def progress(text: str) -> None:
    say({"progress": text})


def say(message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
