"""What a run tells of itself: metrics.jsonl, a row a step, and the look at the last rows."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from streamjax.train.config import TrainConfig
from streamjax.train.progress import Report


class MetricsFile:
    """metrics.jsonl: one row a step, whatever happened in between; rows past `step` are cut off.

    Of several processes the first one writes.
    """

    def __init__(self, path: Path, step: int):
        self.last: dict[str, Any] = {}
        self.path = path if jax.process_index() == 0 else Path(os.devnull)
        good = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                row = _row(line)
                if row is None or row["step"] > step:
                    break
                good += len(line)
                self.last = row
        if self.path == path:
            with path.open("ab") as file:
                file.truncate(good)

    def __enter__(self) -> "MetricsFile":
        self.file = self.path.open("a")
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        self.last = row
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Rows reach the disk before the checkpoint that counts on them."""
        if self.path != Path(os.devnull):
            os.fsync(self.file.fileno())


def report(window: Sequence[Mapping[str, Any]], config: TrainConfig) -> Report:
    """The look at the loop that its last rows give."""
    step = window[-1]["step"]
    steady = [row for row in window if not row.get("compiled")] or list(window)
    seconds = sum(row["seconds"] for row in steady) or 1e-9
    each = seconds / len(steady)
    return Report(
        step=step,
        loss=float(np.mean([row["loss"] for row in window])),
        f1=macro_f1(window),
        examples_per_second=config.examples / each,
        waiting=min(1.0, sum(row["data_seconds"] for row in steady) / seconds),
        seconds_left=(config.steps - step) * each,
        tasks=_task_losses(window, config),
    )


def macro_f1(rows: Any) -> float | None:
    """The mean F1 of the classes that occur, from rows with sums tp, fp, fn [c]; None without."""
    if not rows or any(key not in rows[-1] for key in ("tp", "fp", "fn")):
        return None
    tp, fp, fn = (np.sum([np.atleast_1d(r[k]) for r in rows], axis=0) for k in ("tp", "fp", "fn"))
    seen = tp + fn > 0
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return float(f1[seen].mean()) if seen.any() else None


def _task_losses(window: Sequence[Mapping[str, Any]], config: TrainConfig) -> dict[str, float]:
    """The mean loss of each task of several, over the rows that it occurs in."""
    losses: dict[str, float] = {}
    for task in config.data if isinstance(config.data, Mapping) else ():
        found = [row[f"{task}/loss"] for row in window if f"{task}/loss" in row]
        if found:
            losses[task] = float(np.mean(found))
    return losses


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
