"""Attention within groups equals attention over each group alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.ops import grouped
from streamjax.ops.grouped import Groups, grouped_attention


def alone(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("nqh,nkh->nqk", q, k) * q.shape[-1] ** -0.5)
    return jnp.einsum("nqk,nkh->nqh", weights, v)


@pytest.mark.parametrize(
    "pieces",
    # groups of 5 in tiles of 2, a partial one last; three groups at a time, of four
    [{}, {"ROWS": 2, "TILE": 0}, {"HELD": 2 * 5 * 5 * 3}],
    ids=["whole", "rows", "groups"],
)
def test_groups_of_several_sizes(rng, monkeypatch, pieces):
    for name, size in pieces.items():
        monkeypatch.setattr(grouped, name, size)
    parts = [[4, 1, 7, 0, 3], [2, 6], [5]]
    members = np.full((4, 5), 9, np.int32)  # one group more than there is; patch 8 is padding
    for row, part in zip(members, parts, strict=False):
        row[: len(part)] = part
    slots = np.zeros(9, np.int32)
    for slot, patch in enumerate(members.reshape(-1)):
        if patch < 9:
            slots[patch] = slot
    q, k, v = jnp.asarray(rng.normal(size=(3, 2, 9, 4)), jnp.float32)

    def run(q, k, v):
        return grouped_attention(q, k, v, Groups(members, slots))

    found = jax.jit(run)(q, k, v)
    for part in parts:
        index = np.array(part)
        wanted = jax.jit(alone)(q[:, index], k[:, index], v[:, index])
        np.testing.assert_allclose(found[:, index], wanted, atol=1e-6)

    def whole(q, k, v):
        pieces = [jnp.square(alone(*(a[:, np.array(p)] for a in (q, k, v)))).sum() for p in parts]
        return sum(pieces)

    wanted = jax.jit(jax.grad(whole, argnums=(0, 1, 2)))(q, k, v)
    own = jax.grad(lambda *a: jnp.square(run(*a)[:, :8]).sum(), argnums=(0, 1, 2))
    gradient = jax.jit(own)(q, k, v)
    for ours, theirs in zip(gradient, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_scores_of_windows_stay_small():
    """64 windows of 64 patches: nothing of 4096 x 4096."""
    members = np.arange(4096, dtype=np.int32).reshape(64, 64)
    groups = Groups(members, np.arange(4096, dtype=np.int32))
    heads = jax.ShapeDtypeStruct((2, 4096, 8), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda q, k, v: grouped_attention(q, k, v, groups))(heads, heads, heads)
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) <= 2 * 4096 * 64
