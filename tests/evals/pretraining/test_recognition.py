"""Top-k by hand, and probes whose answer is known."""

import numpy as np
import pytest

from streamjax.errors import InputError
from streamjax.evals.pretraining.recognition import TopK, fit_probe, merge_views, score

LOGITS = np.array(
    [
        [9, 8, 7, 6, 5, 4, 3],  # its own (0) first
        [9, 8, 7, 6, 5, 4, 3],  # its own (4) fifth
        [9, 8, 7, 6, 5, 4, 3],  # its own (5) sixth
    ],
    np.float32,
)


def test_by_hand():
    sums = score(LOGITS, np.array([0, 4, 5]))
    assert sums == TopK(1, 2, 3)
    assert sums.row() == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}
    assert sums + TopK() + sums == TopK(2, 4, 6)
    assert TopK().row() == {"top1": 0.0, "top5": 0.0}


def test_ties_and_what_is_no_number_count_against_the_model():
    assert score(np.zeros((2, 7), np.float32), np.array([0, 6])) == TopK(0, 0, 2)
    nothing = np.full((1, 7), np.nan, np.float32)
    assert score(nothing, np.array([0])) == TopK(0, 0, 1)
    beside = np.array([[1, np.nan, 0, 0, 0, 0, 0]], np.float32)
    assert score(beside, np.array([0])) == TopK(0, 1, 1)


def test_a_label_that_is_no_class():
    with pytest.raises(ValueError, match="label 7 is none of the 7 classes"):
        score(LOGITS, np.array([0, 1, 7]))


def test_views_are_merged_as_probabilities():
    # One sure view outweighs two that lean the other way; the mean logit would say so as well,
    # but a constant added to a view must change nothing.
    views = np.array([[[8.0, 0.0], [0.0, 0.5], [0.0, 0.5]]])
    merged = merge_views(views)
    assert merged.shape == (1, 2) and merged[0].argmax() == 0
    np.testing.assert_allclose(np.exp(merged).sum(-1), 1)
    moved = views + np.array([[1000.0], [-5], [3]])
    np.testing.assert_allclose(merge_views(moved), merged, rtol=1e-9)
    far = merge_views(np.array([[[0.0, -2000.0, -1000.0]]]))[0]
    assert far[0] > far[2] > far[1]


def test_a_probe_separates_what_can_be_separated(rng):
    centres = rng.normal(size=(3, 8)) * 4
    labels = np.arange(90) % 3
    features = (centres[labels] + rng.normal(size=(90, 8)) * 0.3).astype(np.float32)
    features[:, 5] = 7.0  # says nothing, and has no spread to divide by
    probe = fit_probe(features[:60], labels[:60], 4)
    assert score(probe(features[60:]), labels[60:]) == TopK(30, 30, 30)
    again = fit_probe(features[:60], labels[:60], 4)
    np.testing.assert_array_equal(probe.kernel, again.kernel)
    # Neither the scale of a feature nor its offset decides anything.
    other = fit_probe(features[:60] * 100 + 3, labels[:60], 4)
    np.testing.assert_allclose(other(features * 100 + 3), probe(features), atol=0.02)


def test_a_probe_is_at_its_minimum(rng):
    features, labels = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    probe = fit_probe(features, labels, 2, decays=(0.1,))
    x = (features - features.mean(0)) / features.std(0)
    p = np.exp(probe(features))
    slope = p / p.sum(1, keepdims=True) - np.eye(2)[labels]
    gradient = x.T @ slope / 40 + 0.1 * probe.kernel * features.std(0)[:, None]
    assert np.abs(gradient).max() < 1e-5 and np.abs(slope.mean(0)).max() < 1e-5


def test_noise_gets_the_strongest_decay(rng):
    probe = fit_probe(rng.normal(size=(100, 40)), rng.integers(0, 2, 100), 2)
    assert probe.decay == 1.0


def test_probes_on_nothing_are_refused():
    with pytest.raises(InputError, match="probe of 0 clips"):
        fit_probe(np.zeros((0, 4)), np.zeros(0, int), 2)
    with pytest.raises(InputError, match="no numbers"):
        fit_probe(np.full((2, 4), np.nan), np.array([0, 1]), 2)
