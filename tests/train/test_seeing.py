"""What a run shows of itself: speed and memory in its rows, other writers, a profile, stalls."""

import json
import logging
import sys
import time
import types
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

from streamjax.errors import InputError
from streamjax.sharding import make_mesh
from streamjax.train import DataConfig, meter, train, writers
from streamjax.train.chips import CHIPS
from streamjax.train.flops import Flops
from streamjax.train.meter import Meter, Work
from streamjax.train.profile import Profile, steps_of
from streamjax.train.progress import Report, tell
from streamjax.train.state import set_up
from tests.train import toy
from tests.train.toy_data import records, transform

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def slowly(record, rng):
    time.sleep(0.1)
    return transform(record, rng)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run that waits for its data, with a stub of W&B and a profile; what it told."""
    path, told, stub = tmp_path_factory.mktemp("seen"), {}, types.ModuleType("wandb")

    class Run:
        def log(self, values, step):
            told.setdefault("rows", []).append((step, values))

        def finish(self):
            told["finished"] = True

    stub.init = lambda **settings: told.update(settings) or Run()
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", stub)
        patch.setenv("WANDB_MODE", "offline")
        logging.getLogger("streamjax.train").addHandler(handler)
        try:
            data = DataConfig(source=records, transform=slowly)
            config = toy.config(steps=6, data=data, log_every=2)
            shown = []

            @contextmanager
            def display(name, steps, start):
                yield shown.append

            result = train(config, path, progress=display, log_to=("wandb",), profile=(5, 6))
        finally:
            logging.getLogger("streamjax.train").removeHandler(handler)
    return types.SimpleNamespace(path=path, told=told, heard=heard, shown=shown, result=result)


def test_rows_say_how_fast_and_how_much_of_it_was_waiting(seen):
    last = rows(seen.path)[3]  # neither compiled nor profiled
    assert last["examples_per_second"] == pytest.approx(8 / last["seconds"], rel=1e-2)
    assert 0.5 < last["data_wait"] <= 1.0
    assert last["data_wait"] == pytest.approx(last["data_seconds"] / last["seconds"], abs=1e-3)
    # Nothing is made up: no tokens in these rows, no stated peak and no such count on a CPU.
    assert not {"tokens_per_second", "mfu", "hbm_peak"} & set(last)


def test_a_stall_is_said_once(seen):
    stalls = [line for line in seen.heard if "waits for data" in line]
    assert len(stalls) == 1
    assert stalls[0].startswith("step 2: the run waits for data, ")
    assert "more data.workers or data.threads" in stalls[0]
    assert all(report.waiting > 0.5 for report in seen.shown[:2])
    assert "data wait" in tell(seen.shown[-1])


def test_a_profile_of_the_steps_asked_for_is_written(seen):
    (trace,) = (seen.path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    assert any("wrote the profile of steps 5 to 6 to" in line for line in seen.heard)


def test_bad_ranges_of_steps_are_told(tmp_path):
    assert steps_of("10:13") == (10, 13)
    for wrong in ("10", "10:", "a:b", "-1:3", "10-13"):
        with pytest.raises(InputError, match="wanted FIRST:LAST"):
            steps_of(wrong)
    for first, last, start in ((13, 10, 0), (10, 99, 0), (0, 3, 0), (10, 13, 20)):
        with pytest.raises(InputError, match=f"wanted steps from {start + 1} to 60") as told:
            Profile((first, last), tmp_path, start, 60)
        assert "\n" not in str(told.value)


def test_wandb_gets_the_rows_and_is_continued(seen):
    assert [step for step, _ in seen.told["rows"]] == [1, 2, 3, 4, 5, 6]
    assert seen.told["rows"][-1][1]["loss"] == seen.result.metrics["loss"]
    assert seen.told["rows"][-1][1]["tp/0"] == seen.result.metrics["tp"][0]
    assert (seen.told["name"], seen.told["project"]) == ("toy", "streamjax")
    assert seen.told["config"]["steps"] == 6 and seen.told["finished"]
    assert seen.told["resume"] == "allow"
    assert seen.told["id"] == json.loads((seen.path / "wandb.json").read_text())["id"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_told_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    told = pytest.raises(InputError, match=rf"pip install 'streamjax\[{name}\]'")
    with told as error, writers.opened([name], tmp_path, "toy", {}, 0):
        pass
    assert "\n" not in str(error.value)


def test_an_unknown_writer_is_told(tmp_path):
    told = pytest.raises(InputError, match="log 'mlflow', wanted one of tensorboard, wandb")
    with told, writers.opened(["mlflow"], tmp_path, "toy", {}, 0):
        pass


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with writers.opened(["tensorboard"], tmp_path, "toy", {}, 4) as write:
        write({"step": 5, "loss": 0.5, "tp": [1.0, 2.0]})
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = list(EventFileLoader(str(file)).Load())
    assert any(event.step == 5 and event.HasField("session_log") for event in events)
    values = [value for event in events for value in event.summary.value]
    assert [value.tag for value in values] == ["loss", "tp/0", "tp/1"]


def test_scalars_of_a_row():
    row = {"step": 3, "loss": 0.5, "compiled": True, "tp": [[1, 2], [3, 4]]}
    assert writers.scalars(row) == {
        "loss": 0.5, "compiled": 1.0, "tp/0": 1.0, "tp/1": 2.0, "tp/2": 3.0, "tp/3": 4.0,
    }  # fmt: skip


def test_the_share_of_the_peak_is_operations_over_time_over_all_chips(monkeypatch):
    config = toy.config(accumulate=2)
    mesh = make_mesh(data=-1)
    monkeypatch.setattr(meter, "chip_of", lambda kind: CHIPS["v5p"])
    asked = []

    def flops(model, trained, batch, *, task):
        asked.append((type(model).__name__, {k: v.shape for k, v in batch.items()}, task))
        return Flops(1e12, 1.0, 0.0)

    monkeypatch.setattr(meter, "train_flops", flops)
    monkeypatch.setattr(meter, "memory_peak", lambda: 123)
    one = Meter(config, set_up(config, mesh), mesh)
    # As `put` lays a step out: micro-batches first.
    batch = {"x": jnp.zeros((2, 4, 8)), "tokens": jnp.zeros((2, 4, 16), jnp.int32)}
    assert one.work(batch) == one.work(batch) == Work(tokens=128, flops=2e12)
    assert asked == [("Toy", {"x": (4, 8), "tokens": (4, 16)}, None)]
    row = one.row(one.work(batch), 0.5, 0.1)
    assert row["mfu"] == pytest.approx(2e12 / 0.5 / (CHIPS["v5p"].flops * 8), abs=1e-5)
    assert (row["tokens_per_second"], row["data_wait"], row["hbm_peak"]) == (256.0, 0.2, 123)


def test_speed_is_in_the_line():
    report = Report(3, 0.5, None, 12.0, 0.6, 61.0, tokens_per_second=12345.6, mfu=0.456)
    assert tell(report) == (
        "loss 0.5000 12.0 examples/s 12,346 tokens/s MFU 45.6% data wait 60% left 1:01"
    )


def test_the_fullest_device_counts(monkeypatch):
    device = lambda peak: types.SimpleNamespace(
        memory_stats=lambda: peak and {"peak_bytes_in_use": peak}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device(3), device(5), device(None)])
    assert meter.memory_peak() == 5
    monkeypatch.setattr(jax, "local_devices", lambda: [device(None)])
    assert meter.memory_peak() is None
