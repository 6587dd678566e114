"""A folder of annotations is read task by task, every data set with its own classes and files."""

import json

import numpy as np
import pytest
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations.layout import read_task, tasks_in
from streamjax.data.annotations.masks import referred_masks
from streamjax.errors import InputError

MOMENTS = "video_id,start_second,end_second,text,relevant_windows,dataset\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def instances(category):
    mask = rle.encode(np.ones((2, 2), bool))
    return {
        "videos": [{"id": 1, "height": 2, "width": 2, "file_names": ["a/0.jpg"], "length": 1}],
        "categories": [{"id": 7, "name": category}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 7, "segmentations": [mask]}],
    }


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "ssv2/label2id.json", {"push": 0, "pull": 1})
    write(tmp_path / "ssv2/train.csv", "a.webm,pull\nb.webm,lift\n")
    write(tmp_path / "retrieval/val.csv", "video_id,text,dataset\n7,a dog,MSVD\n")
    write(
        tmp_path / "grounding/train.csv",
        MOMENTS + 'x,0,2,"it falls","[[0, 2]]",CharadesSTA\nx,0,2,"it falls","[[0, 2]]",DiDeMo\n',
    )
    (tmp_path / "videos" / "DiDeMo").mkdir(parents=True)
    write(tmp_path / "vis/label2id.json", {"LVVIS": {"cat": 0}, "YoutubeVIS": {"cat": 0, "dog": 1}})
    write(tmp_path / "vis/train_YoutubeVIS.json", instances("dog"))
    write(tmp_path / "vis/train_LVVIS.json", instances("cat"))
    (tmp_path / "vis/frames/LVVIS").mkdir(parents=True)
    row = "a,the dog,\"['0']\",1,\"['3']\",\"['9']\"\n"
    for name in ("MEVIS", "ReferYoutubeVOS"):
        write(
            tmp_path / f"refvos/train_{name}.csv",
            "video_id,text,frames,length,obj_id,anno_id\n" + row,
        )
    palette = Image.fromarray(np.array([[0, 3], [3, 0]], np.uint8), "P")
    palette.putpalette(list(range(256)) * 3)
    (tmp_path / "refvos/masks/ReferYoutubeVOS/a").mkdir(parents=True)
    palette.save(tmp_path / "refvos/masks/ReferYoutubeVOS/a/0.png")
    write(tmp_path / "refvos/masks/9.json", [rle.encode(np.ones((2, 2), bool))])
    return tmp_path


def test_tasks_of_a_split_are_found(folder):
    assert tasks_in(folder, "train") == ["ssv2", "grounding", "vis", "refvos"]
    assert tasks_in(folder, "val") == ["retrieval"]


def test_rows_that_are_none_are_told_beside_the_records(folder):
    found = read_task(folder, "ssv2", "train")
    assert [(r.video.name, r.label_id) for r in found.records] == [("a.webm", 1)]
    assert found.labels == {"ssv2": {"push": 0, "pull": 1}}
    assert len(found.bad) == 1 and "line 2: label 'lift'" in found.bad[0].reason


def test_a_data_set_may_have_a_folder_of_its_own(folder):
    charades, didemo = read_task(folder, "grounding", "train").records
    assert charades.video == folder / "videos/x.mp4"
    assert didemo.video == folder / "videos/DiDeMo/x.mp4"
    (row,) = read_task(folder, "retrieval", "val").records
    assert row.video == folder / "videos/7.avi"


def test_every_data_set_has_its_own_classes(folder):
    lvvis, youtube = read_task(folder, "vis", "train").records
    assert (lvvis.dataset, lvvis.instances[0].label_id) == ("LVVIS", 0)
    assert (youtube.dataset, youtube.instances[0].label_id) == ("YoutubeVIS", 1)
    assert lvvis.frames == (folder / "vis/frames/LVVIS/a/0.jpg",)
    assert youtube.frames == (folder / "vis/frames/a/0.jpg",)
    write(folder / "vis/train_Other.json", instances("cat"))
    with pytest.raises(InputError, match="dataset 'Other'; label2id has"):
        read_task(folder, "vis", "train")


def test_masks_are_pictures_or_runs(folder):
    mevis, youtube = read_task(folder, "refvos", "train").records
    assert referred_masks(mevis, [0]).all()
    assert referred_masks(youtube, [0]).tolist() == [[[False, True], [True, False]]]


def test_what_is_not_there_is_named(folder):
    with pytest.raises(InputError, match="wanted one of kinetics, ssv2"):
        read_task(folder, "tracking", "train")
    with pytest.raises(
        InputError, match=r"vis: no annotations of split 'test'; wanted test_<Dataset>"
    ):
        read_task(folder, "vis", "test")
