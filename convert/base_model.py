"""A base model's folder made ready: any layout of names in, the hub's out. No torch needed."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import script

import streamjax as sj
from streamjax.data.tokenizer import copy_with_states, embedding_rows, load_tokenizer
from streamjax.errors import InputError
from streamjax.models.vocabulary import grow
from streamjax.weights.config import read_config


def main(doc: str, model_types: tuple[str, ...]) -> None:
    """The command of a family: reads `source`, writes `target`.

    doc: the help. model_types: what config.json may say.
    """
    parser = script.parser(doc)
    parser.add_argument("source", type=Path, help="a Hugging Face folder, in any of its layouts")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--states", action="store_true", help="add Streamo's three state tokens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args()
    convert(args.source, args.target, model_types, states=args.states, dtype=args.dtype)
    print(args.target)


def convert(
    source: Path,
    target: Path,
    model_types: tuple[str, ...],
    *,
    states: bool = False,
    dtype: str | None = None,
) -> None:
    """Writes `source` to `target` in the hub's layout and style.

    states: registers `</Silence>`, `</Standby>` and `</Response>` in the tokenizer and adds rows of
    embeddings where it needs more than there are (InternVL3: 151674 -> 151680; Qwen's suffice).
    """
    found = read_config(source / "config.json").get("model_type")
    if found not in model_types:
        raise InputError(
            f"{source / 'config.json'}: model_type is {found!r}, wanted {' or '.join(model_types)}"
        )
    target = script.fresh(target)
    with tempfile.TemporaryDirectory() as words:
        script.say(f"reading {source}")
        model = sj.load(source, dtype=dtype)
        if states:
            if model.assets.tokenizer is None:
                raise FileNotFoundError(f"{source}: no tokenizer, wanted one to add the states to")
            for file in source.iterdir():  # copy_with_states takes those that it rewrites
                if file.is_file() and "safetensors" not in file.name:
                    shutil.copyfile(file, Path(words) / file.name)
            ids = copy_with_states(source, words)
            rows = embedding_rows(model.config.decoder.vocab_size, len(load_tokenizer(words)))
            script.say(f"state tokens {ids}; {model.config.decoder.vocab_size} -> {rows} rows")
            model = grow(model, rows)
            model.assets = dataclasses.replace(model.assets, tokenizer=words)
        script.say(f"writing {target}")
        sj.save(model, target)
