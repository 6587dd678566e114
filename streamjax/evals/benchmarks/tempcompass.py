"""TempCompass: whether a model sees action, direction, speed, order and change, asked in four ways.

Annotations: the authors' trees `questions/<task>.json` (or beside each other), any of them, and
`meta_info.json`. A question's id is `<task>:<video>:<aspect>:<k>`. Answers: a folder of the same
trees, with texts or with the authors' records that have a `prediction`. Captions are scored by what
a judge says of them: in `captioning_judge_outputs.json`, by `<video>:<aspect>` or
`<video>:<aspect>:<k>`, or asked for. specs/benchmarks.md section 7.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.errors import InputError
from streamjax.evals.benchmarks import choices
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Judging,
    Question,
    Records,
    Scores,
    matched,
    read_answers,
    read_json,
)

# What is asked after the question.
TASKS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    "captioning": "",
}
BY_RULE = ("multi-choice", "yes_no", "caption_matching")
CAPTIONING = "captioning"
JUDGED = "captioning_judge_outputs.json"
FRAMES = 16
# The score of a caption that the judge said nothing of: the authors' sum subtracts it.
FAILED = -1.0

RULES = {
    "official": "the authors' rules for words (--disable_llm): what they do not match is wrong; a "
    "caption is right where the judge picks the right option from it"
}
PROTOCOLS = {"official": "the authors' prompts, 16 frames of the whole video"}

# As lmms-eval asks it; the spelling is part of it.
JUDGE_PROMPT = """
You will receive a video description and a multi-choice question. Your task is to choose the \
correct answer and briefly explain the reason why you choose the answer. If none of the choice \
candidates are correct or the video description lacks enough information to answer the question, \
just answer "None of the choices are correct". Please organize your response in this format:
```
Reasoning: [Your reason to obtain the answer]
Answer: [Your answer]
```

Here are some examples of video description, multi-choice question and the expected answer:
```
Video Description: A person is palying football.
Multi-Choice Question:
What is the person doing in the video?
A. cooking
B. palying football
C. playing basketball
D. reading book
Reasoning: The video description mentions that the person is playing football.
Answer: B. palying football

Video Description: A bird is flying clockwise.
Multi-Choice Question:
In which direction is the bird flying?
A. backwark
B. counter-clockwise
C. clockwise
D. downward
Reasoning: The video description mentions that the bird is flying clockwise
Answer: C. clockwise

Video Description: An air balloon is inflating.
Multi-Choice Question:
What is happening to the air balloon?
A. exploding
B. getting smaller
C. flying
Reasoning: The video description mentions that the air balloon is inflating, while none of the \
coices can be explained as inflating.
Answer: None of the choices are correct
```

Video Description:{caption}
Multi-Choice Question:
{question}
Answer:"""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question. fine: the kind of its aspect, e.g. "relative speed". judged_by: of a caption
    the question that a judge answers from it, and its right option; None where there is none.
    """

    id: str
    task: str
    video: str
    aspect: str
    fine: str
    question: str
    answer: str
    judged_by: tuple[str, str] | None = None

    @property
    def group(self) -> str:
        """What it counts for: task, aspect and kind."""
        return f"{self.task}/{self.aspect}/{self.fine}"


def read(folder: Path) -> Records:
    """The questions of a folder; tasks that are not there are left out.

    Raises InputError where no file of a task is there, or none is of this benchmark's form.
    """
    files = {}
    for task in TASKS:
        places = (folder / "questions" / f"{task}.json", folder / f"{task}.json")
        if found := [path for path in places if path.is_file()]:
            files[task] = found[0]
    if not files:
        wanted = ("questions/multi-choice.json", "multi-choice.json")
        choices.find_file(folder, wanted, "TempCompass")
    trees = {task: _tree(path) for task, path in files.items()}
    meta = folder / "meta_info.json"
    kinds = read_json(meta) if meta.is_file() else {}
    first = {
        (video, aspect): (row["question"], row["answer"])
        for video, aspect, k, row in _leaves(trees.get("multi-choice", {}))
        if k == 0 and _are_texts(row, "question", "answer")
    }
    rows = (
        (f"{task}:{video}:{aspect}:{k}", (_fine(kinds, video, aspect), first, row))
        for task, tree in trees.items()
        for video, aspect, k, row in _leaves(tree)
    )
    records, problems = choices.gather(rows, _asked, "TempCompass")
    if not kinds:
        problems += ("no meta_info.json, wanted the kinds of the aspects; each aspect is one kind",)
    judged = folder / JUDGED
    read_files = [*files.values(), *(path for path in (meta, judged) if path.is_file())]
    verdicts, unusable = _verdicts(judged) if judged.is_file() else ({}, [])
    return Records(records, read_files, (*problems, *unusable), verdicts)


def answers(path: Path) -> Mapping[str, Any]:
    """{id: text or null} of a folder of trees, of one tree, named for its task, or of {id: text}.

    Raises InputError for other forms.
    """
    if path.is_dir():
        files = [path / f"{task}.json" for task in TASKS if (path / f"{task}.json").is_file()]
        if not files:
            wanted = ", ".join(f"{task}.json" for task in TASKS)
            raise InputError(f"{path}: no answers to TempCompass, wanted {wanted}, any of them")
        return {key: said for file in files for key, said in answers(file).items()}
    if path.stem not in TASKS:
        return read_answers(path)
    return {
        f"{path.stem}:{video}:{aspect}:{k}": _said(row)
        for video, aspect, k, row in _leaves(_tree(path))
    }


def option_letter(text: str) -> str:
    """The letter of an answer that is one, or begins with one and `.` or `)`; else ""."""
    found = re.match(r"([ABCD])(?:[.)]|\Z)", text)
    return found[1] if found else ""


def yes_or_no(text: str) -> str:
    """How an answer begins: "nothing" is a no, "it is yes" is neither, ""."""
    return next((word for word in ("yes", "no") if text.lower().startswith(word)), "")


def option_of(text: str, question: str) -> str:
    """The option of a question that an answer names, as a line, a sentence or a label; "" for none.

    A label is `Caption A` or `A`, with dots or without; a sentence may follow a `) `.
    """
    lines = [line for line in question.split("\n")[1:] if ": " in line]
    sentences = [line.split(": ")[1] for line in lines]
    labels = [line.split(": ")[0] for line in lines]
    labels += [re.sub("Sentence |Option |Caption ", "", label) for label in labels]
    after = text.split(") ")[1] if ") " in text else text
    named = [line for line in lines if line == text]
    named += [sentence for sentence in sentences if sentence in (text, after)]
    named += [label for label in labels if label in (text, text.replace(".", ""))]
    return named[-1] if named else ""


def rate_caption(judge_output: str | None, right: str) -> float:
    """Whether a judge picked the right option, `B. text`, from a caption: 1, 0, or -1 for no reply.

    Its answer is the last line that speaks of one, else all it said. It must name one letter.
    """
    if not judge_output or judge_output == "invalid_request_error":
        return FAILED
    lines = [line.strip() for line in judge_output.split("\n") if "Answer" in line]
    picked = lines[-1].replace("Answer:", "").strip() if lines else judge_output
    letters = sum(picked.count(f"{letter}.") for letter in "ABCD")
    return float(picked.split(". ")[0] == right.split(". ")[0] and letters == 1)


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """Of each task the accuracy over its answers, over those of each aspect and of each kind of it.

    A task without any answer is left out. The details hold each answer's rating, and how many the
    rules could match.
    """
    said, odd = choices.told(answers)
    asked: Sequence[Asked] = records.records
    problems = [*records.problems, *odd]
    given = {key.split(":")[0] for key in answers}
    expected = [one.id for one in asked if one.task in given or not given & set(TASKS)]
    problems += matched(expected, answers, "TempCompass")
    silent = [task for task in BY_RULE if task not in given]
    problems += [
        f"{task}: no answers, left out" for task in silent if any(one.task == task for one in asked)
    ]
    graded = [_rated(one, said.get(one.id)) for one in asked if one.task in given & set(BY_RULE)]
    captions = _captions(asked, records.verdicts, said)
    unjudged = sum(said.get(one.id) is not None for one in asked if one.task == CAPTIONING)
    unjudged -= sum(said.get(one.id) is not None for one in captions)
    if unjudged:
        problems.append(
            f"{unjudged} captions are not judged, left out; wanted {JUDGED} beside the questions, "
            "or a judge"
        )
    graded += captions
    tasks = choices.by_group(dataclasses.replace(one, group=_parts(one)[0]) for one in graded)
    return Scores(
        table=tabulate(graded, rule),
        n=_counts(graded),
        graded=tuple(graded),
        unanswered=choices.unanswered(graded),
        unparsed=choices.unread(graded),
        problems=tuple(problems),
        details={task: _details(task, part) for task, part in tasks.items()},
    )


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, Any]:
    """Percentages of each task that has an answer, and two averages over those scored by rule."""
    del rule
    tasks = choices.by_group(dataclasses.replace(one, group=_parts(one)[0]) for one in graded)
    table: dict[str, Any] = {}
    for task in BY_RULE:
        part = [one for one in graded if _parts(one)[0] == task]
        if part:
            table[task] = {
                "per_aspect": _percents(part, 1),
                "per_fine_aspect": _percents(part, 2),
                "avg": choices.percent(part),
            }
    averages = [table[task]["avg"] for task in table]
    if captions := tasks.get(CAPTIONING):
        right = sum(one.score == 1 for one in captions)
        table[CAPTIONING] = {
            "sum_over_n_percent (official avg: rating -1 subtracts)": choices.percent(captions),
            "lmms_eval_percent (counts rating==1)": 100 * right / len(captions),
        }
    if averages:
        table["combined"] = {
            "micro_over_rule_scored_tasks": choices.percent(
                one for task in BY_RULE for one in tasks.get(task, ())
            ),
            "mean_of_three_task_avgs": sum(averages) / len(averages),
        }
    return table


def questions(records: Records, protocol: str) -> list[Question]:
    """Each question with 16 frames of its whole video."""
    del protocol
    return [
        Question(
            id=one.id,
            video=f"{one.video}.mp4",
            prompt=one.question + TASKS[one.task],
            frames=FRAMES,
            max_new_tokens=128 if one.task == CAPTIONING else 32,
        )
        for one in records.records
    ]


def judging(records: Records, answers: Mapping[str, Any]) -> list[Judging]:
    """Each caption, with the first question of several options on its aspect of the video."""
    asked: Sequence[Asked] = records.records
    found = []
    for one in asked:
        said = answers.get(one.id)
        if one.task == CAPTIONING and one.judged_by and isinstance(said, str):
            question, right = one.judged_by
            prompt = JUDGE_PROMPT.replace("{question}", question).replace("{caption}", said)
            found.append(Judging(one.id, (prompt,), functools.partial(_verdict, right)))
    return found


def _verdict(right: str, replies: Sequence[str]) -> dict[str, str]:
    return {"judge_output": replies[0].strip(), "mc_answer": right}


def _rated(one: Asked, answer: str | None) -> Graded:
    text = (answer or "").replace("</s>", "").strip()
    if one.task == "multi-choice":
        read = one.answer[0] if text == one.answer else option_letter(text)
        right = read == one.answer[0]
    elif one.task == "yes_no":
        read = yes_or_no(text)
        right = read == one.answer
    else:
        read = option_of(text, one.question)
        label, sentence = one.answer.split(": ")[:2]
        forms = (one.answer, label, one.answer.split(":")[0], sentence, *label.split()[1:2])
        right = read in forms
    return Graded(one.id, one.group, float(right), one.video, read, answer is not None)


def _captions(
    asked: Sequence[Asked], verdicts: Mapping[str, Any], said: Mapping[str, str | None]
) -> list[Graded]:
    """Captions that a judge spoke of, in its order, and those that it could not be asked of."""
    if not verdicts:
        return []
    known = {one.id: one for one in asked}
    scores = []
    for key, verdict in verdicts.items():
        _, video, aspect, _ = key.split(":")
        group = known[key].group if key in known else f"{CAPTIONING}/{aspect}/{aspect}"
        verdict = verdict or {"judge_output": "", "mc_answer": ""}
        rating = rate_caption(verdict["judge_output"], verdict["mc_answer"])
        scores.append(Graded(key, group, rating, video, verdict["judge_output"]))
    for one in asked:
        if one.task == CAPTIONING and said.get(one.id, "") is None and one.id not in verdicts:
            scores.append(Graded(one.id, one.group, 0.0, one.video, "", answered=False))
    return scores


def _counts(graded: Sequence[Graded]) -> dict[str, int]:
    """How many answers stand behind a task, and behind its rows of the table, by their places."""
    counts: dict[str, int] = {}
    for one in graded:
        task, aspect, fine = _parts(one)
        rows = ["avg", f"per_aspect/{aspect}", f"per_fine_aspect/{fine}"]
        for name in (task, *(f"{task}/{row}" for row in rows if task != CAPTIONING)):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _details(task: str, part: Sequence[Graded]) -> dict[str, Any]:
    if task == CAPTIONING:
        names = [one.id.removeprefix(f"{CAPTIONING}:").removesuffix(":0") for one in part]
        rated = [int(one.score or 0) for one in part]
        return {"ratings": dict(zip(names, rated, strict=True))}
    ratings: dict[str, dict[str, list[int]]] = {}
    for one in part:
        _, video, aspect, _ = one.id.split(":")
        ratings.setdefault(video, {}).setdefault(aspect, []).append(int(one.score or 0))
    matches = sum(bool(one.parsed) for one in part)
    return {"n": len(part), "match_success_rate": 100 * matches / len(part), "ratings": ratings}


def _percents(part: Sequence[Graded], level: int) -> dict[str, float]:
    groups = choices.by_group(dataclasses.replace(one, group=_parts(one)[level]) for one in part)
    return {name: choices.percent(group) for name, group in groups.items()}


def _parts(one: Graded) -> list[str]:
    """Task, aspect and kind of an answer."""
    return one.group.split("/", 2)


def _tree(path: Path) -> dict[str, Any]:
    tree = read_json(path)
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise InputError(f"{path}: holds a {kind}, wanted {{video: {{aspect: [...]}}}}")
    return tree


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, int, Any]]:
    """(video, aspect, number, record) of a tree; what is no tree is a record of its own."""
    for video, aspects in tree.items():
        if not isinstance(aspects, dict):
            yield video, "", 0, aspects
            continue
        for aspect, rows in aspects.items():
            for k, row in enumerate(rows if isinstance(rows, list) else [rows]):
                yield video, aspect, k, row


def _said(row: Any) -> Any:
    """An answer, as it is or in the authors' record."""
    if isinstance(row, dict):
        return row.get("prediction", row.get("response"))
    return row


def _fine(kinds: Any, video: str, aspect: str) -> str:
    """The kind of an aspect in a video; the aspect itself where none is told, as of `order`."""
    try:
        return str(kinds[video]["eval_dim"][aspect]["type"])
    except (KeyError, TypeError):
        return aspect


def _asked(where: str, found: Any) -> Asked:
    fine, first, row = found
    if where.count(":") != 3:
        raise InputError("an id with a colon; wanted <task>:<video>:<aspect>:<k>")
    task, video, aspect, _ = where.split(":")
    question, answer = choices.text_of(row, "question"), choices.text_of(row, "answer")
    options = question.split("\n")[1:]
    if task == "multi-choice":
        letters = [line[0] for line in options if re.match(r"[A-D]\. ", line)]
        if len(letters) < 2 or answer[:1] not in letters:
            raise InputError(f"its options are {letters}, the answer is {answer!r:.40}")
    elif task == "yes_no" and answer not in ("yes", "no"):
        raise InputError(f"'answer' is {answer!r:.40}, wanted yes or no")
    elif task == "caption_matching":
        lines = [line for line in options if ": " in line]
        if len(lines) < 2 or ": " not in answer:
            raise InputError(f"has {len(lines)} options, wanted 2, 'Caption A: ...'")
    judged_by = first.get((video, aspect)) if task == CAPTIONING else None
    return Asked(where, task, video, aspect, fine, question, answer, judged_by)


def _are_texts(row: Any, *keys: str) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)


def _verdicts(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What a judge said, by the ids of the captions, and a line for what cannot be used of it."""
    verdicts, problems = {}, []
    for key, verdict in _tree(path).items():
        parts = key.split(":")
        whole = _are_texts(verdict, "mc_answer") and "judge_output" in verdict
        if len(parts) not in (2, 3) or not (
            whole and isinstance(verdict["judge_output"], str | None)
        ):
            wanted = 'wanted <video>:<aspect>: {"judge_output": text, "mc_answer": text}'
            problems.append(f"{path.name}, {key!r}: {wanted}; left out")
            continue
        verdicts[":".join([CAPTIONING, *parts, "0"][:4])] = verdict
    return verdicts, problems


TEMPCOMPASS = Benchmark(
    name="tempcompass",
    title="TempCompass",
    rules=RULES,
    read=read,
    answers=answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
    judging=judging,
    judge_prompts={CAPTIONING: JUDGE_PROMPT},
)
