"""What a run tells of itself: metrics.jsonl, a row a step, and the look at the last rows."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from streamjax.train.config import TrainConfig
from streamjax.train.progress import Report


class MetricsFile:
    """metrics.jsonl: one row a step, whatever happened in between; rows past `step` are cut off.

    Of several processes the first one writes. In an object store, where nothing can be appended,
    the file is written anew by `sync` and at the end.
    """

    def __init__(self, path: Path | epath.Path, step: int):
        self.last: dict[str, Any] = {}
        self.path = path
        self.mine = jax.process_index() == 0
        good: list[bytes] = []
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                row = _row(line)
                if row is None or row["step"] > step:
                    break
                good.append(line)
                self.last = row
        if isinstance(path, Path):
            self.kept = Path(path if self.mine else os.devnull)
        else:
            self.kept = Path(tempfile.mkdtemp()) / path.name
            self.kept.write_bytes(b"".join(good))
        if self.kept == path:
            with self.kept.open("ab") as file:
                file.truncate(sum(map(len, good)))

    def __enter__(self) -> "MetricsFile":
        self.file = self.kept.open("a")
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self.file.close()
        finally:
            self._send()

    def write(self, row: dict[str, Any]) -> None:
        self.last = row
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Rows reach the disk before the checkpoint that counts on them."""
        if self.kept == self.path:
            os.fsync(self.file.fileno())
        self._send()

    def _send(self) -> None:
        if self.mine and self.kept != self.path:
            self.path.write_bytes(self.kept.read_bytes())


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
        tokens_per_second=_mean_rate(steady, "tokens_per_second"),
        mfu=_mean_rate(steady, "mfu"),
    )


def macro_f1(rows: Any) -> float | None:
    """The mean F1 of the classes that occur, from rows with sums tp, fp, fn [c]; None without."""
    if not rows or any(key not in rows[-1] for key in ("tp", "fp", "fn")):
        return None
    tp, fp, fn = (np.sum([np.atleast_1d(r[k]) for r in rows], axis=0) for k in ("tp", "fp", "fn"))
    seen = tp + fn > 0
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return float(f1[seen].mean()) if seen.any() else None


def _mean_rate(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """What was done over the time it took; None where rows do not say it."""
    found = [(row[key] * row["seconds"], row["seconds"]) for row in rows if key in row]
    return sum(done for done, _ in found) / sum(s for _, s in found) if found else None


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
