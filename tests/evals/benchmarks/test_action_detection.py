"""THUMOS14 and TVSeries: the golden cases, precisions by hand, and bad folders."""

import json
import shutil

import numpy as np
import pytest

from streamjax.errors import InputError
from streamjax.evals.benchmarks import find
from streamjax.evals.benchmarks.action_detection import calibrated_precision
from streamjax.evals.pretraining.localization import average_precision

CASES = ["oad_thumos14", "oad_tvseries"]


@pytest.mark.parametrize("name", CASES)
def test_the_golden_cases(golden, name):
    case, bench = golden / "bench" / name, find(name)
    scores = bench.score(bench.read(case), bench.answers(case / "pred_scores"), "official")
    wanted = json.loads((case / "expected.json").read_text())
    assert scores.table[wanted["metric"]] == pytest.approx(wanted["mean"], abs=1e-12)
    assert scores.table["per_class"] == pytest.approx(wanted["per_class"], abs=1e-12)
    assert list(scores.table["per_class"]) == list(wanted["per_class"])
    stages = next(value for key, value in wanted.items() if key.startswith("per_stage_mean"))
    assert list(scores.details["per_stage_mean"]) == list(stages)
    for stage, value in stages.items():
        found = scores.details["per_stage_mean"][stage]
        assert found is None if value is None else found == pytest.approx(value, abs=1e-12)
    for key in ("metric", "mean", "n_frames", "n_frames_after_postprocessing"):
        assert scores.details[key] == pytest.approx(wanted[key])
    other = scores.details["same_data_other_metric"]
    # THUMOS14's scores have ties, whose order in cAP is that of the machine's sort.
    assert other == pytest.approx(wanted["same_data_other_metric"], abs=2e-4)
    assert scores.problems == () and scores.unanswered == scores.unparsed == 0
    ours = bench.score(bench.read(case), bench.answers(case), "streamjax")
    assert ours.table[wanted["metric"]] == pytest.approx(wanted["mean"], abs=1e-12)
    assert None not in ours.details["per_stage_mean"].values()


def test_precisions_by_hand():
    positive = np.array([1, 0, 1, 0, 0, 0, 1, 0], bool)
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert average_precision(score, positive) == pytest.approx(0.6984126984126985)
    assert calibrated_precision(score, positive) == pytest.approx(0.7749287749287749)
    assert np.isnan(calibrated_precision(score, np.zeros(8, bool)))


def test_ties_count_together_where_asked(rng):
    positive, score = rng.random(200) < 0.2, rng.integers(0, 8, 200) / 8
    order = rng.permutation(200)
    one = calibrated_precision(score, positive, together=True)
    assert one == pytest.approx(calibrated_precision(score[order], positive[order], together=True))
    # Of the same value as if the frames of one score stood there half and half.
    assert calibrated_precision(np.zeros(4), np.array([1, 1, 0, 0], bool), together=True) == (
        pytest.approx(0.5)
    )
    apart = rng.permutation(200) / 200
    assert calibrated_precision(apart, positive, together=True) == pytest.approx(
        calibrated_precision(apart, positive)
    )


@pytest.fixture
def folder(tmp_path, golden):
    shutil.copytree(golden / "bench/oad_tvseries", tmp_path / "case")
    return tmp_path / "case"


def _set(folder, **change):
    path = folder / "data_info.json"
    info = json.loads(path.read_text())
    info["TVSeries"] |= change
    path.write_text(json.dumps(info))


def _score(folder, rule="streamjax"):  # the quicker one
    bench = find("tvseries")
    return bench.score(bench.read(folder), bench.answers(folder / "pred_scores"), rule)


def test_a_session_that_cannot_be_used_is_left_out(folder):
    whole = _score(folder)
    (folder / "pred_scores/Synth_ep1.npy").unlink()
    found = _score(folder)
    assert found.unanswered == 1 and found.n["sessions"] == 2
    assert found.n["frames"] < whole.n["frames"]
    assert "1 questions without an answer, first 'Synth_ep1'" in found.problems
    path = folder / "pred_scores/Synth_ep2.npy"
    scores = np.load(path)
    for broken, told in [
        (scores[:-1], "scores of 'Synth_ep2' have shape"),
        (np.where(np.arange(31) == 3, np.nan, scores), "values are NaN or infinite"),
        (scores.astype("U8"), "wanted numbers"),
    ]:
        np.save(path, broken)
        found = _score(folder)
        assert found.n["sessions"] == 1 and found.unparsed == 1
        assert any(told in line for line in found.problems)
    np.save(path, np.array([{}], object), allow_pickle=True)
    assert any("no array of numbers" in line for line in _score(folder).problems)
    path.write_bytes(b"")
    assert any("Synth_ep2.npy: no array" in line for line in _score(folder).problems)


def test_targets_that_cannot_be_used_are_told(folder):
    np.save(folder / "target_perframe/Synth_ep1.npy", np.zeros((4, 3)))
    (folder / "target_perframe/Synth_ep2.npy").unlink()
    names = ["Synth_ep1", "Synth_ep2", "Synth_ep3", "Synth_ep3", "../target_perframe/x", "../../y"]
    _set(folder, test_session_set=names)
    records = find("tvseries").read(folder)
    assert [session.id for session in records.records] == ["Synth_ep3"]
    for told in ["[4, 3]; wanted [frames, 31]", "cannot be read", "twice", "leaves"]:
        assert any(told in line for line in records.problems)
    _set(folder, test_session_set=["Synth_ep2"])
    with pytest.raises(InputError, match="none of 1 sessions"):
        find("tvseries").read(folder)


def test_ties_are_told(folder):
    for path in (folder / "pred_scores").iterdir():
        np.save(path, np.round(np.load(path), 1))
    said = _score(folder, "official").problems
    assert any("the official order is undefined" in line for line in said)
    assert not any("undefined" in line for line in _score(folder).problems)


def test_other_folders_and_answers(folder, tmp_path):
    with pytest.raises(InputError, match="holds TVSeries; wanted THUMOS"):
        find("thumos14").read(folder)
    with pytest.raises(InputError, match="no such file"):
        find("thumos14").read(tmp_path)
    with pytest.raises(InputError, match="no .npy file"):
        find("thumos14").answers(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        find("thumos14").answers(folder / "data_info.json")
    foreign = {"other": folder / "pred_scores/Synth_ep1.npy"}
    with pytest.raises(InputError, match="none of 1 answers"):
        find("tvseries").score(find("tvseries").read(folder), foreign, "official")
    classes = find("tvseries").read(folder).records[0].info.classes
    fine = {"metrics": "cAP", "ignore_index": -100, "class_names": list(classes)}
    for change, told in [
        ({"metrics": "F1"}, "metrics 'F1'; wanted one of AP, cAP"),
        ({"ignore_index": 31}, "ignore_index 31"),
        ({"class_names": []}, "class_names"),
        ({"test_session_set": []}, "test_session_set"),
    ]:
        _set(folder, **fine | change)
        with pytest.raises(InputError, match=told):
            find("tvseries").read(folder)
