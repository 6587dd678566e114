"""Qwen2.5-VL and Qwen3-VL over eight devices: the same logits as on one."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import streamjax as sj
from streamjax.sharding import make_mesh, spec_of
from streamjax.weights import safetensors

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_over_data_and_parameters_over_the_rest(golden, name, capfd):
    io, _ = safetensors.read_file(golden / name / "io.safetensors")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = sj.load(golden / name, dtype="float32", mesh=mesh)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value, names = variable.get_value(), variable.get_metadata()["out_sharding"]
        wanted = NamedSharding(mesh, spec_of(value.shape, names, mesh))
        assert value.sharding.is_equivalent_to(wanted, value.ndim), path
    assert not model.visual.merger.up.kernel[...].is_fully_replicated

    rows = 4
    tokens, grid = io["multi.input_ids"], io["multi.image_grid_thw"]
    place, _ = model.positions(tokens, grid)
    plan = model.plan(np.repeat(grid[None], rows, 0))
    batch = jax.device_put(
        (np.repeat(tokens, rows, 0), np.repeat(io["multi.pixel_values"][None], rows, 0), plan),
        NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),
    )

    @jax.jit
    def forward(model, tokens, pixels, plan):
        return model(tokens, pixels, plan, positions=np.repeat(place, rows, 1)).logits

    with jax.set_mesh(mesh):
        logits = forward(model, *batch)
    assert len(logits.sharding.device_set) == 8
    # What XLA says when it puts a whole batch together on every device.
    assert "full rematerialization" not in capfd.readouterr().err
    for row in logits:
        np.testing.assert_allclose(row, io["multi.logits"][0], atol=2e-4)
