"""YouTube-VIS and OVIS: the golden cases, a hand-made video, and bad files."""

import copy
import json

import numpy as np
import pytest

from streamjax.data import rle
from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks.video_instances import overlap


@pytest.mark.parametrize("name", ["vis_ytvis2019", "vis_ovis"])
def test_the_golden_cases(golden, name):
    case, bench = golden / "bench" / name, find(name)
    scores = bench.score(bench.read(case), bench.answers(case / "results.json"), "official")
    wanted = json.loads((case / "expected.json").read_text())
    assert list(scores.table) == list(wanted["table"])
    assert scores.table == pytest.approx(wanted["table"], abs=1e-9)
    assert scores.details["stats_raw_12"] == pytest.approx(wanted["stats_raw_12"], abs=1e-12)
    assert scores.details["per_category_AP"] == pytest.approx(wanted["per_category_AP"], abs=1e-9)
    assert list(scores.details["per_category_AP"]) == list(wanted["per_category_AP"])
    json.dumps(scores.table, allow_nan=False)
    assert scores.problems == ()


def test_overlap_by_pixels(rng):
    for density in (0.0, 0.02, 0.5, 1.0):
        masks = rng.random((2, 6, 8)) < density
        runs = [rle.runs(rle.encode(mask), 6, 8) for mask in masks]
        either = (masks[0] | masks[1]).sum()
        wanted = (masks[0] & masks[1]).sum() / either if either else 0.0
        assert overlap(*runs) == pytest.approx(wanted)


def _box(top, left, height=4, width=4):
    mask = np.zeros((10, 12), bool)
    mask[top : top + height, left : left + width] = True
    return rle.encode(mask)


def _truth(**change):
    one = {"id": 1, "video_id": 7, "category_id": 1, "iscrowd": 0, "areas": [16, None]}
    return one | {"segmentations": [_box(0, 0), None]} | change


def _track(**change):
    one = {"video_id": 7, "category_id": 1, "score": 0.5, "segmentations": [_box(0, 0), None]}
    return one | change


CONTENT = {
    "videos": [{"id": 7, "height": 10, "width": 12, "length": 2, "file_names": ["a", "b"]}],
    "categories": [{"id": 1, "name": "Cat"}, {"id": 2, "name": "Dog"}],
    "annotations": [_truth()],
}


def _score(tmp_path, tracks, rule="official", **change):
    (tmp_path / "valid.json").write_text(json.dumps(copy.deepcopy(CONTENT) | change))
    (tmp_path / "results.json").write_text(json.dumps(tracks))
    bench = find("ovis")
    return bench.score(bench.read(tmp_path), bench.answers(tmp_path), rule)


def test_by_hand(tmp_path):
    best = _score(tmp_path, [_track()])
    assert best.table == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100, "APs": 100, "APm": None, "APl": None,
         "AR1": 100, "AR10": 100}
    )  # fmt: skip
    assert best.details["per_category_AP"] == pytest.approx({"Cat": 100, "Dog": None})
    # Of 16 + 8 pixels 12 + 0 are common in the first frame, 4 more are claimed in the second.
    shifted = _score(tmp_path, [_track(segmentations=[_box(0, 1), _box(0, 0, 2, 2)])])
    assert shifted.table["AP50"] == pytest.approx(100 * (12 / 24 >= 0.5))
    assert shifted.table["AP75"] == 0.0 and shifted.table["AR1"] == pytest.approx(10.0)
    behind = _score(tmp_path, [_track(), _track(score=0.9, segmentations=[None, _box(0, 0)])])
    assert behind.table["AP"] == pytest.approx(50) and behind.table["AR1"] == 0.0
    crowd = _score(
        tmp_path, [_track(), _track(score=0.9, segmentations=[_box(6, 6), None])] * 2,
        annotations=[_truth(), _truth(id=2, iscrowd=1, segmentations=[_box(6, 6), None])],
    )  # fmt: skip
    assert crowd.table["AP"] == pytest.approx(100)  # what lies on the crowd counts for nothing
    other = _score(tmp_path, [_track(category_id=2)])
    assert other.table["AP"] == 0.0 and other.details["per_category_AP"]["Dog"] is None


def test_the_annotation_of_id_0(tmp_path):
    found = _score(tmp_path, [_track()], annotations=[_truth(id=0)])
    assert found.table["AP"] == 0.0 and "annotation of id 0" in found.problems[0]
    assert _score(tmp_path, [_track()], "streamjax", annotations=[_truth(id=0)]).table[
        "AP"
    ] == pytest.approx(100)


def _broken(counts):
    return [{"size": [10, 12], "counts": counts}, None]


TRACKS = [
    (_track(segmentations=_broken("~~")), "frame 0: mask counts hold '~'"),
    (_track(segmentations=_broken([3, 4])), "mask runs fill 7 pixels"),
    (_track(segmentations=_broken([[1], [2, 3]])), "wanted a list of run lengths"),
    (_track(segmentations=[{"size": 5, "counts": [120]}, None]), "mask size 5"),
    (_track(segmentations=[_box(0, 0)]), "1 masks; wanted 2"),
    (_track(segmentations=None), "segmentations None; wanted 2"),
    (_track(score=float("nan")), "score nan; wanted a number"),
    (_track(category_id=9), "category_id 9; wanted one of 2"),
]


@pytest.mark.parametrize(("track", "told"), TRACKS)
def test_a_bad_track_is_left_out_and_told(tmp_path, track, told):
    found = _score(tmp_path, [_track(), track])
    assert found.table["AP"] == pytest.approx(100) and found.unparsed == 1
    assert len(found.problems) == 1 and told in found.problems[0]
    with pytest.raises(InputError, match="none of 1 tracks can be used"):
        _score(tmp_path, [track])


ANNOTATIONS = [
    (_truth(), "id 1 stands there twice"),
    (_truth(id=2, video_id=8), "video_id 8; wanted one of 1 videos"),
    (_truth(id=2, areas=None), "areas None"),
    (_truth(id=2, category_id=[1]), "category_id \\[1\\]"),
    (5, "wanted an object with an id"),
]


@pytest.mark.parametrize(("annotation", "told"), ANNOTATIONS)
def test_a_bad_annotation_is_left_out_and_told(tmp_path, annotation, told):
    found = _score(tmp_path, [_track()], annotations=[_truth(), annotation])
    assert found.table["AP"] == pytest.approx(100) and len(found.problems) == 1
    with pytest.raises(InputError, match=told):
        raise InputError(found.problems[0])


def test_other_files(tmp_path, golden):
    with pytest.raises(InputError, match="public validation files have none"):
        _score(tmp_path, [_track()], annotations=None)
    with pytest.raises(InputError, match="no annotation can be used"):
        _score(tmp_path, [_track()], annotations=[])
    with pytest.raises(InputError, match="wanted those of OVIS"):
        find("ovis").read(golden / "bench/vis_ytvis2019")
    with pytest.raises(InputError, match="none of 1 answers"):
        _score(tmp_path, [_track(video_id=8)])
    with pytest.raises(InputError, match="track 0 is"):
        _score(tmp_path, [{"score": 1}])
    with pytest.raises(InputError, match="wanted a list of tracks"):
        _score(tmp_path, {})
    with pytest.raises(InputError, match="no such file"):
        find("ovis").read(tmp_path / "nothing")
    empty = _score(tmp_path, [])
    assert empty.table["AP"] == 0.0 and empty.unanswered == 1
