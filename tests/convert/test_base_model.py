"""convert/qwen_vl.py, convert/internvl.py: layouts in, the hub's out, state tokens added."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import streamjax as sj
from streamjax.data.dialogue import STATES
from streamjax.data.tokenizer import load_tokenizer
from streamjax.errors import InputError
from streamjax.models.vocabulary import grow
from streamjax.weights import safetensors

CONVERT = Path(__file__).parents[2] / "convert"
sys.path.insert(0, str(CONVERT))
import base_model  # noqa: E402

INTERNVL = ("internvl", "internvl_chat")


def words(folder: Path, tokens: int) -> None:
    """A tokenizer of so many tokens, none of them a state."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocab = {f"w{i}": i for i in range(tokens - 1)} | {"<IMG_CONTEXT>": tokens - 1}
    Tokenizer(WordLevel(vocab, unk_token="w0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    (folder / "generation_config.json").write_text('{"top_p": 0.5}')


@pytest.mark.parametrize(("family", "tokens", "rows"), [
    ("internvl_opengvlab_keys", 256, 384), ("qwen2_5_vl_tied_sharded", 250, 256),
])  # fmt: skip
def test_states_are_added_and_the_rest_is_bit_equal(golden, tmp_path, family, tokens, rows):
    source = tmp_path / "source"
    shutil.copytree(golden / family, source)
    words(source, tokens)
    types = INTERNVL if "internvl" in family else ("qwen2_5_vl",)
    base_model.convert(source, tmp_path / "out", types, states=True)
    before, after = sj.load(source), sj.load(tmp_path / "out")
    assert after.config.decoder.vocab_size == rows
    tokenizer = load_tokenizer(tmp_path / "out")
    assert [tokenizer.convert_tokens_to_ids(s) for s in STATES] == [tokens + i for i in range(3)]
    assert after.assets.chat_template == "{{ x }}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_p": 0.5}
    tensors = safetensors.read_folder(tmp_path / "out")[0]
    assert not any(name.startswith(("vision_model.", "mlp1.")) for name in tensors)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        cut = tuple(slice(size) for size in old.shape)
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new)[cut])
    if rows > 256:
        embed = np.asarray(after.decoder.embed[...], np.float32)
        np.testing.assert_allclose(
            embed[256:], np.tile(embed[:256].mean(0), (rows - 256, 1)), atol=1e-3
        )
        head = np.asarray(after.decoder.head[...], np.float32)
        np.testing.assert_allclose(head[:, -1], head[:, :256].mean(1), atol=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_dtypes_and_what_is_refused(golden, tmp_path):
    base_model.convert(
        golden / "internvl_opengvlab_keys", tmp_path / "f32", INTERNVL, dtype="float32"
    )
    model = sj.load(tmp_path / "f32")
    assert model.dtype == jnp.float32
    with pytest.raises(InputError, match="model_type is 'internvl', wanted qwen2_5_vl or qwen3_vl"):
        base_model.convert(tmp_path / "f32", tmp_path / "x", ("qwen2_5_vl", "qwen3_vl"))
    with pytest.raises(FileNotFoundError, match="no tokenizer, wanted one to add"):
        base_model.convert(tmp_path / "f32", tmp_path / "x", INTERNVL, states=True)
    with pytest.raises(FileExistsError, match="f32: exists already"):
        base_model.convert(golden / "internvl", tmp_path / "f32", INTERNVL)
    with pytest.raises(ValueError, match="rows is 200, wanted at least the model's 256"):
        grow(model, 200)
    assert [p.name for p in tmp_path.iterdir()] == ["f32"]


@pytest.mark.parametrize("script", ["qwen_vl.py", "internvl.py"])
def test_the_commands_answer_in_a_line(tmp_path, script):
    def run(*args):
        return subprocess.run(
            [sys.executable, CONVERT / script, *args], capture_output=True, text=True, check=False,
            env={"PYTHONPATH": str(CONVERT.parent), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    wrong = run(tmp_path, tmp_path / "out")
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith(f"{script}: {tmp_path}/config.json")
