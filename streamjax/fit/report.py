"""What `fit` found: plain values, the roofline's prediction, and both as text."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from streamjax.fit.hlo import Collective
from streamjax.fit.roofline import Load, Prediction, grown, link_bandwidth, predict
from streamjax.fit.topology import Topology, topology

GIB = 2**30
SCALING = (16, 256)  # devices between which weak scaling is told
CAVEAT_GPU = (
    "partitioned by XLA's CPU compiler: collectives and state are those of N devices, temporaries "
    "and memory traffic are the CPU's (no cuDNN attention, other fusions); read them as bounds"
)
CAVEAT_HURRIED = (
    "compiled in a hurry: another schedule, fewer overlapped collectives; "
    "--thorough has the true one"
)


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program; sizes are bytes on each device.

    needs: arguments, results that take no argument's place, temporaries, code, and `resident` (what
    lies there beside: the moments, while gradients are added up). activations: what loops stack up
    for the backward pass, a part of the temporaries. flops and useful: operations of all devices,
    with and without those worked out twice. why: the compiler's words when it does not fit.
    """

    name: str
    times: float
    fits: bool
    needs: float
    of: float
    why: str
    bytes: Mapping[str, int]
    flops: float
    useful: float
    load: Load
    seconds: float
    turns: int
    unknown_loops: int


@dataclasses.dataclass(frozen=True)
class Report:
    """A recipe on a pod. `fits` is the verdict; `prediction` None where a program does not fit.

    held: bytes on each device that outlast a step, by kind. collectives: bytes that each device
    sends in a step, by kind and mesh axes. scaling: chips -> predicted seconds of a step, all
    overlapped and nothing overlapped, with the same rows on every device. largest: what the search
    found.
    """

    recipe: str
    mode: str
    where: Topology
    mesh: Mapping[str, int]
    rows: int
    length: int | None
    tokens: int
    accumulate: int
    held: Mapping[str, int]
    programs: tuple[Program, ...]
    bandwidth: Mapping[tuple[str, ...], float]
    largest: Mapping[str, Any] | None
    prediction: Prediction | None
    scaling: Mapping[int, tuple[float, float]]
    caveats: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float
    cpu_seconds: float
    rss: int

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)

    @property
    def load(self) -> Load:
        """Of a whole step on one device."""
        return sum((p.load.times(p.times) for p in self.programs), Load(0.0, 0.0, 0.0, ()))

    @property
    def collectives(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for c in self.load.collectives:
            key = c.kind, "+".join(c.axes) or "none"
            found[key] = found.get(key, 0.0) + c.bytes * c.times
        return found

    @property
    def intensity(self) -> float:
        """Operations for each byte of main memory."""
        return self.load.flops / max(self.load.traffic, 1.0)

    @property
    def efficiency(self) -> tuple[float, float] | None:
        """Weak scaling between the chips of SCALING: all overlapped, nothing overlapped."""
        if any(chips not in self.scaling for chips in SCALING):
            return None
        (a, b), (c, d) = (self.scaling[chips] for chips in SCALING)
        return a / c, b / d

    def json(self) -> dict[str, Any]:
        """Everything as plain values, for scripts."""
        load = self.load
        told = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("where", "programs", "bandwidth", "prediction", "scaling")
        }
        return told | {
            "topology": self.where.name,
            "devices": self.where.devices,
            "chip": dataclasses.asdict(self.where.chip),
            "fits": self.fits,
            "mesh": dict(self.mesh),
            "held": dict(self.held),
            "caveats": list(self.caveats),
            "programs": [
                {f.name: getattr(p, f.name) for f in dataclasses.fields(p) if f.name != "load"}
                | {"needs": None if math.isnan(p.needs) else p.needs}
                | {"of": None if math.isnan(p.of) else p.of}
                | {"traffic": p.load.traffic, "collectives": len(p.load.collectives)}
                for p in self.programs
            ],
            "flops": load.flops * self.where.devices,
            "useful_flops": load.useful * self.where.devices,
            "traffic": load.traffic,
            "intensity": self.intensity,
            "collectives": [
                {"kind": kind, "axes": axes, "bytes": size}
                for (kind, axes), size in self.collectives.items()
            ],
            "prediction": None if self.prediction is None else dataclasses.asdict(self.prediction),
            "scaling": {str(n): seconds for n, seconds in self.scaling.items()},
            "efficiency": self.efficiency,
        }

    def text(self) -> str:
        """The report for people."""
        chip = self.where.chip
        mesh = " x ".join(f"{axis} {n}" for axis, n in self.mesh.items() if n > 1) or "one device"
        what = (
            f"{self.rows} streams, a turn against {self.length:,} tokens"
            if self.mode == "stream"
            else f"{self.rows} rows at a time"
            + (f", {self.accumulate} times in a step" if self.accumulate > 1 else "")
            + (f", {self.length:,} tokens each" if self.length else "")
        )
        lines = [
            f"{self.recipe} on {self.where.name} ({self.where.devices} x {chip.kind}), {mesh}",
            what,
            "",
            *self._verdict(),
            "",
            *self._memory(),
        ]
        if self.prediction is not None:
            lines += ["", *self._speed(self.prediction)]
        if self.largest is not None:
            lines += ["", self._largest(self.largest)]
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines += [
            "",
            f"compiled with {versions} in {self.seconds:.0f} s ({self.cpu_seconds:.0f} s of one "
            f"core), at most {self.rss / GIB:.1f} GiB",
            *(f"note: {caveat}" for caveat in self.caveats),
        ]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        wrong = [p for p in self.programs if not p.fits]
        if wrong:
            p = wrong[0]
            needs = "more than there is" if math.isnan(p.needs) else f"{_gib(p.needs)}"
            of = self.where.chip.memory if math.isnan(p.of) else p.of
            said = f" ({p.why})" if p.why else ""
            return [f"does not fit: {p.name} needs {needs} of {_gib(of)} on each device{said}"]
        most = max(self.programs, key=lambda p: p.needs)
        return [f"fits: {most.name} needs {_gib(most.needs)} of {_gib(most.of)} on each device"]

    def _memory(self) -> list[str]:
        rows: list[tuple[str, ...]] = [("bytes on each device", *(p.name for p in self.programs))]
        for kind, size in self.held.items():
            rows.append((kind, *(_gib(size) for _ in self.programs)))
        names = {
            "arguments": "arguments", "outputs": "results", "aliased": "... in arguments' place",
            "temporaries": "temporaries", "activations": "... kept for backward", "code": "code",
        }  # fmt: skip
        for key, told in names.items():
            cells = [_gib(p.bytes[key]) if p.bytes else "-" for p in self.programs]
            rows.append((told, *cells))
        rows.append(("needed", *(_gib(p.needs) for p in self.programs)))
        return _table(rows)

    def _speed(self, p: Prediction) -> list[str]:
        load, chip, n = self.load, self.where.chip, self.where.devices
        again = load.flops / load.useful - 1 if load.useful else 0.0
        lines = [
            f"operations      {load.useful * n:.3g} useful, {load.flops * n:.3g} run "
            f"({again:.0%} worked out again or masked)",
            f"memory traffic  {load.traffic / 1e9:.1f} GB on each device, {self.intensity:.0f} "
            f"operations a byte (the chip balances at {chip.flops / chip.bandwidth:.0f})",
        ]
        for (kind, axes), size in sorted(self.collectives.items(), key=lambda item: -item[1]):
            speed = self.bandwidth.get(tuple(axes.split("+")), 0.0)
            lines.append(
                f"{kind:<18} {axes:<16} {size / 1e9:>9.2f} GB sent by each device"
                + (f", at {speed / 1e9:.0f} GB/s" if speed else "")
            )
        links = ", ".join(f"{axes} {s:.3g}" for axes, s in p.links.items()) or "none"
        lines += [
            f"seconds         computing {p.compute:.3g}, memory {p.memory:.3g}, links {links}",
            f"a step          {p.step:.3g} s where all overlaps (bound by {p.bound}), "
            f"{p.unlapped:.3g} s where no link does",
            f"MFU             {p.mfu:.1%} and {p.mfu * p.step / p.unlapped:.1%}"
            + (f", {self.tokens / p.step:,.0f} tokens/s at best" if self.tokens else ""),
        ]
        if self.efficiency is not None:
            best, worst = self.efficiency
            lines.append(
                f"weak scaling    {SCALING[0]} -> {SCALING[1]} devices: {best:.1%} overlapped, "
                f"{worst:.1%} not"
            )
        return [
            *lines,
            f"roofline        {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s, "
            f"{chip.link / 1e9:.0f} GB/s a link and way; {chip.source}",
        ]

    def _largest(self, found: Mapping[str, Any]) -> str:
        unit = "streams" if self.mode == "stream" else "rows at a time"
        if not found["rows"]:
            return f"no number of {unit} was found that fits (tried down to {found['fails']})"
        limit = "" if found["exact"] else " or more: the compiles were used up"
        if found["exact"] and found["fails"] is None:
            limit = ", as many as a step has"
        return f"largest: {found['rows']} {unit} ({_gib(found['needs'])} on each device){limit}"


def report_of(found: Mapping[str, Any], versions: Mapping[str, str]) -> Report:
    """The report of the child's answer."""
    where = topology(found["topology"])
    bandwidth = {tuple(axes): speed for axes, speed in found["bandwidth"]}
    programs = tuple(_program(p, where) for p in found["programs"])
    report = Report(
        recipe=found["recipe"], mode=found["mode"], where=where, mesh=found["mesh"],
        rows=found["rows"], length=found["length"], tokens=found["tokens"],
        accumulate=found["accumulate"], held=found["held"], programs=programs,
        bandwidth=bandwidth, largest=found["largest"], prediction=None, scaling={},
        caveats=_caveats(found, where, programs), versions=versions, seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"], rss=found["rss"],
    )  # fmt: skip
    if any(not p.bytes for p in programs):  # the compiler stopped at one
        return report
    return dataclasses.replace(
        report, prediction=predict(report.load, where, bandwidth), scaling=_scaling(report)
    )


def _program(p: Mapping[str, Any], where: Topology) -> Program:
    collectives = tuple(
        Collective(kind, tuple(axes), group, float(size), float(times))
        for kind, axes, group, size, times in p.get("collectives", ())
    )
    n = where.devices
    load = Load(p["executed"] / n, p["useful"] / n, float(p.get("traffic", 0.0)), collectives)
    return Program(
        name=p["name"], times=float(p["times"]), fits=p["fits"], needs=float(p["needs"]),
        of=float(p["of"]), why=p["why"], bytes=p.get("bytes", {}), flops=float(p["executed"]),
        useful=float(p["useful"]), load=load, seconds=p["seconds"], turns=p["turns"],
        unknown_loops=p.get("unknown_loops", 0),
    )  # fmt: skip


def _caveats(
    found: Mapping[str, Any], where: Topology, programs: tuple[Program, ...]
) -> tuple[str, ...]:
    told = []
    if not where.tpu:
        told.append(CAVEAT_GPU)
    if found["hurried"]:
        told.append(CAVEAT_HURRIED)
    if loops := sum(p.unknown_loops for p in programs):
        turns = ", ".join(sorted({str(p.turns) for p in programs if p.unknown_loops}))
        told.append(
            f"{loops} loops turn as often as the data say, taken to be {turns} times each "
            "(all words labelled; a full cache)"
        )
    if found["mode"] == "train" and found["length"]:
        told.append(
            "useful operations take a row as one dialogue, and every token that is no picture's as "
            "labelled"
        )
    return tuple(told)


def _scaling(report: Report) -> dict[int, tuple[float, float]]:
    """Chips -> seconds of a step, rows on each device as they are: fsdp grows, or data where there
    is no fsdp; tensor and context stay."""
    mesh, where = report.mesh, report.where
    axis = "fsdp" if mesh["fsdp"] > 1 else "data"
    rest = math.prod(mesh.values()) // mesh[axis]
    if mesh[axis] < 2:
        return {}
    found = {}
    for chips in SCALING:
        if chips % rest or chips // rest < 2:
            continue
        to = chips // rest
        bandwidth = dict(report.bandwidth)
        if not where.tpu:  # beyond a node the network counts
            larger = {**mesh, axis: to}
            bandwidth = {axes: link_bandwidth(axes, larger, None, where) for axes in bandwidth}
        p = predict(grown(report.load, mesh, axis, to), where, bandwidth)
        found[chips] = (p.step, p.unlapped)
    return found


def _gib(size: int | float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
