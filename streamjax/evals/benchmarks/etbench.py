"""E.T. Bench: twelve tasks about when things happen, of which eight need no other model to score.

A reply is read for spans: `a - b`, else `a to b`, else the numbers after "start" and "end". Per
task and source of videos:

    rar eca rvq  the letter in parentheses, else the one that the reply begins with; accuracy
    tvg epm      IoU of the first span; recall at IoU .1 .3 .5 .7 and their mean (the paper's "F1")
    tem          the same, with the best of the windows that count as right
    tal          F1 of spans at each of those IoU: a span is right that overlaps any window so far
    evs          F1 of seconds, rounded, up to 1000; replies without a span are left out
    vhd          is the first number in any of the windows?

A reply without a span counts as Failed and as 0, but for evs. The official scorer takes a reply
without a letter for the option whose sentence embedding is nearest; here one that is no option's
text counts as wrong and as unparsed. dvc and slc (captions) and gvq need pycocoevalcap or that
embedding, and are counted in `details["not_scored"]`. specs/benchmarks.md section 10; arXiv
2409.18111.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data.annotations.et_instruct import filled, times_of
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Question,
    Records,
    Scores,
    matched,
    read_answers,
    read_json,
)

VERSION = 1.0
CHOICES = ("rar", "eca", "rvq")
FIRST_SPANS = ("tvg", "epm", "tem")
SCORED = (*CHOICES, "tvg", "epm", "tal", "evs", "vhd", "tem")
NOT_SCORED = {
    "dvc": "METEOR, ROUGE, CIDEr and sentence similarity",
    "slc": "METEOR, ROUGE, CIDEr and sentence similarity",
    "gvq": "sentence similarity",
}
OVERLAPS = (0.1, 0.3, 0.5, 0.7)
SECONDS = 1000

Span = tuple[float, float]


@dataclass(frozen=True)
class Item:
    """One question. windows: when it is true, in seconds. choice: the right one of the options."""

    id: str
    task: str
    source: str
    video: str
    question: str
    windows: tuple[Span, ...] = ()
    choice: int = 0
    options: tuple[str, ...] = ()


def spans(reply: str) -> list[Span]:
    """The stretches of time that a reply names, each from the smaller to the larger number."""
    text, number = reply.lower(), r"(\d+\.?\d*)"
    for between in (r"\s*-\s*", r"\s*to\s*"):
        if found := re.findall(number + between + number, text):
            break
    else:
        starts, ends = (re.findall(word + r"\D*" + number, text) for word in ("start", "end"))
        found = list(zip(starts, ends, strict=False))
    pairs = [(float(a), float(b)) for a, b in found]
    return [(min(pair), max(pair)) for pair in pairs]


def letter(reply: str) -> int | None:
    """The option that a reply names, from 0; None where it names none."""
    found = re.search(r"\(([A-Za-z])\)", reply) or re.match(r"\s*([A-Za-z])(?![A-Za-z])", reply)
    return None if found is None else ord(found[1].upper()) - ord("A")


def read(folder: Path) -> Records:
    """The questions of `etbench_txt_v1.0.json`, or of the file whose times are `<vid>`s.

    InputError: neither is there, or of another version. A record that cannot be scored is a
    problem.
    """
    found = [folder / f"etbench_{style}_v{VERSION}.json" for style in ("txt", "vid")]
    found = [path for path in found if path.is_file()]
    if not found:
        others = sorted(path.name for path in folder.glob("etbench*.json"))
        raise InputError(
            f"{folder}: {', '.join(others) or 'no E.T. Bench'}; wanted etbench_txt_v{VERSION}.json"
        )
    path = found[0]
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: holds no list of records; wanted those of E.T. Bench {VERSION}")
    items: dict[str, Item] = {}
    problems = []
    for i, record in enumerate(content):
        try:
            item = _item(record, f"{path}: record {i}")
            if item.id in items:
                raise InputError(f"{path}: record {i}: idx {item.id} stands there twice")
            items[item.id] = item
        except InputError as error:
            problems.append(str(error))
    if not items:
        raise InputError(f"{problems[0]} (and {len(problems) - 1} more; none can be used)")
    return Records(list(items.values()), [path], tuple(problems))


def answers(path: Path) -> Mapping[str, Any]:
    """Replies by `idx`: {id: text}, JSON lines, or the official list of records with `a`."""
    if path.suffix == ".jsonl":
        return read_answers(path)
    found = read_json(path)
    if not isinstance(found, list):
        return read_answers(path)
    replies: dict[str, Any] = {}
    for i, record in enumerate(found):
        if not isinstance(record, dict) or "idx" not in record or "a" not in record:
            raise InputError(f"{path}: record {i} is {str(record)[:60]}; wanted idx and a")
        if str(record["idx"]) in replies:
            raise InputError(f"{path}: record {i}: idx {record['idx']} stands there twice")
        replies[str(record["idx"])] = record["a"]
    return replies


def score(records: Records, replies: Mapping[str, Any], rule: str) -> Scores:
    """Table {task: {source: scores}} as the official file has it, fractions."""
    items: Sequence[Item] = records.records
    problems = [*records.problems, *matched([item.id for item in items], replies, "E.T. Bench")]
    groups: dict[str, dict[str, list[_Marked]]] = {}
    left_out: dict[str, int] = {}
    for item in items:
        if item.task in NOT_SCORED:
            left_out[item.task] = left_out.get(item.task, 0) + 1
            continue
        reply = replies.get(item.id)
        if reply is not None and not isinstance(reply, str):
            problems.append(f"answer {item.id!r} is a {type(reply).__name__}, wanted text or null")
            reply = None
        marked = _marked(item, reply)
        groups.setdefault(item.task, {}).setdefault(item.source, []).append(marked)
    for task, count in left_out.items():
        problems.append(f"{task}: {count} not scored, needs {NOT_SCORED[task]}")
    table = {
        task: {source: _table(task, marked) for source, marked in groups[task].items()}
        for task in [task for task in SCORED if task in groups]
    }
    graded = tuple(
        m.graded for by_source in groups.values() for ms in by_source.values() for m in ms
    )
    failed = [one for one in graded if one.parsed is None]
    return Scores(
        table=table,
        n={f"{t}/{s}": len(ms) for t, by_source in groups.items() for s, ms in by_source.items()},
        graded=graded,
        unanswered=sum(not one.answered for one in failed),
        unparsed=sum(one.answered for one in failed),
        problems=tuple(problems),
        details={"task_means": tabulate(graded, rule), "not_scored": left_out},
    )


def tabulate(graded: Sequence[Graded], rule: str) -> Mapping[str, Any]:
    """The paper's columns: per task the mean over sources of their mean scores."""
    groups: dict[str, dict[str, list[float]]] = {}
    for one in graded:
        task, source = one.group.split("/", 1)
        scores = groups.setdefault(task, {}).setdefault(source, [])
        if one.score is not None:
            scores.append(one.score)
    return {
        task: _mean([_mean(s) for s in groups[task].values()]) for task in SCORED if task in groups
    }


def questions(records: Records, protocol: str) -> Sequence[Question]:
    """Each question as it stands, over the whole video."""
    return [
        Question(item.id, item.video, item.question, max_new_tokens=256) for item in records.records
    ]


# --- one answer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Marked:
    """iou: of the first span. marks: at each of OVERLAPS, of the tasks that have them."""

    graded: Graded
    iou: float = 0.0
    marks: tuple[float, ...] = (0.0,) * len(OVERLAPS)


def _marked(item: Item, reply: str | None) -> _Marked:
    def graded(score: float | None, parsed: Any) -> Graded:
        group = f"{item.task}/{item.source}"
        return Graded(item.id, group, score, item.video, parsed, reply is not None)

    text = reply or ""
    if item.task in CHOICES:
        said = letter(text)
        if said is None:
            said = next((i for i, o in enumerate(item.options) if _bare(o) == _bare(text)), None)
        return _Marked(graded(float(said == item.choice), said))
    if item.task == "vhd":
        found = re.search(r"\d+\.?\d*", text)
        if found is None:
            return _Marked(graded(0.0, None))
        second = float(found[0])
        return _Marked(graded(float(any(a <= second <= b for a, b in item.windows)), second))
    said = spans(text)
    if not said:
        return _Marked(graded(None if item.task == "evs" else 0.0, None))
    if item.task == "evs":
        return _Marked(graded(_f1_of_seconds(said, item.windows), said))
    overlaps = np.array([[_iou(span, window) for window in item.windows] for span in said])
    if item.task == "tal":
        marks = tuple(_f1_of_spans(overlaps, at) for at in OVERLAPS)
        return _Marked(graded(float(np.mean(marks)), said), marks=marks)
    best = float(overlaps[0].max())
    marks = tuple(float(best >= at) for at in OVERLAPS)
    return _Marked(graded(float(np.mean(marks)), said[:1]), best, marks)


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _iou(a: Span, b: Span) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    either = a[1] - a[0] + b[1] - b[0] - common
    return common / either if either > 0 else 0.0


def _f1_of_spans(overlaps: np.ndarray, at: float) -> float:
    """overlaps [spans, windows]; nothing keeps a window from making several spans right."""
    precision, recall = ((overlaps.max(axis) >= at).mean() for axis in (1, 0))
    return float(2 * precision * recall / (precision + recall)) if precision else 0.0


def _f1_of_seconds(said: Sequence[Span], true: Sequence[Span]) -> float:
    grids = np.zeros((2, SECONDS), bool)
    for grid, stretches in zip(grids, (said, true), strict=True):
        for start, end in stretches:
            grid[max(0, round(start)) : max(0, round(end))] = True
    both, either = grids.all(0).sum(), grids.sum()
    return float(2 * both / either) if both else 0.0


# --- one source of one task ----------------------------------------------------------------------


def _table(task: str, marked: Sequence[_Marked]) -> dict[str, Any]:
    graded = [one.graded for one in marked]
    head = {"Total": len(graded), "Failed": sum(one.parsed is None for one in graded)}
    scores = [one.score for one in graded if one.score is not None]
    mean = _mean(scores)
    if task in CHOICES:
        return head | {"Acc": mean}
    if task in ("vhd", "evs"):
        return head | {"F1": mean}
    at = np.mean([one.marks for one in marked], axis=0).tolist()
    if task == "tal":
        return head | {f"F1@{t}": v for t, v in zip(OVERLAPS, at, strict=True)} | {"F1": mean}
    named = {f"@{t}": v for t, v in zip(OVERLAPS, at, strict=True)}
    return head | {"mIoU": float(np.mean([one.iou for one in marked]))} | named | {"mean": mean}


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else 0.0


# --- records -------------------------------------------------------------------------------------


def _item(record: Any, where: str) -> Item:
    if not isinstance(record, dict):
        raise InputError(f"{where}: is a {type(record).__name__}; wanted an object")
    if record.get("version") != VERSION:
        raise InputError(f"{where}: version {record.get('version')!r}; wanted {VERSION}")
    if not isinstance(record.get("idx"), int | str):
        raise InputError(f"{where}: idx {record.get('idx')!r}; wanted a number")
    for field in ("task", "source", "video", "q"):
        if not isinstance(record.get(field), str):
            raise InputError(f"{where}: {field} {record.get(field)!r}; wanted text")
    task = record["task"]
    if task not in SCORED and task not in NOT_SCORED:
        raise InputError(
            f"{where}: task {task!r}; wanted one of {', '.join((*SCORED, *NOT_SCORED))}"
        )
    times = (f"{value}" for value in times_of(record, "src", where) or ())
    question = filled(record["q"], times, where)
    base = Item(str(record["idx"]), task, record["source"], record["video"], question)
    if task in NOT_SCORED:
        return base
    if task in CHOICES:
        options, choice = record.get("o"), record.get("p")
        if not isinstance(options, list) or len(options) < 2:
            raise InputError(f"{where}: o {options!r}; wanted a list of two options or more")
        if (
            not isinstance(choice, int)
            or isinstance(choice, bool)
            or not 0 <= choice < len(options)
        ):
            raise InputError(
                f"{where}: p {choice!r}; wanted the right one of {len(options)}, from 0"
            )
        return Item(**vars(base) | {"choice": choice, "options": tuple(map(str, options))})
    flat = times_of(record, "tgt", where)
    if not flat or len(flat) % 2:
        raise InputError(
            f"{where}: tgt {str(record.get('tgt'))[:60]}; wanted [start, end] or several"
        )
    return Item(**vars(base) | {"windows": tuple(_pairs(flat))})


def _pairs(flat: Sequence[int | float]) -> Iterator[Span]:
    """However deeply the windows lie in lists, times come in twos."""
    for a, b in zip(flat[::2], flat[1::2], strict=True):
        yield float(a), float(b)


ETBENCH = Benchmark(
    name="etbench",
    title="E.T. Bench",
    rules={
        "official": "compute_metrics.py as transcribed; a choice without letter or text is wrong"
    },
    read=read,
    answers=answers,
    score=score,
    tabulate=tabulate,
    protocols={"whole": "the question as it stands, over the whole video"},
    questions=questions,
)
