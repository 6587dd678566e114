"""Imports flow one way (ARCHITECTURE.md): each room lists what it may import, and nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamjax"

EVERYTHING = ("",)
# Room -> the modules of ours that it may import, itself and `errors` aside. A name allows what
# lies under it, so `data.video` allows less than `data`.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "__init__": EVERYTHING,  # hands names on lazily
    "__main__": ("cli",),
    "errors": (),
    "sharding": (),
    "ops": ("sharding",),
    "data": (),
    "models": ("ops", "sharding", "data.processors", "data.positions"),
    "weights": ("models", "ops", "sharding", "data.processors"),
    "losses": ("ops", "sharding"),
    "checkpoint": ("sharding",),
    "folders": ("weights", "models", "checkpoint", "sharding", "data"),
    "train": ("models", "losses", "data", "sharding", "checkpoint", "weights", "folders"),
    "stream": ("models", "ops", "sharding", "data.dialogue", "data.chat", "data.tokenizer",
               "data.processors", "data.video"),
    "evals": ("stream", "models", "data"),
    "bench": ("stream", "train", "models", "ops", "sharding", "data"),
    "fit": ("train", "stream", "losses", "ops", "sharding"),
    "demo": EVERYTHING,
    "lmms_plugin": EVERYTHING,  # another program's way into ours
    "ablate": EVERYTHING,
    "cli": EVERYTHING,
    "verbs": EVERYTHING,
}  # fmt: skip

# Room -> packages of others that it never imports. No room imports torch, nor the folders beside
# the library.
OUTSIDE = ("torch", "torchvision", "configs", "launch", "convert", "benchmarks", "tests")
NEVER: dict[str, tuple[str, ...]] = {
    "ops": ("flax", "optax", "orbax", "grain"),
    "models": ("optax", "orbax", "grain"),
    "stream": ("optax", "orbax", "grain"),
    "data": ("jax", "jaxlib", "flax", "optax", "orbax", "chex"),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module or name that the file imports, in functions too; typing-only blocks aside."""
    package = ("streamjax", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += [node.module] if node.module else []
            found.update(".".join([*base, name.name]) for name in node.names)
        todo.extend(ast.iter_child_nodes(node))
    return found


def under(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file_imports_only_what_its_room_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[room]
    for name in sorted(imports_of(path)):
        if under(name, "streamjax"):
            inner = name.removeprefix("streamjax").removeprefix(".")
            fine = allowed is EVERYTHING or any(
                under(inner, root) for root in (room, "errors", "__version__", *allowed)
            )
            assert fine, f"{room} may import {allowed or 'nothing of ours'}, not {name}"
        else:
            banned = [b for b in (*OUTSIDE, *NEVER.get(room, ())) if under(name, b)]
            assert not banned, f"{room} never imports {banned[0]}, found {name}"


def test_the_walker_sees_relative_lazy_and_guarded_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "data" / "x.py"
    file.parent.mkdir()
    file.write_text(
        "from .. import train\nfrom .video import probe\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import av\n"
        "def f():\n    import jax.numpy as jnp\n"
    )
    assert imports_of(file) == {
        "streamjax.train", "streamjax.data.video.probe", "av", "jax.numpy"
    }  # fmt: skip


def fresh(code: str) -> str:
    """Runs `code` in an interpreter of its own, where nothing has been imported yet."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_data_workers_never_pay_for_jax():
    """Grain takes jax when it is there, so the whole room is also imported where it is not."""
    names = [
        ".".join(("streamjax", *p.relative_to(PACKAGE).with_suffix("").parts))
        for p in FILES
        if room_of(p) == "data"
    ]
    every = ", ".join(n.removesuffix(".__init__") for n in names)
    loaded = fresh("import sys, streamjax.data; print('jax' in sys.modules)")
    assert loaded.strip() == "False"
    fresh(f"import sys; sys.modules['jax'] = sys.modules['flax'] = None; import {every}")


def test_importing_streamjax_is_free_and_its_names_are_known():
    heavy = "('jax', 'flax', 'numpy', 'transformers', 'av', 'torch')"
    loaded = fresh(f"import sys, streamjax; print([m for m in {heavy} if m in sys.modules])")
    assert loaded.strip() == "[]"
    assert set(fresh("import streamjax; print(*dir(streamjax))").split()) >= {
        "Stream", "load", "save", "video", "losses", "data"
    }  # fmt: skip
