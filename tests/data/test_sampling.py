"""Frame numbers against the original's, every draw given; and what holds for any draw."""

import json

import numpy as np
import pytest

from streamjax.data import sampling
from streamjax.data.annotations import moments
from tests.listed_draws import ListedDraws

CASE = "streamformer/l_data_sampling_and_labels/samples.min.json"


@pytest.fixture(scope="module")
def cases(golden):
    return json.loads((golden / CASE).read_text())


def drawn(sample: dict) -> list:
    """The draws that are about frames: captions and prefixes are drawn before them."""
    return [d for d in sample["draws"] if not isinstance(d[2], str)]


@pytest.mark.parametrize(
    ("task", "indices"),
    [("Kinetics", sampling.segment_indices), ("SSV2", sampling.stretch_indices)],
)
def test_recognition(cases, task, indices):
    for sample in cases[task]["samples"]:
        rng = ListedDraws(sample["draws"]) if sample["mode"] == "train" else None
        found = indices(sample["video"]["num_frames"], cases[task]["num_frames"], rng)
        assert found.tolist() == sample["frame_indices"], sample["file"]
        assert rng is None or not rng.left


def test_views(cases):
    for name, wanted in cases["Kinetics"]["test_chunk_indices"].items():
        total, view = int(name.split()[0]), int(name.split()[-1])
        assert sampling.view_indices(total, 16, view, 4).tolist() == wanted


def test_retrieval(cases):
    case = cases["TaskRetrieval"]
    for sample in case["samples"]:
        total, fps = sample["video"]["num_frames"], sample["video"]["fps"]
        if "DiDeMo" in sample["file"]:
            total = min(total, int(30 * fps))
        rng = ListedDraws(drawn(sample))
        # Where intervals are too short upstream permutes all frames, which the case does not list.
        kept = sample["frame_indices"][: min(16, total)]
        rng.permutation = lambda n, kept=kept: np.array(
            kept[::-1] + [i for i in range(n) if i not in kept]
        )
        found = sampling.interval_indices(total, case["num_frames"], rng)
        assert found.tolist() == sample["frame_indices"], sample["file"]
        rng.finished()
    for total, wanted in case["eval_middle_indices"].items():
        assert sampling.interval_indices(int(total), 16).tolist() == wanted


def test_grounding(cases):
    case = cases["TaskGrounding"]
    for sample in case["samples"]:
        total, fps = sample["video"]["num_frames"], sample["video"]["fps"]
        rng = ListedDraws(sample["draws"])
        if sample["mode"] == "validation":
            found = sampling.even_indices(total, 16)
        elif sample["sample_type"] == "uniform":
            found = sampling.segment_indices(total, 16, rng)
        else:
            told = sample["task_input"]
            span = told["start_time"], told["end_time"]
            found = sampling.moment_indices(total, fps, 16, *span, rng)
        assert found.tolist() == sample["frame_indices"], sample["file"]
        rng.finished()


def test_localization(cases):
    for sample in cases["TaskLocalization"]["samples"]:
        rng = ListedDraws(drawn(sample))
        found = sampling.segment_indices(sample["video"]["num_frames"], 16, rng)
        assert found.tolist() == sample["frame_indices"]


def test_segmentation(cases):
    rng = ListedDraws(cases["TaskVIS"]["samples"][0]["draws"])
    assert sampling.padded_indices(5, 3, rng).tolist() == [0, 1, 2]
    rng.finished()
    assert sampling.padded_indices(2, 5, rng).tolist() == [0, 0, 0, 0, 1]
    assert sampling.padded_indices(9, 3).tolist() == [1, 4, 7]


def test_a_moment_near_the_end_of_a_short_video(rng):
    """Sixteen seconds do not fit into fifteen: what begins below 0 is upstream's."""
    found = sampling.moment_indices(150, 10.0, 16, 10.0, 14.0, rng)
    assert found.min() < 0 and found.max() <= 149 and (np.diff(found) >= 0).all()


@pytest.mark.parametrize("total", [1, 2, 7, 15, 16, 17, 31, 33, 500])
def test_any_video_gives_rising_frames_that_it_has(total):
    rng = np.random.default_rng(total)
    for indices in (
        sampling.segment_indices, sampling.stretch_indices,
        sampling.interval_indices, sampling.padded_indices,
    ):  # fmt: skip
        for draws in (None, *[rng] * 20):
            found = indices(total, 16, draws)
            assert found.shape == (16,) and (np.diff(found) >= 0).all()
            assert found[0] >= 0 and found[-1] < total


@pytest.mark.parametrize("task", ["TaskGrounding", "TaskLocalization"])
def test_labels_of_frames(cases, task, tmp_path):
    """Read, sampled and labelled as the original does, from the table to the label."""
    case = cases[task]
    path = tmp_path / "train.csv"
    path.write_text(case["csv"])
    if task == "TaskGrounding":
        rows = moments.read_grounding(path, root=tmp_path)
    else:
        rows = moments.read_localization(path, case["label2id"], root=tmp_path)
    for sample in case["samples"]:
        row = rows[sample["index"]]
        assert sample["file"].endswith(row.video.name)
        times = np.round(np.array(sample["frame_indices"]) / sample["video"]["fps"], 2)
        if task == "TaskGrounding":
            found = moments.is_inside(row, times).astype(float)
            assert times.tolist() == sample["task_input"]["timestamps"]
        else:
            found = moments.frame_labels(row, times)
        assert found.tolist() == sample["task_input"]["label"]
