"""Models from folders and back: `sj.load`, `sj.save`.

A folder is a Hugging Face one (config.json and safetensors) or a training run (model/ and
checkpoints/). The family is found by `model_type`; each family is one module of weights/ with

    blank(raw, source) -> model of shapes        dump(model) -> (config.json, tensors)
    load(folder, raw, dtype=, mesh=) -> model
    companions(model) -> {file name: object}, where config.json does not stand alone
"""

import dataclasses
import difflib
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from streamjax.data.processors import read_processor
from streamjax.errors import InputError
from streamjax.models.pretraining import Pretraining
from streamjax.models.streamformer import StreamFormer
from streamjax.weights import card, table
from streamjax.weights.config import read_config
from streamjax.weights.folder import has_tokenizer
from streamjax.weights.folder import write as write_folder
from streamjax.weights.pretraining import whole_of
from streamjax.weights.siglip_text import TextSide, read_text, text_of
from streamjax.weights.streamformer import TASKS

# config.json's model_type -> the module of weights/ that reads and writes it.
FAMILIES: dict[str, str] = {
    "timesformer": "streamjax.weights.streamformer",
    "llava_qwen": "streamjax.weights.llava_streamformer",
    "llava_llama": "streamjax.weights.llava_streamformer",
    "qwen2_5_vl": "streamjax.weights.qwen2_5_vl",
    "qwen3_vl": "streamjax.weights.qwen3_vl",
    "internvl": "streamjax.weights.internvl",
    "internvl_chat": "streamjax.weights.internvl",
}
# The class of a model -> the same module.
CLASSES: dict[str, str] = {
    "StreamFormer": "streamjax.weights.streamformer",
    "Pretraining": "streamjax.weights.pretraining",
    "LlavaStreamFormer": "streamjax.weights.llava_streamformer",
    "Qwen2_5_VL": "streamjax.weights.qwen2_5_vl",
    "Qwen3_VL": "streamjax.weights.qwen3_vl",
    "InternVL": "streamjax.weights.internvl",
}

# In a run's config.json, the class that is trained, where model_type stands for another one.
_CLASS = "streamjax_class"
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", card.FILE)


def load(
    path: str | os.PathLike, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None
) -> Any:
    """Loads a model from a Hugging Face folder, a training run, or a hub id `owner/name`.

    dtype: of the parameters and the computation; None keeps the stored one. mesh: places every
    parameter by the rules of streamjax.sharding; None puts all on the default device.
    `model.assets` holds the tokenizer's folder, the image processor and the chat template.

    Raises FileNotFoundError when the folder, config.json or the weights are missing; InputError
    (one line: file, found, wanted) for an unknown model_type or config key, and a missing, extra,
    mis-shaped, non-finite or truncated tensor.
    """
    folder = _folder(path)
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        return _load_run(folder, dtype, mesh)
    raw = read_config(folder / "config.json")
    if raw.get("quantization_config"):
        raise InputError(
            f"{folder / 'config.json'}: quantization_config is there, wanted weights that are not "
            "quantized: load the folder that these were made from"
        )
    if dtype is not None:  # what is saved again says what it now holds
        name = jax.numpy.dtype(dtype).name
        raw |= {key: name for key in ("torch_dtype", "dtype") if key in raw}
    model = family_of(raw, folder / "config.json").load(folder, raw, dtype=dtype, mesh=mesh)
    _take_assets(model, folder)
    return model


def load_with_text(path: str | os.PathLike) -> Pretraining | tuple[StreamFormer, TextSide]:
    """Loads a StreamFormer and the text tower that it can be compared with.

    Where heads of tasks are stored (a run of pre-training, or a folder saved from one) it is the
    whole model; else the tower and its text side, of a StreamFormer's folder or of SigLIP's. The
    temporal part that a SigLIP has not is noise behind closed gates, as where training begins.

    Raises as `load` does, and InputError for a model that came without a text tower.
    """
    folder = _folder(path)
    config = folder / "config.json"
    raw = read_config(config) if config.is_file() else {}
    if str(raw.get("model_type", "")).startswith("siglip"):
        from streamjax.weights.siglip import streamformer_from_siglip

        return streamformer_from_siglip(folder, seed=0), read_text(folder)
    model = load(folder)
    if isinstance(model, Pretraining):
        return model
    if not isinstance(model, StreamFormer):
        raise InputError(
            f"{path}: a {type(model).__name__}, wanted a StreamFormer with a text tower, a run of "
            "its pre-training, or a SigLIP"
        )
    if model.assets.extras is not None and TASKS in model.assets.extras.config:
        return whole_of(model)
    return model, text_of(model)


def save(model: Any, folder: str | os.PathLike) -> None:
    """Writes a Hugging Face folder that the original implementation loads.

    Tensors that were loaded and not trained are written back bit for bit, buffers and extras of
    the original included; one tensor at a time is in memory. README.md says the licence and the
    base model where they are known and how to load the folder; of a README.md that is there
    already, all but streamjax's own part is kept. Everything is written beside `folder` first and
    then moved into it, the weights last, so that a failure leaves what was there before.

    Raises InputError when `folder` is a file, ValueError for a model that cannot be saved.
    """
    _write(model, folder, weights=True)


def describe(model: Any, folder: str | os.PathLike) -> None:
    """Writes the folder of `save` without the weights: a run's `model/`, whose weights are its
    checkpoints'. The model's parameters may be shapes.
    """
    graph, state = nnx.split(model)
    hollow = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), state)
    _write(nnx.merge(graph, hollow), folder, weights=False)


def _write(model: Any, folder: str | os.PathLike, *, weights: bool) -> None:
    module = CLASSES.get(type(model).__name__)
    if module is None:
        raise ValueError(f"cannot save a {type(model).__name__}, wanted one of {list(CLASSES)}")
    family = importlib.import_module(module)
    raw, tensors = family.dump(model)
    if not weights and family_of(raw, folder) is not family:
        raw[_CLASS] = type(model).__name__
    texts = {
        name: json.dumps(values, indent=2) + "\n"
        for name, values in (
            {"config.json": raw} | getattr(family, "companions", lambda _: {})(model)
        ).items()
    }
    home = Path(folder)
    if weights:
        texts[card.FILE] = card.page(home.resolve(), raw, tensors, model.assets.origin)
    elif model.assets.origin is not None:
        texts[card.FILE] = f"---\n{model.assets.origin}---\n"
    write_folder(home, texts, model.assets, tensors if weights else None)


def family_of(raw: dict[str, Any], source: Any) -> ModuleType:
    """The family module for a config.json; a config without model_type is a StreamFormer's."""
    name = raw.get("model_type", "timesformer")
    if name not in FAMILIES:
        if str(name).startswith("siglip"):
            raise InputError(
                f"{source}: model_type is {name!r}, which has no temporal part: make one with "
                "streamjax.weights.siglip.streamformer_from_siglip"
            )
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(FAMILIES)
        raise InputError(f"{source}: model_type is {name!r}, wanted one of {known}{hint}")
    return importlib.import_module(FAMILIES[name])


def _folder(path: str | os.PathLike) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    text = os.fspath(path)
    if folder.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        kind = "a file" if folder.exists() else "missing"
        raise FileNotFoundError(f"{path}: {kind}, wanted a folder with config.json, or a run")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub's own errors are pages long
        raise FileNotFoundError(
            f"{text}: no such folder, and the hub gave nothing ({type(error).__name__})"
        ) from None


def _load_run(run: Path, dtype: Any, mesh: jax.sharding.Mesh | None) -> Any:
    from streamjax.checkpoint import latest_params

    home = run / "model"
    raw = read_config(home / "config.json")
    name, source = raw.pop(_CLASS, None), home / "config.json"
    if name is not None and name not in CLASSES:
        raise InputError(f"{source}: {_CLASS} is {name!r}, wanted one of {', '.join(CLASSES)}")
    family = importlib.import_module(CLASSES[name]) if name else family_of(raw, source)
    model = family.blank(raw, source)
    graph, shapes = nnx.split(model)
    state = latest_params(run, shapes, mesh=mesh)
    if dtype is not None:
        state = jax.tree.map(lambda a: a.astype(dtype), state)
    model = table.computing_as_kept(nnx.merge(graph, state))
    _take_assets(model, home)
    return model


def _take_assets(model: Any, folder: Path) -> None:
    """Adds the tokenizer, the processor and the template to what the family's loader kept."""
    holder = model.tower if isinstance(model, Pretraining) else model
    holder.assets = dataclasses.replace(
        holder.assets,
        tokenizer=str(folder) if has_tokenizer(folder) else None,
        processor=read_processor(folder),
        chat_template=_chat_template(folder),
        origin=card.origin(folder, read_config(folder / "config.json")),
    )


def _chat_template(folder: Path) -> str | None:
    """The Jinja text, from whichever of the three places transformers has kept it in."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_config(folder / name).get("chat_template")
            if isinstance(template, list):  # of several, each under its name
                named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
                template = named.get("default")
            if isinstance(template, str):
                return template
    return None
