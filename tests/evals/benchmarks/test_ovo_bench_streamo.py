"""OVO-Bench as Streamo watches it: rounds, messages and output as the released runner's; our scores."""

import hashlib
import json
import random

import pytest

from streamjax.data.dialogue import DEFAULT_SYSTEM_PROMPT, SILENCE
from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks.ovo_bench_streamo import (
    OVO_BENCH_STREAMO,
    expand,
    follow,
    known,
    mcq_letter,
    output_row,
    period,
    polls,
    question,
    question_time,
    rec_count,
    said,
    step_runs,
)

CHOICE = {
    "id": 0,
    "task": "OCR",
    "video": "a",
    "realtime": 3.2,
    "question": "Where?",
    "options": ["here", "there"],
    "gt": 1,
}
COUNT = {
    "id": 1,
    "task": "REC",
    "video": "b",
    "activity": "jump",
    "start_times": [1],
    "test_info": [{"realtime": 1, "count": 0}, {"realtime": 2.5, "count": 1}],
}
CLUE = {
    "id": 2,
    "task": "CRR",
    "video": "c",
    "question": "Why?",
    "ask_time": 1,
    "test_info": [{"realtime": 1, "type": 0}, {"realtime": 4, "type": 1}],
}
STEP = {
    "id": 3,
    "task": "SSR",
    "video": "d",
    "all_steps": ["cut", "fold", "cut"],
    "start_time": [1, 4, 7],
    "end_time": [3, 6, 9],
    "test_info": [
        {"realtime": 2, "step": "cut", "type": 1},
        {"realtime": 5, "step": "fold", "type": 1},
        {"realtime": 5, "step": "cut", "type": 0},
        {"realtime": 8, "step": "cut", "type": 1},
    ],
}
EVERY = [CHOICE, COUNT, CLUE, STEP]


@pytest.fixture(scope="module")
def case(golden):
    folder = golden / "bench" / "ovo_bench_streamo"

    def read(name):
        return json.loads((folder / f"{name}.json").read_text("utf-8"))

    read.folder = folder
    return read


@pytest.fixture(scope="module")
def upstream(golden):
    return json.loads((golden / "streamo" / "h_ovo.json").read_text("utf-8"))


def folder_of(tmp_path, records):
    (tmp_path / "ovo_bench_new.json").write_text(json.dumps(records))
    return tmp_path


def rows_of(tmp_path, rows):
    file = tmp_path / "output.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def output(*texts, **at):
    rounds = {f"Round {i}": text for i, text in enumerate(texts)}
    return rounds | {f"Round {key[1:]}": text for key, text in at.items()}


def score(tmp_path, records, answers):
    found = OVO_BENCH_STREAMO.read(folder_of(tmp_path, records))
    return OVO_BENCH_STREAMO.score(found, answers, "streamo_derived")


# --- the released runner, word for word ----------------------------------------------------------


def test_every_round_and_the_output_are_the_released_runners(case):
    samples = OVO_BENCH_STREAMO.read(case.folder).records
    wanted, script = case("expected_requests"), case("model_script")
    seconds, rows = case("video_seconds"), []
    for sample in samples:
        key = str(sample["id"])
        sent = {}

        def answer(at, messages, frames, key=key, sent=sent):
            sent[at] = ([dict(m) for m in messages], list(frames))
            return script[key].get(str(at), SILENCE)

        expected = wanted[key]
        assert question(sample) == expected["question"]
        if sample["task"] != "ASI":  # drawn without a seed
            assert question_time(sample) == expected["question_time"]
        rounds = seconds[sample["video"]]
        texts = follow(sample, rounds, answer, expected["question_time"])
        rows.append(output_row(sample, texts))
        assert (rounds, len(sent)) == (expected["total_rounds"], expected["n_model_calls"])
        for request in expected["requests"]:
            messages, frames = sent[request["round"]]
            as_json = json.dumps(messages, sort_keys=True)
            assert hashlib.sha256(as_json.encode()).hexdigest() == request["messages_sha256"]
            assert len(messages) == request["n_messages"]
            assert len(frames) == request["n_images"]
            names = [f"{sample['video']}/frame_{2 * frame:06d}.png" for frame in frames]
            assert names[0] == request["first_image"] and names[-1] == request["last_image"]
            if "messages" in request:
                assert messages[1:] == request["messages"]
            else:
                head, tail = request["messages_head"], request["messages_tail"]
                assert messages[1 : 1 + len(head)] == head and messages[-len(tail) :] == tail
    lines = (case.folder / "expected_output.jsonl").read_text("utf-8").splitlines()
    assert rows == [json.loads(line) for line in lines]


def test_the_system_prompt_is_the_released_one(case):
    text = (case.folder / "system_prompt.txt").read_bytes()
    assert text == DEFAULT_SYSTEM_PROMPT.encode()
    assert hashlib.sha256(text).hexdigest() == case("case")["system_prompt_sha256"]


def test_samples_questions_and_times(upstream):
    known_tasks = [record for record in upstream["raw_samples"] if record["task"] != "XYZ"]
    samples = expand(known_tasks)
    assert samples == [one for one in upstream["expanded_samples"] if one["task"] != "XYZ"]
    for sample, wanted in zip(samples, upstream["questions"], strict=False):
        assert (sample["id"], sample["task"]) == (wanted["id"], wanted["task"])
        assert question(sample) == wanted["question"]
        assert question_time(sample) == wanted["question_time"]


def test_the_draw_of_asi(upstream):
    for wanted in upstream["asi_random_question_time"]:
        options = ["p", "q", "r"]
        sample = {"id": 1, "task": "ASI", "question": "After step?", "options": options}
        sample["realtime"] = wanted["realtime"]
        draw = random.Random(wanted["python_random_seed"])
        assert question_time(sample, draw) == wanted["question_time"]
        assert question(sample) == wanted["question"]
        assert question_time(sample) == question_time(sample)
    times = {question_time({"id": i, "task": "ASI", "realtime": 4.9}) for i in range(99)}
    assert times == set(range(5))


def test_the_rounds_of_the_other_case(upstream):
    samples = {str(one["id"]): one for one in upstream["expanded_samples"] if one["task"] != "XYZ"}
    rows, calls = {}, []
    for key, sample in samples.items():
        script = upstream["engine_script"].get(key, {})

        def answer(at, messages, frames, script=script, sample=sample):
            calls.append((sample["id"], at, len(frames), len(messages), messages[-1]["content"]))
            return script.get(str(at), SILENCE)

        rounds = upstream["frames_on_disk"][sample["video"]] // 2
        rows[key] = output_row(sample, follow(sample, rounds, answer))
    wanted = {str(row["id"]): row for row in upstream["output_rows"] if row["task"] != "XYZ"}
    assert rows == wanted
    fields = ("sample_id", "round", "num_images", "num_messages", "last_user")
    made = [tuple(call[f] for f in fields) for call in upstream["engine_calls"]]
    made = [call for call in made if str(call[0]) in samples]
    assert sorted(calls, key=str) == sorted(made, key=str)


# --- scores ---------------------------------------------------------------------------------------


def test_the_derived_scores(case):
    wanted = case("expected_derived_scores")
    found = OVO_BENCH_STREAMO.score(
        OVO_BENCH_STREAMO.read(case.folder),
        OVO_BENCH_STREAMO.answers(case.folder / "expected_output.jsonl"),
        "streamo_derived",
    )
    assert found.table == wanted["accuracy"] and list(found.table) == list(wanted["accuracy"])
    assert found.details["per_item"] == wanted["per_item"]
    assert found.n["mcq_strict_letter"] == 11 and found.n["SSR_state"] == 12
    assert (found.unanswered, found.unparsed, found.problems) == (2, 0, ())
    assert OVO_BENCH_STREAMO.tabulate(found.graded, "streamo_derived") == found.table
    assert len({one.id for one in found.graded}) == len(found.graded) == sum(found.n.values())
    per_task = found.details["tasks"]["SSR as SSR_state"]
    assert per_task["Forward Active Responding"]["SSR"] == wanted["accuracy"]["SSR_state"]
    assert per_task["Real-Time Visual Perception"]["OCR"] == 50.0
    assert find("OVO-Bench streamo") is OVO_BENCH_STREAMO


def test_answers_of_our_own_runs_score_the_same(case, tmp_path):
    records = OVO_BENCH_STREAMO.read(case.folder)
    rows = [
        {
            "id": str(row["id"]),
            "answer": [
                [float(key.split()[1]), text]
                for key, text in row["output"].items()
                if text != SILENCE
            ],
        }
        for row in OVO_BENCH_STREAMO.answers(case.folder / "expected_output.jsonl").values()
    ]
    for answers in (
        OVO_BENCH_STREAMO.answers(rows_of(tmp_path, rows)),
        {row["id"]: row["answer"] for row in rows},
    ):
        found = OVO_BENCH_STREAMO.score(records, answers, "streamo_derived")
        assert found.table == case("expected_derived_scores")["accuracy"]


def test_the_proposed_adapter(golden):
    cases = json.loads((golden / "streamo" / "i_derived_metrics.json").read_text("utf-8"))
    for one in cases["ovo_adapter"]:
        turns = [(int(at), text) for at, text in one["output"].items()]
        answers = said(turns)
        assert (mcq_letter(answers[0][1]) if answers else None) == one["mc_letter"]
        for second, count in one["rec_count_at"].items():
            assert rec_count(turns, float(second)) == count
        for second, yes in one["crr_yes_at"].items():
            assert bool(known(turns, float(second))) == yes


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B. two", "B"), ("(C)", "C"), (" D", "D"), ("Because", None), ("b", None), ("", None)],
)
def test_letters(text, letter):
    assert mcq_letter(text) == letter


def test_a_step_runs_from_the_first_standby_to_the_response():
    waits = [(2, "</Standby>"), (3, "</Standby>")]
    ended = [*waits, (5, "</Response> from 2s to 4.5s.")]
    assert [step_runs(ended, t) for t in (1, 1.5, 4.2, 5.5)] == [False, True, True, False]
    assert [step_runs(waits, t) for t in (2, 3, 4)] == [True, True, False]
    assert not step_runs([], 3) and not step_runs([(5, "</Response> x")], 5)
    assert period(ended) == (2, 4.5)
    assert period([(1, "</Response> soon")]) is None and period(waits) is None


def test_a_step_named_twice_shares_its_polls_by_time():
    assert [[p["realtime"] for p in own] for own in polls(STEP)] == [[2], [5], [5, 8]]
    assert polls(CHOICE) == [[]] and polls(CLUE) == [CLUE["test_info"]]


@pytest.mark.parametrize("share", [(96, 144), (1, 3), (5, 0)])
def test_silence_is_no_for_a_clue_and_zero_for_a_count(tmp_path, share):
    """A silent model's scores are the shares of No and of 0; with the real counts 40.00, 6.45."""
    no, yes = share
    clue = {**CLUE, "test_info": [{"realtime": 9, "type": int(i >= no)} for i in range(no + yes)]}
    count = {
        **COUNT,
        "test_info": [{"realtime": 9, "count": int(i >= no)} for i in range(no + yes)],
    }
    found = score(tmp_path, [clue, count], {"1": [], "2": []})
    assert found.table == {"CRR": 100 * no / (no + yes), "REC": 100 * no / (no + yes)}
    assert found.unanswered == 0
    found = score(
        tmp_path, [clue, count], {"1": [[1, "</Response> A"]], "2": [[1, "</Response> !"]]}
    )
    assert found.table == {"CRR": 100 * yes / (no + yes), "REC": 100 * yes / (no + yes)}


def test_missing_null_and_odd_answers_are_wrong_and_counted(tmp_path):
    answers = {
        "0": [[3, "</Response> neither"]],
        "1": [[1, "</Response> many"]],
        "2": None,
        "3_step_0": [[1, "</Response> now"]],
        "3_step_1": "fold",
        "9": [],
    }
    found = score(tmp_path, EVERY, answers)
    assert found.table["CRR"] == 0 and found.details["per_item"]["REC"] == {"1": [1, 0]}
    assert found.unanswered == 3 and found.unparsed == 3
    assert found.n == {
        "mcq_strict_letter": 1,
        "mcq_official_substring": 1,
        "CRR": 2,
        "REC": 2,
        "SSR_state": 4,
        "SSR_period_missing_wrong": 4,
    }
    assert any("'fold'" in line for line in found.problems)
    assert any("first '9'" in line for line in found.problems)
    assert any("first '3_step_2'" in line for line in found.problems)


# --- asking a model of ours -----------------------------------------------------------------------


def test_streams_are_asked_when_and_as_long_as_the_runner_does(tmp_path):
    records = OVO_BENCH_STREAMO.read(folder_of(tmp_path, EVERY))
    asked = {one.id: one for one in OVO_BENCH_STREAMO.questions(records, "streamo")}
    assert [(k, w.asks[0][0], w.speaks_from, w.until, w.end) for k, w in asked.items()] == [
        ("0", 3, 3, "response", None),
        ("1", 0, 0, "end", None),
        ("2", 1, 1, "response", None),
        ("3_step_0", 1, 1, "response", None),
        ("3_step_1", 4, 4, "response", None),
        ("3_step_2", 7, 7, "response", None),
    ]
    assert asked["0"].asks[0][1].startswith("Where?\nA. here\nB. there\nPlease")
    assert {w.system for w in asked.values()} == {DEFAULT_SYSTEM_PROMPT}
    clipped = OVO_BENCH_STREAMO.questions(records, "clipped")
    assert [one.end for one in clipped] == [4, 3, 4, 2, 5, 8]


# --- bad input ------------------------------------------------------------------------------------


def without(record, field):
    return {key: value for key, value in record.items() if key != field} | {"id": 7}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (without(CHOICE, "realtime"), "no 'realtime'"),
        ({**CHOICE, "id": 7, "options": ["one"]}, "wanted a list of 2"),
        (CHOICE, "twice"),
        (without(CLUE, "ask_time"), "no 'ask_time', wanted seconds"),
        (without(COUNT, "start_times"), "no 'start_times'"),
        ({**COUNT, "id": 7, "start_times": []}, "'start_times' is []"),
        (without(STEP, "all_steps"), "no 'all_steps'"),
        ({**STEP, "id": 7, "all_steps": [1]}, "'all_steps' is [1]"),
        ({**STEP, "id": 7, "start_time": "1, soon"}, "'start_time' is '1, soon'"),
        ({**STEP, "id": 7, "all_steps": ["cut"]}, "step 'fold', wanted one of all_steps"),
        ({"id": 7, "task": "XYZ", "video": "a", "gt": 0}, "'task' is 'XYZ'"),
    ],
)
def test_one_bad_record_is_left_out_and_told(tmp_path, bad, told):
    found = OVO_BENCH_STREAMO.read(folder_of(tmp_path, [*EVERY, bad]))
    assert len(found.records) == 6
    (line,) = found.problems
    assert "record 4" in line and told in line


def test_folders_and_answers_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"wanted OVO-Bench's ovo_streamo.json or ovo_bench_new"):
        OVO_BENCH_STREAMO.read(tmp_path)
    with pytest.raises(InputError, match="none of 1 answers"):
        score(tmp_path, EVERY, {"x": []})
    with pytest.raises(InputError, match="about video 'other', wanted 'a'"):
        score(tmp_path, EVERY, {"0": {"id": 0, "video": "other", "output": {}}})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"id": 1}\n{"id": 2}', "line 1: .*wanted an object with an id and an output"),
        ("{", "line 1"),
        ("[3]", "line 1: 3, wanted"),
        ('{"id": 1, "output": {}}\n{"id": 1, "output": {"Round 0": "A"}}', "line 2: id '1' stands"),
    ],
)
def test_answer_files_that_cannot_be_read(tmp_path, content, told):
    file = tmp_path / "output.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=told):
        OVO_BENCH_STREAMO.answers(file)
    with pytest.raises(InputError, match="no such file"):
        OVO_BENCH_STREAMO.answers(tmp_path / "absent")


def test_the_answer_that_a_resumed_run_repeats_is_taken_once(tmp_path):
    row = {"id": 0, "video": "a", "output": output("</Silence>", r3="</Response> B. there")}
    answers = OVO_BENCH_STREAMO.answers(rows_of(tmp_path, [row, row]))
    assert score(tmp_path, [CHOICE], answers).table["mcq_strict_letter"] == 100
    single = OVO_BENCH_STREAMO.answers(rows_of(tmp_path, [row]))
    assert single == answers
    broken = {"0": {"id": 0, "video": "a", "output": {"3": 4}}}
    assert "wanted {" in score(tmp_path, [CHOICE], broken).problems[0]
