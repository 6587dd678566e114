"""The six tasks of StreamFormer's pre-training, opened from a folder of annotations and media.

The folder is laid out as `annotations/layout.py` says, for data sets as they are released and for
the embedded world alike, or was packed from one (`data/packed.py`).
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from streamjax.data.annotations.files import read_label_sets, read_labels
from streamjax.data.annotations.layout import KINDS, read_task, tasks_in
from streamjax.data.annotations.moments import by_video
from streamjax.data.packed import MANIFEST, PackedRecords, read_manifest
from streamjax.data.pipeline import DataConfig, Transform
from streamjax.data.samples import (
    COCO,
    Grounding,
    Localization,
    Recognition,
    Referring,
    Retrieval,
    Segmentation,
    Tokens,
)
from streamjax.errors import InputError

NAMES = {
    "kinetics": "Kinetics",
    "ssv2": "SSV2",
    "retrieval": "TaskRetrieval",
    "grounding": "TaskGrounding",
    "localization": "TaskLocalization",
    "vis": "TaskVIS",
    "refvos": "TaskReferVOS",
}
"""Folder of a task -> what the original calls it, and names its head in checkpoints."""

Labels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Task:
    """One task of a folder.

    kind: "recognition", "retrieval", "grounding", "localization", "segmentation" or "referring".
    source: opens the records (a sequence); picklable, reads nothing before. transform: record, rng
    -> sample. labels: {data set: {label: id}} in the order that samples count data sets; {} for
    tasks with sentences.
    """

    kind: str
    source: Callable[[], Sequence[Any]]
    transform: Transform
    labels: Labels

    def data(self, **settings: Any) -> DataConfig:
        """What the pipeline wants; `settings` are DataConfig's other fields."""
        return DataConfig(source=self.source, transform=self.transform, **settings)


def open_tasks(
    folder: str | os.PathLike,
    split: str = "train",
    *,
    tokens: Tokens,
    frames: int = 16,
    size: int = 224,
    train: bool = True,
    augment: bool = True,
    keep: bool = False,
    mirror_sides: bool = True,
    shift_coco: bool = False,
    parity: Literal["fixed", "upstream"] = "fixed",
) -> dict[str, Task]:
    """Every task that a folder has annotations of, under the original's name (`NAMES`).

    folder: laid out as `annotations/layout.py` says, or packed. tokens: text -> row of ids, as
    `data.captions.CaptionTokenizer` makes it. frames, size, train, augment, keep: of all samples,
    see `data/samples.py`. mirror_sides: Q13. shift_coco: Q11. parity: Q4.

    Rows that the readers cannot use are met as records that give no sample, and so are counted and
    skipped by the pipeline. In evaluation (`train` false) a record of localization is a video.

    InputError: no such annotations, a label map that is none, a pack that is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted annotations and videos, or a pack")
    packed = (folder / MANIFEST).is_file()
    names = _packed_tasks(folder, split) if packed else tasks_in(folder, split)
    if not names:
        raise InputError(f"{folder}: no annotations of split {split!r}; wanted {', '.join(KINDS)}")
    every = {"frames": frames, "size": size, "train": train, "augment": augment, "keep": keep}
    found = {}
    for name in names:
        labels = _labels(folder, name, packed, shift_coco)
        sizes = {dataset: len(ids) for dataset, ids in labels.items()}
        source = functools.partial(open_records, folder, name, split, train=train)
        transform: Transform
        match KINDS[name]:
            case "recognition":
                spread = "stretches" if name == "ssv2" else "segments"
                transform = Recognition(spread=spread, mirror_sides=mirror_sides, **every)
            case "retrieval":
                transform = Retrieval(tokens=tokens, mirror_sides=mirror_sides, **every)
            case "grounding":
                transform = Grounding(tokens=tokens, **every)
            case "localization":
                transform = Localization(sizes=sizes, **every)
            case "segmentation":
                transform = Segmentation(sizes=sizes, parity=parity, shift_coco=shift_coco, **every)
            case _:
                transform = Referring(tokens=tokens, **every)
        found[NAMES[name]] = Task(KINDS[name], source, transform, labels)
    return found


@functools.lru_cache(maxsize=16)
def open_records(folder: Path, task: str, split: str, *, train: bool = True) -> Sequence[Any]:
    """The records of one task (a key of `NAMES`), bad rows after the good ones; opened once a
    process. Errors as of `open_tasks`."""
    records: Sequence[Any]
    if (folder / MANIFEST).is_file():
        records = PackedRecords(folder, task, split)
    else:
        found = read_task(folder, task, split)
        records = [*found.records, *found.bad]
    if train or KINDS[task] != "localization":
        return records
    return by_video(records[i] for i in range(len(records)))


def _packed_tasks(folder: Path, split: str) -> list[str]:
    splits = read_manifest(folder).splits
    return [task for task in KINDS if f"{split}_{task}" in splits]


def _labels(folder: Path, task: str, packed: bool, shift_coco: bool) -> Labels:
    """{data set: {label: id}}; COCO's moved up by one for a background, where asked for."""
    if KINDS[task] not in ("recognition", "localization", "segmentation"):
        return {}
    if packed:
        labels = dict(read_manifest(folder).labels[task])
    elif KINDS[task] == "recognition":
        labels = {task: read_labels(folder / task / "label2id.json")}
    else:
        labels = read_label_sets(folder / task / "label2id.json")
    if shift_coco and COCO in labels and KINDS[task] == "segmentation":
        moved = {label: number + 1 for label, number in labels[COCO].items()}
        labels = labels | {COCO: {"background": 0} | moved}
    return labels
