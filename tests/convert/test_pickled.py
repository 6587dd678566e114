"""convert/pickled.py: what PyTorch pickles, bit for bit; code in a pickle is never run."""

import argparse
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from streamjax.errors import InputError
from streamjax.weights import safetensors

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "convert"))
import pickled  # noqa: E402
import script  # noqa: E402


def state():
    torch.manual_seed(0)
    embed = torch.randn(6, 4)
    return {
        "model.embed_tokens.weight": embed,
        "model.norm.weight": torch.randn(4).bfloat16(),
        "model.half": torch.randn(3, 4).half().t(),  # not contiguous
        "model.steps": torch.tensor(7),
        "model.eight": torch.randn(4).to(torch.float8_e4m3fn),
        "lm_head.weight": embed,
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(2),
    }


def bits(tensor):
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()


def check(folder, wanted):
    found, metadata = safetensors.read_folder(folder)
    assert set(found) == set(wanted) and metadata == {"format": "pt"}
    for name, tensor in wanted.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert np.asarray(found[name]).tobytes() == bits(tensor), name


@pytest.fixture
def wanted():
    tensors = state()
    del tensors["lm_head.weight"], tensors["model.layers.0.self_attn.rotary_emb.inv_freq"]
    return tensors


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_becomes_a_folder_bit_for_bit(tmp_path, wanted, capsys, new_format):
    tensors = state()
    if not new_format:  # which is older than float8
        del tensors["model.eight"], wanted["model.eight"]
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=new_format)
    pickled.convert(tmp_path / "x.bin", tmp_path / "out")
    check(tmp_path / "out", wanted)
    told = capsys.readouterr().err
    assert "left lm_head.weight" in told and "inv_freq, which models compute" in told
    theirs = pytest.importorskip("safetensors.torch").load_file(tmp_path / "out/model.safetensors")
    assert all(
        torch.equal(theirs[n].view(-1).float(), t.reshape(-1).float()) for n, t in wanted.items()
    )
    with pytest.raises(FileExistsError, match="out: exists already"):
        pickled.convert(tmp_path / "x.bin", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.bin"]


def test_wrappers_and_nests_are_undone(tmp_path, wanted, capsys):
    wrapped = {f"module._fsdp_wrapped_module.{n}": t for n, t in state().items()}
    wrapped = {
        n.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module."): t
        for n, t in wrapped.items()
    }
    checkpoint = {
        "model": {"state_dict": wrapped},
        "epoch": 3, "best": np.float64(0.5), "args": argparse.Namespace(lr=1e-4),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "x.pth")
    pickled.convert(tmp_path / "x.pth", tmp_path / "out")
    check(tmp_path / "out", wanted)
    assert "took 'model', left" in capsys.readouterr().err
    torch.save({"ema": {"a": {"w": torch.ones(2)}}}, tmp_path / "y.pth")
    pickled.convert(tmp_path / "y.pth", tmp_path / "ema", key="ema.a")
    check(tmp_path / "ema", {"w": torch.ones(2)})


def test_shards_are_read_one_by_one_and_the_rest_is_copied(tmp_path, wanted):
    folder = tmp_path / "in"
    folder.mkdir()
    names = list(wanted)
    where = {}
    for i, part in enumerate((names[:2], names[2:]), start=1):
        file = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({n: wanted[n] for n in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / pickled.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for name in ("config.json", "tokenizer_config.json", "README.md", "LICENSE"):
        (folder / name).write_text(name)
    pickled.convert(folder, tmp_path / "out")
    check(tmp_path / "out", wanted)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "LICENSE", "README.md", "config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer_config.json",
    ]  # fmt: skip
    pickled.convert(folder, tmp_path / "half", dtype="bfloat16")
    half = safetensors.read_folder(tmp_path / "half")[0]
    assert half["model.embed_tokens.weight"].dtype == "bfloat16"
    assert half["model.steps"].dtype == np.int64
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="00002.bin: missing, but"):
        pickled.convert(folder, tmp_path / "again")
    (folder / pickled.INDEX).write_text('{"weight_map": {"a": "../x.bin"}}')
    with pytest.raises(InputError, match="wanted a file in the same folder"):
        pickled.convert(folder, tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half", "in", "out"]


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def harm(path):
    torch.save({"w": torch.ones(2), "x": Code()}, path)


def harm_plain(path):
    path.write_bytes(pickle.dumps(Code()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (harm, r"x.pth: holds code \(posix.system\), which is never run here"),
        (harm_plain, r"x.pth: .*, which is never run here"),
        (lambda p: p.write_bytes(b""), "x.pth: damaged or no PyTorch file"),
        (lambda p: p.write_bytes(b"hello"), "x.pth: "),
        (lambda p: (torch.save(state(), p), p.write_bytes(p.read_bytes()[:900])), "x.pth: "),
        (lambda p: torch.save({"epoch": 3}, p), r"no weights, found 'epoch' \(int\): name them"),
        (lambda p: torch.save([1], p), "no weights, found a list"),
        (lambda p: torch.save({"w": torch.empty(0)}, p), "as DeepSpeed's ZeRO-3 leaves them"),
        (lambda p: torch.save({"w": torch.ones(2).to_sparse()}, p), "w is sparse or quantized"),
        (lambda p: torch.save({"w": torch.ones(2, dtype=torch.complex64)}, p), "w is torch.complex64"),
        (lambda p: torch.save({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, p), "are a without"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_weights_is_one_line(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as error:
        pickled.convert(tmp_path / "x.pth", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]  # nothing ran, nothing is left


def test_the_command(tmp_path, monkeypatch, capsys):
    torch.save(state(), tmp_path / "x.bin")
    for args, code in ((["x.bin", "out"], 0), (["x.bin", "out"], 2), (["nothing", "y"], 2)):
        monkeypatch.setattr(sys, "argv", ["pickled.py", *(str(tmp_path / a) for a in args)])
        with pytest.raises(SystemExit) as exit:
            script.run(pickled.main)
        assert (exit.value.code or 0) == code
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert err.splitlines()[-1].endswith("nothing: missing, wanted a .bin, .pth or .pt file")
