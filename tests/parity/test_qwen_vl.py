"""transformers reads what we write: the same logits from the folder of `sj.save`."""

import jax
import numpy as np
import pytest

import streamjax as sj
from streamjax.weights import safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        ("qwen2_5_vl_tied_sharded_nativekeys", "Qwen2_5_VLForConditionalGeneration"),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    ],
)
def test_the_original_gives_our_logits_from_our_export(golden, tmp_path, name, architecture):
    model = sj.load(golden / name)
    sj.save(model, tmp_path / "saved")
    original, report = getattr(transformers, architecture).from_pretrained(
        tmp_path / "saved", dtype=torch.float32, attn_implementation="eager",
        output_loading_info=True,
    )  # fmt: skip
    assert not any(report.values())
    io, _ = safetensors.read_file(golden / name.removesuffix("_nativekeys") / "io.safetensors")
    keys = ("input_ids", "pixel_values", "image_grid_thw")
    inputs = {key: torch.from_numpy(np.array(io[f"multi.{key}"])) for key in keys}
    with torch.no_grad():
        kinds = (inputs["input_ids"] == model.config.image_token_id).long()
        wanted = original(**inputs, mm_token_type_ids=kinds).logits.numpy()
    ours = sj.load(tmp_path / "saved", dtype="float32")
    forward = jax.jit(lambda m, t, p: m(t, p, io["multi.image_grid_thw"], positions=place).logits)
    place, _ = ours.positions(io["multi.input_ids"], io["multi.image_grid_thw"])
    found = forward(ours, io["multi.input_ids"], io["multi.pixel_values"])
    np.testing.assert_allclose(found, wanted, atol=2e-4)
