"""From camera pixels to what an image tower was trained on, and back from a folder's config.

Three kinds, one interface: `processor.frame(frame)` is one frame of a stream as (pixels, grid row),
`processor.to_folder(folder)` writes preprocessor_config.json, `read_processor(folder)` reads it.
All are frozen and hashable.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamjax.data.processors import common
from streamjax.data.processors.anyres import anyres, best_pinpoint
from streamjax.data.processors.internvl import InternVLImageProcessor, tile_layout
from streamjax.data.processors.qwen import QwenImageProcessor, smart_resize
from streamjax.data.processors.square import ImageProcessor

__all__ = [
    "Assets",
    "ImageProcessor",
    "InternVLImageProcessor",
    "Processor",
    "QwenImageProcessor",
    "anyres",
    "best_pinpoint",
    "read_processor",
    "smart_resize",
    "tile_layout",
]

Processor = ImageProcessor | QwenImageProcessor | InternVLImageProcessor


def read_processor(folder: str | os.PathLike) -> Processor | None:
    """The image processor of a Hugging Face folder; None where there is none.

    Reads preprocessor_config.json, or the `image_processor` of transformers 5's
    processor_config.json. `image_processor_type` decides: Qwen2VL.., Qwen2_5_VL.., Qwen3VL.. are
    Qwen's, GotOcr2.. and InternVL.. are InternVL's, and all others resize to a fixed size. An
    original InternVL folder is known by its config.json.

    InputError: not JSON, a value that is none of its kind.
    """
    folder = Path(folder)
    path = folder / common.CONFIG
    if path.is_file():
        config = common.read_json(path)
    else:
        path = folder / "processor_config.json"
        config = common.read_json(path).get("image_processor") if path.is_file() else None
        if not isinstance(config, dict):
            return None
    kind = str(config.get("image_processor_type", ""))
    if kind.startswith("Qwen"):
        return QwenImageProcessor.from_config(config, path)
    # LLaVA's tower has a config of its own, beside the language model's.
    files = [folder / name for name in ("vision_tower_config.json", "config.json")]
    model = next((common.read_json(file) for file in files if file.is_file()), {})
    original = "feature_extractor_type" in config and "internvl" in str(model.get("model_type"))
    if kind.startswith(("GotOcr2", "InternVL")) or original:
        return InternVLImageProcessor.from_config(config, path, model)
    return ImageProcessor.from_config(config, path, model)


@dataclass(frozen=True)
class Assets:
    """What travels beside a model's weights; static and hashable, so that jit may see it.

    tokenizer: folder that holds the tokenizer's files, or None.
    processor: how frames become the tower's input, or None.
    chat_template: the folder's Jinja template, or None.
    origin: what the folder's README.md says of licence and ancestry (weights/card.py), or None.
    extras: whatever else the folder's loader keeps for saving it back; opaque here.
    """

    tokenizer: str | None = None
    processor: Processor | None = None
    chat_template: str | None = None
    origin: str | None = None
    extras: Any = None
