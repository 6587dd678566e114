"""What a recipe says: everything that decides a training run, in one frozen tree."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from flax import nnx

from streamjax.data.multitask import Order
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


def streamformer_undecayed(path: str, ndim: int) -> bool:
    """What StreamFormer's pre-training leaves undecayed: biases and what has one dimension.

    Scalars (gates, scales and biases of similarities) are decayed, and so is the pooling head's
    probe, which the original keeps with three dimensions. specs/streamformer.md section 7, Q7.
    """
    name = path.rsplit("/", 1)[-1]
    return name == "bias" or (ndim == 1 and name != "probe")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon for the matrices and AdamW for the rest.

    The rate climbs linearly over the first `warmup` (a share of the steps) from `start` * lr (None:
    from one step of as many to lr), then follows `schedule` down to `final` * lr. `restart` goes
    back to the rate of the first step every so many steps, as StreamFormer's pre-training did at
    every epoch (None: never). `clip` bounds the global norm of the gradient (None: never).
    `no_decay` is asked with each parameter's path ("decoder/layers/attn/q/kernel") and its number
    of dimensions, the axis of stacked layers not counted. Muon takes the kernels with two such
    dimensions, layer by layer; embeddings and the output head stay with AdamW, at the rate
    `adam_lr` (None: lr).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float
    adam_lr: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.0
    start: float | None = None
    final: float = 0.0
    restart: int | None = None
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
        if self.restart is not None and self.restart < 1:
            raise InputError(
                f"optim.restart={self.restart}, wanted the steps after which the rate begins anew, "
                f"1 or more, or none"
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
    """A checkpoint every so many steps and after the last one.

    The newest `keep` stay, and those of every `keep_every`-th step (None: no others). Raises
    InputError for numbers below 1 and a `keep_every` that is no multiple of `every`.
    """

    every: int = 500
    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self):
        for key in ("every", "keep", "keep_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"checkpoint.{key}={value}, wanted 1 or more")
        if self.keep_every is not None and self.keep_every % self.every:
            raise InputError(
                f"checkpoint.keep_every={self.keep_every}, wanted a multiple of "
                f"checkpoint.every={self.every}: no other step is saved"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run.

    `model(rngs)` makes the module. `weights` says what its parameters then are and has no default:
    "fresh" ones are drawn inside one compiled program, born on their devices; "loaded" ones come
    from files that `model` itself reads: it is given the run's mesh where it has a parameter
    `mesh`, for weights that no single device holds. `batch_size` rows go into one optimiser step,
    in `accumulate` micro-batches.

    With `objective` and `data` as mappings of the same tasks the run trains all of them:
    `batch_size` rows of one task make a mini-batch, and a step takes one of every task (`order`
    "each"), or the next `accumulate` ones of StreamFormer's samplers ("balanced", "unique": see
    `data.multitask`). Their losses count alike, and their mean is what is trained.

    `trainable` and `frozen` name parts of parameter paths
    ("projector", "decoder/layers", "lora_a"): what `trainable` matches is trained (everything, when
    it is empty) unless `frozen` matches it.

    Raises InputError at construction when sizes do not fit each other.
    """

    name: str
    steps: int
    batch_size: int
    model: Callable[..., nnx.Module]
    weights: Literal["fresh", "loaded"]
    objective: Objective | Mapping[str, Objective]
    data: DataConfig | Mapping[str, DataConfig]
    optim: OptimConfig
    seed: int = 0
    accumulate: int = 1
    order: Order = "each"
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = 10

    def __post_init__(self):
        for key in ("steps", "batch_size", "accumulate", "log_every"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)}, wanted 1 or more")
        if isinstance(self.data, Mapping) or isinstance(self.objective, Mapping):
            self._check_tasks()
        elif self.order != "each":
            raise InputError(f"order={self.order!r} is of runs with several tasks, found one")
        elif self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                f"micro-batches: wanted a multiple of {self.accumulate}"
            )

    @property
    def examples(self) -> int:
        """Rows of one step, over all tasks and devices."""
        if not isinstance(self.data, Mapping):
            return self.batch_size
        return self.batch_size * (len(self.data) if self.order == "each" else self.accumulate)

    def _check_tasks(self) -> None:
        found, wanted = (
            sorted(part) if isinstance(part, Mapping) else ["one for all"]
            for part in (self.objective, self.data)
        )
        if found != wanted or not found:
            raise InputError(
                f"objective names the tasks {', '.join(found) or 'none'}, data "
                f"{', '.join(wanted) or 'none'}: wanted one of both for each task"
            )
        if self.order == "each" and self.accumulate != 1:
            raise InputError(
                f"accumulate={self.accumulate} with order='each', which takes one mini-batch of "
                f"every task: set accumulate=1, or order='balanced' or 'unique'"
            )
