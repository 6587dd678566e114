"""What the training benchmark says of a step: its operations, against a count by XLA."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from streamjax import cli
from streamjax.bench import train
from streamjax.bench.frame import TOWERS
from streamjax.models.layers import unstack
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.train.state import named
from streamjax.train.video_tasks import recognise

# Wide enough for its products to outweigh what XLA counts beside them: norms, softmax, gelu.
WIDE = StreamFormerConfig(
    image_size=32, patch_size=8, num_frames=4, hidden_size=256, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=1024, enable_causal_temporal=True,
    add_lora_spatial=True,
)  # fmt: skip
BATCH, FRAMES = 2, 4


@pytest.mark.parametrize("lora", [True, False])
def test_operations_are_those_that_xla_counts(lora):
    config = dataclasses.replace(WIDE, add_lora_spatial=lora)
    model = train._model(nnx.Rngs(0), tower=config, dtype=jnp.float32, remat=None)
    model.tower.layers = nnx.List(unstack(model.tower.layers, config.num_hidden_layers))
    left = ("text", *(f"attn/{part}" for part in ("qkv/kernel", "qkv/bias", "out/kernel")))

    def trained(path, leaf):
        wanted = isinstance(leaf, nnx.Param) and not named(path, "text")
        return wanted and not (lora and any(named(path, name) for name in left))

    graph, params, rest = nnx.split(model, trained, ...)

    def loss(params, rest, batch):
        model = nnx.merge(graph, params, rest)
        model.tower.layers = tuple(model.tower.layers)
        return recognise(model, batch, task=train.TASK)[0]

    side = config.image_size
    batch = {
        "frames": jax.ShapeDtypeStruct((BATCH, FRAMES, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    cost = jax.jit(jax.value_and_grad(loss)).lower(params, rest, batch).cost_analysis()
    assert cost is not None
    told = sum(p.step_flops for p in train.products(config, BATCH, FRAMES))
    told += train.attention_flops(config, BATCH, FRAMES)
    assert told == pytest.approx(cost["flops"], rel=0.03)


def test_a_base_clip_takes_about_two_teraflop():
    wanted = train.products(TOWERS["base"], 1, 16)
    forward = sum(p.count * p.flops for p in wanted)
    assert forward == pytest.approx(16 * 47.2e9, rel=0.02)  # specs/performance.md section 1
    frozen = 12 * 2 * 16 * 196 * 4 * 768**2  # the spatial kernels' gradients are not computed
    patch = 2 * 16 * 196 * 768**2  # nor is the frames'
    classes = 2 * 400 * 768  # nor the class table's
    step = sum(p.step_flops for p in wanted)
    assert step == pytest.approx(3 * forward - frozen - patch - classes, rel=1e-6)


def test_bench_train_tells_step_and_floor(capsys):
    asked = ["bench", "train", "--family", "streamformer", "--size", "tiny", "--clip", "4"]
    assert cli.main([*asked, "--batch", "2", "--steps", "2"]) == 0
    header, row, where = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["clips", "frames"] and "measured here" in where
    clips, frames, rate, step, floor, ratio, *_ = map(float, row.split())
    assert (clips, frames) == (2, 4) and floor > 0
    assert step == pytest.approx(1e3 * clips / rate, rel=0.05)
    assert ratio == pytest.approx(step / floor, rel=0.1)
    assert cli.main([*asked, "--steps", "0"]) == 2
    assert "--steps 0" in capsys.readouterr().err


def test_the_stated_peak_is_of_the_card_named_in_full(monkeypatch):
    class Device:
        device_kind = "NVIDIA L40S"

    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert train.stated_peak(jnp.bfloat16) == 362e12
    assert train.stated_peak(jnp.float32) is None
    Device.device_kind = "cpu"
    assert train.stated_peak(jnp.bfloat16) is None
