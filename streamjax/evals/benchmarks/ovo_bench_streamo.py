"""OVO-Bench as Streamo watches it: one stream per question, a frame a second, an answer when due.

Questions, their times, the messages of every round and the output's lines are those of Streamo's
released runner (maifoundations/Streamo at 6d1f1ab, scripts/benchmark/ovo_script.py). It has no
scorer: the scores are our reading, specs/benchmarks.md 2, in columns of their own. An answer of
round r is known at second t when r < ceil(t).

SSR's scores cannot be compared with the paper's, whose rule is not known; REC's and CRR's can.
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.dialogue import (
    DEFAULT_SYSTEM_PROMPT,
    RESPONSE,
    SILENCE,
    STANDBY,
    window_messages,
)
from streamjax.errors import InputError
from streamjax.evals.benchmarks import ovo_bench
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Records,
    Scores,
    Watching,
    matched,
)
from streamjax.evals.benchmarks.ovo_bench import FORWARD, is_seconds, letter, same_video, unlike

FILES = ("ovo_streamo.json", ovo_bench.FILE)

# Columns, in the table's order; choices and steps are read in two ways each.
CHOICES = ("mcq_strict_letter", "mcq_official_substring")
STEPS = ("SSR_state", "SSR_period_missing_wrong")
COLUMNS = (*CHOICES, "CRR", "REC", *STEPS)

# What was said in a stream: (round or second, the turn's whole text), in order.
Turns = Sequence[tuple[float | int, str]]

_CHOICE = "Please provide your answer by stating the letter followed by the full option."
_SSR = (
    "Watch the following video and temporally localize the event. Respond once it has finished and "
    "summarize its time period. The given event is:\n'{step}'"
)
_REC = (
    "How many times did activity '{activity}' occur?\n{counts}. Please respond with only the "
    "letter of the correct answer. Update your answer if it becomes different at a later time."
)
_LETTER = re.compile(r"\(?([A-Z])(?![A-Za-z])")
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)\s*s?\s*to\s*(\d+(?:\.\d+)?)\s*s?")


def expand(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records as samples, one stream each: an SSR record becomes one for each of its steps.

    A step's id is `{record}_step_{i}`, its text takes the place of `all_steps`; `step_index`,
    `step_start_time` and `original_id` are added.
    """
    samples = []
    for record in records:
        if record["task"] != "SSR":
            samples.append(dict(record))
            continue
        starts = _times(record.get("start_time"))
        for i, step in enumerate(_steps(record)):
            own = {
                "id": f"{record['id']}_step_{i}",
                "all_steps": step,
                "step_index": i,
                "step_start_time": starts[i] if i < len(starts) else 0,
                "original_id": record["id"],
            }
            samples.append({**record, **own})
    return samples


def question(sample: Mapping[str, Any]) -> str:
    """What is asked, once, in the round of its time."""
    task = sample["task"]
    if task == "SSR":
        return _SSR.format(step=sample["all_steps"])
    if task == "REC":
        counts = "\n".join(f"{letter(i)}. {i + 1}" for i in range(10))
        return _REC.format(activity=sample["activity"], counts=counts)
    if task == "CRR":
        return sample["question"]
    options = [f"{letter(i)}. {text}" for i, text in enumerate(sample["options"])]
    return "\n".join([sample["question"], *options, _CHOICE])


def question_time(sample: Mapping[str, Any], draw: random.Random | None = None) -> int:
    """The second, and the round, in which a sample's question is asked.

    ASI's is drawn between 0 and its second, by the released runner without a seed; here from
    `draw`, by default one that the sample's id seeds.
    """
    task = sample["task"]
    if task == "CRR":
        return int(sample["ask_time"])
    if task == "SSR":
        return int(sample["step_start_time"])
    if task == "REC":
        return int(max(sample["start_times"][0] - 3, 0))
    latest = int(sample["realtime"])
    if task != "ASI":
        return latest
    return (draw or random.Random(str(sample["id"]))).randint(0, latest)


def follow(
    sample: Mapping[str, Any],
    rounds: int,
    answer: Callable[[int, Sequence[Mapping[str, str]], Sequence[int]], str],
    asked_at: int | None = None,
) -> list[str]:
    """The texts of a sample's rounds, as the released runner gets them from any model.

    `rounds`: whole seconds of the video. `answer` is given the round, its messages and the rounds
    whose frames stand for their `<image>`s, and says the model's text; it is not called before
    `asked_at` (by default `question_time`). All but REC end with the first Response.
    """
    at = question_time(sample) if asked_at is None else asked_at
    asked = question(sample)
    texts: list[str] = []
    while len(texts) < rounds:
        text, now = SILENCE, len(texts)
        if now >= at:
            sent = window_messages(now, texts, question=asked, question_time=at, rule="ovo")
            text = answer(now, sent["messages"], sent["frames"])
        texts.append(text)
        if sample["task"] != "REC" and RESPONSE in text:
            break
    return texts


def output_row(sample: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """A line of the released runner's output file."""
    task = sample["task"]
    row = {
        "id": sample["id"],
        "video": sample["video"],
        "gt": sample["test_info"] if task in FORWARD else sample["gt"],
        "output": {f"Round {i}": text for i, text in enumerate(texts)},
        "task": task,
    }
    if task == "SSR":
        row |= {
            "step_index": sample["step_index"],
            "original_id": sample["original_id"],
            "step_question": sample["all_steps"],
            "step_start_time": sample["step_start_time"],
        }
    return row


def polls(record: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """What each sample of a record is scored at: a step at the polls of its words, others at all.

    A step that a record names twice: each poll is for the first that has not ended before it.
    """
    asked = record.get("test_info", [])
    if record["task"] != "SSR":
        return [asked]
    steps, ends = _steps(record), _times(record.get("end_time"))
    shares: list[list[Mapping[str, Any]]] = [[] for _ in steps]
    for poll in asked:
        same = [i for i, step in enumerate(steps) if step.strip() == poll["step"].strip()]
        lasting = [i for i in same if i < len(ends) and ends[i] >= poll["realtime"]]
        shares[lasting[0] if lasting else same[-1]].append(poll)
    return shares


def mcq_letter(text: str) -> str | None:
    """The letter at the start of an answer, `B. two` or `(B) two`; None without one."""
    found = _LETTER.match(text.strip())
    return found.group(1) if found else None


def said(turns: Turns) -> list[tuple[float | int, str]]:
    """(round, words) of every Response: what stands behind its mark, wherever in the turn it is."""
    return [(at, text.split(RESPONSE, 1)[1].strip()) for at, text in turns if RESPONSE in text]


def known(turns: Turns, second: float | int) -> list[str]:
    """The answers that were given before `second`, rounded up."""
    return [words for at, words in said(turns) if at < math.ceil(second)]


def rec_count(turns: Turns, second: float | int) -> int:
    """The last count said before `second`: 0 without an answer, -1 for one that is no A to J."""
    answers = known(turns, second)
    if not answers:
        return 0
    found = mcq_letter(answers[-1])
    return "ABCDEFGHIJ".index(found) + 1 if found and found in "ABCDEFGHIJ" else -1


def step_runs(turns: Turns, second: float | int) -> bool:
    """Whether the states say that a step runs: from the first Standby to the Response.

    Without a Response, to the last Standby; without a Standby, never.
    """
    waits = [at for at, text in turns if STANDBY in text]
    ends = [at for at, _ in said(turns)][:1] or waits[-1:]
    return bool(waits) and waits[0] <= math.ceil(second) <= ends[0]


def period(turns: Turns) -> tuple[float, float] | None:
    """The seconds that the first answer names, `12s to 19s`; None without them."""
    found = _PERIOD.search(said(turns)[0][1]) if said(turns) else None
    return (float(found.group(1)), float(found.group(2))) if found else None


def _steps(record: Mapping[str, Any]) -> list[str]:
    steps = record["all_steps"]
    if isinstance(steps, str):
        return [line.strip() for line in steps.split("\n") if line.strip()]
    return list(steps)


def _times(times: Any) -> list[float | int]:
    if not isinstance(times, str):
        return list(times or [])
    numbers = [float(part) for part in times.split(",") if part.strip()]
    return [int(number) if number == int(number) else number for number in numbers]


def _flaw(record: Mapping[str, Any]) -> str | None:
    """What a stream needs of a record that a poll does not."""
    task = record["task"]
    if task == "CRR":
        return unlike(record, [("ask_time", "seconds", is_seconds)])
    if task == "REC":
        return unlike(record, [("start_times", "a list of seconds", _is_times)])
    if task != "SSR":
        return None
    reason = unlike(record, [("all_steps", "a list of steps", _is_steps)])
    for field in ("start_time", "end_time"):
        wanted = [(field, "a list of seconds", _is_times)]
        reason = reason or (unlike(record, wanted) if record.get(field) else None)
    if reason:
        return reason
    steps = [step.strip() for step in _steps(record)]
    for place, poll in enumerate(record["test_info"]):
        if poll["step"].strip() not in steps:
            return f"test_info[{place}]: step {poll['step']!r:.40}, wanted one of all_steps"
    return None


def _is_steps(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() != ""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _is_times(value: Any) -> bool:
    try:
        times = _times(value)
    except (TypeError, ValueError):
        return False
    return bool(times) and all(is_seconds(time) for time in times)


def _read(path: Path) -> Records:
    """Samples, already expanded; `polls` are those that a sample is scored at."""
    found = ovo_bench.read_records(path, FILES, _flaw)
    samples = [
        {**sample, "polls": own}
        for record in found.records
        for sample, own in zip(expand([record]), polls(record), strict=True)
    ]
    return Records(samples, found.files, found.problems)


def _answers(path: Path) -> dict[str, Any]:
    """{sample: line of the released runner's output}, or {sample: [[second, text], ...]}.

    From JSON lines or JSON, with `output` or `answer`. The runner asks id 0 anew whenever it is
    resumed: a sample that stands there twice must be the same twice.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text ({error})") from None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and not {"id", "output"} <= set(whole):
        return whole if "answer" not in whole else {str(whole.get("id")): whole["answer"]}
    rows = whole if isinstance(whole, list) else text.splitlines()
    answers: dict[str, Any] = {}
    for number, row in enumerate(rows, 1):
        if isinstance(row, str) and not row.strip():
            continue
        try:
            row = json.loads(row) if isinstance(row, str) else row
            key = str(row["id"])
            answer = row if "output" in row else row["answer"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f"{path}, line {number}: {row!r:.60}, wanted an object with an id and an output "
                '{"Round 0": text, ...}'
            ) from None
        if key in answers and answers[key] != answer:
            raise InputError(f"{path}, line {number}: id {key!r} stands there twice; remove one")
        answers[key] = answer
    return answers


def _turns(answer: Any) -> Turns | None:
    """(round or second, text), in order; None for null. Raises ValueError for anything else."""
    if isinstance(answer, Mapping):
        answer = answer.get("output", answer)
    if answer is None:
        return None
    if isinstance(answer, Mapping):
        answer = [(float(key.split()[-1]), text) for key, text in answer.items()]
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise ValueError
    turns = [(float(turn[0]), turn[1]) for turn in answer]
    if not all(text is None or isinstance(text, str) for _, text in turns):
        raise ValueError
    return sorted((at, text) for at, text in turns if text is not None)


def _judged(sample: Mapping[str, Any], turns: Turns | None) -> dict[str, list[tuple[bool, Any]]]:
    """(right, what was understood) for every column that a sample counts for, poll by poll."""
    task, answers = sample["task"], said(turns or [])
    if task not in FORWARD:
        gold, words = letter(sample["gt"]), answers[0][1] if answers else ""
        found = mcq_letter(words)
        return {CHOICES[0]: [(found == gold, found)], CHOICES[1]: [(gold in words, words or None)]}
    asked = sample["polls"]
    if turns is None:
        columns = STEPS if task == "SSR" else (task,)
        return {name: [(False, None)] * len(asked) for name in columns}
    times = [poll["realtime"] for poll in asked]
    if task == "REC":
        counts = [rec_count(turns, time) for time in times]
        return {"REC": [(n == p["count"], n) for n, p in zip(counts, asked, strict=True)]}
    wanted = [bool(poll["type"]) for poll in asked]
    if task == "CRR":
        yes = [bool(known(turns, time)) for time in times]
        return {"CRR": [(one == want, one) for one, want in zip(yes, wanted, strict=True)]}
    runs, span = [step_runs(turns, time) for time in times], period(turns)
    inside = [span is not None and span[0] <= time <= span[1] for time in times]
    return {
        STEPS[0]: [(one == want, one) for one, want in zip(runs, wanted, strict=True)],
        STEPS[1]: [
            (span is not None and one == want, span and one)
            for one, want in zip(inside, wanted, strict=True)
        ],
    }


def _lost(sample: Mapping[str, Any], turns: Turns | None) -> tuple[bool, bool]:
    """(no answer, one that is not understood); in CRR and REC silence is an answer."""
    answers = said(turns or [])
    if turns is None or (not answers and sample["task"] not in ("CRR", "REC")):
        return True, False
    if sample["task"] == "CRR":
        return False, False
    if sample["task"] == "SSR":
        return False, period(turns) is None
    if sample["task"] == "REC":
        return False, any(rec_count([(0, RESPONSE + words)], 1) < 0 for _, words in answers)
    return False, mcq_letter(answers[0][1]) is None


def tabulate(graded: Sequence[Graded], rule: str = "streamo_derived") -> dict[str, float]:
    """Percentages per column: means over its questions, or over its polls."""
    del rule
    by_column: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for one in graded:
        if one.score is not None:
            by_column[one.group].append(one.score)
    return {name: 100 * sum(ones) / len(ones) for name, ones in by_column.items() if ones}


def _score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    samples = {str(sample["id"]): sample for sample in records.records}
    answers, foreign = same_video(answers, {key: s["video"] for key, s in samples.items()})
    title = OVO_BENCH_STREAMO.title
    problems = [*records.problems, *foreign, *matched(list(samples), answers, title)]
    graded, unanswered, unparsed = [], 0, 0
    per_item: dict[str, dict[str, Any]] = {}
    tasks: dict[str, list[Graded]] = {name: [] for name in STEPS}
    for key, sample in samples.items():
        try:
            turns = _turns(answers.get(key))
        except (ValueError, TypeError, IndexError, KeyError):
            wanted = 'wanted {"Round 0": text, ...} or [[second, text], ...]'
            problems.append(f"answer {key!r} is {answers[key]!r:.60}, {wanted}; wrong")
            turns = None
        silent, unclear = _lost(sample, turns)
        unanswered, unparsed = unanswered + silent, unparsed + unclear
        forward = sample["task"] in FORWARD
        for column, results in _judged(sample, turns).items():
            scores = [int(right) for right, _ in results]
            per_item.setdefault(column, {})[key] = scores if forward else scores[0]
            for place, (right, parsed) in enumerate(results):
                one = f"{column}/{key}_{place}" if forward else f"{column}/{key}"
                grade = Graded(one, column, float(right), sample["video"], parsed, not silent)
                graded.append(grade)
                for name in tasks:
                    if column == name or column not in (*STEPS, CHOICES[1]):
                        tasks[name].append(Graded(one, sample["task"], float(right)))
    counts = [(name, sum(one.group == name for one in graded)) for name in COLUMNS]
    return Scores(
        table=tabulate(graded, rule),
        n={name: count for name, count in counts if count},
        graded=tuple(graded),
        unanswered=unanswered,
        unparsed=unparsed,
        problems=tuple(problems),
        details={
            "per_item": per_item,
            "tasks": {f"SSR as {name}": ovo_bench.tabulate(ones) for name, ones in tasks.items()},
        },
    )


def _questions(records: Records, protocol: str) -> list[Watching]:
    asked = []
    for sample in records.records:
        at, forward = question_time(sample), sample["task"] in FORWARD
        end = None
        if protocol == "clipped":
            last = max((poll["realtime"] for poll in sample["polls"]), default=0) if forward else 0
            end = float(max(math.ceil(last), at + 1) if forward else int(sample["realtime"]) + 1)
        asked.append(
            Watching(
                id=str(sample["id"]),
                video=sample["video"],
                asks=((float(at), question(sample)),),
                speaks_from=float(at),
                until="end" if sample["task"] == "REC" else "response",
                end=end,
                system=DEFAULT_SYSTEM_PROMPT,
                max_new_tokens=512,
            )
        )
    return asked


OVO_BENCH_STREAMO = Benchmark(
    name="ovo_bench_streamo",
    title="OVO-Bench as Streamo watches it",
    rules={
        "streamo_derived": "our reading, no scorer is released: choices by the first Response's "
        "letter; CRR yes once there is a Response; REC by the last letter, 0 without one; SSR by "
        "the states, and by the period named, whose lack is wrong; means over questions and polls"
    },
    read=_read,
    answers=_answers,
    score=_score,
    tabulate=tabulate,
    protocols={
        "streamo": "as released: a frame a second, silent before the question, to the first "
        "Response (REC: to the end), past the asked second if it is silent",
        "clipped": "the same, but no frame after the last second that is asked about",
    },
    questions=_questions,
)
