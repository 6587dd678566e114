"""Periods told in words ("between 20s to 43s"), and how well they cover those that were wanted.

    IoU  = max(0, min(e, e') - max(s, s')) / (max(e, e') - min(s, s'))     the hull, 0 where empty
    mIoU = sum of IoU over wanted periods / wanted periods, 0 for one that was not told

The rule of specs/benchmarks.md section 4 (Streamo-Bench).
"""

import dataclasses
import re
from collections.abc import Sequence

Period = tuple[float | int, float | int]
"""(start, end) in seconds."""

LEVELS = (0.3, 0.5, 0.7)

_CLOCK = r"\d+:\d{1,2}(?::\d{1,2})?(?:\.\d+)?"
_UNIT = r"\s*(?:seconds|second|secs|sec|s)\b"
_TIME = rf"(?:{_CLOCK}|\d+(?:\.\d+)?)"
_BETWEEN = r"\s*(?:-|–|—|~|to|and|until|till)\s*"
_PERIOD = re.compile(
    rf"(?<![\d.:])({_TIME})({_UNIT})?{_BETWEEN}({_TIME})({_UNIT})?(?![\d:])", re.IGNORECASE
)


def period_in(text: str, *, units: bool = False) -> Period | None:
    """The first period that the words name, in seconds; None where there is none.

    Read are "20s to 43s", "20 - 43 seconds", "from 0:20 until 1:03". units: only with a unit or a
    clock time, so that "a score of 3 to 2" is no period. The start may lie behind the end: such a
    period covers nothing.
    """
    for start, start_unit, end, end_unit in _PERIOD.findall(text):
        if units and not (start_unit or end_unit or ":" in start + end):
            continue
        return _seconds(start), _seconds(end)
    return None


def hull_iou(a: Period, b: Period) -> float:
    """Intersection over the hull of both, 0 for two that span nothing."""
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / hull if hull > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Periods:
    """Sums over dialogues; `a + b` scores both together.

    wanted: periods of the true answers. given: answers that name one, in dialogues that want one.
    unread: answers there that name none. iou: the sum over the wanted. above: how many of them
    reach an IoU of each of LEVELS.
    """

    wanted: int = 0
    given: int = 0
    unread: int = 0
    iou: float = 0.0
    above: tuple[int, ...] = (0,) * len(LEVELS)

    def __add__(self, other: "Periods") -> "Periods":
        return Periods(
            self.wanted + other.wanted,
            self.given + other.given,
            self.unread + other.unread,
            self.iou + other.iou,
            tuple(a + b for a, b in zip(self.above, other.above, strict=True)),
        )

    @property
    def miou(self) -> float | None:
        """None where no period was wanted."""
        return self.iou / self.wanted if self.wanted else None

    def row(self) -> dict[str, float | int | None]:
        """The scores by name, as JSON shows them."""
        share = {
            f"recall_at_{level}": n / self.wanted if self.wanted else None
            for level, n in zip(LEVELS, self.above, strict=True)
        }
        counts = {"wanted": self.wanted, "given": self.given, "unread": self.unread}
        return {"miou": self.miou, **share, **counts}


def score_periods(wanted: Sequence[str], given: Sequence[str]) -> Periods:
    """The sums of one dialogue from the words of its answers, wanted and given, in order.

    Where n periods are wanted, the first n that are given count, so that many guesses gain
    nothing; they are paired one to one, best first. Nothing where no true answer names a period.
    """
    true = [period for text in wanted if (period := period_in(text, units=True))]
    if not true:
        return Periods()
    found = [period_in(text) for text in given]
    told = [period for period in found if period]
    pairs = [(i, j) for i in range(len(true)) for j in range(min(len(told), len(true)))]
    pairs.sort(key=lambda pair: -hull_iou(true[pair[0]], told[pair[1]]))
    taken: dict[int, int] = {}
    for i, j in pairs:
        if i not in taken and j not in taken.values():
            taken[i] = j
    ious = [hull_iou(true[i], told[j]) for i, j in taken.items()]
    above = tuple(sum(iou >= level for iou in ious) for level in LEVELS)
    return Periods(len(true), len(told), len(found) - len(told), sum(ious, 0.0), above)


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
