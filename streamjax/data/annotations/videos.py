"""One label or one caption for a whole clip: action recognition and text-video retrieval.

Formats: specs/streamformer.md section 6.1.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from streamjax.data.annotations.files import BadRow, inside, label_id, literal, read_table
from streamjax.data.media import Media
from streamjax.errors import InputError

_VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")


@dataclass(frozen=True)
class Action:
    """A clip and its class: `label` is the name, `label_id` its number."""

    video: Media
    label: str
    label_id: int


@dataclass(frozen=True)
class Captioned:
    """A video and the sentences that describe it, of which training draws one at random.

    seconds: only so much of the video, from its start, is described; None is all of it.
    """

    video: Media
    captions: tuple[str, ...]
    dataset: str
    seconds: float | None


def read_actions(
    path: str | os.PathLike,
    labels: Mapping[str, int],
    *,
    root: str | os.PathLike,
    bad: list[BadRow] | None = None,
) -> list[Action]:
    """Kinetics' and SSv2's {train,val,test}.csv: `path,label` per line, no header.

    labels: label2id.json, through `files.read_labels`. root: folder of the videos.
    InputError: another number of cells, an empty or unknown label, a path out of the root; with a
    list `bad` such a row goes there.
    """

    def make(row: dict[str, str], where: str) -> Action:
        video = inside(root, row["path"], where)
        return Action(video, row["label"], label_id(labels, row["label"], where))

    return read_table(path, ("path", "label"), make, header=False, bad=bad)


def read_captions(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | Mapping[str, str | os.PathLike],
    bad: list[BadRow] | None = None,
) -> list[Captioned]:
    """The retrieval task's train.csv: columns video_id, text (a list, or plain), dataset.

    root: folder of the videos, or one per data set. LSMDC's and MSVD's files end in .avi, others
    in .mp4, unless the id says otherwise; DiDeMo's captions speak of the first 30 s.
    InputError: missing columns, an empty or unreadable list, a path out of the root; with a list
    `bad` such a row goes there.
    """

    def make(row: dict[str, str], where: str) -> Captioned:
        text, dataset = row["text"].strip(), row["dataset"]
        captions = literal(text, "text", where) if text.startswith("[") else [text]
        if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
            raise InputError(f"{where}: text {text[:60]!r}; wanted at least one sentence")
        suffix = ".avi" if dataset in ("LSMDC", "MSVD") else ".mp4"
        video = inside(root_of(root, dataset, where), with_suffix(row["video_id"], suffix), where)
        return Captioned(video, tuple(captions), dataset, 30.0 if dataset == "DiDeMo" else None)

    return read_table(path, ("video_id", "text", "dataset"), make, bad=bad)


def with_suffix(video_id: str, suffix: str) -> str:
    """The id as a file name; an id that already is one stays."""
    return video_id if video_id.lower().endswith(_VIDEO_SUFFIXES) else video_id + suffix


def root_of(
    root: str | os.PathLike | Mapping[str, str | os.PathLike], dataset: str, where: str
) -> str | os.PathLike:
    """The folder of a data set's files."""
    if not isinstance(root, Mapping):
        return root
    if dataset not in root:
        raise InputError(f"{where}: dataset {dataset!r}; a root is given for {sorted(root)}")
    return root[dataset]
