"""A benchmark's result: the scores of answers as JSON, with what decided them, and as a table."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Benchmark, Scores, read_answers

RUN = "answers.jsonl"  # of a run

# What rules are called elsewhere: by the version of the code that has them.
ALIASES = {
    "lmms_eval_v0.3.0": "lmms_eval_legacy",
    "lmms_eval_0.3.0": "lmms_eval_legacy",
    "lmms_eval_v0.7.2": "lmms_eval_2026",
    "lmms_eval_0.7.2": "lmms_eval_2026",
    "lmms_eval": "lmms_eval_2026",
}


def rule_of(benchmark: Benchmark, name: str | None) -> str:
    """The benchmark's rule of this name, or of this other name for it; its first one for None.

    Case, dashes and underscores do not matter. Raises InputError for an unknown one; it lists those
    that are known.
    """
    if name is None:
        return next(iter(benchmark.rules))
    other = {_plain(alias): _plain(rule) for alias, rule in ALIASES.items()}
    known = {_plain(rule): rule for rule in benchmark.rules}
    plain = _plain(name)
    found = known.get(plain, known.get(other.get(plain, "")))
    if found is None:
        raise InputError(f"--rule {name}: {benchmark.name} has {', '.join(benchmark.rules)}")
    return found


def protocol_of(benchmark: Benchmark, name: str | None) -> str:
    """The benchmark's protocol of this name; its first one for None.

    Raises InputError for an unknown one, and where no model can be asked at all.
    """
    if not benchmark.protocols or benchmark.questions is None:
        raise InputError(
            f"{benchmark.name}: no model of ours can be asked; score answers made elsewhere with "
            f"streamjax eval score {benchmark.name}"
        )
    if name is None:
        return next(iter(benchmark.protocols))
    known = {_plain(protocol): protocol for protocol in benchmark.protocols}
    if _plain(name) not in known:
        raise InputError(
            f"--protocol {name}: {benchmark.name} has {', '.join(benchmark.protocols)}"
        )
    return known[_plain(name)]


def answers_at(path: Path) -> Path:
    """Where the answers lie: `path`, or in the folder of one of our runs, or of a benchmark's case,
    the file that holds them.

    Raises InputError where there is nothing.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; wanted the answers to score")
    for name in (RUN, "predictions.json"):
        if path.is_dir() and (path / name).is_file():
            return path / name
    return path


def answers_of(benchmark: Benchmark, path: Path) -> Mapping[str, Any]:
    """The answers in one of our runs' files, or in a file or folder of the benchmark's own form.

    Raises InputError for another one.
    """
    if path.name == RUN:
        return read_answers(path)
    try:
        return benchmark.answers(path)
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, wanted the file of the answers") from None


def files_of(path: Path) -> list[Path]:
    """The file, or all files of a folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def document(
    benchmark: str, rule: str, scores: Scores, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of a result; numbers in full precision, null for those that are none."""
    return plain({
        "benchmark": benchmark,
        "rule": rule,
        "table": scores.table,
        "n": scores.n,
        "unanswered": scores.unanswered,
        "unparsed": scores.unparsed,
        "problems": scores.problems,
        "details": scores.details,
        "per_item": {graded.id: graded.score for graded in scores.graded},
        "graded": [dataclasses.asdict(graded) for graded in scores.graded],
        "manifest": manifest,
    })  # fmt: skip


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities are null, keys are text, arrays are lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def table(result: Mapping[str, Any], title: str, words: str, *, told: int = 5) -> str:
    """A result for people: a line a column, its score and how many answers stand behind it.

    words: the rule's. told: so many of the problems are told, the others counted.
    """
    rows = list(_rows(result["table"], result["n"]))
    wide = max((len(name) for name, _, _ in rows), default=0)
    lines = [f"{title}, rule {result['rule']}: {words}"]
    for name, score, n in rows:
        lines.append(f"{name:{wide}}  {score:>8}  {n:>8}".rstrip())
    lines.append(
        f"{len(result['per_item'])} scores; {result['unanswered']} without an answer, "
        f"{result['unparsed']} not understood by the rule"
    )
    return "\n".join([*lines, *shortened(result["problems"], told)])


def shortened(problems: Sequence[str], told: int) -> list[str]:
    """The first lines of many, and how many more there are."""
    lines = [f"problem: {line}" for line in problems[:told]]
    return lines + ([f"problem: and {len(problems) - told} more"] if len(problems) > told else [])


def _rows(values: Mapping[str, Any], n: Mapping[str, Any], depth: int = 0, place: str = ""):
    for name, value in values.items():
        label = "  " * depth + str(name)
        if isinstance(value, Mapping):
            yield label, "", ""
            yield from _rows(value, n, depth + 1, f"{place}{name}/")
            continue
        count = n.get(f"{place}{name}", n.get(name, ""))
        number = isinstance(value, float | int) and not isinstance(value, bool)
        score = f"{value:.2f}" if number else "-" if value is None else str(value)
        yield label, score, count if count == "" else f"{count:,}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
