"""E.T. Bench: the golden case, replies by hand, and what is wrong with files."""

import json
import shutil

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks.etbench import letter, spans

BENCH = find("etbench")


@pytest.fixture(scope="module")
def case(golden):
    return golden / "bench/etbench"


def test_the_golden_case(case):
    scores = BENCH.score(
        BENCH.read(case), BENCH.answers(case / "predictions.json"), next(iter(BENCH.rules))
    )
    wanted = json.loads((case / "expected.json").read_text())
    assert scores.table.keys() == wanted.keys()
    for task, by_source in wanted.items():
        assert scores.table[task].keys() == by_source.keys()
        for source, row in by_source.items():
            assert scores.table[task][source] == pytest.approx(row, abs=1e-5)
            assert list(scores.table[task][source]) == list(row)
    assert (scores.unanswered, scores.unparsed, scores.problems) == (0, 0, ())
    assert scores.details["task_means"]["rar"] == 0.5
    assert sum(scores.n.values()) == len(scores.graded) == 18
    assert len(BENCH.questions(BENCH.read(case), "whole")) == 18


SPANS = [
    ("12.5 - 30 seconds, 40-41.", [(12.5, 30), (40, 41)]),
    ("From 71.7 to 90.3 seconds.", [(71.7, 90.3)]),
    ("It starts at 3.5 s and ends at 9 s. Start 20, end 22.", [(3.5, 9), (20, 22)]),
    ("30 - 12", [(12, 30)]),
    ("at 5 seconds", []),
    ("", []),
]


@pytest.mark.parametrize(("reply", "found"), SPANS)
def test_spans(reply, found):
    assert spans(reply) == found


LETTERS = [("(C) pour", 2), ("D", 3), ("D. x", 3), ("It is (b).", 1), (" a) x", 0), ("Pour", None)]


@pytest.mark.parametrize(("reply", "found"), LETTERS)
def test_letters(reply, found):
    assert letter(reply) == found


def test_a_reply_that_is_an_options_text(tmp_path):
    records = [_record(i, "rvq", o=["open it", "pour the water"], p=1) for i in range(2)]
    scores = _scores(tmp_path, records, {"0": "Pour the water.", "1": "water"})
    assert [one.parsed for one in scores.graded] == [1, None]
    assert scores.table["rvq"]["s"] == {"Total": 2, "Failed": 1, "Acc": 0.5}


def _folder(tmp_path, records, name="etbench_txt_v1.0.json"):
    (tmp_path / name).write_text(json.dumps(records))
    return tmp_path


def _record(idx, task, **rest):
    base = {"version": 1.0, "idx": idx, "task": task, "source": "s", "video": "v.mp4", "q": "?"}
    return base | {"duration": 100.0} | rest


def _scores(tmp_path, records, replies):
    return BENCH.score(BENCH.read(_folder(tmp_path, records)), replies, "official")


def test_failures_count_as_nothing_but_for_evs(tmp_path):
    windows = {"tgt": [[10, 20], [30, 40]]}
    records = [
        _record(0, "evs", **windows), _record(1, "evs", **windows), _record(2, "tal", **windows),
        _record(3, "tal", **windows), _record(4, "tvg", tgt=[10, 20]), _record(5, "vhd", tgt=[[[1, 2]]]),
        _record(6, "rar", o=["a", "b"], p=0), _record(7, "dvc", tgt=[1, 2]),
    ]  # fmt: skip
    replies = {"0": "10 - 20", "1": "no idea", "2": "10 - 20, 10 - 20", "3": None, "4": "none",
               "5": "soon", "6": "Apples"}  # fmt: skip
    scores = _scores(tmp_path, records, replies)
    table = {task: by_source["s"] for task, by_source in scores.table.items()}
    assert table["evs"] == {"Total": 2, "Failed": 1, "F1": pytest.approx(2 / 3)}
    # Both of tal's spans lie on the first window, and both are right.
    assert table["tal"]["F1"] == pytest.approx((2 / 3) / 2) and table["tal"]["Failed"] == 1
    assert table["tvg"]["mean"] == table["vhd"]["F1"] == table["rar"]["Acc"] == 0.0
    assert (scores.unanswered, scores.unparsed) == (1, 4)
    assert scores.details["not_scored"] == {"dvc": 1}
    told = "\n".join(scores.problems)
    assert "dvc: 1 not scored, needs METEOR" in told and "1 questions without an answer" in told


def test_official_answers_and_times_as_marks(tmp_path):
    records = [_record(0, "tem", src=[1.5, 2], tgt=[[3, 4]], q="<vid> - <vid>?")]
    records = BENCH.read(_folder(tmp_path, records, "etbench_vid_v1.0.json"))
    assert BENCH.questions(records, "whole")[0].prompt == "1.5 - 2?"
    said = tmp_path / "said.json"
    said.write_text(json.dumps([{"idx": 0, "a": "3 - 4"}]))
    assert BENCH.score(records, BENCH.answers(said), "official").table["tem"]["s"]["mIoU"] == 1.0
    said.write_text(json.dumps([{"idx": 0, "a": "3 - 4"}] * 2))
    with pytest.raises(InputError, match="record 1: idx 0 stands there twice"):
        BENCH.answers(said)
    said.write_text(json.dumps([{"idx": 0}]))
    with pytest.raises(InputError, match="record 0 .* wanted idx and a"):
        BENCH.answers(said)


WRONG = [
    (_record(1, "tvg", tgt=[1, 2]) | {"video": None}, "video None; wanted text"),
    (_record(1, "tvg"), "tgt None; wanted \\[start, end\\]"),
    (_record(1, "tvg", tgt=[1]), "tgt \\[1\\]; wanted"),
    (_record(1, "tvg", tgt=["a", 2]), "wanted seconds"),
    (_record(1, "rar", o=["a"], p=0), "o \\['a'\\]; wanted a list of two"),
    (_record(1, "rar", o=["a", "b"], p=2), "p 2; wanted the right one of 2"),
    (_record(1, "sing", tgt=[1, 2]), "task 'sing'; wanted one of"),
    (_record(1, "tvg", tgt=[1, 2]) | {"version": 2.0}, "version 2.0; wanted 1.0"),
    (_record(0, "tvg", tgt=[1, 2]), "idx 0 stands there twice"),
    (7, "is a int"),
]


@pytest.mark.parametrize(("record", "told"), WRONG)
def test_a_bad_record_is_left_out_and_told(tmp_path, record, told):
    records = BENCH.read(_folder(tmp_path, [_record(0, "tvg", tgt=[1, 2]), record]))
    assert len(records.records) == 1 and len(records.problems) == 1
    with pytest.raises(InputError, match=told):
        raise InputError(records.problems[0])
    assert records.problems[0] in BENCH.score(records, {"0": "1 - 2"}, "official").problems


def test_other_folders_and_answers(tmp_path, case):
    with pytest.raises(InputError, match="no E.T. Bench; wanted etbench_txt_v1.0.json"):
        BENCH.read(tmp_path)
    shutil.copy(case / "etbench_txt_v1.0.json", tmp_path / "etbench_txt_v2.0.json")
    with pytest.raises(InputError, match="etbench_txt_v2.0.json; wanted"):
        BENCH.read(tmp_path)
    with pytest.raises(InputError, match="none can be used"):
        BENCH.read(_folder(tmp_path, [_record(0, "tvg")]))
    with pytest.raises(InputError, match="holds no list of records"):
        BENCH.read(_folder(tmp_path, {}))
    with pytest.raises(InputError, match="none of 1 answers"):
        BENCH.score(BENCH.read(case), {"x": "1 - 2"}, "official")
    scores = BENCH.score(BENCH.read(case), {"0": 3}, "official")
    assert "answer '0' is a int, wanted text or null" in scores.problems
