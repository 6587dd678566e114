"""When an assistant speaks, and whether it says the right thing: metrics of timed dialogues.

Everything is a sum over turns and answers, so that scores of parts add up:

    F1_k      = 2 TP_k / (2 TP_k + FP_k + FN_k) for k in Silence, Standby, Response, over all turns
    macro-F1  = mean over the three
    precision = matched / said, recall = matched / wanted: answers matched one to one within
                `tolerance` seconds, nearest first
    text      = matched answers with the right words / matched

Words are compared casefolded, without punctuation. specs/learning.md says why free-running scores
are the ones to trust: teacher-forced ones were .92 where free-running ones were .79.
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

STATE_NAMES = ("Silence", "Standby", "Response")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One answer per turn: `states` by their place in STATE_NAMES, `texts` "" unless Response."""

    states: tuple[int, ...]
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Sums over dialogues; `a + b` scores both together.

    confusion [3, 3]: turns by (wanted, given) state. said, wanted, matched, right: answers.
    """

    confusion: Float[np.ndarray, "3 3"]
    said: int
    wanted: int
    matched: int
    right: int
    dialogues: int

    def __add__(self, other: "Timing") -> "Timing":
        fields = [f.name for f in dataclasses.fields(self)]
        return Timing(*(getattr(self, f) + getattr(other, f) for f in fields))

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
    def precision(self) -> float:
        return self.matched / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.matched / self.wanted if self.wanted else 0.0

    @property
    def text(self) -> float:
        """Share of matched answers with the right words."""
        return self.right / self.matched if self.matched else 0.0

    def row(self) -> dict[str, float]:
        """The scores by name, as tables and JSON show them."""
        return {
            "macro_f1": self.macro_f1,
            "precision": self.precision,
            "recall": self.recall,
            "text": self.text,
            "dialogues": self.dialogues,
        }


NOTHING = Timing(np.zeros((3, 3)), 0, 0, 0, 0, 0)


def score(wanted: Dialogue, given: Dialogue, *, tolerance: int = 1) -> Timing:
    """The sums of one dialogue; `tolerance` in turns (seconds at 1 fps).

    Raises ValueError when the two differ in length.
    """
    if len(wanted.states) != len(given.states):
        raise ValueError(
            f"{len(given.states)} answers for {len(wanted.states)} turns: score turn by turn"
        )
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (np.asarray(wanted.states), np.asarray(given.states)), 1)
    pairs = match(
        [i for i, s in enumerate(wanted.states) if s == 2],
        [i for i, s in enumerate(given.states) if s == 2],
        tolerance,
    )
    right = sum(same_words(wanted.texts[a], given.texts[b]) for a, b in pairs)
    return Timing(
        confusion, int(confusion[:, 2].sum()), int(confusion[2].sum()), len(pairs), right, 1
    )


def match(wanted: Sequence[int], given: Sequence[int], tolerance: int) -> list[tuple[int, int]]:
    """Pairs (wanted, given) of times, one to one, at most `tolerance` apart, nearest first."""
    near = sorted((abs(a - b), a, b) for a in wanted for b in given if abs(a - b) <= tolerance)
    pairs: list[tuple[int, int]] = []
    for _, a, b in near:
        if all(a != x and b != y for x, y in pairs):
            pairs.append((a, b))
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


def _plain(text: str) -> str:
    return " ".join(text.casefold().translate(_PUNCTUATION).split())
