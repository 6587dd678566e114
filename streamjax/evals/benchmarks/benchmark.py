"""What a benchmark is: records read from its own files, questions for a model, scores of answers.

A benchmark is one file beside this one, holding one `Benchmark`. Reading, asking and scoring need
no model: answers made elsewhere are scored by the same functions.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from streamjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Question:
    """One call of a model: a stretch of a video, and a question about it.

    id: its answer's key. video: a file, or a folder of frames, below the videos' folder. prompt:
    frames come before it, or, where it has as many `<image>` as there are frames, in their places.
    start, end: seconds; nothing outside of them is decoded; an `end` of None is the video's.
    prefix: how the answer begins, given to the model and no part of its answer. frames: so many,
    spread as `spread` says; None is one each 1/fps second. spread: (frames a second, frames of the
    video, start, end, how many) -> indices; None is evenly, each in the middle of its share. kept:
    what of the model's text is the answer; None is all of it. pictures_fps: frames a second of a
    folder of frames; None is what the run was told.
    """

    id: str
    video: str
    prompt: str
    start: float = 0.0
    end: float | None = None
    system: str = ""
    prefix: str = ""
    frames: int | None = None
    spread: Callable[[float, int, float, float | None, int], Sequence[int]] | None = None
    max_new_tokens: int = 32
    kept: Callable[[str], str] | None = None
    pictures_fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Watching:
    """One stream: a video from its beginning, and what is asked of it while it runs.

    asks: (second, text); asked before the frame of that second is shown, the first one early
    enough for the answer. speaks_from: the second before which the model is not called for an
    answer (its turns are Silence). until: "response" ends the stream with the first Response,
    "end" with the video. end: seconds; nothing after it is decoded; None is the video's end. Its
    answer is a list of [second of the turn, whole text of the turn], Silence left out.
    """

    id: str
    video: str
    asks: tuple[tuple[float, str], ...]
    speaks_from: float = 0.0
    until: Literal["response", "end"] = "end"
    end: float | None = None
    system: str | None = None
    max_new_tokens: int = 64


@dataclasses.dataclass(frozen=True)
class Polling:
    """A video asked again and again while it runs, where each question depends on the replies.

    drive: asks what it is given to ask, one `Question` after another, later and later in the video;
    its result is the answer.
    """

    id: str
    video: str
    drive: Callable[[Callable[[Question], str | None]], Any]


@dataclasses.dataclass(frozen=True)
class Judging:
    """An answer that another model must judge.

    prompts: what the judge is asked, each by itself. verdict: its replies -> what the benchmark's
    score reads, None where they say nothing.
    """

    id: str
    prompts: tuple[str, ...]
    verdict: Callable[[Sequence[str]], Any]


@dataclasses.dataclass(frozen=True)
class Graded:
    """The score of one answer: between 0 and 1, or None where a rule leaves it out.

    group: what it counts for, e.g. a task. video: answers about one video are resampled together.
    parsed: what was understood, None where nothing was. answered: whether there was an answer.
    """

    id: str
    group: str
    score: float | None
    video: str = ""
    parsed: Any = None
    answered: bool = True


@dataclasses.dataclass(frozen=True)
class Scores:
    """What answers are worth.

    table: the columns of the benchmark's papers in their order, percentages unless their name says
    otherwise; tables may lie in tables. n: how many answers stand behind each group. unanswered:
    no answer, or null. unparsed: an answer, but none that the rule understands. problems: one line
    each. details: what else the benchmark's own scorer tells.
    """

    table: Mapping[str, Any]
    n: Mapping[str, int]
    graded: tuple[Graded, ...] = ()
    unanswered: int = 0
    unparsed: int = 0
    problems: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Records:
    """What a benchmark's folder holds: its records, whatever one is, and those that were left out.

    files: all that were read, for the hash. problems: one line for each record that is unusable.
    verdicts: what a judge said of answers, by id; from the folder, or put there before scoring.
    """

    records: Sequence[Any]
    files: Sequence[Path]
    problems: tuple[str, ...] = ()
    verdicts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Functions of one benchmark.

    name: as on the command line. title: as its paper writes it. rules: names of the ways to read
    and to average answers; the first is the default, each explained by its words. read: folder ->
    Records; InputError where the folder is not this benchmark's, or of another version. answers:
    file -> {id: answer}. score: (records, answers, rule) -> Scores. tabulate: (graded, rule) ->
    table, where scores are means over answers; what `compare` resamples. questions: (records,
    protocol) -> what a model is asked. protocols: their names with words, the first is the
    default; empty where no model of ours can be asked, and only answers made elsewhere are scored.
    judging: (records, answers) -> what a judge is asked; None where no answer needs one.
    judge_prompts: its prompts before they are filled in, by name.
    """

    name: str
    title: str
    rules: Mapping[str, str]
    read: Callable[[Path], Records]
    answers: Callable[[Path], Mapping[str, Any]]
    score: Callable[[Records, Mapping[str, Any], str], Scores]
    tabulate: Callable[[Sequence[Graded], str], Mapping[str, Any]] | None = None
    protocols: Mapping[str, str] = dataclasses.field(default_factory=dict)
    questions: Callable[[Records, str], Sequence[Question | Watching | Polling]] | None = None
    judging: Callable[[Records, Mapping[str, Any]], Sequence[Judging]] | None = None
    judge_prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises InputError where it is missing, no JSON, or says a key twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{path}: {twice!r} stands there twice, wanted once; remove one")
        return found

    try:
        return json.loads(_text(path), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no JSON ({error})") from None


def read_answers(path: Path) -> Mapping[str, Any]:
    """Answers as {id: text or null}, from JSON, or from JSON lines with `id` and `answer`.

    Raises InputError for another form and for an id that stands there twice.
    """
    if path.suffix != ".jsonl":
        found = read_json(path)
        if not isinstance(found, dict):
            raise InputError(f"{path}: holds a {type(found).__name__}, wanted {{id: answer}}")
        return found
    answers: dict[str, Any] = {}
    # Not splitlines: it also cuts at characters that may stand inside of a JSON text.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, answer = str(row["id"]), row["answer"]
        except (json.JSONDecodeError, KeyError, TypeError):
            wanted = 'wanted {"id": ..., "answer": ...}'
            raise InputError(f"{path}, line {number}: {line[:60]!r}, {wanted}") from None
        if key in answers:
            raise InputError(f"{path}, line {number}: id {key!r} stands there twice; remove one")
        answers[key] = answer
    return answers


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; wanted a file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text in UTF-8 ({error})") from None


def matched(known: Sequence[str], answers: Mapping[str, Any], title: str) -> list[str]:
    """A line about ids that do not fit together: answers without a question, and the reverse.

    Raises InputError when none fits: the answers are to something else.
    """
    asked = set(known)
    unknown = [key for key in answers if key not in asked]
    if answers and len(unknown) == len(answers):
        raise InputError(
            f"none of {len(answers)} answers is to a question of this {title}: {unknown[0]!r} is "
            f"not among its ids ({', '.join(map(repr, known[:3]))} ...); give the answers to this "
            "data"
        )
    lines = []
    if unknown:
        lines.append(f"{len(unknown)} answers to no question here, left out, first {unknown[0]!r}")
    missing = [key for key in known if key not in answers]
    if missing:
        lines.append(f"{len(missing)} questions without an answer, first {missing[0]!r}")
    return lines
