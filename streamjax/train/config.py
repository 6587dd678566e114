"""What a recipe says: everything that decides a training run, in one frozen tree."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from flax import nnx

from streamjax.data.pipeline import DataConfig
from streamjax.errors import InputError

Metrics = Mapping[str, jax.Array | tuple[jax.Array, jax.Array]]
# (model, batch) -> (sum of losses, what to divide it by, metrics). Sums, so that the mean is taken
# once over all micro-batches and devices: for a token mean return the sum over the labelled tokens
# and their number, for a plain mean `loss * rows, rows`. A metric is a sum too (true positives,
# say, of any shape) or a pair (sum, count), which becomes a mean.
Objective = Callable[[Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array, Metrics]]


def vectors(path: str, ndim: int) -> bool:
    """True of norms, biases, scalars: what AdamW leaves undecayed unless a recipe says other."""
    del path
    return ndim <= 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon for the matrices and AdamW for the rest.

    The rate climbs linearly over the first `warmup` (a share of the steps), then follows `schedule`
    down to `final` * lr. `clip` bounds the global norm of the gradient (None: never). `no_decay` is
    asked with each parameter's path ("decoder/layers/attn/q/kernel") and its number of dimensions,
    the axis of stacked layers not counted. Muon takes the kernels with two such dimensions, layer
    by layer; embeddings and the output head stay with AdamW, at the rate `adam_lr` (None: lr).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float
    adam_lr: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.0
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: Callable[[str, int], bool] = vectors
    clip: float | None = 1.0

    def __post_init__(self):
        if self.kind == "adamw" and self.adam_lr is not None:
            raise InputError(
                f"optim.adam_lr={self.adam_lr} stands beside Muon's rate only, found kind='adamw': "
                f"set optim.lr and optim.adam_lr=none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of streamjax.sharding; data=-1 takes what the others leave over."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every so many steps and after the last one; the newest `keep` stay."""

    every: int = 500
    keep: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    `model(rngs)` makes the module. `weights` says what its parameters then are and has no default:
    "fresh" ones are drawn inside one compiled program, born on their devices; "loaded" ones come
    from files that `model` itself reads: it is given the run's mesh where it has a parameter
    `mesh`, for weights that no single device holds. `batch_size` rows go into one optimiser step,
    in `accumulate` micro-batches. `trainable` and `frozen` name parts of parameter paths
    ("projector", "decoder/layers", "lora_a"): what `trainable` matches is trained (everything, when
    it is empty) unless `frozen` matches it.

    Raises InputError at construction when sizes do not fit each other.
    """

    name: str
    steps: int
    batch_size: int
    model: Callable[..., nnx.Module]
    weights: Literal["fresh", "loaded"]
    objective: Objective
    data: DataConfig
    optim: OptimConfig
    seed: int = 0
    accumulate: int = 1
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = 10

    def __post_init__(self):
        for key in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}, wanted 1 or more")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                f"micro-batches: wanted a multiple of {self.accumulate}"
            )
