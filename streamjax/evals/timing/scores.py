"""When an assistant speaks, and whether it says the right thing: metrics of timed dialogues.

Everything is a sum over turns and answers, so that scores of parts add up:

    F1_k      = 2 TP_k / (2 TP_k + FP_k + FN_k) for k in Silence, Standby, Response, over all turns
    macro-F1  = mean over the three
    delay     = when an answer is given - when it was wanted, of answers matched one to one within
                REACH seconds, nearest first
    matched(T)   = answers with |delay| <= T seconds
    precision = matched / said, recall = matched / wanted
    false alarms = (said - matched) per minute of video
    text      = matched answers with the right words / matched

Nearest first means that the pairs within T are the same, however far the matching reaches: one
histogram of delays holds the scores at every tolerance. Words are compared casefolded, without
punctuation. docs/timing.md has the formulas with examples; specs/learning.md says why free-running
scores are the ones to trust: teacher-forced ones were .92 where free-running ones were .79.
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from streamjax.evals.timing.periods import Periods, score_periods

STATE_NAMES = ("Silence", "Standby", "Response")
RESPONSE = 2
REACH = 10  # seconds between an answer and the one that was wanted, at most
TOLERANCES = (0.0, 1.0, 3.0)  # seconds, of tables
_ARRAYS = {"confusion": float, "delays": int, "right_by_delay": int}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One answer per turn: `states` by their place in STATE_NAMES, `texts` "" unless Response."""

    states: tuple[int, ...]
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Hits:
    """Answers within one tolerance: how many were said, wanted, matched, and had the right words.

    minutes: of video.
    """

    said: int
    wanted: int
    matched: int
    right: int
    minutes: float

    @property
    def precision(self) -> float:
        return self.matched / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.matched / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """Of answers: 2 matched / (said + wanted); 1 where none was said and none wanted."""
        total = self.said + self.wanted
        return 2 * self.matched / total if total else 1.0

    @property
    def text(self) -> float:
        """Share of matched answers with the right words."""
        return self.right / self.matched if self.matched else 0.0

    @property
    def false_alarms(self) -> float:
        """Answers that match none that was wanted, per minute of video."""
        return (self.said - self.matched) / self.minutes if self.minutes else 0.0

    def row(self) -> dict[str, float | int]:
        """The scores by name, as JSON shows them."""
        names = ("precision", "recall", "f1", "text", "false_alarms")
        scores = {name: getattr(self, name) for name in names}
        return {**scores, "matched": self.matched, "right": self.right}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Sums over dialogues; `a + b` scores both together.

    confusion [3, 3]: turns by (wanted, given) state. delays [2 reach + 1]: matched answers by delay
    in turns, from the earliest to the latest; right_by_delay: those of them with the right words.
    tolerance: seconds, of `matched`, `precision` and their like. fps: turns a second.

    Adding Timings of other tolerances or turns raises ValueError.
    """

    confusion: Float[np.ndarray, "3 3"]
    delays: Int[np.ndarray, " bins"]
    right_by_delay: Int[np.ndarray, " bins"]
    dialogues: int
    periods: Periods = dataclasses.field(default_factory=Periods)
    tolerance: float | int = 1
    fps: float | int = 1

    def __add__(self, other: "Timing") -> "Timing":
        if not other.dialogues:
            return self
        if not self.dialogues:
            return other
        for name in ("tolerance", "fps"):
            if (mine := getattr(self, name)) != (its := getattr(other, name)):
                raise ValueError(f"{name} is {mine} here and {its} there: score both alike to add")
        summed = ("confusion", "delays", "right_by_delay", "dialogues", "periods")
        sums = {name: getattr(self, name) + getattr(other, name) for name in summed}
        return dataclasses.replace(self, **sums)

    def at(self, tolerance: float | int) -> Hits:
        """The answers within another tolerance, in seconds; ValueError beyond REACH."""
        near = np.abs(self._bins) <= _turns(tolerance, self.fps)
        return Hits(
            self.said, self.wanted, int(self.delays[near].sum()),
            int(self.right_by_delay[near].sum()), self.minutes,
        )  # fmt: skip

    @property
    def said(self) -> int:
        return int(self.confusion[:, RESPONSE].sum())

    @property
    def wanted(self) -> int:
        return int(self.confusion[RESPONSE].sum())

    @property
    def matched(self) -> int:
        return self.at(self.tolerance).matched

    @property
    def right(self) -> int:
        return self.at(self.tolerance).right

    @property
    def precision(self) -> float:
        return self.at(self.tolerance).precision

    @property
    def recall(self) -> float:
        return self.at(self.tolerance).recall

    @property
    def text(self) -> float:
        """Share of matched answers with the right words."""
        return self.at(self.tolerance).text

    @property
    def f1(self) -> tuple[float, float, float]:
        """Per state; 1 for a state that was neither wanted nor given."""
        right = np.diag(self.confusion)
        total = self.confusion.sum(0) + self.confusion.sum(1)
        scores = np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0)
        silence, standby, response = (float(s) for s in scores)
        return silence, standby, response

    @property
    def macro_f1(self) -> float:
        return float(np.mean(self.f1))

    @property
    def turns(self) -> int:
        return int(self.confusion.sum())

    @property
    def minutes(self) -> float:
        """Of video."""
        return self.turns / self.fps / 60

    @property
    def onset(self) -> dict[str, float | int | None]:
        """Delays of matched answers in seconds, late ones positive: n, mean and quartiles.

        Quartiles lie between two delays where they fall there, as numpy has them. All but n are
        None where nothing was matched.
        """
        seconds = np.repeat(self._bins, self.delays) / self.fps
        names = ("mean", "first_quartile", "median", "third_quartile")
        if not len(seconds):
            return {"n": 0, **dict.fromkeys(names)}
        values = [seconds.mean(), *np.quantile(seconds, (0.25, 0.5, 0.75))]
        return {"n": len(seconds), **dict(zip(names, map(float, values), strict=True))}

    @property
    def histogram(self) -> dict[str, int]:
        """Matched answers by delay in seconds, from the earliest to the latest, zeros left out."""
        pairs = zip(self._bins.tolist(), self.delays.tolist(), strict=True)
        return {f"{turns / self.fps:+g}": n for turns, n in pairs if n}

    def row(self) -> dict[str, float]:
        """The scores by name, as tables and JSON show them."""
        return {
            "macro_f1": self.macro_f1,
            "precision": self.precision,
            "recall": self.recall,
            "text": self.text,
            "dialogues": self.dialogues,
        }

    def whole(self, tolerances: Sequence[float | int] = TOLERANCES) -> dict[str, Any]:
        """Everything by name, for JSON: answers at each tolerance, delays, periods, the sums."""
        return {
            "dialogues": self.dialogues,
            "turns": self.turns,
            "minutes": self.minutes,
            "said": self.said,
            "wanted": self.wanted,
            "macro_f1": self.macro_f1,
            "f1": dict(zip(STATE_NAMES, self.f1, strict=True)),
            "within": {f"{seconds:g}": self.at(seconds).row() for seconds in tolerances},
            "onset": {**self.onset, "histogram": self.histogram},
            "grounding": self.periods.row(),
            "confusion": self.confusion.astype(int).tolist(),
        }

    def sums(self) -> dict[str, Any]:
        """All of it as plain JSON, for `of`."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arrays = {name: told[name].tolist() for name in _ARRAYS}
        return {**told, **arrays, "periods": dataclasses.asdict(self.periods)}

    @classmethod
    def of(cls, sums: Mapping[str, Any]) -> "Timing":
        """What `sums` has told."""
        read: dict[str, Any] = dict(sums)
        read |= {name: np.asarray(sums[name], dtype) for name, dtype in _ARRAYS.items()}
        periods: dict[str, Any] = dict(sums["periods"])
        periods["above"] = tuple(periods["above"])
        read["periods"] = Periods(**periods)
        return cls(**read)

    @property
    def _bins(self) -> Int[np.ndarray, " bins"]:
        return np.arange(len(self.delays)) - len(self.delays) // 2


NOTHING = Timing(np.zeros((3, 3)), np.zeros(0, int), np.zeros(0, int), 0)


def score(
    wanted: Dialogue, given: Dialogue, *, tolerance: float | int = 1, fps: float | int = 1
) -> Timing:
    """The sums of one dialogue; `tolerance` in seconds, `fps` in turns a second.

    Raises ValueError when the two differ in length, and for a tolerance beyond REACH.
    """
    turns = len(wanted.states)
    if not turns == len(given.states) == len(wanted.texts) == len(given.texts):
        raise ValueError(f"{len(given.states)} answers for {turns} turns: score turn by turn")
    _turns(tolerance, fps)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (np.asarray(wanted.states, int), np.asarray(given.states, int)), 1)
    due, spoken = _answers(wanted), _answers(given)
    reach = _turns(REACH, fps)
    delays, right = np.zeros(2 * reach + 1, int), np.zeros(2 * reach + 1, int)
    for a, b in match(due, spoken, reach):
        delays[b - a + reach] += 1
        right[b - a + reach] += same_words(wanted.texts[a], given.texts[b])
    periods = score_periods([wanted.texts[i] for i in due], [given.texts[i] for i in spoken])
    return Timing(confusion, delays, right, 1, periods, tolerance, fps)


def match(wanted: Sequence[int], given: Sequence[int], tolerance: int) -> list[tuple[int, int]]:
    """Pairs (wanted, given) of times, one to one, at most `tolerance` apart, nearest first.

    Of pairs equally far apart the earlier wanted goes first, and then the earlier given.
    """
    near = sorted((abs(a - b), a, b) for a in wanted for b in given if abs(a - b) <= tolerance)
    free_wanted, free_given = set(wanted), set(given)
    pairs: list[tuple[int, int]] = []
    for _, a, b in near:
        if a in free_wanted and b in free_given:
            pairs.append((a, b))
            free_wanted.remove(a)
            free_given.remove(b)
    return pairs


def same_words(a: str, b: str) -> bool:
    """Whether two answers say the same: case, punctuation and spacing aside."""
    return _plain(a) == _plain(b)


def from_messages(messages: Sequence[Mapping[str, str]]) -> Dialogue:
    """The answers of a dialogue written as messages (`dialogue.to_stream`)."""
    states, texts = [], []
    for message in messages:
        if message["role"] != "assistant":
            continue
        state, _, text = message["content"].partition(" ")
        states.append(STATE_NAMES.index(state.removeprefix("</").removesuffix(">")))
        texts.append(text)
    return Dialogue(tuple(states), tuple(texts))


def _answers(dialogue: Dialogue) -> list[int]:
    return [i for i, state in enumerate(dialogue.states) if state == RESPONSE]


def _turns(seconds: float | int, fps: float | int) -> int:
    """Whole turns that fit into so many seconds."""
    if not 0 <= seconds <= REACH:
        raise ValueError(f"tolerance is {seconds:g} s, wanted 0 to {REACH}: answers match no wider")
    return int(seconds * fps + 1e-6)


def _plain(text: str) -> str:
    return " ".join(text.casefold().translate(_PUNCTUATION).split())
