"""Run-length masks against COCO's own."""

import json

import numpy as np
import pytest

from streamjax.data import rle
from streamjax.errors import InputError


def test_golden_areas_and_boxes(golden):
    for case in json.loads((golden / "rle" / "masks.json").read_text()):
        annotation = case["segmentation"]
        mask = rle.decode(annotation, *annotation["size"])
        x, y, width, height = case["bbox"]
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        assert mask.sum() == case["area"]
        assert (columns[0], rows[0]) == (x, y)
        assert (columns[-1] + 1 - x, rows[-1] + 1 - y) == (width, height)
        if isinstance(annotation["counts"], str):
            assert rle.encode(mask) == annotation


def test_runs_are_where_the_mask_is(golden):
    cases = json.loads((golden / "rle" / "masks.json").read_text())
    size = cases[0]["segmentation"]["size"]
    corner = [[0, 0, 3, 0, 3, 3, 0, 3]]
    for annotation in [*(case["segmentation"] for case in cases), corner]:
        height, width = size if isinstance(annotation, list) else annotation["size"]
        flat = rle.decode(annotation, height, width).ravel(order="F")
        found = np.zeros_like(flat)
        for first, stop in rle.runs(annotation, height, width):
            assert first < stop
            found[first:stop] = True
        np.testing.assert_array_equal(found, flat)


def test_golden_polygons(golden):
    for case in json.loads((golden / "rle" / "polygons.json").read_text()):
        mask = rle.decode(case["polygons"], *case["size"])
        assert rle.encode(mask)["counts"] == case["counts"]


def test_golden_filled_polygons(golden):
    """OpenCV's rule, corners outside of the picture included."""
    for case in json.loads((golden / "rle" / "filled.json").read_text()):
        mask = rle.filled(case["polygons"], *case["size"])
        assert rle.encode(mask)["counts"] == case["counts"]


def test_filled_polygons_are_united():
    mask = rle.filled([[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 7, 5, 7.9, 7, 5, 7]], 10, 12)
    wanted = np.zeros((10, 12), bool)
    wanted[:3, :3] = wanted[5:8, 5:8] = True
    np.testing.assert_array_equal(mask, wanted)
    with pytest.raises(InputError, match="3 corners"):
        rle.filled([[1, 2, 3, 4]], 5, 4)


def test_round_trip(rng):
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 50, 2))
        mask = rng.random((height, width)) < rng.random()
        written = rle.encode(mask)
        np.testing.assert_array_equal(rle.decode(written, height, width), mask)
        bytes_ = {**written, "counts": written["counts"].encode()}
        np.testing.assert_array_equal(rle.decode(bytes_, height, width), mask)


@pytest.mark.parametrize("value", [False, True])
def test_full_and_empty(value):
    mask = np.full((5, 7), value)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), 5, 7), mask)


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ({"size": [4, 5], "counts": [20]}, r"mask size \[4, 5\]; wanted \[5, 4\]"),
        ({"size": [5, 4], "counts": [19]}, "fill 19 pixels; wanted 5 x 4"),
        ({"size": [5, 4], "counts": [-1, 21]}, "run lengths >= 0"),
        ({"size": [5, 4], "counts": ["a"]}, "run lengths >= 0"),
        ({"size": [5, 4], "counts": "T"}, "cut short"),
        ({"size": [5, 4], "counts": "\x7f"}, "characters '0' to 'o'"),
        ({"counts": [20]}, "mask size None"),
        ([[1, 2, 3, 4]], "3 corners"),
        ([["x"] * 6], "3 corners"),
        ("nonsense", "is a str"),
    ],
)
def test_broken_masks(annotation, told):
    with pytest.raises(InputError, match=told):
        rle.decode(annotation, 5, 4)
