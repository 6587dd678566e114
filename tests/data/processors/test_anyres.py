"""LLaVA's pictures: bit for bit the original's tiles."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.data.processors import ImageProcessor, anyres, best_pinpoint
from streamjax.errors import InputError

PINPOINTS = [(224, 448), (448, 224), (448, 448), (672, 224), (224, 672)]


def test_golden_tiles_and_frames(golden):
    folder = golden / "llava_streamformer_qwen2"
    told = load_file(folder / "io.safetensors")
    side = told["anyres.pixel_values"].shape[-1]
    processor = ImageProcessor((side, side), patch=4)
    pinpoints = [
        tuple(p) for p in json.loads((folder / "config.json").read_text())["image_grid_pinpoints"]
    ]
    pixels, grid, sizes = anyres([told["anyres.image_uint8"]], processor, pinpoints)
    np.testing.assert_array_equal(pixels, told["anyres.pixel_values"])
    assert grid.tolist() == [[len(pixels), side // 4, side // 4]]
    assert sizes == [tuple(told["anyres.image_size_wh"].tolist())]
    frames = processor(told["video.frames_uint8"]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(frames, told["video.pixel_values"])


def test_several_pictures(rng):
    processor = ImageProcessor((224, 224))
    pictures = [rng.integers(0, 255, (200, w, 3), np.uint8) for w in (100, 1000)]
    pixels, grid, sizes = anyres(pictures, processor, PINPOINTS)
    assert grid.tolist() == [[3, 14, 14], [4, 14, 14]] and len(pixels) == 7
    assert sizes == [(100, 200), (1000, 200)] and best_pinpoint((1000, 200), PINPOINTS) == (
        672,
        224,
    )
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0), processor(pictures[0][None])[0])


def test_what_is_refused():
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="0 pictures"):
        anyres([], ImageProcessor(), PINPOINTS)
    with pytest.raises(InputError, match="a canvas of 224 x 448, wanted whole tiles of 200 x 200"):
        anyres([picture], ImageProcessor((200, 200)), PINPOINTS[:1])
