"""The model card: what it says is known, and what others wrote into it stays."""

import json
import shutil

import pytest

import streamjax as sj
from streamjax.errors import InputError
from streamjax.weights import card

THEIRS = """---
license: other
license_name: qwen-research
license_link: https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE
language:
- en
tags:
- multimodal
widget:
  license: nested
---

# Theirs

Words.
"""


@pytest.fixture
def folder(golden, tmp_path):
    source = golden / "streamformer" / "c_time_embedding_T"
    home = tmp_path / "model"
    home.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, home / name)
    return home


def top(path):
    return path.read_text().split("---\n")[1]


def test_nothing_is_invented(folder, tmp_path):
    model = sj.load(folder)
    assert model.assets.origin is None
    sj.save(model, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license:" not in text and "base_model:" not in text and "Parity" not in text
    assert "Licence: not stated where they came from. Base model: not known." in text
    assert f"written by streamjax {sj.__version__}" in text and 'sj.load("out")' in text
    assert "from_pretrained" not in text and "`TimesformerMultiTaskingModelSigLIP`" in text
    assert top(tmp_path / "out" / "README.md") == "library_name: streamjax\ntags:\n- streamjax\n"
    total = sum(t.size for t in map(_array, sj.weights.safetensors.read_folder(folder)[0].values()))
    assert f"{total:,} numbers (float32)" in text


def _array(tensor):
    return tensor.__array__()


def test_licence_and_ancestry_go_with_the_weights(folder, tmp_path):
    (folder / "README.md").write_text(THEIRS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "Qwen/Base-3B"}))
    sj.save(sj.load(folder), tmp_path / "out")
    found = top(tmp_path / "out" / "README.md")
    for line in THEIRS.splitlines()[1:6]:
        assert f"{line}\n" in found
    assert "base_model: Qwen/Base-3B\n" in found and "widget" not in found
    assert "Theirs" not in (tmp_path / "out" / "README.md").read_text()
    sj.save(sj.load(tmp_path / "out"), tmp_path / "again")
    assert sorted(top(tmp_path / "again" / "README.md")) == sorted(found)


@pytest.mark.parametrize("name", ["/srv/models/base", "../up", "a/b/c", "word", ": x/y", None])
def test_a_path_is_no_base_model(tmp_path, name):
    assert card.origin(tmp_path, {"_name_or_path": name}) is None


def test_a_download_by_name_is_the_base_model(tmp_path):
    home = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-3B-Instruct" / "snapshots" / "66285546d2b8"
    home.mkdir(parents=True)
    (home / "README.md").write_text(THEIRS.replace("tags:", "base_model: Qwen/Older\ntags:"))
    found = card.origin(home, {"_name_or_path": "x/y"})
    assert "base_model: Qwen/Qwen2.5-VL-3B-Instruct\n" in found and "Older" not in found


def test_an_existing_card_keeps_all_but_our_part(folder):
    page = folder / "README.md"
    page.write_bytes(THEIRS.encode() + b"latin \xe9\n")
    sj.save(sj.load(folder), folder)
    first = page.read_bytes()
    assert top_of(first).startswith(top_of(THEIRS.encode()))  # their tags win over ours
    assert b"\n# Theirs\n\nWords.\nlatin \xe9\n\n" + card.BEGIN.encode() in first
    sj.save(sj.load(folder), folder)
    assert page.read_bytes() == first
    text = card.with_parity(first.decode("utf-8", "surrogateescape"), ["| measured |"])
    text = card.with_parity(text, ["| again |"]) + "\nAfter.\n"
    assert text.count("## Parity") == 1 and "| measured |" not in text and "| again |" in text
    page.write_bytes(text.encode("utf-8", "surrogateescape"))
    sj.save(sj.load(folder), folder)  # other weights perhaps: what was measured goes
    assert page.read_bytes() == first + b"\nAfter.\n"
    with pytest.raises(InputError, match="save the folder with streamjax first"):
        card.with_parity(THEIRS, [])


def top_of(page):
    return page.split(b"---\n")[1]


@pytest.mark.parametrize(
    "text", ["", "---\n", "---\nlicense: mit\n", "words\n---\nlicense: mit\n---\n"]
)
def test_a_page_without_a_whole_top(folder, text):
    (folder / "README.md").write_text(text)
    model = sj.load(folder)
    assert model.assets.origin is None
    sj.save(model, folder)
    saved = (folder / "README.md").read_text()
    assert saved.startswith("---\nlibrary_name: streamjax\n") and text in saved
