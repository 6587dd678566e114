"""Rates, groups and Muon, against their definitions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.errors import InputError
from streamjax.train import OptimConfig
from streamjax.train.optim import make_optimizer, make_schedule
from tests.train import toy


@pytest.fixture(scope="module")
def params():
    return nnx.state(toy.build(nnx.Rngs(0)), nnx.Param)


def updates(config, params, grads):
    tx = make_optimizer(config, 10, params)
    return jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(grads, params)


def flat(state):
    return {".".join(map(str, p)): np.asarray(v.get_value()) for p, v in nnx.to_flat_state(state)}


def ones_like(params):
    return jax.tree.map(jnp.ones_like, params)


@pytest.mark.parametrize(
    ("schedule", "ends"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)]
)
def test_the_rate_climbs_then_falls_to_its_final_share(schedule, ends):
    config = OptimConfig(lr=2.0, schedule=schedule, warmup=0.1, final=0.1)
    rate = [float(make_schedule(config, 100)(i)) for i in range(101)]
    np.testing.assert_allclose(rate[:11], [*np.arange(0.2, 2.01, 0.2), 2.0], rtol=1e-6)
    np.testing.assert_allclose(rate[100], 2.0 * ends, rtol=1e-5)
    middle = {"cosine": 0.55, "linear": 0.55, "constant": 1.0}[schedule]
    np.testing.assert_allclose(rate[55], 2.0 * middle, rtol=1e-5)


def test_without_warmup_the_first_step_takes_the_whole_rate():
    assert make_schedule(OptimConfig(lr=0.5), 10)(0) == 0.5


def test_rates_are_the_originals(golden):
    cases = json.loads((golden / "streamformer/h2_lr_schedule/schedule.json").read_text())
    for case in cases:
        told = case["args"]
        base, per_epoch = told["base_value"], told["niter_per_ep"]
        steps = told["epochs"] * per_epoch
        # As there: a number of steps goes before a number of epochs.
        warm = told.get("warmup_steps", 0) or told.get("warmup_epochs", 0) * per_epoch
        config = OptimConfig(
            lr=base,
            final=told["final_value"] / base,
            warmup=warm / steps,
            start=told.get("start_warmup_value", 0) / base,
        )
        rate = jax.vmap(make_schedule(config, steps))(jnp.arange(steps))
        np.testing.assert_allclose(rate, case["values"], rtol=1e-5, atol=1e-7 * base)
        again = dataclasses.replace(config, restart=per_epoch)
        rate = jax.vmap(make_schedule(again, steps))(jnp.arange(steps))
        first = case["values"][:per_epoch] * told["epochs"]  # what its training really used
        np.testing.assert_allclose(rate, first, rtol=1e-5, atol=1e-7 * base)
    with pytest.raises(InputError, match="optim.restart=0, wanted the steps after which"):
        OptimConfig(lr=1.0, restart=0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_is_decoupled_and_spares_vectors_of_stacked_layers_too(params, kind):
    config = OptimConfig(kind=kind, lr=0.5, schedule="constant", weight_decay=0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, before = flat(updates(config, params, zeros)), flat(params)
    assert before["layers.bias"].ndim == 2  # stacked: a vector per layer
    for name, update in moved.items():
        wanted = -0.05 * before[name] if name.endswith("kernel") else 0 * before[name]
        np.testing.assert_allclose(update, wanted, atol=1e-7, err_msg=name)


def test_a_recipe_may_decay_by_its_own_rule(params):
    def biases(path, ndim):
        return path.endswith("bias") or path == "head/kernel" or ndim > 2

    config = OptimConfig(lr=1.0, schedule="constant", weight_decay=0.1, no_decay=biases)
    moved = flat(updates(config, params, jax.tree.map(jnp.zeros_like, params)))
    assert {name for name, u in moved.items() if u.any()} == {"tower.kernel", "layers.kernel"}


def test_clip_bounds_the_global_norm(params):
    grads = jax.tree.map(lambda p: 1e4 * jnp.ones_like(p), params)
    base = {"lr": 1.0, "schedule": "constant", "eps": 10.0}
    free = flat(updates(OptimConfig(**base, clip=None), params, grads))
    held = flat(updates(OptimConfig(**base, clip=1.0), params, grads))
    # Adam divides by |g| + eps: only a clipped gradient is small beside eps.
    assert all(abs(u).min() > 0.99 for u in free.values())
    norm = np.sqrt(sum(p.size for p in free.values()))
    for u in held.values():
        np.testing.assert_allclose(u, -1 / norm / (1 / norm + 10.0), rtol=1e-4)


def test_muon_makes_each_layer_orthogonal_by_itself(params, rng):
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    config = OptimConfig(kind="muon", lr=1.0, schedule="constant", clip=None)
    moved = flat(updates(config, params, grads))
    values = np.linalg.svd(moved["layers.kernel"], compute_uv=False)
    assert values.shape == (2, 16)
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The tower maps 8 to 16: its update is sqrt(2) larger, so that outputs move alike.
    tower = np.linalg.svd(moved["tower.kernel"], compute_uv=False)
    assert np.sqrt(2) * 0.3 < tower.min() <= tower.max() < np.sqrt(2) * 1.3

    alone = jax.tree.map(lambda a: a[1:], grads["layers"]["kernel"])
    other = jax.tree.map(lambda a: a, grads)
    other["layers"]["kernel"] = jax.tree.map(lambda a: jnp.concatenate([0 * a, a]), alone)
    np.testing.assert_allclose(
        flat(updates(config, params, other))["layers.kernel"][1],
        moved["layers.kernel"][1],
        atol=1e-5,
    )


def test_muon_leaves_the_map_to_the_vocabulary_and_vectors_to_adam(params):
    config = OptimConfig(kind="muon", lr=1.0, adam_lr=0.25, schedule="constant", clip=None)
    moved = flat(updates(config, params, ones_like(params)))
    assert np.linalg.norm(moved["layers.kernel"][0], 2) > 0.5  # Muon's own rate
    for name in ("head.kernel", "head.bias", "layers.bias", "tower.bias"):
        np.testing.assert_allclose(moved[name], -0.25, rtol=1e-5)
    with pytest.raises(InputError, match="beside Muon's rate only"):
        OptimConfig(lr=1.0, adam_lr=0.25)
