"""`fit` from its arguments to its report: one real small program, and a child that is made up."""

import json
import stat
import sys

import pytest

from streamjax import cli
from streamjax.errors import InputError
from streamjax.fit import CompileError, child, fit
from streamjax.fit.report import report_of

RECIPE = """
import functools

import jax.numpy as jnp
import numpy as np

from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import Assets, QwenImageProcessor
from streamjax.models.decoder import DecoderConfig
from streamjax.models.qwen2_5_vl import Qwen2_5_VLConfig, VisionConfig
from streamjax.train import MeshConfig, OptimConfig, TrainConfig, streamo
from streamjax.train.objectives import converse


def config(length: int = 128):
    sizes = Qwen2_5_VLConfig(
        vision=VisionConfig(
            depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
            patch_size=14, window_size=112, fullatt_block_indexes=(0,), temporal_patch_size=2,
            spatial_merge_size=2, tokens_per_second=2, hidden_act="silu",
        ),
        decoder=DecoderConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, mrope_section=(2, 3, 3),
            tie_word_embeddings=True,
        ),
        image_token_id=500, video_token_id=501, vision_start_token_id=502, vision_end_token_id=503,
    )
    none = np.zeros(0, np.int32)
    blank = {
        "tokens": none, "labels": none, "pixels": np.zeros((0, 3, 196), np.uint8),
        "grid": np.zeros((0, 3), np.int32),
    }
    model = functools.partial(
        streamo.fresh, config=sizes, assets=Assets(None, QwenImageProcessor()), dtype=jnp.bfloat16
    )
    return TrainConfig(
        name="tiny", steps=10, batch_size=8, accumulate=4, weights="fresh", model=model,
        objective=functools.partial(converse, state_ids=(504, 505, 506)),
        data=DataConfig(
            source=lambda: [blank], transform=lambda record, rng: record,
            pack=streamo.rows_of(sizes, length=length, dialogues=1),
        ),
        optim=OptimConfig(lr=1e-4),
        mesh=MeshConfig(data=1, fsdp=2, tensor=2),
        trainable=("decoder", "visual/merger"),
    )
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "tiny.py"
    path.write_text(RECIPE)
    return path


def request_of(path, **more):
    asked = dict(
        recipe=str(path), topology="h100:4", overrides=[], stream=False, capacity=512, turn=148,
        search=0, thorough=False,
    )  # fmt: skip
    return asked | more


@pytest.fixture(scope="module")
def found(recipe):
    """The child's answer for a real step, over four CPU devices in the place of GPUs."""
    return json.loads(json.dumps(child.answer(request_of(recipe))))


@pytest.fixture(scope="module")
def report(found):
    return report_of(found, {"jax": "0"})


@pytest.mark.devices
def test_bytes_are_those_of_the_parameters(report):
    # The decoder by hand: embedding, and of three layers q k v o, gate up down, norms and biases.
    d, f, kv = 64, 128, 32
    layer = d * d * 2 + 2 * d * kv + 3 * d * f + 2 * d
    biases = 3 * (d + 2 * kv) if report.held["trained"] else 0
    merger = 128 * 128 + 128 + 128 * 64 + 64 + 32
    trained = 4 * (512 * d + 3 * layer + d + merger)
    # Kernels lie on four devices, norms and biases may be whole on each.
    assert trained / 4 <= report.held["trained"] <= 1.06 * (trained + 4 * biases) / 4
    assert report.held["moments"] == pytest.approx(2 * report.held["trained"], rel=0.01)
    assert report.fits and 0 < report.held["batch"] < report.programs[0].bytes["arguments"]


@pytest.mark.devices
def test_operations_are_the_useful_ones_and_those_done_again(report):
    (step,) = report.programs
    # Rematerialised layers: forward twice, backward twice: at least a third more than useful.
    assert 1.2 * step.useful < step.flops < 4 * step.useful
    assert report.json()["useful_flops"] == pytest.approx(step.useful)


@pytest.mark.devices
def test_every_axis_of_the_mesh_speaks(report):
    axes = {axis for _, axes in report.collectives for axis in axes.split("+")}
    assert {"fsdp", "tensor"} <= axes
    assert report.prediction is not None and 0 < report.prediction.mfu < 1
    assert report.prediction.step <= report.prediction.unlapped
    assert report.efficiency is not None and all(0 < e <= 1.01 for e in report.efficiency)


@pytest.mark.devices
def test_the_keys_of_the_json(report):
    told = json.loads(json.dumps(report.json()))
    assert set(told) == {
        "accumulate", "caveats", "chip", "collectives", "cpu_seconds", "devices", "efficiency",
        "fits", "flops", "held", "intensity", "largest", "length", "mesh", "mode", "prediction",
        "programs", "recipe", "rows", "rss", "scaling", "seconds", "tokens", "topology", "traffic",
        "useful_flops", "versions",
    }  # fmt: skip
    assert set(told["held"]) == {"trained", "frozen", "moments", "batch"}
    assert set(told["prediction"]) == {
        "compute", "memory", "links", "step", "unlapped", "mfu", "bound"
    }  # fmt: skip
    assert set(told["programs"][0]["bytes"]) == {
        "arguments", "outputs", "aliased", "temporaries", "code", "activations"
    }  # fmt: skip
    assert (told["rows"], told["accumulate"], told["tokens"]) == (2, 4, 8 * 128)
    assert set(told["scaling"]) == {"16", "256"}


@pytest.mark.devices
def test_the_text_says_all_of_it(report):
    text = report.text()
    for word in (
        "tiny on h100:4", "fsdp 2 x tensor 2", "fits: step needs", "trained", "moments", "batch",
        "kept for backward", "operations", "memory traffic", "all-gather", "a step", "MFU",
        "weak scaling    16 -> 256", "roofline", "note: partitioned by XLA's CPU compiler",
    ):  # fmt: skip
        assert word in text


def test_a_program_that_does_not_fit_has_no_prediction(found):
    (step,) = found["programs"]
    gone = ("bytes", "collectives", "traffic", "unknown_loops")
    wrong = {k: v for k, v in step.items() if k not in gone}
    wrong |= {"fits": False, "needs": 28e9, "of": 16e9, "why": "Ran out of memory on HBM"}
    largest = {"rows": 0, "needs": 0, "exact": True, "fails": 2, "most": 8}
    report = report_of(found | {"programs": [wrong], "largest": largest, "bandwidth": []}, {})
    assert not report.fits and report.prediction is None and report.efficiency is None
    text = report.text()
    assert "does not fit: step needs 26.08 GiB of 14.90 GiB" in text
    assert "no number of rows at a time was found that fits" in text
    assert json.loads(json.dumps(report.json()))["prediction"] is None


@pytest.mark.devices
@pytest.mark.parametrize(
    "more, said",
    [
        (
            {"overrides": ["mesh.fsdp=4", "mesh.tensor=2"]},
            "fsdp=4 tensor=2 .*needs 8 devices, found 4",
        ),
        ({"overrides": ["mesh.tensor=1"]}, "uses 2 of the 4 devices of h100:4"),
        ({"overrides": ["accumulate=8"]}, "wanted a multiple of 2, as by accumulate=4"),
        ({"overrides": ["mesh.tensr=2"]}, "mesh.tensr"),
        ({"recipe": "streamo_qwen25vl_3x"}, "streamo_qwen25vl_3x"),
        ({"recipe": "streamformer_pretrain", "stream": True}, "wanted a video LLM"),
    ],
)
def test_what_is_wrong_with_a_recipe_or_a_mesh(recipe, more, said):
    with pytest.raises((InputError, FileNotFoundError), match=said) as error:
        child.answer(request_of(recipe, **more))
    assert "\n" not in str(error.value)


@pytest.fixture
def speaking(tmp_path, monkeypatch):
    """Puts a script in the place of the compiling process."""

    def says(script):
        path = tmp_path / "child"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(sys, "executable", str(path))

    return says


def test_the_childs_answer_becomes_a_report(found, speaking, tmp_path):
    (tmp_path / "answer").write_text(json.dumps({"done": found}))
    speaking(
        f"""echo 'a library prints'; echo '{{"progress": "compiling"}}'; cat {tmp_path}/answer"""
    )
    heard = []
    report = fit("tiny", "h100:4", progress=heard.append)
    assert report.fits and heard == ["compiling"]


def test_what_the_child_finds_wrong_is_the_users_to_mend(speaking):
    speaking("""echo '{"wrong": "unknown recipe"}'""")
    with pytest.raises(InputError, match="unknown recipe"):
        fit("tinny", "h100:4")


def test_a_compiler_that_aborts_has_its_last_words_told(speaking, capsys):
    speaking("""echo 'F0000 Check failed: a == b' >&2; echo noise >&2; kill -ABRT $$""")
    with pytest.raises(CompileError, match=r"-6: .*Check failed: a == b"):
        fit("tiny", "h100:4")
    assert cli.main(["fit", "tiny", "--topology", "h100:4"]) == 1
    assert "streamjax: the compiler's process ended" in capsys.readouterr().err


def test_the_verb_ends_with_one_line_and_2_for_a_wrong_name(capsys):
    assert cli.main(["fit", "tiny", "--topology", "v5e:5x5"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "v5e: 1x1" in err


def test_the_verb_prints_one_line_of_json(found, speaking, tmp_path, capsys):
    (tmp_path / "answer").write_text(json.dumps({"done": found}))
    speaking(f"cat {tmp_path}/answer")
    assert cli.main(["fit", "tiny", "--topology", "h100:4", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["fits"] is True


@pytest.mark.slow
def test_libtpu_compiles_the_step(recipe):
    """With the search; about 40 s of one core."""
    pytest.importorskip("libtpu")
    report = fit(recipe, "v5e:2x2", search=2)
    assert report.fits and report.prediction is not None and 0 < report.prediction.mfu < 1
    assert report.largest is not None and report.largest["rows"] >= report.rows
