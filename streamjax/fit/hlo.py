"""What a compiled program does, read from its text: bytes over links and memory, what loops keep.

XLA's own counts take the body of a loop once. Here every instruction counts as often as the loops
around it turn; XLA writes that number beside a loop whose count it knows.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing, or whose work stands in the computations they call.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota", "async-start",
    "async-update", "async-done", "copy-done", "domain",
}  # fmt: skip
# Inside fusions: passed through on the way from a parameter to what reads a piece of it.
PASSING = {"bitcast", "copy", "convert", "reshape", "transpose"}


@dataclass(frozen=True)
class Shape:
    """One array of a type; `near` ones stand in memory on the chip, not in its main memory."""

    dtype: str
    dims: tuple[int, ...]
    near: bool = False

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * BITS.get(self.dtype, 8) // 8


@dataclass
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def called(self, key: str) -> list[str]:
        """The computations named by an attribute (`calls=%f`, `branch_computations={%a, %b}`)."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction | None:
        return next((i for i in self.instructions.values() if i.root), None)


@dataclass(frozen=True)
class Collective:
    """One collective: `group` devices along mesh `axes`, `times` in a run of the program.

    bytes: what each device sends every time, by the ring algorithm: (n - 1) / n of the whole array,
    twice for an all-reduce; a permute sends its operand to one neighbour.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: float
    times: float


@dataclass(frozen=True)
class Reading:
    """Of one run of a program on each device: its collectives, bytes to and from main memory, bytes
    that loops stack up for later (activations kept for the backward pass), and the number of loops
    whose turns are not known."""

    collectives: tuple[Collective, ...]
    traffic: float
    stacked: int
    unknown_loops: int


def read(text: str, mesh: dict[str, int], *, turns: int = 1) -> Reading:
    """Reads `compiled.as_text()` of a program partitioned over a mesh (axis -> size, in order).

    turns: of a loop whose number of them is known only when it runs.
    """
    computations, entry = parse(text)
    reader = _Reader(computations, mesh, turns)
    reader.visit(entry, 1.0)
    return Reading(tuple(reader.collectives), reader.traffic, reader.stacked, reader.unknown)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of its entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                current = computations[head[2]] = Computation(head[2])
                entry = head[2] if head[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            current = None  # a kernel's attributes may go over lines that begin with a brace too
        elif found := _instruction(line):
            current.instructions[found.name] = found
    if not entry:
        raise ValueError("the text has no ENTRY computation, wanted that of a compiled program")
    return computations, entry


def groups_of(attributes: str) -> np.ndarray | None:
    """Which devices speak with each other: int [groups, devices of each]; None where all do.

    In any of XLA's ways to write it: {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), and
    mesh['a'=2,'b'=2] {'b'}.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return np.array(
            [list(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)\}", pairs[1])]
        )
    found = re.search(r"replica_groups=(.*)", attributes)
    if not found:
        return None
    rest = found[1]
    if listed := re.match(r"\{((?:\{[\d,]*\},?)*)\}", rest):
        rows = [list(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(rows) if rows else None
    if tiled := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims = (tuple(map(int, part.split(","))) for part in tiled.groups()[:2])
        ids = np.arange(math.prod(dims)).reshape(dims)
        if tiled[3]:
            ids = ids.transpose(tuple(map(int, tiled[3].split(","))))
        return ids.reshape(shape)
    named = re.match(r"mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}", rest)
    if named:
        return _of_named_mesh(named[1], named[2], named[3])
    raise ValueError(f"replica_groups is written in a way that is not known: {rest[:80]}")


def axes_of(groups: np.ndarray | None, mesh: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of the groups differ."""
    sizes = tuple(mesh.values())
    if groups is None:
        return tuple(axis for axis, size in mesh.items() if size > 1)
    places = np.stack(np.unravel_index(groups, sizes))  # [axes, groups, members]
    moves = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, moved in zip(mesh, moves, strict=True) if moved)


@dataclass
class _Reader:
    computations: dict[str, Computation]
    mesh: dict[str, int]
    otherwise: int = 1
    collectives: list[Collective] = field(default_factory=list)
    traffic: float = 0.0
    stacked: int = 0
    unknown: int = 0

    def visit(self, name: str, times: float, turns: int = 0, fused: bool = False) -> None:
        """turns: of the loop whose body this is. fused: inside a fusion, which moves its ends
        only."""
        body = self.computations.get(name)
        if body is None:
            return
        for i in body.instructions.values():
            self._visit_one(i, body, times, turns, fused)

    def _visit_one(self, i: Instruction, body: Computation, times: float, turns: int, fused: bool):
        if i.opcode == "while":
            count = self._turns(i)
            self.unknown += count is None
            for inner in i.called("body"):
                self.visit(inner, times * (count or self.otherwise), count or 0, fused)
            return
        if i.opcode == "conditional":
            self._larger(i, times, turns, fused)
            return
        kind = i.opcode.removesuffix("-start")
        if kind in KINDS:
            self.collectives.append(self._collective(kind, i, body, times))
        if not fused:
            self.traffic += times * self._moved(i, body)
        if turns > 1 and not fused:
            self.stacked += self._stacked(i, turns)
        inside = fused or i.opcode in ("fusion", "custom-call")
        for inner in (*i.called("calls"), *i.called("called_computations")):
            self.visit(inner, times, turns, inside)
        if i.opcode == "call":
            for inner in i.called("to_apply"):
                self.visit(inner, times, turns, fused)

    def _larger(self, i: Instruction, times: float, turns: int, fused: bool) -> None:
        """Of the branches of a conditional the one that moves most."""
        names = [
            *i.called("branch_computations"), *i.called("true_computation"),
            *i.called("false_computation"),
        ]  # fmt: skip
        found = []
        for name in names:
            own = _Reader(self.computations, self.mesh, self.otherwise)
            own.visit(name, times, turns, fused)
            found.append(own)
        if not found:
            return
        most = max(found, key=lambda r: r.traffic + sum(c.bytes * c.times for c in r.collectives))
        self.collectives += most.collectives
        self.traffic += most.traffic
        self.stacked += most.stacked
        self.unknown += most.unknown

    def _turns(self, i: Instruction) -> int | None:
        if found := re.search(r'known_trip_count"?:\{"n":"(\d+)"', i.attributes):
            return int(found[1])
        # A loop from 0 up to a constant.
        condition = self.computations.get((i.called("condition") or [""])[0])
        if condition is None or condition.root is None or condition.root.opcode != "compare":
            return None
        limits = [
            int(value[1])
            for j in condition.instructions.values()
            if j.opcode == "constant" and (value := re.match(r"constant\((\d+)\)", j.attributes))
        ]
        return (
            limits[0] if len(limits) == 1 and "direction=LT" in condition.root.attributes else None
        )

    def _collective(self, kind: str, i: Instruction, body: Computation, times: float) -> Collective:
        groups = groups_of(i.attributes)
        axes = axes_of(groups, self.mesh)
        size = math.prod(self.mesh.values()) if groups is None else groups.shape[1]
        given = sum(j.bytes for j in self._operands(i, body))
        if kind == "collective-permute":
            return Collective(kind, axes, 2, float(given), times)
        whole = given * size if kind == "all-gather" else given
        share = (size - 1) / size * (2 if kind == "all-reduce" else 1)
        return Collective(kind, axes, size, whole * share, times)

    def _operands(self, i: Instruction, body: Computation) -> list[Instruction]:
        return [body.instructions[n] for n in i.operands if n in body.instructions]

    def _moved(self, i: Instruction, body: Computation) -> float:
        """Bytes that one instruction reads from and writes to main memory."""
        if i.opcode in FREE or i.opcode.endswith("-done"):
            return 0.0
        inputs = self._operands(i, body)
        if i.opcode in ("copy-start", "slice-start"):
            return _far(i.shapes[:1]) + sum(_far(j.shapes) for j in inputs[:1])
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return 2.0 * _far(i.shapes)
        if i.opcode == "dynamic-update-slice":
            return 2.0 * _far(inputs[1].shapes) if len(inputs) > 1 else 0.0
        if i.opcode.removesuffix("-start") in KINDS:
            return sum(_far(j.shapes) for j in inputs) * 2.0
        fusion = self.computations.get((i.called("calls") or [""])[0])
        if i.opcode == "fusion" and fusion is not None:
            return _fusion_traffic(i, fusion, inputs)
        return float(_far(i.shapes) + sum(_far(j.shapes) for j in inputs))

    def _stacked(self, i: Instruction, turns: int) -> int:
        """The whole of an array that a loop of so many turns fills, one row a turn."""
        made = [i]
        if i.opcode == "fusion":
            fusion = self.computations.get((i.called("calls") or [""])[0])
            made = [] if fusion is None else _results(fusion)
        return sum(
            shape.bytes
            for shape, by in zip(i.shapes, made, strict=False)
            if by.opcode == "dynamic-update-slice" and shape.dims[:1] == (turns,)
        )


def _far(shapes: Sequence[Shape]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.near)


def _fusion_traffic(i: Instruction, fusion: Computation, inputs: Sequence[Instruction]) -> float:
    """A fusion reads its operands, or the slices that it takes of them, and writes its results, or
    the slice that it puts into one."""
    parameters = {
        int(p.attributes.partition("(")[2].partition(")")[0]): p
        for p in fusion.instructions.values()
        if p.opcode == "parameter"
    }
    updated = set()
    total = 0.0
    made = _results(fusion)
    if len(made) != len(i.shapes):
        made = [i] * len(i.shapes)
    for shape, last in zip(i.shapes, made, strict=True):
        if last.opcode != "dynamic-update-slice" or len(last.operands) < 2:
            total += _far([shape])
            continue
        piece, target = (fusion.instructions.get(last.operands[n]) for n in (1, 0))
        if target is not None:
            updated.add(_behind(target, fusion).name)
        total += 0 if piece is None or shape.near else piece.bytes
    for number, operand in enumerate(inputs):
        whole = _far(operand.shapes)
        parameter = parameters.get(number)
        if not whole or parameter is None or parameter.name in updated:
            continue
        pieces = [r.bytes for r in _readers(parameter.name, fusion)]
        sliced = all(
            r.opcode in ("dynamic-slice", "slice", "gather")
            for r in _readers(parameter.name, fusion)
        )
        total += min(whole, sum(pieces)) if pieces and sliced else whole
    return total


def _readers(name: str, fusion: Computation) -> Iterator[Instruction]:
    """Who reads a value inside a fusion, looking through what only passes it on."""
    for i in fusion.instructions.values():
        if name in i.operands:
            if i.opcode in PASSING and not i.root:
                yield from _readers(i.name, fusion)
            else:
                yield i


def _results(fusion: Computation) -> list[Instruction]:
    """What makes each result of a fusion."""
    root = fusion.root
    if root is None:
        return []
    ends = [root]
    if root.opcode == "tuple":
        ends = [fusion.instructions[n] for n in root.operands if n in fusion.instructions]
    return [_behind(end, fusion) for end in ends]


def _behind(i: Instruction, body: Computation) -> Instruction:
    """The instruction whose result this one passes on."""
    while i.opcode in PASSING and i.operands and i.operands[0] in body.instructions:
        i = body.instructions[i.operands[0]]
    return i


def _of_named_mesh(sizes: str, devices: str | None, chosen: str) -> np.ndarray:
    """mesh['a'=2,'b'=4] {'b'}: groups along b, one for each place on the other axes.

    A part of an axis is written 'b':(2)2: of its 4 places those that lie 2 apart in 2 blocks.
    """
    mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    ids = _device_ids(devices) if devices else np.arange(math.prod(mesh.values()))
    shape: list[int] = []
    along: list[int] = []
    parts = {name: (pre, size) for name, pre, size in re.findall(
        r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen
    )}  # fmt: skip
    for name, whole in mesh.items():
        pre, size = (int(n or 0) for n in parts.get(name, ("1", "1")))
        pre, size = (pre, size) if pre else (1, whole)
        along.append(len(shape) + 1)
        shape += [pre, size, whole // (pre * size)]
    along = [n for n in along if shape[n] > 1]
    others = [n for n in range(len(shape)) if n not in along]
    members = math.prod(shape[n] for n in along)
    return ids.reshape(shape).transpose(*others, *along).reshape(-1, members)


def _device_ids(text: str) -> np.ndarray:
    """[2,4]T(1,0): counted row by row, then turned; or the numbers themselves."""
    tiled = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", text)
    if tiled is None:
        return np.array(list(map(int, re.findall(r"\d+", text))))
    dims = tuple(map(int, tiled[1].split(",")))
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose(tuple(map(int, tiled[2].split(",")))) if tiled[2] else ids).reshape(-1)


def _instruction(line: str) -> Instruction | None:
    """`  ROOT %name = type opcode(%a, %b), attributes`; None for a line that is none."""
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    stop = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:stop], rest[stop:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    attributes = rest if opcode in ("parameter", "constant") else rest[close + 1 :]
    return Instruction(
        head[2], opcode, _shapes(kind), tuple(re.findall(r"%([\w.\-]+)", inside)), attributes,
        bool(head[1]),
    )  # fmt: skip


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if not depth:
                return at
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", text)
    return tuple(
        Shape(
            dtype,
            tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
            bool(re.search(r"S\([1-9]\d*\)", layout or "")),
        )
        for dtype, dims, layout in found
        if dtype in BITS or dtype.startswith("f8")
    )
