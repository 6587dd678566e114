"""convert/verify.py: both implementations on one folder, told as a table, as JSON and in the card."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import streamjax as sj
from streamjax.data.processors import QwenImageProcessor
from streamjax.weights import safetensors

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "convert"))
import script
import verify


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["verify.py", *map(str, args)])
    with pytest.raises(SystemExit) as exit:
        script.run(verify.main)
    return exit.value.code or 0


def test_a_saved_folder_is_verified_and_its_card_says_so(golden, tmp_path, monkeypatch, capsys):
    folder, report = tmp_path / "saved", tmp_path / "report.json"
    sj.save(sj.load(golden / "qwen2_5_vl"), folder)
    QwenImageProcessor(patch=4, min_pixels=64, max_pixels=1024).to_folder(folder)
    options = (folder, "--json", report, "--card", "--new-tokens", "3")
    assert command(monkeypatch, *options, "--atol", "2e-4") == 0
    told = json.loads(report.read_text())
    assert [row["case"] for row in told["cases"]] == ["text", "one picture", "three pictures"]
    for row in told["cases"]:
        assert row["max_abs"] < 2e-4 and row["argmax_agreement"] == 1 and row["logits_max_abs"] > 1
    assert told["greedy"]["equal"] == 3 and told["pictures"] == "the folder's processor"
    assert told["greedy"]["streamjax"] == told["greedy"]["transformers"]
    printed = capsys.readouterr().out
    page = (folder / "README.md").read_text()
    assert printed.strip() in page and "| three pictures |" in page and page.count("Parity") == 1

    # What is too far apart is told as it is, with an exit code where that was asked for.
    monkeypatch.setattr(verify, "compare", lambda *_, **__: told)
    told["cases"][1]["max_abs"] = float("nan")
    assert command(monkeypatch, folder, "--atol", "1") == 1
    assert command(monkeypatch, folder) == 0
    assert "| one picture | 35 | nan |" in capsys.readouterr().out


def test_what_cannot_be_verified_is_one_line(golden, tmp_path, monkeypatch, capsys):
    for source, message in (
        (
            "llava_streamformer_qwen2",
            "model_type is 'llava_qwen', for which transformers has no class",
        ),
        ("internvl_opengvlab_keys", "no id of a picture's token, wanted a tokenizer that has it"),
        ("streamformer", "config.json"),
    ):
        assert command(monkeypatch, golden / source) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert command(monkeypatch, golden / "qwen3_vl", "--card") == 2
    assert "README.md: missing, wanted the card that sj.save writes" in capsys.readouterr().err
    shutil.copytree(golden / "internvl", tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = {n: np.array(t) for n, t in safetensors.read_file(path)[0].items()}
    tensors.pop("language_model.model.norm.weight")
    safetensors.write_file(path, tensors, {"format": "pt"})
    assert command(monkeypatch, tmp_path / "broken") == 2
    assert "transformers finds missing_keys" in capsys.readouterr().err
