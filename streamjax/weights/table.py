"""The engine of the rule tables: tensors of a file <-> parameters of a model, strictly both ways.

A family's table is a list of rules, one per kind of tensor. Loading and saving read the same
list, so what one accepts the other writes. Anything that no rule takes is an error.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from streamjax.errors import InputError
from streamjax.sharding import shardings_of
from streamjax.weights.tensors import Lazy, Tensor, aligned, all_finite, rows

M = TypeVar("M", bound=nnx.Module)
Bounds = tuple[tuple[int, int], ...]  # (start, stop) along every axis

# How much of a tensor is in memory at a time while it is put into place, at least 64 rows: bands
# of fewer rows make transposing slow, and so do blocks that leave the processor's cache.
_BLOCK = 1 << 20
_BAND = 64


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor of the file looks as a parameter, and back; both on numpy arrays.

    order: where `load` does nothing but permute axes, the same permutation of a sequence with one
    item an axis (its own inverse). Such a tensor is read and put into place piece by piece; any
    other is read whole.
    """

    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]
    order: Callable[[Sequence], Sequence] | None = None


SAME = Form(lambda a: a, lambda a: a, lambda axes: axes)
# torch's Linear stores (out, in)
TRANSPOSED = Form(np.transpose, np.transpose, lambda axes: axes[::-1])


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


def linear(name: str, path: str, bias: bool = True) -> list[Rule]:
    """The rules of a linear layer under torch's names."""
    kernel = Rule(f"{name}.weight", f"{path}.kernel", TRANSPOSED)
    return [kernel, Rule(f"{name}.bias", f"{path}.bias")] if bias else [kernel]


def norm(name: str, path: str, bias: bool = True) -> list[Rule]:
    """The rules of a LayerNorm under torch's names; without bias, of an RMSNorm."""
    scale = Rule(f"{name}.weight", f"{path}.scale")
    return [scale, Rule(f"{name}.bias", f"{path}.bias")] if bias else [scale]


def load(
    abstract: nnx.State,
    rules: Iterable[Rule],
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    prefix: str = "",
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> nnx.State:
    """Fills a state of shapes with the tensors; the caller decides what may be left over.

    abstract: the model's state as `nnx.eval_shape` gives it. source: the file, for messages.
    prefix: stands before every name. dtype: None keeps each tensor's own. mesh: places every
    parameter by the rules of streamjax.sharding, and only what this host's devices hold is read;
    None is the default device.
    In memory at any time: what has been placed, and a part of one tensor (all of one where its
    form is more than a permutation).

    Raises InputError when a tensor is missing, has another shape than the model's, is not of a
    float type, or holds values that are not finite.
    """
    flat = dict(nnx.to_flat_state(abstract))
    shardings = dict(nnx.to_flat_state(shardings_of(abstract, mesh))) if mesh else {}
    filled: dict[Any, Any] = {}
    for rule, path, names in _pairs(flat, rules):
        shape = flat[path].get_value().shape
        where = shardings[path].get_value() if mesh else None
        wanted = _shape_in_file(rule, shape)
        found = {prefix + n: _take(tensors, prefix + n, wanted, source) for n in names}
        filled[path] = flat[path].replace(_place(rule, shape, where, found, dtype, source))
    return nnx.from_flat_state(filled)


def fill(
    model: M,
    rules: Sequence[Rule],
    tensors: Mapping[str, Tensor],
    *,
    source: Any,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> M:
    """A model of shapes with the values of `load`, where every tensor must have its place.

    Raises InputError as `load` does, and for a tensor that no rule takes.
    """
    graph, shapes = nnx.split(model)
    known = expected(shapes, rules)
    refuse((name for name in tensors if name not in known), known, source)
    state = load(shapes, rules, tensors, source=source, dtype=dtype, mesh=mesh)
    return computing_as_kept(nnx.merge(graph, state))


def computing_as_kept(model: M) -> M:
    """The same model, told to compute in the dtype of its parameters, of several in the widest."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    kept = jnp.result_type(*(leaf.dtype for leaf in leaves))
    for _, part in nnx.iter_modules(model):
        if hasattr(part, "dtype"):
            part.dtype = kept  # pyrefly: ignore[missing-attribute]
    return model


def dump(state: nnx.State, rules: Iterable[Rule], *, prefix: str = "") -> dict[str, Lazy]:
    """The tensors of a state under their names in the file: the inverse of `load`.

    Each is cut out of its parameter, and fetched from its devices, when it is asked for.
    """
    flat = dict(nnx.to_flat_state(state))
    tensors = {}
    for rule, path, names in _pairs(flat, rules):
        value = flat[path].get_value()
        shape = _shape_in_file(rule, value.shape)
        for i, name in enumerate(names):
            layer = i if "{i}" in rule.name else None
            tensors[prefix + name] = Lazy(shape, value.dtype, _cut(value, rule, layer))
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


def _take(tensors: Mapping[str, Tensor], name: str, shape: tuple, source: Any) -> Tensor:
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
    if not jnp.issubdtype(tensor.dtype, np.floating):
        raise InputError(f"{source}: tensor {name} has dtype {tensor.dtype}, wanted a float type")
    return tensor


def _shape_in_file(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    one = shape[1:] if "{i}" in rule.name else shape
    return rule.form.save(np.broadcast_to(np.float32(0), one)).shape


def _place(
    rule: Rule,
    shape: tuple[int, ...],
    where: Sharding | None,
    tensors: Mapping[str, Tensor],
    dtype: Any,
    source: Any,
) -> jax.Array:
    """One parameter, each part of it filled from the tensors of its layers.

    Devices that hold the same part are given the same buffer; on a CPU it becomes the array.
    """
    if dtype is None:
        kinds = {jax.dtypes.canonicalize_dtype(t.dtype): name for name, t in tensors.items()}
        try:
            dtype = jnp.result_type(*kinds)
        except ValueError:  # float8 and anything else
            told = ", ".join(f"{name} of {kind}" for kind, name in kinds.items())
            raise InputError(
                f"{source}: tensors {told}: no dtype holds both; load with one (dtype=)"
            ) from None
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    places: dict[Any, Bounds] = {None: tuple((0, n) for n in shape)}
    if where is not None:
        places = {
            device: tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
            for device, index in where.addressable_devices_indices_map(shape).items()
        }
    buffers = {
        bounds: aligned(tuple(stop - start for start, stop in bounds), dtype)
        for bounds in set(places.values())
    }
    for i, (name, tensor) in enumerate(tensors.items()):
        parts = list(buffers.items())
        if "{i}" in rule.name:
            parts = [
                (bounds[1:], buffer[i - bounds[0][0], ...])
                for bounds, buffer in parts
                if bounds[0][0] <= i < bounds[0][1]
            ]
        for piece in _fill(parts, tensor, rule.form):
            if not all_finite(piece):
                raise InputError(f"{source}: tensor {name} holds values that are not finite")
    arrays = [jax.device_put(buffers[bounds], device) for device, bounds in places.items()]
    # Waits, because a buffer must stay until the device has it, and many would add up.
    jax.block_until_ready(arrays)
    if where is None:
        return arrays[0]
    return jax.make_array_from_single_device_arrays(shape, where, arrays, dtype=dtype)


def _fill(
    parts: list[tuple[Bounds, np.ndarray]], tensor: Tensor, form: Form
) -> Iterator[np.ndarray]:
    """Copies a tensor into parts (bounds and buffer) of a parameter; yields what it has read."""
    if form.order is None or not tensor.shape:
        whole = np.asarray(tensor)
        value = form.load(whole)
        for bounds, buffer in parts:
            buffer[...] = value[tuple(slice(*b) for b in bounds)]
        yield whole
        return
    # The same parts with their axes as the file has them, the first one apart.
    ordered = [(*form.order(bounds), form.save(buffer)) for bounds, buffer in parts]
    for begin, end in _bands(tensor):
        reach = [(max(begin, part[0][0]), min(end, part[0][1])) for part in ordered]
        held = [(start, stop) for start, stop in reach if start < stop]
        if not held:
            continue
        first, last = min(start for start, _ in held), max(stop for _, stop in held)
        block = rows(tensor, first, last)
        for (start, stop), ((top, _), *others, buffer) in zip(reach, ordered, strict=True):
            if start < stop:
                index = (slice(start - first, stop - first), *(slice(*b) for b in others))
                buffer[start - top : stop - top] = block[index]
        yield block


def _bands(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """(start, stop) along the first axis, so that a band stays in the processor's cache."""
    length = tensor.shape[0]
    step = max(_BLOCK * length // max(tensor.nbytes, 1), _BAND)
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _cut(value: Any, rule: Rule, layer: int | None) -> Callable[[], np.ndarray]:
    """Makes one tensor of the file from a parameter, wherever its parts are."""

    def make() -> np.ndarray:
        if not isinstance(value, jax.Array):
            return rule.form.save(value if layer is None else value[layer])
        if not value.is_fully_addressable:
            raise ValueError(
                f"{rule.path} is spread over several processes: save a run's checkpoint"
            )
        shape = value.shape if layer is None else value.shape[1:]
        order = rule.form.order
        out = np.empty(shape if order is None else order(shape), value.dtype)
        for shard in value.addressable_shards:
            if shard.replica_id:
                continue
            index, part = shard.index, shard.data
            if next(iter(part.devices())).platform == "cpu":
                part = np.asarray(part)  # a view, where slicing on the device would copy
            if layer is not None:
                start, stop, _ = index[0].indices(value.shape[0])
                if not start <= layer < stop:
                    continue
                index, part = index[1:], part[layer - start]
            if order is None or not shape:
                out[index] = part
                continue
            # Straight into the file's order: this copy is the only one.
            region, part = out[tuple(order(index))], rule.form.save(np.asarray(part))
            for start, stop in _bands(region):
                region[start:stop] = part[start:stop]
        return rule.form.save(out) if order is None else out

    return make
