"""TempCompass: the authors' numbers of all four tasks, prompts, the judge, and bad files."""

import dataclasses
import json
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks.tempcompass import (
    TASKS,
    TEMPCOMPASS,
    option_letter,
    option_of,
    rate_caption,
    yes_or_no,
)

GOLDEN = Path(__file__).parents[2] / "golden/bench/tempcompass"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
RECORDS = TEMPCOMPASS.read(GOLDEN)
ANSWERS = TEMPCOMPASS.answers(GOLDEN / "predictions")


def test_the_authors_numbers():
    found = TEMPCOMPASS.score(RECORDS, ANSWERS, "official")
    both = {name: dict(part) for name, part in found.table.items()}
    for name, part in found.details.items():
        both[name] |= part
    assert both == EXPECTED
    assert found.table == TEMPCOMPASS.tabulate(found.graded, "official")
    assert [found.n[task] for task in TASKS] == [6, 12, 6, 6]
    assert found.n["yes_no/per_aspect/speed"] == found.n["yes_no/avg"] / 3 == 4
    assert found.n["yes_no/per_fine_aspect/combined change"] == 2
    # One choice, two of yes and no, and an empty word of the judge.
    assert (found.unanswered, found.unparsed, found.problems) == (0, 4, ())
    scores = {one.id: one.score for one in found.graded}
    assert scores["captioning:1000002:speed:0"] == -1


def test_prompts_to_the_byte():
    wanted = json.loads((GOLDEN / "prompts.json").read_text())
    asked = TEMPCOMPASS.questions(RECORDS, "official")
    assert len(asked) == 30
    for one in asked:
        task, video, aspect, k = one.id.split(":")
        assert one.prompt == wanted[task][video][aspect][int(k)]
        assert (one.video, one.frames) == (f"{video}.mp4", 16)


def test_answers_in_the_authors_form_and_by_id(tmp_path):
    for task in TASKS:
        tree = json.loads((GOLDEN / "predictions" / f"{task}.json").read_text())
        for aspects in tree.values():
            for rows in aspects.values():
                rows[:] = [{"question": "?", "answer": "?", "prediction": text} for text in rows]
        (tmp_path / f"{task}.json").write_text(json.dumps(tree))
    assert TEMPCOMPASS.answers(tmp_path) == ANSWERS
    one = TEMPCOMPASS.answers(tmp_path / "yes_no.json")
    assert one == {key: said for key, said in ANSWERS.items() if key.startswith("yes_no:")}
    (tmp_path / "flat.json").write_text(json.dumps(ANSWERS))
    assert TEMPCOMPASS.answers(tmp_path / "flat.json") == ANSWERS
    with pytest.raises(InputError, match="no answers to TempCompass, wanted multi-choice.json"):
        TEMPCOMPASS.answers(GOLDEN.parent)


def test_a_task_without_answers_is_left_out_and_a_null_is_wrong():
    answers = {key: said for key, said in ANSWERS.items() if key.startswith("yes_no:")}
    answers["yes_no:1000000:action:0"] = None
    without = dataclasses.replace(RECORDS, verdicts={})
    found = TEMPCOMPASS.score(without, answers, "official")
    assert list(found.table) == ["yes_no", "combined"]
    assert found.table["combined"]["mean_of_three_task_avgs"] == 500 / 12
    assert found.details["yes_no"]["match_success_rate"] == 75
    assert found.unanswered == 1
    assert found.problems == (
        "multi-choice: no answers, left out",
        "caption_matching: no answers, left out",
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("B) x", "B"),
        ("(B)", ""),
        ("Bx", ""),
        ("E", ""),
        ("b", ""),
        ("", ""),
    ],
)
def test_letters(text, read):
    assert option_letter(text) == read


@pytest.mark.parametrize(
    ("text", "read"), [("Nothing", "no"), ("YES!", "yes"), ("It is yes", ""), ("", "")]
)
def test_yes_and_no(text, read):
    assert yes_or_no(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Option 1: A cat.", "Option 1: A cat."), ("A dog.", "A dog."), ("(2) A dog.", "A dog."),
        ("1.", "1"), ("Option 2.", "Option 2"), ("A dog", ""), ("Option 3", ""), ("", ""),
    ],
)  # fmt: skip
def test_options_of_captions(text, read):
    assert option_of(text, "Which?\nOption 1: A cat.\nOption 2: A dog.") == read


@pytest.mark.parametrize(
    ("said", "rating"),
    [
        ("Answer: B. dog", 1), ("B. dog", 1), ("Answer: A. cat\nAnswer: B. dog", 1), ("", -1),
        ("Answer: B. dog, not A. cat", 0), ("the dog", 0), ("invalid_request_error", -1),
        (None, -1), ("Reasoning: A. no\nAnswer: B", 0),
    ],
)  # fmt: skip
def test_what_a_judge_picked(said, rating):
    assert rate_caption(said, "B. dog") == rating


def test_a_judge_is_asked_with_the_first_question_of_the_aspect():
    asked = TEMPCOMPASS.judging(RECORDS, ANSWERS | {"captioning:1000000:order:0": None})
    assert [one.id for one in asked][:2] == [
        "captioning:1000000:action:0",
        "captioning:1000001:speed:0",
    ]
    assert (
        asked[0]
        .prompts[0]
        .endswith(
            "\nVideo Description:A person is about to wipe the table.\nMulti-Choice Question:\n"
            "What is the person doing?\nA. wipe the table\nB. tighten the bolt\nC. peel the orange\nAnswer:"
        )
    )
    said = {one.id: one.verdict(["Answer: C. peel the orange\n"]) for one in asked} | {
        asked[1].id: None
    }
    found = TEMPCOMPASS.score(dataclasses.replace(RECORDS, verdicts=said), ANSWERS, "official")
    assert found.details["captioning"]["ratings"] == {
        "1000000:action": 1, "1000001:speed": -1, "1000001:attribute_change": 0,
        "1000002:attribute_change": 0, "1000002:speed": 1,
    }  # fmt: skip
    assert found.problems[-1].startswith("1 captions are not judged, left out")
    refused = ANSWERS | {"captioning:1000000:order:0": None}
    found = TEMPCOMPASS.score(dataclasses.replace(RECORDS, verdicts=said), refused, "official")
    assert found.n["captioning"] == 6 and found.unanswered == 1 and not found.problems


def tree(question="What?\nA. x\nB. y", answer="B. y"):
    good = {"question": "What?\nA. x\nB. y", "answer": "A. x"}
    return {"v": {"speed": [{"question": question, "answer": answer}, good]}}


@pytest.fixture
def folder(tmp_path):
    def written(task, content):
        (tmp_path / f"{task}.json").write_text(json.dumps(content))
        return tmp_path

    return written


@pytest.mark.parametrize(
    ("task", "question", "answer", "told"),
    [
        ("multi-choice", "What?\nA. x", "A. x", "its options are ['A']"),
        ("multi-choice", "What?\nA. x\nB. y", "C. z", "the answer is 'C. z'"),
        ("multi-choice", None, "A. x", "'question' is None, wanted text"),
        ("yes_no", "Is it?", "maybe", "'answer' is 'maybe', wanted yes or no"),
        ("caption_matching", "Which?\nCaption A: x", "Caption A: x", "has 1 options, wanted 2"),
    ],
)
def test_an_unusable_record_is_left_out_and_told(folder, task, question, answer, told):
    content = tree(question, answer)
    content["v"]["speed"][1] = {
        "multi-choice": content["v"]["speed"][1],
        "yes_no": {"question": "Is it?", "answer": "no"},
        "caption_matching": {
            "question": "Which?\nCaption A: x\nCaption B: y",
            "answer": "Caption A: x",
        },
    }[task]
    records = TEMPCOMPASS.read(folder(task, content))
    assert [one.id for one in records.records] == [f"{task}:v:speed:1"]
    assert records.problems[0].startswith(f"{task}:v:speed:0: ") and told in records.problems[0]
    assert "no meta_info.json" in records.problems[1]


def test_files_that_are_not_this_benchmarks(folder):
    with pytest.raises(InputError, match="no TempCompass: wanted questions/multi-choice.json"):
        TEMPCOMPASS.read(folder("other", {}))
    with pytest.raises(InputError, match="holds a list, wanted {video: {aspect"):
        TEMPCOMPASS.read(folder("yes_no", []))
    with pytest.raises(
        InputError, match="no usable question of TempCompass: yes_no:v::0: is a list"
    ):
        TEMPCOMPASS.read(folder("yes_no", {"v": []}))
    with pytest.raises(InputError, match="none of 1 answers is to a question of this TempCompass"):
        TEMPCOMPASS.score(RECORDS, {"yes_no:9:speed:0": "no"}, "official")
    folder("yes_no", {"v": {"order": [{"question": "Is it?", "answer": "no"}]}})
    said = {"judge_output": "B. x", "mc_answer": "B. x"}
    records = TEMPCOMPASS.read(
        folder("captioning_judge_outputs", {"v:order": "B", "v:speed:1": said})
    )
    assert records.verdicts == {"captioning:v:speed:1": said}
    assert "'v:order': wanted <video>:<aspect>: {\"judge_output\"" in records.problems[-1]
