"""Packed data hold the records and files that were packed, each file once, and say when they do not."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streamjax import cli
from streamjax.data.annotations.layout import KINDS, read_task, tasks_in
from streamjax.data.annotations.masks import Referred
from streamjax.data.media import PackedFile, opened
from streamjax.data.packed import PackedRecords, plain, read_manifest, restored, verify
from streamjax.data.packing import pack
from streamjax.data.pipeline import DataConfig, batches
from streamjax.data.tasks import NAMES, open_tasks
from streamjax.data.world_files import TASKS, write_world
from streamjax.errors import InputError
from tests.small_world import CONFIG

SHARDS = 3
SHOWN = [task for task in KINDS if task in TASKS]  # the world has no second set of actions


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "world"
    write_world(folder, "train", 4, CONFIG, tasks=SHOWN)
    return folder


@pytest.fixture(scope="module")
def packed(world):
    out = world.parent / "packed"
    pack(world, out, shards=SHARDS)
    return out


def named(value, root):
    """A record with its files as (name, bytes)."""
    if isinstance(value, Path | PackedFile):
        name = value.name if isinstance(value, PackedFile) else value.relative_to(root).as_posix()
        with opened(value) as file:
            return name, file.read()
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if "where" in fields:
            fields["where"] = fields["where"].removeprefix(f"{root}/")
        return type(value), {key: named(one, root) for key, one in fields.items()}
    return tuple(named(one, root) for one in value) if isinstance(value, tuple) else value


def copy(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def shard(folder, split, number=0):
    return folder / read_manifest(folder).splits[split][number].file


@pytest.mark.parametrize("task", SHOWN)
def test_records_and_files_are_those_of_the_folder(task, world, packed):
    plain = read_task(world, task, "train").records
    records = PackedRecords(packed, task)
    assert len(records) == len(plain) > 0
    assert [named(r, world) for r in records] == [named(r, world) for r in plain]
    with pytest.raises(IndexError):
        records[len(plain)]


def test_each_file_is_stored_once_and_labels_come_along(world, packed):
    manifest = read_manifest(packed)
    assert manifest.labels["kinetics"] == read_task(world, "kinetics", "train").labels
    assert manifest.labels["vis"] == read_task(world, "vis", "train").labels
    used = {
        file.name
        for task in ("retrieval", "grounding", "localization")
        for record in PackedRecords(packed, task)
        for file in [record.video]
    }
    assert len(used) == 4
    masks = {mask for row in read_task(world, "refvos", "train").records for mask in row.masks}
    wanted = len(list(world.rglob("*.mp4"))) + len(list(world.rglob("*.jpg"))) + len(masks)
    assert sum(s.records for s in manifest.splits["train_media"]) == wanted
    assert {len(shards) for shards in manifest.splits.values()} == {SHARDS}


def test_tfds_reads_it_without_tensorflow(world, packed):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(packed)
    media = builder.as_data_source("train_media")
    for task in SHOWN:
        source = builder.as_data_source(f"train_{task}")
        assert len(source) == len(PackedRecords(packed, task))
        example = source[len(source) - 1]
        names = [json.loads(media[place]["record"])["file"] for place in example["media"]]
        files = [media[place]["content"] for place in example["media"]]
        assert files == [(world / name).read_bytes() for name in names]
        assert names[0] in example["record"].decode()
    assert "tensorflow" not in sys.modules


def test_it_opens_without_tfds(packed):
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = sys.modules['jax'] = None\n"
        "from streamjax.data.packed import PackedRecords\n"
        f"print(len(PackedRecords({str(packed)!r}, 'vis')[0].frames[0].read()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and int(run.stdout) > 100, run.stderr


def test_the_same_input_makes_the_same_bytes_without_a_path_of_the_machine(world, packed, tmp_path):
    moved = Path(shutil.copytree(world, tmp_path / "elsewhere"))
    again = tmp_path / "again"
    pack(moved, again, shards=SHARDS)
    files = sorted(path.name for path in packed.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((packed / name).read_bytes() == (again / name).read_bytes() for name in files)
    for task in SHOWN:
        assert all(str(tmp_path) not in repr(record) for record in PackedRecords(again, task))
    assert list(tmp_path.glob(".*")) == []


def made(record, rng):
    with opened(record.video) as file:
        return {"size": np.int64(len(file.read())), "start": np.float64(record.start)}


def test_processes_share_the_records_out(world, packed):
    source = partial(PackedRecords, packed, "grounding")
    rows = []
    for i in range(2):
        config = DataConfig(source=source, transform=made, shuffle=False, threads=2 * i)
        data = batches(config, batch_size=1, seed=0, shard=(i, 2))
        rows.append([next(data) for _ in range(len(source()) // 2)])
        data.close()
    plain = read_task(world, "grounding", "train").records
    for n, record in enumerate(plain[: 2 * len(rows[0])]):
        row = rows[n % 2][n // 2]
        assert row["size"] == record.video.stat().st_size and row["start"] == record.start


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: shard(f, "train_media", 1).unlink(), "missing; wanted"),
        (lambda f: shard(f, "train_vis").write_bytes(b"short"), "has 5 bytes; wanted"),
        (lambda f: (f / "packed.json").unlink(), "not a packed data set (no packed.json)"),
        (lambda f: (f / "packed.json").write_text("{}"), "not the manifest of packed data"),
        (
            lambda f: (f / "packed.json").write_text(
                (f / "packed.json").read_text().replace('"version": 1', '"version": 2')
            ),
            "version 2; wanted 1",
        ),
        (
            lambda f: (f / "packed.json").write_text(
                (f / "packed.json").read_text().replace('"splits"', '"parts"')
            ),
            "not a whole manifest (KeyError('splits'))",
        ),
        (
            lambda f: shard(f, "train_vis").write_bytes(
                shard(f, "train_refvos").read_bytes()[: shard(f, "train_vis").stat().st_size]
            ),
            "records; wanted",
        ),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(break_it, said, packed, tmp_path):
    folder = copy(packed, tmp_path)
    break_it(folder)
    with pytest.raises(InputError) as told:
        PackedRecords(folder, "vis")
    assert said in str(told.value) and "\n" not in str(told.value)


def test_a_flipped_bit_is_found_when_it_is_read_and_by_the_check(packed, tmp_path):
    folder = copy(packed, tmp_path)
    path = shard(folder, "train_media")
    content = bytearray(path.read_bytes())
    content[2000] ^= 1  # within the first clip
    path.write_bytes(content)
    with pytest.raises(InputError, match="corrupt, copy or pack it again"):
        [record.video.read() for record in PackedRecords(folder, "kinetics")]
    with pytest.raises(InputError, match="not what was packed"):
        verify(folder)
    verify(packed)


def test_another_task_or_split_is_named(packed):
    for task, split in (("ssv2", "train"), ("vis", "val"), ("media", "train")):
        with pytest.raises(
            InputError, match=f"has no {split}_{task}; wanted one of train_kinetics"
        ):
            PackedRecords(packed, task, split)


def test_an_interrupted_call_goes_on_where_it_stopped(world, packed, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stop(done, total):
        if done > total * 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(world, out, shards=SHARDS, progress=stop)
    assert not out.exists() and (tmp_path / ".out.packing").is_dir()

    from streamjax.data import packing

    written, write = [], packing.write_shard
    monkeypatch.setattr(
        packing,
        "write_shard",
        lambda path, *a, **k: written.append(path.name) or write(path, *a, **k),
    )
    seen = []
    pack(world, out, shards=SHARDS, progress=lambda done, total: seen.append((done, total)))
    assert written == ["pretraining-train_media.array_record-00002-of-00003"]
    assert seen[-1][0] == seen[-1][1]
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in packed.iterdir())
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_is_overwritten(world, packed, tmp_path):
    before = (packed / "packed.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="is there already"):
        pack(world, packed)
    assert (packed / "packed.json").stat().st_mtime_ns == before
    (tmp_path / ".out.packing").mkdir()
    (tmp_path / ".out.packing" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="in the way"):
        pack(world, tmp_path / "out", tasks=("kinetics",))
    assert (tmp_path / ".out.packing" / "mine.txt").read_text() == "keep"


def test_records_without_their_files_are_left_out_counted_and_told(world, tmp_path, caplog):
    some = Path(shutil.copytree(world, tmp_path / "some"))
    clips = sorted((some / "kinetics" / "clips").iterdir())
    clips[0].unlink()
    with caplog.at_level(logging.WARNING):
        manifest = pack(some, tmp_path / "out", tasks=("kinetics",), shards=1)
    assert manifest.left_out == {"train_kinetics": 1}
    assert f"left out of train_kinetics: {clips[0]}: No such file" in caplog.text
    assert len(PackedRecords(tmp_path / "out", "kinetics")) == len(clips) - 1
    clips[1].write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of \d+ records are bad, wanted at most 1.00%"):
        pack(some, tmp_path / "more", tasks=("kinetics",))
    assert not (tmp_path / "more").exists() and not list(tmp_path.glob(".*"))


def test_the_verbs_pack_and_tell(world, tmp_path, capsys):
    args = ["data", "pack", str(world), str(tmp_path / "out")]
    assert cli.main([*args, "--tasks", "vis", "kinetics", "--shards", "2"]) == 0
    out, err = capsys.readouterr()
    assert cli.main(["data", "info", str(tmp_path / "out"), "--check"]) == 0
    again, _ = capsys.readouterr()
    assert again == out + "all checksums hold\n" and err == ""
    assert [line.split()[0] for line in out.splitlines()] == [
        "split", "train_vis", "train_kinetics", "train_media"
    ]  # fmt: skip
    for wrong, said in (
        (args, "is there already"),
        ([*args[:3], str(tmp_path / "o"), "--split", "val"], "no annotations of split 'val'"),
        ([*args[:3], str(tmp_path / "o"), "--tasks", "viss"], "task 'viss'"),
        (["data", "info", str(world)], "not a packed data set"),
    ):
        assert cli.main(wrong) == 2
        assert said in capsys.readouterr().err


def test_all_tasks_of_a_folder_are_found(world):
    assert tasks_in(world, "train") == SHOWN and tasks_in(world, "val") == []


def test_masks_of_every_form_come_back_as_they_were():
    row = Referred(
        (Path("/home/me/coco/1.jpg"),), "the \u732b", ([[0.5, 0, 4, 0, 4, 4]], {"size": [2, 2], "counts": [4]}),
        None, "/home/me/coco/train.json: image 1", (2, 2),
    )  # fmt: skip
    told = json.loads(json.dumps(plain(row, Path("/home/me"))))
    assert "/home" not in str(told)
    file = PackedFile("coco/1.jpg", bytes)
    back = restored(Referred, told, lambda name: PackedFile(name, bytes))
    assert back == dataclasses.replace(row, frames=(file,), where="coco/train.json: image 1")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", SHOWN)
def test_samples_are_bit_for_bit_those_of_the_files(name, train, world, packed):
    """Frames, labels and masks of each of the six kinds, with all that is drawn at random."""

    def tokens(text):
        return np.frombuffer(text.encode().ljust(64, b"_")[:64], np.uint8).astype(np.int32)

    taken = []
    for folder in (world, packed):
        task = open_tasks(folder, tokens=tokens, frames=4, size=32, train=train)[NAMES[name]]
        data = batches(task.data(threads=1), batch_size=2, seed=5)
        taken.append(([next(data) for _ in range(2)], task.labels, task.kind, data.skipped))
        data.close()
    (plain, *facts), (other, *again) = taken
    assert facts == again and facts[-1] == 0
    for one, two in zip(plain, other, strict=True):
        assert one.keys() == two.keys() and one["frames"].std() > 0
        for key in one:
            np.testing.assert_array_equal(one[key], two[key], strict=True)
