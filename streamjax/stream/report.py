"""One page that shows what a stream saw, thought and said: report.html.

The page stands alone: pictures, style and script are inside it, its content policy forbids the
network, and without JavaScript every second can still be read. Whatever comes from outside (words,
names, questions) is escaped here; the script only moves what stands on the page already.
"""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from streamjax.stream.page import (
    NARROWEST,
    REEL,
    WIDTH,
    document,
    reel,
    size_of,
    source,
    style_of,
    ticks,
)
from streamjax.stream.trace import (
    STATE_NAMES,
    Question,
    TracedTurn,
    answer_ends,
    clock,
    is_answer,
    one_line,
    questions_by_turn,
    seconds_taken,
    write_whole,
)

# The timeline, in pixels.
_CHIP, _LANE, _GAP = 26, 46, 12  # heights: a row of words, a lane, between
_LETTER = 6.8  # mean width of a letter of the words in the timeline


def write_report(
    path: str | Path,
    turns: Sequence[TracedTurn],
    pictures: Sequence[bytes],
    questions: Sequence[Question] = (),
    *,
    title: str,
    about: Sequence[str] = (),
):
    """Writes the report of a stream, whole or not at all.

    pictures: one per turn, from `picture`. questions: (seconds of the video, words). title: most
    often the video's name. about: short facts for the line under it, such as the model's name.
    Raises ValueError when there are no turns, or not one picture for each of them.
    """
    if not turns or len(turns) != len(pictures):
        raise ValueError(
            f"a report needs one picture a turn: found {len(turns)} turns, {len(pictures)} pictures"
        )
    first = next((i for i, turn in enumerate(turns) if is_answer(turn)), 0)
    asked = questions_by_turn(turns, questions)
    captions, standing = _captions(turns), _standing(turns, asked)
    sources = [source(p) for p in pictures]
    (width, height), tiny = size_of(pictures[0]), style_of(pictures[0])
    verdicts = [_verdict(turn, asked.get(turn.index, ())) for turn in turns]
    cards = "".join(
        f'<li id="t{i}" class="sheet {_name(turn)}" data-time="{float(turn.time)}" '
        f'data-caption="{escape(captions[i])}" data-standing="{escape(standing[i])}">'
        f'<img class="{tiny}" src="{sources[i]}" alt="The frame at {clock(float(turn.time))}">'
        f'<div class="verdict">{verdicts[i]}</div></li>\n'
        for i, turn in enumerate(turns)
    )
    body = f"""<section class="sheet stage" aria-label="One second of the stream">
<figure class="screen" data-first="{first}">
<img class="{tiny}" src="{sources[first]}" alt="The frame at {clock(float(turns[first].time))}">
<figcaption class="caption"><span>{escape(captions[first])}</span></figcaption>
</figure>
<div class="side">
<div class="verdict">{verdicts[first]}</div>
<p class="standing asks">{escape(standing[first])}</p>
<div class="transport"><button id="play">Play</button><button id="pace">1×</button>
<span class="keys"><kbd>←</kbd> <kbd>→</kbd> step &nbsp;<kbd>space</kbd> plays</span></div>
</div>
</section>
<section class="sheet timeline" aria-label="Timeline">
{_timeline(turns, pictures, questions, first)}
<p class="hint">Height is probability, in the last lane latency; the full colour is what was chosen.
Point at a second to see it, click to stay there.</p>
</section>
{_talk(turns, questions)}
<section class="seconds" aria-label="Every second">
<h2>Every second</h2>
<ol style="--shape:{width}/{height}">
{cards}</ol>
</section>"""
    page = document(
        title=title, kind="stream report", about=about, facts=_facts(turns), body=body,
        styles=["report.css"], script="report.js",
    )  # fmt: skip
    write_whole(path, page)


def _facts(turns: Sequence[TracedTurn]) -> list[tuple[str, str]]:
    """The numbers at the head: what was said, and how fast."""
    counts = [sum(turn.state.strip("</>") == name for turn in turns) for name in STATE_NAMES]
    facts = [("Turns", f"{len(turns)}")]
    facts += [(name, f"{n}") for name, n in zip(STATE_NAMES[::-1], counts[::-1], strict=True)]
    taken = statistics.median(seconds_taken(turn) for turn in turns)
    if taken > 0:
        facts.append(("Median per turn", f"{_milliseconds(taken)}<small>ms</small>"))
        gaps = [b.time - a.time for a, b in pairwise(turns) if b.time > a.time]
        if gaps:
            facts.append(("Faster than the video", f"{statistics.median(gaps) / taken:,.1f}×"))
    return facts


def _verdict(turn: TracedTurn, asked: Sequence[str]) -> str:
    """One second in words and bars: the same markup in its card and on the stage."""
    name = _name(turn)
    bars = "".join(
        f'<span>{state}</span><i class="{state}{" chosen" if state == name else ""}" '
        f'style="--p:{100 * share:.1f}%"></i><b>{100 * share:.0f}%</b>'
        for state, share in zip(STATE_NAMES[::-1], _shares(turn)[::-1], strict=True)
    )
    parts = {part: seconds for part, seconds in turn.latency.items() if part != "total"}
    took = [f"{_milliseconds(seconds_taken(turn))} ms"] if turn.latency else []
    took += [f"{escape(part)} {_milliseconds(seconds)}" for part, seconds in parts.items()]
    return (
        f'<div class="when {name}"><time>{clock(float(turn.time))}</time>'
        f'<span class="pill">{name}</span></div>'
        + "".join(f'<p class="asks">{escape(words)}</p>' for words in asked)
        + (f'<p class="says">{escape(turn.text.strip())}</p>' if turn.text.strip() else "")
        + f'<div class="bars">{bars}</div>'
        + f'<p class="took">{" · ".join(took)}</p>'
    )


def _talk(turns: Sequence[TracedTurn], questions: Sequence[Question]) -> str:
    """What was asked and answered, in order, each linked to its second."""
    lines = []
    asked = questions_by_turn(turns, questions)
    for i, turn in enumerate(turns):
        said = [("Question", words) for words in asked.get(turn.index, ())]
        said += [("Response", turn.text.strip())] if is_answer(turn) else []
        lines += [
            f'<li><a href="#t{i}" class="{kind}"><time>{clock(float(turn.time))}</time>'
            f"<p>{escape(words)}</p></a></li>"
            for kind, words in said
        ]
    if not lines:
        return ""
    return (
        '<section class="sheet talk" aria-label="Questions and answers">'
        f"<h2>Asked and answered</h2><ol>{''.join(lines)}</ol></section>"
    )


def _timeline(
    turns: Sequence[TracedTurn],
    pictures: Sequence[bytes],
    questions: Sequence[Question],
    first: int,
) -> str:
    """The lanes: pictures, words, the three probabilities, the latency; one column a turn."""
    step = max(NARROWEST, WIDTH / len(turns))
    width = step * len(turns)
    chips, rows = _place_words(turns, questions, step, width)
    words_top = REEL + 8
    top = words_top + rows * _CHIP + (_GAP if rows else 4)
    bottom = top + 3 * (_LANE + _GAP) + _LANE * 2 // 3

    stems, words = [], []
    for row, kind, i, left, wide, shown, full in chips:
        y, x = words_top + row * _CHIP, (i + 0.5) * step
        stems.append(
            f'<line class="stem {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{bottom}"/>'
        )
        words.append(
            f'<a href="#t{i}" class="{kind}"><title>{escape(full)}</title>'
            f'<rect class="chip" x="{left:.1f}" y="{y}" width="{wide:.1f}" height="21" rx="6"/>'
            f'<text class="word" x="{left + 8:.1f}" y="{y + 15}">{escape(shown)}</text></a>'
        )

    names, bars = [], []
    order = (2, 1, 0)  # Response on top
    for lane, state in enumerate(order):
        name = STATE_NAMES[state]
        base = top + lane * (_LANE + _GAP) + _LANE
        names.append((base, name, name))
        heights = [_shares(turn)[state] * _LANE for turn in turns]
        chosen = [_name(turn) == name for turn in turns]
        bars.append(
            f'<g class="{name}"><line class="base" x1="0" x2="{width:.1f}" y1="{base + 0.5}" '
            f'y2="{base + 0.5}"/>{_bars("bar", heights, [not c for c in chosen], step, base)}'
            f"{_bars('bar chosen', heights, chosen, step, base)}</g>"
        )
    taken = [seconds_taken(turn) for turn in turns]
    # The first turns and the first answer hold a compilation: usual turns set the scale, and what
    # is longer is cut.
    usual = min(float(np.quantile(taken, 0.9)) * 1.25, 3 * statistics.median(taken))
    if usual > 0:
        names.append((bottom, "Wait", f"≤ {_milliseconds(usual)} ms"))
        heights = [min(t / usual, 1.0) * _LANE * 2 / 3 for t in taken]
        bars.append(_bars("wait", heights, [True] * len(turns), step, bottom))
    bars.append(
        f'<line class="base" x1="0" x2="{width:.1f}" y1="{bottom + 0.5}" y2="{bottom + 0.5}"/>'
    )
    total = bottom + 24

    columns = "".join(
        f'<a href="#t{i}"><title>{clock(float(turn.time))} {_name(turn)} '
        f"{100 * max(_shares(turn)):.0f}%{escape(': ' + turn.text if turn.text else '')}</title>"
        f'<rect class="column" x="{i * step:.1f}" y="0" width="{step:.1f}" height="{total}"/></a>'
        for i, turn in enumerate(turns)
    )
    labels = "".join(
        f'<span style="top:{base - 19}px"><i class="{kind}"></i>{label}</span>'
        for base, kind, label in names
    )
    return (
        f'<div class="lanes"><div class="names">{labels}</div><div class="reel" tabindex="0">'
        f'<svg width="{width:.0f}" height="{total}" data-step="{step}" role="img" '
        f'aria-label="Probabilities of the three states over time">'
        f"{reel(pictures, step, width)}{''.join(stems)}{''.join(bars)}"
        f"{ticks([float(turn.time) for turn in turns], step, bottom + 17)}{columns}{''.join(words)}"
        f'<rect class="cursor" x="{first * step:.1f}" y="0" width="{step:.1f}" height="{bottom}"/>'
        f"</svg></div></div>"
    )


def _bars(kind: str, heights, shown, step: float, base: int) -> str:
    """All bars of one kind as one path: a page of an hour stays light."""
    gap = min(2.0, step * 0.2)
    path = "".join(
        f"M{i * step + gap / 2:.1f} {base}v{-h:.1f}h{step - gap:.1f}v{h:.1f}z"
        for i, (h, show) in enumerate(zip(heights, shown, strict=True))
        if show and h >= 0.05
    )
    return f'<path class="{kind}" d="{path}"/>' if path else ""


def _place_words(
    turns: Sequence[TracedTurn], questions: Sequence[Question], step: float, width: float
) -> tuple[list[tuple[int, str, int, float, float, str, str]], int]:
    """Questions, and under them answers, over their columns, in the first row that has room.

    Returns (row, kind, turn, left, width, words shown, all words) for each, and the rows used.
    """
    asked = questions_by_turn(turns, questions)
    above = [("Question", i, w) for i, turn in enumerate(turns) for w in asked.get(turn.index, ())]
    below = [("Response", i, turn.text.strip()) for i, turn in enumerate(turns) if is_answer(turn)]
    placed, used = [], 0
    for said in (above, below):
        free: list[float] = []  # where each row's free room begins
        for kind, i, words in said:
            shown = one_line(words)
            shown = shown if len(shown) <= 44 else shown[:43].rstrip() + "…"
            wide = min(len(shown) * _LETTER + 16, width)
            left = max(0.0, min((i + 0.5) * step - 10, width - wide))
            row = next((r for r, edge in enumerate(free) if edge <= left), len(free))
            free[row:] = [left + wide + 6, *free[row + 1 :]]
            placed.append((used + row, kind, i, left, wide, shown, words))
        used += len(free)
    return placed, used


def _captions(turns: Sequence[TracedTurn]) -> list[str]:
    """For each turn the answer that is still on the screen then, as the subtitles have it."""
    answers = [turn for turn in turns if is_answer(turn)]
    spans = list(zip(answers, answer_ends(answers), strict=True))
    return [
        next((a.text.strip() for a, until in spans if a.time <= turn.time < until), "")
        for turn in turns
    ]


def _standing(turns: Sequence[TracedTurn], asked: Mapping[int, Sequence[str]]) -> list[str]:
    """For each turn the question that stands then: the last one that was put."""
    now, found = "", []
    for turn in turns:
        now = "\n".join(asked.get(turn.index, ())) or now
        found.append(now)
    return found


def _shares(turn: TracedTurn) -> list[float]:
    return [min(max(float(p), 0.0), 1.0) for p in turn.probabilities]


def _name(turn: TracedTurn) -> str:
    return escape(turn.state.strip("</>"))


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.01 else f"{1000 * seconds:,.0f}"
