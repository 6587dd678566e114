"""OVO-Bench by its own protocol: every question is one call on the clip up to its second.

The annotations, prompts (spelling included), clips and scores of JoeLeelyf/OVO-Bench at c34093f;
specs/benchmarks.md 1. Twelve tasks in three groups; the tasks that look forward (REC, SSR, CRR) ask
several times per record, each time with more of the video.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Question,
    Records,
    Scores,
    matched,
    read_json,
)

FILE = "ovo_bench_new.json"
GROUPS = {
    "Real-Time Visual Perception": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "Backward Tracing": ("EPM", "ASI", "HLD"),
    "Forward Active Responding": ("REC", "SSR", "CRR"),
}
FORWARD = GROUPS["Forward Active Responding"]
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)

_CHOICE = """
Question: {question}
Options:
{options}

Respond only with the letter corresponding to your chosen option (e.g., A, B, C).\x20
Do not include any additional text or explanation in your response.
"""
_REC = """
You're watching a video in which people may perform a certain type of action repetively.\x20
The person performing this kind of action are referred to as 'they' in the following statement.
You're task is to count how many times have different people in the video perform this kind of action in total.
One complete motion counts as one.\x20
Now, answer the following question: How many times did they {activity}?
Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.
Do not include any additional text or explanation in your response.
"""  # noqa: E501
_SSR = """
You're watching a tutorial video which contain a sequential of steps.\x20
The following is one step from the whole procedures:\x20
{step}
Your task is to determine if the man or woman in the video is currently performing this step.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""
_CRR = """
You're responsible of answering questions based on the video content.\x20
The following question are relevant to the latest frames, i.e. the end of the video.
{question}
Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, provide enough information for answering the question.
Answer only with “Yes” or “No”.
Do not include any additional text or explanation in your response.
"""  # noqa: E501

# A record's field: its name, what it should be in words, the test of that.
Field = tuple[str, str, Callable[[Any], bool]]


@dataclasses.dataclass(frozen=True)
class Clip:
    """One call: the video's first `seconds`, a prompt, and the letter, word or number wanted.

    id: "{record}" or, for the tasks that look forward, "{record}_{poll}", as the official clips are
    named.
    """

    id: str
    task: str
    video: str
    seconds: int
    prompt: str
    gold: str


def clips(record: Mapping[str, Any]) -> list[Clip]:
    """The calls that one record asks for: one, or one for each of its polls."""
    task, key = record["task"], str(record["id"])

    def clip(name: str, realtime: float | int, prompt: str, gold: str) -> Clip:
        return Clip(name, task, record["video"], math.ceil(realtime), prompt, gold)

    if task not in FORWARD:
        options = "; ".join(f"{letter(i)}. {text}" for i, text in enumerate(record["options"]))
        prompt = _CHOICE.format(question=record["question"], options=options + ";")
        return [clip(key, record["realtime"], prompt, letter(record["gt"]))]
    found = []
    for place, poll in enumerate(record["test_info"]):
        if task == "REC":
            prompt, gold = _REC.format(activity=record["activity"]), str(poll["count"])
        else:
            gold = "Yes" if poll["type"] else "No"
            prompt = (
                _SSR.format(step=poll["step"])
                if task == "SSR"
                else _CRR.format(question=record["question"])
            )
        found.append(clip(f"{key}_{place}", poll["realtime"], prompt, gold))
    return found


def letter(place: int) -> str:
    """The letter of the option at `place`, counted from 0."""
    return chr(ord("A") + place)


def right(task: str, gold: str, response: str) -> bool:
    """Whether the official scorer takes a response for right.

    A choice: the gold letter stands anywhere in it. REC: all its digits, joined, are the number.
    SSR, CRR: the gold word stands anywhere in it, or it is the word's first letter. Case matters.
    """
    if task == "REC":
        return "".join(re.findall(r"\d+", response)) == gold
    return gold in response or (task in FORWARD and response == gold[0])


def understood(task: str, response: str) -> str | None:
    """What the official scorer sees in a response: letters, a number, words; None for nothing."""
    if task == "REC":
        return "".join(re.findall(r"\d+", response)) or None
    if task in FORWARD:
        words = [word for word in ("Yes", "No") if word in response or response == word[0]]
        return " ".join(words) or None
    return "".join(sorted(set(re.findall("[A-Z]", response)))) or None


def tabulate(graded: Sequence[Graded], rule: str = "official") -> dict[str, Any]:
    """Percentages: means per task over its calls, per group over its tasks, then over the groups.

    Tasks without a call have no column and no part in the means.
    """
    del rule
    by_task: dict[str, list[float]] = {}
    for one in graded:
        if one.score is not None:
            by_task.setdefault(one.group, []).append(one.score)
    table: dict[str, Any] = {}
    for group, tasks in GROUPS.items():
        scores = {t: 100 * sum(by_task[t]) / len(by_task[t]) for t in tasks if t in by_task}
        if scores:
            table[group] = {**scores, "Avg.": sum(scores.values()) / len(scores)}
    if table:
        averages = [columns["Avg."] for columns in table.values()]
        table["Overall Avg."] = sum(averages) / len(averages)
    return table


def read_records(
    path: Path, names: Sequence[str], flaw: Callable[[Mapping[str, Any]], str | None]
) -> Records:
    """OVO-Bench's records from a folder that holds a file of one of `names`, or from that file.

    A record with a flaw, and one whose id was there before, is left out and told. Raises InputError
    for a folder without such a file, and for a file that holds no usable record.
    """
    file = path
    if not path.is_file():
        file = next((path / name for name in names if (path / name).is_file()), path)
        if file == path:
            there = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
            old = "; ovo_bench.json is its first version" if "ovo_bench.json" in there else ""
            raise InputError(
                f"{path}: {' '.join(there[:6]) or 'nothing'} there, wanted OVO-Bench's "
                f"{' or '.join(names)}{old}; give the folder of that file"
            )
    found = read_json(file)
    if not isinstance(found, list) or not found:
        raise InputError(f"{file}: a {type(found).__name__}, wanted OVO-Bench's list of records")
    records, problems, seen = [], [], set()
    for place, record in enumerate(found):
        known = isinstance(record, Mapping) and "id" in record
        where = f"{file.name}, record {place}" + (f" (id {record['id']!r})" if known else "")
        reason = missing(record) or flaw(record)
        if reason is None and str(record["id"]) in seen:
            reason = "this id stands there twice, wanted once"
        if reason:
            problems.append(f"{where}: {reason}; left out, mend it")
        else:
            seen.add(str(record["id"]))
            records.append(record)
    if not records:
        raise InputError(
            f"{file}: none of {len(found)} records is OVO-Bench's; {problems[0]}"
            if len(found) > 1
            else f"{problems[0]}, there is no other"
        )
    return Records(records, (file,), tuple(problems))


def missing(record: Any) -> str | None:
    """What keeps a record from being asked by polling, as `found, wanted`; None if nothing does."""
    if not isinstance(record, Mapping):
        return f"a {type(record).__name__}, wanted an object"
    wanted: list[Field] = [
        ("id", "a number or a text", _is_id),
        ("task", f"one of {' '.join(TASKS)}", lambda v: isinstance(v, str) and v in TASKS),
        ("video", "a file's name", lambda v: isinstance(v, str) and v != ""),
    ]
    task = record.get("task")
    if task in FORWARD:
        wanted.append(("test_info", "a list of polls", lambda v: isinstance(v, list)))
    else:
        options = record.get("options")
        count = len(options) if isinstance(options, list) else 0
        wanted += [
            ("options", "a list of 2 to 26 options", _is_options),
            ("gt", f"the place of an option, 0 to {count - 1}", lambda v: _is_count(v, count - 1)),
            ("realtime", "seconds", is_seconds),
        ]
    if task == "REC":
        wanted.append(("activity", "a text", _is_text))
    elif task != "SSR":
        wanted.append(("question", "a text", _is_text))
    reason = unlike(record, wanted)
    if reason or task not in FORWARD:
        return reason
    fields: list[Field] = [("realtime", "seconds", is_seconds)]
    if task == "REC":
        fields.append(("count", "a whole number", _is_count))
    else:
        fields.append(("type", "0 or 1", lambda v: _is_count(v, 1)))
    if task == "SSR":
        fields.append(("step", "a text", _is_text))
    for place, poll in enumerate(record["test_info"]):
        if not isinstance(poll, Mapping):
            return f"test_info[{place}] is {poll!r:.40}, wanted an object"
        if reason := unlike(poll, fields):
            return f"test_info[{place}]: {reason}"
    return None


def unlike(record: Mapping[str, Any], wanted: Sequence[Field]) -> str | None:
    """The first field that is missing or fails its test, as `found, wanted`."""
    for field, what, fits in wanted:
        if field not in record:
            return f"no {field!r}, wanted {what}"
        if not fits(record[field]):
            return f"{field!r} is {record[field]!r:.60}, wanted {what}"
    return None


def is_seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool) and value != ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any, most: float | int = math.inf) -> bool:
    return isinstance(value, int) and 0 <= value <= most


def _is_options(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 2 <= len(value) <= 26
        and all(isinstance(option, (str, int, float)) for option in value)
    )


def same_video(
    answers: Mapping[str, Any], videos: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Answers without those that name another video than their question, and a line about these.

    `videos`: id -> the question's video. Raises InputError when all name another one: ids start
    from 0 in every version of the data, so that they alone do not tell.
    """
    other = {
        key: answer["video"]
        for key, answer in answers.items()
        if isinstance(answer, Mapping)
        and key in videos
        and answer.get("video", videos[key]) != videos[key]
    }
    if not other:
        return dict(answers), []
    key, video = next(iter(other.items()))
    line = f"answer {key!r} is about video {video!r}, wanted {videos[key]!r}"
    if len(other) == len(answers):
        raise InputError(f"{line}, and so are all of them; give the answers to this data")
    kept = {key: answer for key, answer in answers.items() if key not in other}
    return kept, [f"{len(other)} answers are about other videos, left out, first: {line}"]


def _read(path: Path) -> Records:
    return read_records(path, (FILE,), lambda record: None)


def _answers(path: Path) -> dict[str, Any]:
    """{clip: response}, or the official runner's lists `backward`, `realtime` and `forward`.

    From the latter, each answer is {"response", "video"}.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: a {type(found).__name__}, wanted {{clip: response}} or the official result "
            "with backward, realtime and forward"
        )
    parts = ("backward", "realtime", "forward")
    if not any(isinstance(found.get(part), list) for part in parts):
        return found
    answers: dict[str, Any] = {}
    for part in parts:
        for place, item in enumerate(found.get(part) or []):
            try:
                key, polls = str(item["id"]), item.get("test_info")
                rows = [(key, item)] if polls is None else _named(key, polls)
                for name, row in rows:
                    if name in answers:
                        raise InputError(f"{path}: {part}[{place}]: {name!r} stands there twice")
                    answers[name] = {"response": row.get("response")}
                    if "video" in item:
                        answers[name]["video"] = item["video"]
            except (TypeError, KeyError, AttributeError):
                raise InputError(
                    f"{path}: {part}[{place}] is {item!r:.60}, wanted an object with an id and a "
                    "response, or with test_info"
                ) from None
    return answers


def _named(key: str, polls: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"{key}_{place}", poll) for place, poll in enumerate(polls)]


def _response(answer: Any) -> Any:
    """The text of an answer; some released results hold lists of one text."""
    if isinstance(answer, Mapping):
        answer = answer.get("response")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    return str(answer) if isinstance(answer, int) and not isinstance(answer, bool) else answer


def _score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    asked = {clip.id: clip for record in records.records for clip in clips(record)}
    answers, foreign = same_video(answers, {key: clip.video for key, clip in asked.items()})
    problems = [*records.problems, *foreign, *matched(list(asked), answers, OVO_BENCH.title)]
    graded, unanswered, unparsed = [], 0, 0
    for key, clip in asked.items():
        response = _response(answers.get(key))
        if response is not None and not isinstance(response, str):
            problems.append(f"answer {key!r} is {response!r:.40}, wanted a text or null; wrong")
            response = None
        parsed = None if response is None else understood(clip.task, response)
        unanswered += response is None
        unparsed += response is not None and parsed is None
        score = float(response is not None and right(clip.task, clip.gold, response))
        graded.append(
            Graded(key, clip.task, score, clip.video, parsed, answered=response is not None)
        )
    counts = [(task, sum(one.group == task for one in graded)) for task in TASKS]
    return Scores(
        table=tabulate(graded, rule),
        n={task: count for task, count in counts if count},
        graded=tuple(graded),
        unanswered=unanswered,
        unparsed=unparsed,
        problems=tuple(problems),
        details={"per_item_score": {one.id: int(one.score or 0) for one in graded}},
    )


def _questions(records: Records, protocol: str) -> list[Question]:
    del protocol
    return [
        Question(clip.id, clip.video, clip.prompt, end=float(clip.seconds), frames=64)
        for record in records.records
        for clip in clips(record)
    ]


OVO_BENCH = Benchmark(
    name="ovo_bench",
    title="OVO-Bench",
    rules={
        "official": "the gold letter or word anywhere in the response, for REC all its digits; "
        "null is wrong; mean per task, then per group, then over the three groups"
    },
    read=_read,
    answers=_answers,
    score=_score,
    tabulate=tabulate,
    protocols={"polling": "each question on the clip up to its second, 64 frames evenly spread"},
    questions=_questions,
)
