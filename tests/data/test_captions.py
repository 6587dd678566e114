"""Captions as SigLIP reads them: canonical form, prompts, rows of ids."""

import importlib.util
import io
import json
import pickle

import numpy as np
import pytest

from streamjax.data.captions import (
    CLASS_TEMPLATES,
    SENTENCE_PREFIXES,
    CaptionTokenizer,
    build_caption_tokenizer,
    canonical,
)
from streamjax.errors import InputError

TEXTS = (
    "A red circle moves to the left.", "a   man, riding\ta bike!", "Pushing [something] (slowly)",
    "it's 5 o'clock: x=y", "ÄPFEL und Übung", "日本 videos", "under▁score_d", "emoji 🎈 balloon",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    return build_caption_tokenizer(["A red circle.", "a blue square jumps"], folder)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A folder with a tiny sentencepiece model laid out as SigLIP's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    words = [canonical(t) for t in TEXTS] + [canonical(t.format("bike")) for t in CLASS_TEMPLATES]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 5), model_writer=model, vocab_size=120, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


def test_the_canonical_form():
    assert canonical("Pushing [something] from\n left, to  right.") == (
        "pushing something from left to right"
    )
    assert canonical(" «É» ▁ 2.5-D ") == "«é» 25d"
    assert canonical("?!") == ""


def test_the_templates_are_the_original_ones(golden):
    about = golden / "streamformer" / "f1_head_action_recognition" / "case.json"
    about = json.loads(about.read_text())
    for label, texts in zip(about["labels"], about["texts_in_order"], strict=True):
        assert [template.format(label) for template in CLASS_TEMPLATES] == texts
    assert len(SENTENCE_PREFIXES) == 17


def test_rows(small):
    ids = json.loads((small.folder / "tokenizer.json").read_text())["model"]["vocab"]
    row = small("Red, RED square?")
    assert row.dtype == np.int32 and row.shape == (64,)
    assert row.tolist() == [ids["red"], ids["red"], ids["square"]] + [1] * 61
    spelt = small("so")
    assert spelt.tolist()[:3] == [ids["s"], ids["o"], 1] and 2 not in small("für 日本")
    long = small("red " * 100)
    assert long.tolist() == [ids["red"]] * 63 + [1]
    again = build_caption_tokenizer(["jumps square blue a", "circle red a"], small.folder)
    assert len(again) == len(small) == 3 + 256 + 6 - 1  # "a" is a letter too
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(small))("red"), small("red"))
    short = CaptionTokenizer(small.folder, length=4)
    assert short("red red red red red").tolist() == [ids["red"]] * 3 + [1]


def test_prompts(small):
    rows = small.prompts(["red circle", "jumps"])
    assert rows.shape == (2, 28, 64)
    np.testing.assert_array_equal(rows[1, 8], small("a video of a person jumps."))
    assert small.prompts([], ("{}",)).shape == (0, 1, 64)
    with pytest.raises(InputError, match="label '...' is empty"):
        small.prompts(["red", "..."])
    long = "red " * 60
    assert small.prompts([long], ("{}",)).shape == (1, 1, 64)
    with pytest.raises(InputError, match=r"label 'red .* makes a prompt of \d+ tokens.*at most 64"):
        small.prompts([long])
    with pytest.raises(InputError, match=r"text '!' is empty"):
        small("!")


def test_equal_to_transformers(pieces):
    """Truncated captions keep their last </s>; no text of ours differs."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SiglipTokenizer(str(pieces / "spiece.model"))
    ours = CaptionTokenizer(pieces)
    assert len(ours) == len(theirs)
    texts = [*TEXTS, "bike " * 70, *(t.format("[something] bike") for t in CLASS_TEMPLATES)]
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=64)["input_ids"]
    np.testing.assert_array_equal([ours(text) for text in texts], wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours))(texts[0]), wanted[0])
    rows = ours.prompts(["[something] bike"])[0]
    np.testing.assert_array_equal(rows, wanted[-28:])


def test_folders_that_will_not_do(small, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no tokenizer of captions, wanted spiece.model"):
        CaptionTokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder, wanted a SigLIP"):
        CaptionTokenizer(tmp_path / "nowhere")
    (tmp_path / "spiece.model").write_bytes(b"no model")
    if importlib.util.find_spec("sentencepiece"):
        with pytest.raises(InputError, match="spiece.model: the tokenizer cannot be read"):
            CaptionTokenizer(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        CaptionTokenizer(tmp_path)
    text = (small.folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text)
    np.testing.assert_array_equal(CaptionTokenizer(tmp_path)("red"), small("red"))
    (tmp_path / "tokenizer.json").write_text(text.replace("</s>", "<end>"))
    with pytest.raises(InputError, match=r"the tokenizer's </s> is id .*, wanted 1"):
        CaptionTokenizer(tmp_path)
