"""Average precision by hand, over frames and over segments."""

import numpy as np
import pytest

from streamjax.evals.pretraining.localization import (
    FrameScores,
    average_precision,
    frame_edges,
    segments,
)


def test_average_precision_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6])
    positive = np.array([True, False, True, False])
    # Found at ranks 1 and 3: (1/1 + 2/3) / 2.
    assert average_precision(score, positive) == pytest.approx(5 / 6)
    assert average_precision(-score, positive) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(score, np.ones(4, bool)) == 1.0


def test_ties_are_the_share_of_positives_whatever_the_order(rng):
    positive = np.arange(10) < 3
    for _ in range(3):
        assert average_precision(np.zeros(10), rng.permutation(positive)) == pytest.approx(0.3)
    # The positive of a tie is not taken first: {0.9: one of two} then the rest.
    score = np.array([0.9, 0.9, 0.1])
    assert average_precision(score, np.array([True, False, False])) == 0.5


def test_what_is_no_number_is_last():
    score = np.array([np.nan, 0.2, 0.1])
    assert average_precision(score, np.array([True, False, False])) == pytest.approx(1 / 3)


def test_classes_without_positives_are_left_out_and_counted():
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.6, 0.2]])
    positive = np.array([[True, False, False], [False, False, True]])
    frames = FrameScores(scores, positive)
    assert np.isnan(frames.per_class[1])
    assert frames.row() == {"frame_map": 1.0, "classes": 2, "classes_without_positives": 1}
    nothing = FrameScores(scores, np.zeros((2, 3), bool))
    assert nothing.row()["frame_map"] == 0.0 and nothing.row()["classes"] == 0
    # Together with wrong frames the second class drops: one AP over all frames, not a mean of two.
    both = frames + FrameScores(scores, np.array([[False, True, False], [False, False, False]]))
    assert both.count == 4
    assert both.row()["frame_map"] == pytest.approx(np.mean([1 / 2, 1 / 4, 1 / 2]))


def test_frames_stand_for_half_of_the_way_to_their_neighbours():
    assert frame_edges([0.0, 1.0, 3.0]) == [(0.0, 0.5), (0.5, 2.0), (2.0, 3.0)]
    assert frame_edges([2.0]) == [(2.0, 2.0)]


TIMES = [0.0, 1.0, 2.0, 3.0, 4.0]


def test_segments_by_hand():
    # Class 0: frames 1 and 2 stand for 0.5 .. 2.5. Class 1: never. Class 2 at the wrong time.
    p = np.array([[0, 0, 0], [0.9, 0, 0], [0.8, 0, 0], [0.1, 0, 0], [0, 0, 1]], float)
    found = segments(p, TIMES, [[(0.5, 2.5)], [], [(0.0, 1.0)]])
    assert found.found[0] == ((0, 0.5, 2.5, pytest.approx(0.85)),)
    assert found.found[1] == ()
    assert found.mean_precision(0.7) == 0.5 and found.row()["segment_map"] == 0.5
    # The same again is another video: its window is another window.
    both = found + found
    assert both.count == 2 and both.row()["segment_map"] == 0.5
    assert len(both.true[0]) == 2 and both.true[0][1][0] == 1


def test_a_window_is_found_once_and_the_best_score_first():
    p = np.array([[0.6], [0.0], [0.0], [0.0], [1.0]])
    # A sure detection at the wrong end comes before the right one: precision 1/2 at recall 1.
    assert segments(p, TIMES, [[(0.0, 0.5)]]).mean_precision(0.5) == 0.5
    assert segments(p, TIMES, [[(3.5, 4.0)]]).mean_precision(0.5) == 1.0
    assert segments(p, TIMES, [[(0.0, 0.5), (3.5, 4.0)]]).mean_precision(0.5) == 1.0
    assert segments(p, TIMES, [[]]).mean_precision(0.5) == 0.0
