"""LongVideoBench: lmms-eval's numbers, prompts and interleaving to the byte, and bad files."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks.longvideobench import (
    LONGVIDEOBENCH,
    frame_indices,
    letter_of,
    loaded,
)

GOLDEN = Path(__file__).parents[2] / "golden/bench/longvideobench"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
RECORDS = LONGVIDEOBENCH.read(GOLDEN)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The same questions as rows of the hub, whose options are fields of their own."""
    folder = tmp_path_factory.mktemp("hub")
    rows = json.loads((GOLDEN / "lvb_val_hf_rows.json").read_text())
    for row in rows:
        del row["candidates"]
    (folder / "lvb_val_hf_rows.json").write_text(json.dumps(rows))
    return LONGVIDEOBENCH.read(folder)


@pytest.mark.parametrize("form", ["list", "hub"])
@pytest.mark.parametrize("rule", LONGVIDEOBENCH.rules)
def test_lmms_evals_numbers(rule, form, hub):
    records = hub if form == "hub" else RECORDS
    wanted = dict(EXPECTED)
    answers = LONGVIDEOBENCH.answers(GOLDEN / "predictions.json")
    found = LONGVIDEOBENCH.score(records, answers, rule)
    assert found.details["parsed"] == wanted.pop("parsed")
    assert found.table == wanted == LONGVIDEOBENCH.tabulate(found.graded, rule)
    assert (found.unanswered, found.unparsed, found.problems) == (0, 0, ())
    assert (found.n["overall_percent"], found.n["60"], found.n["S2E"]) == (12, 4, 1)


@pytest.mark.parametrize("form", ["list", "hub"])
def test_prompts_to_the_byte(form, hub):
    asked = LONGVIDEOBENCH.questions(hub if form == "hub" else RECORDS, "lmms_eval_v")
    wanted = json.loads((GOLDEN / "prompts.json").read_text())["lmms_eval_val_v"]
    assert {one.id: one.prompt for one in asked} == wanted
    assert {(one.frames, one.max_new_tokens) for one in asked} == {(16, 32)}
    assert asked[0].video == "synth000.mp4"


def test_frames_and_subtitles_as_the_authors_load_them():
    wanted = json.loads((GOLDEN / "interleaved_inputs.json").read_text())
    for record in RECORDS.records:
        case = wanted[record.id]
        found = frame_indices(record.seconds, case["fps"], case["max_num_frames"])
        assert found == case["frame_indices"]
        inputs = loaded(record, case["fps"], case["max_num_frames"])
        shown = [f"<frame {part}>" if isinstance(part, int) else part for part in inputs]
        assert shown == case["inputs"]


def test_a_prompt_among_subtitles_has_a_place_for_each_frame():
    wanted = json.loads((GOLDEN / "interleaved_inputs.json").read_text())
    plain = {one.id: one.prompt for one in LONGVIDEOBENCH.questions(RECORDS, "lmms_eval_v")}
    for asked in LONGVIDEOBENCH.questions(RECORDS, "lmms_eval_i"):
        case = wanted[asked.id]
        before = asked.prompt.removesuffix(plain[asked.id]).rstrip("\n")
        # lmms-eval's times of frames are not quite the authors': here it makes no difference.
        if asked.id in ("synth000_0", "synth001_0", "synth003_0", "synth005_0", "synth011_0"):
            same = re.sub(r"<frame \d+>", "<image>", "\n".join(case["inputs"]))
            assert before == same[: same.index("\nQuestion:")]
        assert asked.prompt.count("<image>") == asked.frames == len(case["frame_indices"])
        found = asked.spread(case["fps"], 10**6, 0.0, None, asked.frames)
        assert found == case["frame_indices"]
        assert max(asked.spread(case["fps"], 100, 0.0, None, asked.frames)) <= 99


def test_a_short_video_among_subtitles_by_the_rule_of_lmms_eval():
    asked = {one.id: one for one in LONGVIDEOBENCH.questions(RECORDS, "lmms_eval_i")}
    # Frames at 0, 1 .. 8 s; lines said at 0 to 2 s, at 4 to 6 s, and when no frame is shown any more.
    before = asked["synth002_0"].prompt.split("\n[S2A]")[0].split("\n")
    image = ["<image>"]
    lines = ["line 0 of synth002"], ["line 1 of synth002"]
    assert before == image * 2 + lines[0] + image * 3 + lines[1] + image * 4


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("The best option is E", "E"), ("Best answer: D", "D"), ("A book", "A"), ("b", ""), ("", "")],
)
def test_what_is_read(answer, letter):
    assert letter_of(answer) == letter


def row(key="1", **changes):
    plain = {
        "id": key, "question": "What?", "candidates": ["x", "y"], "correct_choice": 1,
        "question_category": "SSS", "duration_group": 15, "duration": 8.5, "video_path": "v.mp4",
        "subtitle_path": "v_en.json", "starting_timestamp_for_subtitles": 3.0,
    }  # fmt: skip
    return {key: value for key, value in (plain | changes).items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    def written(*rows):
        (tmp_path / "lvb_val.json").write_text(json.dumps(rows))
        return tmp_path

    return written


def test_no_letter_is_wrong_and_never_left_to_chance(folder):
    records = LONGVIDEOBENCH.read(folder(*(row(str(k)) for k in range(8))))
    answers = {str(k): "none of these" for k in range(6)} | {"6": None, "7": "B"}
    random.seed(0)
    found = LONGVIDEOBENCH.score(records, answers, "lmms_eval_2026")
    assert found.table["overall_percent"] == 12.5
    assert found.table["overall_fraction_rounded5_lmms_eval"] == 0.125
    assert (found.unanswered, found.unparsed) == (1, 6)
    assert found.problems == (
        "7 answers have no letter A to E and are wrong; lmms-eval draws one by chance",
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"candidates": ["x"]}, "holds 1 options"),
        ({"option0": "x", "option1": "N/A"}, "holds 1 options"),
        ({"correct_choice": 2}, "'correct_choice' is 2, wanted 0 to 1"),
        ({"correct_choice": None}, "'correct_choice' is None"),
        ({"duration_group": None}, "'duration_group' is None"),
        ({"duration": "long"}, "'duration' is 'long', wanted seconds"),
        ({"question_category": None}, "has no 'question_category'"),
        ({"id": "2"}, "id '2' stands there twice"),
    ],
)
def test_an_unusable_record_is_left_out_and_told(folder, changes, told):
    records = LONGVIDEOBENCH.read(folder(row("2"), row("3", **changes)))
    assert [one.id for one in records.records] == ["2"]
    assert "lvb_val.json, record 1: " in records.problems[0] and told in records.problems[0]


def test_subtitles_that_are_missing_or_unreadable(folder, tmp_path):
    home = folder(
        row("1"), row("2", subtitle_path="w_en.json"), row("3", subtitle_path="u_en.json")
    )
    records = LONGVIDEOBENCH.read(home)
    assert not records.problems
    with pytest.raises(InputError, match="lmms_eval_i: no subtitles/ beside the annotations"):
        LONGVIDEOBENCH.questions(records, "lmms_eval_i")
    (tmp_path / "subtitles").mkdir()
    spoken = [{"timestamp": [3.5, 5.5], "text": "hello"}, {"timestamp": [4.0, 9], "text": "end"}]
    (tmp_path / "subtitles/v_en.json").write_text(json.dumps(spoken))
    (tmp_path / "subtitles/w_en.json").write_text('[{"line": "no times"}]')
    records = LONGVIDEOBENCH.read(home)
    assert (
        "2 questions have no subtitles in subtitles/, or unreadable ones, first '2'"
        in records.problems[0]
    )
    asked = LONGVIDEOBENCH.questions(records, "lmms_eval_i")
    # The second subtitle's end is a whole number: upstream puts the video's length there, 8.5 s.
    assert asked[0].prompt.startswith(
        "<image>\n<image>\nhello\n<image>\n<image>\nend\n<image>\n<image>\n"
    )
    assert asked[1].prompt.startswith("<image>\n" * 8 + "What?\nA. x\nB. y\nAnswer with")


def test_files_that_are_not_this_benchmarks(folder, tmp_path):
    (tmp_path / "lvb_test_wo_gt.json").write_text("[]")
    with pytest.raises(InputError, match="wanted lvb_val.json or .* found lvb_test_wo_gt.json"):
        LONGVIDEOBENCH.read(tmp_path)
    with pytest.raises(InputError, match="no usable question of LongVideoBench: .*has no 'id'"):
        LONGVIDEOBENCH.read(folder({"video": "x"}))
    with pytest.raises(InputError, match="none of 1 answers is to a question of this LongVideoB"):
        LONGVIDEOBENCH.score(RECORDS, {"1": "A"}, "lmms_eval_2026")


def test_the_list_comes_before_the_hubs_rows(tmp_path):
    for name in ("lvb_val.json", "lvb_val_hf_rows.json"):
        shutil.copy(GOLDEN / name, tmp_path)
    assert [path.name for path in LONGVIDEOBENCH.read(tmp_path).files] == ["lvb_val.json"]
