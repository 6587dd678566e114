"""What all readers share: tables, JSON, label maps and paths that stay inside their folder."""

import ast
import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from streamjax.data.media import Media, opened, told_name
from streamjax.errors import InputError

Record = TypeVar("Record")


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that cannot be used, so that it is met and counted in training."""

    reason: str


def read_json(media: Media) -> Any:
    """The content of a JSON file. InputError: missing, not UTF-8, not JSON (with its line)."""
    path = told_name(media)
    try:
        with opened(media) as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; wanted JSON") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: not JSON ({error.msg}); the file is corrupt or cut short"
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON nested too deeply; wanted annotations") from error


def read_table(
    path: str | os.PathLike,
    columns: Sequence[str],
    make: Callable[[dict[str, str], str], Record],
    *,
    header: bool = True,
    bad: list[BadRow] | None = None,
) -> list[Record]:
    """`make(row, "file: line N")` of every row of a comma-separated table; a row is {column: text}.

    With a header, other columns and any order are allowed; without, the columns are those named.
    InputError: missing, not UTF-8, a column missing. A row with too few or too many cells, or
    that `make` refuses with an InputError, is one too, or goes to the list `bad`.
    """
    found = []
    for where, names, cells in _rows(path, columns, header):
        try:
            if len(cells) != len(names):
                raise InputError(f"{where}: {len(cells)} cells; wanted {len(names)}: {names}")
            found.append(make(dict(zip(names, cells, strict=True)), where))
        except InputError as error:
            if bad is None:
                raise
            bad.append(BadRow(str(error)))
    return found


def _rows(
    path: str | os.PathLike, columns: Sequence[str], header: bool
) -> Iterator[tuple[str, list[str], list[str]]]:
    """("file: line N", names of the columns, cells) of every row that is not empty."""
    path = Path(path)
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            names = list(columns)
            if header:
                names = next(table, [])
                missing = [c for c in columns if c not in names]
                if missing:
                    raise InputError(f"{path}: line 1: columns {names}; lacks {missing}")
            for cells in table:
                line = table.line_num
                if cells:
                    yield f"{path}: line {line}", names, cells
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text after line {line}; wanted a table") from error
    except csv.Error as error:
        raise InputError(f"{path}: after line {line}: not a table ({error})") from error


def read_labels(path: str | os.PathLike) -> dict[str, int]:
    """A label map {label: id}. Ids follow the order of the file, 0, 1, 2, ...: class features are
    stacked in that order (specs/streamformer.md 6.1). InputError otherwise.
    """
    return check_labels(read_json(path), str(path))


def read_label_sets(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    """A label map per data set, {data set: {label: id}}; each as in `read_labels`."""
    sets = read_json(path)
    if not isinstance(sets, dict) or not sets:
        raise InputError(f"{path}: holds {_kind(sets)}; wanted {{data set: {{label: id}}}}")
    return {name: check_labels(labels, f"{path}: {name}") for name, labels in sets.items()}


def check_labels(labels: Any, where: str) -> dict[str, int]:
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{where}: holds {_kind(labels)}; wanted {{label: id}}")
    for place, (label, number) in enumerate(labels.items()):
        if number != place or isinstance(number, bool):
            raise InputError(
                f"{where}: label {label!r} has id {number!r}; wanted {place}, its place in the file"
            )
    return labels


def label_id(labels: Mapping[str, int], label: str, where: str) -> int:
    if not label.strip():
        raise InputError(f"{where}: label is empty; wanted one of the {len(labels)} in label2id")
    if label not in labels:
        raise InputError(f"{where}: label {label!r} is not one of the {len(labels)} in label2id")
    return labels[label]


def inside(root: str | os.PathLike, name: str, where: str) -> Path:
    """`root/name`. InputError where that is no path, or one outside of `root`."""
    if not name or "\0" in name:
        raise InputError(f"{where}: path {name!r}; wanted one relative to {root}")
    root = os.path.normpath(root)
    path = os.path.normpath(os.path.join(root, name))
    if os.path.commonpath([os.path.abspath(root), os.path.abspath(path)]) != os.path.abspath(root):
        raise InputError(f"{where}: path {name!r} leaves {root}; wanted one inside of it")
    return Path(path)


def number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column} {text!r}; wanted a number")
    return value


def literal(text: str, column: str, where: str) -> list[Any]:
    """A cell that holds a Python list."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = None
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: {column} {text[:60]!r}; wanted a list such as [1, 2]")
    return list(value)


def _kind(value: Any) -> str:
    return "nothing" if value in (None, {}, []) else f"a {type(value).__name__}"
