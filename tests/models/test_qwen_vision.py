"""Plans of the Qwen towers: the order of windows, places in the table, padding, sharing programs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.models import qwen2_5_vl, qwen3_vl
from streamjax.models.qwen_vision import PlanShape, plan_of, plan_rows, rope_2d
from streamjax.weights import safetensors

GRIDS = (np.array([[1, 4, 4], [1, 6, 10]]), np.array([[2, 6, 4]]), np.array([[1, 2, 2]] * 3))


def config(family):
    common = dict(
        depth=3, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=12,
        patch_size=2, temporal_patch_size=2, spatial_merge_size=2,
    )  # fmt: skip
    if family is qwen2_5_vl:
        return family.VisionConfig(
            **common, hidden_act="silu", window_size=8, fullatt_block_indexes=(1,),
            tokens_per_second=2,
        )  # fmt: skip
    return family.VisionConfig(
        **common, hidden_act="gelu_pytorch_tanh", num_position_embeddings=25,
        deepstack_visual_indexes=(0, 2),
    )  # fmt: skip


def tower(family):
    """A small tower with random weights."""
    c, rng = config(family), np.random.default_rng(0)
    shapes = nnx.eval_shape(lambda: family.VisionTower(c, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)


@pytest.fixture(scope="module", params=[qwen2_5_vl, qwen3_vl], ids=lambda f: f.__name__[17:])
def visual(request):
    return tower(request.param)


run = jax.jit(lambda visual, pixels, plan: visual(pixels, plan))


def pixels_of(visual, plan, rng):
    values = visual.patch.proj.kernel.shape[0]
    return rng.normal(size=(plan.shape.patches, values)).astype(np.float32)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl_tied_sharded"])
def test_windows_are_the_originals(golden, name):
    io, _ = safetensors.read_file(golden / name / "io.safetensors")
    side = {"qwen2_5_vl": 6, "qwen2_5_vl_tied_sharded": 4}[name]
    plan = plan_of(io["multi.image_grid_thw"], merge=2, window=side)
    members = plan.windows.members
    real = members < plan.shape.patches
    np.testing.assert_array_equal(members[real][::4] // 4, io["multi.window_index"])
    np.testing.assert_array_equal(np.cumsum([0, *real.sum(1)]), io["multi.cu_window_seqlens"])
    np.testing.assert_array_equal(
        members.reshape(-1)[plan.windows.slots], np.arange(len(real[real]))
    )


def test_places_in_the_table_are_the_originals(golden):
    io, _ = safetensors.read_file(golden / "qwen3_vl" / "io.safetensors")
    plan = plan_of(io["multi.image_grid_thw"], merge=2, table=6)
    taps, weights = plan.taps, plan.weights
    np.testing.assert_allclose(weights, io["multi.pos_interp_weights"], atol=1e-6)
    matters = weights > 1e-6
    np.testing.assert_array_equal(taps[matters], io["multi.pos_interp_indices"][matters])


def test_coordinates_go_block_by_block_and_start_anew():
    plan = plan_of([[2, 2, 4], [1, 2, 2]], merge=2)
    first = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert [tuple(c) for c in plan.coordinates] == [*first, *first, *first[:4]]
    assert [sorted(set(m) - {20}) for m in plan.slices.members.tolist()] == [
        [*range(8)], [*range(8, 16)], [*range(16, 20)],
    ]  # fmt: skip
    one_row = plan_of([[1, 2, 2]], merge=2, table=4).weights
    np.testing.assert_allclose(one_row.sum(1), 1)


def test_rotation_turns_by_row_and_by_column():
    cos, sin = rope_2d(np.array([[0, 0], [3, 0], [0, 3]], np.int32), 8)
    assert cos.shape == (1, 3, 4)
    angles = np.arctan2(sin[0], cos[0])
    inverse = 10000.0 ** (-np.arange(2) / 2)
    np.testing.assert_allclose(angles[0], 0)
    np.testing.assert_allclose(angles[1], [*3 * inverse, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(angles[2], [0, 0, *3 * inverse], rtol=1e-6)


def test_padded_plans_share_a_program_and_change_nothing(visual, rng):
    shapes = [visual.plan(grid).shape for grid in GRIDS]
    room = PlanShape(80, 3, 60, 9 if shapes[0].windows else 0)
    before, rows = run._cache_size(), []
    for grid in GRIDS:
        plan = visual.plan(grid, shape=room)
        assert plan.shape == room
        pixels = pixels_of(visual, visual.plan(grid), rng)
        padded = np.pad(pixels, ((0, 80 - len(pixels)), (0, 0)), constant_values=9.0)
        rows.append((pixels, padded, run(visual, padded, plan)))
    assert run._cache_size() == before + 1

    pixels, _, found = rows[0]
    alone = run(visual, pixels, visual.plan(GRIDS[0]))
    cut = jax.tree.map(lambda a: a[..., : len(pixels) // 4, :], found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cut, alone)

    # The rows of a batch, each with pictures of its own, and gradients through them.
    plans = plan_rows(GRIDS, visual.plan, room)
    batch = np.stack([padded for _, padded, _ in rows])
    by_row = jax.jit(jax.vmap(lambda p, plan: visual(p, plan)))(batch, plans)
    wanted = jax.tree.map(lambda *a: jnp.stack(a), *(out for _, _, out in rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), by_row, wanted)


def test_gradients_are_finite_and_padding_has_none(rng):
    visual = tower(qwen2_5_vl)
    visual.remat = "nothing_saveable"
    grid = GRIDS[2]
    need = visual.plan(grid).shape
    plan = visual.plan(grid, shape=dataclasses.replace(need, patches=16, slices=4))
    pixels = np.pad(pixels_of(visual, visual.plan(grid), rng), ((0, 4), (0, 0)))

    def loss(visual, pixels):
        return jnp.square(visual(pixels, plan)[:3]).sum()

    weights, inputs = jax.jit(jax.grad(loss, argnums=(0, 1)))(visual, pixels)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(weights))
    assert np.abs(inputs[:12]).min() > 0 and not inputs[12:].any()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (qwen2_5_vl, {"num_heads": 3}, "wanted a multiple of 4"),
        (qwen2_5_vl, {"fullatt_block_indexes": (3,)}, "wanted rising numbers below depth=3"),
        (qwen2_5_vl, {"window_size": 3}, "at least a block of 4 pixels"),
        (qwen2_5_vl, {"hidden_act": "relu"}, "hidden_act is 'relu', wanted one of"),
        (qwen3_vl, {"depth": 0}, "depth is 0, wanted a positive number"),
        (qwen3_vl, {"num_position_embeddings": 24}, "wanted a square"),
        (qwen3_vl, {"deepstack_visual_indexes": (2, 0)}, "wanted rising numbers"),
    ],
)
def test_sizes_that_do_not_fit(family, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(family), **change)
