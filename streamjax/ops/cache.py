"""The decoder's key/value cache: a sink that stays, and a ring that slides.

Slots are `sink_slots` of sink, then the ring. Tokens enter the ring under running numbers; number g
lives in ring slot g mod ring. Sliding forgets the oldest numbers by moving a counter, and may carry
a few of them (the system prompt, a standing question) into the sink. Nothing else ever moves.

Positions are *contiguous*: the model sees the retained tokens numbered as if the forgotten ones had
never been. Keys are stored rotated, and never rotated again for it. A ring key keeps the position
it was written at, which is its contiguous position plus `shift`, the span forgotten so far; a sink
key has its contiguous position, which does not change. Attention only knows differences of
positions, so a query is rotated twice, at `position + shift` for the ring and at `position` for the
sink, and both score as if every key had been re-rotated (specs/vlm.md 5.2, option D turned around:
O(chunk) work instead of O(sink), exact, and no unrotated copy to keep).

Under M-RoPE a position is three numbers. Keys are rotated by all three when they are written; the
cache keeps the first (time). That is enough: whatever is moved later, is moved by one span on all
three, and spans are counted between text tokens, where the three agree. Masks go by order in the
cache, never by position, because patches of a picture share theirs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from streamjax.ops.rope import rope_table, rotate
from streamjax.sharding import constrain, spec_of

AXES = ("batch", "heads", None, None)  # of a layer's keys and values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys, values and the counters of each row.

    k, v: [layers b k s h] for a scanned decoder, or a tuple of [b k s h], one per layer.
    positions [b s]: what the key in each slot is rotated for (on the time axis). The rest is int32
    [b]: `sink`, sink slots in use; `first` and `end`, the running numbers in the ring are first <=
    g < end; `next`, the contiguous position of the next token; `shift`, what the ring's positions
    are ahead by.
    """

    k: Any
    v: Any
    positions: Any
    sink: Any
    first: Any
    end: Any
    next: Any
    shift: Any
    sink_slots: int = dataclasses.field(metadata={"static": True})

    @property
    def length(self):
        """Tokens held per row [b]."""
        return self.sink + self.end - self.first

    @property
    def ring(self) -> int:
        return self.positions.shape[-1] - self.sink_slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Where a chunk goes and what it sees: slots [b l] (past the end for padding), mask [b l s],
    and its positions [b l] or [3 b l] in the ring's numbering and in the contiguous one."""

    slots: Any
    mask: Any
    rotated: Any
    contiguous: Any


def empty_cache(
    batch: int,
    *,
    layers: int,
    heads: int,
    head_dim: int,
    capacity: int,
    sink: int,
    dtype,
    scan: bool,
) -> KVCache:
    """No tokens; room for `sink` and `capacity` more. One array for all layers where `scan`.

    On a mesh rows are spread over its data axes and heads over tensor, where they divide.
    """
    if capacity < 1 or sink < 0:
        raise ValueError(f"capacity is {capacity} and sink {sink}, wanted at least 1 and 0 tokens")
    shape = (batch, heads, sink + capacity, head_dim)

    def zeros():
        if scan:
            return constrain(jnp.zeros((layers, *shape), dtype), "layers", *AXES)
        return tuple(constrain(jnp.zeros(shape, dtype), *AXES) for _ in range(layers))

    # One buffer each: a donated tree may not hold the same buffer twice.
    sink_count, first, end, next_, shift = (
        constrain(jnp.zeros((batch,), jnp.int32), "batch") for _ in range(5)
    )
    positions = constrain(jnp.zeros((batch, sink + capacity), jnp.int32), "batch", None)
    return KVCache(zeros(), zeros(), positions, sink_count, first, end, next_, shift, sink)


def cache_shardings(cache: KVCache, mesh: Any) -> KVCache:
    """Where each array of a cache (or its shapes) lives; the same places as `empty_cache` gives."""

    def of(path, array):
        names: tuple[str | None, ...] = ("batch", *[None] * (array.ndim - 1))
        if path[0].name in ("k", "v"):
            names = AXES if array.ndim == len(AXES) else ("layers", *AXES)
        return NamedSharding(mesh, spec_of(array.shape, names, mesh))

    return jax.tree_util.tree_map_with_path(of, cache)


def reserve(
    cache: KVCache, lengths: Int[Array, " b"], positions: Int[Array, "*axes b l"]
) -> tuple[Plan, KVCache]:
    """Takes the slots for a chunk whose first `lengths` tokens per row are real.

    `positions` are contiguous ones; the next token's is one more than the largest on any axis.
    Returns the plan and the cache with its counters moved on; the
    caller writes keys and values into `plan.slots`, first, and attends under `plan.mask`, after.
    Raises ValueError when the ring cannot hold the chunk (inside jit the caller has to see to it).
    """
    chunk = positions.shape[-1]
    end = cache.end + lengths
    _check(end - cache.first <= cache.ring, lambda: (
        f"the cache holds {int(jnp.max(cache.length))} tokens and cannot take a chunk of {chunk}: "
        f"its capacity is {cache.ring}; evict, or make it larger (init_cache(capacity=...))"
    ))  # fmt: skip
    index = jnp.arange(chunk)
    numbers = cache.end[:, None] + index
    real = index < lengths[:, None]
    slots = cache.sink_slots + numbers % cache.ring
    slots = jnp.where(real, slots, cache.positions.shape[1])
    rotated = positions + cache.shift[:, None]
    by_axis = positions.reshape(-1, *positions.shape[-2:])
    rows = jnp.arange(by_axis.shape[1])[:, None]
    kept = cache.positions.at[rows, slots].set(by_axis[0] + cache.shift[:, None], mode="drop")
    following = jnp.max(jnp.where(real, by_axis.max(0) + 1, cache.next[:, None]), axis=1)
    cache = dataclasses.replace(cache, positions=kept, end=end, next=following)
    return Plan(slots, _visible(cache, numbers), rotated, positions), cache


def write(
    held: Float[Array, "*layers b k s h"],
    new: Float[Array, "b k l h"],
    slots: Int[Array, "b l"],
    layer: Any = None,
) -> Float[Array, "*layers b k s h"]:
    """Puts a chunk's keys or values into their slots, those of one layer where `held` is stacked.

    Slots past the end are padding, and dropped. A single token is written beside one that is
    dropped: XLA:CPU turns a scatter of one row into an update for which it copies the whole cache.
    """
    if slots.shape[1] == 1:
        new = jnp.concatenate([new, new], axis=2)
        slots = jnp.concatenate([slots, jnp.full_like(slots, held.shape[-2])], axis=1)
    rows = jnp.arange(slots.shape[0])[:, None]
    at = (rows, slice(None), slots)
    at = at if layer is None else (layer, *at)
    return held.at[at].set(new.swapaxes(1, 2).astype(held.dtype), mode="drop")


def slide(
    cache: KVCache, drop: Int[Array, " b"], keep: Int[Array, "b sink"] | None, theta: float
) -> KVCache:
    """Forgets the `drop` oldest tokens of the ring; what is left is numbered contiguously.

    `keep`, where given, is the new content of the sink: for each sink slot the slot to take a
    (text) token from, -1 from some place on for none; entries may be old sink slots and slots of
    tokens now forgotten. The only keys that are rotated anew are those whose position changes.
    """
    k, v, positions, sink = cache.k, cache.v, cache.positions, cache.sink
    if keep is not None:
        room = cache.sink_slots
        place = jnp.arange(room)
        taken = jnp.maximum(keep, 0)
        moved = place - jnp.take_along_axis(positions, taken, axis=1)
        cos, sin = rope_table(moved, _head_dim(cache), theta)
        k = _each_layer(lambda a: a.at[:, :, :room].set(rotate(_take(a, taken), cos, sin)), k)
        v = _each_layer(lambda a: a.at[:, :, :room].set(_take(a, taken)), v)
        positions = positions.at[:, :room].set(place)
        sink = jnp.sum(keep >= 0, axis=1).astype(jnp.int32)
    first = cache.first + drop
    oldest = cache.sink_slots + first % cache.ring
    ahead = cache.next + cache.shift  # the next token's position in the ring's numbering
    start = jnp.take_along_axis(cache.positions, oldest[:, None], axis=1)[:, 0]
    shift = jnp.where(first < cache.end, start, ahead) - sink
    return KVCache(k, v, positions, sink, first, cache.end, ahead - shift, shift, cache.sink_slots)


def rebase(cache: KVCache, theta: float) -> KVCache:
    """Brings the ring back to shift 0 by rotating its keys once; the function stays the same.

    Positions in the ring grow as a stream goes on, and float32 angles coarsen with them: 0.005 of
    error in the logits at 860,000 (specs/performance.md 2). A stream does this every ~100,000.
    Running numbers start anew with them, by whole turns of the ring.
    """
    cos, sin = rope_table(-cache.shift[:, None], _head_dim(cache), theta)
    room = cache.sink_slots
    k = _each_layer(lambda a: a.at[:, :, room:].set(rotate(a[:, :, room:], cos, sin)), cache.k)
    positions = cache.positions.at[:, room:].add(-cache.shift[:, None])
    around = cache.first // cache.ring * cache.ring  # every number keeps its slot
    return dataclasses.replace(
        cache, k=k, positions=positions, shift=jnp.zeros_like(cache.shift),
        first=cache.first - around, end=cache.end - around,
    )  # fmt: skip


def evict(cache: KVCache, start: Any, stop: Any, theta: float) -> KVCache:
    """Forgets tokens start <= i < stop, counted in order from 0; later ones close up.

    start, stop: int or int32 [b]. The retained tokens are numbered contiguously. General, and the
    price is one pass over the cache, with the keys behind `stop` rotated once more: a stream that
    forgets every second uses `slide`. Raises ValueError for a span outside of what is held, and
    when what is left does not fit the ring.
    """
    rows = cache.positions.shape[0]
    start, stop = (jnp.broadcast_to(jnp.asarray(a, jnp.int32), (rows,)) for a in (start, stop))
    held = cache.length
    _check((start >= 0) & (start <= stop) & (stop <= held), lambda: (
        f"cannot forget tokens {start.tolist()} to {stop.tolist()}: the cache holds "
        f"{held.tolist()}; wanted 0 <= start <= stop <= held"
    ))  # fmt: skip
    left = held - (stop - start)
    _check(left <= cache.ring, lambda: (
        f"{left.tolist()} tokens would be left, the ring holds {cache.ring}"
    ))  # fmt: skip
    place = jnp.arange(cache.ring)
    source = place + jnp.where(place >= start[:, None], (stop - start)[:, None], 0)
    slots = _slot(cache, source)
    rotated = jnp.take_along_axis(cache.positions, slots, axis=1)
    contiguous = rotated - jnp.where(source < cache.sink[:, None], 0, cache.shift[:, None])
    span = _position(cache, stop) - _position(cache, start)
    target = contiguous - jnp.where(place >= start[:, None], span[:, None], 0)
    cos, sin = rope_table(target - rotated, _head_dim(cache), theta)
    room, zero = cache.sink_slots, jnp.zeros_like(start)
    k = _each_layer(lambda a: a.at[:, :, room:].set(rotate(_take(a, slots), cos, sin)), cache.k)
    v = _each_layer(lambda a: a.at[:, :, room:].set(_take(a, slots)), cache.v)
    positions = cache.positions.at[:, room:].set(target)
    return KVCache(k, v, positions, zero, zero, left, cache.next - span, zero, room)


def cut(cache: KVCache, start: Any, stop: Any, theta: float) -> KVCache:
    """Forgets the tokens start <= number < stop of the ring; the later ones move up behind `start`.

    start, stop: int32 [b], running numbers at text, first <= start <= stop <= end. The sink stays.
    One pass over the ring, and the later keys are rotated once more: for a question withdrawn, not
    for every turn.
    """
    slot = jnp.arange(cache.ring)
    span = _ring_position(cache, stop) - _ring_position(cache, start)
    count = stop - start
    end = cache.end - count
    number = (end[:, None] - 1) - (end[:, None] - 1 - slot) % cache.ring  # what a slot will hold
    later = number >= start[:, None]
    source = jnp.where(later, number + count[:, None], number) % cache.ring
    # Slots in front of `first` hold nothing; what is gathered there is never seen.
    slots = cache.sink_slots + source
    back = jnp.where(later, -span[:, None], 0)
    cos, sin = rope_table(back, _head_dim(cache), theta)
    room = cache.sink_slots
    k = _each_layer(lambda a: a.at[:, :, room:].set(rotate(_take(a, slots), cos, sin)), cache.k)
    v = _each_layer(lambda a: a.at[:, :, room:].set(_take(a, slots)), cache.v)
    moved = jnp.take_along_axis(cache.positions, slots, axis=1) + back
    positions = cache.positions.at[:, room:].set(moved)
    return dataclasses.replace(
        cache, k=k, v=v, positions=positions, end=end, next=cache.next - span
    )


def clear(cache: KVCache, rows: Bool[Array, " b"]) -> KVCache:
    """Makes the chosen rows empty again; what their slots hold is never seen and written over."""

    def emptied(counter):
        return jnp.where(rows, 0, counter)

    return dataclasses.replace(
        cache, sink=emptied(cache.sink), first=emptied(cache.first), end=emptied(cache.end),
        next=emptied(cache.next), shift=emptied(cache.shift),
    )  # fmt: skip


def _ring_position(cache: KVCache, number: Int[Array, " b"]) -> Int[Array, " b"]:
    """The position, in the ring's numbering, of the token with this number, or of the next one."""
    slot = cache.sink_slots + number % cache.ring
    held = jnp.take_along_axis(cache.positions, slot[:, None], axis=1)[:, 0]
    return jnp.where(number < cache.end, held, cache.next + cache.shift)


def _visible(cache: KVCache, numbers: Int[Array, "b l"]) -> Bool[Array, "b l s"]:
    """Which slots a token of each running number sees, in a cache that holds it already."""
    slot = jnp.arange(cache.ring)
    newest = cache.end[:, None] - 1
    held = newest - (newest - slot) % cache.ring  # [b ring]: the number in each ring slot
    live = (held >= cache.first[:, None])[:, None]
    ring = live & (held[:, None] <= numbers[:, :, None])
    sink = jnp.arange(cache.sink_slots) < cache.sink[:, None]
    sink = jnp.broadcast_to(sink[:, None], (*numbers.shape, cache.sink_slots))
    return jnp.concatenate([sink, ring], axis=-1)


def _slot(cache: KVCache, order: Int[Array, "b m"]) -> Int[Array, "b m"]:
    """The slot of the token that is `order`-th from the oldest, sink included."""
    sink = cache.sink[:, None]
    number = cache.first[:, None] + order - sink
    return jnp.where(order < sink, order, cache.sink_slots + number % cache.ring)


def _position(cache: KVCache, order: Int[Array, " b"]) -> Int[Array, " b"]:
    """The contiguous position of the `order`-th token; of the next one where there is none."""
    rotated = jnp.take_along_axis(cache.positions, _slot(cache, order[:, None]), axis=1)[:, 0]
    found = rotated - jnp.where(order < cache.sink, 0, cache.shift)
    return jnp.where(order < cache.length, found, cache.next)


def _each_layer(change, arrays: Any) -> Any:
    """Applies a function of [b k s h] to every layer of either form of the cache."""
    return jax.tree.map(change if isinstance(arrays, tuple) else jax.vmap(change), arrays)


def _take(a, slots):
    return jnp.take_along_axis(a, slots[:, None, :, None], axis=2)


def _head_dim(cache: KVCache) -> int:
    return jax.tree.leaves(cache.k)[0].shape[-1]


def _check(holds, message) -> None:
    """Raises where the values are known; inside jit they are not."""
    if not isinstance(holds, jax.core.Tracer) and not bool(jnp.all(holds)):
        raise ValueError(message())
