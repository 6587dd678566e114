"""More rows of embeddings, where a tokenizer has more tokens than the model was made for."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from streamjax.models.vlm import VideoLM

M = TypeVar("M", bound=VideoLM)


def grow(model: M, rows: int) -> M:
    """The model with `rows` rows of embeddings and, untied, as many columns of its head.

    The old ones stay bit for bit; each new one is the mean of the old, so that a new token is at
    first neither likely nor unlikely (transformers' rule, without its noise of 1e-5 of a standard
    deviation). `streamjax.data.tokenizer.embedding_rows` says how many are needed.

    Raises ValueError for fewer rows than there are.
    """
    decoder, old = model.config.decoder, model.config.decoder.vocab_size
    if rows < old:
        raise ValueError(f"rows is {rows}, wanted at least the model's {old}")
    if rows == old:
        return model
    grown = jax.tree.map(lambda a: a, model)
    decoder = dataclasses.replace(decoder, vocab_size=rows)
    grown.config = dataclasses.replace(model.config, decoder=decoder)
    grown.decoder.config = decoder
    for parameter, axis in ((grown.decoder.embed, 0), (grown.decoder.head, 1)):
        if parameter is not None:
            value = parameter[...]
            mean = value.mean(axis, keepdims=True, dtype=jnp.float32).astype(value.dtype)
            parameter.set_value(jnp.concatenate([value, jnp.repeat(mean, rows - old, axis)], axis))
    return grown
