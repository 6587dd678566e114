"""Everything that decided a result, by name; what two results must share to be compared."""

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax import __version__
from streamjax.errors import InputError
from streamjax.evals import results
from streamjax.evals.benchmarks.benchmark import Benchmark, Polling, Question, Records, Watching
from streamjax.evals.harness.scored import plain

# How answers are scored, and what has no part in them: a run may go on under others.
SCORING = ("rule", "averaging", "judge", "machine", "code")
# What two results may differ in, and still be compared: the model, with how its pictures are made.
FREE = ("model", "weights", "pixels", "machine", "code", "predictions")
# What decides which items there are scores of.
ITEMS = ("benchmark", "data", "limit", "ids", "items")


def of_scores(
    benchmark: Benchmark, records: Records, data: Path, rule: str, judge: Any = None
) -> dict[str, Any]:
    """What decides the scores of given answers."""
    return {
        "benchmark": benchmark.name,
        "data": results.files_hash(records.files, data),
        "rule": rule,
        "averaging": benchmark.rules[rule],
        "judge": judge,
        "code": code_of(benchmark),
    }


def of_questions(asked: Sequence[Question | Watching | Polling]) -> dict[str, Any]:
    """How many are asked, which ones, and every word that is put to the model."""
    return {
        "items": len(asked),
        "ids": hashed(one.id for one in asked),
        "prompts": hashed(_words(one) for one in asked),
    }


def of_model(model: Any, name: str) -> dict[str, Any]:
    """The model: its name as it was given, its numbers, and how its pictures are made."""
    from streamjax.stream.settings import machine

    processor = model.assets.processor
    pixels = dataclasses.asdict(processor) if dataclasses.is_dataclass(processor) else None
    return {
        "model": name,
        "weights": results.weights_hash(model),
        "pixels": None
        if pixels is None
        else {**plain(pixels), "processor": type(processor).__name__},
        "machine": machine(model),
    }


def code_of(benchmark: Benchmark) -> dict[str, str]:
    """The library's version, and a hash of the file that scores this benchmark."""
    source = inspect.getsourcefile(sys.modules[inspect.unwrap(benchmark.score).__module__])
    assert source is not None
    content = Path(source).read_bytes()
    return {"streamjax": __version__, "scorer": hashlib.sha256(content).hexdigest()[:16]}


def hashed(parts: Iterable[str]) -> str:
    """A hash of texts in their order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"sha256 {digest.hexdigest()[:16]}"


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises InputError, with the field's name, where a run was begun under another manifest."""
    for name in _differing(begun, now, SCORING):
        raise InputError(
            f"{folder}: was begun with {name} {_told(begun.get(name))}, now it is "
            f"{_told(now.get(name))}: give the same, or another folder as --out"
        )


def check_comparable(
    a: Mapping[str, Any], b: Mapping[str, Any], *, across: Sequence[str] = ()
) -> None:
    """Raises InputError, with the field's name, where two results were not made alike.

    across: names of fields that may differ. The model and its pictures, machine and code
    always may.
    """
    unknown = [name for name in across if name not in {*a, *b}]
    if unknown:
        raise InputError(f"--across {unknown[0]}: the manifests have {', '.join(sorted({*a, *b}))}")
    free = (*FREE, *across, *(("averaging",) if "rule" in across else ()))
    for name in _differing(a, b, free):
        # Scores are compared item by item: of other items, nothing makes them comparable.
        way = "" if name in ITEMS else f", but with --across {name}"
        raise InputError(
            f"{name} is {_told(a.get(name))} in one and {_told(b.get(name))} in the other: such "
            f"results cannot be compared{way}"
        )


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    names = [name for name in {**a, **b} if name not in free]
    return [name for name in names if _canonical(a.get(name)) != _canonical(b.get(name))]


def _canonical(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True)


def _told(value: Any) -> str:
    text = _canonical(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _words(asked: Question | Watching | Polling) -> str:
    if isinstance(asked, Polling):  # its words depend on the answers; its program is the scorer's
        return asked.id
    if isinstance(asked, Question):
        words = (asked.id, asked.system, asked.prompt, asked.prefix, asked.start, asked.end)
    else:
        words = (asked.id, asked.system, asked.asks, asked.speaks_from, asked.until, asked.end)
    return json.dumps(words)
