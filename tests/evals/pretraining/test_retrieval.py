"""Ranks by hand, and the original's Recall@1."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.evals.pretraining.retrieval import Ranks, recall, score, score_similarity


def test_the_originals_recall(golden):
    case = load_file(golden / "streamformer/k_eval_helpers/io.safetensors")
    ranks = score(case["retrieval.text"], case["retrieval.video"])
    assert 100 * recall(ranks.text_to_video, 1) == case["retrieval.r_at_1_percent"]


def test_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.5, 0.6, 0.3]])
    ranks = score_similarity(similarity)
    assert ranks.text_to_video.tolist() == [1, 2, 3]
    assert ranks.video_to_text.tolist() == [1, 1, 1]
    row = (ranks + Ranks()).row()
    assert row["t2v_r1"] == pytest.approx(1 / 3) and row["t2v_r5"] == 1.0
    assert row["t2v_median"] == 2.0 and row["v2t_r1"] == 1.0


def test_galleries_add_up():
    one, two = np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])
    both = score_similarity(one) + score_similarity(two)
    assert both.count == 4 and both.row()["t2v_r1"] == 0.5


def test_ties_and_what_is_no_number_come_last():
    assert score(np.ones((4, 3)), np.ones((4, 3))).text_to_video.tolist() == [4] * 4
    assert score(np.zeros((4, 3)), np.eye(4, 3)).text_to_video.tolist() == [4] * 4
    assert Ranks().row()["t2v_r10"] == 0.0


def test_a_caption_told_twice_is_found_for_neither():
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert score(features, features).text_to_video.tolist() == [2, 2, 1]
