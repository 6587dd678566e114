"""MVBench: both scorers' numbers, prompts to the byte, frames, and what is unusable."""

import json
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks.mvbench import MVBENCH, TASKS, frame_indices, is_hit

GOLDEN = Path(__file__).parents[2] / "golden/bench/mvbench"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())
RECORDS = MVBENCH.read(GOLDEN)


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("official", "official"),
        ("lmms_eval_2026", "lmms_eval_v0.7.2"),
        ("lmms_eval_legacy", "lmms_eval_v0.7.2"),
    ],
)
def test_every_rule_gives_the_numbers_of_the_code_it_is_named_after(rule, key):
    wanted = dict(EXPECTED[key])
    per_item = wanted.pop("per_item")
    gt = wanted.pop("gt", None)
    found = MVBENCH.score(RECORDS, MVBENCH.answers(GOLDEN / "predictions.json"), rule)
    assert found.table == wanted
    assert {one.id: one.score for one in found.graded} == per_item
    assert gt is None or found.details["gt"] == gt
    assert MVBENCH.tabulate(found.graded, rule) == wanted
    assert list(found.table["per_task"]) == [task.title for task in TASKS.values()]
    average = {list(wanted)[-1]: 20}
    assert found.n == dict.fromkeys(found.table["per_task"], 1) | average and not found.problems


def test_prompts_to_the_byte():
    official = MVBENCH.questions(RECORDS, "official")
    suffix = PROMPTS["official_question_suffix"]
    blocks = {one.id: one.prompt.removesuffix(suffix) for one in official}
    assert blocks == PROMPTS["official_question_block"]
    assert {one.system for one in official} == {PROMPTS["official_system"]}
    assert {one.prefix for one in official} == {PROMPTS["official_answer_prefix"]}
    assert all(one.prompt.endswith(suffix) for one in official)
    lmms = {one.id: one.prompt for one in MVBENCH.questions(RECORDS, "lmms_eval")}
    assert lmms == PROMPTS["lmms_eval"]
    assert official[0].kept("A) because\nB)") == "(A) because"


def test_frames_of_videos_and_of_folders_of_pictures():
    for record in RECORDS.records:
        pictures = record.task == "episodic_reasoning"
        fps, last, first = (3.0, 180, 1) if pictures else (25.0, 599, 0)
        found = frame_indices(fps, last, record.start, record.end, first=first)
        assert found == EXPECTED["frame_indices_16seg"]["indices"][record.id]
    for asked in MVBENCH.questions(RECORDS, "official"):
        pictures = asked.id.startswith("episodic_reasoning")
        frames = 180 if pictures else 600
        wanted = EXPECTED["frame_indices_16seg"]["indices"][asked.id]
        assert asked.pictures_fps == (3 if pictures else None)
        found = asked.spread(asked.pictures_fps or 25.0, frames, asked.start, asked.end, 16)
        assert found == [at - pictures for at in wanted] and asked.frames == 16


def test_where_the_clips_lie():
    official = {one.id: one for one in MVBENCH.questions(RECORDS, "official")}
    lmms = {one.id: one for one in MVBENCH.questions(RECORDS, "lmms_eval")}
    key = "action_sequence.json:0"
    assert official[key].video == "star/Charades_v1_480/synth_action_sequence_0.mp4"
    assert (official[key].start, official[key].end) == (16.4, 21.4)
    assert lmms[key].video == "star/Charades_segment/synth_action_sequence_0.mp4"
    assert (lmms[key].start, lmms[key].end) == (0.0, None)
    assert official["episodic_reasoning.json:0"].video == "tvqa/frames_fps3_hq/synth_0"


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("B", True), ("(b", True), ("B.", True), ("(B) x", True), ("B)", True), ("b. x", True),
        ("", True), (" B", True), ("x", False), ("Best option: (B)", False), ("B\nx", False),
        ("(B)\nx", True), ("A", False),
    ],
)  # fmt: skip
def test_what_the_authors_take_for_an_option(answer, hit):
    assert is_hit(answer, "(B) x y") is hit


def row(**changes):
    plain = {"video": "v.mp4", "question": "What?", "candidates": ["x", "y"], "answer": "y"}
    return {key: value for key, value in (plain | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    def written(**tasks):
        for name, rows in tasks.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return tmp_path

    return written


def test_tasks_that_are_missing_and_answers_that_are_null(folder):
    records = MVBENCH.read(folder(state_change=[row()] * 3, action_count=[row()]))
    answers = {"action_count.json:0": "B", "state_change.json:0": None, "state_change.json:1": ""}
    official = MVBENCH.score(records, answers, "official")
    assert official.table == {"per_task": {"Action Count": 100, "State Change": 100 / 3}, "Avg": 50}
    assert (official.unanswered, official.unparsed) == (2, 0)
    lmms = MVBENCH.score(records, answers | {"state_change.json:2": "y"}, "lmms_eval_2026")
    tasks = {"Action Count": 100, "State Change": 0}
    assert lmms.table == {"per_task": tasks, "mean_of_tasks": 50}
    assert lmms.n == {"Action Count": 1, "State Change": 1, "mean_of_tasks": 2}
    assert (lmms.unanswered, lmms.unparsed) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"candidates": ["x"]}, "holds 1 options"),
        ({"answer": "z"}, "answer 'z' is none of its options x, y"),
        ({"video": None}, "has no 'video'"),
        ({"end": None}, "'end' is None, wanted seconds"),
        ({"start": 5.0}, "ends at 2.0 s and starts at 5.0 s"),
        ({"start": "1"}, "'start' is '1', wanted seconds"),
    ],
)
def test_an_unusable_record_is_left_out_and_told(folder, changes, told):
    good = row(start=1.0, end=2.0)
    bad = {key: value for key, value in (good | changes).items() if value is not None}
    records = MVBENCH.read(folder(action_sequence=[bad, good]))
    assert [one.id for one in records.records] == ["action_sequence.json:1"]
    assert (
        records.problems[0].startswith("action_sequence.json:0: ") and told in records.problems[0]
    )


def test_files_that_are_not_this_benchmarks(folder):
    with pytest.raises(InputError, match="no MVBench: wanted json/action_sequence.json or"):
        MVBENCH.read(folder(other=[]))
    with pytest.raises(InputError, match="no usable question of MVBench: the list is empty"):
        MVBENCH.read(folder(action_count=[]))
    with pytest.raises(InputError, match="none of 1 answers is to a question of this MVBench"):
        MVBENCH.score(MVBENCH.read(folder(action_count=[row()])), {"1": "A"}, "official")
