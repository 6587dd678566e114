"""Makes a LLaVA-StreamFormer folder of its parts, or of a training output with pickles.

    python convert/llava_streamformer.py Qwen2.5-7B-Instruct/ start/ --tower streamformer/
    python convert/llava_streamformer.py vicuna-7b-v1.5/ stage2/ --tower streamformer/ \\
        --projector stage1/mm_projector.bin
    python convert/llava_streamformer.py trained-with-bins/ out/ --tower streamformer/

SOURCE is a language model's folder (Llama or Qwen2), or one that LLaVA's training wrote; weights
may be safetensors or pickles. What it lacks comes from --tower (a StreamFormer folder: its config,
and its weights where training left them out) and --projector (what stage 1 wrote; without it, a
fresh projector is drawn from --seed as PyTorch draws its linear layers). The result is loaded once,
as a check; that needs the memory of the model.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pickled
import script

import streamjax as sj
from streamjax.errors import InputError
from streamjax.weights import safetensors
from streamjax.weights.config import read_config
from streamjax.weights.llava_streamformer import TOWER, TOWER_CONFIG
from streamjax.weights.streamformer import PREFIX
from streamjax.weights.tensors import Tensor

_TYPES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "qwen2": ("llava_qwen", "LlavaQwenForCausalLM"),
}
# What LLaVA's training writes for this tower (specs/vlm.md 1.4).
_SETTINGS = {
    "mm_vision_tower": "streamformer", "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres",
    "mm_spatial_pool_stride": 2, "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
    "use_mm_proj": True, "tokenizer_padding_side": "right",
}  # fmt: skip


def convert(
    source: Path, target: Path, *, tower: Path, projector: Path | None = None, seed: int = 0
) -> None:
    """Writes the folder `target`; see this module's docstring."""
    raw = read_config(source / "config.json")
    kind = raw.get("model_type")
    if kind not in (*_TYPES, *(name for name, _ in _TYPES.values())):
        raise InputError(
            f"{source / 'config.json'}: model_type is {kind!r}, wanted llama, qwen2, llava_llama "
            "or llava_qwen"
        )
    tower_config = read_config(tower / "config.json")
    if kind in _TYPES:
        model_type, architecture = _TYPES[kind]
        raw |= _SETTINGS | {"model_type": model_type, "architectures": [architecture]}
        raw["mm_hidden_size"] = tower_config.get("hidden_size", 768)
    tensors = pickled.read_folder(source)
    if not any(name.startswith(TOWER) for name in tensors):
        script.say(f"the tower's weights come from {tower}")
        tensors |= _tower(tower)
    if projector is not None:
        tensors |= _projector(projector)
    elif not any("mm_projector" in name for name in tensors):
        script.say(f"a fresh projector is drawn from seed {seed}")
        tensors |= _drawn(raw, tensors, seed)
    with script.whole(target) as folder:
        pickled.copy_beside(source, folder)
        if (file := tower / "preprocessor_config.json").is_file():
            shutil.copyfile(file, folder / file.name)
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        if not (folder / TOWER_CONFIG).is_file():
            (folder / TOWER_CONFIG).write_text(json.dumps(tower_config, indent=2) + "\n")
        script.say("writing")
        safetensors.write_folder(folder, tensors)
        script.say("loading it, as a check")
        sj.load(folder)


def _tower(folder: Path) -> dict[str, Tensor]:
    tensors = pickled.read_folder(folder)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    return {
        TOWER + name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _projector(file: Path) -> dict[str, Tensor]:
    """What stage 1 wrote, under whatever prefix."""
    found = {}
    for name, tensor in pickled.read(file).items():
        for part in ("mm_projector.", "image_newline"):
            if part in name:
                found["model." + name[name.index(part) :]] = tensor
    if not found:
        raise InputError(f"{file}: no tensor of an mm_projector, wanted what stage 1 wrote")
    return found


def _drawn(raw: Mapping[str, Any], tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    rng, width = np.random.default_rng(seed), raw["hidden_size"]
    dtype = (
        tensors["model.embed_tokens.weight"].dtype
        if "model.embed_tokens.weight" in tensors
        else np.dtype(np.float32)
    )
    fresh: dict[str, Tensor] = {}
    for i, inputs in ((0, raw["mm_hidden_size"]), (2, width)):
        bound = 1 / math.sqrt(inputs)
        weight, bias = (
            rng.uniform(-bound, bound, (width, inputs)),
            rng.uniform(-bound, bound, width),
        )
        fresh[f"model.mm_projector.{i}.weight"] = weight.astype(dtype)
        fresh[f"model.mm_projector.{i}.bias"] = bias.astype(dtype)
    newline = rng.standard_normal(width) / math.sqrt(width)
    return fresh | {"model.image_newline": newline.astype(dtype)}


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("source", type=Path, help="a language model's folder, or LLaVA's")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--tower", type=Path, required=True, help="a StreamFormer folder")
    parser.add_argument("--projector", type=Path, help="mm_projector.bin")
    parser.add_argument("--seed", type=int, default=0, help="of a fresh projector")
    args = parser.parse_args()
    convert(args.source, args.target, tower=args.tower, projector=args.projector, seed=args.seed)
    print(args.target)


if __name__ == "__main__":
    script.run(main)
