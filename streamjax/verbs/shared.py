"""What several verbs share: how arguments are marked, progress on stderr, names of files."""

import contextlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import tyro

from streamjax.errors import InputError

Place = tyro.conf.Positional
Many = tyro.conf.UseAppendAction
Bare = tyro.conf.OmitArgPrefixes


@contextlib.contextmanager
def as_input():
    """What the library calls a wrong value is a wrong argument here: one line, and 2."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def frames_in(seconds: float | None, fps: float) -> int | None:
    return None if seconds is None else max(round(seconds * fps), 1)


@contextlib.contextmanager
def counting(what: str, total: int | None = None):
    """Yields a function of (done, total) that moves a bar on stderr, where that is a terminal, with
    the time that is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def title_of(video: str) -> str:
    """What people call the video: its file's name, `camera 0`, or the last part of the url."""
    if video.isdigit():
        return f"camera {video}"
    url = urlsplit(video)
    return Path(url.path).name or url.netloc if "://" in video else Path(video).name


def stem_of(video: str, out: Path | None) -> Path:
    """What the files of a video are called, ends aside: beside it, or in `out`."""
    if video.isdigit() or "://" in video:
        return (out or Path()) / re.sub(r"[^\w.-]", "_", Path(title_of(video)).stem)
    return (out or Path(video).parent) / Path(video).stem
