"""Timing metrics on dialogues small enough to score by hand."""

import pytest

from streamjax.evals.timing import NOTHING, Dialogue, from_messages, match, same_words, score

WANTED = Dialogue((0, 1, 1, 2, 0, 0, 2), ("", "", "", "Red.", "", "", "Blue."))


def test_a_perfect_dialogue_scores_one():
    timing = score(WANTED, WANTED)
    assert timing.macro_f1 == timing.precision == timing.recall == timing.text == 1.0


def test_by_hand():
    # One answer a second late with other case and no point, one right on time but wrong, one
    # too many far away.
    given = Dialogue((2, 1, 1, 0, 2, 0, 2), ("No.", "", "", "", "red", "", "Green."))
    timing = score(WANTED, given)
    assert (timing.said, timing.wanted, timing.matched, timing.right) == (3, 2, 2, 1)
    assert timing.precision == pytest.approx(2 / 3)
    assert timing.recall == 1.0 and timing.text == 0.5
    # Silence: 1 right of 3 wanted and 2 given; Standby: all; Response: 1 of 2 wanted, 3 given.
    assert timing.f1 == pytest.approx((2 / 5, 1.0, 2 / 5))


def test_an_answer_is_matched_once_nearest_first():
    assert match([3], [2, 3, 4], 1) == [(3, 3)]
    assert sorted(match([3, 4], [4, 5], 1)) == [(3, 4), (4, 5)] or sorted(
        match([3, 4], [4, 5], 1)
    ) == [(4, 4)]
    assert match([3], [5], 1) == []


def test_sums_add_up():
    given = Dialogue((0,) * 7, ("",) * 7)
    both = score(WANTED, WANTED) + score(WANTED, given) + NOTHING
    assert both.dialogues == 2 and both.recall == 0.5 and both.precision == 1.0


def test_nothing_said_is_no_precision():
    given = Dialogue((0,) * 7, ("",) * 7)
    assert score(WANTED, given).precision == 0.0


def test_words_are_compared_without_case_and_punctuation():
    assert same_words("The red circle grows.", "the  red circle GROWS")
    assert not same_words("Two.", "Three.")


def test_messages_are_read_back():
    messages = [
        {"role": "system", "content": "Watch."},
        {"role": "user", "content": "<0s-1s>\n<image>"},
        {"role": "assistant", "content": "</Standby>"},
        {"role": "user", "content": "<1s-2s>\n<image>"},
        {"role": "assistant", "content": "</Response> Two things."},
    ]
    assert from_messages(messages) == Dialogue((1, 2), ("", "Two things."))


def test_dialogues_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="2 answers for 7 turns"):
        score(WANTED, Dialogue((0, 0), ("", "")))
