"""Multiple choice: what an option is, how a letter is read from an answer, and who counts.

A rule has the name of the code that reads so. They differ in what they strip and what they prefer,
and none of them is right: "Based on ..., (A)" is B to the two older ones, "It is a dog" is A to
another. specs/benchmarks.md sections 5 to 9.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Graded, read_json

LETTERS = "ABCDEFGH"

# Phrases that a rule takes out before it looks for a letter. Where upstream lacks a comma between
# two of them they are one long phrase, which no answer holds: kept, for it decides what is read.
OFFICIAL_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is" + "The correct option is",
    "Best answer:" + "Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)
LEGACY_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is" + "The correct option is",
    "Best answer:" + "Best option:",
)
LONGVIDEOBENCH_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)

# Words after which the rule of 2026 looks for a letter, each from where it first stands: the longer
# ones hold the shorter ones, and may yet come first somewhere else.
ANNOUNCED_BY = (
    *(f"{the}{good}answer is" for the in ("", "the ") for good in ("", "correct ", "best ")),
    *(f"{the}{good} option is" for the in ("", "the ") for good in ("correct", "best")),
    *(f"{the}{good}choice is" for the in ("", "the ") for good in ("", "correct ")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# How sure the rule of 2026 is of a letter, by where it stands.
START, END, ANNOUNCED = 10, 9, 7
MARKED = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))

# The signs that lmms-eval's reader for MVBench drops, or makes a space of.
SIGNS = ';/[]"{}()=+\\_-><@`,?!'


def first_letter(text: str, phrases: Sequence[str], letters: str = "ABCD") -> str:
    """The first of the capital letters anywhere, once phrases are out; "" where there is none.

    Words are no obstacle: "Based on" is B.
    """
    for phrase in phrases:
        text = text.replace(phrase, "")
    found = re.search(f"[{letters}]", text)
    return found[0] if found else ""


def ranked_letter(text: str, letters: str = "ABCD") -> str:
    """The letter that stands where an answer most likely stands (lmms-eval since v0.7.2).

    At the start, at the end, after words like "the answer is", as (A), A., A:, A), "A ", anywhere:
    in this order; of several the last. "" where there is none.
    """
    text = text.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    bare, text = text.strip(), f" {text} "
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        for form, rank in MARKED:
            at = text.rfind(form.format(letter))
            found += [(rank, at, letter)] if at >= 0 else []
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((START, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((END, len(text), letter))
    lower = text.lower()
    for words in ANNOUNCED_BY:
        said = lower.find(words)
        if said >= 0:
            places = ((text.find(letter, said + len(words)), letter) for letter in letters)
            found += [(ANNOUNCED, at, letter) for at, letter in places if at >= 0]
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found)[2] if found else ""


def lone_letter(text: str) -> str:
    """The leading `X.`, else the first letter A to E of either case that is no part of a word.

    What lmms-eval reads in MVBench; where it finds no letter it compares the text, which is then
    returned in lower case.
    """
    led = re.match(r"([A-E])\.\s*.+$", text.strip(), re.IGNORECASE)
    if led:
        return led[1].upper()
    text = re.sub(r"[\n\t]", " ", text).strip()
    between_digits = re.search(r"\d,\d", text)
    plain = text
    for sign in SIGNS:
        beside_space = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if beside_space or between_digits else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)
    plain = plain.strip("'").strip('"').strip(")").strip("(").strip().lower()
    lone = re.search(r"\b[a-e]\b", plain)
    return lone[0].upper() if lone else plain


# How Video-MME's own scorer and lmms-eval read it; MLVU's is read by lmms-eval in the same way.
PARSERS: Mapping[str, Callable[[str], str]] = {
    "official": lambda text: first_letter(text, OFFICIAL_PHRASES),
    "lmms_eval_legacy": lambda text: first_letter(text, LEGACY_PHRASES),
    "lmms_eval_2026": ranked_letter,
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with options.

    task: what it counts for. video: below the videos' folder. right: the index of the right option.
    """

    id: str
    task: str
    video: str
    question: str
    options: tuple[str, ...]
    right: int

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.right]

    @property
    def truth(self) -> str:
        """The right option as the authors write it, `(B) text`."""
        return f"({self.letter}) {self.options[self.right]}"

    def lines(self, form: str = "({}) {}") -> str:
        """The options, one a line, each with its letter."""
        return "\n".join(map(form.format, LETTERS, self.options))


@runtime_checkable
class Known(Protocol):
    """A record that has an id."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Known)


def text_of(row: Any, key: str) -> str:
    """A field that must be a text.

    Raises InputError where the row is no record, or the field is missing or something else.
    """
    if not isinstance(row, dict):
        raise InputError(f"is a {type(row).__name__}, wanted a record with {key!r}")
    if key not in row:
        raise InputError(f"has no {key!r}, found {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(row[key], str):
        raise InputError(f"{key!r} is {row[key]!r:.40}, wanted text")
    return row[key]


def number_of(row: Mapping[str, Any], key: str) -> float:
    """A field that must be a number of seconds, zero or more.

    Raises InputError where it is missing or something else.
    """
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InputError(f"{key!r} is {value!r:.40}, wanted seconds")
    return float(value)


def options_of(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The options of a record.

    Raises InputError where they are no texts, fewer than two, or more than there are letters for.
    """
    options = row.get(key)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InputError(f"{key!r} is {options!r:.40}, wanted a list of texts")
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{key!r} holds {len(options)} options, wanted 2 to {len(LETTERS)}")
    return tuple(options)


def index_of(options: Sequence[str], answer: Any, *, letter: bool) -> int:
    """Which option is right, told by its letter or by its text.

    Raises InputError where none is.
    """
    names = LETTERS[: len(options)] if letter else options
    if not isinstance(answer, str) or answer not in list(names):
        raise InputError(f"answer {answer!r:.40} is none of its options {', '.join(names):.80}")
    return list(names).index(answer)


def gather(
    rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], R], title: str
) -> tuple[list[R], tuple[str, ...]]:
    """Records of rows that are named by where they stand, and a line for each that is unusable.

    Of records with the same id the first one stays. Raises InputError where none is left.
    """
    records: dict[str, R] = {}
    problems: list[str] = []
    for where, row in rows:
        try:
            record = make(where, row)
        except InputError as error:
            problems.append(f"{where}: {error}; left out")
            continue
        if record.id in records:
            problems.append(f"{where}: id {record.id!r} stands there twice; the first one counts")
            continue
        records[record.id] = record
    if not records:
        first = problems[0] if problems else "the list is empty"
        raise InputError(f"no usable question of {title}: {first}; give its annotation files")
    return list(records.values()), tuple(problems)


def read_rows(path: Path) -> list[Any]:
    """The records of a file: a JSON list, or JSON lines.

    Raises InputError where it is neither.
    """
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: no JSON ({error})") from None
        return rows
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds a {type(rows).__name__}, wanted a list of records")
    return rows


def task_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The file of each task that is there, in `json/` or in the folder itself."""
    places = ([folder / "json" / f"{name}.json", folder / f"{name}.json"] for name in names)
    return [path for both in places for path in [p for p in both if p.is_file()][:1]]


def rows_of(files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Every row of some files, named by its file and its number there."""
    for path in files:
        for number, row in enumerate(read_rows(path)):
            yield f"{path.name}:{number}", row


def find_file(folder: Path, patterns: Sequence[str], title: str) -> Path:
    """The first file of a folder that one of the patterns names, in their order.

    Raises InputError where there is none; it tells what is there, and how a table becomes JSON.
    """
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    there = ", ".join(sorted(path.name for path in folder.glob("*"))[:6]) or "nothing"
    raise InputError(
        f"{folder}: no {title}: wanted {' or '.join(patterns)}, found {there}; give the folder of "
        "its annotations (a table of the hub: save its rows with datasets' to_json)"
    )


def told(answers: Mapping[str, Any]) -> tuple[dict[str, str | None], list[str]]:
    """Answers that are text or null, and a line about those that are neither and count as null."""
    odd = [key for key, answer in answers.items() if not isinstance(answer, str | None)]
    kept = dict(answers) | dict.fromkeys(odd)
    if not odd:
        return kept, []
    kind = type(answers[odd[0]]).__name__
    return kept, [f"{len(odd)} answers are no text, read as none, first {odd[0]!r}: a {kind}"]


def graded(
    records: Sequence[Choice],
    answers: Mapping[str, str | None],
    read: Callable[[str], str],
    *,
    group: Callable[[Any], str] = lambda record: record.task,
    drop_unread: bool = False,
) -> tuple[Graded, ...]:
    """One score for each record: 1 where the letter that is read is the right one, else 0.

    No answer, or null, is read as an empty one. drop_unread: answers that hold no letter get None.
    """
    scores = []
    for record in records:
        answer = answers.get(record.id)
        letter = read(answer or "")
        score = None if drop_unread and not letter else float(letter == record.letter)
        answered = answer is not None
        scores.append(Graded(record.id, group(record), score, record.video, letter, answered))
    return tuple(scores)


def unread(scores: Sequence[Graded]) -> int:
    """How many answers there are that the rule understood nothing of."""
    return sum(score.answered and not score.parsed for score in scores)


def unanswered(scores: Sequence[Graded]) -> int:
    """How many questions got no answer, or null."""
    return sum(not score.answered for score in scores)


def percent(scores: Iterable[Graded]) -> float:
    """The mean score in percent of those that count; 0 where none does."""
    counted = [score.score for score in scores if score.score is not None]
    return 100 * sum(counted) / len(counted) if counted else 0.0


def by_group(scores: Iterable[Graded]) -> dict[str, list[Graded]]:
    """The scores of each group, groups in the order in which they come."""
    groups: dict[str, list[Graded]] = {}
    for score in scores:
        groups.setdefault(score.group, []).append(score)
    return groups


def counted(groups: Mapping[str, Sequence[Graded]]) -> dict[str, int]:
    """How many scores of each group count."""
    return {name: sum(one.score is not None for one in group) for name, group in groups.items()}
