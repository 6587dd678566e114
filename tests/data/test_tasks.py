"""All six tasks of a written world: shapes, values, evaluation; and bad records among good ones."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from PIL import Image

from streamjax.data import samples
from streamjax.data.annotations.files import BadRow
from streamjax.data.annotations.masks import Instance, Instances, class_map, referred_masks
from streamjax.data.annotations.moments import LocalizedVideo, Moment, frame_labels, is_inside
from streamjax.data.annotations.videos import Action, Captioned
from streamjax.data.packing import pack
from streamjax.data.pipeline import DataConfig, batches
from streamjax.data.tasks import NAMES, open_records, open_tasks
from streamjax.data.video import read_frames, write_video
from streamjax.data.world import WorldConfig
from streamjax.data.world_files import write_world
from streamjax.errors import InputError

SIZE, FRAMES, CLIPS = 32, 6, 3
TASKS = ("kinetics", "retrieval", "grounding", "localization", "vis", "refvos")


def tokens(text: str) -> np.ndarray:
    """The characters' numbers, so that a row tells its text."""
    row = np.ones(64, np.int32)
    row[: len(text)] = [ord(c) for c in text[:64]]
    return row


def text_of(row: np.ndarray) -> str:
    return "".join(chr(i) for i in row if i != 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(height=40, width=48, seconds=(8, 9), events=(2, 2), things=(2, 2))
    write_world(folder, "train", CLIPS, config, tasks=TASKS)
    return folder


@pytest.fixture
def open_world(world):
    return functools.partial(open_tasks, world, tokens=tokens, frames=FRAMES, size=SIZE)


WANTED = {
    "Kinetics": {"label": ()},
    "TaskRetrieval": {"text": (64,)},
    "TaskGrounding": {"text": (64,), "inside": (FRAMES,)},
    "TaskLocalization": {"classes": (FRAMES,), "dataset": ()},
    "TaskVIS": {"classes": (FRAMES, SIZE, SIZE), "dataset": (), "choices": None},
    "TaskReferVOS": {"text": (64,), "mask": (FRAMES, SIZE, SIZE)},
}
TYPES = {"frames": np.uint8, "inside": np.uint8, "mask": np.uint8, "shown": np.uint8}


@pytest.mark.parametrize("augment", [True, False])
def test_every_task_gives_samples_of_one_shape(open_world, augment):
    tasks = open_world(augment=augment)
    assert list(tasks) == list(WANTED)
    for name, task in tasks.items():
        task = pickle.loads(pickle.dumps(task))  # as workers get it
        batch = next(batches(task.data(), batch_size=3, seed=0))
        assert batch.keys() == {"frames", *WANTED[name]}
        assert batch["frames"].shape == (3, FRAMES, SIZE, SIZE, 3)
        assert batch["frames"].std() > 5
        for key, shape in WANTED[name].items():
            assert batch[key].dtype == TYPES.get(key, np.int32), (name, key)
            if shape is not None:
                assert batch[key].shape == (3, *shape)


def test_labels_are_those_of_the_records(open_world, rng):
    tasks = open_world(augment=False)
    for record in (task := tasks["Kinetics"]).source():
        assert task.labels["kinetics"][record.label] == task.transform(record, rng)["label"]
    for record in (task := tasks["TaskRetrieval"]).source():
        drawn = {text_of(task.transform(record, rng)["text"]) for _ in range(12)}
        assert drawn <= {c[:64] for c in record.captions} and len(drawn) > 1
    for record in (task := tasks["TaskGrounding"]).source():
        sample = task.transform(record, rng)
        assert text_of(sample["text"]) == record.text
    for record in (task := tasks["TaskLocalization"]).source():
        classes = task.transform(record, rng)["classes"]
        assert set(classes.tolist()) <= {-1, record.label_id}
    sizes = {name: len(ids) for name, ids in tasks["TaskVIS"].labels.items()}
    for record in (task := tasks["TaskVIS"]).source():
        sample = task.transform(record, rng)
        known = {0, *(i.label_id for i in record.instances)}
        assert set(np.unique(sample["classes"]).tolist()) <= known
        assert sample["choices"].tolist() == list(range(sizes["World"]))
    assert len(tasks["TaskReferVOS"].source()) > CLIPS


def test_evaluation_is_without_chance_and_tells_times(open_world):
    tasks = open_world(train=False)
    for task in tasks.values():
        record = task.source()[0]
        one, two = (task.transform(record, np.random.default_rng(i)) for i in range(2))
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    task = tasks["TaskGrounding"]
    moment = task.source()[0]
    sample = task.transform(moment, np.random.default_rng(0))
    assert sample["times"][0] == 0 and (np.diff(sample["times"]) > 0.5).all()
    np.testing.assert_array_equal(sample["inside"], is_inside(moment, sample["times"]))
    task = tasks["TaskLocalization"]
    video = task.source()[0]
    assert isinstance(video, LocalizedVideo) and len(task.source()) == CLIPS
    (first, *_) = video.moments
    other = dataclasses.replace(
        first,
        label_id=(first.label_id + 1) % len(task.labels["World"]),
        start=0.0,
        end=8.0,
        windows=(),
    )
    video = dataclasses.replace(video, moments=(*video.moments, other))
    sample = task.transform(video, np.random.default_rng(0))
    assert sample["shown"].shape == (FRAMES, len(task.labels["World"]))
    for moment in video.moments:
        here = frame_labels(moment, sample["times"]) >= 0
        assert here.any() and sample["shown"][here, moment.label_id].all()


def test_maps_are_of_the_frames_that_are_shown(open_world, rng):
    """Evaluation's frames of a video with one frame per wanted one are that frame's own maps."""
    for name in ("TaskVIS", "TaskReferVOS"):
        task = dataclasses.replace(open_world(train=False)[name])
        record = task.source()[0]
        maker = dataclasses.replace(task.transform, frames=len(record.frames), size=40)
        sample = maker(record, rng)
        if name == "TaskVIS":
            maps = [class_map(record, i) for i in range(len(record.frames))]
            np.testing.assert_array_equal(sample["classes"], np.stack(maps)[:, :, 4:44])
        else:
            maps = referred_masks(record, range(len(record.frames)))
            np.testing.assert_array_equal(sample["mask"], maps[:, :, 4:44])


def test_grounding_labels_follow_the_frames_that_were_drawn(tmp_path, rng):
    """The grey of a frame tells its number, so its label can be reckoned."""
    grey = np.broadcast_to(
        (2 * np.arange(100, dtype=np.uint8))[:, None, None, None], (100, 32, 32, 3)
    )
    write_video(tmp_path / "v.mp4", grey, 5, crf=1)
    moment = Moment(tmp_path / "v.mp4", "it is bright", 10.0, 14.0, (), "D")
    for around in (True, False):
        maker = samples.Grounding(tokens=tokens, frames=8, size=32, augment=False, around=around)
        sample = maker(moment, rng)
        index = np.round(sample["frames"].mean((1, 2, 3)) / 2)
        np.testing.assert_array_equal(sample["inside"], (index >= 50) & (index <= 70))
        if around:
            assert index.min() >= 40 and index.max() <= 80


def test_files_and_their_bytes_give_the_same_sample(world, open_world):
    task = open_world()["TaskGrounding"]
    record = task.source()[0]
    packed = dataclasses.replace(record, video=record.video.read_bytes())
    a, b = (task.transform(r, np.random.default_rng(3)) for r in (record, packed))
    np.testing.assert_array_equal(a["frames"], b["frames"])


def test_a_packed_folder_gives_the_same_samples(world, open_world, tmp_path):
    pack(world, tmp_path / "packed", splits=("train",))
    packed = open_tasks(tmp_path / "packed", tokens=tokens, frames=FRAMES, size=SIZE)
    for name, task in open_world().items():
        assert packed[name].labels == task.labels
        records = task.source(), packed[name].source()
        assert len(records[0]) == len(records[1])
        a, b = (task.transform(r[1], np.random.default_rng(2)) for r in records)
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key])


def test_what_is_kept_in_memory_changes_nothing(open_world):
    kept = open_world(keep=True)
    for name, task in open_world().items():
        record = task.source()[0]
        for seed in range(3):
            a, b = (t.transform(record, np.random.default_rng(seed)) for t in (task, kept[name]))
            for key, value in a.items():
                np.testing.assert_array_equal(value, b[key])


# flags


def test_sides(tmp_path):
    ramp = np.broadcast_to(
        np.arange(0, 240, 5, dtype=np.uint8)[None, None, :, None], (8, 32, 48, 3)
    )
    write_video(tmp_path / "v.mp4", ramp, 5, crf=1)

    def turned(maker, record) -> bool:
        seen = set()
        for seed in range(8):
            frame = maker(record, np.random.default_rng(seed))["frames"][0].mean((0, 2))
            seen.add(bool(frame[0] > frame[-1]))
        return True in seen

    sided = Captioned(tmp_path / "v.mp4", ("she goes Left",), "MSVD", None)
    plain = Captioned(tmp_path / "v.mp4", ("she cleft it",), "MSVD", None)
    for mirror_sides in (True, False):
        maker = samples.Retrieval(tokens=tokens, frames=2, size=32, mirror_sides=mirror_sides)
        assert turned(maker, plain) and turned(maker, sided) is mirror_sides


def picture(tmp_path, label_id: int, dataset: str = "COCOPseudoVIS", **changes) -> Instances:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(path)
    mask = [[10, 10, 30, 10, 30, 30, 10, 30]]
    found = Instances((path,), 40, 40, (Instance(label_id, (mask,)),), "x", dataset, True)
    return dataclasses.replace(found, **changes)


def test_the_first_class_of_coco(tmp_path, rng):
    """Upstream takes "person", its number 0, for background; shifted it is learned."""
    for shift, wanted in ((False, {0}), (True, {0, 1})):
        maker = samples.Segmentation(
            sizes={"COCOPseudoVIS": 80 + shift}, frames=3, size=32, shift_coco=shift
        )
        sample = maker(picture(tmp_path, 0), rng)
        assert set(np.unique(sample["classes"]).tolist()) == wanted
    turned = sample["frames"]
    assert not (turned[0] == turned[1]).all()  # each copy on its own


def test_shifted_labels_of_coco(world, tmp_path):
    (tmp_path / "vis").mkdir()
    (tmp_path / "vis" / "train_COCOPseudoVIS.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "vis" / "label2id.json").write_text('{"COCOPseudoVIS": {"person": 0, "dog": 1}}')
    for shift, wanted in ((False, ["person", "dog"]), (True, ["background", "person", "dog"])):
        task = open_tasks(tmp_path, tokens=tokens, shift_coco=shift)["TaskVIS"]
        assert list(task.labels["COCOPseudoVIS"]) == wanted
        assert list(task.labels["COCOPseudoVIS"].values()) == list(range(len(wanted)))


@pytest.mark.parametrize("parity", ["fixed", "upstream"])
def test_more_than_a_hundred_classes(tmp_path, parity):
    maker = samples.Segmentation(sizes={"Few": 41, "LVVIS": 110}, frames=2, size=32, parity=parity)
    zeros = 0
    for seed in range(20):
        sample = maker(picture(tmp_path, 7, "LVVIS"), np.random.default_rng(seed))
        choices = sample["choices"]
        assert sample["dataset"] == 1 and choices.shape == (100,) and choices[0] == 7
        assert len(set(choices.tolist())) == 100 and choices.min() >= 0 and choices.max() < 110
        zeros += 0 in choices
    assert zeros == 0 if parity == "fixed" else zeros > 10
    few = maker(picture(tmp_path, 7, "Few"), np.random.default_rng(0))["choices"]
    assert few.tolist() == [*range(41), *[-1] * 59]


# bad records


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "good.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (20, 32, 40, 3), np.uint8), 5)
    return path


def bad_records(tmp_path, clip):
    """(maker, good record, bad record, what is said)"""
    (empty := tmp_path / "empty.mp4").write_bytes(b"")
    (broken := tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:900])
    (text := tmp_path / "text.mp4").write_text("no video")
    act = samples.Recognition(frames=2, size=16)
    say = samples.Retrieval(tokens=tokens, frames=2, size=16)
    ground = samples.Grounding(tokens=tokens, frames=2, size=16)
    local = samples.Localization(sizes={"HACS": 2}, frames=2, size=16)
    paint = samples.Segmentation(sizes={"YoutubeVIS": 5}, frames=2, size=16)
    action, caption = Action(clip, "run", 0), Captioned(clip, ("a dog",), "MSVD", None)
    moment = Moment(clip, "a dog", 1.0, 2.0, (), "HACS", 0)
    objects = picture(tmp_path, 3, "YoutubeVIS")
    new = dataclasses.replace
    return [
        (act, action, new(action, video=tmp_path / "no.mp4"), "no such file"),
        (act, action, new(action, video=empty), "is empty"),
        (act, action, new(action, video=broken), "broken.mp4"),
        (act, action, new(action, video=text), "text.mp4"),
        (act, action, new(action, video=b"no video"), "not a readable video"),
        (act, action, new(action, label=" "), "its label is empty"),
        (act, action, BadRow("train.csv: line 3: label 'swim' is not one of"), "line 3: label"),
        (act, action, moment, "record is Moment; wanted Action"),
        (say, caption, new(caption, captions=("",)), "its caption is empty"),
        (ground, moment, new(moment, start=2.0, end=1.0), "ends at 1 s, before it starts at 2 s"),
        (ground, moment, new(moment, windows=((3.0, 1.0),)), "before it starts at 3 s"),
        (ground, moment, new(moment, start=9.0, end=12.0), "9 to 12 s, outside of the video's 4.00"),
        (ground, moment, new(moment, text=""), "its text is empty"),
        (local, moment, new(moment, dataset="Other"), "labels are known of ['HACS']"),
        (local, moment, new(moment, label_id=2), "class 2 of HACS, which has 2"),
        (paint, objects, new(objects, height=20), "mask"),
        (paint, objects, new(objects, height=20, width=20), "masks are 20x20, but its frames 40x40"),
        (paint, objects, picture(tmp_path, 7, "YoutubeVIS"), "class 7 of YoutubeVIS, which has 5"),
        (paint, objects, new(objects, instances=(Instance(3, (None,)),)), "no object has a mask"),
        (paint, objects, new(objects, frames=(tmp_path / "no.png",)), "no such file"),
    ]  # fmt: skip


def test_bad_records_are_skipped_and_counted_with_the_reason(tmp_path, clip, caplog):
    for maker, good, bad, said in bad_records(tmp_path, clip):
        caplog.clear()
        config = DataConfig(source=lambda: [good, bad], transform=maker, shuffle=False, max_bad=1.0)  # noqa: B023
        stream = batches(config, batch_size=2, seed=0)
        assert len(next(stream)["frames"]) == 2
        assert stream.skipped == 1, said
        (record,) = caplog.records
        assert said in record.message and "InputError" in record.message, record.message
        assert "\n" not in record.message


def test_too_many_bad_records_end_the_run(tmp_path, clip):
    maker = samples.Recognition(frames=2, size=16)
    records = [Action(clip, "run", 0), Action(tmp_path / "no.mp4", "run", 0)]
    stream = batches(DataConfig(source=lambda: records, transform=maker), batch_size=1, seed=0)
    with pytest.raises(InputError, match="samples are bad, wanted at most"):
        for _ in range(10):
            next(stream)


def test_rows_that_cannot_be_read_are_counted_too(world, tmp_path, clip):
    home = tmp_path / "kinetics"
    home.mkdir()
    (home / "label2id.json").write_text('{"run": 0}')
    (home / "train.csv").write_text("a.mp4,run\nb.mp4,swim\nc.mp4,\nd.mp4,run,1\n../e.mp4,run\n")
    records = open_records(tmp_path, "kinetics", "train")
    assert [isinstance(r, BadRow) for r in records] == [False, True, True, True, True]
    said = ["label 'swim' is not one of", "label is empty", "3 cells; wanted 2", "leaves"]
    for record, words in zip(records[1:], said, strict=True):
        assert words in record.reason and "train.csv: line" in record.reason


def test_a_short_video_is_not_bad(tmp_path):
    write_video(tmp_path / "v.mp4", np.zeros((3, 24, 24, 3), np.uint8), 5)
    maker = samples.Recognition(size=16)
    sample = maker(Action(tmp_path / "v.mp4", "run", 0), np.random.default_rng(0))
    assert sample["frames"].shape == (16, 16, 16, 3)
    assert len(read_frames(tmp_path / "v.mp4", [2])) == 1


def test_a_folder_without_the_split(world):
    with pytest.raises(InputError, match="no annotations of split 'val'"):
        open_tasks(world, "val", tokens=tokens)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_tasks(world / "nowhere", "val", tokens=tokens)
    assert set(NAMES) >= set(TASKS)
