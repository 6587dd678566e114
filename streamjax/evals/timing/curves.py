"""Precision against recall at every threshold, from what streams recorded, without the model.

Decisions are made again from the three probabilities of each turn (`stream.redecide`). **The
recorded history is held fixed**: a stream that had spoken at other times would have heard itself,
and its later probabilities would differ. A curve says where to look; a free run with the thresholds
that were found says what they are worth. Words are not made again either: a curve has no text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamjax.evals.timing.dialogues import Held
from streamjax.evals.timing.operating import RESPOND, STANDBY
from streamjax.evals.timing.scores import NOTHING, Dialogue, Timing, score
from streamjax.stream import Thresholds, redecide

HYSTERESES = (None, 0.0)  # free to speak at every turn; or once, until P(Response) has been lower


@dataclasses.dataclass(frozen=True)
class Point:
    """Thresholds (None: the likeliest state) and what they score, on every other video each."""

    thresholds: Thresholds | None
    halves: tuple[Timing, Timing]

    @property
    def scores(self) -> Timing:
        return self.halves[0] + self.halves[1]

    def row(self, tolerance: float | int = 1) -> dict[str, Any]:
        """The thresholds and the scores by name."""
        told = None if self.thresholds is None else dataclasses.asdict(self.thresholds)
        scores, hits = self.scores, self.scores.at(tolerance)
        return {
            "thresholds": told,
            "precision": hits.precision,
            "recall": hits.recall,
            "f1": hits.f1,
            "false_alarms": hits.false_alarms,
            "macro_f1": scores.macro_f1,
        }


@dataclasses.dataclass(frozen=True)
class Curve:
    """recorded: the decisions as they were made. points: one for each choice of thresholds."""

    recorded: Point
    points: tuple[Point, ...]
    tolerance: float | int

    def line(self, hysteresis: float | None) -> list[Point]:
        """Of one hysteresis, by `respond`, each with the `standby` of the highest macro-F1: that
        decides nothing about answers."""
        found: dict[float, Point] = {}
        for point in self.points:
            rule = point.thresholds
            if rule is None or rule.hysteresis != hysteresis:
                continue
            other = found.get(rule.respond)
            if other is None or point.scores.macro_f1 > other.scores.macro_f1:
                found[rule.respond] = point
        return [found[level] for level in sorted(found)]

    @property
    def hystereses(self) -> list[float | None]:
        return list(dict.fromkeys(p.thresholds.hysteresis for p in self.points if p.thresholds))

    @property
    def best(self) -> dict[str, Point]:
        """The points of the highest F1 of answers, and of the highest macro-F1 of states.

        Chosen on what they are scored on: a bound. `crossed` is the honest number.
        """
        return {goal: max(self.points, key=self._goal(goal)) for goal in ("f1", "macro_f1")}

    @property
    def crossed(self) -> dict[str, float | None]:
        """Both scores with the point that is best on one half of the videos and scored on the
        other, and the reverse; None with fewer than two videos."""
        if not all(half.dialogues for half in self.recorded.halves):
            return {"f1": None, "macro_f1": None}
        found: dict[str, float | None] = {}
        for goal in ("f1", "macro_f1"):
            chosen = [max(self.points, key=self._goal(goal, half)) for half in (0, 1)]
            scores = chosen[0].halves[1] + chosen[1].halves[0]
            found[goal] = self._value(goal, scores)
        return found

    def row(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "history": "as recorded",
            "tolerance": self.tolerance,
            "recorded": self.recorded.row(self.tolerance),
            "best": {goal: point.row(self.tolerance) for goal, point in self.best.items()},
            "crossed": self.crossed,
            "points": [
                point.row(self.tolerance)
                for hysteresis in self.hystereses
                for point in self.line(hysteresis)
            ],
        }

    def _goal(self, goal: str, half: int | None = None) -> Any:
        """What is to be highest; of equals, thresholds nearest to one half."""

        def key(point: Point) -> tuple[float, float]:
            scores = point.scores if half is None else point.halves[half]
            rule = point.thresholds or Thresholds()
            return self._value(goal, scores), -abs(rule.respond - 0.5) - abs(rule.standby - 0.5)

        return key

    def _value(self, goal: str, scores: Timing) -> float:
        return scores.macro_f1 if goal == "macro_f1" else scores.at(self.tolerance).f1


def sweep(
    held: Sequence[Held],
    *,
    recorded: Thresholds | None = None,
    tolerance: float | int = 1,
    respond: Sequence[float] = RESPOND,
    standby: Sequence[float] = STANDBY,
    hystereses: Sequence[float | None] = HYSTERESES,
) -> Curve:
    """The curve of dialogues that were held with the thresholds `recorded`; these are among its
    points. tolerance: seconds, of precision and recall.

    Raises ValueError for dialogues without probabilities, and where deciding again with the
    thresholds that they were held with gives other states: they are not those.
    """
    if not held or any(len(w.probabilities) != len(w.given.states) for w in held):
        raise ValueError("no probabilities of every turn: wanted dialogues that a model held")
    videos = {name: i % 2 for i, name in enumerate(dict.fromkeys(w.video for w in held))}
    halves = [[w for w in held if videos[w.video] == half] for half in (0, 1)]
    for w in held:
        if tuple(redecide(w.probabilities, recorded)) != w.given.states:
            raise ValueError(f"{w.id}: its states do not follow from {recorded or 'the likeliest'}")
    if recorded is not None:
        respond = sorted({*respond, recorded.respond})
        standby = sorted({*standby, recorded.standby})
        hystereses = [*hystereses, *{recorded.hysteresis} - {*hystereses}]
    points: list[Point] = []
    for hysteresis in hystereses:
        for level in respond:
            if hysteresis is not None and hysteresis >= level:
                continue
            points += _points(
                halves, [Thresholds(level, s, hysteresis) for s in standby], tolerance
            )
    (start,) = _points(halves, [recorded], tolerance)
    return Curve(start, tuple(points), tolerance)


def _points(
    halves: Sequence[Sequence[Held]],
    rules: Sequence[Thresholds | None],
    tolerance: float | int,
) -> list[Point]:
    first, second = (_decided(half, rules, tolerance) for half in halves)
    return [Point(*point) for point in zip(rules, zip(first, second, strict=True), strict=True)]


def _decided(
    held: Sequence[Held], rules: Sequence[Thresholds | None], tolerance: float | int
) -> list[Timing]:
    """The scores under each rule; the rules differ in `standby` alone, so answers match alike."""
    sums = NOTHING
    confusions = np.zeros((len(rules), 3, 3))
    for w in held:
        states = [redecide(w.probabilities, rule) for rule in rules]
        given = Dialogue(tuple(states[0]), ("",) * len(states[0]))
        sums += score(w.wanted, given, tolerance=tolerance, fps=w.fps)
        for confusion, found in zip(confusions, states, strict=True):
            np.add.at(confusion, (np.asarray(w.wanted.states, int), np.asarray(found, int)), 1)
    return [dataclasses.replace(sums, confusion=confusion) for confusion in confusions]
