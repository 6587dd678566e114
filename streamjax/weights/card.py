"""README.md of a saved folder: where the weights come from, how to load them, measured parity.

Two parts of the page are ours: keys at its top that are not there yet, and the text between two
marks. Whatever else somebody has written into it stays.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamjax import __version__
from streamjax.errors import InputError

FILE = "README.md"
BEGIN, END = "<!-- streamjax: written anew by every save -->", "<!-- streamjax: end -->"

# The keys at the top that stay true wherever the weights go.
_HERITABLE = ("license", "license_name", "license_link", "base_model", "language", "datasets")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/[^/]+/?$")  # huggingface_hub's cache
# model_type -> how transformers loads it; of other families only the original's code does.
_TRANSFORMERS = ("qwen2_5_vl", "qwen3_vl", "internvl")


def origin(folder: Path, config: Mapping[str, Any]) -> str | None:
    """What a folder says of its weights' licence and ancestry: lines of YAML, None if nothing.

    base_model: the hub's name of the folder, where it was downloaded by name; else what its card
    says; else `_name_or_path` of config.json, where that is a name of the hub.
    """
    found = _keys(_split(_read(folder / FILE))[0])
    kept = {key: found[key] for key in _HERITABLE if key in found}
    if snapshot := _SNAPSHOT.search(folder.absolute().as_posix()):
        kept["base_model"] = f"base_model: {snapshot[1]}/{snapshot[2]}\n"
    elif "base_model" not in kept and _HUB_ID.fullmatch(str(config.get("_name_or_path"))):
        kept["base_model"] = f"base_model: {config['_name_or_path']}\n"
    return "".join(kept.values()) or None


def page(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    origin: str | None,
) -> str:
    """README.md for `folder`, starting from the one that is there.

    tensors: anything with shape and dtype. origin: of the weights, as the function above gives it.
    Parity that was measured on other weights is dropped; `with_parity` says it anew.
    """
    top, body = _split(_read(folder / FILE))
    keys = _keys(top)
    by_transformers = config.get("model_type") in _TRANSFORMERS
    ours = _keys(origin or "") | {
        "library_name": f"library_name: {'transformers' if by_transformers else 'streamjax'}\n",
        "tags": "tags:\n- streamjax\n",
    }
    if by_transformers:
        ours["pipeline_tag"] = "pipeline_tag: image-text-to-text\n"
    top += "".join(text for key, text in ours.items() if key not in keys)
    section = _section(folder.name, config, tensors, keys | ours)
    start, end = body.find(BEGIN), body.find(END)
    if 0 <= start < end:
        body = body[:start] + section + body[end + len(END) :]
    elif body.strip():
        body = body.rstrip("\n") + f"\n\n{section}\n"
    else:
        body = f"\n# {folder.name}\n\n{section}\n"
    return f"---\n{top}---\n{body}"


def with_parity(text: str, parity: Sequence[str]) -> str:
    """A page that `page` has written, with lines of Markdown that say what was measured and how.

    Raises InputError when there is no part of ours in it.
    """
    start, end = text.find(BEGIN), text.find(END)
    if not 0 <= start < end:
        raise InputError(f"{FILE}: no line {BEGIN!r}: save the folder with streamjax first")
    section = text[start:end].partition(_PARITY)[0].rstrip("\n")
    return "\n".join([text[:start] + section, "", _PARITY, "", *parity, "", text[end:]])


_PARITY = "## Parity"


def _section(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    keys: Mapping[str, str],
) -> str:
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    license_ = (
        "see the top of this page" if "license" in keys else "not stated where they came from"
    )
    base = "see the top of this page" if "base_model" in keys else "not known"
    classes = config.get("architectures") or ["unknown class"]
    lines = [
        BEGIN,
        f"{classes[0]}: {len(tensors)} tensors, {count:,} numbers ({kinds}), written by streamjax "
        f"{__version__}. Licence: {license_}. Base model: {base}.",
        "",
        "```python",
        "import streamjax as sj",
        "",
        f'model = sj.load("{name}")',
        "```",
    ]
    if config.get("model_type") in _TRANSFORMERS:
        lines += [
            "",
            "```python",
            "from transformers import AutoModelForImageTextToText",
            "",
            f'model = AutoModelForImageTextToText.from_pretrained("{name}")',
            "```",
        ]
    else:
        lines += ["", f"The original's code loads the folder too, as `{classes[0]}`."]
    return "\n".join([*lines, "", END])


def _read(path: Path) -> str:
    # Bytes that are not UTF-8 go through unchanged: `folders` writes with the same handler.
    return path.read_text("utf-8", "surrogateescape") if path.is_file() else ""


def _split(text: str) -> tuple[str, str]:
    """The lines between the two `---` at the top, and all that follows."""
    found = re.match(r"---[ \t]*\r?\n(.*?^)---[ \t]*(?:\r?\n|$)", text, re.DOTALL | re.MULTILINE)
    return (found[1], text[found.end() :]) if found else ("", text)


def _keys(top: str) -> dict[str, str]:
    """Top-level keys of YAML -> the lines that say them, as they stand."""
    blocks = re.split(r"^(?=[A-Za-z_][\w-]*[ \t]*:)", top, flags=re.MULTILINE)
    named = [(re.match(r"([A-Za-z_][\w-]*)[ \t]*:", block), block) for block in blocks]
    return {key[1]: block for key, block in named if key}
