"""Image processors and their preprocessor_config.json: every kind read, nothing lost on writing."""

import dataclasses
import json

import numpy as np
import pytest

from streamjax.data.processors import (
    Assets,
    ImageProcessor,
    InternVLImageProcessor,
    QwenImageProcessor,
    read_processor,
)
from streamjax.errors import InputError

# As the hub has them (specs/vlm.md section 4.1).
QWEN25 = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
    "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip
QWEN3 = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16,
    "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}  # fmt: skip
INTERNVL = {
    "crop_to_patches": False, "default_to_square": True, "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "GotOcr2ImageProcessorFast", "max_patches": 12, "min_patches": 1,
    "processor_class": "InternVLProcessor", "resample": 3, "size": {"height": 448, "width": 448},
}  # fmt: skip
OPENGVLAB = {
    "crop_size": 448, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 448,
}  # fmt: skip


def folder_with(folder, config, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(config))
    return folder


def test_hub_configs(tmp_path):
    qwen25 = read_processor(folder_with(tmp_path, QWEN25))
    assert isinstance(qwen25, QwenImageProcessor)
    assert (qwen25.min_pixels, qwen25.max_pixels, qwen25.factor) == (3136, 12845056, 28)
    qwen3 = read_processor(folder_with(tmp_path, QWEN3))
    assert isinstance(qwen3, QwenImageProcessor)
    assert (qwen3.min_pixels, qwen3.max_pixels, qwen3.factor) == (65536, 16777216, 32)
    assert qwen3.mean == (0.5, 0.5, 0.5)
    internvl = read_processor(folder_with(tmp_path, INTERNVL))
    assert isinstance(internvl, InternVLImageProcessor)
    assert (internvl.size, internvl.max_tiles, internvl.mean[0]) == ((448, 448), 12, 0.485)
    assert type(read_processor(folder_with(tmp_path, {"size": 32}))) is ImageProcessor


@pytest.mark.parametrize("config", [QWEN25, QWEN3, INTERNVL], ids=["qwen25", "qwen3", "internvl"])
def test_nothing_is_lost_on_the_way(tmp_path, config):
    processor = read_processor(folder_with(tmp_path, {**config, "foreign": {"a": [1, None]}}))
    assert processor is not None
    processor.to_folder(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {**written, **config, "foreign": {"a": [1, None]}} == written
    assert written["do_normalize"] and "rescale_factor" in written
    again = read_processor(tmp_path)
    assert hash(again) == hash(read_processor(tmp_path))
    again.to_folder(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == written
    assert [p.name for p in tmp_path.iterdir()] == ["preprocessor_config.json"]


@pytest.mark.parametrize("config", [QWEN25, QWEN3], ids=["top", "size"])
def test_a_changed_budget_is_written_under_its_own_keys(tmp_path, config):
    processor = read_processor(folder_with(tmp_path, config))
    assert isinstance(processor, QwenImageProcessor)
    processor.with_frame_budget(64).to_folder(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert ("size" in written, "min_pixels" in written) == (
        "size" in config,
        "min_pixels" in config,
    )
    again = read_processor(tmp_path)
    assert isinstance(again, QwenImageProcessor)
    assert again.max_pixels == 64 * again.factor**2 and again.min_pixels == 4 * again.factor**2


@pytest.mark.parametrize(
    "processor",
    [
        QwenImageProcessor(patch=16, max_pixels=40000, do_resize=False),
        InternVLImageProcessor((56, 56), max_tiles=3),
        ImageProcessor((32, 48)),
    ],
    ids=lambda p: type(p).__name__,
)
def test_transformers_reads_what_is_written(tmp_path, rng, processor):
    transformers = pytest.importorskip("transformers")
    processor.to_folder(tmp_path)
    again = read_processor(tmp_path)
    assert type(again) is type(processor)
    kinds = {
        QwenImageProcessor: "Qwen2VLImageProcessorPil",
        InternVLImageProcessor: "GotOcr2ImageProcessorPil",
        ImageProcessor: "SiglipImageProcessorPil",
    }
    theirs = getattr(transformers, kinds[type(processor)]).from_pretrained(tmp_path)
    frame = rng.integers(0, 255, (64, 96, 3), np.uint8)
    wanted = theirs([frame], return_tensors="np")["pixel_values"]
    found = again(frame[None]) if isinstance(again, ImageProcessor) else again([frame])[0]
    found = found.transpose(0, 3, 1, 2) if isinstance(again, ImageProcessor) else found
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [QWEN25, QWEN3, INTERNVL], ids=["qwen25", "qwen3", "internvl"])
def test_null_says_nothing(tmp_path, config):
    """transformers 4.57 writes every key that it knows."""
    nulls = dict.fromkeys((
        "crop_size", "data_format", "device", "do_center_crop", "do_pad", "image_mean", "image_std",
        "max_patches", "max_pixels", "merge_size", "min_patches", "min_pixels", "patch_size",
        "resample", "rescale_factor", "size", "temporal_patch_size",
    ))  # fmt: skip
    said = read_processor(folder_with(tmp_path, {**nulls, **config}))
    assert dataclasses.replace(said, extras=()) == dataclasses.replace(
        read_processor(folder_with(tmp_path, config)), extras=()
    )
    kind = {"image_processor_type": config["image_processor_type"]}
    assert dataclasses.replace(
        read_processor(folder_with(tmp_path, nulls | kind)), extras=()
    ) == type(said)()  # fmt: skip


def test_other_places(tmp_path):
    assert read_processor(tmp_path) is None
    config = {"image_processor": QWEN3, "video_processor": {}}
    found = read_processor(folder_with(tmp_path, config, "processor_config.json"))
    assert isinstance(found, QwenImageProcessor) and found.patch == 16
    (tmp_path / "processor_config.json").write_text("{}")
    assert read_processor(tmp_path) is None


def test_the_model_knows_its_patches(tmp_path):
    folder_with(tmp_path, {"size": 64})
    for model, wanted in [
        ({}, 16),
        ({"patch_size": 8}, 8),
        ({"vision_config": {"patch_size": [4, 4]}}, 4),
    ]:
        found = read_processor(folder_with(tmp_path, model, "config.json"))
        assert isinstance(found, ImageProcessor) and found.patch == wanted
    found = read_processor(folder_with(tmp_path, {"patch_size": 32}, "vision_tower_config.json"))
    assert found is not None and found.patch == 32
    folder_with(tmp_path, INTERNVL)
    (tmp_path / "vision_tower_config.json").unlink()
    found = read_processor(tmp_path)
    assert isinstance(found, InternVLImageProcessor) and found.patch == 4
    # It is the model's: the processor's file does not repeat it.
    found.to_folder(tmp_path)
    assert "patch_size" not in json.loads((tmp_path / "preprocessor_config.json").read_text())


def test_an_original_internvl_folder_is_known_by_its_model(tmp_path):
    folder_with(tmp_path, OPENGVLAB)
    folder_with(tmp_path, {"model_type": "internvl_chat", "max_dynamic_patch": 6}, "config.json")
    processor = read_processor(tmp_path)
    assert isinstance(processor, InternVLImageProcessor)
    assert (processor.size, processor.min_tiles, processor.max_tiles) == ((448, 448), 1, 6)
    processor.to_folder(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "GotOcr2ImageProcessor"
    assert "feature_extractor_type" not in written
    folder_with(tmp_path, OPENGVLAB)
    folder_with(tmp_path, {"model_type": "clip"}, "config.json")
    assert type(read_processor(tmp_path)) is ImageProcessor


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patch_size": 0}, "patch_size 0; wanted a positive whole number"),
        ({"max_pixels": "many"}, "max_pixels 'many'; wanted a positive whole number"),
        ({"min_pixels": 20000, "max_pixels": 10000}, "min_pixels 20000 above max_pixels 10000"),
        ({"image_mean": [1]}, "image_mean [1]; wanted three numbers"),
        ({"rescale_factor": "1/255"}, "rescale_factor 1/255; wanted true and 1/255"),
    ],
)
def test_bad_values(tmp_path, change, told):
    with pytest.raises(InputError) as error:
        read_processor(folder_with(tmp_path, QWEN25 | change))
    assert told in str(error.value) and "preprocessor_config.json" in str(error.value)
    with pytest.raises(InputError, match="min_patches 13 above max_patches 12; swapped?"):
        read_processor(folder_with(tmp_path, INTERNVL | {"min_patches": 13}))
    with pytest.raises(InputError, match="height 1.5; wanted a positive whole number"):
        read_processor(folder_with(tmp_path, INTERNVL | {"size": {"height": 1.5, "width": 2}}))


def test_all_kinds_are_hashable():
    for processor in (ImageProcessor(), QwenImageProcessor(), InternVLImageProcessor()):
        hash(Assets(processor=processor))
