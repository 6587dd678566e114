"""The small tokenizer: every text comes back, words and numbers and marks cost one token."""

import json
from typing import Any

import pytest

from streamjax.data.chat import state_ids
from streamjax.data.tokenizer import (
    build_word_tokenizer,
    copy_with_states,
    embedding_rows,
    load_tokenizer,
)
from streamjax.errors import InputError

TEXTS = ["The red circle leaves the bowl.", "between 34s to 50s", "Tell me when it turns green."]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return build_word_tokenizer(TEXTS, folder), folder


@pytest.mark.parametrize(
    "text",
    [
        "</Response> The red circle leaves.",
        " two  spaces and  a tail  ",
        "Line 1\r\n\n\tx's don't; naïve 这是什么 🚦?",
        "<|im_start|>system\nred<|im_end|>\n<|im_start|>user\n<3s-4s>\n<|im_end|>\n",
        "<100s-101s>\n 007 12345 s-3 cats-4",
        "Ġ Ċ </Silence></Standby>",
        "",
    ],
)
def test_text_comes_back(built, text):
    tokenizer, _ = built
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < len(tokenizer)


def test_words_carry_their_space_and_numbers_do_not(built):
    tokenizer, _ = built

    def pieces(text):
        return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]

    assert pieces("</Response> The red") == ["</Response>", " The", " red"]
    assert pieces("between 34s") == ["between", " ", "34", "s"]
    assert pieces("<999s-1000s>\n") == ["<", "999", "s-", "100", "0", "s>\n"]
    assert pieces("<7s-8s>\n") == ["<7s-8s>\n"]
    assert pieces(" reds") == [" red", "s"]
    assert pieces("<|im_end|>\n<|im_start|>assistant\n") == ["<|im_end|>\n<|im_start|>assistant\n"]
    assert pieces("</Silence><|im_end|>\n<|im_start|>user\n") == [
        "</Silence>",
        "<|im_end|>",
        "\n<|im_start|>user\n",
    ]


def test_the_folder_is_a_hugging_face_tokenizer(built):
    from transformers import AutoTokenizer

    tokenizer, folder = built
    again: Any = AutoTokenizer.from_pretrained(folder)
    text = "</Response> The red circle\n<3s-4s>\n"
    assert again.encode(text) == tokenizer.encode(text) == load_tokenizer(folder).encode(text)
    assert again.eos_token == "<|im_end|>" and again.pad_token == "<|endoftext|>"
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_same_words_make_the_same_file(built, tmp_path):
    _, folder = built
    build_word_tokenizer(reversed(TEXTS), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_fewer_numbers_and_tags(tmp_path):
    small = build_word_tokenizer(["red"], tmp_path, numbers=10, tags=0)
    assert small.tokenize("<7s-8s>\n") == ["<", "7", "s-", "8", "s>Ċ"]
    assert len(small) < 300


def test_folders_without_a_readable_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer, wanted one of tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_states_join_a_base_models_tokenizer(qwen_folder, tmp_path):
    base = load_tokenizer(qwen_folder)
    with pytest.raises(InputError, match=r"splits </Silence> into 4 .*copy_with_states"):
        state_ids(base)
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 151645}')
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((qwen_folder / name).read_bytes())
    (tmp_path / "merges.txt").write_text("kept")

    target = tmp_path / "new" / "folder"
    assert copy_with_states(tmp_path, target) == (151665, 151666, 151667)
    tokenizer = load_tokenizer(target)
    assert state_ids(tokenizer) == (151665, 151666, 151667)
    assert len(base) == 151665 and len(tokenizer) == 151668
    text = "<|im_end|></Silence> Ein Häuschen 东西 x=3"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Ein Häuschen 东西") == base.encode("Ein Häuschen 东西")
    added = json.loads((target / "added_tokens.json").read_text())
    assert added == {"<|im_end|>": 151645, "</Silence>": 151665, "</Standby>": 151666,
                     "</Response>": 151667}  # fmt: skip
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["151666"]["content"] == "</Standby>"
    assert config["additional_special_tokens"][-3:] == ["</Silence>", "</Standby>", "</Response>"]
    assert (target / "merges.txt").read_text() == "kept"

    # Once more, in place, changes nothing.
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    assert copy_with_states(target, target) == (151665, 151666, 151667)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before


def test_states_behind_what_qwen3_adds(tmp_path):
    from tests import qwen_bpe

    folder = qwen_bpe.write(tmp_path, "qwen3_vl")
    assert copy_with_states(folder, folder) == (151669, 151670, 151671)


def test_folders_that_take_no_states(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing"):
        copy_with_states(tmp_path, tmp_path / "new")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        copy_with_states(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("rows", "tokens", "wanted"),
    [(151936, 151668, 151936), (151674, 151677, 151680), (152064, 151668, 152064), (100, 100, 100),
     (100, 101, 128), (100, 129, 256)],
)  # fmt: skip
def test_embeddings_grow_only_when_they_must(rows, tokens, wanted):
    assert embedding_rows(rows, tokens) == wanted
