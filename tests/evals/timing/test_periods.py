"""Periods told in words, against numbers worked out by hand and Streamo's formula."""

import json
from pathlib import Path

import pytest

from streamjax.evals.timing.periods import Periods, hull_iou, period_in, score_periods

GOLDEN = Path(__file__).parents[2] / "golden" / "streamo" / "i_derived_metrics.json"


def test_the_formula_of_the_paper():
    golden = json.loads(GOLDEN.read_text())
    cases = golden["grounding_iou"]
    ious = [hull_iou(tuple(case["pred"]), tuple(case["gt"])) for case in cases]
    assert ious == [case["iou"] for case in cases]
    assert sum(ious) / len(ious) == pytest.approx(golden["mIoU"], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Given event occurred between 20s to 43s.", (20, 43)),
        ("between 20s and 43s", (20, 43)),
        ("The event occurs during 43s - 63s.", (43, 63)),
        ("25s to 35s", (25, 35)),
        ("From 0:20 until 1:03.5", (20, 63.5)),
        ("1:00:00–1:00:05", (3600, 3605)),
        ("2.5 to 3.5 seconds", (2.5, 3.5)),
        ("It was <3s-4s>, then 8s to 9s", (3, 4)),
        ("5 to 2", (5, 2)),
        ("It happened.", None),
        ("at 12s", None),
        ("", None),
    ],
)
def test_periods_are_read(text, wanted):
    assert period_in(text) == wanted


def test_a_true_answer_needs_a_unit_to_be_a_period():
    assert period_in("The score is 3 to 2.", units=True) is None
    assert period_in("3 to 2, at 4s - 6s", units=True) == (4, 6)
    assert score_periods(["The score is 3 to 2."], ["3 to 2"]) == Periods()


def test_by_hand():
    # 8..19 against 11..23: 8 of 15 seconds.
    one = score_periods(["11s to 23s"], ["between 8s to 19s"])
    assert one == Periods(1, 1, 0, 8 / 15, (1, 1, 0))
    # Only the first of two guesses counts, for one was wanted; words without a period are told.
    guessed = score_periods(["11s to 23s"], ["Maybe.", "0s to 5s", "11s to 23s"])
    assert guessed == Periods(1, 2, 1, 0.0, (0, 0, 0))
    # Two wanted, given in the other order: each finds its own.
    two = score_periods(["2s to 4s", "10s to 14s"], ["10s to 14s", "3s to 4s"])
    assert two == Periods(2, 2, 0, 1.5, (2, 2, 1))
    both = one + two
    assert both.miou == pytest.approx((8 / 15 + 1.5) / 3) and both.above == (3, 3, 1)


def test_what_is_not_told_is_zero_and_what_is_not_wanted_is_no_number():
    assert score_periods(["2s to 4s"], []).miou == 0.0
    nothing = score_periods([], ["2s to 4s"])
    assert nothing.miou is None and nothing.row()["recall_at_0.5"] is None
    assert score_periods(["5s to 5s"], ["5s to 5s"]).miou == 0.0  # spans nothing
    assert score_periods(["2s to 5s"], ["5s to 2s"]).miou == 0.0  # ends before it begins
