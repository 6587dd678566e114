"""Models that watch: StreamFormer and Streamo in JAX, trained on pods and streamed anywhere.

    import streamjax as sj

    model = sj.load("path/to/folder")            # Hugging Face folder or a training run
    stream = sj.Stream(model)                    # one compiled step, constant memory
    for frame in sj.video("clip.mp4", fps=1):
        event = stream.push(frame)

Names are handed on lazily (PEP 562): a data worker that imports `streamjax.data` never pays for
jax.

Dimension letters, used in every signature and comment:

    b  batch            t  frames            p  patches (hp wp: the grid)
    l  tokens           s  cache slots       n / k  query / key-value heads
    h  head dim         d  width             f  mlp width
    v  vocabulary       c  classes
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "StreamBatch": "streamjax.stream",
    "Sampling": "streamjax.stream",
    "Stream": "streamjax.stream",
    "Thresholds": "streamjax.stream",
    "load": "streamjax.folders",
    "read_trace": "streamjax.stream",
    "redecide": "streamjax.stream",
    "replay": "streamjax.stream.replay",
    "restore": "streamjax.stream",
    "save": "streamjax.folders",
    "video": "streamjax.data.video",
}
_ROOMS = ("checkpoint", "data", "evals", "folders", "losses", "models", "ops", "sharding",
          "stream", "train", "weights")  # fmt: skip

__all__ = [
    "Sampling",
    "Stream",
    "StreamBatch",
    "Thresholds",
    "__version__",
    "load",
    "read_trace",
    "redecide",
    "replay",
    "restore",
    "save",
    "video",
]  # fmt: skip

if TYPE_CHECKING:
    from streamjax.data.video import video
    from streamjax.folders import load, save
    from streamjax.stream import (
        Sampling,
        Stream,
        StreamBatch,
        Thresholds,
        read_trace,
        redecide,
        restore,
    )
    from streamjax.stream.replay import replay


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"streamjax.{name}")
    raise AttributeError(f"module 'streamjax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES, *_ROOMS])
