"""StreamingBench: scores and prompts of the official code, polling, and files that are wrong."""

import hashlib
import json
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks import streamingbench as bench
from streamjax.evals.benchmarks.benchmark import Polling, Question

GOLDEN = Path(__file__).parents[2] / "golden" / "bench" / "streamingbench"


def golden(name):
    return json.loads((GOLDEN / name).read_text())


def write(folder: Path, **files) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def entry(video="sample_1_real", **changed):
    question = {
        "task_type": "Counting",
        "question": "How many?",
        "time_stamp": "00:01:40",
        "answer": "B",
        "options": ["A. 1", "B. 2", "C. 3", "D. 4"],
        "required_ability": None,
    } | changed
    question = {key: value for key, value in question.items() if value != "gone"}
    return {"questions": [question], "video_path": f"./videos/{video}.mp4"}


@pytest.fixture(scope="module")
def records():
    return bench.read(GOLDEN)


def scored(records, answers):
    return bench.score(records, answers, "official")


def test_scores_are_the_official_ones(records):
    scores = scored(records, bench.answers(GOLDEN / "predictions.json"))
    expected = golden("expected.json")
    assert scores.table == expected["table_real_time_visual_understanding"]
    assert list(scores.table) == list(expected["table_real_time_visual_understanding"])
    assert scores.details["official_stats"] == expected["official_stats"]
    assert scores.problems == () and scores.unanswered == 0
    assert scores.n["All"] == 13 and scores.n["sqa"] == 6 and scores.n["proactive"] == 4
    # "(A)", "a", "b", "(C)", "c", "(A)", "b" are no letters to this rule.
    assert scores.unparsed == 7
    assert bench.tabulate(scores.graded, "official") == scores.table


def test_prompts_and_clips_are_the_official_ones(records):
    questions = [one for one in records.records if one.subset != "proactive"]
    assert {one.id: bench.prompt(one) for one in questions} == golden("prompts.json")
    clips = {}
    for one in questions:
        start, end = bench.clip(one, -1)
        clips[one.id] = f"{Path(one.video).stem}_{start}_{end}.mp4"
    assert clips == golden("clips.json")


def test_the_main_table_shows_the_last_minute(records):
    at = {one.id: bench.clip(one, 60) for one in records.records}
    assert at["real:0"] == (309, 369) and at["real:9"] == (0, 34)


def test_polling_asks_as_the_official_code_does(records):
    signs = [one for one in records.records if one.subset == "proactive"]
    script, calls = golden("proactive_script.json"), golden("proactive_calls.json")
    ends, official = (
        golden("proactive_prompts_first_last.json"),
        golden("proactive_official_output.json"),
    )
    answers = {}
    for one, written in zip(signs, official, strict=True):
        name, seen = Path(one.video).stem, []

        def reply(second, prompt, name=name, seen=seen):
            seen.append((second, prompt))
            if "yes or no" not in prompt:
                return script[name]["answer"]
            return "Yes." if second == script[name]["yes_at"] else "No"

        said = bench.poll(one, reply)
        hashes = [[at, hashlib.sha256(text.encode()).hexdigest()[:16]] for at, text in seen]
        assert hashes == calls[name]
        assert [seen[0][1], seen[-1][1]] == ends[name]
        wanted = written["questions"][0]["SYNTH"]
        for turn in wanted["dialog_history"]:
            del turn["cost"]
        assert said == wanted
        answers[one.id] = said
    stats = scored(records, answers).details["official_stats"]
    assert stats == {"proactive": golden("expected.json")["official_stats"]["proactive"]}


def test_a_model_sees_nothing_after_the_second_of_a_question(records):
    asked = {one.id: one for one in bench.questions(records, "context_60")}
    assert isinstance(asked["real:1"], Question)
    assert (asked["real:1"].video, asked["real:1"].end) == ("sample_2_real.mp4", 109)
    sign, polls = asked["proactive:3"], []
    assert isinstance(sign, Polling)

    def answer(question):
        polls.append(question)
        return None if len(polls) < 3 else "yes"

    assert sign.drive(answer)["answered"] == 178
    assert [(one.start, one.end) for one in polls] == [
        (116, 176),
        (117, 177),
        (118, 178),
        (118, 178),
    ]
    assert bench.questions(records, "context_all")[0].start == 0


def test_null_and_empty_answers_are_wrong_and_counted_missing_ones_do_not_count(records):
    scores = scored(records, {"real:0": None, "real:1": "", "real:9": "B", "real:12": 3})
    assert scores.table["OP"] == 0 and scores.table["CR"] == 0 and scores.table["CS"] is None
    assert scores.table["ATP"] == 0 and scores.table["CT"] == 100 and scores.table["All"] == 25
    assert scores.n["All"] == 4 and scores.unparsed == 1
    assert scores.unanswered == 2 + 9 + 6 + 6
    assert scores.problems == ("21 questions without an answer, first 'real:2'",)
    assert scores.details["official_stats"]["real"]["total"]["total"] == 4


def test_what_the_official_code_writes_is_read_as_answers(records, tmp_path):
    content = golden("questions_sqa.json")
    for group in content:
        for part in group:
            part["questions"][0]["MODEL"] = part["questions"][0]["answer"]
    file = write(tmp_path, sqa=content) / "sqa.json"
    answers = bench.answers(file)
    assert list(answers) == [f"sqa:{k}" for k in range(6)]
    assert scored(records, answers).details["official_stats"]["sqa"] == {
        "Sequential Question Answering": {"total": 6, "correct": 6, "accuracy": 1.0}
    }
    content[0][0]["questions"][0]["OTHER"] = "A"
    with pytest.raises(InputError, match="answers of MODEL, OTHER, wanted those of one"):
        bench.answers(write(tmp_path, sqa=content) / "sqa.json")


def test_one_file_is_enough_and_unknown_tasks_count_in_all(tmp_path):
    folder = write(tmp_path, questions_real=[entry(), entry(task_type="New Task")])
    scores = scored(bench.read(folder), {"real:0": "A", "real:1": "B"})
    assert scores.table["All"] == 50 and scores.table["CT"] == 0 and scores.table["OP"] is None
    assert scores.details["official_stats"]["real"]["New Task"]["correct"] == 1


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"answer": "gone"}, "questions_real.json, question 0: 'answer' is None, wanted text"),
        ({"options": ["A. 1"]}, "1 options, wanted a list of 2 or more"),
        ({"options": "gone"}, "options None, wanted a list"),
        ({"options": [1, 2]}, "wanted texts"),
        ({"answer": "E"}, "'answer' is 'E', wanted one of ABCD"),
        ({"time_stamp": "soon"}, "'time_stamp' is 'soon', wanted hh:mm:ss"),
        ({"question": ""}, "'question' is '', wanted text"),
    ],
)
def test_a_bad_record_is_left_out_and_told_and_the_others_keep_their_numbers(
    tmp_path, changed, line
):
    folder = write(tmp_path, questions_real=[entry(**changed), entry()])
    found = bench.read(folder)
    assert [one.id for one in found.records] == ["real:1"]
    (problem,) = found.problems
    assert line in problem and "\n" not in problem
    assert scored(found, {"real:1": "B"}).problems[0] == problem


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"questions_real_stream": []}, "found questions_real_stream.json, wanted some of"),
        ({"questions_real": {}}, "no list of entries"),
        ({"questions_real": [[entry()]]}, "a list of lists of entries"),
        ({"questions_sqa": [entry()]}, "holds a list of entries, wanted a list of lists"),
        ({"questions_real": [{"id": 3}]}, "no list `questions`"),
        ({"questions_real": [entry(answer="?")]}, "not one usable question of StreamingBench"),
    ],
)
def test_another_folder_is_told_in_one_line(tmp_path, files, line):
    with pytest.raises(InputError, match=line) as told:
        bench.read(write(tmp_path, **files))
    assert "\n" not in str(told.value)


def test_answers_to_other_data(records, tmp_path):
    with pytest.raises(
        InputError, match="none of 1 answers is to a question of this StreamingBench"
    ):
        scored(records, {"1_2": "A"})
    assert "1 answers to no question here" in scored(records, {"x": "A", "real:0": "A"}).problems[0]
    with pytest.raises(InputError, match="no such file"):
        bench.answers(tmp_path / "none.json")


def test_it_is_found_by_name():
    assert find("StreamingBench") is bench.STREAMINGBENCH
