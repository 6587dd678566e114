"""What a model is trained on and watches: numpy only, so that data workers never import jax."""

import importlib

_ROOMS = (
    "annotations", "chat", "dialogue", "packed", "packing", "pipeline", "processors", "tasks",
    "tokenizer", "video", "world", "world_dialogues", "world_files",
)  # fmt: skip


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"streamjax.data.{name}")
    raise AttributeError(f"module 'streamjax.data' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_ROOMS])
