"""Training: a recipe in, a run folder out.

    from streamjax.train import load_recipe, train

    result = train(load_recipe("demo_assistant", ["optim.lr=1e-3"]), "runs/mine")

A recipe is a file with `def config() -> TrainConfig`; the shipped ones are found by name.
"""

from streamjax.data.pipeline import DataConfig
from streamjax.train.config import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig
from streamjax.train.failures import NotFiniteError
from streamjax.train.loop import TrainResult, train
from streamjax.train.recipes import describe, load_module, load_recipe, override

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "MeshConfig",
    "NotFiniteError",
    "OptimConfig",
    "TrainConfig",
    "TrainResult",
    "describe",
    "load_module",
    "load_recipe",
    "override",
    "train",
]
