"""The readers of real data sets' files: what they give, and what they say of bad rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations import files, masks, moments, streamo, videos
from streamjax.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Writes a file of text, or of JSON, and gives its path."""

    def written(name: str, content) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path / name

    return written


def told(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


# Streamo's raw records

RECORD = {
    "video_path": "sub/a.mp4",
    "question": [{"content": "What?", "time": "5"}],
    "response": [{"content": "That.", "st_time": 1.0, "end_time": "00:03", "time": ""}],
    "kept": 1,
}


def test_records_of_a_list_or_one_object(write):
    (one,) = streamo.read_records(write("one.json", RECORD))
    assert one.video == Path("sub/a.mp4") and one.content == RECORD
    by_videos = {**RECORD, "video_path": "", "videos": ["b.mp4"]}
    several = streamo.read_records(write("list.json", [RECORD, by_videos]), root="/data")
    assert [r.video for r in several] == [Path("/data/sub/a.mp4"), Path("/data/b.mp4")]
    assert several[1].where.endswith("list.json: record 1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video_path": None}, "video_path None; wanted the video's path"),
        ({"video_path": "../../etc/passwd"}, "leaves /data"),
        ({"video_path": "/elsewhere/a.mp4"}, "leaves /data"),
        ({"question": None}, "question is missing"),
        ({"response": "none"}, "response is a str"),
        ({"response": ["none"]}, "response 0 is a str"),
        ({"response": [{"content": 3}]}, "response 0: content 3; wanted text"),
        ({"question": [{"content": "a", "time": [1]}]}, r"question 0: time [1]; wanted seconds"),
    ],
)
def test_bad_records_are_named(write, change, said):
    path = write("raw.json", [RECORD, {**RECORD, **change}])
    message = told(lambda: streamo.read_records(path, root="/data"))
    assert "raw.json: record 1" in message and said in message


def test_bad_records_may_be_told_and_left(write):
    bad = []
    path = write("raw.json", [3, RECORD, {**RECORD, "question": None}])
    (good,) = streamo.read_records(path, bad=bad)
    assert good.where.endswith("record 1")
    assert [row.reason.split(": ", 1)[1] for row in bad] == [
        "record 0: is a int; wanted an object",
        "record 2: question is missing; wanted a list of objects",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n{"b"', "line 2: not JSON"),
        ("", "line 1: not JSON"),
        ("[]", "holds no records"),
        ("3", "record 0: is a int"),
        ("[" * 100_000, "not"),
    ],
)
def test_corrupt_record_files(write, text, said):
    path = write("raw.json", text)
    message = told(lambda: streamo.read_records(path))
    assert "raw.json" in message and said in message


def test_missing_and_binary_files(tmp_path):
    assert "cannot be read" in told(lambda: streamo.read_records(tmp_path / "gone.json"))
    (tmp_path / "b.json").write_bytes(b'{"a": "\xff\xfe"}')
    assert "not UTF-8" in told(lambda: streamo.read_records(tmp_path / "b.json"))
    (tmp_path / "b.csv").write_bytes(b"a.mp4,x\n\xff\xfe,y\n")
    assert "not UTF-8" in told(lambda: videos.read_actions(tmp_path / "b.csv", {}, root="."))


# label maps


def test_label_maps_follow_their_order(write):
    assert files.read_labels(write("l.json", {"run": 0, "jump": 1})) == {"run": 0, "jump": 1}
    assert "'run' has id 1; wanted 0" in told(
        lambda: files.read_labels(write("l.json", {"run": 1, "jump": 0}))
    )
    assert "'a' has id False" in told(lambda: files.read_labels(write("l.json", {"a": False})))
    assert "holds nothing" in told(lambda: files.read_labels(write("l.json", {})))
    sets = {"HACS": {"run": 0}, "FineAction": {"sit": 0, "run": 1}}
    assert files.read_label_sets(write("s.json", sets)) == sets
    assert "FineAction: label" in told(
        lambda: files.read_label_sets(write("s.json", {"HACS": {"a": 0}, "FineAction": {"b": 2}}))
    )


# one label or caption per video


def test_actions(write):
    path = write("train.csv", 'a/1.mp4,run\n\n"b, c.webm","jump, twice"\n')
    found = videos.read_actions(path, {"run": 0, "jump, twice": 1}, root="/k400")
    assert found == [
        videos.Action(Path("/k400/a/1.mp4"), "run", 0),
        videos.Action(Path("/k400/b, c.webm"), "jump, twice", 1),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("b.mp4", "1 cells; wanted 2"),
        ("b.mp4,run,1", "3 cells; wanted 2"),
        ("b.mp4,swim", "label 'swim' is not one of the 1"),
        ("../b.mp4,run", "leaves /k400"),
        (",run", "path ''"),
        ('"b.mp4,run', "not a table"),
    ],
)
def test_bad_actions_are_named_by_line(write, row, said):
    path = write("train.csv", f"a.mp4,run\n{row}\n")
    message = told(lambda: videos.read_actions(path, {"run": 0}, root="/k400"))
    assert "train.csv" in message and "line " in message and said in message


def test_captions(write):
    path = write(
        "train.csv",
        "video_id,dataset,text\n"
        "v1,MSRVTT,\"['a dog', 'it''s a dog']\"\n"
        "v2,MSVD,['a cat']\n"
        "v3.mp4,LSMDC,['a man']\n"
        "v4,DiDeMo,['first']\n"
        "v5,WebVid,plain words\n",
    )
    found = videos.read_captions(path, root="/r")
    assert [c.video.name for c in found] == ["v1.mp4", "v2.avi", "v3.mp4", "v4.mp4", "v5.mp4"]
    assert found[0].captions == ("a dog", "its a dog") and found[4].captions == ("plain words",)
    assert [c.seconds for c in found] == [None, None, None, 30.0, None]
    roots = {c.dataset: f"/{c.dataset}" for c in found}
    several = videos.read_captions(path, root=roots)
    assert several[1].video == Path("/MSVD/v2.avi")
    assert "a root is given for ['MSVD']" in told(
        lambda: videos.read_captions(path, root={"MSVD": "/m"})
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("video_id,text\na,b\n", "line 1: columns ['video_id', 'text']; lacks ['dataset']"),
        ("", "line 1: columns []; lacks"),
        ("video_id,text,dataset\nv1,[],MSRVTT\n", "line 2: text '[]'; wanted at least one"),
        ("video_id,text,dataset\nv1,[oops,MSRVTT\n", "line 2: text '[oops'"),
        ('video_id,text,dataset\nv1,"[1, 2]",MSRVTT\n', "line 2: text '[1, 2]'"),
        ('video_id,text,dataset\nv1,"[__import__(0)]",MSRVTT\n', "wanted a list"),
    ],
)
def test_bad_captions(write, content, said):
    path = write("train.csv", content)
    assert said in told(lambda: videos.read_captions(path, root="/r"))


# moments

HEADER = "video_id,start_second,end_second,text,relevant_windows,dataset\n"


def test_grounding_and_its_frame_labels(write):
    path = write(
        "train.csv",
        HEADER
        + 'q1,2,4,a dog runs,"[[2, 4], [7, 8]]",QVHighlights\n'
        + "c1,3.5,1.5,she sits,[],CharadesSTA\n"
        + 't1,0,1,he cuts,"[[0.0, 1.0]]",TaCoS\n',
    )
    several, reversed_, tacos = moments.read_grounding(path, root="/g")
    assert [m.video.name for m in (several, reversed_, tacos)] == [
        "q1.mp4", "c1.mp4", "t1-cam-002.avi"]  # fmt: skip
    assert (reversed_.start, reversed_.end) == (3.5, 1.5)  # refused when its video is read
    times = np.arange(10)
    assert np.flatnonzero(moments.is_inside(several, times)).tolist() == [2, 3, 4, 7, 8]
    near = moments.is_inside(tacos, [-0.0049, -0.006, 1.004])
    assert near.tolist() == [True, False, True]


def test_localization(write):
    labels = {"HACS": {"surfing": 0, "sewing": 1}}
    path = write("train.csv", HEADER + 'x,1,2,sewing,"[[1, 2], [5, 6]]",HACS\n')
    (moment,) = moments.read_localization(path, labels, root="/l")
    assert moment.video == Path("/l/v_x.mp4") and moment.label_id == 1
    assert moments.frame_labels(moment, [0, 1, 3, 5]).tolist() == [-1, 1, -1, 1]
    path = write("train.csv", HEADER + "x,1,2,diving,[],HACS\n")
    assert "line 2: label 'diving'" in told(
        lambda: moments.read_localization(path, labels, root="/l")
    )
    path = write("train.csv", HEADER + "x,1,2,diving,[],Other\n")
    assert "label2id has ['HACS']" in told(
        lambda: moments.read_localization(path, labels, root="/l")
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("v,one,2,a,[],D", "start_second 'one'; wanted a number"),
        ("v,nan,2,a,[],D", "start_second 'nan'; wanted a number"),
        ("v,1,2,a,[[1]],D", "relevant window [1]"),
        ("v,1,2,a,soon,D", "relevant_windows 'soon'"),
        ("v,1,2,,[],D", "text is empty"),
        ("../v,1,2,a,[],D", "leaves /g"),
    ],
)
def test_bad_moments(write, row, said):
    path = write("train.csv", HEADER + "ok,1,2,a,[],D\n" + row + "\n")
    message = told(lambda: moments.read_grounding(path, root="/g"))
    assert "train.csv: line 3" in message and said in message


# masks


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def vis_file() -> dict:
    first, second = square(6, 8, 0, 0, 3), square(6, 8, 1, 1, 3)
    runs = {"size": [6, 8], "counts": [1, 3, 44]}
    return {
        "videos": [
            {"id": 7, "file_names": ["a/0.jpg", "a/1.jpg"], "length": 2},
            {"id": 9, "file_names": ["b/0.jpg"], "length": 1},
        ],
        "categories": [{"id": 4, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"video_id": 7, "category_id": 4, "height": 6, "width": 8,
             "segmentations": [rle.encode(first), None]},
            {"video_id": 7, "category_id": 2, "height": 6, "width": 8,
             "segmentations": [rle.encode(second), runs]},
            {"video_id": 7, "category_id": 4, "height": 6, "width": 8,
             "segmentations": [[[4.5, 2.5, 7.5, 2.5, 7.5, 5.5, 4.5, 5.5]], None]},
        ],
    }  # fmt: skip


def test_instances_and_their_class_map(write):
    path = write("train_YoutubeVIS.json", vis_file())
    (video,) = masks.read_instances(path, root="/f")  # video 9 has no annotation
    assert video.frames == (Path("/f/a/0.jpg"), Path("/f/a/1.jpg"))
    classes = masks.class_map(video, 0)
    wanted = np.zeros((6, 8), int)
    wanted[0:3, 0:3] = 4
    wanted[3:6, 5:8] = 4
    wanted[1:4, 1:4] = 2  # the category that appears later is painted over
    np.testing.assert_array_equal(classes, wanted)
    assert masks.class_map(video, 1).sum() == 3 * 2
    by_name = masks.read_instances(path, root="/f", labels={"none": 0, "cat": 1, "dog": 2})[0]
    assert [i.label_id for i in by_name.instances] == [2, 1, 2]


def test_coco_pictures_are_videos_of_one_frame(write):
    file = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 18, "segmentation": {"size": [4, 4], "counts": [0, 16]}}
        ],
    }
    (picture,) = masks.read_instances(write("train_COCOPseudoVIS.json", file), root="/c")
    assert picture.frames == (Path("/c/x.jpg"),)
    assert (masks.class_map(picture, 0) == 1).all()  # its place in the list


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"videos": None}, "'videos' is missing"),
        ({"annotations": [{"video_id": 3}]}, "annotation 0: belongs to 3"),
        ({"annotations": [{"category_id": 3}]}, "annotation 0: 'video_id' is missing"),
        ({"annotations": [{"video_id": 7, "category_id": 4, "segmentations": [None]}]},
         "annotation 0: 1 masks; wanted 2"),
        ({"annotations": [{"video_id": 7, "category_id": 5, "segmentations": [None, None]}]},
         "category_id 5 is not in the categories"),
        ({"annotations": [{"video_id": 7, "category_id": 4, "segmentations": [None, None]}]},
         "video 0: 'height' is missing"),
        ({"videos": [{"id": 7, "file_names": ["../a.jpg"]}]}, "leaves /f"),
    ],
)  # fmt: skip
def test_bad_instances(write, change, said):
    path = write("train_LVVIS.json", {**vis_file(), **change})
    message = told(lambda: masks.read_instances(path, root="/f"))
    assert "train_LVVIS.json" in message and said in message


def test_a_broken_mask_is_named(write):
    file = vis_file()
    file["annotations"][0]["segmentations"][0]["counts"] = "0"
    (video,) = masks.read_instances(write("train_LVVIS.json", file), root="/f")
    assert "train_LVVIS.json: video 0: mask runs fill" in told(lambda: masks.class_map(video, 0))


VOS = "video_id,text,frames,length,obj_id,anno_id\n"


def test_referred_objects_of_run_lengths(write, tmp_path):
    one, two = square(6, 8, 0, 0, 2), square(6, 8, 4, 5, 2)
    write("10.json", [rle.encode(one), None])
    write("11.json", [rle.encode(two), rle.encode(two)])
    path = write("train_MEVIS.csv", VOS + 'v,both dogs,"[\'0\', \'1\']",2,"[3, 4]","[10, 11]"\n')
    (row,) = masks.read_referred(path, root="/f", mask_root=tmp_path)
    assert row.frames == (Path("/f/v/0.jpg"), Path("/f/v/1.jpg")) and row.text == "both dogs"
    np.testing.assert_array_equal(masks.referred_masks(row, [0, 1]), [one | two, two])
    write("11.json", [None])
    assert "11.json: wanted a list of 2 masks" in told(lambda: masks.referred_masks(row, [0]))
    write("10.json", [None, None])
    write("11.json", [None, None])
    assert "line 2: the object has no mask in any frame" in told(
        lambda: masks.referred_masks(row, [0])
    )


def test_referred_objects_of_palette_pictures(write, tmp_path):
    (tmp_path / "v").mkdir()
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "v" / "00005.png")
    path = write("train_ReferYoutubeVOS.csv", VOS + "v,a cat,['00005'],1,['2'],[7]\n")
    (row,) = masks.read_referred(path, root="/f", mask_root=tmp_path, pictures=True)
    np.testing.assert_array_equal(masks.referred_masks(row, [0]), [indices == 2])
    Image.new("RGB", (4, 3)).save(tmp_path / "v" / "00005.png")
    assert "wanted a palette picture" in told(lambda: masks.referred_masks(row, [0]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("v,a,['0'],2,[1],[1]", "length 2, but 1 frames"),
        ("v,a,[],0,[1],[1]", "length 0, but 0 frames"),
        ("v,a,['0'],1,[1],[]", "no object; wanted anno_id"),
        ("v,a,['../../0'],1,[1],[1]", "leaves /f"),
        ("v,a,['0'],1,[1],['../1']", "leaves /m"),
    ],
)
def test_bad_referred(write, row, said):
    path = write("train_MEVIS.csv", VOS + row + "\n")
    message = told(lambda: masks.read_referred(path, root="/f", mask_root="/m"))
    assert "train_MEVIS.csv: line 2" in message and said in message


def test_pictures(tmp_path, rng):
    frames = rng.integers(0, 255, (2, 5, 7, 3), np.uint8)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    np.testing.assert_array_equal(masks.read_pictures(paths), frames)
    Image.fromarray(frames[0, :3]).save(paths[1])
    assert "1.png: 3x7; wanted 5x7" in told(lambda: masks.read_pictures(paths))
    paths[1].write_bytes(paths[0].read_bytes()[:40])
    assert "not a readable picture" in told(lambda: masks.read_pictures(paths))
    assert "no such file" in told(lambda: masks.read_pictures([tmp_path / "2.png"]))
