"""`streamjax eval MODEL timing` from a folder to its result, with a tiny model; and its page."""

import contextlib
import io
import json
import re

import numpy as np
import pytest

import streamjax as sj
from streamjax.data.processors import Assets, ImageProcessor
from streamjax.data.video import write_video
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Graded
from streamjax.evals.harness.compare import compare, read_result
from streamjax.evals.timing.curves_page import Line, Mark, delays, picture
from streamjax.evals.timing.report import tabulate
from streamjax.evals.timing.scores import Dialogue, score
from streamjax.stream import read_trace, redecide
from streamjax.verbs.evaluating_timing import eval_timing
from tests.stream import oracle

ANSWERS = [{"content": "red", "st_time": "2", "end_time": "3", "time": ""}]


def record(video, kind, question, answers):
    asked = [{"content": question, "time": "0"}]
    return {"video_path": video, "kind": kind, "question": asked, "response": answers}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model's folder, two videos, and three dialogues about them and one that is none."""
    folder = tmp_path_factory.mktemp("timing")
    words = oracle.make_tokenizer(folder / "words")
    model = oracle.make_model("llava", words)
    words.save_pretrained(folder / "words")
    settings = folder / "words" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"system_prompt": "watch"}))
    processor = ImageProcessor(size=(oracle.SIDE, oracle.SIDE))
    model.assets = Assets(tokenizer=str(folder / "words"), processor=processor)
    sj.save(model, folder / "model")
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for name in "ab":
        frames = rng.integers(0, 256, (12, 16, 16, 3), np.uint8)
        write_video(folder / "videos" / f"{name}.mp4", frames, 2)
    (folder / "streamo").mkdir()
    (folder / "streamo" / "test.json").write_text(
        json.dumps([
            record("a.mp4", "alert", "tell me when the light turns red", ANSWERS),
            record("b.mp4", "alert", "tell me when the light turns green", []),
            record("b.mp4", "what", "what is it now", ANSWERS),
            record("gone.mp4", "what", "what is it now", ANSWERS),
        ])
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def out(home):
    """The folder of a run, and what it printed."""
    folder, printed = home / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        eval_timing(
            str(home / "model"), data=home, streams=2, max_new_tokens=4, max_bad=0.5, out=folder
        )
    (folder / "printed").write_text(printed.getvalue())
    return folder


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_the_result_says_what_was_found_and_what_decided_it(out):
    result = result_of(out)
    assert result["benchmark"] == "timing" and result["n"] == {"dialogues": 3, "turns": 18}
    assert list(result["kinds"]) == ["alert", "what"]
    assert set(result["baselines"]) == {"always silent", "states at random", "motion detector"}
    assert result["baselines"]["always silent"]["within"]["1"]["recall"] == 0.0
    assert set(result["table"]["within"]) == {"0", "1", "3"}
    assert result["table"]["wanted"] == 2 and 0 < result["teacher_forced"]["macro_f1"] <= 1
    (problem,) = result["problems"]
    assert "gone.mp4" in problem
    manifest = result["manifest"]
    assert manifest["weights"].startswith("sha256") and manifest["data"].startswith("sha256")
    assert {"fps", "policy", "decoding", "thresholds", "rule", "prompts"} <= set(manifest)
    # Sums of dialogues are the sums of all.
    graded = [Graded(**one) for one in result["graded"]]
    table, whole = tabulate(graded, "streamjax"), result["table"]
    assert table["macro-F1"] == pytest.approx(100 * whole["macro_f1"])
    assert table["recall 3 s"] == pytest.approx(100 * whole["within"]["3"]["recall"])
    assert set(result["per_item"]) == {"a.mp4#0", "b.mp4#0", "b.mp4#1"}


def test_two_results_are_compared_video_by_video(out):
    result = read_result(out)
    rows = {row.name: row for row in compare(result, result, draws=20)}
    assert rows["macro-F1"].a == pytest.approx(100 * result["table"]["macro_f1"])
    assert all(row.difference in (None, 0.0) for row in rows.values())
    low, high = rows["macro-F1"].a_interval
    assert low is not None and high is not None and low <= high


def test_traces_give_the_result_again(out):
    traces = [read_trace(path) for path in sorted((out / "traces").iterdir())]
    assert len(traces) == 3 and all(len(trace.turns) == 6 for trace in traces)
    said = sum(redecide(trace.probabilities).count(2) for trace in traces)
    assert said == result_of(out)["table"]["said"]
    recorded = result_of(out)["curve"]["recorded"]
    within = result_of(out)["table"]["within"]["1"]
    assert recorded["precision"] == within["precision"] and recorded["recall"] == within["recall"]


def test_the_page_stands_alone_and_is_whole(out):
    page = (out / "timing.html").read_text()
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == page.count("</svg>") >= 3
    assert "recorded history held fixed" in page and "motion detector" in page
    assert "NaN" not in page and "nan" not in re.findall(r'd="[^"]*"', page)


def test_a_second_call_takes_the_traces(home, out, capsys, monkeypatch):
    before = result_of(out)
    monkeypatch.setattr("streamjax.stream.session.StreamBatch.push", None)  # nothing is watched
    options = dict(streams=2, max_new_tokens=4, max_bad=0.5, free_only=True)
    eval_timing(str(home / "model"), data=home, out=out, as_json=True, **options)
    printed = json.loads(capsys.readouterr().out)
    assert printed == result_of(out)
    assert printed["table"] == before["table"] and printed["teacher_forced"] is None
    assert printed["curve"] == before["curve"]


def test_the_table_has_a_row_a_kind_and_the_baselines(out):
    shown = (out / "printed").read_text()
    for part in ("alert", "what", "always silent", "motion detector", "gone.mp4", "as it was held"):
        assert part in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_bad": 0.0}, "1 of 4 dialogues or records could not be used"),
        ({"limit": 0}, "--limit 0: wanted at least 1"),
        ({"tolerance": 11.0}, "--tolerance 11: wanted 0 to 10 seconds"),
        ({"fps": 0.0}, "--fps 0: wanted turns a second above 0"),
        ({"respond": 1.5}, "respond is 1.5"),
        ({"kinds": ("none",)}, "no kind 'none'; wanted of alert, what"),
        ({"split": "val"}, "it has test"),
    ],
)
def test_bad_arguments_are_a_line(home, options, said):
    with pytest.raises(InputError, match=re.escape(said)) as error:
        eval_timing(str(home / "model"), data=home, **options)
    assert "\n" not in str(error.value)


def test_pictures_of_little():
    empty = Dialogue((0, 0), ("", ""))
    assert "No answer" in delays(score(empty, empty))
    one = Dialogue((0, 2), ("", "a"))
    drawn = delays(score(one, one))
    assert drawn.count("<rect") == 7 and "+0 s: 1" in drawn
    drawn = picture([Line("<a>", [(0.5, 1.0, "<b>")])], [Mark("<c>", 0.0, 0.0)])
    assert "&lt;b&gt;" in drawn and "<c>" not in drawn
