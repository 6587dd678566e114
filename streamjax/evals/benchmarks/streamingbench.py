"""StreamingBench: questions at a moment of a video, questions in sequence, signs to watch for.

Annotations of THUNLP-MT/StreamingBench: `questions_{real,omni,sqa,proactive}.json`, any of them. A
question's id is `<file>:<k>`, k counting the questions of its file. specs/benchmarks.md section 3.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.dialogue import parse_time
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Polling,
    Question,
    Records,
    Scores,
    matched,
    read_answers,
    read_json,
)

SUBSETS = ("real", "omni", "sqa", "proactive")
# Columns of the table of real-time visual understanding, and the tasks behind them.
COLUMNS = {
    "OP": "Object Recognition",
    "CR": "Causal Reasoning",
    "CS": "Clips Summarize",
    "ATP": "Attribute Recognition",
    "EU": "Event Understanding",
    "TR": "Text-Rich Understanding",
    "PR": "Prospective Reasoning",
    "SU": "Spatial Understanding",
    "ACP": "Action Recognition",
    "CT": "Counting",
}
SIGN = "Proactive Output"
RULES = {
    "official": "the answer's first character, as it stands, is the letter; null and empty answers "
    "are wrong (count.py stops at them); questions without an answer do not count",
}
PROTOCOLS = {
    "context_60": "the minute before the question (the paper's main table)",
    "context_all": "the video up to the question (eval.sh as it was released)",
}
LETTERS = "ABCDEFGHIJ"
# A sign is asked for until so many seconds after it came; in time is as close as that to it.
POLLED_AFTER = 4
IN_TIME = 2

_CAREFUL = "You are an advanced video question-answering AI assistant. You have been provided with "
_LETTER = (
    "choosing from the four options provided. Respond with only the letter (A, B, C, or D) of the "
    "correct option.\n\n"
)
CHOICE = (
    f"{_CAREFUL}some frames from the video and a multiple-choice question related to the video. "
    "Your task is to carefully analyze the video and provide the best answer to question, "
    f"{_LETTER}Question: "
)
SEQUENCE = (
    f"{_CAREFUL}a video and a multiple-choice question related to the video. Your task is to "
    "carefully analyze the video and the provided context to answer the question, "
    f"{_LETTER}"
)
CONTEXT = (
    "Here are the contextual information related to the video. Please answer the questions based "
    "on the contextual information: "
)
NOW = "\n\nHere is the question. Answer it and don't confuse it with the previous conversation.\n"
WATCH = (
    "You are an advanced image question-answering AI assistant. You have been provided with images "
    "and a question related to the images. Your task is to carefully analyze the images and "
    "provide the answer to the question. You need to carefully confirm whether the images content "
    "meet the conditions of the question, and then output the correct content.\n\nQuestion: "
)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question. second: when it is asked, whole seconds; stamp: as the file writes that.

    options: with their letters; none where a sign is watched for: it comes at `due`, and `answer`
    is what it says. before: the questions asked earlier of this video, where the prompt has them.
    polls: what a model answered, where the folder has it.
    """

    id: str
    subset: str
    task: str
    question: str
    video: str
    second: int
    stamp: str
    answer: str
    options: tuple[str, ...] = ()
    due: int = 0
    before: tuple["Asked", ...] = ()
    polls: Any = None


def read(folder: Path) -> Records:
    """The questions of a folder.

    `proactive_official_output.json`, where the official code has recorded its polls, answers the
    signs to which the answers that are scored say nothing.

    Raises InputError where no file of questions is there, or none holds a usable one.
    """
    files = [folder / f"questions_{subset}.json" for subset in SUBSETS]
    files = [file for file in files if file.is_file()]
    if not files:
        found = sorted(path.name for path in folder.glob("*.json"))[:4] if folder.is_dir() else []
        raise InputError(
            f"{folder}: no StreamingBench: found {', '.join(found) or 'no JSON'}, wanted some "
            "of questions_{real,omni,sqa,proactive}.json; give the src/data of its repository"
        )
    polled = folder / "proactive_official_output.json"
    polls = answers(polled) if polled.is_file() else {}
    records: list[Asked] = []
    problems: list[str] = []
    for file in files:
        subset = file.stem.removeprefix("questions_")
        before: dict[int, tuple[Asked, ...]] = {}
        found = read_json(file)
        _check_form(file, subset, found)
        for number, group, entry, question in _numbered(file, found):
            try:
                asked = _asked(f"{subset}:{number}", subset, entry, question)
            except InputError as error:
                problems.append(f"{file.name}, question {number}: {error}; left out")
                continue
            earlier = before.get(group, ()) if subset == "sqa" else ()
            before[group] = (*earlier, asked)
            records.append(dataclasses.replace(asked, before=earlier, polls=polls.get(asked.id)))
    if not records:
        first = f"; {problems[0]}" if problems else ""
        raise InputError(f"{folder}: not one usable question of StreamingBench{first}")
    return Records(records, [*files, *([polled] if polls else [])], tuple(problems))


def answers(path: Path) -> Mapping[str, Any]:
    """Answers by id, or what the official code writes: its questions with an answer in each.

    The answer to a sign is {"dialog_history": [{"role", "content", "time"}, ...]}, see `poll`.

    Raises InputError where it is neither, and where several models have answered.
    """
    found = read_json(path) if path.suffix == ".json" else None
    if not isinstance(found, list):
        return read_answers(path)
    said: dict[str, Any] = {}
    models: set[str] = set()
    for number, _, _, question in _numbered(path, found):
        others = [key for key in question if key not in _FIELDS]
        models.update(others)
        if others:
            said[f"{_subset(found, question)}:{number}"] = question[others[0]]
    if len(models) != 1:
        raise InputError(
            f"{path}: answers of {', '.join(sorted(models)) or 'no model'}, wanted those of one; "
            "keep one model's"
        )
    return said


def prompt(asked: Asked) -> str:
    """What a model is told, byte for byte, for a question with options."""
    wanted = f"{asked.question}\n\nOptions:\n{chr(10).join(asked.options)}\n\nThe best option is:"
    if asked.subset != "sqa":
        return CHOICE + wanted
    context = "".join(
        f"At timestamp {earlier.stamp}, the following question and answer occurred: Question: "
        f"{earlier.question}; Options: {', '.join(earlier.options)}; Answer: {earlier.answer}; "
        for earlier in asked.before
    )
    return f"{SEQUENCE}{CONTEXT + context if context else ''}{NOW}Question: {wanted}"


def clip(asked: Asked, context: int) -> tuple[int, int]:
    """First and last second that the model sees; a context of -1 is all of the video so far."""
    return max(0, asked.second - context) if context >= 0 else 0, asked.second


def poll(asked: Asked, reply: Callable[[int, str], str | None]) -> Mapping[str, Any]:
    """Asks each second whether it is time, and after the first "yes" for the words, once.

    reply: (second, prompt) -> text, from the video up to that second. Returns the second of the
    "yes" (False without one) and the dialogue, in the form of the official code.
    """
    history: list[dict[str, Any]] = []

    def ask(second: int, question: str) -> str:
        text = reply(second, f"{WATCH}{question}\n\nThe answer is:\n")
        history.append({"role": "user", "content": question, "time": second})
        history.append({"role": "assistant", "content": text, "time": second})
        return text or ""

    timely = f'Is it the right time to output "{asked.answer}"? You can only answer yes or no.'
    for second in range(asked.second + 1, asked.due + POLLED_AFTER + 1):
        if "yes" in ask(second, f"{asked.question} {timely}").lower():
            ask(second, asked.question)
            return {"answered": second, "dialog_history": history}
    return {"answered": False, "dialog_history": history}


def questions(records: Records, protocol: str) -> Sequence[Question | Polling]:
    """What a model of ours is asked; nothing after a question's second is shown."""
    context = 60 if protocol == "context_60" else -1

    def polled(asked: Asked, answer: Callable[[Question], str | None]) -> Any:
        def reply(second: int, text: str) -> str | None:
            start, end = clip(dataclasses.replace(asked, second=second), context)
            return answer(
                Question(f"{asked.id}@{second}", asked.video, text, float(start), float(end))
            )

        return poll(asked, reply)

    def one(asked: Asked) -> Question | Polling:
        if asked.subset == "proactive":
            return Polling(asked.id, asked.video, functools.partial(polled, asked))
        start, end = clip(asked, context)
        return Question(asked.id, asked.video, prompt(asked), float(start), float(end))

    return [one(asked) for asked in records.records]


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """The table of real-time understanding; the other files' scores are in `details`."""
    recorded = {asked.id: asked.polls for asked in records.records if asked.polls is not None}
    known = [
        asked.id for asked in records.records if asked.id in answers or asked.id not in recorded
    ]
    problems = matched(known, answers, STREAMINGBENCH.title)
    given = {**recorded, **answers}
    graded = tuple(_graded(asked, given) for asked in records.records)
    counted = [one for one in graded if one.score is not None]
    n = {column: sum(one.group == column for one in counted) for column in COLUMNS}
    by_subset = {key: [one for one in counted if _of(one) == key] for key in SUBSETS}
    return Scores(
        tabulate(graded, rule),
        {**n, "All": len(by_subset["real"])} | {key: len(by_subset[key]) for key in SUBSETS[1:]},
        graded,
        unanswered=sum(not one.answered for one in graded),
        unparsed=sum(one.answered and one.parsed is None for one in graded),
        problems=(*records.problems, *problems),
        details={"official_stats": _official_stats(by_subset)},
    )


def tabulate(graded: Sequence[Graded], rule: str) -> Mapping[str, Any]:
    """Percentages per task of the real-time questions, and of all; None without an answer."""
    real = [one for one in graded if _of(one) == "real" and one.score is not None]
    table = {column: _percent([one for one in real if one.group == column]) for column in COLUMNS}
    return {**table, "All": _percent(real)}


def _graded(asked: Asked, answers: Mapping[str, Any]) -> Graded:
    shorts = {task: column for column, task in COLUMNS.items()}
    group = shorts.get(asked.task, asked.task) if asked.subset == "real" else asked.task
    make = functools.partial(Graded, asked.id, group, video=asked.video)
    if asked.id not in answers:
        return make(None, answered=False)
    said = answers[asked.id]
    if said in (None, "", [], {}):
        return make(0.0, answered=False)
    if asked.subset == "proactive":
        return _graded_sign(asked, said, make)
    letter = said[0] if isinstance(said, str) else ""
    understood = letter in LETTERS[: len(asked.options)] and letter
    return make(float(letter == asked.answer), parsed=understood or None)


def _graded_sign(asked: Asked, said: Any, make: Callable[..., Graded]) -> Graded:
    try:
        last = said["dialog_history"][-1]
        second, text = float(last["time"]), str(last["content"] or "")
    except (LookupError, TypeError, ValueError):
        return make(0.0)
    timely = abs(second - asked.due) <= IN_TIME
    parsed = {"time": second, "time_correct": timely, "text": text}
    return make(float(timely and asked.answer in text), parsed=parsed)


def _official_stats(by_subset: Mapping[str, Sequence[Graded]]) -> Mapping[str, Any]:
    stats: dict[str, Any] = {}
    for subset, graded in by_subset.items():
        tasks: dict[str, Any] = {}
        for one in graded:
            name = COLUMNS.get(one.group, one.group) if subset == "real" else one.group
            tasks.setdefault(name, []).append(one)
        if subset in ("real", "omni") and graded:
            tasks["total"] = graded
        if subset == "proactive":
            stats[subset] = {name: _sign_stats(found) for name, found in tasks.items()}
        else:
            stats[subset] = {name: _stats(found) for name, found in tasks.items()}
    return {subset: found for subset, found in stats.items() if found}


def _stats(graded: Sequence[Graded]) -> Mapping[str, Any]:
    correct = sum(one.score == 1 for one in graded)
    return {"total": len(graded), "correct": correct, "accuracy": correct / len(graded)}


def _sign_stats(graded: Sequence[Graded]) -> Mapping[str, Any]:
    timely = sum(bool(one.parsed and one.parsed["time_correct"]) for one in graded)
    right = sum(one.score == 1 for one in graded)
    return {
        "total": len(graded),
        "time_correct": timely,
        "answer_correct": right,
        "time_accuracy": timely / len(graded),
        "answer_accuracy": right / len(graded),
    }


def _percent(graded: Sequence[Graded]) -> float | None:
    return 100 * sum(one.score or 0.0 for one in graded) / len(graded) if graded else None


def _of(graded: Graded) -> str:
    return graded.id.partition(":")[0]


_FIELDS = (
    "task_type", "question", "time_stamp", "answer", "options", "required_ability",
    "ground_truth_time_stamp", "ground_truth_output",
)  # fmt: skip


def _numbered(path: Path, found: Any) -> Iterator[tuple[int, int, Mapping, Mapping]]:
    """(number, group, entry, question) of every question; questions in sequence share a group."""
    if not isinstance(found, list) or not found:
        raise InputError(
            f"{path}: holds no list of entries with `questions`; wrong file or version"
        )
    number = 0
    for group, part in enumerate(found):
        for entry in part if isinstance(part, list) else [part]:
            asked = entry.get("questions") if isinstance(entry, dict) else None
            if not isinstance(asked, list):
                raise InputError(
                    f"{path}, entry {group}: no list `questions`, wanted one; without it the later "
                    "questions have no number"
                )
            for question in asked:
                yield number, group, entry, question if isinstance(question, dict) else {}
                number += 1


def _check_form(path: Path, subset: str, found: Any) -> None:
    """Sequences that are flat would lose their histories without a word."""
    nested = isinstance(found, list) and bool(found) and isinstance(found[0], list)
    if nested != (subset == "sqa"):
        forms = ("a list of entries", "a list of lists of entries, one for each video")
        raise InputError(
            f"{path}: holds {forms[nested]}, wanted {forms[subset == 'sqa']}; it is another file "
            "or version"
        )


def _subset(found: Sequence[Any], question: Mapping[str, Any]) -> str:
    if isinstance(found[0], list):
        return "sqa"
    if question.get("task_type") == SIGN:
        return "proactive"
    return "real" if question.get("task_type") in COLUMNS.values() else "omni"


def _asked(key: str, subset: str, entry: Mapping[str, Any], question: Mapping[str, Any]) -> Asked:
    def text(field: str, where: Mapping[str, Any] = question) -> str:
        value = where.get(field)
        if not isinstance(value, str) or not value:
            raise InputError(f"{field!r} is {value!r}, wanted text")
        return value

    def seconds(field: str) -> int:
        value = parse_time(text(field))
        if value is None or value < 0:
            raise InputError(f"{field!r} is {question[field]!r}, wanted hh:mm:ss")
        return value

    video = text("video_path", entry).removeprefix("./").removeprefix("videos/")
    asked = functools.partial(
        Asked, key, subset, text("task_type"), text("question"), video,
        seconds("time_stamp"), text("time_stamp"),
    )  # fmt: skip
    if subset == "proactive":
        return asked(text("ground_truth_output"), due=seconds("ground_truth_time_stamp"))
    options = question.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        found = f"{len(options)} options" if isinstance(options, list) else f"options {options!r}"
        raise InputError(f"{found}, wanted a list of 2 or more")
    if not all(isinstance(option, str) for option in options):
        raise InputError(f"options {options!r}, wanted texts")
    if not options[0].startswith("A."):
        options = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    if (answer := text("answer")) not in LETTERS[: len(options)]:
        raise InputError(f"'answer' is {answer!r}, wanted one of {LETTERS[: len(options)]}")
    return asked(answer, tuple(options))


STREAMINGBENCH = Benchmark(
    name="streamingbench",
    title="StreamingBench",
    rules=RULES,
    read=read,
    answers=answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
)
