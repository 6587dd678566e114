"""Attention within groups of patches: windows of a picture, or whole pictures of several sizes.

Groups are index arrays, made on the host from the pictures' sizes; pictures of other sizes that fit
the same arrays run in the same compiled program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ROWS = 128  # queries of every group at a time, where groups are larger
TILE = 2**22  # ... unless all scores at once are fewer than these
HELD = 2**25  # scores held at once, of however many groups


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

    Scores are scaled by h**-0.5; the softmax is float32. Groups are taken a few at a time, large
    ones ROWS queries at a time, so that about HELD scores are held at once, whatever p is; what is
    taken piece by piece is made again in the backward pass. Patches of no group get what another
    one gets, which means nothing.
    """
    heads, patches, h = q.shape
    members = jnp.asarray(groups.members)
    if members.size == 0:  # rows of a batch without any picture
        return v
    count, size = members.shape
    # As many groups at a time as HELD scores allow: a row of 32k tokens has 400 pictures.
    some = max(HELD // (heads * size * min(size, ROWS)), 1)
    if some >= count:
        out = _within(q, k, v, members)
    else:
        steps = -(-count // some)
        members = jnp.pad(members, ((0, -count % some), (0, 0)), constant_values=patches)
        out = jax.lax.map(
            jax.checkpoint(lambda part: _within(q, k, v, part)), members.reshape(steps, some, size)
        )
        out = out.swapaxes(0, 1).reshape(heads, steps * some, size, h)
    return out.reshape(heads, -1, h)[:, groups.slots]


def _within(
    q: Float[Array, "n p h"],
    k: Float[Array, "n p h"],
    v: Float[Array, "n p h"],
    members: Int[Array, "g s"],
) -> Float[Array, "n g s h"]:
    """The groups that are given, all at once or ROWS of their queries at a time."""
    mask = members < q.shape[1]
    q, k, v = (jnp.take(a, members, axis=1, mode="clip") for a in (q, k, v))
    heads, count, size, h = q.shape
    if size <= ROWS or heads * count * size * size <= TILE:
        return _attend(q, k, v, mask)
    pad = -size % ROWS
    tiles = (size + pad) // ROWS
    q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
    q = q.reshape(heads, count, tiles, ROWS, h).transpose(2, 0, 1, 3, 4)
    out = jax.lax.map(jax.checkpoint(lambda rows: _attend(rows, k, v, mask)), q)
    return out.transpose(1, 2, 0, 3, 4).reshape(heads, count, size + pad, h)[:, :, :size]


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
