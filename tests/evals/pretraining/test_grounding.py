"""Proposals and overlaps of the original, exactly, and cases by hand."""

import json

import numpy as np
import pytest

from streamjax.evals.pretraining.grounding import (
    Grounded,
    multi_proposals,
    proposal,
    score,
    temporal_iou,
)


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / "streamformer/k_eval_helpers/proposals.json").read_text())


def test_the_originals_proposals(cases):
    for case in cases["proposals"]:
        p = np.array(case["prob"], np.float32)
        for factor, wanted in case["threshold_prob_proposal"].items():
            assert proposal(p, case["timestamps"], float(factor)) == tuple(wanted)


def test_the_originals_proposals_of_several_segments(cases):
    faults = 0
    for case in cases["proposals"]:
        p = np.array(case["prob"], np.float32)
        for name, wanted in case["multi_segment_proposal"].items():
            threshold, _, none = name.partition("_")
            given = p, case["timestamps"], float(threshold)
            wanted = [tuple(span) for span in wanted or []]
            ours = multi_proposals(*given, at_least_one=not none, parity="upstream")
            assert ours == wanted
            fixed = multi_proposals(*given, at_least_one=not none)
            assert [span[:2] for span in fixed] == [span[:2] for span in wanted]
            if fixed != wanted:
                faults += 1
                assert fixed[0][2] == p.max() and wanted[0][2] == p[-1]
    assert faults


def test_the_originals_overlaps(cases):
    for case in cases["iou"]:
        assert temporal_iou(case["a"], case["b"]) == case["iou"]


def test_overlap_by_hand():
    assert temporal_iou((0, 4), (2, 6)) == pytest.approx(2 / 6)
    assert temporal_iou((0, 1), (1, 2)) == 0.0
    assert temporal_iou((1, 1), (1, 1)) == 0.0


def test_scores_by_hand():
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    p = np.array([0.1, 0.1, 0.9, 0.5, 0.1])
    # 0.5: grows over 3 (0.5 > 0.45), ends at 1 and 4; 0.6 and 0.7: 1 .. 3.
    sums = score(p, times, [(1.0, 3.0)])
    np.testing.assert_allclose(sums.overlap, [2 / 3, 1, 1])
    assert sums.hits.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    row = (sums + Grounded() + score(p, times, [(4.0, 9.0)])).row()
    assert row["miou_f0.5"] == pytest.approx(1 / 3) and row["r1@0.5_f0.7"] == 0.5
    assert Grounded().row()["miou_f0.5"] == 0.0


def test_of_several_windows_the_best_counts():
    p = np.array([0.0, 0.0, 0.0, 1.0])
    windows = [(0.0, 1.0), (2.0, 3.0)]
    assert score(p, [0.0, 1.0, 2.0, 3.0], windows).overlap.tolist() == [1, 1, 1]


def test_flat_and_broken_probabilities_and_single_frames():
    times = [0.0, 1.0, 2.0]
    assert proposal(np.full(3, 0.4), times, 0.5) == (0.0, 2.0)
    assert proposal(np.zeros(3), times, 0.5) == (0.0, 1.0)  # nothing is above nothing
    assert proposal(np.array([np.nan, 1.0, np.nan]), times, 0.5) == (0.0, 2.0)
    assert proposal(np.array([1.0]), [5.0], 0.5) == (5.0, 5.0)


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="without a window"):
        score(np.ones(2), [0.0, 1.0], [])
    with pytest.raises(ValueError, match="1 times for 2 frames"):
        proposal(np.ones(2), [0.0], 0.5)
