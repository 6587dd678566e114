"""Pixels of clips: golden pairs and turned copies with every draw given, and what holds for all."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.data import augment
from streamjax.data.annotations.masks import class_map, read_instances
from tests.listed_draws import ListedDraws

CASE = "streamformer/l_data_sampling_and_labels"


@pytest.fixture(scope="module")
def samples(golden):
    return json.loads((golden / CASE / "samples.min.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    return load_file(golden / CASE / "io.safetensors")


def levels(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).max())


@pytest.mark.parametrize("i", range(4))
def test_pairs(samples, arrays, i):
    case = samples["pair_transforms"]["cases"][i]
    video, mask = arrays[f"pair{i}.video"], arrays[f"pair{i}.mask"]
    assert augment.short_side(*case["size_hw"], case["resize_short_side"]) == tuple(
        case["resized_hw"]
    )
    whole = augment.Window(*case["resized_hw"], 0, 0, tuple(case["resized_hw"]))
    assert levels(whole.of_frames(video), arrays[f"pair{i}.resized_video"]) <= 1
    np.testing.assert_array_equal(whole.of_classes(mask), arrays[f"pair{i}.resized_mask"])
    rng = ListedDraws(case["draws"])
    window = augment.masked_window(mask, case["crop"], rng, short=case["resize_short_side"])
    frames, classes = window.of_frames(video), window.of_classes(mask)
    if rng.random() < 0.5:
        frames, classes = augment.flipped(frames), augment.flipped(classes)
    rng.finished()
    np.testing.assert_array_equal(classes, arrays[f"pair{i}.out_mask"])
    wanted = (arrays[f"pair{i}.out_video_CTHW"].transpose(1, 2, 3, 0) * 0.5 + 0.5) * 255
    assert levels(frames, wanted) <= 1.01


def test_coco_pseudo_video(samples, arrays, tmp_path):
    case = samples["TaskVIS"]
    path = tmp_path / "train_COCOPseudoVIS.json"
    path.write_text(json.dumps(case["coco_annotation"]))
    (picture,) = read_instances(path, root=tmp_path)
    rng = ListedDraws(case["samples"][1]["draws"])
    image = arrays["COCOPseudoVIS.source_image_rgb"]
    frames, classes = augment.rotate_copies(image, class_map(picture, 0), 3, rng)
    rng.finished()
    wanted = arrays["COCOPseudoVIS.mask_before_pair_transform"]
    np.testing.assert_array_equal(classes, wanted)
    assert levels(frames, arrays["COCOPseudoVIS.rotated_frames"]) <= 2


def test_a_window_is_the_same_part_of_the_whole(rng):
    frames = rng.integers(0, 255, (2, 30, 44, 3), np.uint8)
    classes = rng.integers(0, 5, (2, 30, 44), np.int32)
    whole = augment.Window(21, 33, 0, 0, (21, 33))
    part = augment.Window(21, 33, 4, 7, (12, 16))
    for how in ("point", "smooth"):
        wanted = whole.of_frames(frames, how)[:, 4:16, 7:23]
        assert levels(part.of_frames(frames, how), wanted) <= 1
    np.testing.assert_array_equal(
        part.of_classes(classes), whole.of_classes(classes)[:, 4:16, 7:23]
    )
    np.testing.assert_array_equal(
        augment.Window(30, 44, 1, 2, (5, 6)).of_frames(frames), frames[:, 1:6, 2:8]
    )


def test_centre_and_random_squares(rng):
    assert augment.centre_window(np.zeros((1, 480, 854, 3), np.uint8), 224) == augment.Window(
        224, 398, 0, 87, (224, 224)
    )
    assert augment.centre_window(np.zeros((1, 64, 64, 3), np.uint8), 64) == augment.Window(
        64, 64, 0, 0, (64, 64)
    )
    wide = np.zeros((1, 32, 40, 3), np.uint8)
    lefts = {augment.random_window(wide, 32, rng).left for _ in range(200)}
    assert lefts == set(range(9))


def test_where_nothing_is_annotated_any_square_will_do(rng):
    nothing = np.zeros((2, 32, 40), np.int32)
    places = {augment.masked_window(nothing, 28, rng, short=32).left for _ in range(200)}
    assert places == set(range(13))


def test_resized_crops(rng):
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None, None], (2, 60, 80, 3))
    crops = [augment.random_resized_crop(ramp, 16, rng) for _ in range(50)]
    assert all(crop.shape == (2, 16, 16, 3) for crop in crops)
    heights = [int(crop[0, -1, 0, 0]) - int(crop[0, 0, 0, 0]) for crop in crops]
    assert min(heights) < 25 and max(heights) > 45
    sliver = np.zeros((1, 4, 400, 3), np.uint8)  # no try fits: the central part
    assert augment.random_resized_crop(sliver, 16, rng).shape == (1, 16, 16, 3)


def test_flipped(rng):
    frames = rng.integers(0, 255, (2, 3, 4, 3), np.uint8)
    np.testing.assert_array_equal(augment.flipped(frames), frames[:, :, [3, 2, 1, 0]])
