"""Which pods there are: names of TPU topologies and groups of GPUs, and their devices in a mesh."""

import difflib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from streamjax.errors import InputError
from streamjax.train.chips import CHIPS, Chip

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip
# The slices that are sold; libtpu itself describes any multiple of a host's 2x2 chips.
SLICES = {
    "v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT, "tpu7x": _CUBES,
}  # fmt: skip
GPUS = tuple(name for name, chip in CHIPS.items() if chip.node)


@dataclass(frozen=True)
class Topology:
    """A pod by name: the chip, the sides of its torus (one number for GPUs), and its devices."""

    name: str
    chip: Chip
    sides: tuple[int, ...]
    devices: int

    @property
    def tpu(self) -> bool:
        return not self.chip.node


def topology(name: str) -> Topology:
    """The topology of a name: "v5p:4x4x4" (chips along each side), "h100:8", "gpu:8" (h100).

    Raises InputError for a name that is none, listing those that there are, the nearest first.
    """
    family, _, size = name.strip().lower().partition(":")
    if size in SLICES.get(family, ()):
        sides = tuple(map(int, size.split("x")))
        chips = 1
        for side in sides:
            chips *= side
        return Topology(f"{family}:{size}", CHIPS[family], sides, chips * CHIPS[family].share)
    card = "h100" if family == "gpu" else family
    if card in GPUS and re.fullmatch(r"[1-9]\d{0,4}", size):
        return Topology(f"{card}:{size}", CHIPS[card], (int(size),), int(size))
    known = [f"{f}:{s}" for f, slices in SLICES.items() for s in slices]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = "; ".join(f"{f}: {', '.join(slices)}" for f, slices in SLICES.items())
    raise InputError(
        f"--topology {name}: no such pod. {hint}TPUs are {listed} (as v5e:4x4); GPUs are "
        f"{', '.join(GPUS)} with a number of cards (as h100:8)"
    )


def check_libtpu() -> None:
    """Raises InputError when libtpu, which compiles for TPUs, is missing or not this jax's."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "libtpu is missing, which compiles for TPUs on any Linux machine: "
            "pip install 'streamjax[fit]'"
        )
    found, wanted = importlib.metadata.version("libtpu"), wanted_libtpu()
    if wanted and not found.startswith(wanted.removesuffix("*")):
        raise InputError(
            f"libtpu is {found}, wanted {wanted} for jax {importlib.metadata.version('jax')}: "
            "pip install 'streamjax[fit]'"
        )


def wanted_libtpu() -> str | None:
    """The version of libtpu that the installed jax pins ("0.0.42.*"), where it says."""
    for line in importlib.metadata.requires("jax") or ():
        if found := re.match(r"libtpu\s*==\s*([\d.]+\*?)", line):
            return found[1]
    return None


def environment(where: Topology) -> dict[str, str]:
    """What the environment of a process has to say, before it imports jax, to compile for a pod."""
    quiet = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not where.tpu:
        return quiet | {"JAX_NUM_CPU_DEVICES": str(where.devices)}
    return quiet | {
        # Two libtpus on one machine stop at the lock file of the first, though neither has a TPU.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",  # nobody answers where there is no TPU
        "TPU_LOG_DIR": "disabled",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }


def devices_of(where: Topology) -> list[Any]:
    """Its devices: described by libtpu, or as many of the CPU's in the place of GPUs.

    For a process that was started with `environment`. Raises InputError where libtpu refuses.
    """
    import jax

    if not where.tpu:
        return jax.devices()[: where.devices]
    from jax.experimental import topologies

    # A host has 2x2 chips; the one that is sold alone is a host of its own.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if where.devices == 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=where.name, **alone
        ).devices
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0]
        raise InputError(f"--topology {where.name}: libtpu says: {text}") from None
    assert len(found) == where.devices, f"{where.name} has {len(found)} devices"
    return list(found)
