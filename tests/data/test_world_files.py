"""The embedded world as files: deterministic, disjoint, and read back by the real readers."""

import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest

from streamjax.data import world
from streamjax.data.annotations import files, masks, moments, streamo, videos
from streamjax.data.dialogue import to_stream
from streamjax.data.video import probe, video
from streamjax.data.world_dialogues import KINDS
from streamjax.data.world_files import DATASET, TASKS, read_manifest, write_world
from streamjax.errors import InputError

CONFIG = world.WorldConfig(height=48, width=64, seconds=(9, 12))
COUNT = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    calls = []
    write_world(path, "train", COUNT, CONFIG, progress=lambda *done: calls.append(done))
    assert calls == [(i + 1, COUNT) for i in range(COUNT)]
    write_world(path, "novel", 2, CONFIG, tasks=("streamo", "kinetics"), kinds=("narrate",))
    return path


def script_of(path) -> world.Script:
    split, index = path.stem.split("_")[:2]
    return world.write_script(CONFIG, split, int(index))


def seconds_of(script: world.Script) -> np.ndarray:
    return np.arange(script.seconds, dtype=float)


def annotation_bytes(folder) -> dict[str, str]:
    paths = [p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".jpg")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_manifest(folder):
    assert read_manifest(folder) == (CONFIG, {"novel": 2, "train": COUNT})


def test_records_are_read_and_become_dialogues(folder):
    records = streamo.read_records(folder / "streamo" / "train.json", root=folder / "videos")
    assert {r.content["kind"] for r in records} <= set(KINDS)
    assert len({r.content["kind"] for r in records}) >= len(KINDS) - 2
    states = set()
    for record in records:
        turns = script_of(record.video).seconds
        dialogue = to_stream(record.content, turns)
        assert dialogue is not None
        for message in dialogue["messages"]:
            states.add(message["content"].split(" ")[0].split("\n")[0])
    assert {"</Silence>", "</Standby>", "</Response>"} <= states


def test_videos_hold_the_rendered_frames(folder):
    path = folder / "videos" / "train_000000.mp4"
    script = script_of(path)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (script.frames, 48, 64)
    assert info.fps == CONFIG.fps
    truth = world.render(script, seconds_of(script))
    shown = np.stack(list(video(path, fps=1)))
    assert len(shown) == script.seconds  # one turn a second
    assert np.abs(shown.astype(int) - truth).mean() < 4


def test_actions(folder):
    labels = files.read_labels(folder / "kinetics" / "label2id.json")
    assert list(labels) == [world.VERBS[a] for a in CONFIG.actions]
    actions = videos.read_actions(
        folder / "kinetics" / "train.csv", labels, root=folder / "kinetics"
    )
    assert len(actions) == sum(
        len(world.write_script(CONFIG, "train", i).events) for i in range(COUNT)
    )
    for action in actions:
        event = script_of(action.video).events[int(action.video.stem.split("_")[2])]
        assert action.label == world.VERBS[event.action]
        first, stop = world.turns_of(event)
        assert probe(action.video).duration <= stop - first + 2
    novel = videos.read_actions(folder / "kinetics" / "novel.csv", labels, root=folder / "kinetics")
    assert len(novel) >= 2


def test_captions(folder):
    found = videos.read_captions(folder / "retrieval" / "train.csv", root=folder / "videos")
    assert len(found) == COUNT
    for row in found:
        script = script_of(row.video)
        assert all(world.sentence(script, e) in row.captions[0] for e in script.events)


def test_moments(folder):
    grounding = moments.read_grounding(folder / "grounding" / "train.csv", root=folder / "videos")
    labels = files.read_label_sets(folder / "localization" / "label2id.json")
    localized = moments.read_localization(
        folder / "localization" / "train.csv", labels, root=folder / "videos"
    )
    assert len(grounding) >= len(localized) >= COUNT
    for moment in grounding + localized:
        script = script_of(moment.video)
        shown = np.zeros(script.seconds, bool)
        for event in script.events:
            if moment.text in (world.sentence(script, event), world.VERBS[event.action]):
                shown[slice(*world.turns_of(event))] = True
        seconds = np.arange(script.seconds)
        np.testing.assert_array_equal(moments.is_inside(moment, seconds), shown)
        if moment.label_id >= 0:
            assert labels[DATASET][moment.text] == moment.label_id
            assert (moments.frame_labels(moment, seconds) == -1).tolist() == (~shown).tolist()


def test_instances(folder):
    labels = files.read_label_sets(folder / "vis" / "label2id.json")[DATASET]
    path = folder / "vis" / f"train_{DATASET}.json"
    clips = masks.read_instances(path, root=folder / "vis" / "frames", labels=labels)
    assert len(clips) == COUNT
    for clip in clips:
        script = script_of(clip.frames[0].parent)
        frames, truth = world.render_masks(script, seconds_of(script))
        stored = masks.read_pictures(clip.frames)
        assert np.abs(stored.astype(int) - frames).mean() < 3
        for second in (0, script.seconds // 2, script.seconds - 1):
            wanted = np.zeros((48, 64), int)
            for thing, mask in zip(script.things, truth[:, second], strict=True):
                wanted[mask] = labels[thing.name]
            wanted[world.lamp_mask(CONFIG)] = labels[
                f"{world.light_at(script, float(second))} light"
            ]
            np.testing.assert_array_equal(masks.class_map(clip, second), wanted)
    first = json.loads(path.read_text())["annotations"][0]
    shown = next(i for i, box in enumerate(first["bboxes"]) if box)
    left, top, width, height = first["bboxes"][shown]
    mask = masks.rle.decode(first["segmentations"][shown], 48, 64)
    assert mask.sum() == first["areas"][shown]
    inside = mask[int(top) : int(top + height), int(left) : int(left + width)]
    assert inside.sum() == mask.sum() and inside.any(1).all() and inside.any(0).all()


def test_referred(folder):
    rows = masks.read_referred(
        folder / "refvos" / f"train_{DATASET}.csv",
        root=folder / "refvos" / "frames",
        mask_root=folder / "refvos" / "masks",
    )
    groups = 0
    for row in rows:
        script = script_of(row.frames[0].parent)
        _, truth = world.render_masks(script, seconds_of(script))
        meant = {
            e.thing for e in script.events if row.text == f"everything that {world.VERBS[e.action]}"
        } or {i for i, thing in enumerate(script.things) if row.text == f"the {thing.name}"}
        groups += len(meant) > 1
        np.testing.assert_array_equal(
            masks.referred_masks(row, range(script.seconds)), truth[sorted(meant)].any(0)
        )
    assert len(rows) > 2 * COUNT


def test_splits_are_disjoint(folder):
    def shown(split, count):
        scripts = [world.write_script(CONFIG, split, i) for i in range(count)]
        return {
            (s.things[e.thing].name, e.action)
            for s in scripts
            for e in s.events
            if world.is_novel(CONFIG, s.things[e.thing], e.action)
        }

    assert not shown("train", 40) and not shown("test", 20) and shown("novel", 5)
    names = [p.name for p in folder.rglob("*.mp4")]
    assert len(names) == len(set(names))
    frames = {
        split: world.render(world.write_script(CONFIG, split, 0)).tobytes()
        for split in world.SPLITS
    }
    assert len(set(frames.values())) == len(world.SPLITS)


def test_same_config_same_bytes_whatever_the_workers(folder, tmp_path):
    write_world(tmp_path / "again", "train", COUNT, CONFIG, workers=2)
    write_world(tmp_path / "again", "novel", 2, CONFIG, tasks=("streamo", "kinetics"),
                kinds=("narrate",))  # fmt: skip
    assert annotation_bytes(tmp_path / "again") == annotation_bytes(folder)


def test_interrupted_and_made_again(tmp_path):
    def stop(done, count):
        if done == 1:
            raise KeyboardInterrupt

    small = dataclasses.replace(CONFIG, height=16, width=16, seed=3)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, "val", 2, small, tasks=("streamo",), progress=stop)
    assert not (tmp_path / "streamo").exists() and read_manifest(tmp_path)[1] == {}
    kept = tmp_path / "videos" / "val_000000.mp4"
    os.utime(kept, (1, 1))
    write_world(tmp_path, "val", 2, small, tasks=("streamo",), kinds=("narrate",), variants=3)
    assert kept.stat().st_mtime == 1  # not made twice
    found = streamo.read_records(tmp_path / "streamo" / "val.json", root=tmp_path / "videos")
    assert len(found) == 2  # one narration each: the variants are all the same
    assert not list(tmp_path.rglob(".*"))


def test_bad_calls(folder, tmp_path):
    for arguments, told in (
        (("trian", 1), "world split 'trian'; wanted one of train, val"),
        (("train", 0), "at least 1"),
    ):
        with pytest.raises(InputError, match=told):
            write_world(tmp_path, *arguments)
    with pytest.raises(InputError, match="world task 'dance'; wanted one of streamo"):
        write_world(tmp_path, "train", 1, tasks=("dance",))
    with pytest.raises(InputError, match="world kind 'riddle'"):
        write_world(tmp_path, "train", 1, kinds=("riddle",))
    with pytest.raises(InputError, match=r"holds a world with height=48, not 32"):
        write_world(folder, "train", 1, dataclasses.replace(CONFIG, height=32))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"world\.json: cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "world.json").write_text('{"config": {"hieght": 3}, "splits": {}}')
    with pytest.raises(InputError, match="not the manifest of a world"):
        read_manifest(tmp_path)
    (tmp_path / "world.json").write_text(
        json.dumps({"config": dataclasses.asdict(CONFIG), "fingerprint": "x", "splits": {}})
    )
    with pytest.raises(InputError, match="another version"):
        write_world(tmp_path, "train", 1, CONFIG)
    assert set(TASKS) >= {"streamo", "vis"}
