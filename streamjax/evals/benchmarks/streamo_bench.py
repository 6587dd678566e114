"""Streamo-Bench, as we read it: grounding, captions and changing answers, all in a stream.

Its data, judge and scorer are not public. The scores follow equations 8 to 17 of Streamo's paper,
the file is a form that we propose (a list of Streamo-Instruct records with `id` and `subtask`), and
no parity with the paper's table is claimed. specs/benchmarks.md section 4.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.dialogue import RESPONSE, STATES, parse_time
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Judging,
    Records,
    Scores,
    Watching,
    matched,
    read_answers,
    read_json,
)
from streamjax.evals.benchmarks.ovo_bench_streamo import mcq_letter
from streamjax.evals.timing.periods import Period, hull_iou, period_in

FILE = "streamo_bench.json"
VERDICTS = "judge_verdicts.json"
BASELINE = "baseline_predictions.json"

GROUNDING = {
    "forward": "Grounding Forward (mIoU)",
    "backward": "Grounding Backward (mIoU)",
}
CAPTIONS = {
    "narration": "Narration (win rate)",
    "dense_caption": "Dense Caption (win rate)",
}
TSQA, ACCURACY, RECALL = "tsqa", "TSQA Accuracy (eq.16)", "TSQA Recall (eq.17)"
PRECISION = "extra_tsqa_precision (not in the paper)"
SUBTASKS = {**GROUNDING, **CAPTIONS, TSQA: RECALL}
# An answer counts for a time that is so many seconds away, or fewer.
NEAR = 3

RULES = {
    "streamo_derived": "the paper's equations; IoU of the first period told, 0 without one; "
    "a hit is the right leading letter within 3 s; a tie is no win; Average is of all six columns",
}
PROTOCOLS = {"stream": "asked once, at its second, in a stream that runs to the video's end"}

# Ours: the paper's judge and its prompt are not known. Each pair is judged in both orders.
PROMPT = """\
Two assistants, A and B, watched the same video live, one second after the other, and were given \
this instruction:

{question}

What happens in the video, with its times:
{events}

A said:
{a}

B said:
{b}

Which of them follows the instruction better? Compare, in this order: whether what is said is true \
of the video, whether what matters is there, whether each thing is said soon after it happens, \
whether it is said clearly and once. Neither length nor the order in which A and B are shown here \
counts. Answer with a short reason, then one last line that is one of:
Verdict: A
Verdict: B
Verdict: tie"""


@dataclasses.dataclass(frozen=True)
class Item:
    """One record. asks: (second, words). truth: (words, start, end) in seconds; an instant is its
    own end. baseline: (second, words) of the rival with which captions are compared, if any.
    """

    id: str
    video: str
    subtask: str
    asks: tuple[tuple[float, str], ...]
    truth: tuple[tuple[str, float, float], ...]
    baseline: tuple[tuple[float, str], ...] | None = None


def read(folder: Path) -> Records:
    """The records of `streamo_bench.json`, and what else the folder holds: a judge's verdicts on
    captions (`judge_verdicts.json`, {id: win, tie or lose}) and the captions of a rival
    (`baseline_predictions.json`, in the form of answers).

    Raises InputError where the file is missing or holds no usable record.
    """
    file = folder / FILE
    if not file.is_file():
        found = sorted(path.name for path in folder.glob("*.json"))[:4] if folder.is_dir() else []
        raise InputError(
            f"{folder}: no Streamo-Bench: found {', '.join(found) or 'no JSON'}, wanted {FILE}, a "
            "list of Streamo-Instruct records with `id` and `subtask`"
        )
    content = read_json(file)
    if not isinstance(content, list) or not content:
        raise InputError(f"{file}: holds no list of records; wanted one of Streamo-Instruct's form")
    baseline = folder / BASELINE
    rival = read_answers(baseline) if baseline.is_file() else {}
    items: dict[str, Item] = {}
    problems: list[str] = []
    for number, row in enumerate(content):
        try:
            item = _item(row)
            if item.id in items:
                raise InputError(f"id {item.id!r} stands there twice")
        except InputError as error:
            problems.append(f"{file.name}, record {number}: {error}; left out")
            continue
        said = turns(rival.get(item.id))
        items[item.id] = dataclasses.replace(item, baseline=None if said is None else tuple(said))
    if not items:
        raise InputError(f"{file}: not one usable record of Streamo-Bench; {problems[0]}")
    verdicts = read_json(folder / VERDICTS) if (folder / VERDICTS).is_file() else {}
    if not isinstance(verdicts, dict):
        raise InputError(f"{folder / VERDICTS}: wanted {{id: win, tie or lose}}")
    files = [file, *(path for path in (baseline, folder / VERDICTS) if path.is_file())]
    return Records(list(items.values()), files, tuple(problems), verdicts)


def turns(answer: Any) -> list[tuple[float, str]] | None:
    """(second, words) of every Response of a stream; None where the answer is no list of turns.

    answer: [[second of the turn, text], ...], the text whole or only what follows `</Response>`.
    What is said in the turn of second r is known at r + 1: the time that is returned.
    """
    if not isinstance(answer, (list, tuple)):
        return None
    said = []
    for turn in answer:
        try:
            second, text = turn
            at = float(second) + 1
            if RESPONSE in text:
                text = text.split(RESPONSE, 1)[1]
            elif text.startswith(STATES):
                continue
        except (TypeError, ValueError, AttributeError):
            return None
        said.append((at, text.strip()))
    return said


def questions(records: Records, protocol: str) -> Sequence[Watching]:
    """One stream for each record; it begins to speak when it is asked."""
    return [
        Watching(item.id, item.video, item.asks, speaks_from=min(at for at, _ in item.asks))
        for item in records.records
    ]


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """The six columns; those of captions only with what a judge said (`records.verdicts`)."""
    problems = [
        *records.problems,
        *matched([item.id for item in records.records], answers, STREAMO_BENCH.title),
    ]
    graded, unparsed = [], 0
    for item in records.records:
        given = answers.get(item.id)
        said = turns(given)
        if given is not None and said is None:
            problems.append(f"answer {item.id!r}: wanted [[second, text], ...]; counted as none")
        if item.subtask in CAPTIONS:
            graded.append(_caption(item, said, records.verdicts))
        elif item.subtask == TSQA:
            graded.append(_tsqa(item, said))
            unparsed += bool(said) and not any(mcq_letter(text) for _, text in said)
        else:
            graded.append(_grounding(item, said))
            unparsed += bool(said) and graded[-1].parsed is None
    captions = [one for one in graded if one.group in CAPTIONS.values()]
    unjudged = [one.id for one in captions if one.score is None]
    if unjudged:
        problems.append(
            f"{len(unjudged)} captions without a verdict, left out of the win rates, first "
            f"{unjudged[0]!r}; put {VERDICTS} into the folder, or name a judge"
        )
    asked = [one.parsed for one in graded if one.group == RECALL]
    said_in_all = sum(one["said"] for one in asked)
    per_item = {one.id: one.score for one in graded if one.group in GROUNDING.values()}
    per_item |= {one.id: one.parsed["hits"] for one in graded if one.group == RECALL}
    n = {
        column: sum(one.group == column and one.score is not None for one in graded)
        for column in SUBTASKS.values()
    }
    return Scores(
        tabulate(graded, rule),
        n | {ACCURACY: sum(len(one["hits"]) for one in asked), PRECISION: said_in_all},
        tuple(graded),
        unanswered=sum(not one.answered for one in graded),
        unparsed=unparsed,
        problems=tuple(problems),
        details={
            PRECISION: _percent(sum(one["right"] for one in asked), said_in_all),
            "per_item": per_item,
            "verdicts": {
                name: sum(one.parsed == name for one in captions) for name in ("win", "tie", "lose")
            },
        },
    )


def tabulate(graded: Sequence[Graded], rule: str) -> Mapping[str, Any]:
    """The columns in percent, None where nothing was scored; Average is of all six, or None."""
    scores = {
        column: [one.score for one in graded if one.group == column and one.score is not None]
        for column in SUBTASKS.values()
    }
    means = {column: _percent(sum(found), len(found)) for column, found in scores.items()}
    hits = [hit for one in graded if one.group == RECALL for hit in one.parsed["hits"]]
    table = {column: means[column] for column in (*GROUNDING.values(), *CAPTIONS.values())}
    table |= {ACCURACY: _percent(sum(hits), len(hits)), RECALL: means[RECALL]}
    known = [value for value in table.values() if value is not None]
    return {**table, "Average": sum(known) / 6 if len(known) == 6 else None}


def hits(
    truth: Sequence[tuple[str, float | int]], said: Sequence[tuple[str | None, float | int]]
) -> list[int]:
    """For each (letter, second) that is true: 1 where it is said at most NEAR seconds away."""
    return [
        int(any(letter == words and abs(second - at) <= NEAR for words, at in said))
        for letter, second in truth
    ]


def judging(records: Records, answers: Mapping[str, Any]) -> Sequence[Judging]:
    """What a judge is asked: every caption against the rival's, in both orders.

    A win or a loss is one in both orders; anything else is a tie. A stream that has said nothing is
    not shown: it cannot win. Raises InputError without the rival's captions.
    """
    captions = [item for item in records.records if item.subtask in CAPTIONS]
    if captions and all(item.baseline is None for item in captions):
        raise InputError(
            f"no captions to compare with: put {BASELINE}, the answers of a rival, beside {FILE}"
        )
    asked = []
    for item in captions:
        said = turns(answers.get(item.id))
        if said and item.baseline is not None:
            ours, theirs = _lines(said), _lines(item.baseline)
            pairs = ((ours, theirs), (theirs, ours))
            asked.append(Judging(item.id, tuple(_filled(item, *pair) for pair in pairs), verdict))
    return asked


def verdict(replies: Sequence[str]) -> str | None:
    """win, tie or lose from a judge's replies, ours first, then second; None if one is unclear."""
    votes = [re.findall(r"^\W*verdict\W*(A|B|tie)\b", one, re.I | re.M) for one in replies]
    if len(votes) != 2 or not all(votes):
        return None
    return {("a", "b"): "win", ("b", "a"): "lose"}.get(
        (votes[0][-1].lower(), votes[1][-1].lower()), "tie"
    )


def _caption(item: Item, said: Any, verdicts: Mapping[str, Any]) -> Graded:
    found = verdicts.get(item.id)
    if item.id not in verdicts and verdicts and not said:
        found = "lose"
    known = found if found in ("win", "tie", "lose") else None
    score = None if known is None else float(known == "win")
    return Graded(item.id, CAPTIONS[item.subtask], score, item.video, known, bool(said))


def _grounding(item: Item, said: Sequence[tuple[float, str]] | None) -> Graded:
    _, start, end = item.truth[0]
    told = next((found for _, text in said or () if (found := _period(text))), None)
    iou = hull_iou((start, end), told) if told else 0.0
    return Graded(item.id, GROUNDING[item.subtask], iou, item.video, told, bool(said))


def _tsqa(item: Item, said: Sequence[tuple[float, str]] | None) -> Graded:
    truth = [(mcq_letter(words) or "", at) for words, at, _ in item.truth]
    given = [(mcq_letter(text), at) for at, text in said or ()]
    found = hits(truth, given)
    parsed = {"hits": found, "right": sum(max(hits(truth, [one])) for one in given)}
    share = sum(found) / len(found)
    return Graded(item.id, RECALL, share, item.video, {**parsed, "said": len(given)}, bool(said))


def _period(text: str) -> Period | None:
    return period_in(text, units=True) or period_in(text)


def _percent(part: float | int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _lines(said: Sequence[tuple[float, str]]) -> str:
    return "\n".join(f"[{at:g}s] {text}" for at, text in said) or "(nothing)"


def _filled(item: Item, a: str, b: str) -> str:
    events = "\n".join(
        f"[{start:g}s]" * (start == end) + f"[{start:g}s to {end:g}s]" * (start != end) + f" {text}"
        for text, start, end in item.truth
    )
    values = {"question": item.asks[0][1], "events": events, "a": a, "b": b}
    return re.sub(r"\{(question|events|a|b)\}", lambda found: values[found[1]], PROMPT)


def _item(row: Any) -> Item:
    if not isinstance(row, dict):
        raise InputError(f"a {type(row).__name__}, wanted an object")
    key = row.get("id")
    if not isinstance(key, (str, int)) or isinstance(key, bool) or key == "":
        raise InputError(f"'id' is {key!r}, wanted text")
    subtask = row.get("subtask")
    if not isinstance(subtask, str) or subtask not in SUBTASKS:
        raise InputError(f"'subtask' is {subtask!r}, wanted one of {', '.join(SUBTASKS)}")
    video = row.get("video_path") or row.get("video") or row.get("video_name")
    if not isinstance(video, str):
        raise InputError(f"'video' is {video!r}, wanted a file's name")
    asks = tuple((_second(ask, "time"), _words(ask)) for ask in _list(row, "question"))
    if subtask == TSQA:
        instants = [(_words(one), _second(one, "time")) for one in _list(row, "response")]
        truth = tuple((words, at, at) for words, at in instants)
        unlike = [words for words, _ in instants if not mcq_letter(words)]
        if unlike:
            raise InputError(f"an answer is {unlike[0]!r}, wanted its letter first, as in 'B. two'")
        if len(re.findall(r"(?:^|\s)[A-Z]\. ", asks[0][1])) == 1:
            raise InputError("one option, wanted 2 or more")
    else:
        truth = tuple((_words(one), *_span(one)) for one in _list(row, "response"))
    return Item(str(key), video.removeprefix("./"), subtask, asks, truth)


def _list(row: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    found = row.get(field)
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{field!r} is {str(found)[:60]!r}, wanted a list of entries")
    return found


def _words(entry: Mapping[str, Any]) -> str:
    if not isinstance(entry.get("content"), str) or not entry["content"]:
        raise InputError(f"'content' is {entry.get('content')!r}, wanted text")
    return entry["content"]


def _second(entry: Mapping[str, Any], field: str) -> float:
    value = entry.get(field)
    # Counted in milliseconds, because whole seconds would drop fractions.
    found = parse_time(value, 1000) if isinstance(value, (str, int, float)) else None
    if found is None or found < 0:
        raise InputError(f"{field!r} is {value!r}, wanted seconds")
    return found / 1000


def _span(entry: Mapping[str, Any]) -> tuple[float, float]:
    if entry.get("st_time") in ("", None) and entry.get("time") not in ("", None):
        return (at := _second(entry, "time")), at
    return _second(entry, "st_time"), _second(entry, "end_time")


STREAMO_BENCH = Benchmark(
    name="streamo_bench",
    title="Streamo-Bench (our reading)",
    rules=RULES,
    read=read,
    answers=read_answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
    judging=judging,
    judge_prompts={"captions": PROMPT},
)
