"""Our reader and writer against the safetensors package, and against damaged files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as reference

from streamjax.errors import InputError
from streamjax.weights import safetensors

TENSORS = {
    "b.odd": np.arange(3, dtype=np.uint8),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False]),
}


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def test_reads_and_writes_what_the_package_does(tmp_path):
    reference.save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    found, metadata = safetensors.read_file(tmp_path / "theirs")
    same(found, TENSORS)
    assert metadata == {"format": "pt"}
    safetensors.write_file(tmp_path / "ours", TENSORS, {"format": "pt"})
    same(reference.load_file(tmp_path / "ours"), TENSORS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


def test_keeps_every_dtype(tmp_path):
    tensors = {
        name: np.arange(4).astype(dtype).T
        for name, dtype in safetensors.DTYPES.items()
        if name != "BOOL"
    }
    tensors["transposed"] = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T
    safetensors.write_file(tmp_path / "x", tensors, {})
    found, _ = safetensors.read_file(tmp_path / "x")
    same(found, tensors)


def test_shards_and_their_index(tmp_path):
    tensors = {f"t{i}": np.full(10, i, np.float32) for i in range(5)}
    safetensors.write_folder(tmp_path, tensors, shard_bytes=100)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    found, _ = safetensors.read_folder(tmp_path)
    same(found, tensors)
    index = json.loads((tmp_path / safetensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == 200

    index["weight_map"]["t0"] = "model-00002-of-00003.safetensors"
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"tensor t0 is here, but .* places it in model-00002"):
        safetensors.read_folder(tmp_path)
    index["weight_map"] = {"t0": "model-00001-of-00003.safetensors", "t1": "gone"}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="gone: missing, but"):
        safetensors.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            '{"weight_map": {"a": "../other/x"}}',
            "names the file '../other/x', wanted one in the sam",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names the file '/etc/passwd', wanted one in the"),
        ('{"weight_map": {"a": ".."}}', "names the file '..', wanted one in the same folder"),
        ('{"weight_map": {"a": ""}}', "names the file '', wanted one in the same folder"),
        ('{"weight_map": {"a": "x\\u0000"}}', "wanted one in the same folder"),
        ('{"weight_map": {"a": 3}}', "3: missing, but"),
        ('{"weight_map": ["a"]}', "cannot be read"),
        ('{"weight_map": {}}', "names no file"),
        ("{", "cannot be read"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(tmp_path, index, message):
    safetensors.write_file(tmp_path / "x", TENSORS, {})
    (tmp_path / safetensors.INDEX).write_text(index)
    with pytest.raises((InputError, FileNotFoundError), match=message) as error:
        safetensors.read_folder(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="found neither"):
        safetensors.read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"found pytorch_model.bin: convert"):
        safetensors.read_folder(tmp_path)


def header(entries) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, which is no whole safetensors file"),
        (b"\xff" * 100, "no whole safetensors file"),
        (struct.pack("<Q", 5) + b"[1,2]", "cannot be read"),
        (struct.pack("<Q", 5) + b"{nope", "cannot be read"),
        (header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}), "F99"),
        (header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "truncated: tensor x"),
        (header({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "4 bytes, wanted 8"),
        (header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}), "x"),
        (header({"x": {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]}}), "cannot be read"),
        (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}), "cannot be read"),
        (header({"x": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}), "cannot be read"),
        (header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), "cannot be read"),
        (header({"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}), "cannot be read"),
        (header({"__metadata__": 3, "x": 5}), "cannot be read"),
        (header({"x": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}), "4 bytes, wanted"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_in_one_line(tmp_path, content, message):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        safetensors.read_file(tmp_path / "bad")
    assert "\n" not in str(error.value) and str(tmp_path / "bad") in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    safetensors.write_file(tmp_path / "x", TENSORS, {})
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(KeyError):
        safetensors.write_file(tmp_path / "x", {"c": np.zeros(2, np.complex64)}, {})
    assert (tmp_path / "x").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
