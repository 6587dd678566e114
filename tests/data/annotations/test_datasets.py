"""Every data set of the published run: a hand-made file in its released form, read and sampled."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamjax.data import rle, samples
from streamjax.data.annotations.layout import read_task
from streamjax.data.annotations.moments import is_inside
from streamjax.data.video import write_video

MOMENTS = "video_id,start_second,end_second,text,relevant_windows,dataset\n"
REFERRED = "video_id,text,frames,length,obj_id,anno_id\n"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (20, 24, 32, 3), np.uint8), 5)
    return path.read_bytes()


def tokens(text: str) -> np.ndarray:
    return np.full(64, len(text), np.int32)


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def table(folder: Path, task: str, text: str, labels: dict | None = None) -> None:
    put(folder / task / "train.csv", text)
    if labels is not None:
        put(folder / task / "label2id.json", json.dumps(labels))


def good(folder: Path, task: str) -> list:
    found = read_task(folder, task, "train")
    assert not found.bad
    return found.records


@pytest.mark.parametrize(
    ("task", "row", "label"),
    [
        ("kinetics", "train/abseiling/0347ZoDXyP0_000095_000105.mp4,abseiling", "abseiling"),
        (
            "ssv2",
            '20bn-something-something-v2/78687.webm,"Holding something, next to something"',
            "Holding something, next to something",
        ),
        ("ssv2", "74225.mp4,Spinning [something] that quickly stops", None),
    ],
)
def test_k400_and_ssv2(tmp_path, clip, rng, task, row, label):
    label = label or "Spinning [something] that quickly stops"
    table(tmp_path, task, row + "\n", {"zumba": 0, label: 1})
    (record,) = good(tmp_path, task)
    assert (record.label, record.label_id) == (label, 1)
    put(record.video, clip)
    sample = samples.Recognition(frames=4, size=16)(record, rng)
    assert sample["label"] == 1 and sample["frames"].shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    ("row", "file", "captions"),
    [
        ('video9770,"[\'a person is connecting something\', ""the man\'s radio""]",MSRVTT',
         "MSRVTT/video9770.mp4", 2),
        ("mv89psg6zh4_33_46,['a bird is bathing in a sink'],MSVD",
         "MSVD/mv89psg6zh4_33_46.avi", 1),
        ("v_QOlSCBRmfWY,\"['A woman starts the video. She pours milk, then stirs.']\",ActivityNet",
         "ActivityNet/v_QOlSCBRmfWY.mp4", 1),
        ("12090392@N02_13482799053_87ef417396.mp4,['a dog jumps'],DiDeMo",
         "DiDeMo/12090392@N02_13482799053_87ef417396.mp4", 1),
        ("0001_American_Beauty/0001_American_Beauty_00.00.51.926,['He looks away.'],LSMDC",
         "LSMDC/0001_American_Beauty/0001_American_Beauty_00.00.51.926.avi", 1),
        ("Ptf_2VRj-V0_000122_000132,\"['A man cooks.', 'Someone fries eggs.']\",VATEX",
         "VATEX/Ptf_2VRj-V0_000122_000132.mp4", 2),
    ],
)  # fmt: skip
def test_retrieval(tmp_path, clip, rng, row, file, captions):
    table(tmp_path, "retrieval", f"video_id,text,dataset\n{row}\n")
    put(tmp_path / "videos" / file, clip)
    (record,) = good(tmp_path, "retrieval")
    assert record.video == tmp_path / "videos" / file and len(record.captions) == captions
    assert record.seconds == (30.0 if record.dataset == "DiDeMo" else None)
    for train in (True, False):
        sample = samples.Retrieval(tokens=tokens, frames=4, size=16, train=train)(record, rng)
        assert sample["text"][0] in {len(c) for c in record.captions}


@pytest.mark.parametrize(
    ("row", "file", "windows"),
    [
        ("3MSZA,0.5,3.2,person turn a light on.,[],CharadesSTA", "CharadesSTA/3MSZA.mp4", 0),
        ('NUsG9BgSes0_210.0_360.0,0.0,4.0,A vlogger talks,"[[0, 1], [3, 4]]",QVHighlights',
         "QVHighlights/NUsG9BgSes0_210.0_360.0.mp4", 2),
        ("s13-d21,1.36,2.65,He took out a cutting board,[],TaCoS",
         "TaCoS/s13-d21-cam-002.avi", 0),
        ('v_bXdq2zI1Ms0,0.83,3.86,"Three men are standing, and talk.",[],ActivityNetCaptions',
         "ActivityNetCaptions/v_bXdq2zI1Ms0.mp4", 0),
        ('12090392@N02_1.mp4,0.0,5.0,last moment,"[[0.0, 5.0]]",DiDeMo',
         "DiDeMo/12090392@N02_1.mp4", 1),
        ("video-xYz,2.5,3.5,a hand opens a box,[],QuerYD", "QuerYD/video-xYz.mp4", 0),
    ],
)  # fmt: skip
def test_grounding(tmp_path, clip, rng, row, file, windows):
    table(tmp_path, "grounding", f"{MOMENTS}{row}\n")
    put(tmp_path / "videos" / file, clip)
    (record,) = good(tmp_path, "grounding")
    assert record.video == tmp_path / "videos" / file and len(record.windows) == windows
    sample = samples.Grounding(tokens=tokens, frames=8, size=16, train=False)(record, rng)
    np.testing.assert_array_equal(sample["inside"], is_inside(record, sample["times"]))
    assert sample["inside"].sum() > 0


@pytest.mark.parametrize(
    ("row", "file"),
    [
        ('GXGqpxDzuI0,0.5,2.0,Surfing,"[[0.5, 2.0]]",HACS', "HACS/v_GXGqpxDzuI0.mp4"),
        ('V_0000003,1.0,3.0,hug,"[[1.0, 1.5], [2.5, 3.0]]",FineAction', "FineAction/V_0000003.mp4"),
        ("v_dOlnbWRhfXw,0.0,2.0,Shaving,[],ActivityNet", "ActivityNet/v_dOlnbWRhfXw.mp4"),
    ],
)
def test_localization(tmp_path, clip, rng, row, file):
    labels = {
        "HACS": {"Archery": 0, "Surfing": 1},
        "FineAction": {"open door": 0, "hug": 1},
        "ActivityNet": {"Polo": 0, "Shaving": 1},
    }
    table(tmp_path, "localization", f"{MOMENTS}{row}\n", labels)
    put(tmp_path / "videos" / file, clip)
    (record,) = good(tmp_path, "localization")
    assert record.video == tmp_path / "videos" / file and record.label_id == 1
    maker = samples.Localization(sizes={k: len(v) for k, v in labels.items()}, frames=8, size=16)
    sample = maker(record, rng)
    assert set(sample["classes"].tolist()) == {-1, 1}
    assert list(labels)[sample["dataset"]] == record.dataset


# masks: the three forms of COCO, which each of the data sets may use

SQUARE = np.zeros((24, 32), bool)
SQUARE[4:15, 6:21] = True
COUNTS = [6 * 24 + 4, *[11, 13] * 14, 11, 9 + 11 * 24]
FORMS = {
    "compressed": rle.encode(SQUARE),
    "uncompressed": {"size": [24, 32], "counts": COUNTS},
    "polygons": [[5.5, 3.5, 20.5, 3.5, 20.5, 14.5, 5.5, 14.5]],
}


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / name)


def segmented(folder: Path, dataset: str, content: dict, labels: dict) -> list:
    put(folder / "vis" / f"train_{dataset}.json", json.dumps(content))
    put(folder / "vis" / "label2id.json", json.dumps({dataset: labels}))
    return good(folder, "vis")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dataset", ["YoutubeVIS", "LVVIS"])
def test_video_instances(tmp_path, rng, dataset, form):
    frames = [f"0043f083b5/{i:05d}.jpg" for i in (0, 5, 10)]
    pictures(tmp_path / "vis" / "frames" / dataset, *frames)
    content = {
        "videos": [
            {"id": 9, "file_names": frames[:1], "length": 1, "height": 24, "width": 32},
            {"id": 4, "file_names": frames, "length": 3, "height": 24, "width": 32},
            {"id": 2, "file_names": frames, "length": 3, "height": 24, "width": 32},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "giant_panda"}],
        "annotations": [
            {"id": 1, "video_id": 9, "category_id": 1, "segmentations": [FORMS[form]]},
            {"id": 2, "video_id": 4, "category_id": 2, "iscrowd": 0, "bboxes": [None] * 3,
             "segmentations": [FORMS[form], None, FORMS[form]]},
        ],
    }  # fmt: skip
    labels = {"background": 0, "person": 1, "giant_panda": 2}
    records = segmented(tmp_path, dataset, content, labels)
    assert [len(r.frames) for r in records] == [3, 1]  # by id; one has no annotation (Q19)
    maker = samples.Segmentation(sizes={dataset: 3}, frames=3, size=24, augment=False)
    sample = maker(records[0], rng)
    counts = (sample["classes"] == 2).sum((1, 2))
    assert counts[1] == 0 and counts[0] == counts[2] == SQUARE[:, 4:28].sum()
    assert sample["choices"].tolist() == [0, 1, 2]


def test_numbers_without_names_are_classes(tmp_path):
    """Released files may list no categories: then a category's number is its class."""
    pictures(tmp_path / "vis" / "frames", "a/0.jpg")
    content = {
        "videos": [{"id": 1, "file_names": ["a/0.jpg"], "height": 24, "width": 32}],
        "annotations": [{"video_id": 1, "category_id": 2, "segmentations": [FORMS["compressed"]]}],
    }
    labels = {"background": 0, "person": 1, "dog": 2}
    (record,) = segmented(tmp_path, "LVVIS", content, labels)
    assert record.instances[0].label_id == 2
    del labels["dog"]
    put(tmp_path / "vis" / "label2id.json", json.dumps({"LVVIS": labels}))
    found = read_task(tmp_path, "vis", "train")
    assert not found.records and "category_id 2; label2id has 2" in found.bad[0].reason


@pytest.mark.parametrize("form", FORMS)
def test_coco(tmp_path, rng, form):
    pictures(tmp_path / "vis" / "frames", "000000000139.jpg")
    image = {"id": 139, "file_name": "000000000139.jpg", "height": 24, "width": 32}
    content = {
        "images": [image, {**image, "id": 285}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 139, "category_id": 18, "iscrowd": 0, "segmentation": FORMS[form]}
        ],
    }
    (record,) = segmented(tmp_path, "COCOPseudoVIS", content, {"person": 0, "dog": 1})
    assert record.picture and record.dataset == "COCOPseudoVIS"
    maker = samples.Segmentation(sizes={"COCOPseudoVIS": 2}, frames=3, size=24)
    sample = maker(record, rng)
    assert sample["frames"].shape == (3, 24, 24, 3) and set(np.unique(sample["classes"])) == {0, 1}
    assert (sample["classes"][0] != sample["classes"][1]).any()


def test_mevis(tmp_path, rng):
    names = ["00000", "00001"]
    pictures(tmp_path / "refvos" / "frames", *(f"cc7c3138780f/{n}.jpg" for n in names))
    put(tmp_path / "refvos" / "masks" / "812.json", json.dumps([FORMS["compressed"], None]))
    put(tmp_path / "refvos" / "masks" / "813.json", json.dumps([None, None]))
    row = f'cc7c3138780f,The cows that walk,"{names}",2,"[3, 4]","[812, 813]"\n'
    put(tmp_path / "refvos" / "train_MEVIS.csv", REFERRED + row)
    (record,) = good(tmp_path, "refvos")
    sample = samples.Referring(tokens=tokens, frames=2, size=24, augment=False)(record, rng)
    assert sample["mask"].sum((1, 2)).tolist() == [SQUARE[:, 4:28].sum(), 0]


def test_refer_youtube_vos(tmp_path, rng):
    """Its masks are palette pictures, one a frame, and the frame that is sampled counts (Q15)."""
    names = [f"{5 * i:05d}" for i in range(6)]
    pictures(tmp_path / "refvos" / "frames", *(f"003234408d/{n}.jpg" for n in names))
    for i, name in enumerate(names):
        indices = np.zeros((24, 32), np.uint8)
        indices[: i + 1, :] = 2
        path = tmp_path / "refvos" / "masks" / "003234408d" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(indices, "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(path)
    row = f'003234408d,a penguin on the left,"{names}",6,"[\'2\']","[\'1\']"\n'
    put(tmp_path / "refvos" / "train_ReferYoutubeVOS.csv", REFERRED + row)
    (record,) = good(tmp_path, "refvos")
    sample = samples.Referring(tokens=tokens, frames=3, size=24, train=False)(record, rng)
    assert (sample["mask"].sum((1, 2)) // 24).tolist() == [2, 4, 6]  # frames 1, 3, 5


def test_refer_coco(tmp_path, rng):
    pictures(tmp_path / "refvos" / "frames", "COCO_train2014_000000581857.jpg")
    image = {"id": 1, "file_name": "COCO_train2014_000000581857.jpg", "height": 24, "width": 32,
             "caption": "the lady with the blue shirt", "dataset_name": "refcoco"}  # fmt: skip
    content = {
        "images": [image, {**image, "id": 2, "caption": " "}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": i, "category_id": 1, "segmentation": FORMS["polygons"]} for i in (1, 2)
        ],
    }
    put(tmp_path / "refvos" / "train_ReferCOCOPseudo.json", json.dumps(content))
    found = read_task(tmp_path, "refvos", "train")
    (record,) = found.records
    assert "image 1: caption ' '" in found.bad[0].reason
    sample = samples.Referring(tokens=tokens, frames=3, size=24)(record, rng)
    assert sample["text"][0] == len(image["caption"]) and sample["mask"].any((1, 2)).all()
