"""How the words of an answer are chosen: greedily, or drawn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The choice of words; the state before them is never drawn.

    temperature: 0 takes the likeliest word. top_p: words are drawn from the smallest set of the
    likeliest ones that holds this share of the probability. repetition_penalty: above 1, words that
    this answer has already are made less likely (positive logits divided by it, negative ones
    multiplied). seed: the same seed, frames and questions give the same words, alone or in a batch.
    Raises ValueError for values outside of these ranges.
    """

    temperature: float | int = 0.0
    top_p: float | int = 1.0
    repetition_penalty: float | int = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, holds, wanted in (
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1: none)"),
        ):
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted {wanted}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 and self.repetition_penalty == 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """Sampling of n rows as arrays, so that no value compiles a program: float32 and uint32 [n]."""

    temperature: Any
    top_p: Any
    penalty: Any
    seed: Any
    turn: Any


def knobs_of(rows: list[tuple[Sampling, int]]) -> Knobs:
    """The arrays for rows of (sampling, turn): every turn of a stream draws anew."""
    return Knobs(
        np.asarray([s.temperature for s, _ in rows], np.float32),
        np.asarray([s.top_p for s, _ in rows], np.float32),
        np.asarray([s.repetition_penalty for s, _ in rows], np.float32),
        np.asarray([s.seed % 2**32 for s, _ in rows], np.uint32),
        np.asarray([turn for _, turn in rows], np.uint32),
    )


def pick(
    logits: Float[Array, "n v"], said: Bool[Array, "n v"], knobs: Knobs, step: Any
) -> Int[Array, " n"]:
    """The next word of each row; `said` marks the words its answer has so far."""
    logits = logits.astype(jnp.float32)
    penalty = knobs.penalty[:, None]
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(said, lowered, logits)
    best = jnp.argmax(logits, axis=-1)
    warm = knobs.temperature > 0
    below = logits - jnp.max(logits, axis=-1, keepdims=True)  # no temperature is too low for it
    scaled = below / jnp.where(warm, knobs.temperature, 1.0)[:, None]
    order = jnp.argsort(-scaled, axis=-1)
    shares = jax.nn.softmax(jnp.take_along_axis(scaled, order, axis=-1), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares  # of the likelier words: 0 for the likeliest
    kept = jnp.where(before < knobs.top_p[:, None], jnp.log(shares), -jnp.inf)

    def draw(seed, turn, weights):
        key = jax.random.fold_in(jax.random.key(seed), turn)
        return jax.random.categorical(jax.random.fold_in(key, step), weights)

    place = jax.vmap(draw)(knobs.seed, knobs.turn, kept)
    drawn = jnp.take_along_axis(order, place[:, None], axis=-1)[:, 0]
    return jnp.where(warm, drawn, best).astype(jnp.int32)
