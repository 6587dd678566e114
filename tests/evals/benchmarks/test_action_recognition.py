"""Kinetics-400 and SSv2: the golden cases, views by hand, and bad files."""

import json

import numpy as np
import pytest

from streamjax.data import augment, sampling
from streamjax.errors import InputError
from streamjax.evals.benchmarks import action_recognition, find
from streamjax.evals.pretraining import recognition

CASES = ["ar_k400", "ar_ssv2"]


@pytest.mark.parametrize("name", CASES)
def test_the_golden_cases(golden, name):
    case, bench = golden / "bench" / name, find(name)
    records, replies = bench.read(case), bench.answers(case / "view_logits")
    scores = bench.score(records, replies, "official")
    wanted = json.loads((case / "expected.json").read_text())
    assert scores.table == pytest.approx({key: wanted[key] for key in ("top1", "top5")}, abs=1e-9)
    averaged = next(value for key, value in wanted.items() if key.startswith("top1_if"))
    found = scores.details["top1_if_logits_were_averaged_instead"]
    assert found == pytest.approx(averaged, abs=1e-9)
    assert scores.details["repeated_views"] == 1 and scores.problems == ()
    assert bench.tabulate(scores.graded, "official")["top1"] == scores.table["top1"]
    for total, views in wanted["frame_indices"].items():
        for view, indices in views.items():
            if name == "ar_k400":
                picked = sampling.view_indices(int(total), 16, int(view), 4)
            else:
                picked = sampling.stretch_view_indices(int(total), 16, int(view))
            assert picked.tolist() == indices
    # The same from one file, and from JSON.
    one = case.parent / name / "view_logits" / "0.txt"
    assert bench.score(records, bench.answers(one), "official").n["top1"] == len(records.records)


def test_merging_is_that_of_recognition(rng):
    views, rows = action_recognition.Views(), rng.normal(0, 3, (6, 174))
    for i, row in enumerate(rows):
        views.add((i // 3, i % 3), row, "")
        views.add((i // 3, i % 3), row * 9, "")
    merged = np.exp(recognition.merge_views(rows[None])[0])
    np.testing.assert_allclose(views.probabilities / 6, merged, rtol=1e-9)
    assert views.repeated == 6


def test_three_places_along_the_long_side():
    frames = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None], (1, 24, 50, 3))
    lefts = [augment.side_window(frames, 24, place).left for place in range(3)]
    assert lefts == [0, 13, 26]
    tall = augment.side_window(frames.swapaxes(1, 2), 24, 2)
    assert (tall.top, tall.left, tall.crop) == (26, 0, (24, 24))
    cut = augment.side_window(frames, 24, 1).of_frames(frames)
    np.testing.assert_array_equal(cut, frames[:, :, 13:37])


ROWS = "b.webm 3\na.webm 1\nsome/c.webm,2\n"


def _said(label=3, peak=3, time=0, place=0, name="b", count=174):
    logits = [0.0] * count
    logits[peak] = 5.0
    return f"{name} {logits} {label} {time} {place}"


def _score(tmp_path, lines, rows=ROWS, rule="official"):
    (tmp_path / "test.csv").write_text(rows)
    said = tmp_path / "view_logits"
    said.mkdir(exist_ok=True)
    (said / "0.txt").write_text("\n".join(["0.0, 0.0", *lines]) + "\n")
    bench = find("ssv2")
    return bench.score(bench.read(tmp_path), bench.answers(tmp_path), rule)


def test_missing_videos_are_left_out_or_wrong(tmp_path):
    lines = [_said(), _said(label=2, name="c", peak=9)]
    found = _score(tmp_path, lines)
    assert found.table == {"top1": 50.0, "top5": 100.0}  # class 2 is among the first of equals
    assert found.unanswered == 1 and found.n == {"top1": 2, "top5": 2}
    assert "2 videos have not 2 x 3 views, first 1" in found.problems
    ours = _score(tmp_path, lines, rule="streamjax")
    assert ours.table == pytest.approx({"top1": 100 / 3, "top5": 200 / 3})


VIEWS = [
    ("a [1.0, x] 1 0 0", "wanted finite logits"),
    (_said(name="a", label=1).replace("5.0", "nan"), "wanted finite logits"),
    ("a [1.0, 2.0] 1 0 0", "2 logits; wanted 174"),
    (_said(name="a", label=7), "label 7; the list says 1"),
    ("a [1.0, 2.0", "not id \\[logits\\] label time place"),
    (_said(name="d"), "1 answers to no question here, left out, first 'd'"),
]


@pytest.mark.parametrize(("line", "told"), VIEWS)
def test_a_bad_view_is_left_out_and_told(tmp_path, line, told):
    found = _score(tmp_path, [_said(), line])
    assert found.table["top1"] == 100.0 and found.n["top1"] == 1
    with pytest.raises(InputError, match=told):
        raise InputError("\n".join(found.problems))


def test_bad_rows_are_left_out_and_told(tmp_path):
    rows = ROWS + "b.mp4 3\n../../d.webm 1\ne.webm\nf.webm 174\n"
    found = _score(tmp_path, [_said()], rows)
    for told in ["'b' stands there twice", "leaves", "'e.webm'; wanted name", "label 174; wanted"]:
        assert any(told in line for line in found.problems)


def test_answers_as_json(tmp_path):
    (tmp_path / "test.csv").write_text("b.webm 3\n")
    bench, said = find("ssv2"), tmp_path / "said.json"
    logits = json.loads(_said().split(" ", 1)[1].rsplit(" ", 3)[0])
    said.write_text(json.dumps({"b": {"0 0": logits, "0 1": logits, "x": logits, "1 0": "no"}}))
    found = bench.score(bench.read(tmp_path), bench.answers(said), "official")
    assert found.table == {"top1": 100.0, "top5": 100.0} and found.details["views"] == 2
    assert any("wanted its time and place" in line for line in found.problems)
    said.write_text(json.dumps({"b": [1]}))
    with pytest.raises(InputError, match="none of 1 videos can be scored"):
        bench.score(bench.read(tmp_path), bench.answers(said), "official")


def test_other_files(tmp_path):
    bench = find("k400")
    with pytest.raises(InputError, match="test.csv: cannot be read"):
        bench.read(tmp_path)
    with pytest.raises(InputError, match="no .txt file"):
        bench.answers(tmp_path)
    with pytest.raises(InputError, match="line 2: 'what'; wanted id"):
        _score(tmp_path, ["what"])
    with pytest.raises(InputError, match="none of 1 answers"):
        _score(tmp_path, [_said(name="other")])
    with pytest.raises(InputError, match="no row can be used"):
        _score(tmp_path, [_said()], "a.webm\n")
    with pytest.raises(InputError, match="no row can be used"):
        _score(tmp_path, [_said()], "")
