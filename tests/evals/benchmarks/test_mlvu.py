"""MLVU: the authors' numbers and lmms-eval's, prompts to the byte, and what is unusable."""

import json
import shutil
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks.mlvu import FILES, MLVU, letter_before

GOLDEN = Path(__file__).parents[2] / "golden/bench/mlvu"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())
ANSWERS = json.loads((GOLDEN / "predictions.json").read_text())
KEYS = {
    "official": "official",
    "lmms_eval_legacy": "lmms_eval_v0.3.0",
    "lmms_eval_2026": "lmms_eval_v0.7.2",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The same questions as rows of the hub."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copy(GOLDEN / "mlvu_dev_hf_rows.json", folder)
    return MLVU.read(folder)


@pytest.mark.parametrize("form", ["lists", "hub"])
@pytest.mark.parametrize("rule", MLVU.rules)
def test_every_rule_gives_the_numbers_of_the_code_it_is_named_after(rule, form, hub):
    records = hub if form == "hub" else MLVU.read(GOLDEN)
    wanted = dict(EXPECTED[KEYS[rule]])
    found = MLVU.score(records, MLVU.answers(GOLDEN / "predictions.json"), rule)
    for name in ("gt", "parsed"):
        if name in wanted:
            assert found.details[name] == wanted.pop(name)
    if "per_item" in wanted:
        assert {one.id: one.score for one in found.graded} == wanted.pop("per_item")
    wanted.pop("note", None)
    assert found.table == wanted == MLVU.tabulate(found.graded, rule)
    assert found.n == dict.fromkeys(FILES.values(), 2) | {"M-Avg": 14} and not found.problems
    assert found.unparsed == (2 if rule != "official" else 4)


@pytest.mark.parametrize("form", ["lists", "hub"])
def test_prompts_to_the_byte(form, hub):
    records = hub if form == "hub" else MLVU.read(GOLDEN)
    official = MLVU.questions(records, "official")
    suffix = PROMPTS["official_question_suffix"]
    blocks = {one.id: one.prompt.removesuffix(suffix) for one in official}
    assert blocks == PROMPTS["official_question_block"]
    assert {one.system for one in official} == {PROMPTS["official_system"]}
    assert {one.prefix for one in official} == {PROMPTS["official_answer_prefix"]}
    assert all(one.prompt.endswith(suffix) for one in official)
    for protocol in ("lmms_eval_2026", "lmms_eval_legacy"):
        asked = {one.id: one.prompt for one in MLVU.questions(records, protocol)}
        assert asked == PROMPTS[KEYS[protocol]]
    assert official[0].video == ("plotQA_0.mp4" if form == "hub" else "1_plotQA/plotQA_0.mp4")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B) x", "B"), ("(B) x", "B"), ("B", "B"), (")B", ""), ("b)", "b"), ("B.", "B."), ("", "")],
)
def test_what_the_authors_take_for_the_letter(answer, letter):
    assert letter_before(answer) == letter


def row(**changes):
    plain = {
        "video": "v.mp4",
        "question": "What?",
        "candidates": ["x", "y", "z", "w"],
        "answer": "y",
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    def written(**files):
        for name, rows in files.items():
            (tmp_path / f"{name.lstrip('_')}.json").write_text(json.dumps(rows))
        return tmp_path

    return written


def test_tasks_that_are_missing_and_answers_that_are_null(folder):
    records = MLVU.read(
        folder(_4_count=[row()] * 2, _3_ego=[row()], _9_summary=[{"answer": "text"}])
    )
    answers = {"4_count.json:0": "B", "4_count.json:1": None, "3_ego.json:0": "none of them"}
    official = MLVU.score(records, answers, "official")
    assert official.table == {"per_task": {"ego": 0.0, "count": 50.0}, "M-Avg": 25.0}
    assert (official.unanswered, official.unparsed) == (1, 1)
    assert MLVU.score(records, answers, "lmms_eval_2026").table == {"M-Avg": 50 / 7}


def test_six_options_of_the_test_set(folder):
    lines = "".join(f"\n({letter}) {letter}x" for letter in "ABCDEF")
    plain = {"video_name": "v.mp4", "question": f"What?{lines}", "answer": "F"}
    rows = [plain | {"task_type": "sportsQA"}, plain | {"task_type": "count", "answer": "B"}]
    records = MLVU.read(folder(mlvu_test=rows))
    answers = {"mlvu_test.json:0": "F", "mlvu_test.json:1": "B"}
    assert MLVU.score(records, answers, "official").table["M-Avg"] == 100
    lmms = MLVU.score(records, answers, "lmms_eval_2026")
    assert lmms.table == {"M-Avg": 100 / 9} and lmms.unparsed == 1
    assert MLVU.questions(records, "lmms_eval_2026")[0].prompt.startswith("What?\n(A) Ax\n(B)")
    assert MLVU.questions(records, "official")[0].prompt.startswith(
        "Question: What?\nOptions:\n(A) "
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"candidates": ["x"]}, "holds 1 options"),
        ({"answer": "v"}, "answer 'v' is none of its options x, y, z, w"),
        ({"video": None}, "has no 'video'"),
    ],
)
def test_an_unusable_record_is_left_out_and_told(folder, changes, told):
    records = MLVU.read(folder(_5_order=[row(**changes), row()]))
    assert [one.id for one in records.records] == ["5_order.json:1"]
    assert records.problems[0].startswith("5_order.json:0: ") and told in records.problems[0]


def test_rows_of_the_hub_without_options_and_said_twice(folder):
    plain = {
        "video_name": "v",
        "question": "Q\nOptions:\n(A) x\n(B) y",
        "answer": "B",
        "task_type": "ego",
        "key": 1,
    }
    records = MLVU.read(folder(mlvu_dev=[plain, plain, plain | {"question": "Q\n(A) x"}]))
    assert len(records.records) == 1
    assert "id '1' stands there twice" in records.problems[0]
    assert "its question has 1 options '(A) ...'" in records.problems[1]


def test_files_that_are_not_this_benchmarks(folder):
    with pytest.raises(InputError, match="no MLVU: wanted json/1_plotQA.json or mlvu_dev"):
        MLVU.read(folder(other=[]))
    with pytest.raises(
        InputError, match="no usable question of MLVU: 3_ego.json:0: has no 'video'"
    ):
        MLVU.read(folder(_3_ego=[{"question_id": "1"}]))
    with pytest.raises(InputError, match="none of 1 answers is to a question of this MLVU"):
        MLVU.score(MLVU.read(GOLDEN), {"1": "A"}, "official")
