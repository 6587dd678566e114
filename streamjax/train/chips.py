"""What the makers state of their chips: speed, memory, and the links between them."""

import difflib
from dataclasses import dataclass

from streamjax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX counts them; `share` of them make the chip that is sold.

    flops: dense bfloat16 operations per second. memory: bytes that programs may have. bandwidth: of
    the memory, bytes per second. link: of one link, bytes per second one way. TPUs lie on a torus,
    two links on each side of it; ring: the length from which on a side closes (0: never). GPUs: a
    switch joins `node` of them, beyond which each has `network` bytes per second.
    """

    kind: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    ring: int = 0
    node: int = 0
    network: float = 0.0
    share: int = 1
    source: str


GIB = 2.0**30
_CLOUD = (
    "cloud.google.com/tpu/docs, the generation's page; links: jax-ml.github.io/scaling-book; "
    "memory: what libtpu 0.0.42 gives programs"
)
_NVIDIA = "data sheet of the card; network: one 400 Gb/s port per card (A100: 200)"
_NVIDIA_PCIE = "data sheet of the card; link: PCIe 4.0 x16; network: 200 Gb/s per card"

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        kind="TPU v4", flops=137.5e12, memory=15.25 * GIB, bandwidth=614e9, link=22.5e9, ring=4,
        share=2, source=_CLOUD,
    ),
    "v5e": Chip(
        kind="TPU v5 lite", flops=197e12, memory=15.75 * GIB, bandwidth=819e9, link=45e9,
        ring=16, source=_CLOUD,
    ),
    "v5p": Chip(
        kind="TPU v5", flops=459e12, memory=95.74 * GIB, bandwidth=2765e9, link=90e9, ring=4,
        source=_CLOUD,
    ),
    "v6e": Chip(
        kind="TPU v6 lite", flops=918e12, memory=31.25 * GIB, bandwidth=1640e9, link=90e9,
        ring=16, source=_CLOUD,
    ),
    "tpu7x": Chip(
        kind="TPU7x", flops=1153.5e12, memory=94.75 * GIB, bandwidth=3690e9, link=45e9, ring=4,
        share=2, source=_CLOUD,
    ),
    "a100": Chip(
        kind="A100", flops=312e12, memory=80 * GIB, bandwidth=2039e9, link=300e9, node=8,
        network=25e9, source=_NVIDIA,
    ),
    "a10": Chip(
        kind="A10", flops=125e12, memory=24e9, bandwidth=600e9, link=32e9, node=8, network=25e9,
        source=_NVIDIA_PCIE,
    ),
    "l4": Chip(
        kind="L4", flops=121e12, memory=24e9, bandwidth=300e9, link=32e9, node=8, network=25e9,
        source=_NVIDIA_PCIE,
    ),
    "l40s": Chip(
        kind="L40S", flops=362e12, memory=48e9, bandwidth=864e9, link=32e9, node=8, network=25e9,
        source=_NVIDIA_PCIE,
    ),
    "h100": Chip(
        kind="H100", flops=989e12, memory=80 * GIB, bandwidth=3350e9, link=450e9, node=8,
        network=50e9, source=_NVIDIA,
    ),
    "h200": Chip(
        kind="H200", flops=989e12, memory=141e9, bandwidth=4800e9, link=450e9, node=8,
        network=50e9, source=_NVIDIA,
    ),
    "b200": Chip(
        kind="B200", flops=2250e12, memory=180e9, bandwidth=8000e9, link=900e9, node=8,
        network=50e9, source=_NVIDIA,
    ),
}  # fmt: skip


def chip_named(name: str) -> Chip:
    """The chip of a short name ("v5e", "h100"). Raises InputError, naming the nearest one."""
    if name in CHIPS:
        return CHIPS[name]
    near = difflib.get_close_matches(name, CHIPS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(CHIPS)}"
    raise InputError(f"unknown chip {name!r}: {hint}")


def chip_of(kind: str) -> Chip | None:
    """The chip that a device is, by its `device_kind`; None for one that is not in the table."""
    found = [c for c in CHIPS.values() if c.kind == kind or (c.node and c.kind in kind)]
    return max(found, key=lambda c: len(c.kind), default=None)  # "L4" is in "L40S" too
