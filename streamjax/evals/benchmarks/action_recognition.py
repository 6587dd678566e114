"""Kinetics-400 and Something-Something v2: which action a clip shows, top-1 and top-5.

A folder has `test.csv` (or `val.csv`, which is the same): `name.mp4,label` or `id.webm label`. Each
video is seen several times: 4 times x 3 places for Kinetics, 2 x 3 for SSv2 (`data.sampling`,
`augment.side_window` make these views). Answers are logits per view, as the original writes them:

    view_logits/<rank>.txt   a line "top1, top5", then "<id> [logits] <label> <time> <place>"

or JSON (lines) of {id: {"<time> <place>": logits}}. A video's probabilities are the mean of its
views' softmax; a view that comes again (of another rank) is dropped. Percentages. specs/
benchmarks.md section 11.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data.annotations.files import inside
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Records,
    Scores,
    matched,
    read_answers,
)

RULES = {
    "official": "the mean of the views' probabilities; videos without views are left out",
    "streamjax": "the same, but a video without views counts as wrong",
}
LISTS = ("test.csv", "val.csv")
PLACES = 3  # left, middle, right (or top to bottom)
_ROW = re.compile(r"(?P<name>.+?)\s*[,\s]\s*(?P<label>\d+)")
_VIEW = re.compile(
    r"(?P<id>\S+)\s*\[(?P<logits>[^\]]*)\]\s*(?P<label>\d+)\s+(?P<time>\d+)\s+(?P<place>\d+)"
)
_HEADER = re.compile(r"[-+.\deE]+\s*,\s*[-+.\deE]+")


@dataclass(frozen=True)
class Clip:
    """One video of the list: its name below the videos' folder, and its class."""

    id: str
    video: str
    label: int


@dataclass
class Views:
    """What was said of one video.

    probabilities, logits: their sums over the views in `seen`, (time, place). labels: the classes
    that the file says are right. repeated: views that came again. problems: those left out.
    """

    probabilities: Any = 0.0
    logits: Any = 0.0
    seen: set[tuple[int, int]] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    classes: int | None = None
    repeated: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, view: tuple[int, int], logits: Any, where: str) -> None:
        """One more view; one that is no row of numbers, or of another length, is left out."""
        if view in self.seen:
            self.repeated += 1
            return
        try:
            row = np.asarray(logits, np.float64)
        except (TypeError, ValueError):
            row = np.zeros(())
        if row.ndim != 1 or not row.size or not np.isfinite(row).all():
            self.problems.append(f"{where}: wanted finite logits, a number per class; left out")
        elif self.classes is not None and row.size != self.classes:
            self.problems.append(f"{where}: {row.size} logits; the first has {self.classes}")
        else:
            power = np.exp(row - row.max())
            self.probabilities = self.probabilities + power / power.sum()
            self.logits, self.classes = self.logits + row, row.size
            self.seen.add(view)


def read(folder: Path, *, classes: int) -> Records:
    """The videos of the list. `folder` may be the list itself.

    InputError: no list, or none of its rows can be used.
    """
    path = folder
    if not folder.is_file():
        path = next((folder / n for n in LISTS if (folder / n).is_file()), folder / LISTS[0])
    clips: dict[str, Clip] = {}
    problems = []
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            row = _ROW.fullmatch(line)
            if row is None:
                raise InputError(f"{where}: {line[:60]!r}; wanted name,label or name label")
            inside(folder, row["name"], where)
            clip = Clip(_id(row["name"]), row["name"], int(row["label"]))
            if clip.label >= classes:
                raise InputError(f"{where}: label {clip.label}; wanted one of {classes} classes")
            if clip.id in clips:
                raise InputError(f"{where}: {clip.id!r} stands there twice; the first is taken")
            clips[clip.id] = clip
        except InputError as error:
            problems.append(str(error))
    if not clips:
        raise InputError(f"{problems[0] if problems else path}: no row can be used")
    return Records(list(clips.values()), [path], tuple(problems))


def answers(path: Path) -> Mapping[str, Any]:
    """{id: Views} of a folder of text files, of one, or of JSON (lines).

    InputError: none of these, or a line that names no video.
    """
    if path.is_file() and path.suffix in (".json", ".jsonl"):
        return {str(key): _of_json(key, views) for key, views in read_answers(path).items()}
    nested = path / "view_logits"
    path = nested if nested.is_dir() else path
    files = sorted(path.glob("*.txt"), key=lambda f: (len(f.stem), f.stem))
    if path.is_file():
        files = [path]
    if not files:
        raise InputError(f"{path}: no .txt file; wanted <rank>.txt with a view's logits in a line")
    found: dict[str, Views] = {}
    for file in files:
        for number, line in _lines(file):
            if _HEADER.fullmatch(line) or (number == 1 and "[" not in line):
                continue
            where = f"{file}: line {number}"
            row = _VIEW.fullmatch(line)
            if row is None:
                name = line.split("[")[0].strip()
                if "[" not in line or not name:
                    raise InputError(f"{where}: {line[:60]!r}; wanted id [logits] label time place")
                problem = f"{where}: not id [logits] label time place; left out"
                found.setdefault(name, Views()).problems.append(problem)
                continue
            views = found.setdefault(row["id"], Views())
            views.add((int(row["time"]), int(row["place"])), row["logits"].split(","), where)
            views.labels.add(int(row["label"]))
    return found


def score(
    records: Records, replies: Mapping[str, Any], rule: str, *, classes: int, times: int
) -> Scores:
    """top1 and top5. InputError where no video has usable views."""
    clips: Sequence[Clip] = records.records
    problems = [*records.problems, *matched([c.id for c in clips], replies, "list")]
    graded, five, of_logits, sizes, repeated, unusable = [], [], [], [], 0, 0
    for clip in clips:
        views = replies.get(clip.id)
        told = "" if views is None else _unfit(views, clip, classes)
        if views is not None:
            problems += views.problems
            repeated += views.repeated
        if views is None or told:
            unusable += bool(told)
            problems += [told] if told else []
            wrong = 0.0 if rule == "streamjax" else None
            graded.append(Graded(clip.id, "top1", wrong, clip.video, None, views is not None))
            continue
        best = np.argsort(-views.probabilities, kind="stable")[:5].tolist()
        right = float(best[0] == clip.label)
        graded.append(Graded(clip.id, "top1", right, clip.video, best))
        five.append(float(clip.label in best))
        of_logits.append(float(views.logits.argmax() == clip.label))
        sizes.append(len(views.seen))
    if not five:
        raise InputError(f"{problems[-1]} (none of {len(clips)} videos can be scored)")
    odd = sum(size != times * PLACES for size in sizes)
    if odd:
        problems.append(f"{odd} videos have not {times} x {PLACES} views, first {sizes[0]}")
    counted = [one.score for one in graded if one.score is not None]
    return Scores(
        table={"top1": 100 * sum(counted) / len(counted), "top5": 100 * sum(five) / len(counted)},
        n={"top1": len(counted), "top5": len(counted)},
        graded=tuple(graded),
        unanswered=sum(not one.answered for one in graded),
        unparsed=unusable,
        problems=tuple(problems),
        details={
            "views": sum(sizes),
            "repeated_views": repeated,
            "top1_if_logits_were_averaged_instead": 100 * sum(of_logits) / len(counted),
        },
    )


def tabulate(graded: Sequence[Graded], rule: str) -> Mapping[str, Any]:
    """top1 alone: what the scores of answers are."""
    scores = [one.score for one in graded if one.score is not None]
    return {"top1": 100 * sum(scores) / len(scores) if scores else 0.0}


def _unfit(views: Views, clip: Clip, classes: int) -> str:
    """Why these are not views of that clip; nothing where they are."""
    if not views.seen:
        return f"{clip.id!r}: none of its views can be used"
    if views.classes != classes:
        return f"{clip.id!r}: {views.classes} logits; wanted {classes}, one per class"
    if views.labels - {clip.label}:
        return f"{clip.id!r}: label {min(views.labels - {clip.label})}; the list says {clip.label}"
    return ""


def _of_json(key: Any, given: Any) -> Views:
    views = Views()
    if not isinstance(given, Mapping):
        views.problems.append(f"{key!r}: a {type(given).__name__}; wanted {{time place: logits}}")
        return views
    for name, logits in given.items():
        where, place = f"{key!r}, view {name!r}", re.fullmatch(r"(\d+)[ ,]+(\d+)", str(name))
        if place is None:
            views.problems.append(f"{where}: wanted its time and place, such as '0 2'")
        else:
            views.add((int(place[1]), int(place[2])), logits, where)
    return views


def _id(name: str) -> str:
    """As the original cuts it: the last part of the path up to its first dot."""
    return name.rsplit("/", 1)[-1].split(".")[0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: no text; wanted lines") from None


def _benchmark(name: str, title: str, classes: int, times: int) -> Benchmark:
    scorer = functools.partial(score, classes=classes, times=times)
    reader = functools.partial(read, classes=classes)
    return Benchmark(name, title, RULES, reader, answers, scorer, tabulate)


K400 = _benchmark("ar_k400", "Kinetics-400", classes=400, times=4)
SSV2 = _benchmark("ar_ssv2", "Something-Something v2", classes=174, times=2)
