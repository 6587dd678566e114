"""Video-MME, without subtitles: four options about short, medium and long videos.

Annotations: rows of the hub's table (`videomme_test.json` or another list of them), or the form in
which the authors want results (a list of videos with their `questions`). A question's id is its
`question_id`. Videos are `<videoID>.mp4`. specs/benchmarks.md section 5.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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

DURATIONS = ("short", "medium", "long")
FRAMES = 16
FILES = ("videomme_test.json*", "videomme*.json*", "test.json*", "output_test_template.json")

RULES = {
    "official": "the first capital A to D once some phrases are out (eval_your_results.py); an "
    "answer without one does not count",
    "lmms_eval_legacy": "nearly the same phrases (lmms-eval until 0.7.1, here 0.3.0); an answer "
    "without a letter is wrong",
    "lmms_eval_2026": "the letter where an answer most likely stands (lmms-eval since 0.7.2); an "
    "answer without a letter is wrong",
}
PROTOCOLS = {
    "official": "the prompt of the authors for frames without subtitles",
    "lmms_eval": "lmms-eval's prompt; it speaks of subtitles, though there are none",
    "llava_vid": "lmms-eval's prompt for LLaVA-Video, which ends as the authors' does",
}
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video{}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
ENDS = {
    "official": "The best answer is:",
    "lmms_eval": "\nAnswer with the option's letter from the given choices directly.",
    "llava_vid": "The best answer is:",
}
# The authors' detailed tables: their names, and the field of a record.
DETAILS = {"domains": "domain", "sub_categories": "sub_category", "task_types": "task"}


@dataclasses.dataclass(frozen=True)
class Asked(choices.Choice):
    """One question; its options bring their letters along. duration: short, medium or long."""

    duration: str = ""
    domain: str = ""
    sub_category: str = ""


def read(folder: Path) -> Records:
    """The questions of a folder.

    Raises InputError where no file of questions is there, or none is of this benchmark's form.
    """
    file = choices.find_file(folder, FILES, "Video-MME")
    records, problems = choices.gather(_rows(file), _asked, "Video-MME")
    return Records(records, [file], problems)


def answers(path: Path) -> Mapping[str, Any]:
    """{question id: text or null}; also from the authors' form, where they lie in `response`.

    Raises InputError for other forms.
    """
    if path.suffix == ".json" and isinstance(read_json(path), list):
        rows = [row for _, row in _rows(path) if isinstance(row, dict)]
        found = {str(row.get("question_id")): row["response"] for row in rows if "response" in row}
        if not found:
            raise InputError(f"{path}: no question has a 'response'; wanted {{id: answer}}")
        return found
    return read_answers(path)


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """Accuracy over all questions and over those of each duration."""
    said, odd = choices.told(answers)
    asked: Sequence[Asked] = records.records
    known = [one.id for one in asked]
    problems = (*records.problems, *odd, *matched(known, answers, "Video-MME"))
    graded = choices.graded(
        asked,
        said,
        choices.PARSERS[rule],
        group=lambda one: one.duration,
        drop_unread=rule == "official",
    )
    groups = choices.by_group(graded)
    details: dict[str, Any] = {"extracted": {one.id: one.parsed for one in graded}}
    for name, field in DETAILS.items():
        kinds = {one.id: getattr(one, field) for one in asked}
        parts = choices.by_group(dataclasses.replace(one, group=kinds[one.id]) for one in graded)
        details[name] = {kind: choices.percent(part) for kind, part in parts.items()}
    return Scores(
        table=tabulate(graded, rule),
        n=choices.counted({"overall": graded} | {name: groups.get(name, ()) for name in DURATIONS}),
        graded=graded,
        unanswered=choices.unanswered(graded),
        unparsed=choices.unread(graded),
        problems=problems,
        details=details,
    )


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, float]:
    """The columns of the authors' table, percentages; 0 for a duration without a question."""
    del rule
    groups = choices.by_group(graded)
    columns = {name: choices.percent(groups.get(name, ())) for name in DURATIONS}
    return columns | {"overall": choices.percent(graded)}


def questions(records: Records, protocol: str) -> list[Question]:
    """Each question with 16 frames of its whole video."""
    head = SELECT.format("" if protocol == "official" else " and the subtitles")
    return [
        Question(
            id=one.id,
            video=one.video,
            prompt=f"{head}\n{one.question}\n{one.lines('{1}')}\n{ENDS[protocol]}",
            frames=FRAMES,
            max_new_tokens=16,
        )
        for one in records.records
    ]


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Records with where they stand; in the authors' form they get the fields of their video."""
    for number, row in enumerate(choices.read_rows(file)):
        where = f"{file.name}, record {number}"
        if not isinstance(row, dict) or not isinstance(row.get("questions"), list):
            yield where, row
            continue
        shared = {key: value for key, value in row.items() if key != "questions"}
        for at, question in enumerate(row["questions"]):
            both = shared | question if isinstance(question, dict) else question
            yield f"{where}, question {at}", both


def _asked(where: str, row: Any) -> Asked:
    del where
    key = choices.text_of(row, "question_id")
    duration = choices.text_of(row, "duration")
    if duration not in DURATIONS:
        raise InputError(f"'duration' is {duration!r}, wanted {', '.join(DURATIONS)}")
    options = choices.options_of(row, "options")
    name = "videoID" if "videoID" in row else "video_id"
    return Asked(
        id=key,
        task=choices.text_of(row, "task_type"),
        video=f"{choices.text_of(row, name)}.mp4",
        question=choices.text_of(row, "question"),
        options=options,
        right=choices.index_of(options, choices.text_of(row, "answer"), letter=True),
        duration=duration,
        domain=choices.text_of(row, "domain"),
        sub_category=choices.text_of(row, "sub_category"),
    )


VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME",
    rules=RULES,
    read=read,
    answers=answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
)
