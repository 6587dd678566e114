"""Safetensors files, read as much as is asked for and written whole or not at all.

The format: eight bytes with the length of a JSON header, the header (name -> dtype, shape and byte
range), the bytes. numpy has no bfloat16, which the ordinary numpy reader therefore refuses; with
ml_dtypes these pages of code keep every dtype bit for bit, open files instead of loading them, and
say what is wrong with a bad one.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from operator import index as integer
from pathlib import Path

import ml_dtypes
import numpy as np

from streamjax.errors import InputError
from streamjax.weights.tensors import OpenFile, Stored, Tensor

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
        "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    }.items()
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def open_file(path: Path | str) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of one file, none of them read yet, and its metadata.

    Raises FileNotFoundError when there is none, InputError when it is damaged.
    """
    path = Path(path)
    file = OpenFile(path)
    head = np.zeros(8, np.uint8)
    file.read(0, head[: file.size].data)
    length = int(head.view("<u8")[0])
    start = 8 + length
    if not 2 <= length <= file.size - 8:
        raise InputError(
            f"{path}: {file.size} bytes, which is no whole safetensors file (its header says "
            f"{length} bytes of names): download or export it again"
        )
    text = np.empty(length, np.uint8)
    file.read(8, text.data)
    try:
        header = json.loads(text.tobytes())
        metadata = header.pop("__metadata__", {})
        entries = {}
        for name, entry in header.items():
            begin, end = map(integer, entry["data_offsets"])
            shape = tuple(map(integer, entry["shape"]))
            entries[name] = (DTYPES[entry["dtype"]], shape, begin, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the safetensors header cannot be read: {error!r}") from None
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        wanted = math.prod(shape) * dtype.itemsize
        if end - begin != wanted or begin < 0 or min(shape, default=0) < 0:
            raise InputError(
                f"{path}: tensor {name} has {end - begin} bytes, wanted {wanted} for shape "
                f"{list(shape)} of {dtype}: the file is damaged"
            )
        if start + end > file.size:
            raise InputError(
                f"{path}: truncated: tensor {name} ends at byte {start + end}, the file has "
                f"{file.size}: download or export it again"
            )
        tensors[name] = Stored(file, start + begin, shape, dtype)
    return tensors, metadata


def read_file(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of one file as arrays, and its metadata; raises as `open_file` does."""
    tensors, metadata = open_file(path)
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}, metadata


def write_file(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes one file under a temporary name in the same folder, then renames it.

    Of lazy tensors, one at a time is in memory.
    """
    path = Path(path)
    header: dict = {"__metadata__": dict(metadata)}
    offset = 0
    # Widest first, so that every tensor is aligned to its own size, as the format wants.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                contiguous = np.ascontiguousarray(tensors[name])
                file.write(contiguous.reshape(-1).view(np.uint8).data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_folder(folder: Path | str) -> tuple[dict[str, Stored], dict[str, str]]:
    """All tensors of a Hugging Face folder: model.safetensors, or the shards of its index.

    None is read yet: `np.asarray(tensor)` does, and `tensor.rows(start, stop)` reads a part.

    Raises FileNotFoundError when the folder has neither, or lacks a shard; InputError when a file
    is damaged, when a tensor is not in the shard that the index names, or when the index names a
    file outside of the folder.
    """
    folder = Path(folder)
    if (folder / FILE).exists():
        return open_file(folder / FILE)
    if not (folder / INDEX).exists():
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        found = f"found {', '.join(pickles)}" if pickles else "found neither"
        raise FileNotFoundError(
            f"{folder}: no weights: wanted {FILE} or {INDEX}, {found}"
            + (": convert the pickles with convert/pickled.py first" if pickles else "")
        )
    try:
        index = json.loads((folder / INDEX).read_text())
        where = {str(name): str(shard) for name, shard in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / INDEX}: cannot be read: {error!r}") from None
    if not where:
        raise InputError(f"{folder / INDEX}: names no file, wanted a shard for every tensor")
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(where.values())):
        if shard in ("", "..") or Path(shard).name != shard or "\0" in shard:
            raise InputError(
                f"{folder / INDEX}: names the file {shard!r}, wanted one in the same folder"
            )
        if not (folder / shard).exists():
            raise FileNotFoundError(f"{folder / shard}: missing, but {INDEX} names it")
        found, metadata = open_file(folder / shard)
        for name in found:
            if where.get(name) != shard:
                raise InputError(
                    f"{folder / shard}: tensor {name} is here, but {INDEX} places it in "
                    f"{where.get(name, 'no shard')}"
                )
        tensors |= found
    for name, shard in where.items():
        if name not in tensors:
            raise InputError(f"{folder / shard}: tensor {name} is missing, but {INDEX} names it")
    return tensors, metadata


def source_of(folder: Path) -> Path:
    """The file to name when a tensor of this folder is wrong."""
    return folder / (FILE if (folder / FILE).exists() else INDEX)


def write_folder(
    folder: Path | str, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes model.safetensors, or numbered shards and their index past `shard_bytes`."""
    folder = Path(folder)
    metadata = {"format": "pt"}  # transformers 4 refuses metadata without a format it knows
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_file(folder / FILE, shards[0], metadata)
        return
    where = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard, metadata)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def remove_stale(folder: Path, fresh: set[str]) -> None:
    """Removes weights of an earlier save in another layout, which a reader might take instead."""
    for path in [folder / FILE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")]:
        if path.name not in fresh:
            path.unlink(missing_ok=True)
