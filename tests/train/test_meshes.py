"""One loss curve wherever a model lives: packed dialogues of Qwen2.5-VL on meshes of 8 devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import Assets, QwenImageProcessor
from streamjax.data.processors.plans import PlanShape
from streamjax.data.rows import Patches, Rows
from streamjax.models import qwen2_5_vl
from streamjax.models.decoder import DecoderConfig
from streamjax.sharding import make_mesh
from streamjax.train import MeshConfig, OptimConfig, TrainConfig, streamo
from streamjax.train.layout import equations
from streamjax.train.objectives import converse
from streamjax.train.state import set_up
from streamjax.train.step import make_step, put

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

HURRY = {"xla_backend_optimization_level": 0}
IMAGE = 60
STATES = (61, 62, 63)
MODEL = qwen2_5_vl.Qwen2_5_VLConfig(
    vision=qwen2_5_vl.VisionConfig(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
        patch_size=4, window_size=16, fullatt_block_indexes=(1,), temporal_patch_size=2,
        spatial_merge_size=2, tokens_per_second=2, hidden_act="silu",
    ),
    decoder=DecoderConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, mrope_section=(2, 3, 3),
        initializer_range=0.09,
    ),
    image_token_id=IMAGE,
)  # fmt: skip
ROWS = Rows(
    length=48,
    pictures=Patches(image_id=IMAGE, window=4, shape=PlanShape(96, 4, 24, 10)),
    dialogues=2,
)


def dialogue(rng, turns):
    """Turns of a picture and a state; pictures of two sizes."""
    tokens, labels, grid = [], [], []
    for _ in range(turns):
        rows, columns = (4, 4) if rng.random() < 0.5 else (4, 6)
        picture = [IMAGE] * (rows * columns // 4)
        text = rng.integers(0, 60, 2).tolist()
        state = [int(rng.choice(STATES)), int(rng.integers(0, 60))]
        tokens += text + picture + state
        labels += [-100] * (len(text) + len(picture)) + state
        grid.append((1, rows, columns))
    patches = int(np.prod(grid, axis=1).sum())
    return {
        "tokens": np.array(tokens, np.int32),
        "labels": np.array(labels, np.int32),
        "pixels": rng.integers(0, 256, (patches, 3, 16), np.uint8),
        "grid": np.array(grid, np.int32),
    }


def batch_of(rows, seed=0):
    rng = np.random.default_rng(seed)
    made = [ROWS.row([dialogue(rng, 2), dialogue(rng, int(rng.integers(1, 3)))])
            for _ in range(rows)]  # fmt: skip
    return {key: np.stack([row[key] for row in made]) for key in made[0]}


def config(**changes):
    model = functools.partial(
        streamo.fresh, config=MODEL, assets=Assets(None, QwenImageProcessor(patch=4))
    )
    wanted = TrainConfig(
        name="meshes", steps=10, batch_size=8, model=model, weights="fresh",
        objective=functools.partial(converse, state_ids=STATES),
        data=DataConfig(source=list, transform=lambda record, rng: record),
        optim=OptimConfig(lr=3e-3, schedule="constant"), trainable=("decoder", "visual/merger"),
    )  # fmt: skip
    return dataclasses.replace(wanted, **changes)


def curve(wanted, steps=4):
    """Loss and norm of the gradient of each step [steps 2]."""
    mesh = make_mesh(**dataclasses.asdict(wanted.mesh))
    setup, rows = set_up(wanted, mesh), []
    with jax.set_mesh(mesh):
        state, step = setup.make(), None
        for seed in range(steps):
            batch = put(wanted, batch_of(wanted.batch_size, seed), mesh)
            if step is None:
                step = make_step(wanted, setup, mesh).lower(state, batch).compile(HURRY)
            state, told = step(state, batch)
            rows.append((told["loss"], told["grad_norm"]))
    return np.array(jax.device_get(rows))


@pytest.fixture(scope="module")
def alone():
    """On one device."""
    return curve(config(mesh=MeshConfig(data=1)))


@pytest.mark.parametrize(
    "axes",
    [
        {"fsdp": 4, "tensor": 2},
        {"fsdp": 2, "tensor": 2, "context": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "tensor": 2, "context": 2}, marks=pytest.mark.slow),
    ],
    ids=lambda axes: "x".join(f"{name}{size}" for name, size in axes.items()),
)
def test_the_mesh_changes_nothing(alone, axes, capfd):
    found = curve(config(mesh=MeshConfig(**{"data": 1, **axes})))
    np.testing.assert_allclose(found[:, 0], alone[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], alone[:, 1], rtol=1e-4)
    assert abs(alone[0, 0] - alone[-1, 0]) > 1e-3
    # What XLA says when it puts a whole batch together on every device.
    assert "full rematerialization" not in capfd.readouterr().err


def test_micro_batches_change_nothing(alone):
    """The mean over all labels of the step, however it is cut."""
    found = curve(config(accumulate=4, mesh=MeshConfig(data=1)))
    np.testing.assert_allclose(found, alone, rtol=2e-5)


def test_bfloat16_computes_and_float32_is_kept():
    """Parameters and moments are float32; no product with a kernel is, forward or backward."""
    wanted = config(model=functools.partial(config().model, dtype=jnp.bfloat16))
    setup, mesh = set_up(wanted, make_mesh()), make_mesh()
    kept = jax.tree.leaves((setup.abstract.params, setup.abstract.opt_state))
    assert {leaf.dtype for leaf in kept if leaf.ndim} == {jnp.dtype("float32")}
    batch = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in batch_of(8).items()}
    program = jax.make_jaxpr(make_step(wanted, setup, mesh))(setup.abstract, batch)
    products = [
        tuple(side.aval.dtype for side in equation.invars)
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "dot_general"
        and not equation.params["dimension_numbers"][1][0]  # attention's are of batches
    ]
    assert len(products) > 20 and set(products) == {(jnp.dtype("bfloat16"),) * 2}
