"""How a run shows where it is: a bar on a terminal, plain lines elsewhere; always on stderr."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple


class Report(NamedTuple):
    """One look at a running loop.

    `f1` is the mean over states since the last looks, if known; `tasks` the loss of each task.
    `mfu` is the share of the devices' peak.
    """

    step: int
    loss: float
    f1: float | None
    examples_per_second: float
    waiting: float  # share of the time spent waiting for data
    seconds_left: float
    tasks: Mapping[str, float] | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None


# progress(name, steps, first_step) opens a display; what it yields is called with each Report.
Display = Callable[[str, int, int], AbstractContextManager[Callable[[Report], None]]]


def auto(name: str, steps: int, start: int) -> AbstractContextManager[Callable[[Report], None]]:
    """A bar when stderr is a terminal, a line per report otherwise."""
    return (bar if sys.stderr.isatty() else lines)(name, steps, start)


@contextmanager
def bar(name: str, steps: int, start: int) -> Iterator[Callable[[Report], None]]:
    """A rich progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[told]}"), console=Console(stderr=True)) as on:
        task = on.add_task(name, total=steps, completed=start, told="compiling")
        yield lambda report: on.update(task, completed=report.step, told=tell(report))


@contextmanager
def lines(name: str, steps: int, start: int) -> Iterator[Callable[[Report], None]]:
    """A plain line per report."""
    print(f"{name}: step {start} of {steps}, compiling", file=sys.stderr, flush=True)
    yield lambda report: print(
        f"{name}: step {report.step}/{steps} {tell(report)}", file=sys.stderr, flush=True
    )


@contextmanager
def silent(name: str, steps: int, start: int) -> Iterator[Callable[[Report], None]]:
    """Nothing at all."""
    del name, steps, start
    yield lambda report: None


def tell(report: Report) -> str:
    """The numbers of a report in one short text."""
    minutes, seconds = divmod(round(report.seconds_left), 60)
    f1 = "" if report.f1 is None else f"state F1 {report.f1:.3f} "
    tasks = ", ".join(f"{task} {loss:.3f}" for task, loss in (report.tasks or {}).items())
    tasks = f"({tasks}) " if tasks else ""
    tokens = report.tokens_per_second
    rate = f"{report.examples_per_second:.1f} examples/s "
    rate += "" if tokens is None else f"{tokens:,.0f} tokens/s "
    rate += "" if report.mfu is None else f"MFU {report.mfu:.1%} "
    return (
        f"loss {report.loss:.4f} {tasks}{f1}{rate}"
        f"data wait {report.waiting:.0%} left {minutes}:{seconds:02d}"
    )
