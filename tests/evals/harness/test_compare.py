"""Two results side by side, on hand-made scores whose intervals are known."""

import copy
import json

import pytest

from streamjax import cli
from streamjax.errors import InputError
from streamjax.evals import benchmarks
from streamjax.evals.benchmarks.benchmark import Graded
from streamjax.evals.harness.compare import compare, read_result, table

OVERALL = "Overall Avg."


def result(scores, *, videos=None, **manifest):
    """OVO-Bench's OCR alone, an answer each; `videos` names the video of each."""
    graded = [
        {"id": str(i), "group": "OCR", "score": float(score), "video": (videos or {}).get(i, str(i)),
         "parsed": "A", "answered": True}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    decided = {"benchmark": "ovo_bench", "data": "d", "rule": "official", "weights": "w"}
    return {
        "benchmark": "ovo_bench", "rule": "official", "graded": graded,
        "manifest": {**decided, **manifest},
    }  # fmt: skip


def column(rows, name):
    return next(row for row in rows if row.name == name)


def test_scores_differences_and_intervals():
    a, b = result([1, 0] * 20), result([1, 1, 1, 0] * 10, weights="other")
    rows = compare(a, b, draws=200)
    row = column(rows, "Real-Time Visual Perception / OCR")
    assert (row.a, row.b, row.difference) == (50.0, 75.0, 25.0)
    assert row.a_interval[0] < 50 < row.a_interval[1]
    assert 0 < row.difference_interval[0] < 25 < row.difference_interval[1]
    assert compare(a, b, draws=200) == rows != compare(a, b, draws=200, seed=1)
    lines = table(rows, ("first", "second")).splitlines()
    assert "first" in lines[0] and any("+25.00 [" in line for line in lines)
    # The same draws for both: against itself nothing differs, however wide the scores' intervals.
    same = column(compare(a, copy.deepcopy(a), draws=50), "Real-Time Visual Perception / OCR")
    assert same.difference_interval == (0.0, 0.0) and same.a_interval[0] < same.a_interval[1]


def test_answers_about_one_video_are_drawn_together():
    scores = [1, 1, 1, 1, 0, 0, 0, 0] * 3
    alone = compare(result(scores), result(scores), draws=300)
    two = {i: f"v{i // 4 % 2}" for i in range(len(scores))}
    together = compare(result(scores, videos=two), result(scores, videos=two), draws=300)
    name = "Real-Time Visual Perception / OCR"
    assert column(together, name).a_interval == (0.0, 100.0)
    assert column(alone, name).a_interval[0] > 20


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = result([1, 0])
    with pytest.raises(InputError, match="^data is"):
        compare(a, result([1, 0], data="other"))
    with pytest.raises(InputError, match="1 scores are in one result alone, first '2'"):
        compare(a, result([1, 0, 1]))
    for content in (None, "{", "[]", json.dumps({"benchmark": "ovo_bench"})):
        path = tmp_path / "r.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match="no such file|no result"):
            read_result(path)


def test_the_verb(tmp_path, capsys):
    for name, made in (("a", result([1, 0])), ("b", result([1, 1], fps=2.0))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(made))
    args = ["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main(args) == 2
    assert "fps is null in one and 2.0 in the other" in capsys.readouterr().err
    assert cli.main([*args, "--across", "fps", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["across"] == ["fps"]
    (row,) = [row for row in told["columns"] if row["name"] == OVERALL]
    assert row["difference"] == row["b"] - row["a"]
    assert cli.main([*args, "--across", "fps"]) == 0
    assert OVERALL in capsys.readouterr().out


def test_every_benchmark_that_can_be_drawn_again_takes_a_result_of_json():
    """A table is made of scores alone, which JSON keeps; none and one twice are scores too."""
    for name in benchmarks.NAMES:
        make = benchmarks.find(name)
        if make.tabulate is not None:
            for rule in make.rules:
                make.tabulate([], rule)
    ovo = benchmarks.find("ovo_bench").tabulate
    assert ovo is not None
    ones = [Graded(**row) for row in result([1, 0])["graded"]]
    assert ovo([*ones, *ones], "official") == ovo(ones, "official")
