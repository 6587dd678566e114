"""Decisions made again from recorded probabilities, and the picture of an ablation."""

import xml.etree.ElementTree as ElementTree

import pytest

from streamjax.evals.timing import operating
from streamjax.evals.timing.assistant import Watched
from streamjax.evals.timing.operating_picture import draw, page
from streamjax.evals.timing.scores import Dialogue
from streamjax.stream import Thresholds

SVG = "{http://www.w3.org/2000/svg}"


def watched(wanted, probabilities):
    words = tuple("Zero." if state == 2 else "" for state in wanted)
    return Watched(
        "alert", "Now?", "clip", Dialogue(tuple(wanted), words), Dialogue((), ()),
        tuple(probabilities),
    )  # fmt: skip


@pytest.fixture
def shy():
    """It knows when to answer and never reaches one half; its Standby is too eager."""
    quiet, waiting, answer = (0.52, 0.45, 0.03), (0.2, 0.78, 0.02), (0.5, 0.1, 0.4)
    one = watched((0, 1, 2, 0, 0), (quiet, waiting, answer, quiet, quiet))
    return [one, watched((0, 0, 0), (quiet, (0.35, 0.6, 0.05), quiet))]


def test_states_are_decided_again_and_words_are_not(shy):
    assert operating.redecided(shy, None)[0].given.states == (0, 1, 0, 0, 0)
    found = operating.redecided(shy, Thresholds(respond=0.3))
    assert found[0].given.states == (0, 1, 2, 0, 0) and found[1].given.states == (0, 1, 0)
    assert set(found[0].given.texts) == {""}


def test_a_curve_trades_precision_for_recall(shy):
    low, fair, high = operating.curve(shy, respond=(0.01, 0.3, 0.5))
    assert (fair["precision"], fair["recall"]) == (1, 1)
    assert low["recall"] == 1 and low["precision"] == pytest.approx(1 / 8)
    assert (high["precision"], high["recall"]) == (0, 0)
    assert fair["macro_f1"] > low["macro_f1"]


def test_fitted_thresholds_are_the_best_and_the_mildest(shy):
    found = operating.fitted(shy)
    assert found == Thresholds(respond=0.4, standby=0.7)
    assert operating.redecided(shy, found)[0].given.states == (0, 1, 2, 0, 0)


def test_answer_f1():
    assert operating.answer_f1(0.5, 1.0) == pytest.approx(2 / 3)
    assert operating.answer_f1(0.0, 0.0) == 0.0


@pytest.fixture
def picture():
    curve = [
        {"recall": 1.0, "precision": 0.2, "macro_f1": 0.3},
        {"recall": 0.5, "precision": 0.9, "macro_f1": 0.7},
    ]
    found = {
        name: [
            {"test": {"macro_f1": f1 + 0.01 * seed, "recall": 0.6, "precision": 0.8},
             "curve": curve}
            for seed in range(3)
        ]
        for name, f1 in (("ce", 0.71), ("focal", 0.74))
    }  # fmt: skip
    return draw(found, {"ce": "cross-entropy", "focal": "focal < plain"})


def test_every_seed_is_in_the_picture(picture):
    root = ElementTree.fromstring(picture)
    # A disc for each seed of the first variant, in its legend and on its curve; squares likewise.
    assert len(root.findall(f"{SVG}circle")) == 3 + 2
    assert len(root.findall(f"{SVG}polygon")) == 3 + 2
    curves = root.findall(f"{SVG}polyline")
    assert len({c.get("stroke") for c in curves}) == 2
    assert len({c.get("stroke-dasharray") for c in curves}) == 2
    assert "focal < plain" in {text.text for text in root.iter(f"{SVG}text")}


def test_the_page_stands_alone(picture):
    made = page(picture, "| a | b |\n|---|---|\n| x < y | 0.7 |\n\n| c |\n|---|\n| 1 |")
    assert "<svg" in made and "x &lt; y" in made and made.count("<table>") == 2
    assert "http://" not in made.replace("http://www.w3.org", "") and "<script" not in made
