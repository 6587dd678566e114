"""The compiled programs of a stream, shared by every stream of models of one shape.

A stream runs the folded form of its model. Weights are arguments, not constants, so that a new
stream, or one on newer weights, compiles nothing. Caches are donated: a turn updates them in place.
"""

import dataclasses
import functools
import weakref
from typing import Any

import jax
import jax.numpy as jnp

from streamjax.ops import cache as kv
from streamjax.stream.sampling import pick


class Form:
    """The structure of a folded model and the ids that its programs know; one object per kind.

    jit hashes its static arguments at every call: this one hashes by identity.
    """

    def __init__(self, structure: Any, state_ids: tuple[int, ...], stop_ids: tuple[int, ...]):
        self.structure, self.state_ids, self.stop_ids = structure, state_ids, stop_ids

    def model(self, leaves: list) -> Any:
        return jax.tree.unflatten(self.structure, leaves)


_FORMS: dict[tuple, Form] = {}
_FOLDED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def prepare(
    model: Any, fold: Any, state_ids: tuple[int, ...] = (), stop_ids: tuple[int, ...] = ()
) -> tuple[Form, list, Any]:
    """(form, leaves, folded model); a model is folded once, and again when its weights changed."""
    weights = jax.tree.leaves(model)
    held = _FOLDED.get(model)
    if held is None or any(a is not b for a, b in zip(held[0], weights, strict=False)):
        folded = fold(model)
        folded.assets = None  # files beside the weights decide nothing that is compiled
        if hasattr(folded, "tower"):
            folded.tower.assets = None
        held = _FOLDED[model] = (weights, folded)
    folded = held[1]
    leaves, structure = jax.tree.flatten(folded)
    key = (structure, state_ids, stop_ids)
    return _FORMS.setdefault(key, Form(*key)), leaves, folded


@functools.partial(jax.jit, static_argnames="form", donate_argnames=("cache", "frames"))
def turn(form: Form, leaves, pixels, tokens, offsets, length, drop, cache, frames):
    """One turn of n streams: their frames through the tower, their chunks through the decoder.

    pixels: one frame for each. tokens [n l], of which `length` [n] are real (0: the row sits out),
    at `offsets` [n l] or [3 n l] from its next position. drop [n]: tokens that the ring forgets
    first. frames: the tower's state. Returns the probabilities of the states among themselves
    [n 3], the frames' visual tokens, the cache and the tower's state.
    """
    model = form.model(leaves)
    before = getattr(frames, "seen", None)
    features, frames = model.encode_frame(pixels, frames)
    if before is not None:  # a tower that remembers: rows that sit out have not seen this frame
        frames = dataclasses.replace(frames, seen=jnp.where(length > 0, frames.seen, before))
    hidden, cache = _extend(model, tokens, offsets, length, drop, features, cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(length - 1, 0)[:, None, None], axis=1)
    logits = model.decoder.logits(last)[:, 0]
    states = logits[:, jnp.asarray(form.state_ids)].astype(jnp.float32)
    return jax.nn.softmax(states), features, cache, frames


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def read(form: Form, leaves, tokens, offsets, length, drop, features, cache):
    """More of the past into the cache: text, and frames seen before as their visual tokens.

    features: of the chunk's placeholders, [n m d] with room behind, or None for text alone.
    """
    _, cache = _extend(form.model(leaves), tokens, offsets, length, drop, features, cache)
    return cache


def _extend(model, tokens, offsets, length, drop, features, cache):
    cache = kv.slide(cache, drop, None, model.config.decoder.rope_theta)
    positions = cache.next[:, None] + offsets
    x = model.embed(tokens, features)
    deep = model.deepstack(tokens, features)
    return model.decoder.extend(x, cache, lengths=length, positions=positions, deepstack=deep)


@functools.partial(jax.jit, static_argnames=("form", "limit"), donate_argnames="cache")
def speak(form: Form, leaves, first, active, cache, knobs, limit: int):
    """Words of n streams after the token `first` [n], until a stop id or `limit` tokens each.

    active bool [n]: the rows that speak. knobs: how words are drawn (stream/sampling.py), None for
    the likeliest. Returns the tokens [n limit], how many of them count [n], and the cache, which
    holds `first` and all of them but the last one where `limit` cut the answer.
    """
    model = form.model(leaves)
    # A word that stands for a visual token would be a frame that is not there.
    never = jnp.asarray([i for i in model.placeholders if i >= 0], jnp.int32)
    stops = jnp.asarray(form.stop_ids)
    rows = jnp.arange(len(first))

    def going(carry):
        _, done, *_ = carry
        return ~jnp.all(done)

    def step(carry):
        i, done, token, words, count, said, cache = carry
        hidden, cache = model.decoder.extend(
            model.embed(token[:, None]), cache, lengths=(~done).astype(jnp.int32)
        )
        logits = model.decoder.logits(hidden)[:, 0].at[:, never].set(-jnp.inf)
        if knobs is None:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            token = pick(logits, said, knobs, i)
            said = said.at[rows, token].set(True)
        stopped = jnp.any(token[:, None] == stops, axis=-1)
        going_on = ~done & ~stopped
        words = words.at[:, i].set(jnp.where(going_on, token, 0), mode="drop")
        count = count + going_on
        done = done | stopped | (count >= limit)
        return i + 1, done, token, words, count, said, cache

    n = len(first)
    words, count = jnp.zeros((n, limit), jnp.int32), jnp.zeros((n,), jnp.int32)
    said = jnp.zeros((n, 0 if knobs is None else model.config.decoder.vocab_size), bool)
    start = (jnp.int32(0), ~active, first, words, count, said, cache)
    _, _, _, words, count, _, cache = jax.lax.while_loop(going, step, start)
    return words, count, cache


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def pin(form: Form, leaves, keep, drop, cache):
    """Makes `keep` [n sink] the sinks' content, and forgets the `drop` [n] oldest of the rings."""
    return kv.slide(cache, drop, keep, form.model(leaves).config.decoder.rope_theta)


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def cut(form: Form, leaves, start, stop, cache):
    """Forgets the tokens start <= number < stop [n] of the rings."""
    return kv.cut(cache, start, stop, form.model(leaves).config.decoder.rope_theta)


@functools.partial(jax.jit, donate_argnames=("cache", "frames"))
def clear(rows, cache, frames):
    """Empties the chosen rows [n]: the cache, and what the tower remembers."""
    if hasattr(frames, "seen"):
        frames = dataclasses.replace(frames, seen=jnp.where(rows, 0, frames.seen))
    return kv.clear(cache, rows), frames


@functools.partial(jax.jit, donate_argnames="cache")
def forget_all(rows, cache):
    """Empties the chosen rows [n] of the cache alone, to be read anew."""
    return kv.clear(cache, rows)


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def rebase(form: Form, leaves, cache):
    """Numbers the ring's positions from where its sink ends again."""
    return kv.rebase(cache, form.model(leaves).config.decoder.rope_theta)


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def features(form: Form, leaves, frame, cache):
    """One frame [1 1 h w 3] through a StreamFormer: tokens [p d], pooled [d], and the cache."""
    out, cache = form.model(leaves).step(frame, cache, time_rule="hold")
    return out.tokens[0, 0], out.pooled[0, 0], cache


def grow(cache: kv.KVCache, ring: int) -> kv.KVCache:
    """The same cache with a larger ring, before the smaller one has ever wrapped around."""
    more = ring - cache.ring

    def longer(a):  # one array of all layers, or one of each
        return jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, more), (0, 0)])

    k, v = jax.tree.map(longer, cache.k), jax.tree.map(longer, cache.v)
    positions = jnp.pad(cache.positions, ((0, 0), (0, more)))
    return dataclasses.replace(cache, k=k, v=v, positions=positions)
