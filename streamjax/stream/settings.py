"""What a stream was made of, as plain JSON and back: what traces and snapshots begin with."""

import os
import platform
from pathlib import Path
from typing import Any

import jax

from streamjax import __version__
from streamjax.errors import InputError
from streamjax.models.vlm import VideoLM
from streamjax.stream.decisions import Thresholds
from streamjax.stream.sampling import Sampling
from streamjax.stream.session import Session, StreamBatch

_OF_A_BATCH = ("policy", "window", "every", "tower_window", "max_new_tokens", "capacity")
NAMES = frozenset((
    *_OF_A_BATCH, "fps", "system", "sampling", "thresholds", "tokenizer", "state_ids", "stop_ids",
))  # fmt: skip


def machine(model: VideoLM, slots: int = 1) -> dict[str, Any]:
    """What the last bit of a stream's numbers depends on, besides its settings and the weights.

    slots: streams in its batch.
    """
    device = jax.devices()[0]
    kind = device.device_kind
    return {
        "streamjax": __version__,
        "jax": jax.__version__,
        "device": _processor() if device.platform == "cpu" else kind,
        "cores": _cores() if device.platform == "cpu" else None,
        "precision": jax.config.values["jax_default_matmul_precision"],
        "dtype": model.dtype.name,
        "slots": slots,
    }


def model_of(model: VideoLM) -> dict[str, Any]:
    """The model in words, for people and for a first check: its class and its folder's name."""
    folder = model.assets.tokenizer
    return {"class": type(model).__name__, "folder": Path(folder).name if folder else None}


def reopen(
    model: VideoLM, settings: dict[str, Any], *, source: Any, tokenizer: Any = None
) -> Session:
    """A new stream with the `settings` of another one.

    source: the file they stand in, for errors. tokenizer: the object; default is the folder's own.
    Raises InputError for settings that make no stream on this model, and for another tokenizer
    than the one that it had.
    """
    if not isinstance(settings, dict) or (missing := sorted(NAMES - settings.keys())):
        told = "no settings" if not isinstance(settings, dict) else f"no {', '.join(missing)}"
        raise InputError(f"{source}: {told} among a stream's settings")
    words: dict[str, Any] = {"tokenizer": tokenizer}
    try:
        if not settings["tokenizer"]:
            words = {"state_ids": settings["state_ids"], "end_id": settings["stop_ids"][0]}
        batch = StreamBatch(
            model, slots=1, **{name: settings[name] for name in _OF_A_BATCH}, **words
        )
        rule = settings["thresholds"]
        stream = batch.join(
            system=settings["system"], fps=settings["fps"],
            sampling=Sampling(**settings["sampling"]),
            thresholds=None if rule is None else Thresholds(**rule),
            speaks_from=settings.get("speaks_from", 0),  # traces of before have none
        )  # fmt: skip
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{source}: settings that make no stream: {error}") from None
    for name in ("state_ids", "stop_ids"):
        if (found := stream.settings[name]) != settings[name]:
            raise InputError(
                f"{source}: the tokenizer's {name} are {found}, the stream had {settings[name]}: "
                "wanted the tokenizer that it ran with"
            )
    return stream


def _cores() -> int:
    """Cores that this process may use: a product is cut into as many pieces."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name: its instructions decide how sums are rounded."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
