"""One page of timing scores: precision against recall, delays, and the numbers beside them.

Lines and marks differ in form as well as in colour. The page stands alone, as every page of a
stream (stream/page.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from streamjax.evals.timing.curves import Curve, Point
from streamjax.evals.timing.scores import Timing
from streamjax.stream.page import document
from streamjax.stream.trace import write_whole

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 540, 400, 46, 46, 40, 14

_STYLE = """<style>
.curves { padding: 18px 22px; } .curves svg { display: block; max-width: 100%; height: auto;
  font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
.curves .grid { stroke: var(--line); } .curves .level { fill: none; stroke: var(--line);
  stroke-dasharray: 1 4; stroke-linecap: round; stroke-width: 1.5; }
.curves text { fill: var(--soft); } .curves .mid { text-anchor: middle; }
.curves .end { text-anchor: end; } .curves text.name { fill: var(--ink);
  stroke: var(--sheet); stroke-width: 4; paint-order: stroke; }
.curves .line { fill: none; stroke: var(--c); stroke-width: 2.5; stroke-linejoin: round; }
.curves .s0 { --c: var(--asked); } .curves .s1 { --c: var(--standby); }
.curves .s1 .line { stroke-dasharray: 9 5; } .curves .s2 { --c: var(--response); }
.curves .s2 .line { stroke-dasharray: 2 5; stroke-linecap: round; }
.curves .s3 { --c: var(--soft); } .curves .s3 .line { stroke-dasharray: 14 4 2 4; }
.curves .dot { fill: var(--sheet); stroke: var(--c); stroke-width: 2; }
.curves .mark { fill: var(--ink); stroke: var(--sheet); stroke-width: 1.5; }
.curves .plain { fill: none; stroke: var(--soft); stroke-width: 2; }
.curves .early, .curves .late { fill: var(--standby); } .curves .late { fill: var(--asked); }
.curves .exact { fill: var(--response); }
.curves .pair { display: grid; gap: 18px 36px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.curves table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
.curves td, .curves th { text-align: right; padding: 4px 8px; font-weight: 400;
  border-bottom: 1px solid var(--line); } .curves th { color: var(--soft); font-size: 12.5px; }
.curves td:first-child, .curves th:first-child { text-align: left; padding-left: 0; }
.curves .wide { overflow-x: auto; } .curves tr.head td { font-weight: 600; }
.curves tr.mute td { color: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; margin: 0 0 10px;
  color: var(--soft); } .key li { display: flex; gap: 8px; align-items: center; }
</style>"""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the picture: its name and (recall, precision, what a pointer is told) points."""

    name: str
    points: Sequence[tuple[float, float, str]]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point beside the lines. filled: something that was run; else a baseline."""

    name: str
    recall: float
    precision: float
    filled: bool = True


def write_page(
    path: str | Path,
    curve: Curve,
    scores: Timing,
    kinds: Mapping[str, Timing],
    baselines: Mapping[str, Timing],
    *,
    title: str,
    about: Sequence[str] = (),
) -> None:
    """Writes the page, whole or not at all.

    scores: of all dialogues as they were held; kinds, baselines: by name. title: most often the
    model's name. about: short facts for the line under it.
    """
    tolerance = curve.tolerance
    lines = [Line(_called(h), _line(curve.line(h), tolerance)) for h in curve.hystereses]
    hits = scores.at(tolerance)
    marks = [Mark("as it was held", hits.recall, hits.precision)]
    for name, timing in baselines.items():
        other = timing.at(tolerance)
        marks.append(Mark(name, other.recall, other.precision, filled=False))
    median = scores.onset["median"]
    delay = "–" if median is None else f"{median:+g}<small>s</small>"
    facts = [
        ("Dialogues", f"{scores.dialogues:,}"),
        ("macro-F1 of states", f"{100 * scores.macro_f1:.1f}<small>%</small>"),
        (f"Precision, within {tolerance:g} s", f"{100 * hits.precision:.1f}<small>%</small>"),
        ("Recall", f"{100 * hits.recall:.1f}<small>%</small>"),
        ("False alarms a minute", f"{hits.false_alarms:.2f}"),
        ("Median delay", delay),
    ]
    body = f"""{_STYLE}
<section class="sheet curves" aria-label="Precision and recall"><h2>Precision against recall</h2>
<div class="pair"><div>{_key(lines)}{picture(lines, marks)}</div><div>{_best(curve)}</div></div>
<p class="hint">Answers within {tolerance:g} s of one that was wanted, at every threshold of
P(Response): decided again from the recorded probabilities, with the recorded history held fixed. A
stream that had spoken at other times would have heard itself; run it with a threshold to know.
Dotted: equal F1.</p></section>
<section class="sheet curves" aria-label="Delays"><h2>Delay of matched answers</h2>
{delays(scores)}
<p class="hint">Seconds after the moment that was wanted; early ones are negative.</p></section>
<section class="sheet curves" aria-label="Scores"><h2>Scores</h2><div class="wide">
{_table(scores, kinds, baselines, tolerance)}</div></section>"""
    page = document(
        title=title, kind="timing", about=about, facts=facts, body=body, styles=["report.css"]
    )
    write_whole(path, page)


def picture(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> str:
    """Precision (up) against recall (to the right), as SVG for a page with the style above."""
    grid = []
    for i in range(6):
        share = i / 5
        x, y = _x(share), _y(share)
        grid.append(
            f'<path class="grid" d="M{x:.1f} {_y(0.0):.1f}V{_y(1.0):.1f}"/>'
            f'<path class="grid" d="M{_x(0.0):.1f} {y:.1f}H{_x(1.0):.1f}"/>'
            f'<text class="mid" x="{x:.1f}" y="{_y(0.0) + 16:.1f}">{share:.1f}</text>'
            f'<text class="end" x="{_x(0.0) - 7:.1f}" y="{y + 4:.1f}">{share:.1f}</text>'
        )
    levels = "".join(_level(f1) for f1 in (0.2, 0.4, 0.6, 0.8))
    drawn = []
    for number, line in enumerate(lines):
        path = "M" + "L".join(f"{_x(r):.1f} {_y(p):.1f}" for r, p, _ in line.points)
        dots = "".join(
            f'<circle class="dot" cx="{_x(r):.1f}" cy="{_y(p):.1f}" r="3.2">'
            f"<title>{escape(words)}</title></circle>"
            for r, p, words in line.points
        )
        drawn.append(f'<g class="s{number % 4}"><path class="line" d="{path}"/>{dots}</g>')
    told, taken = [], []
    for mark in sorted(marks, key=lambda m: not m.filled):
        x, y = _x(mark.recall), _y(mark.precision)
        shape = "M0-8L8 0L0 8L-8 0z" if mark.filled else "M-5-5L5 5M-5 5L5-5"
        style = "mark" if mark.filled else "plain"
        height = y + 4
        while any(abs(height - h) < 14 and abs(x - at) < 120 for at, h in taken):
            height -= 14
        taken.append((x, height))
        left = x < _x(0.7)
        told.append(
            f'<path class="{style}" transform="translate({x:.1f} {y:.1f})" d="{shape}">'
            f"<title>{escape(mark.name)}: recall {mark.recall:.3f}, precision "
            f'{mark.precision:.3f}</title></path><text class="name{"" if left else " end"}" '
            f'x="{x + (12 if left else -12):.1f}" y="{height:.1f}">{escape(mark.name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="Precision against recall">{"".join(grid)}{levels}{"".join(drawn)}'
        f'{"".join(told)}<text class="mid" x="{_x(0.5):.1f}" y="{_HEIGHT - 6}">recall</text>'
        f'<text class="mid" transform="translate(12 {_y(0.5):.1f}) rotate(-90)">precision</text>'
        "</svg>"
    )


def delays(scores: Timing) -> str:
    """A bar for each delay in turns, from the earliest to the latest that there is, as SVG."""
    counts = {float(seconds): n for seconds, n in scores.histogram.items()}
    if not counts:
        return "<p>No answer was matched.</p>"
    step = 1 / scores.fps
    first = round(min(min(counts), -3) / step)
    last = round(max(max(counts), 3) / step)
    high, width = max(counts.values()), min(44.0, 900 / (last - first + 1))
    bars = []
    for turn in range(first, last + 1):
        n, x = counts.get(turn * step, 0), (turn - first) * width
        tall = 120 * n / high
        kind = "early" if turn < 0 else "late" if turn else "exact"
        middle = x + width / 2
        bars.append(
            f'<rect class="{kind}" x="{x + 2:.1f}" y="{140 - tall:.1f}" width="{width - 4:.1f}" '
            f'height="{tall:.1f}" rx="2"><title>{turn * step:+g} s: {n}</title></rect>'
            f'<text class="mid" x="{middle:.1f}" y="156">{turn * step:+g}</text>'
        )
        if n:
            bars.append(f'<text class="mid name" x="{middle:.1f}" y="{135 - tall:.1f}">{n}</text>')
    wide = (last - first + 1) * width
    return (
        f'<svg viewBox="0 0 {wide:.0f} 164" width="{wide:.0f}" height="164" role="img" '
        f'aria-label="Answers by delay"><path class="grid" d="M0 140.5H{wide:.0f}"/>'
        f"{''.join(bars)}</svg>"
    )


def _x(recall: float) -> float:
    return _LEFT + recall * (_WIDTH - _LEFT - _RIGHT)


def _y(precision: float) -> float:
    return _TOP + (1 - precision) * (_HEIGHT - _TOP - _BOTTOM)


def _level(f1: float) -> str:
    """The curve of equal F1, and its number at its right end."""
    least = f1 / (2 - f1)  # recall where precision is 1
    recalls = [least + i / 40 * (1 - least) for i in range(41)]
    path = "L".join(f"{_x(r):.1f} {_y(f1 * r / (2 * r - f1)):.1f}" for r in recalls)
    return (
        f'<path class="level" d="M{path}"/>'
        f'<text x="{_x(1.0) + 6:.1f}" y="{_y(least) + 4:.1f}">F1 {f1:g}</text>'
    )


def _called(hysteresis: float | None) -> str:
    if hysteresis is None:
        return "every turn may speak"
    return "once, until P(Response) was lower" + (f" by {hysteresis:g}" if hysteresis else "")


def _line(points: Sequence[Point], tolerance: float | int) -> list[tuple[float, float, str]]:
    """Points from the highest threshold to the lowest, but those at which nothing is said."""
    found = []
    for point in reversed(points):
        hits, rule = point.scores.at(tolerance), point.thresholds
        if rule is None or not hits.said:
            continue
        words = (
            f"respond {rule.respond:g}: precision {hits.precision:.3f}, recall {hits.recall:.3f}, "
            f"{hits.false_alarms:.2f} false alarms a minute"
        )
        found.append((hits.recall, hits.precision, words))
    return found or [(0.0, 0.0, "nothing is said at any threshold")]


def _key(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li class="s{i % 4}"><svg width="34" height="10"><path class="line" d="M1 5H33"/></svg>'
        f"{escape(line.name)}</li>"
        for i, line in enumerate(lines)
    )
    return f'<ol class="key">{items}</ol>'


def _best(curve: Curve) -> str:
    """The recorded point and the best ones as a table."""
    rows = [("as it was held", curve.recorded)]
    names = {"f1": "best F1 of answers", "macro_f1": "best macro-F1"}
    rows += [(names[goal], point) for goal, point in curve.best.items()]
    cells = []
    for name, point in rows:
        row, rule = point.row(curve.tolerance), point.thresholds
        told = "likeliest state" if rule is None else f"{rule.respond:g} / {rule.standby:g}"
        if rule is not None and rule.hysteresis is not None:
            told += f" / {rule.hysteresis:g}"
        values = [row[key] for key in ("precision", "recall", "f1", "macro_f1")]
        numbers = "".join(f"<td>{100 * value:.1f}</td>" for value in values)
        cells.append(f"<tr><td>{name}</td><td>{told}</td>{numbers}</tr>")
    honest = [f"{100 * v:.1f}" if v is not None else "–" for v in curve.crossed.values()]
    cells.append(
        f"<tr><td>chosen on the other half</td><td></td><td></td><td></td><td>{honest[0]}</td>"
        f"<td>{honest[1]}</td></tr>"
    )
    return (
        '<div class="wide"><table><tr><th>point</th><th>respond / standby / hysteresis</th>'
        f"<th>P</th><th>R</th><th>F1</th><th>macro-F1</th></tr>{''.join(cells)}</table></div>"
        '<p class="hint">The best points are chosen on what they are scored on, a bound; in the '
        "last row each half of the videos has the thresholds that are best on the other.</p>"
    )


def _table(
    scores: Timing,
    kinds: Mapping[str, Timing],
    baselines: Mapping[str, Timing],
    tolerance: float | int,
) -> str:
    rows = [("all", scores, "head"), *((name, timing, "") for name, timing in kinds.items())]
    rows += [(name, timing, "mute") for name, timing in baselines.items()]
    cells = []
    for name, timing, style in rows:
        hits, onset, miou = timing.at(tolerance), timing.onset, timing.periods.miou
        values = [timing.macro_f1, hits.precision, hits.recall, hits.text]
        shown = [f"{100 * value:.1f}" for value in values]
        if style == "mute":  # a baseline that has no words
            shown[-1], miou = "–", None
        numbers = "".join(f"<td>{value}</td>" for value in shown)
        median = "–" if onset["median"] is None else f"{onset['median']:+g}"
        cells.append(
            f'<tr class="{style}"><td>{escape(name)}</td><td>{timing.dialogues:,}</td>{numbers}'
            f"<td>{hits.false_alarms:.2f}</td><td>{median}</td>"
            f"<td>{'–' if miou is None else f'{100 * miou:.1f}'}</td></tr>"
        )
    heads = ("dialogues", "macro-F1", "P", "R", "text", "false alarms / min", "delay, s", "mIoU")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr><th></th>{head}</tr>{''.join(cells)}</table>"
