"""RandAugment: what every operation does at known magnitudes, and that frames are changed alike."""

import numpy as np
import pytest
from PIL import Image

from streamjax.data.randaugment import OPERATIONS, rand_augment


class Signs(np.random.Generator):
    """Every sign drawn is this one."""

    def __init__(self, sign: int):
        super().__init__(np.random.PCG64(0))
        self.sign = sign

    def random(self):
        return 0.9 if self.sign < 0 else 0.1


def done(name: str, magnitude: float, picture: np.ndarray, sign: int = 1) -> np.ndarray:
    return np.asarray(OPERATIONS[name](magnitude, Signs(sign))(Image.fromarray(picture)))


@pytest.fixture
def ramp():
    return np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (64, 64, 3)).copy()


def test_there_are_fifteen():
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize(
    ("name", "magnitude", "wanted"),
    [
        ("Invert", 7.0, lambda x: 255 - x),
        ("Posterize", 7.0, lambda x: x & 0b11000000),  # 4 - int(2.8) bits are kept
        ("Posterize", 10.0, lambda x: x * 0),
        ("Solarize", 7.0, lambda x: np.where(x < 256 - 179, x, 255 - x)),
        ("SolarizeAdd", 7.0, lambda x: np.where(x < 128, np.minimum(x + 77, 255), x)),
        ("Brightness", 5.0, lambda x: np.minimum(x * 1.45, 255).astype(np.uint8)),
    ],
)
def test_tones(ramp, name, magnitude, wanted):
    found = done(name, magnitude, ramp)
    assert np.abs(found.astype(int) - wanted(ramp.astype(int))).max() <= 1


def test_signs(ramp):
    assert done("Brightness", 5.0, ramp, -1).max() == pytest.approx(252 * 0.55, abs=1)


def test_what_comes_in_from_outside_is_grey():
    white = np.full((40, 80, 3), 255, np.uint8)
    moved = done("TranslateX", 10.0, white)  # 0.45 of the width
    assert (moved[:, -35:] == 128).all() and (moved[:, :43] == 255).all()
    assert (done("TranslateY", 10.0, white, -1)[:16] == 128).all()
    assert (done("Rotate", 10.0, white)[0, 0] == 128).all()
    sheared = done("ShearX", 10.0, white)
    assert (sheared[-1, -10:] == 128).all() and (sheared[0] == 255).all()


def test_all_frames_are_changed_alike_and_half_of_the_operations_left_out(rng):
    frame = rng.integers(0, 255, (24, 32, 3), np.uint8)
    clip = np.stack([frame] * 3)
    seen = []
    for _ in range(60):
        out = rand_augment(clip, rng)
        assert out.shape == clip.shape and (out == out[0]).all()
        seen.append((out == clip).all())
    assert 0 < sum(seen) < 20  # four out of four left out: one in sixteen
