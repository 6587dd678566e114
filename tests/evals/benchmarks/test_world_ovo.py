"""The miniature OVO-Bench: all twelve tasks, and who tells the truth scores 100 by either protocol."""

import pytest

from streamjax.data.video import probe
from streamjax.evals.benchmarks.ovo_bench import OVO_BENCH, TASKS, clips
from streamjax.evals.benchmarks.ovo_bench_streamo import OVO_BENCH_STREAMO, follow, output_row
from tests.evals.benchmarks import world_ovo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return world_ovo.write(tmp_path_factory.mktemp("ovo"))


def leaves(table):
    for value in table.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_the_truth_scores_100_when_polled(folder):
    records = OVO_BENCH.read(folder)
    assert {record["task"] for record in records.records} == set(TASKS)
    answers = {clip.id: clip.gold for record in records.records for clip in clips(record)}
    found = OVO_BENCH.score(records, answers, "official")
    assert set(leaves(found.table)) == {100.0} and found.problems == ()
    for question in OVO_BENCH.questions(records, "polling"):
        assert probe(folder / "videos" / question.video).duration >= question.end


def test_the_truth_told_in_time_scores_100_in_a_stream(folder):
    records = OVO_BENCH_STREAMO.read(folder)
    rows = {}
    for sample in records.records:
        rounds = world_ovo.seconds(sample["video"])
        texts = follow(sample, rounds, lambda at, *_, s=sample: world_ovo.told(s, at))
        rows[str(sample["id"])] = output_row(sample, texts)
    found = OVO_BENCH_STREAMO.score(records, rows, "streamo_derived")
    assert set(leaves(found.table)) == {100.0} and found.problems == ()
    assert set(leaves(found.details["tasks"])) == {100.0}


def test_videos_as_folders_of_pictures(tmp_path):
    folder = world_ovo.write(tmp_path, clips=1, pictures=True)
    (video,) = (folder / "videos").iterdir()
    assert len(list(video.glob("frame_*.png"))) == 2 * world_ovo.seconds(video.name)
