"""Masks small enough to score by hand."""

import numpy as np
import pytest

from streamjax.evals.pretraining.segmentation import (
    Referred,
    boundary,
    outline,
    region,
    score_classes,
    score_object,
)


def test_classes_by_hand():
    true = np.array([[0, 1, 1], [2, 2, 2]])
    said = np.array([[3, 1, 2], [2, 2, 3]])
    sums = score_classes(said, true, 5)
    # 1: 1 of 2 true, none too many. 2: 2 right, 3 true, 3 said. 3 is said once and never true.
    assert sums.per_class[1] == 0.5 and sums.per_class[2] == 0.5
    row = sums.row()
    assert row == {"mask_miou": 0.5, "pixel_accuracy": 3 / 5, "classes": 2}
    both = sums + score_classes(true, true, 5)
    assert both.pixels == 10 and both.per_class[1] == 3 / 4


def test_pixels_nobody_annotated_are_not_counted():
    sums = score_classes(np.full((4, 4), 3), np.zeros((4, 4), int), 5)
    assert sums.row() == {"mask_miou": 0.0, "pixel_accuracy": 0.0, "classes": 0}


def test_a_class_that_is_none():
    with pytest.raises(ValueError, match="true classes reach 5 .. 5 of 5"):
        score_classes(np.array([1]), np.array([5]), 5)
    with pytest.raises(ValueError, match="given classes reach -1"):
        score_classes(np.array([-1]), np.array([1]), 5)


def square(size: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_by_hand():
    a, b = square(8, 0, 0, 4), square(8, 0, 2, 4)
    assert region(a, b) == 8 / 24
    nothing = np.zeros((8, 8), bool)
    assert region(nothing, nothing) == 1.0 and region(a, nothing) == 0.0


def test_the_outline_is_one_pixel_wide_and_spares_the_frames_border():
    line = outline(square(6, 2, 2, 2))
    wanted = np.zeros((6, 6), bool)
    wanted[1, 1:4] = wanted[2:4, 1] = wanted[2, 3] = wanted[3, 2] = wanted[3, 3] = True
    np.testing.assert_array_equal(line, wanted)
    assert not outline(np.ones((6, 6), bool)).any()


def test_boundary_forgives_what_is_within_the_tolerance():
    # 100 x 100: the diagonal is 141.4 and 0.8 % of it 1.13, so two pixels are forgiven.
    a = square(100, 20, 20, 40)
    assert boundary(a, a) == 1.0
    assert boundary(a, square(100, 22, 20, 40)) == 1.0
    far = boundary(a, square(100, 23, 20, 40))
    assert 0.5 < far < 1.0
    assert boundary(a, square(100, 70, 70, 20)) == 0.0


def test_boundary_against_a_plain_reading_of_the_definition(rng):
    def plain(said, true):
        reach = np.ceil(0.008 * np.hypot(*said.shape))
        x, y = np.argwhere(outline(said)), np.argwhere(outline(true))
        near = ((x[:, None] - y[None]) ** 2).sum(-1) <= reach**2
        p, r = near.any(1).mean(), near.any(0).mean()
        return 2 * p * r / (p + r) if p + r else 0.0

    for _ in range(5):
        said, true = (square(60, *rng.integers(5, 25, 2), rng.integers(5, 30)) for _ in range(2))
        assert boundary(said, true) == pytest.approx(plain(said, true))


def test_boundaries_of_nothing():
    nothing, a = np.zeros((20, 20), bool), square(20, 5, 5, 5)
    assert boundary(nothing, nothing) == 1.0
    assert boundary(nothing, a) == boundary(a, nothing) == 0.0


def test_an_expression_is_the_mean_of_its_frames():
    a, nothing = square(20, 5, 5, 5), np.zeros((20, 20), bool)
    sums = score_object(np.stack([a, nothing]), np.stack([a, a]))
    assert (sums + Referred()).row() == {"j": 0.5, "f": 0.5, "j&f": 0.5}
    assert (sums + score_object(a[None], a[None])).row()["j&f"] == 0.75
