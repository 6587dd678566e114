"""A benchmark's run: items asked one by one, each answer written down at once, then the scores.

Its folder holds

    manifest.json   everything that decides the answers and their scores
    answers.jsonl   a line an item, as it is done: id, answer, seconds, error
    traces/         of watched videos, a trace an item
    result.json     the scores, with the manifest

A second call goes on where the first one stopped, and tries again what failed.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.errors import InputError, RunError
from streamjax.evals import results
from streamjax.evals.benchmarks.benchmark import Polling, Question, Records, Watching
from streamjax.evals.harness import manifest as manifests
from streamjax.evals.harness.scored import RUN as ANSWERS
from streamjax.evals.harness.scored import plain

MANIFEST, RESULT, TRACES = "manifest.json", "result.json", "traces"

Asked = Question | Watching | Polling


@dataclasses.dataclass(frozen=True)
class Done:
    """answers: {id: answer}, None where there is none. failed: {id: what went wrong}."""

    answers: Mapping[str, Any]
    failed: Mapping[str, str]


def limited(records: Records, limit: int | None) -> Records:
    """So many of the records, spread evenly over all; None is all."""
    total = len(records.records)
    if limit is None or limit >= total:
        return records
    places = np.linspace(0, total, limit, endpoint=False).astype(int).tolist()
    return dataclasses.replace(records, records=[records.records[i] for i in places])


def begin(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Makes the folder of a run, or checks that it was begun under the same manifest.

    Raises InputError, with the field's name, where it was not, and for a folder of something else.
    """
    path = folder / MANIFEST
    if path.is_file():
        try:
            begun = json.loads(path.read_text("utf-8"))["manifest"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: no manifest of a run; wanted an empty folder") from None
        manifests.check_same(begun, plain(manifest), folder)
    elif (folder / ANSWERS).exists():
        raise InputError(f"{folder}: has {ANSWERS} but no {MANIFEST}; wanted an empty folder")
    results.writable(path)
    results.write(path, {"manifest": plain(manifest)})


def ask_all(
    asked: Sequence[Asked],
    answer: Callable[[Any], Any],
    folder: Path,
    *,
    progress: Callable[[int, int], Any] | None = None,
) -> Done:
    """Asks all items that have no answer yet; each is written down before the next one is asked.

    answer: item -> answer. Whatever it raises is the item's error: it is written down, and the run
    goes on. progress: (done, total). Raises InputError for two items of one id.
    """
    ids = [one.id for one in asked]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise InputError(f"two questions have the id {twice!r}, wanted each once")
    path = folder / ANSWERS
    rows = {row["id"]: row for row in _written(path) if row["id"] in set(ids)}
    kept = {id: row for id, row in rows.items() if not row.get("error")}
    _rewrite(path, list(kept.values()))
    failed: dict[str, str] = {}
    with path.open("a", encoding="utf-8") as file:
        for done, one in enumerate(asked, 1):
            if one.id not in kept:
                row = _asked(one, answer)
                kept[one.id] = row
                if row["error"]:
                    failed[one.id] = row["error"]
                file.write(json.dumps(row) + "\n")
                file.flush()
            if progress is not None:
                progress(done, len(asked))
    return Done({id: kept[id]["answer"] for id in ids}, failed)


def check_failures(done: Done, max_bad: float) -> None:
    """Raises RunError where a larger share of the items failed than may."""
    total = len(done.answers)
    if len(done.failed) > max_bad * total:
        id, why = next(iter(done.failed.items()))
        raise RunError(
            f"{len(done.failed)} of {total} items failed, more than --max-bad {max_bad:g} allows; "
            f"all others are kept, and a second call tries these again; first {id}: {why}"
        )


def failures(done: Done, told: int = 3) -> list[str]:
    """Lines for the table: how many items failed, and the first of them with the reason."""
    if not done.failed:
        return []
    lines = [f"{len(done.failed)} of {len(done.answers)} items failed"]
    lines += [f"failed: {id}: {why}" for id, why in list(done.failed.items())[:told]]
    more = len(done.failed) - told
    return lines + ([f"failed: and {more} more, in {ANSWERS}"] if more > 0 else [])


def _asked(one: Asked, answer: Callable[[Any], Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    said, error = None, None
    try:
        said = plain(answer(one))
    except Exception as raised:  # one item of many: the run goes on, and the table says so
        name = "" if isinstance(raised, InputError) else f"{type(raised).__name__}: "
        error = f"{name}{' '.join(str(raised).split())}"[:500]
    seconds = round(time.perf_counter() - begin, 3)
    return {"id": one.id, "answer": said, "seconds": seconds, "error": error}


def _written(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a last one that was torn, when a run was ended, is dropped."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            _, _ = row["id"], row["answer"]
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                wanted = 'wanted {"id": ..., "answer": ...}; remove the line'
                raise InputError(f"{path}, line {number}: {line[:60]!r}, {wanted}") from None
    return rows


def _rewrite(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file with these lines; it appears whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
