"""Thresholds with hysteresis, by hand, and made again from what a stream has kept."""

import numpy as np
import pytest

import streamjax as sj
from streamjax.data.dialogue import STATES
from streamjax.stream import Thresholds, Turn, redecide
from streamjax.stream.decisions import Changes
from tests.stream.oracle import SMALL, SYSTEM, make_frames

SILENCE, STANDBY, RESPOND = range(3)


def shares(*respond, standby=0.0):
    return [(1 - r - standby, standby, r) for r in respond]


@pytest.mark.parametrize(
    ("rule", "respond", "states"),
    [
        # One event, several frames long: without hysteresis an answer each, with it one.
        (Thresholds(), (0.1, 0.5, 0.9, 0.6, 0.1), ".RRR."),
        (Thresholds(hysteresis=0.2), (0.1, 0.5, 0.9, 0.6, 0.1), ".R..."),
        # It has to fall below 0.5 - 0.2, not to it, before it counts again.
        (Thresholds(hysteresis=0.2), (0.6, 0.3, 0.6, 0.29, 0.6, 0.6), "R...R."),
        # Falling below the threshold is enough with a hysteresis of 0.
        (Thresholds(hysteresis=0.0), (0.6, 0.5, 0.49, 0.5), "R..R"),
        # It speaks from the first frame on, and re-arms while it is held back.
        (Thresholds(respond=0.9, hysteresis=0.1), (0.95, 0.85, 0.7, 0.89, 0.9), "R...R"),
        (Thresholds(respond=0.0), (0.0, 0.5), "RR"),
        (Thresholds(respond=1.0), (0.99, 1.0), ".R"),
        # None: the likeliest, whatever it was before.
        (None, (0.4, 0.6, 0.6), ".RR"),
    ],
)
def test_when_it_speaks(rule, respond, states):
    found = redecide(shares(*respond), rule)
    assert "".join("R" if s == RESPOND else "." for s in found) == states


def test_standby_is_what_is_left_of_speaking():
    rule = Thresholds(respond=0.5, standby=0.3, hysteresis=0.1)
    turns = [(0.4, 0.3, 0.3), (0.7, 0.29, 0.01), (0.0, 0.4, 0.6), (0.0, 0.4, 0.6), (0.3, 0.2, 0.5)]
    assert redecide(turns, rule) == [STANDBY, SILENCE, RESPOND, STANDBY, SILENCE]
    assert redecide([(0.5, 0.5, 0.0), (0.2, 0.4, 0.4)]) == [SILENCE, STANDBY]  # ties: the first


def test_a_stream_decides_by_them_and_so_does_its_trace(models, words):
    model = models("llava")
    frames = make_frames(model, 40)
    argmax = []
    for rule in (None, Thresholds(0.3, 0.2, 0.25), Thresholds(0.6, 0.4)):
        stream = sj.Stream(
            model, tokenizer=words, system=SYSTEM, window=4, thresholds=rule, **SMALL
        )
        turns = [stream.push(frame) for frame in frames]
        made = [STATES.index(turn.state) for turn in turns]
        kept = [turn.probabilities for turn in turns]
        assert redecide(kept, rule) == made
        argmax.append(redecide(kept) == made)
        assert {SILENCE, STANDBY, RESPOND} == set(made)
        # A trace keeps six digits: enough but for a share that stands on a threshold.
        assert redecide(np.round(kept, 6).tolist(), rule) == made
    assert argmax == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(respond=1.5), "respond is 1.5, wanted a probability between 0 and 1"),
        (dict(standby=float("nan")), "standby is nan"),
        (dict(hysteresis=-0.1), "hysteresis is -0.1"),
        (dict(respond=0.2, hysteresis=0.2), "hysteresis is 0.2, wanted below respond=0.2"),
    ],
)
def test_thresholds_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Thresholds(**options)


def test_changes_are_counted_and_timed():
    turns = [
        Turn(i, i / 2, STATES[state], shares, "", {}, ())
        for i, (state, shares) in enumerate(
            [(0, (0.6, 0.1, 0.3)), (2, (0.1, 0.1, 0.8)), (1, (0.2, 0.5, 0.3)), (2, (0.3, 0.3, 0.4))]
        )
    ]
    row = Changes.of(turns, Thresholds(0.3, hysteresis=0.1)).row()
    assert (row["turns"], row["changed"]) == (4, 3)
    assert (row["new_answers"], row["lost_answers"]) == ([0.0], [0.5, 1.5])
    assert row["counts"]["Response"] == {"Silence": 2, "Standby": 0, "Response": 0}
    table = Changes.of(turns, Thresholds(0.3)).table().splitlines()
    assert table[0].split() == ["was", "\\", "is", "Silence", "Standby", "Response"]
    assert [line.split() for line in table[1:4]] == [
        ["Silence", "0", "0", "1"], ["Standby", "0", "0", "1"], ["Response", "0", "0", "2"]
    ]  # fmt: skip
    assert table[4:] == ["2 of 4 turns change", "new answers: 0 s, 1 s", "answers gone: none"]
