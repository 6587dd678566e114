"""OVO-Bench by polling: prompts byte for byte, scores as the official scorer's, bad input told."""

import json
import re

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks.benchmark import Records
from streamjax.evals.benchmarks.ovo_bench import OVO_BENCH, clips, right, tabulate, understood

CHOICE = {
    "id": 0,
    "task": "EPM",
    "video": "a.mp4",
    "realtime": 3.2,
    "question": "Where?",
    "options": ["here", "there"],
    "gt": 1,
}
COUNT = {
    "id": 1,
    "task": "REC",
    "video": "b.mp4",
    "activity": "jump",
    "start_times": [1],
    "end_times": [2],
    "test_info": [{"realtime": 1, "count": 0}, {"realtime": 2.5, "count": 12}],
}
CLUE = {
    "id": 2,
    "task": "CRR",
    "video": "c.mp4",
    "question": "Why?",
    "ask_time": 1,
    "test_info": [{"realtime": 1, "type": 0}, {"realtime": 4, "type": 1}],
}
STEP = {
    "id": 3,
    "task": "SSR",
    "video": "d.mp4",
    "all_steps": ["cut", "fold"],
    "start_time": [1, 4],
    "end_time": [3, 6],
    "test_info": [{"realtime": 2, "step": "cut", "type": 1}],
}
EVERY = [CHOICE, COUNT, CLUE, STEP]
RIGHT = {"0": "B", "1_0": "0", "1_1": "12", "2_0": "No", "2_1": "Yes", "3_0": "Yes"}


@pytest.fixture(scope="module")
def case(golden):
    folder = golden / "bench" / "ovo_bench"

    def read(name):
        return json.loads((folder / f"{name}.json").read_text("utf-8"))

    read.folder = folder
    return read


def folder_of(tmp_path, records):
    (tmp_path / "ovo_bench_new.json").write_text(json.dumps(records))
    return tmp_path


def score(records, answers, folder=None):
    if folder is not None:
        records = OVO_BENCH.read(folder_of(folder, records))
    return OVO_BENCH.score(records, answers, "official")


def test_prompts_and_ends_are_the_official_ones(case):
    records = OVO_BENCH.read(case.folder)
    asked = OVO_BENCH.questions(records, "polling")
    assert {q.id: q.prompt for q in asked} == case("prompts")
    assert {q.id: q.end for q in asked} == case("clip_end_seconds")
    assert {(q.start, q.frames) for q in asked} == {(0.0, 64)}
    assert records.problems == () and find("ovo_bench") is OVO_BENCH


@pytest.mark.parametrize("file", ["predictions.json", "official_results.json"])
def test_scores_are_the_official_ones(case, file):
    wanted = case("expected")
    found = OVO_BENCH.score(
        OVO_BENCH.read(case.folder), OVO_BENCH.answers(case.folder / file), "official"
    )
    assert found.table == wanted["table"]
    assert list(found.table) == list(wanted["table"])
    assert found.n == wanted["n"]
    assert found.details["per_item_score"] == wanted["per_item_score"]
    assert {one.id: one.score for one in found.graded} == wanted["per_item_score"]
    nulls = sum(answer is None for answer in case("predictions").values())
    assert found.unanswered == nulls and found.problems == ()
    assert found.unparsed == 3  # "one" for a number, "no" and "yes" in lower case


def test_single_responses_as_the_official_scorer_takes_them(golden):
    case = json.loads((golden / "streamo" / "h_ovo.json").read_text())["official_scoring"]
    for group in ("backward", "realtime"):
        found = [
            int(x["response"] is not None and right(x["task"], x["ground_truth"], x["response"]))
            for x in case["inputs"][group]
        ]
        assert found == case["per_item"][group]
    for item in case["inputs"]["forward"]:
        found = [
            int(
                poll["response"] is not None
                and right(
                    item["task"],
                    str(poll["count"]) if item["task"] == "REC" else ("No", "Yes")[poll["type"]],
                    poll["response"],
                )
            )
            for poll in item["test_info"]
        ]
        assert found == case["per_task"]["forward"][item["task"]]


@pytest.mark.parametrize(
    ("task", "response", "parsed"),
    [
        ("EPM", "The answer is C", "CT"),
        ("EPM", "b", None),
        ("REC", "1 or 2", "12"),
        ("REC", "two", None),
        ("SSR", "Nothing", "No"),
        ("CRR", "Now: Yes", "Yes No"),
        ("CRR", "Y", "Yes"),
        ("CRR", "yes", None),
        ("CRR", "", None),
    ],
)
def test_understood(task, response, parsed):
    assert understood(task, response) == parsed


@pytest.mark.parametrize(
    ("task", "ones", "total", "yes", "no"),
    [("CRR", 144, 240, 60.0, 40.0), ("SSR", 423, 629, 67.25, 32.75)],
)
def test_constant_answers_score_the_share_of_their_kind(tmp_path, task, ones, total, yes, no):
    """With the real file's counts, the specification's check values."""
    polls = [{"realtime": i, "type": int(i < ones), "step": "cut"} for i in range(total)]
    records = OVO_BENCH.read(
        folder_of(tmp_path, [{**(CLUE if task == "CRR" else STEP), "test_info": polls}])
    )
    key = records.records[0]["id"]
    for word, wanted in (("Yes", yes), ("No", no)):
        answers = {f"{key}_{i}": word for i in range(total)}
        table = OVO_BENCH.score(records, answers, "official").table
        assert round(table["Forward Active Responding"][task], 2) == wanted
        assert table["Overall Avg."] == table["Forward Active Responding"][task]


def test_counting_nothing_is_right_where_nothing_has_happened(tmp_path):
    polls = [{"realtime": i, "count": int(i >= 45)} for i in range(698)]
    found = score([{**COUNT, "test_info": polls}], {f"1_{i}": "0" for i in range(698)}, tmp_path)
    assert round(found.table["Forward Active Responding"]["REC"], 2) == 6.45
    assert found.n == {"REC": 698}


def test_averages_are_of_tasks_then_of_groups(tmp_path):
    more = [{**CHOICE, "id": 10 + i, "task": "OCR", "gt": int(i == 0)} for i in range(4)]
    more.append({**CHOICE, "id": 20, "task": "ACR"})
    answers = {**RIGHT, **{str(r["id"]): "B" for r in more}}
    table = score([*EVERY, *more], answers, tmp_path).table
    assert table["Real-Time Visual Perception"] == {"OCR": 25.0, "ACR": 100.0, "Avg.": 62.5}
    assert table["Backward Tracing"] == {"EPM": 100.0, "Avg.": 100.0}
    assert table["Overall Avg."] == pytest.approx((62.5 + 100 + 100) / 3)
    assert tabulate([], "official") == {}


def test_null_missing_and_odd_answers_are_wrong_and_counted(tmp_path):
    answers = {"0": None, "1_0": "none", "2_0": ["No"], "2_1": {"said": 1}, "3_0": 7, "99": "A"}
    found = score(EVERY, answers, tmp_path)
    scores = {one.id: one.score for one in found.graded}
    assert scores == {"0": 0, "1_0": 0, "1_1": 0, "2_0": 1, "2_1": 0, "3_0": 0}
    assert (found.unanswered, found.unparsed) == (3, 2)
    assert any("99" in line for line in found.problems)
    assert any("1_1" in line for line in found.problems)


def without(record, field):
    return {key: value for key, value in record.items() if key != field}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (without(CHOICE, "realtime"), "no 'realtime', wanted seconds"),
        ({**CHOICE, "options": ["one"]}, r"'options' is \['one'\], wanted a list of 2"),
        ({**CHOICE, "gt": 2}, "'gt' is 2, wanted the place of an option, 0 to 1"),
        ({**CHOICE, "gt": None}, "'gt' is None"),
        ({**CHOICE, "realtime": "soon"}, "'realtime' is 'soon'"),
        ({**CHOICE, "task": "XYZ"}, "'task' is 'XYZ', wanted one of OCR"),
        (without(CHOICE, "video"), "no 'video'"),
        ({**CHOICE, "id": 0}, "twice"),
        (without(CHOICE, "id"), "no 'id'"),
        (without(COUNT, "activity"), "no 'activity'"),
        ({**COUNT, "test_info": [{"realtime": 1}]}, r"test_info\[0\]: no 'count'"),
        ({**CLUE, "test_info": [{"realtime": 1, "type": 2}]}, "'type' is 2, wanted 0 or 1"),
        ({**STEP, "test_info": ["cut"]}, r"test_info\[0\] is 'cut', wanted an object"),
        ({**STEP, "test_info": None}, "'test_info' is None, wanted a list"),
        ("text", "a str, wanted an object"),
    ],
)
def test_one_bad_record_is_left_out_and_told(tmp_path, bad, told):
    if isinstance(bad, dict) and bad.get("id") and "twice" not in told:
        bad = {**bad, "id": 77}
    elif isinstance(bad, dict) and "id" in bad and "twice" not in told:
        bad = {**bad, "id": 78}
    found = score([*EVERY, bad], RIGHT, tmp_path)
    assert len(found.graded) == 6 and found.table["Overall Avg."] == 100
    (line,) = found.problems
    assert "record 4" in line
    assert re.search(told, line)


def test_folders_of_something_else(tmp_path):
    with pytest.raises(InputError, match="nothing there, wanted OVO-Bench's ovo_bench_new.json"):
        OVO_BENCH.read(tmp_path)
    (tmp_path / "ovo_bench.json").write_text("[]")
    with pytest.raises(InputError, match="its first version"):
        OVO_BENCH.read(tmp_path)
    with pytest.raises(InputError, match="nothing there"):
        OVO_BENCH.read(tmp_path / "absent")
    for records, told in (
        ([], "wanted OVO-Bench's list"),
        ({"records": EVERY}, "a dict, wanted"),
        ([{"question": "?"}, {"question": "!"}], "none of 2 records is OVO-Bench's"),
        ([{"id": 1, "question": "?"}], "no 'task'"),
    ):
        with pytest.raises(InputError, match=told):
            OVO_BENCH.read(folder_of(tmp_path, records))


def test_answers_to_something_else(tmp_path):
    records = Records(EVERY, ())
    with pytest.raises(InputError, match="none of 1 answers"):
        score(records, {"Action_0": "A"})
    file = tmp_path / "official.json"
    rows = [{"id": 0, "video": "other.mp4", "task": "EPM", "response": "B"}]
    file.write_text(json.dumps({"backward": rows}))
    with pytest.raises(InputError, match=r"'0' is about video 'other.mp4', wanted 'a.mp4'"):
        score(records, OVO_BENCH.answers(file))
    polls = [{"response": "No"}, {"response": "Yes"}]
    forward = [{"id": 2, "video": "c.mp4", "task": "CRR", "test_info": polls}]
    file.write_text(json.dumps({"backward": rows, "forward": forward}))
    found = score(records, OVO_BENCH.answers(file))
    assert "1 answers are about other videos" in found.problems[0]
    assert found.table["Forward Active Responding"]["CRR"] == 100 and found.unanswered == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "a list, wanted"),
        ("{", "no JSON"),
        ('{"0": "A", "0": "B"}', "twice"),
        ('{"backward": [{"id": 0}, {"id": 0}]}', "twice"),
        ('{"backward": ["A"]}', r"backward\[0\] is 'A', wanted an object"),
    ],
)
def test_answer_files_that_cannot_be_read(tmp_path, content, told):
    file = tmp_path / "answers.json"
    file.write_text(content)
    with pytest.raises(InputError, match=told):
        OVO_BENCH.answers(file)


def test_clips_of_a_forward_record():
    assert [(c.id, c.seconds, c.gold) for c in clips(COUNT)] == [("1_0", 1, "0"), ("1_1", 3, "12")]
