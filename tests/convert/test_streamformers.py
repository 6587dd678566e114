"""convert/streamformer.py and convert/llava_streamformer.py, on the golden cases' weights."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import streamjax as sj
from streamjax.errors import InputError
from streamjax.weights import safetensors
from streamjax.weights.llava_streamformer import TOWER

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "convert"))
import llava_streamformer  # noqa: E402
import script  # noqa: E402
import streamformer  # noqa: E402


@pytest.fixture
def released(golden):
    return golden / "streamformer" / "c_time_embedding_T"


def arrays(folder):
    return {name: np.asarray(t) for name, t in safetensors.read_folder(folder)[0].items()}


def tensors(folder):
    found = arrays(folder)
    return {
        n: torch.from_numpy(a) if a.dtype != "bfloat16"
        else torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        for n, a in found.items()
    }  # fmt: skip


def equal(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def command(main, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["x.py", *map(str, args)])
    with pytest.raises(SystemExit) as exit:
        script.run(main)
    return exit.value.code or 0


def test_a_training_checkpoint_gives_the_released_form(released, tmp_path, monkeypatch, capsys):
    backbone = {f"timesformer.{name}": tensor for name, tensor in tensors(released).items()}
    beside = {"logit_scale": torch.tensor(2.0), "task_heads.X.text_encoder.w": torch.ones(2)}
    torch.save(
        {"model": backbone | beside, "optimizer": {}, "epoch": 1, "args": argparse.Namespace(a=1)},
        tmp_path / "checkpoint-epoch.pth",
    )
    file, main = tmp_path / "checkpoint-epoch.pth", streamformer.main
    assert command(main, monkeypatch, file, tmp_path / "out") == 2
    assert "config.json: missing, wanted the checkpoint's (--config)" in capsys.readouterr().err
    config = json.loads((released / "config.json").read_text()) | {"add_lora_spatial": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert command(main, monkeypatch, file, tmp_path / "out") == 0
    equal(arrays(tmp_path / "out"), arrays(released))
    assert "left 2 tensors of text encoder and task heads" in capsys.readouterr().err
    assert command(main, monkeypatch, file, tmp_path / "all", "--keep-heads") == 0
    equal(arrays(tmp_path / "all"), {n: np.asarray(t) for n, t in (backbone | beside).items()})
    assert sj.load(tmp_path / "all").config == sj.load(tmp_path / "out").config
    backbone["timesformer.extra"] = torch.ones(1)
    torch.save({"model": backbone}, file)
    assert command(main, monkeypatch, file, tmp_path / "more") == 2
    assert "tensor extra belongs to no part of the model" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_folders_of_pickles_streamformers_and_siglips(golden, released, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copyfile(released / "config.json", folder / "config.json")
    torch.save(tensors(released), folder / "pytorch_model.bin")
    sj.save(streamformer.from_folder(folder, seed=0, frames=4), tmp_path / "out")
    equal(arrays(tmp_path / "out"), arrays(released))
    about = json.loads((golden / "streamformer/g_init_from_siglip/case.json").read_text())
    io = safetensors.read_file(golden / "streamformer/g_init_from_siglip/io.safetensors")[0]
    state = {
        n.removeprefix("siglip_state."): torch.from_numpy(np.array(a))
        for n, a in io.items()
        if n.startswith("siglip_st")
    }
    (folder / "config.json").write_text(
        json.dumps({"model_type": "siglip", **about["siglip_config"]})
    )
    torch.save(state, folder / "pytorch_model.bin")
    model = streamformer.from_folder(folder, seed=0, frames=4)
    assert model.config.num_frames == 4 and not np.asarray(model.layers.gate[...]).any()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="model_type is 'clip', wanted 'siglip' or 'timesformer'"):
        streamformer.from_folder(folder, seed=0, frames=4)


@pytest.fixture
def parts(golden, tmp_path):
    """A LLaVA-StreamFormer taken apart: language model, tower, projector."""
    whole = golden / "llava_streamformer_qwen2"
    found = tensors(whole)
    llm, tower = tmp_path / "llm", tmp_path / "tower"
    config = json.loads((whole / "config.json").read_text())
    text = {k: v for k, v in config.items() if not k.startswith(("mm_", "image_", "use_mm"))}
    for folder, settings in (
        (llm, text | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
        (tower, json.loads((whole / "vision_tower_config.json").read_text())),
    ):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings))
    lm = {
        n: t for n, t in found.items() if not any(p in n for p in ("vision_tower", "mm_", "image_"))
    }
    torch.save(lm, llm / "pytorch_model.bin")
    inner = {
        n.removeprefix(TOWER): np.asarray(a)
        for n, a in arrays(whole).items()
        if n.startswith(TOWER)
    }
    safetensors.write_folder(tower, inner)
    projector = {f"base_model.{n}": t for n, t in found.items() if "mm_proj" in n or "image_n" in n}
    torch.save(projector, tmp_path / "mm_projector.bin")
    return whole, llm, tower, tmp_path / "mm_projector.bin"


def test_parts_become_the_whole(parts, tmp_path, monkeypatch, capsys):
    whole, llm, tower, projector = parts
    main, out = llava_streamformer.main, tmp_path / "out"
    options = ("--tower", tower, "--projector", projector)
    assert command(main, monkeypatch, llm, out, *options) == 0
    equal(arrays(out), arrays(whole))
    a, b = sj.load(out).config, sj.load(whole).config
    assert (a.tower, a.decoder) == (b.tower, b.decoder)
    # What training writes when the tower is frozen, as pickles: everything but the tower.
    trained = tmp_path / "trained"
    trained.mkdir()
    shutil.copyfile(whole / "config.json", trained / "config.json")
    torch.save(
        {n: t for n, t in tensors(whole).items() if TOWER not in n}, trained / "pytorch_model.bin"
    )
    assert command(main, monkeypatch, trained, tmp_path / "again", "--tower", tower) == 0
    equal(arrays(tmp_path / "again"), arrays(whole))


def test_a_fresh_projector_and_what_is_refused(parts, tmp_path):
    _, llm, tower, projector = parts
    llava_streamformer.convert(llm, tmp_path / "fresh", tower=tower, seed=3)
    found = arrays(tmp_path / "fresh")
    weight = np.asarray(found["model.mm_projector.2.weight"], np.float32)
    assert 0.4 < weight.std() * np.sqrt(3 * weight.shape[1]) < 1.6 and weight.dtype == np.float32
    torch.save({"w": torch.ones(2)}, projector)
    with pytest.raises(InputError, match="no tensor of an mm_projector"):
        llava_streamformer.convert(llm, tmp_path / "x", tower=tower, projector=projector)
    (llm / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type is 'gpt2', wanted llama, qwen2, llava_llama"):
        llava_streamformer.convert(llm, tmp_path / "x", tower=tower)
    assert not (tmp_path / "x").exists()
