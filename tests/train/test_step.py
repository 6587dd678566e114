"""One step: the same numbers however the batch is cut and wherever the rows live."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from streamjax.data.pipeline import batches
from streamjax.errors import InputError
from streamjax.sharding import make_mesh
from streamjax.train.state import set_up
from streamjax.train.step import make_step, put
from tests.train import toy

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]


def run(config, steps=4):
    """Rows of metrics and the last state after a few steps on the config's mesh."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(config, mesh)
    data = batches(config.data, batch_size=config.batch_size, seed=config.seed)
    rows = []
    with jax.set_mesh(mesh):
        state = setup.make()
        step = make_step(config, setup, mesh)
        for _ in range(steps):
            state, metrics = step(state, put(config, next(data), mesh))
            rows.append(jax.device_get(metrics))
    return rows, state, setup


def close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), left, right)


def replicated(**changes):
    """Every device does the same: what one device would compute."""
    return toy.config(mesh=toy.MeshConfig(data=1, context=8), **changes)


@pytest.fixture(scope="module")
def reference():
    return run(replicated())


@pytest.mark.parametrize(
    "axes", [{}, {"fsdp": 8}, {"data": 4, "fsdp": 2}, {"fsdp": 2, "tensor": 2}]
)
def test_the_mesh_changes_nothing(reference, axes):
    rows, state, setup = run(toy.config(mesh=toy.MeshConfig(**axes)))
    close(rows, reference[0])
    close(state.params, reference[1].params)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(setup.shardings), strict=True)
    assert all(array.sharding.is_equivalent_to(wanted, array.ndim) for array, wanted in pairs)
    kernel = state.params["layers"]["kernel"].get_value()
    moment = optax.tree.get(state.opt_state, "mu")["layers"]["kernel"].get_value()
    names = [name for name in ("fsdp", "tensor") if name in axes]
    assert [name for name in kernel.sharding.spec if name] == names
    assert moment.sharding == kernel.sharding


def test_accumulation_is_the_mean_over_all_labels_not_of_means(reference):
    rows, state, _ = run(replicated(accumulate=4))
    assert (
        len({float(row["share"]) for row in reference[0]}) > 1
    )  # rows do not have equally many labels
    close(rows, reference[0])
    close(state.params, reference[1].params)


def test_metrics_are_sums_or_means(reference):
    row = reference[0][0]
    assert row["tp"].shape == (3,)
    labels = int((row["tp"] + row["fn"]).sum())
    assert row["share"] == labels / 32


@pytest.mark.parametrize(
    ("names", "moving"),
    [
        ({"frozen": ("tower",)}, {"layers", "head"}),
        ({"trainable": ("layers/kernel", "head"), "frozen": ("head/bias",)}, {"layers", "head"}),
    ],
)
def test_only_what_is_trainable_moves_and_has_moments(names, moving):
    config = toy.config(**names)
    start = nnx.state(toy.build(nnx.Rngs(config.seed)))
    _, state, _ = run(config, steps=1)
    after = nnx.merge_state(state.params, state.frozen)
    same = jax.tree.map(lambda a, b: bool(np.allclose(a, b, atol=1e-6)), start, after)
    assert {str(p[0]) for p, v in nnx.to_flat_state(same) if not v.get_value()} == moving
    moments = jax.tree.leaves(optax.tree.get(state.opt_state, "mu"))
    assert len(moments) == len(jax.tree.leaves(state.params))


def test_loaded_weights_are_taken_as_they_are():
    config = toy.config(weights="loaded")
    mesh = make_mesh(data=-1)
    state = set_up(config, mesh).make()
    loaded = nnx.state(toy.build(nnx.Rngs(config.seed)), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, state.params, loaded)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"frozen": ("towr",)}, "frozen: no parameter's path holds 'towr': did you mean 'tower'"),
        ({"frozen": ("tower", "layers", "head")}, "nothing is left to train"),
    ],
)
def test_names_that_match_nothing_are_errors(changes, told):
    with pytest.raises(InputError, match=told):
        set_up(toy.config(**changes), make_mesh(data=-1))


def test_rows_must_divide_over_the_devices():
    with pytest.raises(InputError, match="= 4 rows do not divide over mesh data\\*fsdp = 8"):
        put(toy.config(accumulate=2), {}, make_mesh(data=-1))
