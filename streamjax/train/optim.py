"""The optimiser of a run: rate over time, clipping, AdamW or Muon, decay by groups."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from streamjax.train.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step: linear warm-up, then cosine, linear or constant.

    With `restart`, of the step counted anew.
    """
    whole, restart = _schedule(config, steps), config.restart
    return whole if restart is None else lambda step: whole(jnp.mod(step, restart))


def _schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    warm = round(config.warmup * steps)
    rest = max(steps - warm, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final)
    elif config.schedule == "linear":
        main = optax.linear_schedule(config.lr, config.lr * config.final, rest)
    else:
        main = optax.constant_schedule(config.lr)
    if not warm:
        return main
    # Unless said otherwise the first step already moves: it takes lr / warm, not nothing.
    first = config.lr / warm if config.start is None else config.lr * config.start
    climb = optax.linear_schedule(first, config.lr, max(warm - 1, 1))
    return optax.join_schedules([climb, main], [warm])


def make_optimizer(
    config: OptimConfig, steps: int, params: nnx.State
) -> optax.GradientTransformation:
    """The transformation from gradients to updates for parameters of these (abstract) shapes.

    Clip, then AdamW's moments or Muon's orthogonal matrices, then decoupled weight decay, then the
    rate.
    """
    flat = nnx.to_flat_state(params)
    dims = {path: _dims(variable) for path, variable in flat}

    def grouped(value_of: Any) -> nnx.State:
        """A tree like params, with `value_of(path, variable)` in the place of every array."""
        return nnx.from_flat_state([(p, v.replace(value_of(p, v))) for p, v in flat])

    muon = {path: config.kind == "muon" and _is_muon(path, v) for path, v in flat}
    share = 1.0 if config.adam_lr is None else config.adam_lr / config.lr
    parts: dict[Any, Any] = {"adam": optax.scale_by_adam(config.b1, config.b2, config.eps)}
    if any(muon.values()):
        parts["muon"] = _muon()
    scale = optax.partition(parts, grouped(lambda p, _: "muon" if muon[p] else "adam"))
    shares = grouped(lambda p, _: 1.0 if muon[p] else share)
    decayed = grouped(lambda p, _: not config.no_decay("/".join(map(str, p)), dims[p]))
    return optax.chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        scale,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, shares)),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


def _dims(variable: nnx.Variable) -> int:
    """The number of dimensions of one layer's parameter."""
    names = variable.get_metadata().get("out_sharding")
    if names is None:
        return len(variable.get_value().shape)
    # Of one number per layer flax forgets the axis of the layers.
    return sum(name != "layers" for name in names)


def _is_muon(path: tuple, variable: nnx.Variable) -> bool:
    """Kernels that map one width to another; not the embeddings, nor the map to the vocabulary."""
    return path[-1] == "kernel" and _dims(variable) == 2 and "vocab" not in _names(variable)


def _names(variable: nnx.Variable) -> tuple:
    return tuple(variable.get_metadata().get("out_sharding") or ())


def _muon() -> optax.GradientTransformation:
    """Muon of the last two axes, each layer by itself, scaled to keep the size of the outputs."""

    def axes_of(updates: Any) -> Any:
        return jax.tree.map(lambda u: MuonDimensionNumbers(u.ndim - 2, u.ndim - 1), updates)

    def scaled(update: jax.Array) -> jax.Array:
        return update * math.sqrt(max(1.0, update.shape[-1] / update.shape[-2]))

    return optax.chain(
        scale_by_muon(weight_dimension_numbers=axes_of),
        optax.stateless(lambda updates, _: jax.tree.map(scaled, updates)),
    )
