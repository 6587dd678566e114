"""Two results side by side: scores, differences, and how sure one can be of them.

Intervals are percentiles of a bootstrap over videos: as many as there are, drawn with replacement,
all answers about a video together, and the same draws for both results. So questions about one
video are not taken for independent ones, and what is hard for both does not hide a difference.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.errors import InputError
from streamjax.evals import benchmarks
from streamjax.evals.benchmarks.benchmark import Graded
from streamjax.evals.harness.manifest import check_comparable
from streamjax.evals.harness.running import RESULT

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Row:
    """One column of the table: both scores, the second less the first, and 95 % intervals."""

    name: str
    a: float | None
    b: float | None
    difference: float | None
    a_interval: Interval
    b_interval: Interval
    difference_interval: Interval


def read_result(path: Path) -> dict[str, Any]:
    """A result: the JSON of a run or of `eval score --out`, or a run's folder.

    Raises InputError for anything else.
    """
    path = path / RESULT if path.is_dir() else path
    try:
        found = json.loads(path.read_text("utf-8"))
        _ = found["benchmark"], found["rule"], found["manifest"]["data"], found["graded"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; wanted the result of a run") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: no result of streamjax eval or eval score") from None
    return found


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    across: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Two results (`read_result`), column by column; the same seed gives the same intervals.

    across: fields of the manifests that may differ. Raises InputError, with the field's name, for
    results that were not made alike, and where their answers are not to the same items.
    """
    check_comparable(a["manifest"], b["manifest"], across=across)
    first, second = _graded(a), _graded(b)
    if {g.id for g in first} != {g.id for g in second}:
        alone = sorted({g.id for g in first} ^ {g.id for g in second})
        raise InputError(
            f"{len(alone)} scores are in one result alone, first {alone[0]!r}: wanted scores of "
            "the same items"
        )
    make, rule = _tabulation(a["benchmark"]), a["rule"]
    rules = (rule, b["rule"])

    def tables(draw: list[list[Graded]]) -> list[dict[str, float | None]]:
        return [dict(_leaves(make(graded, rule))) for graded, rule in zip(draw, rules, strict=True)]

    whole = tables([first, second])
    names = [name for name in whole[0] if name in whole[1]]
    clusters = [_by_video(first), _by_video(second)]
    videos = list(clusters[0])
    rng = np.random.default_rng(seed)
    drawn: list[list[dict[str, float | None]]] = []
    for _ in range(draws):
        picked = [videos[i] for i in rng.integers(0, len(videos), len(videos))]
        drawn.append(tables([[g for v in picked for g in by[v]] for by in clusters]))
    rows = []
    for name in names:
        values = [(table_a.get(name), table_b.get(name)) for table_a, table_b in drawn]
        rows.append(
            Row(
                name,
                whole[0][name],
                whole[1][name],
                _less(whole[1][name], whole[0][name]),
                _interval([x for x, _ in values]),
                _interval([y for _, y in values]),
                _interval([_less(y, x) for x, y in values]),
            )
        )
    return rows


def _tabulation(name: str) -> Callable[[Sequence[Graded], str], Mapping[str, Any]]:
    """What makes a table of a benchmark's scores."""
    if name == "timing":  # ours, on any dialogues: no benchmark of others
        from streamjax.evals.timing.report import tabulate

        return tabulate
    benchmark = benchmarks.find(name)
    if benchmark.tabulate is None:
        raise InputError(
            f"{benchmark.name}: its scores are no means over items, which could be drawn again"
        )
    return benchmark.tabulate


def table(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """For people: a line a column; intervals of 95 % behind the scores and the difference."""
    heads = ("", *names, "difference")
    lines = [heads]
    for row in rows:
        cells = (
            _told(row.a, row.a_interval),
            _told(row.b, row.b_interval),
            _told(row.difference, row.difference_interval, sign=True),
        )
        lines.append((row.name, *cells))
    wide = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *(line[i].rjust(wide[i]) for i in (1, 2, 3))]).rstrip()
        for line in lines
    )


def _graded(result: Mapping[str, Any]) -> list[Graded]:
    try:
        return [Graded(**row) for row in result["graded"]]
    except TypeError:
        raise InputError("a result's `graded` has other fields: made by another version") from None


def _by_video(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    found: dict[str, list[Graded]] = {}
    for one in graded:
        found.setdefault(one.video or one.id, []).append(one)
    return found


def _leaves(values: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, float | None]]:
    """Columns of tables in tables, by their path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{front}{name} / ")
        else:
            number = value is not None and np.isfinite(value)
            yield f"{front}{name}", float(value) if number else None


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _interval(values: Sequence[float | None]) -> Interval:
    """The middle 95 %; draws without an answer that counts say nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _told(value: float | None, interval: Interval, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    form = "+.2f" if sign else ".2f"
    low, high = interval
    return format(value, form) + (
        "" if low is None or high is None else f" [{format(low, form)}, {format(high, form)}]"
    )
