"""A stream in a file: `stream.save(path)`, and `sj.restore(model, path)` goes on from there.

The file is a zip of `snapshot.json` and one .npy for every array: the language model's cache, what
the tower remembers, and the visual tokens that a policy keeps. It holds no code and no pickles.
Weights are not in it: they are sampled, so that a snapshot is not taken up by others.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from streamjax.errors import InputError
from streamjax.models.vlm import VideoLM, VisualFeatures
from streamjax.stream.book import Book, Question, Span
from streamjax.stream.engine import Engine
from streamjax.stream.session import Asked, Session
from streamjax.stream.settings import machine, model_of, reopen

VERSION = 1
_HEAD = "snapshot.json"
# Of a Book, what is plain already; the rest are questions and spans, or made from settings.
_PLAIN = (
    "index", "head", "head_sunk", "pending", "first", "end", "stale", "sink_slots", "_handles",
)  # fmt: skip


def write(stream: Session, path: str | os.PathLike) -> None:
    """Writes a stream, whole or not at all: see `Session.save`."""
    book, engine = stream._book, stream._batch._engine
    model = stream._batch._model
    head: dict[str, Any] = {
        "snapshot": VERSION,
        "made": machine(model, stream._batch.slots),
        "model": model_of(model) | {"config": _config(model), "weights": _weights(model)},
        "stream": stream.settings,
        "armed": stream._decide.armed,
        "asked": [dataclasses.asdict(asked) for asked in stream._asked],
        "withdrawn": stream._withdrawn,
        "book": {name: getattr(book, name) for name in _PLAIN}
        | {name: [_told(q) for q in getattr(book, name)] for name in ("waiting", "sunk")}
        | {
            "spans": [
                {"questions": [_told(q) for q in span.questions], "rest": span.rest}
                for span in book.spans
            ]
        },
        "engine": None,
    }
    arrays = {}
    if engine is not None:
        row = stream._row
        head["engine"] = {
            "grid": list(stream._batch._frames._grid),
            "pixels": list(stream._batch._frames._shape),
            "ring": engine.cache.ring,
            "base": int(engine._base[row]),
        }
        for name, array in _held(engine).items():
            arrays[name] = functools.partial(_of_row, name, array, row, engine.rows)
        for i, span in enumerate(book.spans):
            if span.features is not None:
                for name, array in _parts(span.features).items():
                    arrays[f"spans.{i}.{name}"] = functools.partial(np.asarray, array)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(partial, "w", allowZip64=True) as file:
            kinds = {}
            for name, fetch in arrays.items():  # one at a time on the host
                array = fetch()
                kinds[name] = array.dtype.name
                entry = zipfile.ZipInfo(
                    f"{name}.npy"
                )  # without a date: the same stream, the same file
                with file.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _as_plain(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(_HEAD), json.dumps(head | {"arrays": kinds}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def restore(model: VideoLM, path: str | os.PathLike, *, tokenizer: Any = None) -> Session:
    """The stream that `stream.save(path)` wrote, as it was: its next turn is what it would have
    been there, bit for bit on the same machine and library.

    model: the one it ran on. tokenizer: the object; default is the folder's own. Raises
    FileNotFoundError, and InputError for a file that is no whole snapshot, and for another model:
    its class, its config, its weights, its tokenizer (found and wanted are named).
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            return _read(model, path, file, tokenizer)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: no whole snapshot, it is broken or cut off ({error})") from None


def _read(model: VideoLM, path: Path, file: zipfile.ZipFile, tokenizer: Any) -> Session:
    names = file.namelist()
    if _HEAD not in names:
        raise InputError(f"{path}: no {_HEAD} in it, wanted what stream.save() writes")
    head = json.loads(file.read(_HEAD))
    if (version := head.get("snapshot")) != VERSION:
        raise InputError(f"{path}: snapshot version {version}, wanted {VERSION}")
    if set(names) != {_HEAD, *(f"{name}.npy" for name in head["arrays"])}:
        raise InputError(f"{path}: its arrays are not those that {_HEAD} names")
    _check_model(model, head["model"], path)
    stream = reopen(model, head["stream"], source=path, tokenizer=tokenizer)
    stream._decide.armed = head["armed"]
    stream._asked = [Asked(**asked) for asked in head["asked"]]
    stream._withdrawn = head["withdrawn"]
    book, told = stream._book, head["book"]
    for name in _PLAIN:
        setattr(book, name, told[name])
    book.waiting, book.sunk = ([Question(**q) for q in told[n]] for n in ("waiting", "sunk"))
    book.spans.extend(
        Span([Question(**q) for q in span["questions"]], span["rest"]) for span in told["spans"]
    )
    if head["engine"] is not None:
        grid = tuple(head["engine"]["grid"])
        frames = stream._batch._frames
        frames._grid, frames._shape = grid, tuple(head["engine"]["pixels"])
        stream._batch._make(grid, head["stream"]["capacity"], told["sink_slots"])
        _fill(stream._batch._engine, book, head, path, file)
    return stream


def _fill(engine: Engine, book: Book, head: dict, path: Path, file: zipfile.ZipFile) -> None:
    """Puts the arrays where they belong."""
    ring, kinds = head["engine"]["ring"], head["arrays"]
    if ring not in engine._rings:
        raise InputError(f"{path}: a ring of {ring} slots, wanted one of {engine._rings}")
    engine._base[0] = head["engine"]["base"]

    def read(name: str) -> Any:
        with file.open(f"{name}.npy") as member:
            return jnp.asarray(_array(member, kinds[name], f"{path}: {name}"))

    new, old = {}, _held(engine)
    for name, array in old.items():
        shape = list(array.shape)
        if (axis := _slots_axis(name, array)) is not None:
            shape[axis] += ring - engine.cache.ring
        if name not in kinds:
            raise InputError(f"{path}: no {name} in it")
        new[name] = read(name)
        if (new[name].dtype, list(new[name].shape)) != (array.dtype, shape):
            raise InputError(
                f"{path}: {name} is {kinds[name]} {list(new[name].shape)}, wanted "
                f"{array.dtype.name} {shape}"
            )
    engine.cache = _replaced("cache", engine.cache, new)
    if hasattr(engine.frames, "seen"):
        engine.frames = _replaced("tower", engine.frames, new)
    left = kinds.keys() - new.keys()
    for i, span in enumerate(book.spans):
        parts = {
            part: read(name)
            for part in ("tokens", "deepstack")
            if (name := f"spans.{i}.{part}") in left
        }
        if parts:
            span.features = VisualFeatures(**parts) if len(parts) > 1 else parts["tokens"]
            left -= {f"spans.{i}.{part}" for part in parts}
    if left:
        raise InputError(f"{path}: arrays of no known place: {', '.join(sorted(left))}")


def _held(engine: Engine) -> dict[str, Any]:
    """The arrays of the cache, and of a tower that remembers, by name."""
    held = {"cache": engine.cache}
    if hasattr(engine.frames, "seen"):
        held["tower"] = engine.frames
    return {name: leaf for top, tree in held.items() for name, leaf in _named(top, tree)}


def _named(top: str, tree: Any) -> Iterator[tuple[str, Any]]:
    for keys, leaf in jax.tree.leaves_with_path(tree):
        yield (
            ".".join([top, *(str(getattr(key, "name", getattr(key, "idx", ""))) for key in keys)]),
            leaf,
        )


def _replaced(top: str, tree: Any, arrays: dict[str, Any]) -> Any:
    return jax.tree.unflatten(
        jax.tree.structure(tree), [arrays[name] for name, _ in _named(top, tree)]
    )


def _slots_axis(name: str, array: Any) -> int | None:
    """The axis of the language model's slots: sink, then ring."""
    if name.startswith(("cache.k", "cache.v")):
        return array.ndim - 2
    return 1 if name == "cache.positions" else None


def _of_row(name: str, array: Any, row: int, rows: int) -> np.ndarray:
    """One stream's part of a batch's array, on the host."""
    axis = 0
    if name.startswith(("cache.k", "cache.v")):
        axis = array.ndim - 4  # [*layers b k s h]
    elif name.startswith(("tower.k", "tower.v")):
        axis = array.ndim - 5  # [*layers b p n s h]
    if rows > 1:
        array = jax.lax.slice_in_dim(array, row, row + 1, axis=axis)
    return np.asarray(array)


def _parts(features: Any) -> dict[str, Any]:
    if isinstance(features, VisualFeatures):
        return {"tokens": features.tokens, "deepstack": features.deepstack}
    return {"tokens": features}


def _told(question: Question) -> dict[str, Any]:
    return dataclasses.asdict(question)


def _as_plain(array: np.ndarray) -> np.ndarray:
    """.npy has no bfloat16: its bits, as integers."""
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def _array(member: Any, kind: str, where: str) -> np.ndarray:
    try:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError("more bytes than it says")
    except ValueError as error:
        raise InputError(f"{where}: no array ({error})") from None
    if kind == "bfloat16" and array.dtype == np.uint16:
        array = array.view(np.dtype(jnp.bfloat16))
    if array.dtype.name != kind:
        raise InputError(f"{where}: is {array.dtype.name}, wanted {kind}")
    return array


def _config(model: VideoLM) -> dict[str, Any]:
    """The model's configuration as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(model.config), default=str))


def _check_model(model: VideoLM, wanted: dict[str, Any], path: Path) -> None:
    if (found := type(model).__name__) != wanted["class"]:
        raise InputError(f"{path}: a stream on a {wanted['class']}, found a {found}")
    for key, theirs, ours in _differences(wanted["config"], _config(model)):
        raise InputError(
            f"{path}: a stream on a model whose config has {key} {theirs}, found {ours}"
        )
    if _weights(model) != wanted["weights"]:
        raise InputError(
            f"{path}: a stream on other weights than these: restore it on the model that it was "
            "saved from"
        )


def _differences(wanted: Any, found: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name in sorted(wanted.keys() | found.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _differences(wanted.get(name), found.get(name), inner)
    elif wanted != found:
        yield key, wanted, found


@jax.jit
def _sampled(leaves: list) -> list:
    return [a[tuple(slice(None, None, max(n // 4, 1)) for n in a.shape)] for a in leaves]


def _weights(model: VideoLM) -> str:
    """A hash of a few numbers of every parameter: another step of training has another one."""
    digest = hashlib.sha256()
    for piece in _sampled(jax.tree.leaves(model)):
        array = np.asarray(piece)
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
