"""Pre-training data as one TFDS dataset folder of ArrayRecord shards, for pods: how it is opened.

    dataset_info.json, features.json, packed.json
    pretraining-train_kinetics.array_record-00000-of-00016     the records of a task, one each
    pretraining-train_media.array_record-00000-of-00016        the files they speak of, one each

A record refers to its files by their place in the media split, so that a video with twenty
sentences, or one that three tasks use, is stored once; and of a clip of eighty pictures only those
that a sample takes are read. Reading any sample costs one small record and its media, by offset: no
scan, no shard as a whole. Files are stored as they are, encoded; what is drawn at random (frames,
captions, crops) stays random.

The features of every split: `kind` (the record's dataclass, or "Media"), `record` (its fields as
JSON, in which a file is {"file": name}; exact, which tf.Example's float32 would not be), `media`
(the places of those files, in that order), `content` (of media: the bytes). Names are relative to
the folder that was packed. packed.json holds labels, counts and checksums.
"""

import dataclasses
import functools
import json
import operator
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.annotations.files import check_labels, read_json
from streamjax.data.annotations.layout import KINDS
from streamjax.data.annotations.masks import Instances, Referred
from streamjax.data.annotations.moments import Moment
from streamjax.data.annotations.videos import Action, Captioned
from streamjax.data.media import PackedFile
from streamjax.data.pipeline import ArrayRecords
from streamjax.data.tfds_folder import Shard, checksum, decode_example
from streamjax.errors import InputError

MANIFEST, FORMAT, VERSION = "packed.json", "streamjax packed data", 1
NAME, MEDIA = "pretraining", "media"
_CLASSES = {kind.__name__: kind for kind in (Action, Captioned, Moment, Instances, Referred)}

Progress = Callable[[int, int], Any]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What packed.json says: the tasks' labels {task: {data set: {label: id}}}, the shards of every
    split, and how many records were left out of each, for want of their files."""

    labels: Mapping[str, Mapping[str, Mapping[str, int]]]
    splits: Mapping[str, Sequence[Shard]]
    left_out: Mapping[str, int]

    def table(self) -> str:
        """A line for each split: its task's kind, records, those left out, shards and megabytes."""
        lines = [
            f"{'split':24} {'kind':13} {'records':>9} {'left out':>8} {'shards':>6} {'MB':>10}"
        ]
        for split, shards in self.splits.items():
            kind = KINDS.get(split.rpartition("_")[2], "files")
            records = sum(shard.records for shard in shards)
            size = sum(shard.bytes for shard in shards) / 1e6
            left = self.left_out.get(split, 0)
            lines.append(
                f"{split:24} {kind:13} {records:9,} {left:8,} {len(shards):6} {size:10,.1f}"
            )
        return "\n".join(lines)


class PackedRecords(Sequence):
    """The records of one task and split of a packed data set, in the order of their annotations:
    the dataclasses that the readers of `data/annotations` give, with a `PackedFile` for each path.

    Opening looks at the size of every shard and counts the records; a record's files are read when
    they are used. InputError: no packed data set, one of another version, a task or split that it
    lacks, a shard that is missing or cut short, and on reading a record that is corrupt.
    """

    def __init__(self, folder: str | os.PathLike, task: str, split: str = "train"):
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        name = f"{split}_{task}"
        if name not in manifest.splits or task == MEDIA:
            known = [key for key in manifest.splits if not key.endswith(f"_{MEDIA}")]
            raise InputError(f"{folder}: has no {name}; wanted one of {', '.join(known)}")
        self._records = self._opened(manifest, name)
        self._media = self._opened(manifest, f"{split}_{MEDIA}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        example = self._read(self._records, index)
        files = iter(example["media"])

        def packed(name: str) -> PackedFile:
            return PackedFile(name, functools.partial(self._content, next(files)))

        return restored(_CLASSES[example["kind"].decode()], json.loads(example["record"]), packed)

    def _content(self, place: int) -> bytes:
        return self._read(self._media, place)["content"]

    def _read(self, records: ArrayRecords, index: int) -> dict[str, Any]:
        try:
            return records[index]
        except (RuntimeError, ValueError) as error:  # a checksum that does not hold
            told = str(error).partition(";")[0]
            raise InputError(f"{self.folder}: corrupt, copy or pack it again ({told})") from error

    def _opened(self, manifest: Manifest, split: str) -> ArrayRecords:
        shards = manifest.splits[split]
        for shard in shards:
            path = self.folder / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                has = "missing" if found is None else f"has {found:,} bytes"
                raise InputError(f"{path}: {has}; wanted {shard.bytes:,}: copy or pack it again")
        records = ArrayRecords([self.folder / shard.file for shard in shards], decode_example)
        wanted = sum(shard.records for shard in shards)
        if len(records) != wanted:
            raise InputError(
                f"{self.folder}: {split} holds {len(records)} records; wanted {wanted}: copy or "
                "pack it again"
            )
        return records


def read_manifest(folder: str | os.PathLike) -> Manifest:
    """The manifest of a packed data set. InputError: there is none, or of another version."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: not a packed data set (no {MANIFEST}); streamjax data pack makes one"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of packed data; streamjax data pack makes one")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: version {content.get('version')!r}; wanted {VERSION}: pack it again with "
            "this streamjax, or read it with the one that wrote it"
        )
    try:
        splits = {
            split: tuple(Shard(**shard) for shard in shards)
            for split, shards in content["splits"].items()
        }
        for task, sets in content["labels"].items():
            for dataset, labels in sets.items():
                check_labels(labels, f"{path}: {task}: {dataset}")
        return Manifest(content["labels"], splits, dict(content["left_out"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a whole manifest ({error!r}); pack it again") from error


def verify(folder: str | os.PathLike, progress: Progress | None = None) -> None:
    """Reads every shard and compares checksums. InputError: the first shard that differs."""
    splits = read_manifest(folder).splits
    shards = [shard for shards in splits.values() for shard in shards]
    total, done = sum(shard.bytes for shard in shards), 0
    for shard in shards:
        path = Path(folder) / shard.file
        if not path.is_file() or checksum(path) != shard.sha256:
            raise InputError(f"{path}: missing or not what was packed; copy or pack it again")
        done += shard.bytes
        if progress is not None:
            progress(done, total)


# --- records as JSON ---------------------------------------------------------------------------


def paths_of(value: Any) -> Iterator[Path]:
    """The files that a record speaks of, in the order of its fields."""
    if isinstance(value, Path):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from paths_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from paths_of(one)


def plain(value: Any, root: Path) -> Any:
    """A record as JSON holds it; the order of its files is that of `paths_of`."""
    if isinstance(value, Path):
        return {"file": Path(os.path.relpath(value, root)).as_posix()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name), root) for f in dataclasses.fields(value)}
        if "where" in fields:
            fields["where"] = fields["where"].removeprefix(f"{root}{os.sep}")
        return fields
    if isinstance(value, tuple):
        return [plain(one, root) for one in value]
    return value


def restored(hint: Any, value: Any, packed: Callable[[str], PackedFile]) -> Any:
    """What `plain` made, as the type that is wanted of it."""
    if isinstance(value, dict) and value.keys() == {"file"}:
        return packed(value["file"])
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{key: restored(hints[key], one, packed) for key, one in value.items()})
    if isinstance(value, list):
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            hint = next(h for h in typing.get_args(hint) if typing.get_origin(h) is tuple)
        if typing.get_origin(hint) is tuple:
            kinds = typing.get_args(hint)
            kinds = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else kinds
            return tuple(restored(h, v, packed) for h, v in zip(kinds, value, strict=True))
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
