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


@functools.partial(jax.jit, static_argnames="form", donate_argnames=("cache", "tower_cache"))
def turn(form: Form, leaves, frame, tokens, length, drop, cache, tower_cache):
    """One turn: the frame through the tower, the chunk through the language model.

    frame [1 h w 3]; tokens [1 l], of which `length` [1] are real; drop [1]: tokens that the ring
    forgets first. Returns the probabilities of the states, among themselves, and the caches.
    """
    model = form.model(leaves)
    features, tower_cache = model.encode_frame(frame, tower_cache)
    cache = kv.slide(cache, drop, None, model.config.decoder.rope_theta)
    x = model.embed(tokens, features)
    hidden, cache = model.decoder.extend(x, cache, lengths=length)
    last = jnp.take_along_axis(hidden, (length - 1)[:, None, None], axis=1)
    logits = model.decoder.logits(last)[0, 0]
    states = logits[jnp.asarray(form.state_ids)].astype(jnp.float32)
    return jax.nn.softmax(states), cache, tower_cache


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def read(form: Form, leaves, tokens, length, drop, cache):
    """Text alone into the cache: the part of a long prompt that stands before the frame."""
    model = form.model(leaves)
    cache = kv.slide(cache, drop, None, model.config.decoder.rope_theta)
    _, cache = model.decoder.extend(model.embed(tokens), cache, lengths=length)
    return cache


@functools.partial(jax.jit, static_argnames=("form", "limit"), donate_argnames="cache")
def speak(form: Form, leaves, first, cache, limit: int):
    """Greedy words after the token `first`, until a stop id or `limit` tokens.

    Returns the tokens [limit], how many of them count, and the cache, which holds `first` and all
    of them but the last one when `limit` cut the answer.
    """
    model = form.model(leaves)
    stops = jnp.asarray(form.stop_ids)

    def going(carry):
        count, _, _, done, _ = carry
        return (count < limit) & ~done

    def step(carry):
        count, token, words, _, cache = carry
        hidden, cache = model.decoder.extend(model.embed(token[None, None]), cache)
        token = jnp.argmax(model.decoder.logits(hidden)[0, 0]).astype(jnp.int32)
        done = jnp.any(token == stops)
        words = words.at[count].set(token, mode="drop")
        return count + ~done, token, words, done, cache

    zero, words = jnp.int32(0), jnp.zeros((limit,), jnp.int32)
    count, _, words, _, cache = jax.lax.while_loop(
        going, step, (zero, first, words, jnp.bool_(False), cache)
    )
    return words, count, cache


@functools.partial(jax.jit, static_argnames="form", donate_argnames="cache")
def pin(form: Form, leaves, keep, drop, cache):
    """Makes `keep` [1 sink] the sink's content, and forgets the `drop` [1] oldest of the ring."""
    return kv.slide(cache, drop, keep, form.model(leaves).config.decoder.rope_theta)


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
    k, v = (
        jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, more), (0, 0))), side)
        for side in (cache.k, cache.v)
    )
    positions = jnp.pad(cache.positions, ((0, 0), (0, more)))
    return dataclasses.replace(cache, k=k, v=v, positions=positions)
