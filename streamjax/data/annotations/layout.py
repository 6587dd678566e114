"""A whole folder of annotations and media, laid out as `data/world_files.py` writes it.

    kinetics/, ssv2/   <split>.csv, label2id.json; the paths in the table are relative to the task
    retrieval/         <split>.csv                     videos in <folder>/videos
    grounding/         <split>.csv                     videos in <folder>/videos
    localization/      <split>.csv, label2id.json      videos in <folder>/videos
    vis/               <split>_<Dataset>.json, label2id.json, frames/
    refvos/            <split>_<Dataset>.csv or .json, frames/, masks/

Where several data sets of one task share names of files, a data set's media may lie in a folder of
its own: videos/<Dataset>/, frames/<Dataset>/, masks/<Dataset>/.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamjax.data.annotations.files import BadRow, read_label_sets, read_labels, read_table
from streamjax.data.annotations.masks import (
    read_instances,
    read_referred,
    read_referred_pictures,
)
from streamjax.data.annotations.moments import read_grounding, read_localization
from streamjax.data.annotations.videos import read_actions, read_captions
from streamjax.errors import InputError

KINDS = {
    "kinetics": "recognition",
    "ssv2": "recognition",
    "retrieval": "retrieval",
    "grounding": "grounding",
    "localization": "localization",
    "vis": "segmentation",
    "refvos": "referring",
}
_PALETTES = "ReferYoutubeVOS"  # its masks are pictures


@dataclass
class TaskRecords:
    """What a split of one task holds.

    records: dataclasses of `streamjax.data.annotations`. labels: {data set: {label: id}}; of
    kinetics and ssv2 the data set is called like the task. bad: rows that are none.
    """

    records: list[Any]
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)


def tasks_in(folder: str | os.PathLike, split: str) -> list[str]:
    """The tasks of which the folder has annotations of that split."""
    return [task for task in KINDS if _tables(Path(folder) / task, task, split)]


def read_task(folder: str | os.PathLike, task: str, split: str) -> TaskRecords:
    """All records of one task and split, data sets in the order of their names.

    InputError: an unknown task, no annotations of that split, a table that is none. Single bad
    rows are not among the records but in `bad`.
    """
    if task not in KINDS:
        raise InputError(f"task {task!r}; wanted one of {', '.join(KINDS)}")
    folder = Path(folder)
    home = folder / task
    tables = _tables(home, task, split)
    if not tables:
        stem = f"{split}_<Dataset>" if task in ("vis", "refvos") else split
        raise InputError(f"{home}: no annotations of split {split!r}; wanted {stem}.csv or .json")
    return _READERS[task](folder, home, tables)


def annotation_files(folder: str | os.PathLike, task: str, split: str) -> list[Path]:
    """The files that say what a split of one task is: its tables, and the labels' numbers."""
    home = Path(folder) / task
    labels = home / "label2id.json"
    return [*_tables(home, task, split), *([labels] if labels.is_file() else [])]


def _tables(home: Path, task: str, split: str) -> list[Path]:
    if task in ("vis", "refvos"):
        found = sorted(home.glob(f"{split}_*"))
        return [path for path in found if path.suffix in (".csv", ".json")]
    path = home / f"{split}.csv"
    return [path] if path.is_file() else []


def _actions(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    labels = read_labels(home / "label2id.json")
    found = TaskRecords([], {home.name: labels})
    found.records = read_actions(tables[0], labels, root=home, bad=found.bad)
    return found


def _captions(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    found = TaskRecords([])
    found.records = read_captions(tables[0], root=_roots(folder, tables[0]), bad=found.bad)
    return found


def _grounding(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    found = TaskRecords([])
    found.records = read_grounding(tables[0], root=_roots(folder, tables[0]), bad=found.bad)
    return found


def _localization(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    labels = read_label_sets(home / "label2id.json")
    found = TaskRecords([], labels)
    roots = _roots(folder, tables[0])
    found.records = read_localization(tables[0], labels, root=roots, bad=found.bad)
    return found


def _instances(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    sets = read_label_sets(home / "label2id.json")
    found = TaskRecords([], sets)
    for table in tables:
        dataset = _dataset(table)
        if dataset not in sets:
            raise InputError(f"{table}: dataset {dataset!r}; label2id has {sorted(sets)}")
        found.records += read_instances(
            table, root=_own(home / "frames", dataset), labels=sets[dataset], dataset=dataset,
            bad=found.bad,
        )  # fmt: skip
    return found


def _referred(folder: Path, home: Path, tables: list[Path]) -> TaskRecords:
    found = TaskRecords([])
    for table in tables:
        dataset = _dataset(table)
        root = _own(home / "frames", dataset)
        if table.suffix == ".json":
            found.records += read_referred_pictures(table, root=root, bad=found.bad)
        else:
            found.records += read_referred(
                table, root=root, mask_root=_own(home / "masks", dataset),
                pictures=dataset == _PALETTES, bad=found.bad,
            )  # fmt: skip
    return found


_READERS: dict[str, Callable[[Path, Path, list[Path]], TaskRecords]] = {
    "kinetics": _actions,
    "ssv2": _actions,
    "retrieval": _captions,
    "grounding": _grounding,
    "localization": _localization,
    "vis": _instances,
    "refvos": _referred,
}


def _dataset(table: Path) -> str:
    """train_YoutubeVIS.json -> YoutubeVIS."""
    return table.stem.partition("_")[2]


def _own(root: Path, dataset: str) -> Path:
    """The data set's own folder, where there is one."""
    return root / dataset if (root / dataset).is_dir() else root


def _roots(folder: Path, table: Path) -> Mapping[str, Path]:
    """Data set -> the folder of its videos, for every data set that the table names."""
    names: dict[str, Path] = {}

    def note(row: dict[str, str], where: str) -> None:
        names.setdefault(row["dataset"], _own(folder / "videos", row["dataset"]))

    read_table(table, ("dataset",), note, bad=[])
    return names
