"""How long a step takes at best: the slowest of computing, reading memory, and speaking.

The roofline is stated, not fitted: every chip computes at its peak, reads and writes at its
bandwidth, and sends by rings over its links at theirs (train/chips.py). Real programs are slower;
what is compared are meshes, batches and sizes of a pod.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamjax.fit.hlo import Collective
from streamjax.fit.topology import Topology

HOP = 1e-6  # seconds that a message takes to a neighbour, however short it is


@dataclass(frozen=True)
class Load:
    """What one device does in a step: operations (its share of all), bytes of main memory, and its
    collectives. useful: the operations without those that are worked out twice."""

    flops: float
    useful: float
    traffic: float
    collectives: tuple[Collective, ...]

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.flops + other.flops,
            self.useful + other.useful,
            self.traffic + other.traffic,
            self.collectives + other.collectives,
        )

    def times(self, n: float) -> "Load":
        """The same, n times over."""
        more = tuple(
            Collective(c.kind, c.axes, c.group, c.bytes, c.times * n) for c in self.collectives
        )
        return Load(self.flops * n, self.useful * n, self.traffic * n, more)


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step: computing, memory, and speaking along each set of mesh axes.

    step: where all three go on at once. unlapped: where nothing is sent while anything is computed.
    mfu: useful operations of `step`, as a share of the peak.
    """

    compute: float
    memory: float
    links: Mapping[str, float]
    step: float
    unlapped: float
    mfu: float
    bound: str


def predict(load: Load, where: Topology, bandwidth: Mapping[tuple[str, ...], float]) -> Prediction:
    """bandwidth: bytes per second that each set of mesh axes has, as `link_bandwidth` gives it."""
    chip = where.chip
    compute, memory = load.flops / chip.flops, load.traffic / chip.bandwidth
    links: dict[str, float] = {}
    for c in load.collectives:
        key = "+".join(c.axes) or "none"
        links[key] = links.get(key, 0.0) + c.times * seconds_of(c, bandwidth[c.axes])
    spoken = sum(links.values())
    parts = {"computing": compute, "memory": memory, "links": spoken}
    bound = max(parts, key=lambda name: parts[name])
    step = max(max(parts.values()), 1e-12)
    return Prediction(
        compute, memory, links, step, max(compute, memory) + spoken,
        load.useful / chip.flops / step, bound,
    )  # fmt: skip


def seconds_of(c: Collective, bandwidth: float) -> float:
    """One collective of a ring: what it sends, and the hops of its first bytes."""
    if c.group < 2:
        return 0.0
    hops = 1 if c.kind == "collective-permute" else c.group - 1
    sent = c.bytes
    if c.kind == "all-to-all":
        sent = c.bytes / 2  # both ways round, and half of the way on average is shared
    return sent / bandwidth + hops * HOP


def link_bandwidth(
    axes: Sequence[str], mesh: Mapping[str, int], coords: np.ndarray | None, where: Topology
) -> float:
    """Bytes per second that a device sends along these mesh axes, over all links that lie there.

    coords: int [devices of the mesh, sides of the torus], in the mesh's order; None for GPUs. On a
    torus there are two directions on every side that the group spans, one where the side does not
    close to a ring. GPUs of one node speak over its switch, others over the network.
    """
    chip = where.chip
    size = math.prod(mesh[a] for a in axes)
    if coords is None:
        stride = math.prod(list(mesh.values())[list(mesh).index(axes[-1]) + 1 :]) if axes else 1
        return chip.link if size * stride <= chip.node or size == 1 else chip.network
    shape = tuple(mesh.values())
    places = coords.reshape(*shape, -1)
    first = tuple(slice(None) if name in axes else 0 for name in mesh)
    group = places[first].reshape(-1, places.shape[-1])
    counts = [len(np.unique(group[:, side])) for side in range(len(where.sides))]
    if math.prod(counts) * chip.share > max(size, 1) * chip.share and size > 1:
        return chip.link  # a path around corners, not a torus of its own
    total = 0.0
    for length, spanned in zip(where.sides, counts, strict=True):
        if spanned > 1:
            closed = chip.ring and length >= chip.ring and spanned == length
            total += chip.link * (2 if closed else 1)
    return total or chip.link * 2  # devices of one chip


def grown(load: Load, mesh: Mapping[str, int], axis: str, to: int) -> Load:
    """The same work on every device with `axis` grown to `to` devices, each with its own rows.

    A ring sends (n - 1) / n of the array: of an array that is gathered whole, whatever n. What was
    an axis of one device and is more now sends the gradients once around (added by the caller).
    """
    before = mesh[axis]

    def scaled(c: Collective) -> Collective:
        if axis not in c.axes or before < 2 or c.kind == "collective-permute":
            return c
        group = c.group // before * to
        share = ((group - 1) / group) / ((c.group - 1) / c.group)
        return Collective(c.kind, c.axes, group, c.bytes * share, c.times)

    return Load(load.flops, load.useful, load.traffic, tuple(map(scaled, load.collectives)))
