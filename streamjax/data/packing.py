"""Packs a folder of annotations and media as `data/packed.py` opens it."""

import bisect
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.annotations.files import BadRow
from streamjax.data.annotations.layout import KINDS, read_task, tasks_in
from streamjax.data.packed import (
    FORMAT,
    MANIFEST,
    MEDIA,
    NAME,
    VERSION,
    Manifest,
    Progress,
    paths_of,
    plain,
)
from streamjax.data.tfds_folder import Shard, encode_example, shard_name, write_info, write_shard
from streamjax.errors import InputError

log = logging.getLogger(__name__)

_FEATURES = {"kind": "text", "record": "text", "media": "integers", "content": "bytes"}
_MOST = (1 << 31) - (1 << 20)  # bytes of a file: a protocol buffer ends at 2 GiB
_PLAN, _DONE = "plan.txt", "done.jsonl"  # in the hidden folder: of what, and which shards


@dataclasses.dataclass(frozen=True)
class _File:
    """A file to be packed: where it is, what it is called, its size and when it was written."""

    path: Path
    name: str
    size: int
    written: int


@dataclasses.dataclass
class _Plan:
    """What goes where: the examples of every split, and where its shards begin."""

    root: Path
    records: dict[str, list[tuple[Any, list[int]]]] = dataclasses.field(default_factory=dict)
    files: dict[str, list[_File]] = dataclasses.field(default_factory=dict)
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    def splits(self) -> list[str]:
        return [*self.records, *self.files]

    def starts(self, split: str, shards: int) -> list[int]:
        """Where each shard begins, and the end: shards of about as many bytes (or records)."""
        if split in self.files:
            sizes = [file.size for file in self.files[split]]
        else:
            sizes = [1] * len(self.records[split])
        shards = min(shards, len(sizes))
        ends = list(itertools.accumulate(sizes))
        starts = [0]
        for k in range(1, shards):
            at = bisect.bisect_left(ends, ends[-1] * k // shards) + 1
            starts.append(min(max(at, starts[-1] + 1), len(sizes) - (shards - k)))
        return [*starts, len(sizes)]

    def examples(
        self, split: str, start: int, stop: int, add: Callable[[int], Any] = lambda size: None
    ) -> Iterator[bytes]:
        """Those of one shard; `add` is told the bytes of every file that is packed."""
        for file in self.files.get(split, [])[start:stop]:
            content = file.path.read_bytes()
            if len(content) != file.size:
                raise InputError(f"{file.path}: was changed while it was packed; pack it again")
            yield _example("Media", {"file": file.name}, content=content)
            add(file.size)
        for record, media in self.records.get(split, [])[start:stop]:
            yield _example(type(record).__name__, plain(record, self.root), media)

    def fingerprint(self, shards: int) -> str:
        """Changes with whatever would change the packed data."""
        digest = hashlib.sha256(json.dumps([VERSION, shards, self.labels]).encode())
        for split, files in self.files.items():
            digest.update(repr((split, [(f.name, f.size, f.written) for f in files])).encode())
        for split, records in self.records.items():
            digest.update(split.encode())
            for example in self.examples(split, 0, len(records)):
                digest.update(hashlib.sha256(example).digest())
        return digest.hexdigest()


def pack(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    tasks: Sequence[str] = (),
    splits: Sequence[str] = ("train",),
    shards: int = 16,
    max_bad: float = 0.01,
    progress: Progress | None = None,
) -> Manifest:
    """Packs a folder of annotations and their files (laid out as `annotations/layout.py` says).

    tasks: those to pack; none means all that the folder has. shards: files per split, fewer where
    it has fewer records. progress: called with (bytes packed, bytes of all media).

    A record whose files are missing or empty is left out, counted and logged with the reason; past
    `max_bad`, a share of a task's records, nothing is packed. The same input gives the same bytes.
    `out` appears when all of it is there: until then finished shards lie in a hidden folder beside
    it, and an interrupted call that is made again goes on from them.

    InputError: `out` is there already, an unknown task, no annotations, too many records left out,
    a file that changes meanwhile.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is there already; choose another folder, or remove it")
    if shards < 1:
        raise InputError(f"{shards} shards; wanted at least 1")
    plan = _planned(folder, tasks, splits, max_bad)
    work = out.with_name(f".{out.name}.packing")
    made = _begun(work, plan.fingerprint(shards))
    total = sum(file.size for files in plan.files.values() for file in files)
    told = _Told(progress or (lambda done, total: None), total)
    manifest = Manifest(
        plan.labels,
        {split: tuple(_shards(plan, split, shards, work, made, told)) for split in plan.splits()},
        plan.left_out,
    )
    write_info(
        work, name=NAME, version=f"{VERSION}.0.0", features=_FEATURES, splits=manifest.splits,
        description="Annotations and encoded media of video pre-training, packed by streamjax.",
    )  # fmt: skip
    content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    (work / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    for name in (_DONE, _PLAN):
        (work / name).unlink(missing_ok=True)
    os.replace(work, out)
    return manifest


@dataclasses.dataclass
class _Told:
    """Tells `progress` how many bytes of media are packed."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, size: int) -> None:
        self.done += size
        self.progress(self.done, self.total)


def _shards(
    plan: _Plan, split: str, most: int, work: Path, made: dict[str, Shard], told: _Told
) -> Iterator[Shard]:
    """The shards of a split: those in `made` as they are, the others written and noted."""
    starts = plan.starts(split, most)
    for k, (start, stop) in enumerate(itertools.pairwise(starts)):
        file = shard_name(NAME, split, k, len(starts) - 1)
        if file in made:
            told.add(sum(f.size for f in plan.files.get(split, [])[start:stop]))
        else:
            examples = plan.examples(split, start, stop, told.add)
            made[file] = write_shard(work / file, examples, compress=split in plan.records)
            with (work / _DONE).open("a", encoding="utf-8") as done:
                done.write(json.dumps(dataclasses.asdict(made[file])) + "\n")
        yield made[file]


def _begun(work: Path, fingerprint: str) -> dict[str, Shard]:
    """Makes the hidden folder, or finds the shards that an interrupted call has finished in it."""
    plan = work / _PLAN
    if work.exists() and not plan.is_file():
        raise InputError(f"{work}: in the way, and not begun by streamjax data pack: remove it")
    if work.exists() and plan.read_text("utf-8") != fingerprint:
        shutil.rmtree(work)  # of other input: nothing of it is of use
    work.mkdir(parents=True, exist_ok=True)
    plan.write_text(fingerprint, "utf-8")
    found = {}
    lines = (work / _DONE).read_text("utf-8") if (work / _DONE).is_file() else ""
    for line in lines.splitlines(keepends=True):
        if line.endswith("\n"):
            shard = Shard(**json.loads(line))
            path = work / shard.file
            if path.is_file() and path.stat().st_size == shard.bytes:
                found[shard.file] = shard
    return found


def _planned(folder: Path, tasks: Sequence[str], splits: Sequence[str], max_bad: float) -> _Plan:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted one of annotations and videos")
    plan = _Plan(folder)
    for split in dict.fromkeys(splits):
        chosen = list(dict.fromkeys(tasks)) or tasks_in(folder, split)
        if not chosen:
            raise InputError(
                f"{folder}: no annotations of split {split!r}; wanted {', '.join(KINDS)} in it"
            )
        files: list[_File] = []
        places: dict[str, int | str] = {}  # real path -> its place among them, or what is wrong
        media = f"{split}_{MEDIA}"
        for task in chosen:
            name = f"{split}_{task}"
            found = read_task(folder, task, split)
            plan.labels[task] = found.labels
            plan.records[name] = []
            bad = list(found.bad)
            for record in found.records:
                found_at = [_place(path, folder, files, places) for path in paths_of(record)]
                wrong = [place for place in found_at if isinstance(place, str)]
                if wrong:
                    bad.append(BadRow(wrong[0]))
                else:
                    good = [place for place in found_at if isinstance(place, int)]
                    plan.records[name].append((record, good))
            _mind(bad, len(bad) + len(plan.records[name]), name, max_bad)
            plan.left_out[name] = len(bad)
        plan.files[media] = files
    return plan


def _mind(bad: Sequence[BadRow], of: int, name: str, most: float) -> None:
    for row in bad:
        log.warning("left out of %s: %s", name, row.reason)
    # As in training: a share of fewer than a hundred says nothing.
    if len(bad) > most * max(of, 100) or len(bad) == of:
        last = f" (last: {bad[-1].reason})" if bad else ""
        raise InputError(
            f"{name}: {len(bad)} of {of} records are bad, wanted at most {most:.2%} and one good "
            f"one{last}: mend the data or raise max_bad"
        )


def _place(path: Path, folder: Path, files: list[_File], places: dict[str, int | str]) -> int | str:
    """The place of a file among those to be packed, or what is wrong with it."""
    real = os.path.realpath(path)
    if real not in places:
        try:
            status = os.stat(real)
        except OSError as error:
            places[real] = f"{path}: {error.strerror}"
            return places[real]
        if not status.st_size or status.st_size > _MOST or not os.path.isfile(real):
            places[real] = f"{path}: {status.st_size:,} bytes; wanted a file of 1 to {_MOST:,}"
            return places[real]
        places[real] = len(files)
        name = Path(os.path.relpath(path, folder)).as_posix()
        files.append(_File(path, name, status.st_size, status.st_mtime_ns))
    return places[real]


def _example(kind: str, record: Any, media: Sequence[int] = (), content: bytes = b"") -> bytes:
    told = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    return encode_example(
        {"kind": kind.encode(), "record": told, "media": media, "content": content}
    )
