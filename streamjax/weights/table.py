"""The engine of the rule tables: tensors of a file <-> parameters of a model, strictly both ways.

A family's table is a list of rules, one per kind of tensor. Loading and saving read the same
list, so what one accepts the other writes. Anything that no rule takes is an error.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from streamjax.errors import InputError
from streamjax.sharding import shardings_of


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor of the file looks as a parameter, and back; both on numpy arrays."""

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda a: a, lambda a: a)
TRANSPOSED = Form(np.transpose, np.transpose)  # torch's Linear stores (out, in)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor name and one parameter path; with "{i}" in the name, one tensor per layer.

    Layers are stacked: the parameter leads with the depth, and slice i is the tensor of layer i.
    """

    name: str
    path: str
    form: Form = SAME

    def names(self, depth: int) -> list[str]:
        if "{i}" not in self.name:
            return [self.name]
        return [self.name.replace("{i}", str(i)) for i in range(depth)]


def load(
    abstract: nnx.State,
    rules: Iterable[Rule],
    tensors: Mapping[str, np.ndarray],
    *,
    source: Any,
    prefix: str = "",
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> nnx.State:
    """Fills a state of shapes with the tensors; the caller decides what may be left over.

    abstract: the model's state as `nnx.eval_shape` gives it. source: the file, for messages.
    prefix: stands before every name. dtype: None keeps each tensor's own.
    Raises InputError when a tensor is missing, has another shape than the model's, is not of a
    float type, or holds values that are not finite.
    """
    flat = dict(nnx.to_flat_state(abstract))
    shardings = dict(nnx.to_flat_state(shardings_of(abstract, mesh))) if mesh else {}
    filled: dict[Any, Any] = {}
    for rule, path, names in _pairs(flat, rules):
        shape = flat[path].get_value().shape
        stacked = "{i}" in rule.name
        one = shape[1:] if stacked else shape
        wanted = rule.form.save(np.broadcast_to(np.float32(0), one)).shape
        parts = []
        for name in names:
            tensor = _take(tensors, prefix + name, wanted, source)
            parts.append(rule.form.load(tensor if dtype is None else tensor.astype(dtype)))
        value = np.stack(parts) if stacked else np.array(parts[0])
        if value.shape != shape:
            raise AssertionError(f"rule {rule.name}: {value.shape} does not fit {path} {shape}")
        where = shardings[path].get_value() if mesh else None
        filled[path] = flat[path].replace(jax.device_put(value, where))
    return nnx.from_flat_state(filled)


def dump(state: nnx.State, rules: Iterable[Rule], *, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a state under their names in the file: the inverse of `load`."""
    flat = dict(nnx.to_flat_state(state))
    tensors = {}
    for rule, path, names in _pairs(flat, rules):
        value = np.asarray(flat[path].get_value())
        for name, part in zip(names, value if "{i}" in rule.name else [value], strict=True):
            tensors[prefix + name] = rule.form.save(part)
    return tensors


def expected(abstract: nnx.State, rules: Iterable[Rule], *, prefix: str = "") -> set[str]:
    """Every name that `load` will take."""
    flat = dict(nnx.to_flat_state(abstract))
    return {prefix + name for _, _, names in _pairs(flat, rules) for name in names}


def refuse(names: Iterable[str], wanted: Iterable[str], source: Any) -> None:
    """Raises InputError for the first name that nothing takes, with the nearest one that would."""
    for name in sorted(names):
        near = difflib.get_close_matches(name, list(wanted), n=1)
        hint = f"; nearest known name: {near[0]}" if near else ""
        raise InputError(f"{source}: tensor {name} belongs to no part of the model{hint}")


def _pairs(flat: Mapping[tuple, Any], rules: Iterable[Rule]):
    """(rule, path, names) for each rule; the table must name every parameter exactly once."""
    left = set(flat)
    for rule in rules:
        path = tuple(rule.path.split("."))
        if path not in left:
            raise AssertionError(f"rule {rule.name}: no parameter {rule.path}, or named twice")
        left.remove(path)
        depth = flat[path].get_value().shape[0] if "{i}" in rule.name else 1
        yield rule, path, rule.names(depth)
    if left:
        missing = ", ".join(".".join(map(str, path)) for path in sorted(left))
        raise AssertionError(f"no rule for the parameters {missing}")


def _take(tensors: Mapping[str, np.ndarray], name: str, shape: tuple, source: Any) -> np.ndarray:
    if name not in tensors:
        near = difflib.get_close_matches(name, list(tensors), n=1)
        hint = f"; nearest name found: {near[0]}" if near else ""
        raise InputError(f"{source}: tensor {name} is missing, wanted shape {list(shape)}{hint}")
    tensor = tensors[name]
    if tensor.shape != shape:
        raise InputError(
            f"{source}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)} "
            "by config.json"
        )
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        raise InputError(f"{source}: tensor {name} has dtype {tensor.dtype}, wanted a float type")
    if not np.isfinite(tensor).all():
        raise InputError(f"{source}: tensor {name} holds values that are not finite")
    return tensor
