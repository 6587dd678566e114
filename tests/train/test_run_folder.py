"""A run's folder where nothing can be appended and no `pathlib` reaches: paths as of a store."""

import json

import pytest
from etils import epath

from streamjax import checkpoint
from streamjax.train import CheckpointConfig, train
from streamjax.train.metrics import MetricsFile
from streamjax.train.progress import silent
from streamjax.train.run_folder import copy_into
from tests.train import toy

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]


def steps(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_lives_behind_such_paths_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "place", epath.Path)
    sent = []
    send = MetricsFile._send
    monkeypatch.setattr(MetricsFile, "_send", lambda self: (sent.append(1), send(self))[1])
    config = toy.config(steps=3, checkpoint=CheckpointConfig(every=2))
    done = train(config, tmp_path, progress=silent, profile=(2, 2))
    assert steps(tmp_path) == [1, 2, 3] and done.run_dir == epath.Path(tmp_path)
    assert len(sent) == 3  # two checkpoints and the end
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))

    for file in (tmp_path / "checkpoints" / "3").rglob("manifest.ocdbt"):
        file.unlink()
    again = train(config, tmp_path, progress=silent)
    assert (tmp_path / "checkpoints" / "broken-3").is_dir()
    assert steps(tmp_path) == [1, 2, 3]
    assert again.metrics["loss"] == done.metrics["loss"]


def test_folders_are_copied_with_what_is_in_them(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    copy_into(tmp_path / "a", epath.Path(tmp_path / "c"))
    assert (tmp_path / "c" / "b" / "file").read_text() == "x"
