"""Tokenizers: loading a model's own, and building a small one for a small world.

transformers is imported on first use, and only its tokenizers.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamjax.data.chat import END, START
from streamjax.data.dialogue import STATES, time_tag
from streamjax.errors import InputError

PAD = "<|endoftext|>"
# What surrounds every turn, as one token each; `<|im_end|>` stays a token of its own after an
# answer, where it is a label.
_TURN_MARKS = (f"\n{START}user\n", f"{END}\n{START}assistant\n", f"{START}system\n")

# Words carry the space before them, numbers do not: " red" is one piece and " 12" two, so that a
# number is the same token in a time tag and in an answer.
_SPLIT = r"s-(?=\p{N})|s>\n| ?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]|\n|\s+(?!\S)|\s+"


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a Hugging Face folder, through transformers.

    Raises FileNotFoundError when the folder has none, and InputError when it cannot be read.
    """
    folder = Path(folder)
    names = ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(f"{folder}: no tokenizer, wanted one of {', '.join(names)}")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").is_file():
            # Not AutoTokenizer: it reads config.json beside it, whose model_type may be ours alone.
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the Rust reader raises bare Exception
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: the tokenizer cannot be read: {line}") from error


def copy_with_states(source: str | Path, folder: str | Path) -> tuple[int, int, int]:
    """Copies the tokenizer of a base model to `folder`, the three state tokens registered.

    Returns their ids, in the order of `STATES`: the first free ones (Qwen2.5-VL: 151665 and on), or
    those that they have already. What else lies in `source` is not copied; the two may be the same
    folder. The model needs `embedding_rows` rows of embeddings then.

    Raises FileNotFoundError without tokenizer.json, and InputError when it cannot be read.
    """
    from tokenizers import AddedToken, Tokenizer

    source, folder = Path(source), Path(folder)
    file = source / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing, wanted a Hugging Face tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(file))
        beside = {name: json.loads((source / name).read_text("utf-8"))
                  for name in _BESIDE if (source / name).is_file()}  # fmt: skip
    except Exception as error:  # the Rust reader raises bare Exception
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: the tokenizer cannot be read: {line}") from error
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in STATES])
    ids: dict[str, Any] = {s: tokenizer.token_to_id(s) for s in STATES}

    # What transformers reads beside it says the same again.
    for name, config in beside.items():
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] |= {str(i): _added(s) for s, i in ids.items()}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            known = config.get(key)
            if isinstance(known, list):
                told = [k["content"] if isinstance(k, dict) else k for k in known]
                config[key] = known + [s for s in STATES if s not in told]
        if name == "added_tokens.json":
            config |= ids
    folder.mkdir(parents=True, exist_ok=True)
    for name in _VERBATIM:
        if (source / name).is_file() and source.resolve() != folder.resolve():
            _write(folder / name, (source / name).read_text("utf-8"))
    for name, config in beside.items():
        _write(folder / name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    _write(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    silence, standby, response = ids.values()
    return silence, standby, response


_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VERBATIM = ("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")


def embedding_rows(vocab_size: int, tokens: int) -> int:
    """How many rows a model's embeddings need for a tokenizer of `tokens` tokens.

    As they are (`vocab_size`) while they suffice, which they do for Qwen, whose spare rows the
    state tokens take; otherwise the next multiple of 128 (InternVL3: 151674 -> 151680). Rows are
    added, none initialised anew. specs/streamo.md section 3.4.
    """
    return vocab_size if tokens <= vocab_size else -(-tokens // 128) * 128


def build_word_tokenizer(
    texts: Iterable[str], folder: str | Path, *, numbers: int = 1000, tags: int = 100
) -> Any:
    """A tokenizer whose tokens are the words of `texts`, saved to `folder` and loaded from there.

    `texts` are words or whole sentences. Every word becomes a token, with and without the space
    before it; whatever is not among them is spelt out, letter by letter (byte by byte beyond
    ASCII), so that decode(encode(x)) == x for every text and nothing is ever unknown. The numbers
    below `numbers` are one token each, wherever they stand. The chat's marks cost one token each:
    a turn is the newline and the user's header, the time tag, the frame, the assistant's header,
    the answer and `<|im_end|>`. The first `tags` time tags of a stream at 1 fps are one token each,
    newline included; later ones take five.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words: set[str] = set()
    for text in texts:
        for piece, _ in split.pre_tokenize_str(text):
            bare = piece.removeprefix(" ")
            if bare.isalpha():
                words |= {to_bytes.pre_tokenize_str(word)[0][0] for word in (bare, f" {bare}")}
    counted = [str(i) for i in range(numbers)]
    # The order decides the ids, and is the same for the same texts in any order.
    pieces = dict.fromkeys([*byte_letters, *counted, "s-", "s>Ċ", *sorted(words)])
    # Longest piece first inside a word, every byte a piece: nothing is left to be unknown.
    model = models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)},
        unk_token=byte_letters[0],
        continuing_subword_prefix="",
        max_input_chars_per_word=1_000_000,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    marks = (PAD, START, END, *_TURN_MARKS, *STATES)
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in marks])
    tokenizer.add_tokens([AddedToken(f"{time_tag(i)}\n", normalized=False) for i in range(tags)])

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    return load_tokenizer(folder)


def _added(text: str) -> dict[str, Any]:
    shape = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, **shape, "special": True}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
