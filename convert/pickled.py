"""Turns PyTorch's pickles (.bin, .pth, .pt) into a folder of safetensors.

    python convert/pickled.py vicuna-7b-v1.5/ vicuna-7b-safetensors/
    python convert/pickled.py checkpoint-epoch.pth weights/ --key model

SOURCE is a file, or a Hugging Face folder with pytorch_model.bin or shards and their index; the
other files of a folder (config.json, tokenizer, README.md) are copied. Tensors come out bit for bit
unless --dtype is given. Shards are read one by one.

Files are opened with `weights_only=True`, always: one that holds code is refused, not run. Weights
that are nested ("state_dict", "model", "module") are found, what wrappers put before and into names
(DistributedDataParallel, FSDP, torch.compile) is taken out, and buffers that models compute
themselves (rotary inv_freq, position_ids) are left away; all of it is told on stderr.
"""

import argparse
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import script
import torch

from streamjax.errors import InputError
from streamjax.weights import safetensors
from streamjax.weights.tensors import Lazy, Tensor

FILE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Where training code keeps the weights, the likeliest first.
_NESTS = ("state_dict", "model", "module", "model_state_dict", "params", "network")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_COMPUTED = re.compile(r".*(\.|^)(inv_freq|position_ids)")
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
# Beside weights, checkpoints hold the arguments and numbers of their training. Plain data.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
]


def read(path: Path, key: str | None = None) -> dict[str, Lazy]:
    """The tensors of one pickle by name, still in the file where its format allows that.

    key: under which the weights are, "a.b" for nested ones; None finds them.

    Raises FileNotFoundError, and InputError for a file that is damaged, holds code, or no weights.
    """
    found: Any = _open(path)
    told = []
    if key is not None:
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise InputError(f"{path}: no key {part!r}, found {_some(found)}")
            found = found[part]
    elif not _weights(found):
        while not _weights(found):
            keys = [k for k in _NESTS if isinstance(found, Mapping) and k in found]
            if not keys:
                raise InputError(f"{path}: no weights, found {_some(found)}: name them with --key")
            told.append(f"took {keys[0]!r}, left {', '.join(map(str, set(found) - {keys[0]}))}")
            found = found[keys[0]]
    if not _weights(found):
        raise InputError(f"{path}: no weights under {key!r}, found {_some(found)}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        clean = _clean(name, all(other.startswith("module.") for other in found))
        if clean in tensors:
            raise InputError(f"{path}: both {name} and another tensor are {clean} without wrappers")
        tensors[clean] = tensor
    for name in [name for name in tensors if _COMPUTED.fullmatch(name)]:
        told.append(f"left {name}, which models compute themselves")
        del tensors[name]
    if all(tensor.numel() == 0 for tensor in tensors.values()):
        raise InputError(
            f"{path}: all tensors are empty, as DeepSpeed's ZeRO-3 leaves them: run the "
            "zero_to_fp32.py beside the checkpoint first"
        )
    if _tied(tensors):
        told.append("left lm_head.weight, which is the embedding: tied")
        del tensors["lm_head.weight"]
    for line in told:
        script.say(f"{path.name}: {line}")
    return {name: _lazy(path, name, tensor) for name, tensor in tensors.items()}


def convert(source: Path, target: Path, *, key: str | None = None, dtype: str | None = None):
    """Writes the folder `target`; see this module's docstring."""
    files = pickles_of(source) if source.is_dir() else [source]
    with script.whole(target) as folder:
        if source.is_dir():
            copy_beside(source, folder)
        where: dict[str, str] = {}
        total = 0
        for i, file in enumerate(files, start=1):
            script.say(f"{file} ({i} of {len(files)})")
            tensors = read(file, key)
            if dtype is not None:
                tensors = {name: cast(tensor, dtype) for name, tensor in tensors.items()}
            name = f"model-{i:05d}-of-{len(files):05d}.safetensors"
            name = safetensors.FILE if len(files) == 1 else name
            if twice := sorted(set(where) & set(tensors)):
                raise InputError(f"{file}: tensor {twice[0]} is in {where[twice[0]]} too")
            safetensors.write_file(folder / name, tensors, {"format": "pt"})
            where |= dict.fromkeys(tensors, name)
            total += sum(tensor.nbytes for tensor in tensors.values())
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / safetensors.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def pickles_of(folder: Path) -> list[Path]:
    """The pickles of a Hugging Face folder, in order. FileNotFoundError without any."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"{folder}: no pickled weights, wanted {FILE} or {INDEX}")
    try:
        names = sorted(
            {str(n) for n in json.loads((folder / INDEX).read_text())["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / INDEX}: cannot be read: {error!r}") from None
    for name in names:
        if name in ("", "..") or Path(name).name != name:
            raise InputError(f"{folder / INDEX}: names {name!r}, wanted a file in the same folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing, but {INDEX} names it")
    return [folder / name for name in names]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder, safetensors or pickles, none of them in memory."""
    if any((folder / name).is_file() for name in (safetensors.FILE, safetensors.INDEX)):
        return dict(safetensors.read_folder(folder)[0])
    tensors: dict[str, Tensor] = {}
    for file in pickles_of(folder):
        tensors |= read(file)
    return tensors


def copy_beside(source: Path, folder: Path) -> None:
    """Copies what describes a model: configs, tokenizer, card and licence."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)


def cast(tensor: Lazy, dtype: str) -> Lazy:
    """The tensor in another float type; whole numbers stay what they are."""
    wanted = safetensors.DTYPES[{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]]
    if tensor.dtype not in [safetensors.DTYPES[name] for name in ("F64", "F32", "F16", "BF16")]:
        return tensor
    return Lazy(tensor.shape, wanted, lambda: np.asarray(tensor).astype(wanted))


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, wanted a .bin, .pth or .pt file")
    with torch.serialization.safe_globals(_HARMLESS):
        for mmap in (True, False):  # the format of before 2020 cannot be mapped
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except pickle.UnpicklingError as error:
                code = re.search(r"GLOBAL ([\w.]+)", str(error))
                what = f"holds code ({code[1]})" if code else "is no pickle of weights"
                raise InputError(
                    f"{path}: {what}, which is never run here: wanted tensors alone"
                ) from None
            except Exception as error:  # a damaged file may surface as almost anything
                if mmap and "mmap" in str(error):
                    continue
                line = " ".join(str(error).split())[:160]
                raise InputError(f"{path}: damaged or no PyTorch file: {line}") from None


def _weights(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items())
    )


def _clean(name: str, wrapped: bool) -> str:
    name = name.removeprefix("module.") if wrapped else name
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _tied(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the head is the very memory of the embedding."""
    head = tensors.get("lm_head.weight")
    embeddings = [t for n, t in tensors.items() if n.endswith("embed_tokens.weight")]
    return head is not None and any(
        t.data_ptr() == head.data_ptr() and t.shape == head.shape for t in embeddings
    )


def _lazy(path: Path, name: str, tensor: torch.Tensor) -> Lazy:
    kinds = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    }
    as_bits, dtype = kinds.get(tensor.dtype, (None, None))
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{path}: tensor {name} is sparse or quantized, wanted a dense one")
    if dtype is None:
        dtype = torch.empty((), dtype=tensor.dtype).numpy().dtype
        if dtype not in safetensors.NAMES:
            raise InputError(f"{path}: tensor {name} is {tensor.dtype}, which safetensors has not")
    tensor = tensor.detach()

    def make() -> np.ndarray:
        bits = tensor.contiguous() if as_bits is None else tensor.contiguous().view(as_bits)
        return bits.numpy().view(dtype)

    return Lazy(tuple(tensor.shape), dtype, make)


def _some(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    names = [f"{key!r} ({type(value).__name__})" for key, value in list(found.items())[:6]]
    return ", ".join(names) + (", ..." if len(found) > 6 else "") if names else "an empty table"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("source", type=Path, help="a .bin, .pth or .pt file, or a folder of .bin")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--key", help="where in the file the weights are, e.g. model or ema.model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args()
    convert(args.source, args.target, key=args.key, dtype=args.dtype)
    print(args.target)


if __name__ == "__main__":
    script.run(main)
