"""E.T. Instruct 164K: questions about moments of a video, and answers that name seconds.

Nine tasks over 101 thousand videos, as a list of records in two files that say the same: in
`et_instruct_164k_txt.json` times stand in the text, in `et_instruct_164k_vid.json` each is a
`<vid>` and its value is in `src` (what the human says) or `tgt` (what the answer says). Format:
specs/benchmarks.md section 10.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamjax.data.annotations.files import BadRow, inside, read_json
from streamjax.errors import InputError

TIME = "<vid>"
_ROLES = ("human", "gpt")


@dataclass(frozen=True)
class Instruction:
    """One record, its times in the text.

    turns: (what the human says, the answer), times in seconds; `<image>` stands where the video
    goes. duration: of the video, in seconds. src, tgt: the times of the questions and of the
    answers, in their order; None where the record has none.
    """

    video: Path
    task: str
    source: str
    duration: int | float
    turns: tuple[tuple[str, str], ...]
    src: tuple[int | float, ...] | None
    tgt: tuple[int | float, ...] | None


def read_instructions(
    path: str | os.PathLike, *, root: str | os.PathLike, bad: list[BadRow] | None = None
) -> list[Instruction]:
    """Every record of either file.

    root: the folder of the videos.
    InputError: no list of records. A record without task, source, video, duration or conversations,
    whose turns are not human and gpt by turns, whose times are no numbers or not as many as its
    `<vid>`s, or whose video is outside of the root, is one too, or goes to the list `bad`.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds {found}; wanted a list of records")
    records = []
    for i, record in enumerate(content):
        try:
            records.append(_instruction(record, f"{path}: record {i}", root))
        except InputError as error:
            if bad is None:
                raise
            bad.append(BadRow(str(error)))
    return records


def filled(text: str, times: Iterator[str], where: str) -> str:
    """The text with each `<vid>` replaced by the next of the times.

    InputError where there are fewer times than that.
    """
    first, *rest = text.split(TIME)
    try:
        return "".join([first, *[next(times) + part for part in rest]])
    except StopIteration:
        raise InputError(f"{where}: more {TIME} than times; wanted one each") from None


def times_of(record: dict[str, Any], field: str, where: str) -> tuple[int | float, ...] | None:
    """The numbers of `src` or `tgt`, lists in lists one after the other; None where it has none.

    InputError where one is no number.
    """
    found = record.get(field)
    if found is None:
        return None
    flat = tuple(_flat(found))
    numbers = [x for x in flat if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) < len(flat) or not all(math.isfinite(x) for x in numbers):
        raise InputError(f"{where}: {field} {str(found)[:60]}; wanted seconds")
    return flat


def _instruction(record: Any, where: str, root: str | os.PathLike) -> Instruction:
    if not isinstance(record, dict):
        raise InputError(f"{where}: is a {type(record).__name__}; wanted an object")
    for field in ("task", "source", "video"):
        if not isinstance(record.get(field), str):
            raise InputError(f"{where}: {field} {record.get(field)!r}; wanted text")
    duration = record.get("duration")
    if not isinstance(duration, int | float) or isinstance(duration, bool):
        raise InputError(f"{where}: duration {duration!r}; wanted seconds")
    src, tgt = (times_of(record, field, where) for field in ("src", "tgt"))
    turns = _turns(record.get("conversations"), src, tgt, where)
    video = inside(root, record["video"], where)
    return Instruction(video, record["task"], record["source"], duration, turns, src, tgt)


def _turns(
    said: Any, src: Sequence[int | float] | None, tgt: Sequence[int | float] | None, where: str
) -> tuple[tuple[str, str], ...]:
    if not isinstance(said, list) or not said or len(said) % 2:
        raise InputError(f"{where}: conversations {str(said)[:60]}; wanted human, gpt by turns")
    times = {who: map(json.dumps, found or ()) for who, found in (("human", src), ("gpt", tgt))}
    texts, marked = [], dict.fromkeys(_ROLES, False)
    for i, turn in enumerate(said):
        who = _ROLES[i % 2]
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(text, str) or turn.get("from") != who:
            raise InputError(f"{where}: turn {i} is {str(turn)[:60]}; wanted what the {who} says")
        marked[who] |= TIME in text
        texts.append(filled(text, times[who], f"{where}: turn {i}"))
    for who, left in times.items():
        if marked[who] and next(left, None) is not None:
            raise InputError(f"{where}: fewer {TIME} than times of the {who}; wanted one each")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _flat(found: Any) -> Iterator[Any]:
    if isinstance(found, list):
        for one in found:
            yield from _flat(one)
    else:
        yield found
