"""Attention within groups of patches: windows of a picture, or whole pictures of several sizes.

Groups are index arrays, made on the host from the pictures' sizes; pictures of other sizes that fit
the same arrays run in the same compiled program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

ROWS = 128  # queries of every group at a time, where groups are larger
TILE = 2**22  # ... unless all scores at once are fewer than these


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """members int32 [g size]: the patches of each group, a number past the last one for none.
    slots int32 [p]: where each patch stands in the flattened members.
    """

    members: Any
    slots: Any


def grouped_attention(
    q: Float[Array, "n p h"], k: Float[Array, "n p h"], v: Float[Array, "n p h"], groups: Groups
) -> Float[Array, "n p h"]:
    """Each patch attends to all patches of its own group, and to no other.

    Scores are scaled by h**-0.5; the softmax is float32. The largest tensor of scores is
    [n g size size], or, of large groups, [n g ROWS size] that is made again in the backward pass:
    never p x p. Patches of no group get what another one gets, which means nothing.
    """
    heads, patches, h = q.shape
    members = jnp.asarray(groups.members)
    if members.size == 0:  # rows of a batch without any picture
        return v
    q, k, v = (jnp.take(a, members, axis=1, mode="clip") for a in (q, k, v))
    mask = members < patches
    count, size = members.shape
    if size <= ROWS or heads * count * size * size <= TILE:
        out = _attend(q, k, v, mask)
    else:
        pad = -size % ROWS
        tiles = (size + pad) // ROWS
        q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
        q = q.reshape(heads, count, tiles, ROWS, h).transpose(2, 0, 1, 3, 4)
        out = jax.lax.map(jax.checkpoint(lambda rows: _attend(rows, k, v, mask)), q)
        out = out.transpose(1, 2, 0, 3, 4).reshape(heads, count, size + pad, h)[:, :, :size]
    return out.reshape(heads, count * size, h)[:, groups.slots]


def _attend(
    q: Float[Array, "n g r h"],
    k: Float[Array, "n g s h"],
    v: Float[Array, "n g s h"],
    mask: Bool[Array, "g s"],
) -> Float[Array, "n g r h"]:
    scores = jnp.einsum("ngrh,ngsh->ngrs", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("ngrs,ngsh->ngrh", weights, v, preferred_element_type=jnp.float32)
    return out.astype(v.dtype)
