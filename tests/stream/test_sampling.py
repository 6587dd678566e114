"""How words are drawn, against numpy; what a stream says by it, alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.stream.sampling import Sampling, knobs_of, pick
from tests.stream.oracle import make_frames, watch

V = 12


def drawn(logits, said, sampling, count=1):
    """`count` draws from one row's logits [v], turn after turn."""
    knobs = knobs_of([(sampling, turn) for turn in range(count)])
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    marks = jnp.broadcast_to(jnp.asarray(said, bool), rows.shape)
    return np.asarray(_pick(rows, marks, knobs))


_pick = jax.jit(lambda logits, said, knobs: pick(logits, said, knobs, 3))


def expected(logits, said, sampling):
    """The distribution, written down: numpy, float64."""
    x = np.asarray(logits, np.float64).copy()
    p = sampling.repetition_penalty
    x[said] = np.where(x[said] > 0, x[said] / p, x[said] * p)
    if sampling.temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x = np.exp((x - x.max()) / sampling.temperature)
    x /= x.sum()
    order = np.argsort(-x, kind="stable")
    held = np.cumsum(x[order])
    count = int(np.searchsorted(held, sampling.top_p)) + 1  # as few as hold this share
    kept = np.zeros_like(x)
    kept[order[:count]] = x[order[:count]]
    return kept / kept.sum()


CASES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5, top_p=0.8),
    Sampling(temperature=2.0, top_p=0.5, repetition_penalty=1.5),
    Sampling(repetition_penalty=4.0),
]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_the_distribution_is_the_one_asked_for(rng, sampling):
    logits, said = rng.normal(0, 2, V), rng.random(V) < 0.4
    count = 10_000
    found = np.bincount(drawn(logits, said, sampling, count), minlength=V) / count
    wanted = expected(logits, said, sampling)
    assert (found[wanted == 0] == 0).all()
    np.testing.assert_allclose(found, wanted, atol=4 * np.sqrt(wanted.max() / count))


def test_the_penalty_lowers_either_sign_and_only_what_was_said():
    logits = [3.0, 2.0, -1.0, -1.1]
    for said, penalty, best in (
        ([0], 1.4, 0), ([0], 1.6, 1), ([0, 1], 1.6, 0), ([1, 2, 3], 9.0, 0), ([], 9.0, 0),
    ):  # fmt: skip
        marks = np.isin(np.arange(4), said)
        assert drawn(logits, marks, Sampling(repetition_penalty=penalty)) == [best]
    marks = np.isin(np.arange(2), [0])
    assert drawn([-1.0, -1.5], marks, Sampling(repetition_penalty=2.0)) == [1]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0, top_p=1e-9), Sampling(temperature=1e-30), Sampling()],
    ids=str,
)
def test_the_limits_are_the_likeliest(rng, sampling):
    for logits in rng.normal(0, 2, (20, V)):
        assert drawn(logits, np.zeros(V, bool), sampling) == [logits.argmax()]


def test_a_stream_says_the_same_again_by_its_seed(models, words):
    """temperature 0 and top_p near 0 are greedy; another seed says other words."""
    model = models("llava")
    frames = make_frames(model, 24)

    def said(**sampling):
        options = dict(sampling=Sampling(**sampling)) if sampling else {}
        return [turn.tokens for turn in watch(model, words, frames, window=4, **options)]

    greedy = said()
    assert said(temperature=0.0, seed=3) == said(temperature=2.0, top_p=1e-9) == greedy
    warm = said(temperature=2.0, seed=1)
    assert warm == said(temperature=2.0, seed=1) != said(temperature=2.0, seed=2)
    assert warm != greedy
    penalised = said(repetition_penalty=1e6)
    for tokens in penalised:
        assert len(set(tokens[1:])) == len(tokens[1:])
    assert any(len(set(tokens[1:])) < len(tokens[1:]) for tokens in greedy), "no word comes twice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-1), r"temperature is -1, wanted 0 \(greedy\) or more"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(top_p=0), "top_p is 0, wanted above 0 and at most 1"),
        (dict(top_p=1.1), "top_p is 1.1"),
        (dict(repetition_penalty=0), r"repetition_penalty is 0, wanted above 0 \(1: none\)"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
