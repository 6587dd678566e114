"""The picture of an ablation: every seed's score, and precision against recall, as one SVG.

Variants differ in colour (Okabe and Ito's, which the colour-blind tell apart), in the shape of
their marks and in their dashes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4", "12 4", "5 5")
_WIDTH, _LEFT, _PANEL, _GAP = 940.0, 250.0, 270.0, 90.0
_ROW, _TOP = 40.0, 48.0
_LEAST = 0.4  # where the axes of precision and recall begin; what lies below is cut off

Found = Mapping[str, Sequence[Mapping[str, Any]]]


def draw(found: Found, titles: Mapping[str, str]) -> str:
    """An SVG: left macro-F1 of every seed, right the mean curve of each variant.

    found: name -> runs, each with "test" (a row of scores) and "curve" (operating points, at the
    same thresholds in all runs). titles: what each is called. The filled mark on a curve is where
    the variant stands without thresholds.
    """
    names = list(found)
    high = max(_ROW * len(names), _PANEL)
    height = _TOP + high + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        f'width="{_WIDTH:.0f}" height="{height:.0f}" font-family="sans-serif" font-size="13" '
        f'role="img" aria-label="Ablation: macro-F1 of every seed; precision against recall">',
        f'<rect width="{_WIDTH:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_scores(found, titles, high),
        *_curves(found, high),
        "</svg>",
    ]
    return "\n".join(parts)


def page(picture: str, tables: str) -> str:
    """The picture and the tables (Markdown) as a page that stands alone."""
    body = "".join(_table(block) for block in tables.split("\n\n"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Ablation</title>
<style>
body {{ font: 14px/1.5 sans-serif; max-width: 1080px; margin: 2em auto; color: #111;
  background: #fff; }}
svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; margin: 1.5em 0; }}
td, th {{ border-bottom: 1px solid #ccc; padding: 4px 8px; text-align: left; }}
td + td {{ white-space: nowrap; }}
</style>
</head>
<body>
<h1>What the loss does, on the embedded world</h1>
{picture}
{body}
</body>
</html>
"""


def _scores(found: Found, titles: Mapping[str, str], high: float) -> list[str]:
    values = {name: [run["test"]["macro_f1"] for run in runs] for name, runs in found.items()}
    everything = [value for some in values.values() for value in some]
    low, top = np.floor(min(everything) * 20) / 20, np.ceil(max(everything) * 20 + 1e-9) / 20
    top = max(top, low + 0.05)

    def x(value: float) -> float:
        return _LEFT + (value - low) / (top - low) * _PANEL

    parts = [_text(_LEFT, _TOP - 24, "macro-F1: every seed, and the mean", bold=True)]
    for tick in np.linspace(low, top, 6 if top - low > 0.06 else 2):
        parts.append(_line(x(tick), _TOP, x(tick), _TOP + high, "#dddddd"))
        parts.append(_text(x(tick), _TOP + high + 18, f"{tick:.2f}", anchor="middle"))
    for i, (name, some) in enumerate(values.items()):
        y, colour = _TOP + (i + 0.5) * high / len(values), _COLOURS[i % len(_COLOURS)]
        parts.append(_text(_LEFT - 34, y + 4, titles[name], anchor="end"))
        parts.append(_mark(i, _LEFT - 20, y, colour))
        mean = x(float(np.mean(some)))
        parts.append(_line(mean, y - 12, mean, y + 12, colour, width=3.0))
        parts += [_mark(i, x(value), y, colour, filled=False) for value in some]
    return parts


def _curves(found: Found, high: float) -> list[str]:
    left = _LEFT + _PANEL + _GAP

    def x(recall: float) -> float:
        return left + (recall - _LEAST) / (1 - _LEAST) * (_WIDTH - left - 20)

    def y(precision: float) -> float:
        return _TOP + (1 - precision) / (1 - _LEAST) * high

    parts = [_text(left, _TOP - 24, "Answers: precision against recall", bold=True)]
    for tick in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(_line(x(tick), y(_LEAST), x(tick), y(1.0), "#dddddd"))
        parts.append(_line(x(_LEAST), y(tick), x(1.0), y(tick), "#dddddd"))
        parts.append(_text(x(tick), _TOP + high + 18, f"{tick:.1f}", anchor="middle"))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:.1f}", anchor="end"))
    middle = (1 + _LEAST) / 2
    parts.append(_text(x(middle), _TOP + high + 40, "recall", anchor="middle"))
    parts.append(
        f'<text transform="translate({left - 44} {y(middle):.1f}) rotate(-90)" '
        f'text-anchor="middle">precision</text>'
    )
    parts.append(
        f'<clipPath id="shown"><rect x="{x(_LEAST):.1f}" y="{y(1.0) - 2:.1f}" '
        f'width="{x(1.0) - x(_LEAST) + 2:.1f}" height="{y(_LEAST) - y(1.0) + 2:.1f}"/></clipPath>'
    )
    for i, runs in enumerate(found.values()):
        colour = _COLOURS[i % len(_COLOURS)]
        curve = np.mean(
            [[(p["recall"], p["precision"]) for p in run["curve"]] for run in runs], axis=0
        )
        points = " ".join(f"{x(r):.1f},{y(p):.1f}" for r, p in curve)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[i % len(_DASHES)]}" clip-path="url(#shown)"/>'
        )
        own = [float(np.mean([run["test"][key] for run in runs])) for key in
               ("recall", "precision")]  # fmt: skip
        parts.append(_mark(i, x(own[0]), y(own[1]), colour))
    return parts


def _mark(kind: int, x: float, y: float, colour: str, filled: bool = True) -> str:
    """A mark of its own shape for each variant: disc, square, triangle, rhombus, and so on."""
    style = f'fill="{colour if filled else "none"}" stroke="{colour}" stroke-width="1.8"'
    corners = (0, 4, 3, 4, 5, 3, 6, 3)[kind % 8]
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {style}/>'
    turned = (0, np.pi / 4, 0, 0, 0, np.pi, 0, np.pi / 2)[kind % 8]
    angles = turned - np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    points = " ".join(f"{x + 6.2 * np.cos(a):.1f},{y + 6.2 * np.sin(a):.1f}" for a in angles)
    return f'<polygon points="{points}" {style}/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _table(block: str) -> str:
    """A Markdown table as HTML."""
    head, _, *rows = [
        [escape(cell.strip()) for cell in line.strip("|").split("|")] for line in block.splitlines()
    ]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    below = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{below}</tbody></table>\n"
