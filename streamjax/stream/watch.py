"""Watching a whole video with a stream: every turn shown as it comes, and kept for the files."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamjax.stream import page, report, trace

HEADER = f"{'time':>8}  {'state':<8}  silence standby response  {'latency':>9}  text"


@dataclass
class Watched:
    """What a stream saw and said: its turns, a small picture of each, and what it was asked.

    stopped: Ctrl-C ended it before the video did.
    """

    stream: Any
    questions: Sequence[trace.Question]
    turns: list[Any] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    stopped: bool = False


def watch(
    stream: Any,
    frames: Iterable[Any],
    questions: Sequence[trace.Question] = (),
    *,
    show: Callable[[Any], None] = lambda turn: None,
) -> Watched:
    """Pushes every frame (uint8 RGB [h w 3]) into an assistant's stream.

    questions: (seconds, words); each is put at the first frame at or after its time. show: called
    with every turn as it comes. Ctrl-C ends the watching, not the program: a camera has no end.
    """
    for time, words in questions:
        stream.ask(words, at=time)
    seen = Watched(stream, questions)
    try:
        for frame in frames:
            turn = stream.push(frame)
            seen.pictures.append(page.picture(frame))
            seen.turns.append(turn)
            show(turn)
    except KeyboardInterrupt:
        seen.stopped = True
        del seen.pictures[len(seen.turns) :]
    return seen


def turn_line(turn: trace.TracedTurn) -> str:
    """A turn on one line: time, state, the three probabilities, latency, and what it said."""
    silence, standby, response = (f"{float(p):.3f}" for p in turn.probabilities)
    latency = f"{1000 * trace.seconds_taken(turn):,.1f} ms"
    words = trace.one_line(turn.text)
    return (
        f"{trace.clock(float(turn.time)):>8}  {turn.state.strip('</>'):<8}  {silence:>7} "
        f"{standby:>7} {response:>8}  {latency:>9}  {words}"
    ).rstrip()


def write_files(
    seen: Watched, stem: Path, *, title: str, about: Sequence[str] = (), traced: bool = False
) -> list[Path]:
    """Writes STEM.vtt, STEM.jsonl and STEM.report.html, each whole or not at all.

    traced: the trace has been written already, turn by turn. Returns the paths. Without a single
    turn there is nothing to write, and nothing is.
    """
    if not seen.turns:
        return []
    subtitles, lines, shown = (
        stem.with_name(stem.name + end) for end in (".vtt", ".jsonl", ".report.html")
    )
    trace.write_subtitles(subtitles, seen.turns)
    if not traced:
        trace.write_trace(lines, trace.header_of(seen.stream), seen.turns)
    report.write_report(shown, seen.turns, seen.pictures, seen.questions, title=title, about=about)
    return [subtitles, shown] if traced else [subtitles, lines, shown]
