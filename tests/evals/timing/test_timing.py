"""Timing metrics on dialogues small enough to score by hand."""

import json
import random

import numpy as np
import pytest

from streamjax.evals.timing.scores import (
    NOTHING,
    Dialogue,
    Timing,
    from_messages,
    match,
    same_words,
    score,
)

WANTED = Dialogue((0, 1, 1, 2, 0, 0, 2), ("", "", "", "Red.", "", "", "Blue."))
SILENT = Dialogue((0,) * 7, ("",) * 7)


def said(*answers, turns=20):
    """A dialogue of so many turns with words at some of them: (turn, text), ..."""
    texts = dict(answers)
    states = tuple(2 if i in texts else 0 for i in range(turns))
    return Dialogue(states, tuple(texts.get(i, "") for i in range(turns)))


def test_a_perfect_dialogue_scores_one():
    timing = score(WANTED, WANTED)
    assert timing.macro_f1 == timing.precision == timing.recall == timing.text == 1.0
    assert timing.at(0).f1 == 1.0 and timing.at(0).false_alarms == 0.0


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


def test_every_tolerance_is_there_at_once():
    # Wanted at 2, 8, 15. Given at 2 (in time), 7 (1 early), 18 (3 late), 19 (too many).
    wanted = said((2, "a"), (8, "b"), (15, "c"))
    given = said((2, "A!"), (7, "x"), (18, "c"), (19, "d"))
    timing = score(wanted, given)
    exact, near, far = (timing.at(seconds) for seconds in (0, 1, 3))
    assert (exact.matched, near.matched, far.matched) == (1, 2, 3)
    assert (exact.right, near.right, far.right) == (1, 1, 2)
    assert (exact.precision, near.precision, far.precision) == (1 / 4, 2 / 4, 3 / 4)
    assert (exact.recall, near.recall, far.recall) == (1 / 3, 2 / 3, 1.0)
    assert far.f1 == pytest.approx(6 / 7) and far.text == pytest.approx(2 / 3)
    # 20 turns are 20 seconds: 3, 2, 1 answers too many.
    assert (exact.false_alarms, near.false_alarms, far.false_alarms) == (9.0, 6.0, 3.0)


def test_delays_by_hand():
    # Delays 0, -1, +3: mean 2/3, median 0, quartiles halfway to the neighbours.
    wanted = said((2, "a"), (8, "b"), (15, "c"))
    timing = score(wanted, said((2, "a"), (7, "b"), (18, "c")))
    assert timing.onset == {
        "n": 3,
        "mean": pytest.approx(2 / 3),
        "first_quartile": -0.5,
        "median": 0.0,
        "third_quartile": 1.5,
    }
    assert timing.histogram == {"-1": 1, "+0": 1, "+3": 1}
    twice = timing + timing
    assert twice.histogram == {"-1": 2, "+0": 2, "+3": 2} and twice.onset["n"] == 6
    assert score(wanted, said()).onset["median"] is None


def test_answers_eleven_seconds_apart_have_nothing_to_do_with_each_other():
    wanted = said((2, "a"), turns=30)
    assert score(wanted, said((12, "a"), turns=30)).onset["mean"] == 10.0
    assert score(wanted, said((13, "a"), turns=30)).onset["n"] == 0


def test_turns_are_seconds_at_one_a_second_only():
    # 2 turns a second: 4 turns late are 2 seconds, 20 turns are 10.
    timing = score(said((2, "a")), said((6, "a"), (15, "b")), fps=2)
    assert timing.onset["mean"] == 2.0 and timing.minutes == pytest.approx(1 / 6)
    assert timing.at(1).matched == 0 and timing.at(2).matched == 1
    assert timing.at(2).false_alarms == pytest.approx(6.0)
    slow = score(said((2, "a")), said((3, "a")), fps=0.5)
    assert slow.at(1).matched == 0 and slow.at(3).matched == 1 and slow.histogram == {"+2": 1}


def test_a_wider_matching_holds_the_narrower_one():
    rng = random.Random(0)
    for _ in range(200):
        wanted = sorted(rng.sample(range(40), rng.randint(0, 12)))
        given = sorted(rng.sample(range(40), rng.randint(0, 12)))
        for narrow, wide in ((0, 1), (1, 3), (3, 10)):
            pairs = match(wanted, given, wide)
            near = [(a, b) for a, b in pairs if abs(a - b) <= narrow]
            assert near == match(wanted, given, narrow)


def test_an_answer_is_matched_once_nearest_first():
    assert match([3], [2, 3, 4], 1) == [(3, 3)]
    assert match([3, 4], [4, 5], 1) == [(4, 4)]
    assert match([3, 9], [2, 4], 1) == [(3, 2)]
    assert match([3], [5], 1) == []


def test_sums_add_up():
    rng = np.random.default_rng(0)
    both, wanted, given = NOTHING, [], []
    for turns in (7, 12, 1):
        a, b = (tuple(rng.integers(0, 3, turns).tolist()) for _ in range(2))
        wanted.append(Dialogue(a, tuple("2s to 4s" if s == 2 else "" for s in a)))
        given.append(Dialogue(b, tuple("3s to 4s" if s == 2 else "" for s in b)))
        both += score(wanted[-1], given[-1])
    # The same turns far enough apart in one dialogue are the same sums.
    gap = Dialogue((0,) * 30, ("",) * 30)

    def joined(parts):
        parts = [part for dialogue in parts for part in (dialogue, gap)]
        states = sum((p.states for p in parts), ())
        return Dialogue(states, sum((p.texts for p in parts), ()))

    one = score(joined(wanted), joined(given))
    assert both.dialogues == 3 and one.turns == both.turns + 90
    assert (one.confusion - both.confusion).tolist() == [[90, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert one.histogram == both.histogram and one.onset == both.onset
    for seconds in (0, 1, 3):
        a, b = one.at(seconds), both.at(seconds)
        assert (a.said, a.wanted, a.matched, a.right) == (b.said, b.wanted, b.matched, b.right)
    assert (both + NOTHING).whole() == (NOTHING + both).whole() == both.whole()
    again = Timing.of(json.loads(json.dumps(both.sums())))
    assert again.whole() == both.whole() and (again + both).dialogues == 6


def test_sums_of_other_rules_do_not_add():
    with pytest.raises(ValueError, match="fps is 1 here and 2 there"):
        score(WANTED, WANTED) + score(WANTED, WANTED, fps=2)
    with pytest.raises(ValueError, match="tolerance is 1 here and 3 there"):
        score(WANTED, WANTED) + score(WANTED, WANTED, tolerance=3)
    with pytest.raises(ValueError, match="tolerance is 12 s, wanted 0 to 10"):
        score(WANTED, WANTED, tolerance=12)


def test_nothing_said_is_no_precision():
    timing = score(WANTED, SILENT)
    assert timing.precision == timing.recall == timing.text == timing.at(3).false_alarms == 0.0


def test_nothing_wanted_is_no_recall():
    timing = score(SILENT, WANTED)
    assert timing.precision == timing.recall == 0.0
    # Two answers too many in 7 seconds.
    assert timing.at(1).false_alarms == pytest.approx(2 * 60 / 7)
    assert score(SILENT, SILENT).at(0).f1 == 1.0 and score(SILENT, SILENT).macro_f1 == 1.0


def test_no_turns_at_all_are_no_error():
    empty = score(Dialogue((), ()), Dialogue((), ()))
    assert empty.whole()["minutes"] == 0.0 and empty.at(0).false_alarms == 0.0
    assert NOTHING.whole()["macro_f1"] == 1.0 and NOTHING.onset["n"] == 0


def test_an_answer_without_words_is_in_time_and_wrong():
    timing = score(said((2, "a")), said((2, "")))
    assert timing.matched == 1 and timing.right == 0


def test_periods_are_scored_with_the_answers():
    timing = score(said((9, "between 2s to 4s")), said((9, "2s to 3s")))
    assert timing.periods.miou == 0.5 and timing.whole()["grounding"]["miou"] == 0.5


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
