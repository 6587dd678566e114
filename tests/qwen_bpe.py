"""The real Qwen tokenizers, built offline from the ranks that the PyPI package `dashscope` carries.

Only its data file is read: the package is never imported. Hugging Face's tokenizer.json wants the
merges in place of ranks: a token's merge is the pair of pieces left when its bytes are merged by
all the tokens before it. specs/streamo.md section 3.5.
"""

import base64
import importlib.util
import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PAIRS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end",
          "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")  # fmt: skip
_CODE = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
_MARKS = ("endoftext", "im_start", "im_end", *_PAIRS)
QWEN25 = (*(f"<|{m}|>" for m in _MARKS), "<tool_call>", "</tool_call>",
          *(f"<|{m}|>" for m in _CODE))  # fmt: skip
ADDED = {
    "qwen2_5_vl": QWEN25,
    "qwen3_vl": (*QWEN25, "<tool_response>", "</tool_response>", "<think>", "</think>"),
    "internvl": (*QWEN25, "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>",
                 "</ref>", "<box>", "</box>"),
}  # fmt: skip
# Added, but words of the text to `skip_special_tokens`.
_PLAIN = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>",
          "</think>", *(f"<|{m}|>" for m in _CODE)}  # fmt: skip


def write(folder: Path, family: str) -> Path:
    """The tokenizer of a family's base model, as a folder; skips the test without dashscope."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    vocab, merges = _vocab_and_merges()
    tokenizer = Tokenizer(BPE(vocab=dict(vocab), merges=list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(t, special=t not in _PLAIN, normalized=False) for t in ADDED[family]]
    tokenizer.add_tokens(added)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(tokenizer.token_to_id(t.content)): {
            "content": t.content, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": t.special,
        }
        for t in added
    }  # fmt: skip
    config = {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [t.content for t in added if t.special][1:],
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return folder


@lru_cache(maxsize=1)
def _vocab_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package dashscope, of the test extra")
    file = Path(next(iter(spec.submodule_search_locations))) / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    spelt = {token: "".join(map(_letter, token)) for token in ranks}
    merges = [
        (spelt[left], spelt[right])
        for left, right in (_last_pair(t, ranks) for t in ranks if len(t) > 1)
    ]
    return {spelt[token]: rank for token, rank in ranks.items()}, merges


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that make `token`, which comes after every other merge inside it."""
    own = ranks[token]
    splits = [(token[:i], token[i:]) for i in range(1, len(token))]
    known = [(a, b) for a, b in splits if ranks.get(a, own) < own and ranks.get(b, own) < own]
    if len(known) == 1:
        return known[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, own) for a, b in pairwise(parts)]
        best = min(found)
        at = found.index(best)
        assert best < own, token
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


@lru_cache(maxsize=256)
def _letter(byte: int) -> str:
    """How byte-level tokenizers print a byte: itself, or the next letter from U+0100 on."""
    return chr(byte) if byte in _PRINTED else chr(256 + _HIDDEN.index(byte))


_PRINTED = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTED]
