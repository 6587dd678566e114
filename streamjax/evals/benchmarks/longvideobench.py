"""LongVideoBench, the validation set: questions on a moment of a video of up to an hour.

Annotations: the authors' list (`lvb_val.json`) or rows of the hub's table (`lvb_val_hf_rows.json`,
`validation.jsonl`), whose options are `option0` to `option4`, "N/A" where there is none; beside it
`subtitles/`, if frames and subtitles are to be interleaved. A question's id is its `id`. The
authors have released no scorer, they point to lmms-eval's. specs/benchmarks.md section 8.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.errors import InputError
from streamjax.evals.benchmarks import choices
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

FILES = ("lvb_val.json", "lvb_val*.json*", "validation*.json*")
LETTERS = "ABCDE"
FRAMES = 16

WORDS = (
    "the first capital A to E once some phrases are out (lmms-eval {}); an answer without one is "
    "wrong, where that code draws a letter by chance"
)
RULES = {
    "lmms_eval_2026": WORDS.format("0.7.2"),
    "lmms_eval_legacy": WORDS.format("0.3.0, the same"),
}
PROTOCOLS = {
    "lmms_eval_v": "the video alone (lmms-eval's longvideobench_val_v)",
    "lmms_eval_i": "16 frames, one a second at most, with the subtitles between them (lmms-eval's "
    "longvideobench_val_i)",
}
INSTRUCTION = "Answer with the option's letter from the given choices directly."
# Where a frame stands in a prompt.
IMAGE = "<image>"


@dataclasses.dataclass(frozen=True)
class Subtitle:
    """Words and when they are said, in seconds of what the video was cut from; an `end` of None is
    unknown.
    """

    start: float
    end: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Asked(choices.Choice):
    """One question; `task` is its category. group: what lengths of videos it counts for. seconds:
    of its video. said_from: the second of the subtitles at which the video begins. subtitles: None
    where they are not there.
    """

    group: str = ""
    seconds: float = 0.0
    said_from: float = 0.0
    subtitles: tuple[Subtitle, ...] | None = None


def read(folder: Path) -> Records:
    """The questions of a folder, with their subtitles where it has `subtitles/`.

    Raises InputError where no file of questions is there, or none is of this benchmark's form.
    """
    file = choices.find_file(folder, FILES, "LongVideoBench")
    rows = ((f"{file.name}, record {k}", row) for k, row in enumerate(choices.read_rows(file)))
    home = folder / "subtitles"
    make = functools.partial(_asked, home if home.is_dir() else None)
    records, problems = choices.gather(rows, make, "LongVideoBench")
    without = [one for one in records if home.is_dir() and one.subtitles is None]
    if without:
        problems += (
            f"{len(without)} questions have no subtitles in {home.name}/, or unreadable ones, "
            f"first {without[0].id!r}; lmms_eval_i shows them frames alone",
        )
    return Records(records, [file, *sorted(home.glob("*.json"))], problems)


def letter_of(text: str) -> str:
    """The letter in an answer; "" where there is none."""
    return choices.first_letter(text, choices.LONGVIDEOBENCH_PHRASES, LETTERS)


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """Accuracy over all questions, over those of each group of lengths and of each category.

    It is told as lmms-eval does, a fraction with five places, and in percent.
    """
    said, odd = choices.told(answers)
    asked: Sequence[Asked] = records.records
    known = [one.id for one in asked]
    problems = [*records.problems, *odd, *matched(known, answers, "LongVideoBench")]
    graded = choices.graded(asked, said, letter_of, group=lambda one: f"{one.group} {one.task}")
    if without := sum(not one.parsed for one in graded):
        problems.append(
            f"{without} answers have no letter A to E and are wrong; lmms-eval draws one by chance"
        )
    return Scores(
        table=tabulate(graded, rule),
        n=choices.counted(
            {"overall_fraction_rounded5_lmms_eval": graded, "overall_percent": graded}
            | _parts(graded)
        ),
        graded=graded,
        unanswered=choices.unanswered(graded),
        unparsed=choices.unread(graded),
        problems=tuple(problems),
        details={"parsed": {one.id: one.parsed for one in graded}},
    )


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, Any]:
    """The fraction that lmms-eval tells, and percentages. A score's group is "length category"."""
    del rule
    parts = _parts(graded)
    # Each answer counts twice, for its length and for its category, summed as lmms-eval does: the
    # fifth place may hang on it.
    twice = sum(_mean(part) * len(part) for part in parts.values())
    lengths = dict.fromkeys(one.group.partition(" ")[0] for one in graded)
    categories = dict.fromkeys(one.group.partition(" ")[2] for one in graded)
    return {
        "overall_fraction_rounded5_lmms_eval": round(twice / max(2 * len(graded), 1), 5),
        "overall_percent": 100 * _mean(graded),
        "per_duration_percent": {name: choices.percent(parts[name]) for name in lengths},
        "per_category_percent": {name: choices.percent(parts[name]) for name in categories},
    }


def questions(records: Records, protocol: str) -> list[Question]:
    """Each question with 16 frames of its whole video, alone or among its subtitles.

    Raises InputError where subtitles are wanted and there are none.
    """
    asked: Sequence[Asked] = records.records
    if protocol == "lmms_eval_v":
        return [
            Question(one.id, one.video, f"{_block(one)}\n{INSTRUCTION}\n", frames=FRAMES)
            for one in asked
        ]
    if all(one.subtitles is None for one in asked):
        raise InputError(
            f"protocol {protocol}: no subtitles/ beside the annotations, wanted the JSON files of "
            "subtitles.tar; unpack it there, or take lmms_eval_v"
        )
    return [_among_subtitles(one) for one in asked]


def frame_indices(seconds: float, fps: float, most: int = FRAMES) -> list[int]:
    """The authors' frames: at equal distances from the first on, one a second at most."""
    count = max(1, min(most, int(seconds)))
    step = int(int(seconds * fps) / count)
    return [step * k for k in range(count)]


def loaded(asked: Asked, fps: float, most: int = FRAMES) -> list[int | str]:
    """What the authors' loader gives a model: frames (their number) and texts, in their order."""
    times = [at / fps for at in frame_indices(asked.seconds, fps, most)]
    return [
        *interleaved(times, asked),
        f"Question: {asked.question}",
        *asked.lines("{}. {}").split("\n"),
        INSTRUCTION,
    ]


def interleaved(times: Sequence[float], asked: Asked) -> list[int | str]:
    """Frames, by their number, and subtitles in the order in which they come.

    A subtitle stands at its middle, after the frames until then; where it covers no frame, half a
    second to each side of its middle if it is short, it is left out. One without an end lasts until
    `asked.seconds`, of the subtitles' clock: upstream's slip, kept.
    """
    order: list[int | str] = []
    shown = 0
    for subtitle in asked.subtitles or ():
        end = asked.seconds if subtitle.end is None else subtitle.end
        start, end = subtitle.start - asked.said_from, end - asked.said_from
        middle = (start + end) / 2
        while shown < len(times) and times[shown] <= middle:
            order.append(shown)
            shown += 1
        if end - start < 1:
            start, end = middle - 0.5, middle + 0.5
        if any(start < time < end for time in times):
            order.append(subtitle.text)
    return [*order, *range(shown, len(times))]


def _among_subtitles(one: Asked) -> Question:
    count = max(1, min(FRAMES, int(one.seconds)))
    apart = one.seconds / FRAMES if one.seconds > FRAMES else 1.0
    order = interleaved([apart * k for k in range(count)], one)
    shown = "\n".join(IMAGE if isinstance(part, int) else part for part in order)
    return Question(
        id=one.id,
        video=one.video,
        prompt=f"{shown}\n{_block(one)}\n{INSTRUCTION}\n",
        frames=count,
        spread=functools.partial(_spread, one.seconds),
    )


def _spread(
    seconds: float, fps: float, frames: int, start: float, end: float | None, most: int
) -> list[int]:
    del start, end
    return [min(at, frames - 1) for at in frame_indices(seconds, fps, most)]


def _block(one: Asked) -> str:
    return f"{one.question}\n{one.lines('{}. {}')}"


def _mean(graded: Sequence[Graded]) -> float:
    return sum(one.score or 0.0 for one in graded) / len(graded) if graded else 0.0


def _parts(graded: Iterable[Graded]) -> dict[str, list[Graded]]:
    """Scores of each length and of each category, in the order in which they first come."""
    parts: dict[str, list[Graded]] = {}
    for one in graded:
        for name in one.group.split(" ", 1):
            parts.setdefault(name, []).append(one)
    return parts


def _asked(home: Path | None, where: str, row: Any) -> Asked:
    del where
    key, question = choices.text_of(row, "id"), choices.text_of(row, "question")
    category = choices.text_of(row, "question_category")
    if "option0" in row:
        found = [row.get(f"option{k}", "N/A") for k in range(len(LETTERS))]
        row = row | {"candidates": [option for option in found if option != "N/A"]}
    options = choices.options_of(row, "candidates")
    right = row.get("correct_choice")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise InputError(f"'correct_choice' is {right!r:.40}, wanted 0 to {len(options) - 1}")
    group = row.get("duration_group")
    if not isinstance(group, int | str):
        raise InputError(f"'duration_group' is {group!r:.40}, wanted a number")
    path = home / str(row.get("subtitle_path")) if home else None
    return Asked(
        id=key,
        task=category,
        video=choices.text_of(row, "video_path"),
        question=question,
        options=options,
        right=right,
        group=str(group),
        seconds=choices.number_of(row, "duration"),
        said_from=choices.number_of(row, "starting_timestamp_for_subtitles"),
        subtitles=_subtitles(path) if path else None,
    )


def _subtitles(path: Path) -> tuple[Subtitle, ...] | None:
    """A file of either form; None where it is missing or has another."""
    try:
        return tuple(map(_subtitle, read_json(path)))
    except (InputError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _subtitle(row: Mapping[str, Any]) -> Subtitle:
    if "timestamp" not in row:
        return Subtitle(_seconds(row["start"]), _seconds(row["end"]), choices.text_of(row, "line"))
    start, end = row["timestamp"]
    # Upstream takes only an end with a fraction for one.
    known = end if isinstance(end, float) else None
    return Subtitle(float(start), known, choices.text_of(row, "text"))


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


LONGVIDEOBENCH = Benchmark(
    name="longvideobench",
    title="LongVideoBench",
    rules=RULES,
    read=read,
    answers=read_answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
)
