"""From three probabilities to a state: the likeliest, or thresholds with hysteresis.

A decision is made on the host from what a trace keeps, so that it can be made again, with other
thresholds, without the model: `redecide`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streamjax.data.dialogue import STATES

STATE_NAMES = tuple(state.strip("</>") for state in STATES)  # Silence, Standby, Response
SILENCE, STANDBY, RESPOND = range(3)


@dataclass(frozen=True)
class Thresholds:
    """Speak when P(Response) reaches `respond`; else wait when P(Standby) reaches `standby`.

    Having spoken, a stream speaks again only after P(Response) has once been below
    `respond - hysteresis`: one event then gets one answer, however long it lasts. None for
    `hysteresis` never holds it back. Probabilities are those of the three states among themselves.
    Raises ValueError for numbers outside of 0..1, and for a hysteresis that is not below `respond`:
    no probability would let the stream speak a second time.
    """

    respond: float | int = 0.5
    standby: float | int = 0.5
    hysteresis: float | int | None = None

    def __post_init__(self):
        for name in ("respond", "standby", "hysteresis"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, wanted a probability between 0 and 1")
        if self.hysteresis is not None and self.hysteresis >= self.respond:
            raise ValueError(
                f"hysteresis is {self.hysteresis}, wanted below respond={self.respond}: it would "
                "speak once and never again"
            )


class Decider:
    """Decides turn after turn; `armed` says whether it may speak."""

    def __init__(self, thresholds: Thresholds | None = None):
        self.thresholds, self.armed = thresholds, True

    def __call__(self, probabilities: Sequence[float]) -> int:
        """The index of the state in data.dialogue.STATES; the likeliest without thresholds."""
        rule = self.thresholds
        if rule is None:
            return max(range(3), key=lambda i: probabilities[i])
        share = probabilities[RESPOND]
        if rule.hysteresis is not None and share < rule.respond - rule.hysteresis:
            self.armed = True
        if share >= rule.respond and self.armed:
            self.armed = rule.hysteresis is None
            return RESPOND
        return STANDBY if probabilities[STANDBY] >= rule.standby else SILENCE


def redecide(
    probabilities: Iterable[Sequence[float]], thresholds: Thresholds | None = None
) -> list[int]:
    """What would have been decided, turn by turn, from a trace's probabilities.

    Of the decisions alone: what a model would have seen after other answers is not in a trace.
    """
    decide = Decider(thresholds)
    return [decide(shares) for shares in probabilities]


@dataclass(frozen=True)
class Changes:
    """Decisions made again, beside those that were made: states by index, and seconds, per turn."""

    times: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, turns: Sequence[Any], thresholds: Thresholds | None) -> "Changes":
        """turns: of a trace, from the stream's first one on."""
        after = redecide([turn.probabilities for turn in turns], thresholds)
        before = [STATES.index(turn.state) for turn in turns]
        return cls(tuple(turn.time for turn in turns), tuple(before), tuple(after))

    def row(self) -> dict[str, Any]:
        """As JSON: turns, how many changed, the counts from state to state, and the seconds at
        which an answer is new or gone."""
        pairs = list(zip(self.before, self.after, strict=True))
        timed = list(zip(self.times, pairs, strict=True))
        return {
            "turns": len(pairs),
            "changed": sum(a != b for a, b in pairs),
            "counts": {
                old: {new: pairs.count((i, j)) for j, new in enumerate(STATE_NAMES)}
                for i, old in enumerate(STATE_NAMES)
            },
            "new_answers": [t for t, (a, b) in timed if a != RESPOND == b],
            "lost_answers": [t for t, (a, b) in timed if a == RESPOND != b],
        }

    def table(self) -> str:
        """For people: a row per state as it was, a column per state as it would be."""
        row = self.row()
        lines: list[str] = ["".join(f"{name:>10}" for name in ("was \\ is", *STATE_NAMES))]
        for name in STATE_NAMES:
            counts = row["counts"][name].values()
            lines.append(f"{name:>10}" + "".join(f"{count:>10}" for count in counts))
        lines.append(f"{row['changed']} of {row['turns']} turns change")
        for what, key in (("new answers", "new_answers"), ("answers gone", "lost_answers")):
            seconds = ", ".join(f"{time:g} s" for time in row[key])
            lines.append(f"{what}: {seconds or 'none'}")
        return "\n".join(lines)
