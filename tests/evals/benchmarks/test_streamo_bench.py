"""Streamo-Bench as we read it: the hand-made golden case, judged captions, and files that are wrong."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks import streamo_bench as bench
from streamjax.evals.timing.periods import hull_iou

GOLDEN = Path(__file__).parents[2] / "golden"
RULE = "streamo_derived"


def load(name):
    return json.loads((GOLDEN / "bench" / "streamo_bench" / name).read_text())


@pytest.fixture(scope="module")
def records():
    return bench.read(GOLDEN / "bench" / "streamo_bench")


@pytest.fixture
def answers():
    return load("predictions.json")


def write(folder: Path, content, name=bench.FILE) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


def record(name, /, **changed):
    (found,) = [one for one in load(bench.FILE) if one["id"] == f"0_{name}"]
    found |= changed
    return {key: value for key, value in found.items() if value != "gone"}


def test_the_golden_case(records, answers):
    scores = bench.score(records, answers, RULE)
    expected = load("expected.json")
    assert scores.table == pytest.approx(expected["table"], abs=1e-9)
    assert list(scores.table) == list(expected["table"])
    assert scores.details["per_item"] == expected["per_item"]
    assert scores.details[bench.PRECISION] == pytest.approx(expected[bench.PRECISION], abs=1e-9)
    assert bench.tabulate(scores.graded, RULE) == scores.table
    assert scores.problems == () and scores.unanswered == 0
    assert scores.unparsed == 1  # "It happened."
    assert scores.n[bench.ACCURACY] == 10 and scores.n[bench.RECALL] == 4


def test_formulas():
    case = json.loads((GOLDEN / "streamo" / "i_derived_metrics.json").read_text())
    ious = [hull_iou(tuple(one["pred"]), tuple(one["gt"])) for one in case["grounding_iou"]]
    assert ious == pytest.approx([one["iou"] for one in case["grounding_iou"]])
    assert sum(ious) / len(ious) == pytest.approx(case["mIoU"])
    found = [
        bench.hits([tuple(one) for one in item["gt"]], [tuple(one) for one in item["pred"]])
        for item in case["tsqa"]
    ]
    flat = [hit for one in found for hit in one]
    assert sum(flat) / len(flat) == pytest.approx(case["tsqa_accuracy_micro"])
    shares = [sum(one) / len(one) for one in found]
    assert sum(shares) / len(shares) == pytest.approx(case["tsqa_recall_macro"])


def test_whole_turns_of_a_stream_are_read_too(records, answers):
    whole = {
        key: [
            [0, "</Silence>"],
            [3, "</Standby>"],
            *([at, f"</Response> {text}"] for at, text in turns),
        ]
        for key, turns in answers.items()
    }
    assert bench.score(records, whole, RULE).table == bench.score(records, answers, RULE).table


def test_a_stream_is_asked_at_the_second_of_its_record(records):
    asked = {one.id: one for one in bench.questions(records, "stream")}
    assert asked["0_forward"].asks == (
        (26, "Localize this event: 'close the drawer' in the following video."),
    )
    assert asked["0_forward"].speaks_from == 26 and asked["0_forward"].until == "end"
    assert asked["1_narration"].video == "synth_1.mp4" and asked["1_narration"].speaks_from == 0


@pytest.mark.parametrize(
    ("said", "iou"),
    [
        ([[57, "Given event occurred between 40s to 57s."]], 1),
        ([[57, "Soon."], [58, "From 0:40 to 0:57, after 2 to 3 tries."]], 1),
        ([[57, "2 and 3 cups, between 40s and 57s"]], 1),
        ([[57, "40 to 57"], [60, "0s to 9s"]], 1),
        ([[57, "57s to 40s"]], 0),
        ([[57, "at 40s"]], 0),
        ([[57, "</Standby>"]], 0),
        ([], 0),
        (None, 0),
        ("40s to 57s", 0),
        ([[57]], 0),
        ([[None, "x"]], 0),
        ([[57, None]], 0),
        ({"Round 57": "x"}, 0),
    ],
)
def test_grounding(records, said, iou):
    scores = bench.score(records, {"0_forward": said}, RULE)
    assert scores.details["per_item"]["0_forward"] == iou


def test_missing_answers_are_wrong_and_told(records, answers):
    del answers["1_tsqa0"]
    answers["0_tsqa0"] = None
    answers["0_tsqa1"] = [[12, "the crate"], [58, "(A) red cup"]]
    answers["0_forward"] = "text"
    scores = bench.score(records, answers, RULE)
    assert scores.details["per_item"]["1_tsqa0"] == [0, 0]
    assert scores.details["per_item"]["0_tsqa0"] == [0, 0, 0]
    assert scores.table[bench.ACCURACY] == pytest.approx(10)  # 1 of 10
    assert scores.details[bench.PRECISION] == pytest.approx(25)  # 1 of 4
    assert scores.unanswered == 3
    assert scores.problems == (
        "1 questions without an answer, first '1_tsqa0'",
        "answer '0_forward': wanted [[second, text], ...]; counted as none",
    )


def test_without_a_judge_there_is_no_win_rate_and_no_average(records, answers):
    alone = dataclasses.replace(records, verdicts={})
    scores = bench.score(alone, answers, RULE)
    assert scores.table["Narration (win rate)"] is None and scores.table["Average"] is None
    assert scores.table[bench.ACCURACY] == 60
    assert scores.problems[0].startswith("4 captions without a verdict, left out of the win rates")
    some = dataclasses.replace(records, verdicts={"0_narration": "win", "1_narration": "won"})
    scores = bench.score(some, {**answers, "1_dense_caption": []}, RULE)
    assert scores.table["Narration (win rate)"] == 100
    assert (
        scores.table["Dense Caption (win rate)"] == 0
    )  # Said nothing: it was not shown, and lost.
    assert scores.n["Dense Caption (win rate)"] == 1


def test_a_table_of_one_subtask(tmp_path):
    found = bench.read(write(tmp_path, [record("forward")]))
    table = bench.score(found, {"0_forward": [[57, "40s to 57s"]]}, RULE).table
    assert table["Grounding Forward (mIoU)"] == 100
    assert [value for value in table.values() if value is not None] == [100]


def test_captions_are_judged_in_both_orders(tmp_path, answers):
    rival = {"0_narration": [[5, "</Response> The {a} rival speaks."]]}
    write(tmp_path, [record("narration"), record("dense_caption")])
    found = bench.read(write(tmp_path, rival, bench.BASELINE))
    (one,) = bench.judging(found, answers)
    first, second = one.prompts
    ours, theirs = "[27s] Step 0 happens.\n", "[6s] The {a} rival speaks.\n"
    assert f"A said:\n{ours}" in first and f"B said:\n{theirs}" in first
    assert f"A said:\n{theirs}" in second and f"B said:\n{ours}" in second
    assert "Provide a continuous narration of the video." in first
    assert "[26s to 27s] A person does step 0.\n" in first
    assert bench.judging(found, {"0_narration": []}) == []
    assert [path.name for path in found.files] == [bench.FILE, bench.BASELINE]


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        (["Verdict: A", "Verdict: B"], "win"),
        (["Verdict: B", "so\n**Verdict: a**"], "lose"),
        (["Verdict: A", "Verdict: A"], "tie"),
        (["Verdict: tie", "Verdict: B"], "tie"),
        (["Verdict: A or B?\nVerdict: A", "Verdict: B."], "win"),
        (["Verdict: A", "I cannot say."], None),
        (["", ""], None),
        (["Verdict: A"], None),
        (["Verdict: About even", "Verdict: B"], None),
    ],
)
def test_verdicts(replies, verdict):
    assert bench.verdict(replies) == verdict


def test_a_judge_needs_a_rival(records, answers):
    with pytest.raises(
        InputError, match="put baseline_predictions.json.*beside streamo_bench.json"
    ):
        bench.judging(records, answers)


ENTRY = {"content": "A. x", "time": 3}


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (record("forward", id="gone"), "record 0: 'id' is None, wanted text; left out"),
        (record("forward", subtask="sideways"), "'subtask' is 'sideways', wanted one of forward"),
        (record("forward", subtask=["forward"]), "'subtask' is ['forward'], wanted one of forward"),
        (record("forward", video="gone"), "'video' is None"),
        (record("forward", question=[]), "'question' is '[]', wanted a list of entries"),
        (
            record("forward", question=[{"content": "x", "time": ""}]),
            "'time' is '', wanted seconds",
        ),
        (record("forward", question=[{"content": "", "time": 1}]), "'content' is '', wanted text"),
        (record("forward", response=[{"content": "x"}]), "'st_time' is None, wanted seconds"),
        (record("tsqa0", response=[ENTRY, {"content": "the cup", "time": 3}]), "'the cup'"),
        (
            record("tsqa0", question=[{"content": "What?\nA. red", "time": 1}]),
            "one option, wanted 2",
        ),
        (record("narration", response="gone"), "'response' is 'None'"),
        (record("tsqa1"), "id '0_tsqa1' stands there twice"),
        (7, "a int, wanted an object"),
    ],
)
def test_a_bad_record_is_left_out_and_told(tmp_path, bad, line):
    content = [bad, record("tsqa1")] if "twice" not in line else [bad, copy.deepcopy(bad)]
    found = bench.read(write(tmp_path, content))
    assert [one.id for one in found.records] == ["0_tsqa1"]
    (problem,) = found.problems
    assert line in problem and "\n" not in problem


def test_times_may_be_words_and_fractions(tmp_path):
    response = [{"content": "x", "st_time": "00:40", "end_time": "57.25"}]
    found = bench.read(write(tmp_path, [record("forward", response=response)]))
    assert found.records[0].truth == (("x", 40, 57.25),)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("videomme.json", [], "found videomme.json, wanted streamo_bench.json"),
        (bench.FILE, {}, "holds no list of records"),
        (bench.FILE, [{"id": "1"}], "not one usable record of Streamo-Bench; streamo_bench.json"),
    ],
)
def test_another_folder_is_told_in_one_line(tmp_path, name, content, line):
    with pytest.raises(InputError, match=line) as told:
        bench.read(write(tmp_path, content, name))
    assert "\n" not in str(told.value)


def test_verdicts_in_another_form(tmp_path):
    write(tmp_path, [record("narration")])
    with pytest.raises(InputError, match="win, tie or lose"):
        bench.read(write(tmp_path, ["win"], bench.VERDICTS))


def test_answers_to_other_data(records):
    with pytest.raises(InputError, match="none of 1 answers is to a question"):
        bench.score(records, {"real:0": "A"}, RULE)


def test_it_is_found_by_name():
    assert find("Streamo-Bench") is bench.STREAMO_BENCH
