"""Curves of dialogues small enough to decide again by hand."""

import numpy as np
import pytest

from streamjax.evals.timing.curves import sweep
from streamjax.evals.timing.dialogues import Held
from streamjax.evals.timing.scores import Dialogue, score
from streamjax.stream import Thresholds, redecide

WANTED = (0, 1, 2, 0, 0, 2)
RESPONSE = (0.1, 0.2, 0.8, 0.1, 0.6, 0.3)  # one hit, one a second early, one missed


def held(video="a", wanted=WANTED, response=RESPONSE, rule=None, standby=0.5):
    """A dialogue as a model held it: Standby has the given share of what Response leaves."""
    shares = tuple(((1 - p) * (1 - standby), (1 - p) * standby, p) for p in response)
    states = tuple(redecide(shares, rule))
    words = tuple("Now." if s == 2 else "" for s in wanted)
    said = tuple("Now." if s == 2 else "" for s in states)
    return Held(
        "kind", "When?", video, Dialogue(wanted, words), Dialogue(states, said), shares, id=video
    )


def test_by_hand():
    curve = sweep([held()], tolerance=0, respond=(0.05, 0.25, 0.5, 0.7, 0.9))
    rows = [point.row(0) for point in curve.line(None)]
    # Spoken at 6 turns; at 2, 4, 5; at 2, 4; at 2; never. Wanted at 2 and 5.
    assert [row["precision"] for row in rows] == [2 / 6, 2 / 3, 1 / 2, 1.0, 0.0]
    assert [row["recall"] for row in rows] == [1.0, 1.0, 0.5, 0.5, 0.0]
    assert [row["false_alarms"] for row in rows] == [40.0, 10.0, 10.0, 0.0, 0.0]
    # Once spoken, not again until the probability has been below: at 0.25 turn 5 follows 4.
    rows = [point.row(0) for point in curve.line(0.0)]
    assert [row["precision"] for row in rows] == [0.0, 1 / 2, 1 / 2, 1.0, 0.0]
    assert [row["recall"] for row in rows] == [0.0, 1 / 2, 1 / 2, 1 / 2, 0.0]
    best = curve.best["f1"].thresholds
    assert best is not None and (best.respond, best.hysteresis) == (0.25, None)
    # Within a second the early answer at 4 is the one that was wanted at 5.
    near = sweep([held()], tolerance=1, respond=(0.5,))
    assert near.line(None)[0].row(1)["recall"] == 1.0


@pytest.mark.parametrize(
    "rule", [None, Thresholds(0.61, 0.33), Thresholds(0.25, 0.5, 0.0), Thresholds(0.5, 0.5, 0.13)]
)
def test_the_recorded_point_is_on_the_curve(rule):
    dialogues = [held("a", rule=rule), held("b", response=RESPONSE[::-1], rule=rule)]
    curve = sweep(dialogues, recorded=rule)
    scored = sum(
        (score(w.wanted, w.given) for w in dialogues[1:]), score(dialogues[0].wanted, dialogues[0].given)
    )  # fmt: skip
    assert curve.recorded.row() == curve.recorded.row(1)
    np.testing.assert_array_equal(curve.recorded.scores.confusion, scored.confusion)
    assert curve.recorded.scores.histogram == scored.histogram
    if rule is not None:
        (same,) = [point for point in curve.points if point.thresholds == rule]
        np.testing.assert_array_equal(same.scores.confusion, scored.confusion)
        levels = [p.thresholds.respond for p in curve.line(rule.hysteresis) if p.thresholds]
        assert rule.respond in levels


def test_standby_decides_nothing_about_answers():
    curve = sweep([held(standby=0.4)], respond=(0.5,), standby=(0.1, 0.35, 0.9), hystereses=(None,))
    assert len(curve.points) == 3 and len(curve.line(None)) == 1
    assert len({point.row()["precision"] for point in curve.points}) == 1
    # Standby is 0.36, 0.32, 0.08, 0.36, 0.16, 0.28: only the middle threshold tells 0 and 3 apart.
    assert [p.scores.confusion[1, 1] for p in curve.points] == [1, 0, 0]


def test_thresholds_are_chosen_on_the_other_half():
    # Speaking at .3 is right in one video and wrong in the other: no half knows of the other.
    one = held("a", (0, 2, 0, 0), (0.1, 0.3, 0.1, 0.1))
    other = held("b", (0, 2, 0, 0), (0.1, 0.9, 0.1, 0.3))
    curve = sweep([one, other], tolerance=0, respond=(0.2, 0.5), hystereses=(None,))
    best = curve.best["f1"].thresholds
    assert best is not None and best.respond == 0.2
    # Chosen on a (0.2), b scores 1 of 2; chosen on b (0.5), a says nothing: 2*1 / (2 said + 2).
    assert curve.crossed["f1"] == pytest.approx(0.5)
    assert sweep([one]).crossed == {"f1": None, "macro_f1": None}


def test_halves_add_up_to_the_whole():
    dialogues = [held(name, response=RESPONSE[i:] + RESPONSE[:i]) for i, name in enumerate("abcb")]
    for point in sweep(dialogues, respond=(0.25, 0.7)).points:
        first, second = point.halves
        assert first.dialogues == 2 and second.dialogues == 2  # both of b on one side
        assert point.scores.turns == 24 and point.scores.wanted == 8


def test_what_no_model_held_has_no_curve():
    silent = Held("kind", "", "a", Dialogue((0, 2), ("", "x")), Dialogue((0, 0), ("", "")))
    with pytest.raises(ValueError, match="no probabilities"):
        sweep([silent])
    with pytest.raises(ValueError, match="no probabilities"):
        sweep([])
    with pytest.raises(ValueError, match="do not follow from"):
        sweep([held()], recorded=Thresholds(0.9))
