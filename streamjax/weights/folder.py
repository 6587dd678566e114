"""A Hugging Face folder put down whole or not at all, with what travels beside the weights."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.weights import safetensors
from streamjax.weights.config import read_config
from streamjax.weights.tensors import Tensor

# A tokenizer's files, copied along; any of the first three makes a folder a tokenizer's.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
_PROCESSOR = "processor_config.json"


def write(
    folder: Path, texts: Mapping[str, str], assets: Assets, tensors: Mapping[str, Tensor] | None
) -> None:
    """Writes files of text, the image processor, the tokenizer's files, and the weights if any.

    Everything is written beside `folder` first and then moved into it, the weights last, so that
    a failure leaves what was there before; weights in another layout are removed. Raises InputError
    when `folder` is a file.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file, wanted a folder to save into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    temporary.mkdir()
    try:
        for name, text in texts.items():
            (temporary / name).write_text(text, "utf-8", "surrogateescape")
        if assets.processor is not None:
            assets.processor.to_folder(temporary)
        if assets.tokenizer is not None:
            _copy_tokenizer(Path(assets.tokenizer), temporary)
        if tensors is not None:
            safetensors.write_folder(temporary, tensors)
        if not folder.exists():
            temporary.rename(folder)
            return
        files = sorted(temporary.iterdir(), key=lambda p: ("safetensors" in p.name, p.name))
        for file in files:
            file.replace(folder / file.name)
        if tensors is not None:
            safetensors.remove_stale(folder, {file.name for file in files})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in the folder."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES[:3])


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (file := source / name).is_file():
            shutil.copyfile(file, target / name)
    if (file := source / _PROCESSOR).is_file():
        # transformers 5 keeps a copy of preprocessor_config.json there, which is written.
        kept = {k: v for k, v in read_config(file).items() if k != "image_processor"}
        (target / _PROCESSOR).write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
