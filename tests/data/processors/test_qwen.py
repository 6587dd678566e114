"""Qwen's pictures and videos: bit for bit the original's, and Streamo's frames."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.data.processors import QwenImageProcessor, smart_resize
from streamjax.errors import InputError

HALF = (0.5, 0.5, 0.5)
PROCESSOR = QwenImageProcessor()


@pytest.fixture(scope="module")
def tables(golden):
    return json.loads((golden / "imgproc" / "tables.json").read_text())


@pytest.fixture(scope="module")
def pictures(golden):
    return load_file(golden / "imgproc" / "io.safetensors")


def test_golden_sizes(tables):
    for height, width, factor, least, most, *wanted in tables["smart_resize"]:
        found = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)
        assert list(found) == wanted, (height, width, factor, most)


@pytest.mark.parametrize("flavour", ["qwen_vl_utils_0_0_11", "hf_transformers_4_57"])
def test_golden_sizes_of_streamo(golden, flavour):
    told = json.loads((golden / "streamo" / "d_smart_resize.json").read_text())
    for row in told["table"]:
        found = smart_resize(row["height"], row["width"], max_pixels=100352,
                             clamp=flavour.startswith("qwen"))  # fmt: skip
        wanted = row[flavour]
        assert found == (wanted["resized_height"], wanted["resized_width"])
        frame = PROCESSOR.with_frame_budget().fit(row["height"], row["width"])
        assert [1, *(side // 14 for side in frame)] == row["qwen_vl_utils_0_0_11"]["grid_thw"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_golden_pixels(tables, pictures, family):
    spec = tables["spec"][family]
    processor = QwenImageProcessor(
        patch=spec["patch_size"], min_pixels=spec["min_pixels"], max_pixels=spec["max_pixels"],
        mean=tuple(spec["image_mean"]), std=tuple(spec["image_std"]),
    )  # fmt: skip
    pixels, grid = processor([pictures["image_0"], pictures["image_1"]])
    np.testing.assert_array_equal(pixels, pictures[f"{family}.pixel_values"])
    np.testing.assert_array_equal(grid, pictures[f"{family}.image_grid_thw"])
    assert pixels.dtype == np.float32
    one, row = processor.frame(pictures["image_1"])
    np.testing.assert_array_equal(one, pixels[-len(one) :])
    assert list(row) == grid[1].tolist()


def test_golden_video(pictures):
    frames = pictures["video.frames_tchw"].transpose(0, 2, 3, 1)
    pixels, grid = QwenImageProcessor(do_resize=False).video(frames)
    np.testing.assert_array_equal(pixels, pictures["video.pixel_values_videos"])
    np.testing.assert_array_equal(grid, pictures["video.video_grid_thw"])


def test_golden_frames_of_streamo(golden):
    told = load_file(golden / "streamo" / "d_pixels.safetensors")
    processor = PROCESSOR.with_frame_budget()
    as_is = replace(PROCESSOR, do_resize=False)
    for i in (0, 1):
        pixels, grid = processor([told[f"{i}/raw_uint8_hwc"]])
        np.testing.assert_array_equal(pixels, told[f"{i}/pixel_values"])
        np.testing.assert_array_equal(grid, told[f"{i}/image_grid_thw"])
        # Resized beforehand, as Streamo does it: the processor then leaves the size alone.
        again, _ = as_is([told[f"{i}/resized_uint8_hwc"]])
        np.testing.assert_array_equal(again, pixels)


def test_a_frame_budget_counts_tokens():
    assert PROCESSOR.with_frame_budget().fit(720, 1280) == (224, 420)
    assert PROCESSOR.with_frame_budget().max_pixels == 100352
    larger = QwenImageProcessor(patch=16, mean=HALF, std=HALF).with_frame_budget()
    assert larger.fit(720, 1280) == (256, 480) and larger.mean == HALF
    assert PROCESSOR.with_frame_budget(16).fit(720, 1280) == (84, 140)


def test_short_sides_where_the_two_flavours_differ():
    assert smart_resize(10, 500) == (28, 420)
    assert smart_resize(10, 500, clamp=True) == (28, 504)
    assert smart_resize(42, 70) == (56, 56)  # 1.5 -> 2 and 2.5 -> 2: halves to even


def test_transparent_pictures_lie_on_white(rng):
    picture = rng.integers(0, 255, (56, 56, 4), np.uint8)
    picture[:28, :, 3], picture[28:, :, 3] = 0, 255
    on_white = picture[..., :3].copy()
    on_white[:28] = 255
    np.testing.assert_array_equal(PROCESSOR([picture])[0], PROCESSOR([on_white])[0])


def test_floats_pass_through(rng):
    frame = rng.integers(0, 255, (56, 84, 3), np.uint8)
    wanted, row = PROCESSOR.frame(frame)
    unit = (frame * (1 / 255)).astype(np.float32)
    values = (unit - np.float32(PROCESSOR.mean)) / np.float32(PROCESSOR.std)
    found, same = PROCESSOR.frame(values)
    assert row == same == (1, 4, 6)
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="56 x 80 pixels that is not to be resized"):
        PROCESSOR.frame(values[:, :80])


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (np.zeros((3000, 10, 3), np.uint8), "3000 x 10 pixels: one side is more than 200 times"),
        (np.zeros((0, 10, 3), np.uint8), "0 x 10 pixels has none"),
        (np.zeros((9, 9), np.uint8), "a picture of uint8 [9, 9], wanted uint8 [h w 3]"),
        (np.zeros((9, 9, 1), np.uint8), "a picture of uint8 [9, 9, 1], wanted"),
        (np.zeros((9, 9, 3), np.int32), "a picture of int32 [9, 9, 3], wanted"),
    ],
)
def test_pictures_that_are_none(picture, told):
    for call in (PROCESSOR.frame, lambda x: PROCESSOR([x])):
        with pytest.raises(InputError) as error:
            call(picture)
        assert told in str(error.value)


def test_nothing_to_see():
    with pytest.raises(InputError, match="0 pictures"):
        PROCESSOR([])
    with pytest.raises(InputError, match="0 frames"):
        PROCESSOR.video(np.zeros((0, 28, 28, 3), np.uint8))
    with pytest.raises(InputError, match="wanted multiples of 28"):
        replace(PROCESSOR, do_resize=False).fit(30, 28)
    with pytest.raises(InputError, match="0 x 4 pixels has none"):
        smart_resize(0, 4)
