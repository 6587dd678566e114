"""Operating points: what a stream would have answered with other thresholds, from what it recorded.

A free run keeps the three probabilities of every turn; the decisions are made again from them
(`stream.redecide`) and scored. Of the decisions alone: a model that had spoken at other times would
have heard other answers of its own, so that whoever wants to be sure runs it again with the
thresholds that were found.
"""

import dataclasses
from collections.abc import Sequence

from streamjax.evals.timing.assistant import Watched, total
from streamjax.evals.timing.scores import Dialogue
from streamjax.stream import Thresholds, redecide

# P(Response) at which a stream speaks; denser at the ends, where softmax puts most turns.
RESPOND = (
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75,
    0.8, 0.85, 0.9, 0.95, 0.98, 0.99,
)  # fmt: skip
STANDBY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def redecided(seen: Sequence[Watched], thresholds: Thresholds | None) -> list[Watched]:
    """The dialogues with their states decided again; without words, for none were made."""
    found = []
    for w in seen:
        states = tuple(redecide(w.probabilities, thresholds))
        found.append(dataclasses.replace(w, given=Dialogue(states, ("",) * len(states))))
    return found


def curve(seen: Sequence[Watched], respond: Sequence[float] = RESPOND) -> list[dict[str, float]]:
    """Precision, recall and macro-F1 at each threshold of P(Response), the lowest first."""
    rows = []
    for threshold in respond:
        scores = total(redecided(seen, Thresholds(respond=threshold)))
        rows.append(
            {
                "respond": threshold,
                "precision": scores.precision,
                "recall": scores.recall,
                "macro_f1": scores.macro_f1,
            }
        )
    return rows


def fitted(seen: Sequence[Watched]) -> Thresholds:
    """The thresholds of highest macro-F1 on these dialogues; the nearest to one half of equals.

    To be fitted on other videos than those that are scored.
    """
    choices = [Thresholds(respond=r, standby=s) for r in RESPOND for s in STANDBY]
    choices.sort(key=lambda t: abs(t.respond - 0.5) + abs(t.standby - 0.5))
    return max(choices, key=lambda t: total(redecided(seen, t)).macro_f1)


def answer_f1(precision: float, recall: float) -> float:
    """The harmonic mean of the two."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
