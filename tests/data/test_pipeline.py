"""The order depends on the seed alone; bad samples are skipped, counted, and told."""

import itertools
import logging

import numpy as np
import pytest

from streamjax.data.pipeline import ArrayRecords, DataConfig, batches, stack_rows
from streamjax.errors import InputError

BAD = 7


def records():
    return [{"video_path": f"clip{i}.mp4", "value": i} for i in range(20)]


def transform(record, rng):
    if record["value"] == BAD:
        raise ValueError("no frames in it")
    return {"value": np.int32(record["value"]), "noise": rng.random(3)}


def config(**changes):
    return DataConfig(**{"source": records, "transform": transform, "max_bad": 0.5, **changes})


def take(data, count):
    try:
        return [next(data) for _ in range(count)]
    finally:
        data.close()


def same(left, right):
    return all((a[k] == b[k]).all() for a, b in zip(left, right, strict=True) for k in a)


@pytest.fixture(scope="module")
def plain():
    return take(batches(config(), batch_size=4, seed=1), 12)


def test_every_epoch_has_each_good_record_once_and_its_own_order(plain):
    values = np.concatenate([batch["value"] for batch in plain])
    epochs = values[:19].tolist(), values[19:38].tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == [i for i in range(20) if i != BAD]
    assert epochs[0] != epochs[1]
    noise = np.concatenate([batch["noise"] for batch in plain])
    assert len(np.unique(noise)) == noise.size  # the second epoch draws anew


def test_threads_change_nothing(plain):
    assert same(plain, take(batches(config(threads=3), batch_size=4, seed=1), 12))


def test_worker_processes_change_nothing_and_a_run_goes_on_without_them(plain):
    data = batches(config(workers=2), batch_size=4, seed=1)
    first = [next(data) for _ in range(7)]
    state = data.get_state()
    assert same(plain, first + take(data, 5))
    rest = batches(config(), batch_size=4, seed=1)
    rest.set_state(state)
    assert same(plain[7:], take(rest, 5))


def test_another_seed_is_another_order(plain):
    assert not same(plain, take(batches(config(), batch_size=4, seed=2), 12))


def test_unshuffled_data_comes_in_its_order():
    (batch,) = take(batches(config(shuffle=False), batch_size=4, seed=1), 1)
    assert batch["value"].tolist() == [0, 1, 2, 3]


def test_shards_share_the_samples_out():
    parts = [
        take(batches(config(), batch_size=2, seed=1, shard=(i, 2)), 4) for i in range(2)
    ]  # fmt: skip
    values = [b["value"] for part in parts for b in part]
    assert len({*np.concatenate(values).tolist()}) == 16


def test_a_bad_sample_is_skipped_counted_and_logged_with_its_path(caplog):
    data = batches(config(), batch_size=4, seed=1)
    with caplog.at_level(logging.WARNING):
        take(data, 12)
    assert data.skipped == 2 + (data.seen > 50)
    assert "skipped clip7.mp4: ValueError: no frames in it" in caplog.text


def test_past_the_stated_rate_the_run_stops_with_one_line():
    def broken(record, rng):
        raise OSError(f"{record['video_path']}: truncated")

    with pytest.raises(InputError) as told:
        take(batches(config(transform=broken, max_bad=0.1), batch_size=4, seed=0), 1)
    assert "11 of 11 samples are bad, wanted at most 10.00%" in str(told.value)
    assert "truncated" in str(told.value)
    assert "\n" not in str(told.value)


def test_an_error_of_the_code_tells_its_place(caplog):
    def mistaken(record, rng):
        return {"x": record["valu"] if record["value"] == 3 else 0}

    with caplog.at_level(logging.WARNING):
        take(batches(config(transform=mistaken), batch_size=20, seed=0), 1)
    assert "skipped clip3.mp4: KeyError: 'valu' (test_pipeline.py:" in caplog.text


def test_a_source_that_fails_is_a_bad_sample_too():
    class Holey(list):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("row 3 is corrupt")
            return super().__getitem__(index)

    data = batches(config(source=lambda: Holey(records())), batch_size=4, seed=1)
    values = np.concatenate([b["value"] for b in take(data, 4)])
    assert 3 not in values
    assert data.skipped >= 1


def test_two_shapes_in_one_batch_are_an_error_that_names_the_key():
    with pytest.raises(InputError, match=r"differ in 'x': \(2,\) and \(3,\): pad"):
        stack_rows([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    with pytest.raises(InputError, match="differ in 'y': absent"):
        stack_rows([{"x": 1}, {"x": 1, "y": 2}])


def test_an_empty_source_is_an_error():
    with pytest.raises(InputError, match="source is empty"):
        batches(config(source=list), batch_size=1, seed=0)


def test_array_records_are_a_source(tmp_path):
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "part.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(5):
        writer.write(str(i).encode())
    writer.close()
    source = ArrayRecords([path], int)
    assert len(source) == 5
    assert [source[i] for i in range(5)] == list(range(5))
    with pytest.raises(FileNotFoundError, match=r"gone\.array_record"):
        ArrayRecords([tmp_path / "gone.array_record"], int)


class Tens:
    """Rows of numbers that add up to 60 at most."""

    def fits(self, samples):
        return sum(int(s["value"]) for s in samples) <= 60

    def row(self, samples):
        values = [int(s["value"]) for s in samples]
        return {"values": np.array(values + [-1] * (20 - len(values)))}


def test_samples_share_rows_in_their_order_and_a_run_goes_on_between_them(plain):
    in_order = np.concatenate([batch["value"] for batch in plain])
    data = batches(config(pack=Tens()), batch_size=2, seed=1)
    first = [next(data) for _ in range(2)]
    assert data.waiting is not None
    state = data.get_state()
    whole = first + take(data, 2)
    rows = [row[row >= 0] for batch in whole for row in batch["values"]]
    assert np.array_equal(np.concatenate(rows), in_order[: sum(map(len, rows))])
    for row, after in itertools.pairwise(rows):
        assert row.sum() <= 60 < row.sum() + after[0]
    again = batches(config(pack=Tens()), batch_size=2, seed=1)
    again.set_state(state)
    assert same(whole[2:], take(again, 2))
