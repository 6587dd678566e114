"""When something is seen: grounding (a sentence) and localization (a class), with their windows.

Formats and label rule: specs/streamformer.md sections 6.1 and 6.2.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from streamjax.data.annotations.files import BadRow, inside, label_id, literal, number, read_table
from streamjax.data.annotations.videos import root_of, with_suffix
from streamjax.data.media import Media, told_name
from streamjax.errors import InputError

_COLUMNS = ("video_id", "start_second", "end_second", "text", "relevant_windows", "dataset")
_SUFFIXES = {"TaCoS": "-cam-002.avi"}
_PREFIXES = {"HACS": "v_"}


@dataclass(frozen=True)
class Moment:
    """A sentence or a class, and when in its video it is true.

    start, end: seconds of the row's own moment. windows: all of them, (start, end) in seconds.
    label_id: the class's number; -1 for grounding, where `text` is a sentence.
    """

    video: Media
    text: str
    start: float
    end: float
    windows: tuple[tuple[float, float], ...]
    dataset: str
    label_id: int = -1


@dataclass(frozen=True)
class LocalizedVideo:
    """A video with all moments of all classes that are annotated in it."""

    video: Media
    dataset: str
    moments: tuple[Moment, ...]


def read_grounding(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | Mapping[str, str | os.PathLike],
    bad: list[BadRow] | None = None,
) -> list[Moment]:
    """The grounding task's train.csv (CharadesSTA, QVHighlights, TaCoS, ...): a sentence per row.

    Columns video_id, start_second, end_second, text, relevant_windows (a list of [s, e]), dataset.
    root: folder of the videos, or one per data set. InputError: missing columns, a time or list
    that is none, a path out of the root; with a list
    `bad` such a row goes there. Whether a
    span lies in its video is found out when that is read.
    """
    return read_table(path, _COLUMNS, lambda row, where: _moment(row, where, root), bad=bad)


def read_localization(
    path: str | os.PathLike,
    labels: Mapping[str, Mapping[str, int]],
    *,
    root: str | os.PathLike | Mapping[str, str | os.PathLike],
    bad: list[BadRow] | None = None,
) -> list[Moment]:
    """The localization task's train.csv (HACS, FineAction, ActivityNet): a class per row.

    labels: label2id.json, through `files.read_label_sets`. Otherwise as `read_grounding`;
    InputError also for a data set or class that the labels lack.
    """

    def make(row: dict[str, str], where: str) -> Moment:
        dataset = row["dataset"]
        if dataset not in labels:
            raise InputError(f"{where}: dataset {dataset!r}; label2id has {sorted(labels)}")
        return _moment(row, where, root, label_id(labels[dataset], row["text"], where))

    return read_table(path, _COLUMNS, make, bad=bad)


def is_inside(moment: Moment, times: Any) -> Bool[np.ndarray, " t"]:
    """Which frames show it; `times` [t] in seconds, rounded to 0.01 s as the labels are.

    With at most one window the row's own start and end count, with more any window; ends belong.
    """
    at = np.round(np.asarray(times, np.float64), 2)
    windows: Sequence[tuple[float, float]] = moment.windows
    if len(windows) <= 1:
        windows = [(moment.start, moment.end)]
    shown = [(start <= at) & (at <= end) for start, end in windows]
    return np.logical_or.reduce(shown)


def frame_labels(moment: Moment, times: Any) -> Int32[np.ndarray, " t"]:
    """The class of every frame at `times` [t] seconds; -1 is background."""
    return np.where(is_inside(moment, times), moment.label_id, -1).astype(np.int32)


def by_video(moments: Iterable[Moment | BadRow]) -> list[LocalizedVideo | BadRow]:
    """One record per video with all its moments, for evaluation; bad rows come last."""
    found: dict[tuple[str, str], list[Moment]] = {}
    bad = []
    for moment in moments:
        if isinstance(moment, BadRow):
            bad.append(moment)
        else:
            found.setdefault((told_name(moment.video), moment.dataset), []).append(moment)
    videos = [LocalizedVideo(m[0].video, m[0].dataset, tuple(m)) for m in found.values()]
    return [*videos, *bad]


def shown_classes(
    moments: Sequence[Moment], times: Any, classes: int
) -> Bool[np.ndarray, "t classes"]:
    """Which of the classes each frame at `times` [t] seconds shows, by any of the moments."""
    shown = np.zeros((len(times), classes), bool)
    for moment in moments:
        shown[:, moment.label_id] |= is_inside(moment, times)
    return shown


def _moment(row: dict[str, str], where: str, root: Any, label: int = -1) -> Moment:
    dataset = row["dataset"]
    start, end = (number(row[c], c, where) for c in ("start_second", "end_second"))
    windows = []
    for window in literal(row["relevant_windows"] or "[]", "relevant_windows", where):
        pair = list(window) if isinstance(window, list | tuple) else []
        if len(pair) != 2 or not all(isinstance(t, int | float) for t in pair):
            raise InputError(f"{where}: relevant window {window!r}; wanted [start, end] in seconds")
        windows.append((float(pair[0]), float(pair[1])))
    if not row["text"].strip():
        raise InputError(f"{where}: text is empty; wanted a sentence or a class")
    name = with_suffix(_PREFIXES.get(dataset, "") + row["video_id"], _SUFFIXES.get(dataset, ".mp4"))
    video = inside(root_of(root, dataset, where), name, where)
    return Moment(video, row["text"], start, end, tuple(windows), dataset, label)
