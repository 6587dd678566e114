"""The table and the JSON of an evaluation, and records in batches, whatever happens to them."""

import json

import numpy as np
import pytest

from streamjax.errors import InputError
from streamjax.evals.pretraining.held_out import HeldOut
from streamjax.evals.results import Result, document, files_hash, table, weights_hash, write

REASONS = tuple(f"record {i}: no such file" for i in range(5))
RESULTS = [
    Result("TaskVIS", "A", "segmentation", {"mask_miou": 0.1234, "pixels": 12000}, 7, "videos"),
    Result("TaskVIS", "B", "segmentation", {"mask_miou": 1.0, "pixels": 5}, 1, "videos", REASONS),
    Result("TaskRetrieval", "", "retrieval", {"t2v_r1": 0.5, "t2v_median": 1.5}, 1000, "pairs"),
]


def test_the_table():
    one, two = table(RESULTS).split("\n\n")
    head, a, b, *told = one.split("\n")
    assert head.split() == ["segmentation", "n", "skipped", "mask_miou", "pixels"]
    assert a.split() == ["TaskVIS/A", "7", "videos", "0", "12.3", "12,000"]
    assert b.split() == ["TaskVIS/B", "1", "videos", "5", "100.0", "5"]
    assert len({len(head), len(a), len(b)}) == 1
    assert told[0].strip() == "TaskVIS skipped: record 0: no such file"
    assert told[-1].strip() == "TaskVIS skipped: and 2 more" and len(told) == 4
    assert two.split("\n")[1].split() == ["TaskRetrieval", "1,000", "pairs", "0", "50.0", "1.5"]


def test_the_json_says_what_decided_it(tmp_path):
    write(tmp_path / "new" / "r.json", document(RESULTS, {"split": "test"}))
    content = json.loads((tmp_path / "new" / "r.json").read_text())
    assert content["results"][1]["skipped"] == list(REASONS)
    assert content["decided_by"]["split"] == "test" and content["decided_by"]["streamjax"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.json"]


def test_hashes_follow_content_and_names(tmp_path):
    weights = {"a": np.arange(3.0), "b": np.zeros((2, 2))}
    assert weights_hash(weights) == weights_hash({k: v.copy() for k, v in weights.items()})
    assert weights_hash(weights) != weights_hash(weights | {"b": np.full((2, 2), 1e-9)})
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.write_text("y")
    both = files_hash([one, two], tmp_path)
    assert both == files_hash([two, one], tmp_path)
    two.write_text("z")
    assert both != files_hash([one, two], tmp_path)


def make(record):
    if record % 10 == 9:
        raise OSError("gone")
    return {"x": np.full(2, record)}


def test_batches_have_one_shape_and_keep_the_order():
    told = []
    held = HeldOut(range(8), make, 3, threads=3, progress=lambda done, of: told.append((done, of)))
    batches = list(held)
    assert [b.records for b in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert all(b.samples["x"].shape == (3, 2) for b in batches)
    assert batches[-1].samples["x"][:, 0].tolist() == [6, 7, 7]
    assert held.used == 8 and told[-1] == (8, 8)


def test_a_limit_is_spread_over_all_records():
    held = HeldOut(range(100), make, 2, limit=5)
    assert [r for batch in held for r in batch.records] == [0, 20, 40, 60, 80]
    assert HeldOut(range(3), make, 2, limit=5).places() == [0, 1, 2]


def test_bad_records_up_to_a_share():
    held = HeldOut(range(20), make, 4, max_bad=0.1)
    assert sum(len(batch.records) for batch in held) == 18 == held.used
    assert held.skipped == ["record 9: OSError: gone", "record 19: OSError: gone"]
    with pytest.raises(InputError, match="2 of 20 records .* max_bad=0.05 .* record 9: OSError"):
        list(HeldOut(range(20), make, 4, max_bad=0.05))
    with pytest.raises(InputError, match="none of 0 records"):
        list(HeldOut([], make, 4))
