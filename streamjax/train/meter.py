"""How fast a run is, and what for: rows and tokens a second, share of the peak, memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from streamjax.train.chips import chip_of
from streamjax.train.config import TrainConfig
from streamjax.train.flops import train_flops
from streamjax.train.state import Setup
from streamjax.train.step import Batch

# The keys of a row that tell of the machine: two runs with the same numbers differ in them.
MACHINE = frozenset({
    "seconds", "data_seconds", "data_wait", "examples_per_second", "tokens_per_second", "mfu",
    "hbm_peak", "compiled",
})  # fmt: skip


class Work(NamedTuple):
    """Of one step on all devices: token positions in its rows, padding too, and operations.

    None where the rows have no tokens, or nobody has written the model's operations down.
    """

    tokens: int | None
    flops: float | None


class Meter:
    """Says of each step what its shapes and its time amount to."""

    def __init__(self, config: TrainConfig, setup: Setup, mesh: jax.sharding.Mesh):
        self.config = config
        self.model = nnx.merge(setup.graphdef, setup.abstract.params, setup.abstract.frozen)
        self.trained = setup.abstract.params
        chip = chip_of(jax.devices()[0].device_kind)
        self.peak = chip.flops * mesh.size if chip else None
        self.known: dict[Any, Work] = {}

    def work(self, batch: Batch) -> Work:
        """The work of a step on this batch, which lies on the mesh."""
        if isinstance(batch, Mapping):
            return self._part(batch, None)
        parts = [self._part(arrays, task) for task, arrays in batch]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        flops = [part.flops for part in parts if part.flops is not None]
        whole = len(flops) == len(parts)
        return Work(sum(tokens) if tokens else None, sum(flops) if whole else None)

    def row(self, work: Work, seconds: float, waited: float) -> dict[str, float]:
        """What the row of a step says of its speed; `waited` of its `seconds` were for data.

        examples_per_second, tokens_per_second; mfu: the share of the chips' stated bfloat16 peak
        that the step's operations (train.flops) are; data_wait: the share of the time spent waiting
        for data; hbm_peak: bytes, of the fullest of this process's devices since it began. What is
        not known is left out.
        """
        row = {
            "seconds": round(seconds, 6),
            "data_seconds": round(waited, 6),
            "data_wait": round(min(1.0, waited / seconds), 4),
            "examples_per_second": round(self.config.examples / seconds, 3),
        }
        if work.tokens is not None:
            row["tokens_per_second"] = round(work.tokens / seconds, 1)
        if work.flops is not None and self.peak is not None:
            row["mfu"] = round(work.flops / seconds / self.peak, 5)
        peak = memory_peak()
        return row if peak is None else {**row, "hbm_peak": peak}

    def _part(self, arrays: Mapping[str, Any], task: str | None) -> Work:
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        key = (task, tuple(sorted(shapes.items())))
        if key not in self.known:
            self.known[key] = self._counted(shapes, task)
        return self.known[key]

    def _counted(self, shapes: Mapping[str, tuple[int, ...]], task: str | None) -> Work:
        pieces = 1
        if task is None and self.config.accumulate > 1:  # micro-batches: [pieces, rows, ...]
            pieces = self.config.accumulate
            shapes = {name: shape[1:] for name, shape in shapes.items()}
        size = shapes.get("tokens")
        tokens = None
        if size is not None:
            tokens = pieces
            for side in size:
                tokens *= side
        if self.peak is None:
            return Work(tokens, None)
        batch = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
        try:
            flops = pieces * train_flops(self.model, self.trained, batch, task=task).step
        except (TypeError, KeyError):  # a model, or rows, that train.flops does not know
            flops = None
        return Work(tokens, flops)


def memory_peak() -> int | None:
    """The most bytes held by any device of this process since it began; None where untold (CPU)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [
        found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found
    ]
    return max(peaks, default=None)
