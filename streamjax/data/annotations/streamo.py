"""Streamo's raw records: one video, its timed questions and its timed answers.

Format: specs/streamo.md section 1.1. `streamjax.data.dialogue.to_stream` makes dialogues of them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamjax.data.annotations.files import BadRow, inside, read_json
from streamjax.errors import InputError

_TIMES = {"question": ("time",), "response": ("st_time", "end_time", "time")}


@dataclass(frozen=True)
class Record:
    """One raw record.

    video: the video's path, joined to the root.
    content: the record as it stands in the file, all keys kept.
    where: "file: record N", for messages.
    """

    video: Path
    content: dict[str, Any]
    where: str


def read_records(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    bad: list[BadRow] | None = None,
) -> list[Record]:
    """Every record of a file, which holds one object or a list of them.

    root: the folder that relative video paths belong to, and that none may leave; None takes
        paths as they stand, relative to the working directory.
    bad: where records that cannot be used go, instead of raising.

    InputError: not JSON; not records; a record without video, question or response; a question or
    a response without text or with a time that is no number or string; a path out of the root.
    """
    content = read_json(path)
    records = content if isinstance(content, list) else [content]
    if not records:
        raise InputError(f"{path}: holds no records; wanted at least one")
    found = []
    for i, record in enumerate(records):
        try:
            found.append(_record(record, f"{path}: record {i}", root))
        except InputError as error:
            if bad is None:
                raise
            bad.append(BadRow(str(error)))
    return found


def _record(record: Any, where: str, root: str | os.PathLike | None) -> Record:
    if not isinstance(record, dict):
        raise InputError(f"{where}: is a {type(record).__name__}; wanted an object")
    name = record.get("video_path")
    if not name:
        videos = record.get("videos")
        name = videos[0] if isinstance(videos, list) and videos else videos
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: video_path {name!r}; wanted the video's path")
    for field, times in _TIMES.items():
        for item, at in _entries(record, field, where):
            if not isinstance(item.get("content"), str):
                raise InputError(f"{at}: content {item.get('content')!r}; wanted text")
            for key in times:
                if not isinstance(item.get(key), str | int | float | None):
                    raise InputError(f"{at}: {key} {item[key]!r}; wanted seconds or a clock time")
    video = Path(name) if root is None else inside(root, name, where)
    return Record(video, record, where)


def _entries(record: dict[str, Any], field: str, where: str) -> Iterator[tuple[dict, str]]:
    items = record.get(field)
    if not isinstance(items, list):
        found = "is missing" if items is None else f"is a {type(items).__name__}"
        raise InputError(f"{where}: {field} {found}; wanted a list of objects")
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(f"{where}: {field} {i} is a {type(item).__name__}; wanted an object")
        yield item, f"{where}: {field} {i}"
