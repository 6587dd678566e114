"""`streamjax demo --fast` from an empty folder: its stages, files, quality and manners."""

import json

import pytest

import streamjax as sj
from streamjax import demo
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory, optimized):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, demo.run(folder, fast=True)


def test_it_learns(run):
    _, scores = run
    assert scores["test"]["dialogues"] >= 60
    assert scores["test"]["macro_f1"] >= 0.50
    assert scores["test"]["macro_f1"] > scores["baselines"]["training prior"]["macro_f1"]


def test_it_leaves_a_run_a_folder_and_a_report(run):
    folder, scores = run
    assert json.loads((folder / "scores.json").read_text())["test"] == scores["test"]
    assert type(sj.load(folder / "assistant")) is type(sj.load(folder / "hf"))
    page = (folder / "watched.report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (folder / "watched.vtt").read_text().startswith("WEBVTT")
    assert len(sj.read_trace(folder / "watched.jsonl").turns) >= 10
    rows = (folder / "assistant" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_finished_demo_is_not_run_over(run):
    folder, _ = run
    with pytest.raises(InputError, match="--resume"):
        demo.run(folder, fast=True)
    with pytest.raises(InputError, match="begun with"):
        demo.run(folder, resume=True)
    with pytest.raises(InputError, match="effort is 0"):
        demo.run(folder.parent / "other", effort=0)


def test_the_table_shows_the_baselines(run):
    _, scores = run
    shown = demo.table(scores)
    for name in ("held-out videos", "always silent", "training prior", "motion detector"):
        assert name in shown
