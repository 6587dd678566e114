"""A benchmark's run, from the command line: its folder, going on with it, and what it refuses."""

import json
import shutil

import pytest

from streamjax import cli
from streamjax.errors import InputError, RunError
from streamjax.evals.benchmarks.benchmark import Question, Records
from streamjax.evals.harness import running

ASKED = [Question(str(i), "v", "what") for i in range(5)]


def lines(folder):
    return [json.loads(line) for line in (folder / running.ANSWERS).read_text().splitlines()]


def test_each_answer_is_written_at_once_and_none_is_asked_twice(tmp_path):
    heard = []

    def answer(one):
        heard.append(one.id)
        assert len(lines(tmp_path)) == len(heard) - 1
        if one.id == "3":
            raise KeyboardInterrupt
        return f"answer {one.id}"

    with pytest.raises(KeyboardInterrupt):
        running.ask_all(ASKED, answer, tmp_path)
    path = tmp_path / running.ANSWERS
    path.write_text(path.read_text() + '{"id": "3", "ans')  # torn
    heard.clear()
    steps = []
    done = running.ask_all(
        ASKED, lambda one: heard.append(one.id) or "new", tmp_path,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert heard == ["3", "4"] and steps[-1] == (5, 5)
    assert done.answers == {
        "0": "answer 0",
        "1": "answer 1",
        "2": "answer 2",
        "3": "new",
        "4": "new",
    }
    assert [row["id"] for row in lines(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_what_fails_is_told_and_tried_again(tmp_path):
    def answer(one):
        if one.id == "1":
            raise InputError("v.mp4: no such\n video")
        if one.id == "2":
            raise ZeroDivisionError("odd")
        return "yes"

    done = running.ask_all(ASKED, answer, tmp_path)
    assert done.failed == {"1": "v.mp4: no such video", "2": "ZeroDivisionError: odd"}
    assert done.answers["1"] is None and done.answers["0"] == "yes"
    assert running.failures(done)[:2] == ["2 of 5 items failed", "failed: 1: v.mp4: no such video"]
    running.check_failures(done, 0.4)
    with pytest.raises(RunError, match="2 of 5 items failed, more than --max-bad 0.3"):
        running.check_failures(done, 0.3)
    again = running.ask_all(ASKED, lambda one: "now", tmp_path)
    assert again.answers == {"0": "yes", "1": "now", "2": "now", "3": "yes", "4": "yes"}
    assert not again.failed and len(lines(tmp_path)) == 5


def test_a_broken_line_and_two_of_one_id_are_refused(tmp_path):
    (tmp_path / running.ANSWERS).write_text('{"id": "0", "answer": "x"}\nno json\n\n')
    with pytest.raises(InputError, match="line 2: b'no json'"):
        running.ask_all(ASKED, str, tmp_path)
    with pytest.raises(InputError, match="two questions have the id '0'"):
        running.ask_all([ASKED[0], ASKED[0]], str, tmp_path / "new")


def test_a_limit_is_spread_over_all_records():
    records = Records(list(range(10)), [])
    assert running.limited(records, 3).records == [0, 3, 6]
    assert running.limited(records, None) is running.limited(records, 10) is records


@pytest.fixture(scope="module")
def run(assistant, asked, videos, tmp_path_factory):
    """A run of four questions, one of them about a video that is missing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = [
        "eval", str(assistant[0]), "ovo_bench", "--data", str(asked), "--videos", str(videos),
        "--frames", "2", "--max-new-tokens", "4", "--out", str(folder),
    ]  # fmt: skip
    assert cli.main(args) == 1  # a quarter of the items
    return args, folder


def test_a_run_writes_answers_manifest_and_result(run, capsys):
    args, folder = run
    rows = {row["id"]: row for row in lines(folder)}
    assert [rows[id]["error"] for id in "012"] == [None] * 3
    assert "no such video" in rows["3"]["error"] and rows["3"]["answer"] is None
    result = json.loads((folder / "result.json").read_text())
    assert result["table"]["Real-Time Visual Perception"]["OCR"] is not None
    assert list(result["failed"]) == ["3"] and result["per_item"]["3"] == 0
    decided = result["manifest"]
    for name in ("weights", "prompts", "protocol", "averaging", "pixels", "ids", "data", "code"):
        assert decided[name], name
    assert decided["frames"] == 2 and decided["decoding"]["max_new_tokens"] == 4
    assert json.loads((folder / "manifest.json").read_text())["manifest"] == decided

    # Again: nothing but the failure is asked, and everything is told.
    assert cli.main([*args, "--max-bad", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 items failed" in out and "failed: 3: " in out
    again = {row["id"]: row for row in lines(folder)}
    assert all(again[id] == rows[id] for id in "012")

    # The answers can be scored by themselves.
    scored = [
        "eval",
        "score",
        "ovo_bench",
        "--data",
        args[4],
        "--predictions",
        str(folder),
        "--json",
    ]
    assert cli.main(scored) == 0
    assert json.loads(capsys.readouterr().out)["table"] == result["table"]


def test_another_manifest_is_refused_by_the_fields_name(run, capsys):
    args, folder = run
    for more, name in ((["--limit", "2"], "limit"), (["--max-new-tokens", "5"], "decoding")):
        assert cli.main([*args, *more]) == 2
        assert f"was begun with {name} " in capsys.readouterr().err
    shutil.copytree(folder, folder.parent / "other")
    (folder.parent / "other" / "manifest.json").unlink()
    assert cli.main([*args[:-1], str(folder.parent / "other")]) == 2
    assert "has answers.jsonl but no manifest.json" in capsys.readouterr().err


def test_a_limited_run_is_scored_on_its_records_alone(run, capsys):
    args, folder = run
    limited = [*args[:-1], str(folder.parent / "limited"), "--limit", "2", "--json"]
    assert cli.main(limited) == 0
    result = json.loads(capsys.readouterr().out)
    assert sorted(result["per_item"]) == ["0", "2"] and result["unanswered"] == 0
    assert result["manifest"]["limit"] == 2 and result["manifest"]["items"] == 2


def test_a_stream_is_a_run_too(run, assistant, videos, tmp_path, capsys):
    rows = [{
        "id": 5, "task": "CRR", "video": "a.mp4", "question": "what is it", "answer": "red",
        "ask_time": 1, "clue_time": 2, "test_info": [{"realtime": 2, "type": 0}],
    }]  # fmt: skip
    (tmp_path / "ovo_bench_new.json").write_text(json.dumps(rows))
    args = [
        "eval", str(assistant[0]), "ovo_bench_streamo", "--data", str(tmp_path), "--videos",
        str(videos), "--fps", "5", "--window", "6", "--max-new-tokens", "4", "--protocol", "clipped",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.main(args) == 0, capsys.readouterr().err
    assert [row["id"] for row in lines(tmp_path / "run")] == ["5"]
    assert (tmp_path / "run" / "traces" / "5.jsonl").is_file()
    decided = json.loads((tmp_path / "run" / "result.json").read_text())["manifest"]
    assert decided["window"] == {"policy": "session", "window": 6, "every": 1}
    assert decided["fps"] == 5.0 and decided["protocol"] == "clipped"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--frames", "2", "--fps", "1"], "--frames beside --fps or --recent"),
        (["--frames", "0"], "--frames 0: wanted a number above 0"),
        (["--fps", "nan"], "--fps nan: wanted a number above 0"),
        (["--policy", "full"], "has no streams; wanted --recent"),
        (["--rule", "best"], "--rule best: ovo_bench has official"),
        (["--protocol", "all"], "--protocol all: ovo_bench has polling"),
        (["--videos", "nowhere"], "--videos nowhere: no such folder"),
        (["--judge", "http://x"], "wanted both or none"),
        (
            ["--judge", "http://x", "--judge-model", "m"],
            "none of ovo_bench's answers needs a judge",
        ),
    ],
)
def test_wrong_arguments_are_told_before_the_model_is_read(more, said, asked, capsys):
    assert cli.main(["eval", "no model", "ovo_bench", "--data", str(asked), *more]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
