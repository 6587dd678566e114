"""Written whole, restored by name onto any mesh, told in one line when it does not fit."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import checkpoint
from streamjax.errors import InputError
from streamjax.models.layers import Linear, stack
from streamjax.sharding import make_mesh, shardings_of

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.inner = Linear(8, width, ("embed", "mlp"), rngs=rngs)
        self.layers = stack(lambda r: Linear(width, width, ("embed", "mlp"), rngs=r), 2, rngs)


class Place:
    """The least that a data iterator must do for Orbax: save and load its place."""

    def __init__(self, at=0):
        self.at = at

    async def save(self, directory):
        async def write():
            path = await directory.await_creation()
            (path / "at").write_text(json.dumps([self.at]))

        return write()

    async def load(self, directory):
        async def read():
            (self.at,) = json.loads((directory / "at").read_text())

        return read()


def net(width=16, seed=0):
    return nnx.state(Net(width, rngs=nnx.Rngs(seed)))


def shapes(width=16):
    return nnx.state(nnx.eval_shape(lambda: Net(width, rngs=nnx.Rngs(0))))


def equal(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), left, right)


def target(mesh, width=16):
    abstract = {"model": shapes(width), "optimizer": (shapes(width), jnp.int32(0))}
    return {k: checkpoint.placed(v, shardings_of(v, mesh)) for k, v in abstract.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with steps 2 and 3 of 1, 2, 3, saved from a mesh."""
    path = tmp_path_factory.mktemp("run")
    mesh = make_mesh(data=2, fsdp=4)
    with checkpoint.open_run(path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            model = jax.device_put(net(seed=step), shardings_of(shapes(), mesh))
            optimizer = (model, jnp.int32(step))
            checkpoint.save(
                checkpoints, step, model=model, optimizer=optimizer, data=Place(10 * step),
                recipe={"name": "net"},
            )  # fmt: skip
    return path


def test_the_newest_steps_are_kept(run):
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "3"]
    assert checkpoint.latest_step(run) == 3
    assert checkpoint.latest_step(run / "nothing") is None


def test_the_newest_and_every_so_many_th_are_kept(tmp_path):
    with checkpoint.open_run(tmp_path, keep=1, keep_every=2) as checkpoints:
        for step in (1, 2, 3, 4, 5):
            checkpoint.save(
                checkpoints, step, model=net(), optimizer=jnp.int32(step), data=Place(step)
            )
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_a_step_says_what_wrote_it_and_one_from_the_future_is_named(run, tmp_path):
    file = run / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    told = json.loads(file.read_text())["custom_metadata"]
    assert (told["layout"], told["streamjax"]) == (checkpoint.LAYOUT, sj.__version__)
    assert told["recipe"] == {"name": "net"} and len(told["recipe_sha256"]) == 64

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    whole = json.loads(file.read_text())
    whole["custom_metadata"] |= {"layout": 7, "streamjax": "9.1"}
    file.write_text(json.dumps(whole))
    with pytest.raises(InputError) as error:
        checkpoint.latest_params(copy, shapes())
    wanted = f"layout 7, written by streamjax 9.1, wanted layout {checkpoint.LAYOUT}"
    assert wanted in str(error.value)
    assert (copy / "checkpoints" / "3").is_dir()  # it is good: nothing is put aside


def test_stores_are_named(tmp_path, monkeypatch):
    assert checkpoint.place(tmp_path) == tmp_path
    with pytest.raises(InputError, match="runs live in local folders, gs:// or s3://, found ftp"):
        checkpoint.place("ftp://host/run")
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://b/run: gs:// wants gcsfs: pip install gcsfs"):
        checkpoint.place("gs://b/run")
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: name)
    assert str(checkpoint.place("gs://b/run") / "checkpoints") == "gs://b/run/checkpoints"


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    donate = jax.jit(lambda tree: jax.tree.map(lambda a: 0 * a, tree), donate_argnums=0)
    model = net(seed=3)
    with checkpoint.open_run(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, model=model, optimizer=jnp.int32(0), data=Place())
        jax.block_until_ready(donate(model))
    equal(checkpoint.latest_params(tmp_path, shapes()), net(seed=3))


def test_all_comes_back_onto_another_mesh(run):
    mesh, place = make_mesh(fsdp=2, tensor=4, data=1), Place()
    with checkpoint.open_run(run) as checkpoints:
        step, model, (moments, count) = checkpoint.restore(checkpoints, **target(mesh), data=place)
    assert (step, place.at, int(count)) == (3, 30, 3)
    equal(model, net(seed=3))
    equal(moments, net(seed=3))
    assert model["inner"]["kernel"].get_value().sharding.mesh.shape["tensor"] == 4


@pytest.mark.parametrize("devices", [4, 1])
def test_all_comes_back_onto_fewer_devices(run, devices):
    mesh, place = make_mesh(fsdp=devices, devices=jax.devices()[:devices]), Place()
    with checkpoint.open_run(run) as checkpoints:
        step, model, (moments, _) = checkpoint.restore(checkpoints, **target(mesh), data=place)
    assert (step, place.at) == (3, 30)
    equal(model, net(seed=3))
    equal(moments, net(seed=3))
    assert len(model["inner"]["kernel"].get_value().sharding.device_set) == devices


def test_the_parameters_alone_come_in_the_wanted_dtype_and_place(run):
    state = checkpoint.latest_params(run, shapes())
    equal(state, net(seed=3))
    assert len(jax.tree.leaves(state)[0].sharding.device_set) == 1
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), shapes())
    state = checkpoint.latest_params(run, half, mesh=make_mesh(fsdp=8))
    equal(state, jax.tree.map(lambda a: a.astype(jnp.bfloat16), net(seed=3)))
    assert len(jax.tree.leaves(state)[0].sharding.device_set) == 8


def test_another_shape_is_told_by_name(run):
    with pytest.raises(InputError) as told:
        checkpoint.latest_params(run, shapes(width=24))
    text = str(told.value)
    assert "4 mis-shaped: inner.bias (found (16,), wanted (24,))" in text
    assert "\n" not in text


def test_missing_and_extra_names_are_told():
    array = jnp.zeros(2)
    assert checkpoint.difference({"a": array}, {"a": array}) is None
    many = {f"x{i}": array for i in range(7)}
    assert checkpoint.difference({"a": array, "b": array}, {"b": array, **many}) == (
        "1 missing: a; 7 extra: x0, x1, x2, x3, x4 and 2 more"
    )


def test_a_run_without_checkpoints_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        checkpoint.latest_params(tmp_path, shapes())


def test_a_step_that_cannot_be_read_is_put_aside_loudly(run, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for file in (copy / "checkpoints" / "3" / "model").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])
    half = copy / "checkpoints" / "4.orbax-checkpoint-tmp"
    half.mkdir()
    with caplog.at_level(logging.WARNING):
        equal(checkpoint.latest_params(copy, shapes()), net(seed=2))
    assert "SKIPPED checkpoint" in caplog.text
    place = Place()
    with checkpoint.open_run(copy, keep=2) as checkpoints:
        goal = target(make_mesh(data=-1))
        step, model, _ = checkpoint.restore(checkpoints, **goal, data=place)
        assert (step, place.at) == (2, 20)
        equal(model, net(seed=2))
        # The run goes on and writes that step again.
        checkpoint.save(checkpoints, 3, model=model, optimizer=(model, 0), data=place)
    assert checkpoint.latest_step(copy) == 3
    equal(checkpoint.latest_params(copy, shapes()), net(seed=2))
    assert not half.exists()


# One file of every kind that a step consists of; the names of arrays' files are hashes.
KINDS = [
    "_CHECKPOINT_METADATA", "commit_success.txt", "data/at", "data/commit_success.txt",
    *(f"{part}/{file}" for part in ("model", "optimizer")
      for file in ("_METADATA", "_sharding", "array_metadatas/process_0", "commit_success.txt",
                   "d/*", "manifest.ocdbt", "ocdbt.process_0/d/*", "ocdbt.process_0/manifest.ocdbt")),
]  # fmt: skip


def test_no_file_of_a_step_is_of_an_unknown_kind(run):
    step = run / "checkpoints" / "3"
    found = {str(f.relative_to(step)) for f in step.rglob("*") if f.is_file()}
    known = {str(f.relative_to(step)) for kind in KINDS for f in step.glob(kind)}
    assert found == known


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("kind", KINDS)
def test_whichever_file_is_cut_or_gone_a_whole_step_comes_back(run, tmp_path, caplog, kind, how):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    files: list[Path] = list((copy / "checkpoints" / "3").glob(kind))
    assert files
    for file in files:
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    place = Place()
    with checkpoint.open_run(copy, keep=2) as checkpoints, caplog.at_level(logging.WARNING):
        restored = checkpoint.restore(checkpoints, **target(make_mesh(data=-1)), data=place)
    assert restored is not None
    step, model, (moments, count) = restored
    # Some files only help (where the arrays last lived); without them the step is as good.
    assert step in (2, 3)
    assert ("SKIPPED" in caplog.text) == (step == 2)
    if kind.endswith(("/d/*", "manifest.ocdbt", "data/at")) and "process_0" not in kind:
        assert step == 2
    assert (place.at, int(count)) == (10 * step, step)
    equal(model, net(seed=step))
    equal(moments, net(seed=step))
