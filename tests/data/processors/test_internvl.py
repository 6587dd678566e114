"""InternVL's tiles: bit for bit the original's."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.data.processors import InternVLImageProcessor, tile_layout
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def tables(golden):
    return json.loads((golden / "imgproc" / "tables.json").read_text())


@pytest.fixture(scope="module")
def pictures(golden):
    return load_file(golden / "imgproc" / "io.safetensors")


@pytest.fixture(scope="module")
def processor(tables):
    spec = tables["spec"]["internvl"]
    return InternVLImageProcessor(
        (spec["tile"], spec["tile"]), spec["min_patches"], spec["max_patches"],
        mean=tuple(spec["image_mean"]), std=tuple(spec["image_std"]),
    )  # fmt: skip


def test_golden_layouts(tables):
    for height, width, tile, least, most, *wanted in tables["internvl_tiles"]:
        found = tile_layout(height, width, tile=(tile, tile), least=least, most=most)
        assert list(found) == wanted, (height, width, most)


def test_golden_pixels(pictures, processor):
    pixels, grid = processor([pictures["image_0"], pictures["image_1"]])
    np.testing.assert_array_equal(pixels, pictures["internvl.pixel_values"])
    np.testing.assert_array_equal(grid[:, 0], pictures["internvl.num_patches"])
    assert grid[:, 1:].tolist() == [[2, 2], [2, 2]] and pixels.dtype == np.float32


def test_a_frame_is_one_tile(pictures, processor):
    frame = pictures["image_1"]
    pixels, row = processor.frame(frame)
    one, grid = replace(processor, max_tiles=1)([frame])
    np.testing.assert_array_equal(pixels, one)
    assert grid.tolist() == [list(row)] == [[1, 2, 2]]
    # A whole picture squashed: what the thumbnail is.
    np.testing.assert_array_equal(pixels[0], processor([frame])[0][-1])
    clip, rows = processor.video(np.stack([frame, frame[::-1]]))
    np.testing.assert_array_equal(clip[0], pixels[0])
    assert clip.shape == (2, 3, 28, 28) and rows.tolist() == [[1, 2, 2]] * 2


def test_floats_pass_through(rng, processor):
    values = rng.normal(size=(28, 28, 3)).astype(np.float32)
    pixels, row = processor.frame(values)
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), values)
    assert row == (1, 2, 2)
    with pytest.raises(InputError, match="a picture of float32 .20, 28, 3., wanted"):
        processor.frame(values[:20])


def test_pictures_that_are_none(processor):
    for call in (processor.frame, lambda x: processor([x])):
        with pytest.raises(InputError, match="one side is more than 200 times the other"):
            call(np.zeros((10, 3000, 3), np.uint8))
    with pytest.raises(InputError, match="0 pictures"):
        processor([])
    with pytest.raises(InputError, match="0 frames"):
        processor.video(np.zeros((0, 28, 28, 3), np.uint8))
