"""The image processor: equal to Hugging Face's SigLIP one, and back and forth through its file."""

import json

import numpy as np
import pytest

from streamjax.data.processors import Assets, ImageProcessor
from streamjax.errors import InputError


@pytest.mark.parametrize("size", [(30, 50), (224, 224), (300, 100)])
def test_equals_siglip(rng, size):
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    frames = rng.integers(0, 255, (2, *size, 3), np.uint8)
    theirs = siglip.SiglipImageProcessorPil(size={"height": 64, "width": 48})
    wanted = theirs(list(frames), return_tensors="np")["pixel_values"]
    found = ImageProcessor(size=(64, 48))(frames)
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_resize_then_normalise_is_the_call(rng):
    processor = ImageProcessor((8, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    frames = rng.integers(0, 255, (3, 5, 7, 3), np.uint8)
    assert processor.resize(frames).dtype == np.uint8
    np.testing.assert_array_equal(processor(frames), processor.normalise(processor.resize(frames)))
    white = processor.normalise(np.full((1, 1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, 0, 0], [1.8, 3.2, 0.7], rtol=1e-6)


def test_folder_round_trip_keeps_foreign_keys(tmp_path):
    config = {
        "do_convert_rgb": None,
        "image_mean": [0.5, 0.4, 0.3],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.25],
        "resample": 2,
        "size": {"height": 96, "width": 80},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = ImageProcessor.from_folder(tmp_path)
    assert processor.size == (96, 80) and processor.resample == 2
    processor.to_folder(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {**written, **config} == written
    assert ImageProcessor.from_folder(tmp_path).size == (96, 80)
    assert [p.name for p in tmp_path.iterdir()] == ["preprocessor_config.json"]


def test_assets_are_hashable_and_a_folder_may_lack_a_processor(tmp_path):
    assert ImageProcessor.from_folder(tmp_path) is None
    hash(Assets(processor=ImageProcessor()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"size": {"height": 0, "width": 4}}', "wanted {'height': h, 'width': w}"),
        ('{"size": "large"}', "wanted {'height': h, 'width': w}"),
        ('{"image_mean": [1, 2]}', "wanted three numbers"),
        ('{"image_std": [1, 0, 1]}', "three positive numbers"),
        ('{"resample": 9}', "resample 9"),
        ('{"rescale_factor": 1}', "wanted true and 1/255"),
        ('{"size": {"shortest_edge": 256}, "crop_size": 224}', "size {'shortest_edge': 256}"),
    ],
)
def test_bad_configs(tmp_path, content, told):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError) as error:
        ImageProcessor.from_folder(tmp_path)
    assert told in str(error.value) and "preprocessor_config.json" in str(error.value)


def test_clip_configs_are_read_as_squares(tmp_path):
    text = '{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}'
    (tmp_path / "preprocessor_config.json").write_text(text)
    assert ImageProcessor.from_folder(tmp_path).size == (224, 224)


def test_a_frame_has_its_grid(rng):
    frame = rng.integers(0, 255, (40, 60, 3), np.uint8)
    processor = ImageProcessor((64, 48))
    pixels, grid = processor.frame(frame)
    np.testing.assert_array_equal(pixels, processor(frame[None])[0])
    assert grid == (1, 4, 3)
    again, same = processor.frame(pixels)
    np.testing.assert_array_equal(again, pixels)
    assert same == grid
    with pytest.raises(InputError, match="wanted uint8 .h w 3."):
        processor.frame(frame[..., 0])
