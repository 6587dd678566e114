"""Makes a StreamFormer folder of a training checkpoint, of pickles, or of a SigLIP folder.

    python convert/streamformer.py checkpoint-epoch.pth out/ --config released/config.json
    python convert/streamformer.py released-as-bin/ out/
    python convert/streamformer.py siglip-base-patch16-224/ start/ --frames 16 --seed 0

A training checkpoint (.pth) holds the backbone under "model" with the prefix `timesformer.`, beside
text encoder and task heads; the backbone comes out, in the names of the released one, and
--keep-heads keeps the rest too. Its config.json is looked for beside it. A SigLIP folder becomes
the model that pre-training starts from: spatial weights copied, temporal ones drawn from --seed
behind closed gates (specs/streamformer.md 2.8). Every tensor must have a place.
"""

import dataclasses
import tempfile
from pathlib import Path

import pickled
import script

import streamjax as sj
from streamjax.data.processors import ImageProcessor
from streamjax.errors import InputError
from streamjax.weights import safetensors, streamformer
from streamjax.weights.config import read_config
from streamjax.weights.siglip import streamformer_from_siglip
from streamjax.weights.streamformer import PREFIX


def from_checkpoint(file: Path, config: Path, *, keep_heads: bool = False):
    """The model in a training checkpoint; its other entries are not looked at.

    Raises InputError when it holds no backbone, or one that does not fit the config.
    """
    tensors = pickled.read(file)
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    backbone = backbone or tensors  # saved from the backbone's own class
    if not keep_heads and len(backbone) < len(tensors):
        script.say(f"left {len(tensors) - len(backbone)} tensors of text encoder and task heads")
        tensors = backbone
    if not keep_heads:
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    raw = read_config(config)
    if raw.get("model_type", streamformer.MODEL_TYPE) != streamformer.MODEL_TYPE:
        raise InputError(
            f"{config}: model_type is {raw['model_type']!r}, wanted {streamformer.MODEL_TYPE!r}"
        )
    # Training adds LoRA without writing so into the config.
    raw["add_lora_spatial"] = any(name.endswith("_lora_a.weight") for name in tensors)
    model = streamformer.fill(streamformer.blank(raw, config), tensors, source=file)
    processor = ImageProcessor.from_folder(config.parent)
    model.assets = dataclasses.replace(model.assets, processor=processor)
    return model


def from_folder(folder: Path, *, seed: int, frames: int):
    """The model of a StreamFormer or SigLIP folder, with safetensors or pickles."""
    kind = str(read_config(folder / "config.json").get("model_type", ""))
    with tempfile.TemporaryDirectory() as home:
        if not any((folder / name).is_file() for name in (safetensors.FILE, safetensors.INDEX)):
            pickled.convert(folder, Path(home) / "model")
            folder = Path(home) / "model"
        if kind.startswith("siglip"):
            return streamformer_from_siglip(folder, seed=seed, num_frames=frames)
        if kind not in ("", streamformer.MODEL_TYPE):
            raise InputError(
                f"{folder / 'config.json'}: model_type is {kind!r}, wanted 'siglip' or "
                f"{streamformer.MODEL_TYPE!r}"
            )
        return sj.load(folder)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("source", type=Path, help="a .pth file, or a folder")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--config", type=Path, help="a checkpoint's config.json")
    parser.add_argument("--keep-heads", action="store_true", help="of a checkpoint")
    parser.add_argument("--frames", type=int, default=16, help="of a start from SigLIP")
    parser.add_argument("--seed", type=int, default=0, help="of a start from SigLIP")
    args = parser.parse_args()
    target = script.fresh(args.target)
    if args.source.is_dir():
        model = from_folder(args.source, seed=args.seed, frames=args.frames)
    else:
        config = args.config or args.source.parent / "config.json"
        if not config.is_file():
            raise FileNotFoundError(f"{config}: missing, wanted the checkpoint's (--config)")
        model = from_checkpoint(args.source, config, keep_heads=args.keep_heads)
    sj.save(model, target)
    print(args.target)


if __name__ == "__main__":
    script.run(main)
