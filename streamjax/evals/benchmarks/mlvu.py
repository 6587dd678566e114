"""MLVU: seven tasks of multiple choice about long videos, and M-Avg, the mean over the tasks.

Annotations: the authors' lists (`json/1_plotQA.json` to `json/7_topic_reasoning.json`, or beside
each other), or rows of the hub's tables `MLVU_dev` and `MLVU_Test`, whose questions hold their
options. A question's id is `<file>.json:<k>`, k counting its file's records, or its row's `key`.
The tasks whose answers are free text (8 and 9) are no part of it. specs/benchmarks.md section 9.
"""

import dataclasses
import re
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
)

FILES = {
    "1_plotQA": "plotQA",
    "2_needle": "needle",
    "3_ego": "ego",
    "4_count": "count",
    "5_order": "order",
    "6_anomaly_reco": "anomaly_reco",
    "7_topic_reasoning": "topic_reasoning",
}
# The tables of the hub; what they call a task in the test set, and how many tasks that has.
TABLES = ("mlvu_dev*.json*", "mlvu_test*.json*", "test.json*")
TEST_ONLY = ("needleQA", "sportsQA", "tutorialQA")
DEV_TASKS = tuple(FILES.values())
TEST_TASKS = (
    *("anomaly_reco", "count", "ego", "needleQA", "order"),
    *("plotQA", "sportsQA", "topic_reasoning", "tutorialQA"),
)
FRAMES = 16

RULES = {
    "official": "the character before the first `)`, else the whole answer, is the letter "
    "(choice_bench.py); M-Avg over the tasks that are there",
    "lmms_eval_legacy": "as Video-MME is read by lmms-eval 0.3.0: the first capital A to D; M-Avg "
    "over all tasks, 0 for one that is not there",
    "lmms_eval_2026": "as Video-MME is read by lmms-eval 0.7.2: the letter where an answer most "
    "likely stands; M-Avg over all tasks, 0 for one that is not there; E and F are never right",
}
PROTOCOLS = {
    "official": "the authors' system prompt, `Best Option: (` begun for the model",
    "lmms_eval_2026": "the prompt of lmms-eval 0.7.2",
    "lmms_eval_legacy": "the prompt of lmms-eval 0.3.0",
}
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, "
    "select the best option that accurately addresses the question."
)
SUFFIX = "\nOnly give the best option."
PREFIX = "Best Option: ("
LMMS = {
    "lmms_eval_2026": "{}" + SUFFIX + "\nBest option: (",
    "lmms_eval_legacy": "\n{}" + SUFFIX + "\n\nBest option: (",
}


@dataclasses.dataclass(frozen=True)
class Asked(choices.Choice):
    """One question. folder: where the authors keep its video, or nothing. block: the question with
    its options as a row of the hub has them, or nothing.
    """

    folder: str = ""
    block: str = ""


def read(folder: Path) -> Records:
    """The questions of a folder; tasks that are not there are left out.

    Raises InputError where no file of a task is there, or none is of this benchmark's form.
    """
    files = choices.task_files(folder, FILES)
    if not files:
        files = [choices.find_file(folder, ("json/1_plotQA.json", *TABLES), "MLVU")]
        records, problems = choices.gather(_hub_rows(files[0]), _hub_asked, "MLVU")
        return Records(records, files, problems)
    records, problems = choices.gather(choices.rows_of(files), _asked, "MLVU")
    return Records(records, files, problems)


def letter_before(text: str) -> str:
    """What the authors take for the letter: before the first `)`, else the whole answer."""
    at = text.find(")")
    return text if at < 0 else text[max(at - 1, 0) : at]


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """Accuracy of each task and their mean.

    The details hold what was read (`parsed`) and, by the authors' rule, what it was held against
    (`gt`).
    """
    said, odd = choices.told(answers)
    asked: Sequence[Asked] = records.records
    known = [one.id for one in asked]
    problems = (*records.problems, *odd, *matched(known, answers, "MLVU"))
    official = rule == "official"
    graded = choices.graded(asked, said, letter_before if official else choices.PARSERS[rule])
    groups = choices.by_group(graded)
    details: dict[str, Any] = {"parsed": [one.parsed for one in graded]}
    if official:
        details = {"gt": {one.id: one.truth for one in asked}}
    else:
        details["per_task"] = _per_task(groups)
    unread = sum(one.answered and one.parsed not in tuple(choices.LETTERS) for one in graded)
    return Scores(
        table=tabulate(graded, rule),
        n=choices.counted(groups | {"M-Avg": graded}),
        graded=graded,
        unanswered=choices.unanswered(graded),
        unparsed=unread,
        problems=problems,
        details=details,
    )


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, Any]:
    """Percentages: M-Avg, and by the authors' rule each task before it."""
    tasks = _per_task(choices.by_group(graded))
    if rule == "official":
        return {"per_task": tasks, "M-Avg": sum(tasks.values()) / len(tasks) if tasks else 0.0}
    whole = TEST_TASKS if any(task in tasks for task in TEST_ONLY) else DEV_TASKS
    return {"M-Avg": sum(tasks.get(task, 0.0) for task in whole) / len(whole)}


def questions(records: Records, protocol: str) -> list[Question]:
    """Each question with 16 frames of its whole video."""
    asked: Sequence[Asked] = records.records
    if protocol == "official":
        return [
            Question(
                id=one.id,
                video=f"{one.folder}{one.video}",
                prompt=f"Question: {one.question}\nOptions:\n{one.lines()}".rstrip() + SUFFIX,
                system=SYSTEM,
                prefix=PREFIX,
                frames=FRAMES,
            )
            for one in asked
        ]
    return [
        Question(
            id=one.id,
            video=f"{one.folder}{one.video}",
            prompt=LMMS[protocol].format(one.block or f"{one.question}\nOptions:\n{one.lines()}"),
            frames=FRAMES,
            max_new_tokens=16,
        )
        for one in asked
    ]


def _per_task(groups: Mapping[str, Sequence[Graded]]) -> dict[str, float]:
    order = [*DEV_TASKS, *(task for task in groups if task not in DEV_TASKS)]
    return {task: choices.percent(groups[task]) for task in order if task in groups}


def _asked(where: str, row: Any) -> Asked:
    name = where.split(".json:")[0]
    video, question = choices.text_of(row, "video"), choices.text_of(row, "question")
    options = choices.options_of(row, "candidates")
    right = choices.index_of(options, choices.text_of(row, "answer"), letter=False)
    return Asked(where, FILES[name], video, question, options, right, folder=f"{name}/")


def _hub_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(choices.read_rows(file)):
        yield f"{file.name}:{number}", row


def _hub_asked(where: str, row: Any) -> Asked:
    """A row of the hub: the options are the last lines of its question."""
    video, whole = choices.text_of(row, "video_name"), choices.text_of(row, "question")
    question, *lines = re.split(r"\n\(([A-H])\) ", whole)
    options = tuple(lines[1::2])
    if len(options) < 2 or "".join(lines[::2]) != choices.LETTERS[: len(options)]:
        raise InputError(f"its question has {len(options)} options '(A) ...', wanted at least 2")
    question = question.removesuffix("\nOptions:")
    right = choices.index_of(options, choices.text_of(row, "answer"), letter=True)
    key, task = str(row.get("key", where)), choices.text_of(row, "task_type")
    return Asked(key, task, video, question, options, right, block=whole)


MLVU = Benchmark(
    name="mlvu",
    title="MLVU",
    rules=RULES,
    read=read,
    answers=read_answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
)
