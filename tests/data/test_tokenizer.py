"""The small tokenizer: every text comes back, words and numbers and marks cost one token."""

from typing import Any

import pytest

from streamjax.data.tokenizer import build_word_tokenizer, load_tokenizer
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
