"""What an evaluation of timing found: every score with its baselines, as tables and as JSON."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from streamjax.evals.benchmarks.benchmark import Graded
from streamjax.evals.harness.scored import plain, shortened
from streamjax.evals.timing.assistant import prior, silent
from streamjax.evals.timing.curves import Curve, sweep
from streamjax.evals.timing.dialogues import Held, Planned, movements, moving, totals
from streamjax.evals.timing.scores import (
    NOTHING,
    STATE_NAMES,
    TOLERANCES,
    Dialogue,
    Timing,
    from_messages,
    score,
)
from streamjax.evals.timing.teacher import Teacher
from streamjax.stream import Thresholds, redecide

# Grey levels a pixel at which something moves; the best is taken, on the test itself.
MOTION = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of dialogues as they were held, and what stands beside them.

    kinds: of each kind. baselines: of what needs no model, by name. forced: of states decided at
    the true history, by kind; only their F1 means anything. problems: a line for each dialogue, or
    record, that is left out. graded: each dialogue, with its sums as `parsed`; its score is the
    share of its turns with the right state.
    """

    scores: Timing
    kinds: Mapping[str, Timing]
    baselines: Mapping[str, Timing]
    forced: Mapping[str, Timing]
    curve: Curve
    problems: Sequence[str]
    graded: tuple[Graded, ...]

    @property
    def forced_all(self) -> Timing:
        return sum(self.forced.values(), NOTHING)

    def row(self) -> dict[str, Any]:
        """Everything but the manifest, as JSON has it, in full precision."""
        forced = {kind: timing.row()["macro_f1"] for kind, timing in self.forced.items()}
        whole = self.forced_all
        return plain({
            "benchmark": "timing",
            "rule": "streamjax",
            "table": self.scores.whole(),
            "kinds": {kind: timing.whole() for kind, timing in self.kinds.items()},
            "baselines": {name: timing.whole() for name, timing in self.baselines.items()},
            "teacher_forced": {
                "f1": dict(zip(STATE_NAMES, whole.f1, strict=True)),
                "macro_f1": whole.macro_f1,
                "kinds": forced,
            } if self.forced else None,
            "curve": self.curve.row(),
            "n": {"dialogues": self.scores.dialogues, "turns": self.scores.turns},
            "problems": list(self.problems),
            "per_item": {one.id: one.score for one in self.graded},
            "graded": [dataclasses.asdict(one) for one in self.graded],
        })  # fmt: skip

    def table(self) -> str:
        """For people: states, answers, and other thresholds; shares in percent."""
        blocks = [self._states(), self._answers(), self._thresholds()]
        return "\n\n".join(blocks + ["\n".join(shortened(self.problems, 5))] * bool(self.problems))

    @property
    def _rows(self) -> list[tuple[str, Timing]]:
        kinds = [(f"  {kind}", timing) for kind, timing in self.kinds.items()]
        return [("all", self.scores), *kinds, *self.baselines.items()]

    def _states(self) -> str:
        heads = ["states, F1", "n", *STATE_NAMES, "macro-F1", "teacher-forced"]
        lines = []
        for name, timing in self._rows:
            forced = self.forced_all if name == "all" else self.forced.get(name.strip())
            told = forced is not None and forced.dialogues and name not in self.baselines
            numbers = [f"{100 * share:.1f}" for share in (*timing.f1, timing.macro_f1)]
            lines.append([
                name, f"{timing.dialogues:,}", *numbers,
                f"{100 * forced.macro_f1:.1f}" if forced is not None and told else "-",
            ])  # fmt: skip
        return _aligned([heads, *lines])

    def _answers(self) -> str:
        heads = ["answers", "said", "wanted"]
        heads += [f"{letter} {seconds:g} s" for seconds in TOLERANCES for letter in "PR"]
        tolerance = self.curve.tolerance
        heads += ["false/min", "delay, s", "quartiles", "text", "mIoU"]
        lines = []
        for name, timing in self._rows:
            shares = [timing.at(seconds) for seconds in TOLERANCES]
            hits, onset, miou = timing.at(tolerance), timing.onset, timing.periods.miou
            spoken = name not in self.baselines
            lines.append([
                name, f"{timing.said:,}", f"{timing.wanted:,}",
                *(f"{100 * x:.1f}" for s in shares for x in (s.precision, s.recall)),
                f"{hits.false_alarms:.2f}",
                "-" if onset["median"] is None else f"{onset['median']:+g}",
                "-"
                if onset["median"] is None
                else f"{onset['first_quartile']:+g} {onset['third_quartile']:+g}",
                f"{100 * hits.text:.1f}" if spoken and hits.matched else "-",
                f"{100 * miou:.1f}" if spoken and miou is not None else "-",
            ])  # fmt: skip
        return _aligned([heads, *lines]) + (
            f"\nfalse alarms and text: within {tolerance:g} s; delays: of answers matched within "
            "10 s, late ones positive"
        )

    def _thresholds(self) -> str:
        """The recorded decisions beside the best ones, and what the best is worth."""
        curve = self.curve
        heads = ["decided again, history as recorded", "P", "R", "F1", "macro-F1", "false/min"]
        rows = [("as it was held", curve.recorded)]
        rows += [(f"best {goal.replace('_', '-')}", point) for goal, point in curve.best.items()]
        lines = []
        for name, point in rows:
            row = point.row(curve.tolerance)
            shares = [f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1", "macro_f1")]
            told = f"{name}: {_told(point.thresholds)}"
            lines.append([told, *shares, f"{row['false_alarms']:.2f}"])
        crossed = [None if v is None else f"{100 * v:.1f}" for v in curve.crossed.values()]
        lines.append(["chosen on the other half", "", "", *(v or "-" for v in crossed), ""])
        return _aligned([heads, *lines])


def baselines(
    held: Sequence[Held],
    movement: Mapping[str, Float[np.ndarray, " t"]],
    *,
    tolerance: float | int = 1,
    seed: int = 0,
) -> dict[str, Timing]:
    """What needs no model: never a word; states at random, with their shares in these dialogues;
    a motion detector blind to the question, at its best threshold on these dialogues.

    movement: of each dialogue's picture (`dialogues.movements`).
    """
    wanted = np.concatenate([w.wanted.states for w in held])
    shares = np.bincount(wanted.astype(int), minlength=3) / len(wanted)

    def total(answered: Sequence[Any]) -> Timing:
        return totals(answered, tolerance=tolerance)[0]

    detectors = [total(moving(held, movement, threshold)) for threshold in MOTION]
    return {
        "always silent": total(silent(held)),
        "states at random": total(prior(held, shares, seed)),
        "motion detector": max(detectors, key=lambda timing: timing.macro_f1),
    }


def forced(
    model: Any,
    planned: Sequence[Planned],
    *,
    thresholds: Thresholds | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> tuple[dict[str, Timing], list[str]]:
    """Scores of states decided at the true history, by kind, and lines on what was too long."""
    teacher = Teacher(model)
    found: dict[str, Timing] = {}
    problems = []
    for done, one in enumerate(planned, 1):
        messages = one.messages(teacher.system)
        try:
            shares = teacher(messages, one.frames()).tolist()
            states = tuple(redecide(shares, thresholds))
        except (ValueError, OSError) as error:
            problems.append(f"{one.id}, teacher-forced: {' '.join(str(error).split())}")
            continue
        given = Dialogue(states, ("",) * len(states))
        sums = score(from_messages(messages), given, fps=one.fps)
        found[one.kind] = found.get(one.kind, NOTHING) + sums
        if progress is not None:
            progress(done, len(planned))
    return found, problems


def report_of(
    held: Sequence[Held],
    planned: Sequence[Planned],
    problems: Sequence[str],
    *,
    thresholds: Thresholds | None = None,
    tolerance: float | int = 1,
    taught: Mapping[str, Timing] | None = None,
) -> Report:
    """The report of dialogues that were held with `thresholds`; taught: what `forced` found."""
    scores, kinds = totals(held, tolerance=tolerance)
    ids = {w.id for w in held}
    movement = movements([one for one in planned if one.id in ids])
    beside = baselines(held, movement, tolerance=tolerance)
    graded = tuple(_graded(w, tolerance) for w in held)
    curve = sweep(held, recorded=thresholds, tolerance=tolerance)
    return Report(scores, kinds, beside, taught or {}, curve, problems, graded)


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, float | None]:
    """The scores of any of a report's dialogues, also of some drawn twice: what `eval compare`
    draws again. Shares in percent, `rule` is streamjax."""
    sums = sum((Timing.of(one.parsed) for one in graded), NOTHING)
    row: dict[str, float | None] = {
        f"F1 {name}": 100 * f1 for name, f1 in zip(STATE_NAMES, sums.f1, strict=True)
    }
    row["macro-F1"] = 100 * sums.macro_f1
    for seconds in TOLERANCES:
        row[f"precision {seconds:g} s"] = 100 * sums.at(seconds).precision
        row[f"recall {seconds:g} s"] = 100 * sums.at(seconds).recall
    hits, miou = sums.at(sums.tolerance), sums.periods.miou
    row["false alarms a minute"] = hits.false_alarms
    row["median delay"] = sums.onset["median"]
    row["right text"] = 100 * hits.text if hits.matched else None
    row["mIoU"] = None if miou is None else 100 * miou
    return row


def _graded(w: Held, tolerance: float | int) -> Graded:
    sums = score(w.wanted, w.given, tolerance=tolerance, fps=w.fps)
    right = float(np.trace(sums.confusion)) / sums.turns
    return Graded(w.id, w.kind, right, w.video, sums.sums())


def _told(rule: Thresholds | None) -> str:
    if rule is None:
        return "the likeliest state"
    told = f"respond {rule.respond:g}, standby {rule.standby:g}"
    return told if rule.hysteresis is None else f"{told}, hysteresis {rule.hysteresis:g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([
            line[0].ljust(wide[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], wide[1:], strict=True)),
        ]).rstrip()
        for line in lines
    )  # fmt: skip
