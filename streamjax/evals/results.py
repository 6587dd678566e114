"""What an evaluation found: scores with their n, as a table and as JSON with what decided them."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamjax import __version__
from streamjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Result:
    """The scores of one task on one data set.

    dataset: "" where annotations do not say. n counts `unit`, e.g. clips. scores: shares between 0
    and 1, but for whole numbers, which are counts, and for "..._median". skipped: why each record
    was that could not be used; of all data sets of the task.
    """

    task: str
    dataset: str
    kind: str
    scores: Mapping[str, float | int]
    n: int
    unit: str
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.task}/{self.dataset}" if self.dataset else self.task


def table(results: Sequence[Result], *, reasons: int = 3) -> str:
    """A block per kind of task: a row per task and data set, shares in percent.

    reasons: so many of a task's skipped records are told with theirs.
    """
    blocks = []
    for kind in dict.fromkeys(result.kind for result in results):
        rows = [result for result in results if result.kind == kind]
        wide = max(len(kind), *(len(row.name) for row in rows))
        names = list(rows[0].scores)
        head = f"{kind:{wide}}  {'n':>14}  {'skipped':>7}" + "".join(f"  {n:>8}" for n in names)
        lines = [head]
        for row in rows:
            cells = [
                f"  {_cell(name, row.scores[name]):>{max(len(name), 8)}}" for name in row.scores
            ]
            count = f"{row.n:,} {row.unit}"
            lines.append(f"{row.name:{wide}}  {count:>14}  {len(row.skipped):>7}{''.join(cells)}")
        for task, skipped in {row.task: row.skipped for row in rows}.items():
            lines += [f"  {task} skipped: {reason}" for reason in skipped[:reasons]]
            if len(skipped) > reasons:
                lines.append(f"  {task} skipped: and {len(skipped) - reasons} more")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def document(results: Sequence[Result], decided: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of an evaluation: every result, and everything that decided the numbers."""
    import jax  # here, because answers are scored without it

    machine = {"streamjax": __version__, "jax": jax.__version__, "backend": jax.default_backend()}
    return {
        "results": [dataclasses.asdict(result) for result in results],
        "decided_by": {**decided, **machine},
    }


def writable(path: Path) -> None:
    """InputError where `write` could not write; makes the folder."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, wanted a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        line = f"{path}: cannot be written ({error.strerror}); choose another place"
        raise InputError(line) from None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def weights_hash(model: Any) -> str:
    """A hash of all numbers of a model, whatever folder they came from."""
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def files_hash(files: Sequence[Path], root: Path) -> str:
    """A hash of the content of files and their names below `root`."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"


def _cell(name: str, value: float | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if name.endswith("_median") else f"{100 * value:.1f}"
