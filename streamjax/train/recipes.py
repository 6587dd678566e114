"""Recipes: files that say `def config() -> TrainConfig`, found by name, changed by `key=value`."""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib.resources
import inspect
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from streamjax.errors import InputError
from streamjax.train.config import TrainConfig

C = TypeVar("C")

_FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def load_recipe(
    name: str | Path, overrides: Iterable[str] = (), *, run: str | Path | None = None,
    **arguments: Any,
) -> TrainConfig:  # fmt: skip
    """The TrainConfig of a recipe file, or of the shipped recipe of that name, with overrides.

    `arguments` go to the recipe's `config`, whose parameters all have defaults; so does an override
    without a dot that bears a parameter's name (`base=path`). run: the run's folder, for a recipe
    whose `config` has a parameter of that name, because it writes there.

    Raises FileNotFoundError when there is no such file or name; InputError when the file does not
    define `config()`, has no parameter for an argument, or an override is wrong (`override` tells
    how).
    """
    module = load_module(name)
    make = getattr(module, "config", None)
    if make is None:
        raise InputError(f"{module.__file__}: wanted `def config() -> TrainConfig`, found none")
    kinds = get_type_hints(make)
    known = inspect.signature(make).parameters
    for key in arguments:
        if key not in known:
            raise InputError(
                f"recipe {name} takes no {key!r}, wanted one of: {', '.join(known) or 'nothing'}"
            )
    if run is not None and "run" in known:
        arguments["run"] = run
    rest = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or "." in key or (key not in known and key in _FIELDS):
            rest.append(text)
        elif key == "run":
            raise InputError(f"override {text!r}: the run's folder is said as --run {value}")
        elif key in known:
            arguments[key] = _parsed(value, kinds.get(key, str), key)
        else:
            raise InputError(f"override {key!r}: {_unknown(key, [*known, *_FIELDS])}")
    config = make(**arguments)
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"{module.__file__}: wanted `def config() -> TrainConfig`, found {config!r}"
        )
    return override(config, rest)


def load_module(name: str | Path) -> types.ModuleType:
    """A recipe file run as a module of its own; recipes build on one another through it."""
    path = find_recipe(name)
    # Run, not imported: no package knows it, so workers get its functions by value.
    module = types.ModuleType(f"recipe_{path.stem}")
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def find_recipe(name: str | Path) -> Path:
    """A path as it is; a name in configs/ beside the package, or among the shipped recipes."""
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no such recipe file")
        return path
    package = Path(str(importlib.resources.files("streamjax")))
    folders = [Path("configs"), package / "_configs", package.parent / "configs"]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.py")})
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
    raise FileNotFoundError(f"no recipe is called {name!r}: {hint}")


def override(config: C, overrides: Iterable[str]) -> C:
    """The config with `optim.lr=1e-5`-like changes, each checked against its field's type.

    Raises InputError for a text without `=`, an unknown key (the nearest one is named), a key that
    is a function, and a value of another type.
    """
    changed: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"override {text!r} has no '=', wanted key=value")
        _note(changed, config, key.split("."), value, key)
    return _replaced(config, changed)


def describe(value: Any) -> Any:
    """Everything that decided a run as plain JSON: the same for the same recipe, anywhere.

    Functions are told by module and name, partial ones with their arguments, arrays and whatever
    has a long repr by a hash.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return named
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [describe(item) for item in items]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, functools.partial):
        named = {"call": describe(value.func)}
        return {**named, "args": describe(value.args), "kwargs": describe(value.keywords)}
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {_digest(np.ascontiguousarray(value).tobytes())}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return text if len(text) <= 200 else f"{text[:80]} ... {_digest(text.encode())}"


def changes(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The keys at which two descriptions differ, with both values: what a resume must explain."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line
            for key in keys
            for line in changes(before.get(key), after.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if before == after else [f"{prefix}={after!r} (was {before!r})"]


def _digest(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"


def _note(changed: dict[str, Any], config: Any, keys: list[str], value: str, full: str) -> None:
    """Adds one override to the tree of changes."""
    if isinstance(config, Mapping):
        _note_tasks(changed, config, keys, value, full)
        return
    names = [f.name for f in dataclasses.fields(config)]
    if keys[0] not in names:
        raise InputError(f"override {full!r}: {_unknown(keys[0], names)}")
    old = getattr(config, keys[0])
    parts = _parts(old)
    if len(keys) > 1:
        if not parts:
            raise InputError(f"override {full!r}: {keys[0]!r} has no parts")
        _note(changed.setdefault(keys[0], {}), old, keys[1:], value, full)
    elif parts:
        told = ", ".join(f"{full}.{part}" for part in parts)
        raise InputError(f"override {full!r} names a group, wanted one of {told}")
    else:
        changed[keys[0]] = _parsed(value, get_type_hints(type(config))[keys[0]], full)


def _note_tasks(
    changed: dict[str, Any], config: Mapping[str, Any], keys: list[str], value: str, full: str
) -> None:
    """One override of one task's part, or, when no task is named, of the part of each."""
    named = keys[0] in config
    tasks, rest = ([keys[0]], keys[1:]) if named else (list(config), keys)
    known = _parts(config[tasks[0]])
    if not rest:
        told = ", ".join(f"{full}.{part}" for part in known)
        raise InputError(f"override {full!r} names a group, wanted one of {told}")
    if not named and rest[0] not in known:
        raise InputError(f"override {full!r}: {_unknown(rest[0], [*config, *known])}")
    for task in tasks:
        _note(changed.setdefault(task, {}), config[task], rest, value, full)


def _parts(value: Any) -> list[str]:
    """The keys under which something holds what an override may name; none for a plain value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    if isinstance(value, Mapping) and all(map(_parts, value.values())):
        return list(value)
    return []


def _replaced(config: Any, changed: Mapping[str, Any]) -> Any:
    """All changes at once: sizes may only fit each other together."""
    if isinstance(config, Mapping):
        return {k: _replaced(v, changed[k]) if k in changed else v for k, v in config.items()}
    values = {
        key: _replaced(getattr(config, key), value) if isinstance(value, dict) else value
        for key, value in changed.items()
    }
    return dataclasses.replace(config, **values)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {key!r}, {hint}"


def _parsed(text: str, kind: Any, key: str) -> Any:
    """`text` as a value of the annotated type. Raises InputError otherwise."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        if option is type(None) and text.lower() == "none":
            return None
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option is str:
            return text
        if get_origin(option) is Literal and text in get_args(option):
            return text
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if get_origin(option) is tuple:
            return _listed(text, get_args(option)[0], key)
    if all(callable(o) and not isinstance(o, type) and get_origin(o) is not Literal
           for o in options):  # fmt: skip
        raise InputError(f"override {key}={text!r}: {key!r} is a function: change it in the recipe")
    wanted = " or ".join(_told(option) for option in options)
    raise InputError(f"override {key}={text!r}: wanted {wanted}")


def _listed(text: str, item: Any, key: str) -> tuple:
    """`a,b` or `("a", "b")`; empty is the empty tuple."""
    try:
        values = ast.literal_eval(text)
        values = values if isinstance(values, tuple | list) else (values,)
    except (ValueError, SyntaxError):
        values = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(_parsed(str(value), item, key) for value in values)


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))
