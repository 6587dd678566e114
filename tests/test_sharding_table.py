"""Where Qwen2.5-VL 3B and 7B live on 256 devices: every array, and no big one on all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import Assets, QwenImageProcessor
from streamjax.models import qwen2_5_vl
from streamjax.ops.cache import cache_shardings
from streamjax.sharding import MESH_AXES, placement_table, placements
from streamjax.train import OptimConfig, TrainConfig, streamo
from streamjax.train.layout import layout
from streamjax.train.objectives import converse
from streamjax.train.state import set_up

MESH = AbstractMesh((1, 64, 4, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
LENGTH = 2048
MB = 10**6


def batch_of(model_config, rows):
    """Shapes of a batch of as many rows, two pictures in each."""
    maker = streamo.rows_of(model_config, length=LENGTH, dialogues=2)
    grid = np.array([[1, 4, 4]] * 2, np.int32)
    tokens = np.full(20, 1, np.int32)
    tokens[2:6] = tokens[10:14] = maker.pictures.image_id
    pixels = np.zeros((32, 3, 196), np.uint8)
    row = maker.row([{"tokens": tokens, "labels": tokens, "pixels": pixels, "grid": grid}])
    return {k: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype) for k, v in row.items()}


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_every_array_has_its_place(size):
    wanted = qwen2_5_vl.SIZES[size]
    model = functools.partial(
        streamo.fresh,
        config=wanted,
        assets=Assets(None, QwenImageProcessor()),
        dtype=jnp.bfloat16,
    )
    config = TrainConfig(
        name=size, steps=10, batch_size=64, model=model, weights="fresh",
        objective=functools.partial(converse, state_ids=(1, 2, 3)),
        data=DataConfig(source=list, transform=lambda record, rng: record),
        optim=OptimConfig(lr=1e-5), trainable=("decoder", "visual/merger"),
    )  # fmt: skip
    setup = set_up(config, MESH)
    rows = layout(config, setup, batch_of(wanted, 64), MESH)
    blank = nnx.eval_shape(lambda: model(nnx.Rngs(0)))
    cache = jax.eval_shape(lambda: blank.init_cache(64, capacity=16384, sink=256))
    rows += placements(cache, cache_shardings(cache, MESH), "cache")
    print(f"\n{size} on {dict(MESH.shape)}\n{placement_table(rows)}")

    by_path = {row.path: row for row in rows}
    parts = {path.split("/")[0] for path in by_path}
    assert parts == {"params", "frozen", "opt_state", "batch", "activations", "cache"}
    attended = by_path["activations/attention.causal_attention"]
    logits = by_path["activations/stream.chunked_stream_loss/on a device"]
    assert attended.copies < 256
    assert logits.shape == (1, 256, wanted.decoder.vocab_size // 4)
    everywhere = [row.path for row in rows if row.copies == 256 and row.bytes > MB]
    assert not everywhere
    # Matrices and their moments are cut over both axes; a patch kernel's rows do not divide.
    state = [row for row in rows if row.path.split("/")[0] in ("params", "frozen", "opt_state")]
    twice = {row.path for row in state if row.copies > 1 and row.bytes > MB}
    assert twice == {"frozen/visual/patch/proj/kernel"}
