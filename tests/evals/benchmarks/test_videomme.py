"""Video-MME: the authors' numbers and lmms-eval's, prompts to the byte, and what is unusable."""

import json
import re
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks.videomme import VIDEOMME

GOLDEN = Path(__file__).parents[2] / "golden/bench/videomme"
KEYS = {
    "official": "official",
    "lmms_eval_legacy": "lmms_eval_v0.3.0",
    "lmms_eval_2026": "lmms_eval_v0.7.2",
}


def load(name):
    return json.loads((GOLDEN / name).read_text())


def row(key="9-1", **changes):
    plain = {
        "video_id": "9", "duration": "short", "domain": "Knowledge", "sub_category": "Law",
        "videoID": "xyz", "question_id": key, "task_type": "OCR Problems", "question": "What?",
        "options": ["A. one", "B. two", "C. three", "D. four"], "answer": "B",
    }  # fmt: skip
    return {key: value for key, value in (plain | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    def written(rows):
        (tmp_path / "videomme_test.json").write_text(json.dumps(rows))
        return tmp_path

    return written


@pytest.mark.parametrize("rule", VIDEOMME.rules)
def test_every_rule_gives_the_numbers_of_the_code_it_is_named_after(rule):
    wanted = dict(load("expected.json")[KEYS[rule]])
    read = wanted.pop("extracted")
    found = VIDEOMME.score(
        VIDEOMME.read(GOLDEN), VIDEOMME.answers(GOLDEN / "predictions.json"), rule
    )
    assert dict(found.table) == wanted
    assert found.details["extracted"] == read
    assert found.table == VIDEOMME.tabulate(found.graded, rule)
    assert (found.unanswered, found.unparsed, found.problems) == (0, 4, ())
    assert found.n["overall"] == (14 if rule == "official" else 18)


def test_the_authors_detailed_tables():
    found = VIDEOMME.score(VIDEOMME.read(GOLDEN), load("predictions.json"), "official")
    printed = load("expected.json")["official_stdout"].split("entire dataset")[1]
    blocks = {
        "domains": ("Video Domains", "Video Sub"),
        "sub_categories": ("Video Sub", "Task Cat"),
        "task_types": ("Task Cat", "Overall"),
    }
    for name, (start, end) in blocks.items():
        part = printed[printed.index(start) : printed.index(end)]
        shown = {kind: float(value) for kind, value in re.findall(r"(.+): +([\d.]+)%", part)}
        ours = {kind: round(value, 1) for kind, value in found.details[name].items()}
        assert shown == dict.fromkeys(shown, 0.0) | ours


def test_prompts_to_the_byte():
    wanted = load("prompts.json")
    for protocol, key in (("official", "official_readme"), ("lmms_eval", "lmms_eval_default")):
        asked = VIDEOMME.questions(VIDEOMME.read(GOLDEN), protocol)
        assert {one.id: one.prompt for one in asked} == wanted[key]
        assert asked[0].video == "synth001.mp4" and asked[0].frames == 16
    last = VIDEOMME.questions(VIDEOMME.read(GOLDEN), "llava_vid")[0].prompt
    assert "and the subtitles. " in last and last.endswith("D. striped towel.\nThe best answer is:")


def test_the_authors_form_of_results_holds_questions_and_answers(tmp_path):
    videos = load("output_test_template.json")
    said = load("predictions.json")
    for video in videos:
        for question in video["questions"]:
            question["response"] = said[question["question_id"]]
    (tmp_path / "output_test_template.json").write_text(json.dumps(videos))
    records = VIDEOMME.read(tmp_path)
    answers = VIDEOMME.answers(tmp_path / "output_test_template.json")
    assert answers == said
    wanted = load("expected.json")["official"]["overall"]
    assert VIDEOMME.score(records, answers, "official").table["overall"] == wanted
    with pytest.raises(InputError, match="no question has a 'response'"):
        VIDEOMME.answers(GOLDEN / "output_test_template.json")


def test_nulls_and_missing_answers_are_told(folder):
    records = VIDEOMME.read(folder([row("1"), row("2"), row("3"), row("4", duration="long")]))
    found = VIDEOMME.score(records, {"1": "B", "2": None, "4": 7}, "lmms_eval_2026")
    assert found.table == {"short": 100 / 3, "medium": 0.0, "long": 0.0, "overall": 25.0}
    assert (found.unanswered, found.unparsed) == (3, 0)
    assert found.problems == (
        "1 answers are no text, read as none, first '4': a int",
        "1 questions without an answer, first '3'",
    )
    dropped = VIDEOMME.score(records, {"1": "B", "2": None}, "official")
    assert dropped.table["overall"] == 100.0 and dropped.n["overall"] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"options": ["A. one"]}, "holds 1 options, wanted 2 to 8"),
        ({"options": "A. one"}, "wanted a list of texts"),
        ({"options": None}, "'options' is None"),
        ({"question": None}, "has no 'question', found video_id, duration"),
        ({"question": 3}, "'question' is 3, wanted text"),
        ({"answer": "E"}, "answer 'E' is none of its options A, B, C, D"),
        ({"duration": "minutes"}, "'duration' is 'minutes', wanted short, medium, long"),
    ],
)
def test_an_unusable_record_is_left_out_and_told(folder, changes, told):
    records = VIDEOMME.read(folder([row("1"), row("2", **changes)]))
    assert [one.id for one in records.records] == ["1"]
    (problem,) = records.problems
    assert problem.startswith("videomme_test.json, record 1: ") and told in problem


def test_of_two_records_with_an_id_the_first_counts(folder):
    records = VIDEOMME.read(folder([row("1"), row("1", answer="A")]))
    assert [one.letter for one in records.records] == ["B"]
    assert "id '1' stands there twice" in records.problems[0]


def test_files_that_are_not_this_benchmarks(folder, tmp_path):
    with pytest.raises(InputError, match="no Video-MME: wanted videomme_test.json.* found nothing"):
        VIDEOMME.read(tmp_path)
    with pytest.raises(
        InputError, match="no usable question of Video-MME: .*record 0: has no 'ques"
    ):
        VIDEOMME.read(folder([{"video": "x.mp4", "candidates": ["a", "b"]}]))
    with pytest.raises(InputError, match="holds a dict, wanted a list of records"):
        VIDEOMME.read(folder({"a": 1}))
    records = VIDEOMME.read(folder([row("1")]))
    with pytest.raises(InputError, match="none of 1 answers is to a question of this Video-MME"):
        VIDEOMME.score(records, {"elsewhere": "A"}, "official")


def test_lines_of_json_are_read_too(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(row("1")) + "\n\n" + json.dumps(row("2")))
    assert [one.id for one in VIDEOMME.read(tmp_path).records] == ["1", "2"]
    (tmp_path / "test.jsonl").write_text('{"question_id": ')
    with pytest.raises(InputError, match="test.jsonl, line 1: no JSON"):
        VIDEOMME.read(tmp_path)
