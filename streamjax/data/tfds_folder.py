"""A TFDS dataset folder of ArrayRecord shards, written and read without TFDS or TensorFlow.

    dataset_info.json, features.json                      what tfds.builder_from_directory reads
    <name>-<split>.array_record-00000-of-00004            one shard

An example is a `tf.train.Example` of byte strings and integers. That message has no float64, so
that exact numbers travel as text. Shards hold one record per chunk, each with its own checksum:
one record is read without its neighbours, and a flipped bit is an error when it is read.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MASK = (1 << 64) - 1
_BYTES, _INT64 = 1, 3  # the fields of a tf.train.Feature

Example = Mapping[str, bytes | Sequence[int]]


@dataclass(frozen=True)
class Shard:
    """One file of a split: its number of records and bytes, and its SHA-256."""

    file: str
    records: int
    bytes: int
    sha256: str


def shard_name(name: str, split: str, number: int, shards: int) -> str:
    return f"{name}-{split}.array_record-{number:05d}-of-{shards:05d}"


def write_shard(path: str | os.PathLike, examples: Iterable[bytes], *, compress: bool) -> Shard:
    """Writes a shard; it appears under its name only when complete. The same examples make the same
    bytes. compress: with zstd; pictures and videos are no smaller for it.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer = ArrayRecordWriter(
            str(partial), f"group_size:1{'' if compress else ',uncompressed'}"
        )
        records = 0
        try:
            for records, example in enumerate(examples, start=1):  # noqa: B007
                writer.write(example)
        finally:
            writer.close()
        made = Shard(path.name, records, partial.stat().st_size, checksum(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return made


def checksum(path: str | os.PathLike) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_info(
    folder: str | os.PathLike,
    *,
    name: str,
    version: str,
    description: str,
    features: Mapping[str, str],
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """Writes dataset_info.json and features.json beside the shards.

    features: name -> "text", "bytes" or "integers", the same in all splits.
    """
    folder = Path(folder)
    kinds = {"text": _TEXT, "bytes": _tensor("string"), "integers": _INTEGERS}
    _write_json(
        folder / "features.json",
        {
            "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
            "featuresDict": {"features": {key: kinds[kind] for key, kind in features.items()}},
        },
    )
    _write_json(
        folder / "dataset_info.json",
        {
            "name": name,
            "version": version,
            "description": description,
            "fileFormat": "array_record",
            "splits": [
                {
                    "name": split,
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "numBytes": str(sum(shard.bytes for shard in shards)),
                    "shardLengths": [str(shard.records) for shard in shards],
                }
                for split, shards in splits.items()
            ],
        },
    )


def encode_example(example: Example) -> bytes:
    """{name: bytes or integers} as a tf.train.Example, names in their alphabet's order."""
    features = []
    for name in sorted(example):
        value = example[name]
        if isinstance(value, bytes):
            feature = _field(_BYTES, _field(1, value))
        else:
            feature = _field(_INT64, _field(1, b"".join(_varint(i & _MASK) for i in value)))
        features.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(features))


def decode_example(data: bytes) -> dict[str, Any]:
    """What `encode_example` made: {name: bytes or list of int}. ValueError: something else."""
    found: dict[str, Any] = {}
    for _, features in _fields(memoryview(data)):
        for _, entry in _fields(features):
            (_, name), (_, feature) = _fields(entry)
            ((kind, values),) = _fields(feature)
            parts = [value for _, value in _fields(values)]
            if kind == _BYTES:
                found[bytes(name).decode()] = bytes(parts[0])
            else:
                found[bytes(name).decode()] = [n for part in parts for n in _integers(part)]
    return found


_FEATURES = "tensorflow_datasets.core.features"
_TEXT = {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}


def _tensor(dtype: str) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
        "tensor": {"dtype": dtype, "encoding": "none", "shape": {}},
    }


_INTEGERS = {
    "pythonClassName": f"{_FEATURES}.sequence_feature.Sequence",
    "sequence": {"feature": _tensor("int64"), "length": "-1"},
}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes: its number and kind, its length, itself."""
    return b"".join((bytes([number << 3 | 2]), _varint(len(content)), content))


def _fields(data: memoryview) -> list[tuple[int, memoryview]]:
    """The fields of a message all of whose fields are bytes, without copying them."""
    found, place = [], 0
    while place < len(data):
        head = data[place]
        length, place = _number(data, place + 1)
        if head & 7 != 2 or place + length > len(data):
            raise ValueError("not an example: wanted fields of bytes that end where the data does")
        found.append((head >> 3, data[place : place + length]))
        place += length
    return found


def _integers(data: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = _number(data, place)
        found.append(value - (1 << 64) if value >> 63 else value)
    return found


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """The varint at `place`, and the place after it."""
    value = shift = 0
    while True:
        if place >= len(data):
            raise ValueError("not an example: it ends in the middle of a number")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
