"""Where arrays live: the mesh, and the one table from logical axes to mesh axes.

Models say *what* a dimension is, at the place where it is born: ``axes(init, "embed", "mlp")``.
This file alone says *where* it lives.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from streamjax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor", "context")

# Logical axis -> mesh axes. Parameters shard `embed` over fsdp and the other side over tensor;
# activations shard rows over data and fsdp, and tokens over context.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
}


class Placement(NamedTuple):
    """Where one array lives; `copies` devices hold each byte of it."""

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    per_device: int
    copies: int


def make_mesh(
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """The device mesh; `data=-1` takes the devices that the other axes leave over.

    devices: to choose from (None: all of this run). Axes that multiply to fewer than there are take
    the first ones. Raises InputError when they need more.
    """
    among = jax.devices() if devices is None else devices
    count = len(among)
    rest = fsdp * tensor * context
    if data == -1:
        data = max(count // rest, 1)
    if data * rest > count:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} context={context} needs {data * rest} "
            f"devices, found {count}: lower them (mesh.data=-1 takes what the others leave over)"
        )
    # jax.make_mesh defaults to Explicit axes; this library is written for Auto.
    return jax.make_mesh(
        (data, fsdp, tensor, context),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * 4,
        devices=among[: data * rest],
    )


def axes(init: Callable, *names: str | None) -> Callable:
    """Tags the parameter that `init` creates with logical axes; needs no mesh."""
    return nnx.with_metadata(init, out_sharding=names, eager_sharding=False)


def spec_of(shape: tuple[int, ...], names: tuple[str | None, ...], mesh: Any) -> PartitionSpec:
    """Logical names -> PartitionSpec on `mesh`; a dimension that does not divide is replicated."""
    entries = []
    for size, name in zip(shape, names, strict=True):
        over = tuple(a for a in RULES[name] if mesh.shape[a] > 1) if name else ()
        ways = 1
        for axis in over:
            ways *= mesh.shape[axis]
        entries.append(over if over and size % ways == 0 else None)
    return PartitionSpec(*entries)


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes that an entry of a PartitionSpec names, in order."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's layout; the identity when no mesh is set (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(x.shape, names, mesh))


def shardings_of(abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The NamedSharding of every leaf of a tree of (abstract) nnx variables.

    Variables carry their logical axes as `out_sharding`; leaves without any are replicated.
    Optimizer moments made by optax from such a tree carry them too, and so follow the parameters.
    """

    def of(leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        names = leaf.get_metadata().get("out_sharding")
        shape = getattr(leaf.get_value(), "shape", None)
        if shape is None:  # optax's placeholder for a parameter that another group holds
            return leaf
        spec = spec_of(shape, tuple(names), mesh) if names else PartitionSpec()
        return leaf.replace(NamedSharding(mesh, spec))

    return jax.tree.map(of, abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))


def placements(tree: Any, shardings: Any, prefix: str = "") -> list[Placement]:
    """One row for every array of a tree (or shape of one), under its path.

    shardings: a tree of the same structure with a NamedSharding for each array, or one for all.
    """
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    rows = []
    for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings), strict=True):
        # The names of a path without the `.value` that nnx puts around each array.
        parts = (str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        name = "/".join([*filter(None, [prefix]), *(p for p in parts if p != "value")])
        rows.append(placement(name, leaf.shape, leaf.dtype, where))
    return rows


def placement(path: str, shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> Placement:
    """The row of one array of this shape."""
    item = jax.dtypes.itemsize_bits(dtype) // 8
    whole, own = math.prod(shape) * item, math.prod(where.shard_shape(shape)) * item
    devices = math.prod(where.mesh.shape.values())
    copies = own * devices // whole if whole else devices
    return Placement(path, tuple(shape), where.spec, whole, own, copies)


def placement_table(rows: Iterable[Placement]) -> str:
    """The rows as text: path, shape, spec, bytes, bytes per device, copies of each byte."""
    lines = [("path", "shape", "spec", "bytes", "per device", "copies")]
    for row in rows:
        spec = ", ".join("+".join(mesh_axes(entry)) or "-" for entry in row.spec)
        shape = " ".join(map(str, row.shape))
        counts = (f"{row.bytes:,}", f"{row.per_device:,}", str(row.copies))
        lines.append((row.path, f"[{shape}]", f"({spec})", *counts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
