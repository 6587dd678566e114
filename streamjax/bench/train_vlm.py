"""How fast a training step of Qwen2.5-VL is on this machine, and what it needs.

The step is Streamo's (forward, backward, AdamW; the tower frozen) on rows of three dialogues side
by side. A turn is a frame of 64 visual tokens and 14 of text, which all have labels. Weights are
random: they cost what trained ones cost.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.bench.train import stated_peak
from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import Assets, QwenImageProcessor
from streamjax.data.processors.plans import PlanShape
from streamjax.data.rows import Patches, Rows
from streamjax.models import qwen2_5_vl
from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import Remat
from streamjax.sharding import make_mesh
from streamjax.train import streamo
from streamjax.train.config import OptimConfig, TrainConfig
from streamjax.train.flops import Flops, train_flops
from streamjax.train.objectives import converse
from streamjax.train.state import TrainState, set_up
from streamjax.train.step import make_step, put

SIDE = 16  # patches on the side of a frame
VISUAL, TEXT = SIDE**2 // 4, 14
DIALOGUES = 3
TRAINED = ("decoder", "visual/merger")


def _small(width: int, layers: int, heads: int, vocabulary: int) -> qwen2_5_vl.Qwen2_5_VLConfig:
    half = width // heads // 2
    side = half * 3 // 8
    return qwen2_5_vl.Qwen2_5_VLConfig(
        vision=qwen2_5_vl.VisionConfig(
            depth=2, hidden_size=64, intermediate_size=128, num_heads=2, out_hidden_size=width,
            patch_size=14, window_size=112, fullatt_block_indexes=(1,), temporal_patch_size=2,
            spatial_merge_size=2, tokens_per_second=2, hidden_act="silu",
        ),
        decoder=DecoderConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 11 // 4,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
            mrope_section=(half - 2 * side, side, side),
        ),
        image_token_id=vocabulary - 1, video_token_id=vocabulary - 2,
        vision_start_token_id=vocabulary - 3, vision_end_token_id=vocabulary - 4,
    )  # fmt: skip


# base: of specs/performance.md section 3, what one core of a CPU trains.
MODELS = {
    "base": _small(256, 4, 4, 8192),
    "tiny": _small(32, 2, 2, 128),
    **qwen2_5_vl.SIZES,
}


@dataclasses.dataclass
class Case:
    """A run about to take its first step; `step(state, batch)` is compiled and takes the state.

    host: the batch before it was put on the device. memory: bytes that the compiled step needs
    beside the state and the batch.
    """

    config: TrainConfig
    host: dict[str, np.ndarray]
    state: TrainState
    batch: Any
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    memory: int
    flops: Flops


@dataclasses.dataclass(frozen=True)
class TrainRow:
    """One step: median seconds, tokens in it, operations, bytes beside state and batch.

    peak: operations per second, as stated for the device; None where nobody states them.
    """

    tokens: int
    step: float
    flops: float
    memory: int
    peak: float | None


def bench_train(
    size: str, dtype: Any, length: int, rows: int, steps: int, remat: Remat | None
) -> TrainRow:
    """Times `steps` steps on `rows` rows of `length` tokens."""
    case = make_case(size, dtype, length, rows, remat)
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        case.state, told = case.step(case.state, case.batch)
        jax.block_until_ready((case.state, told))
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[1:])
    return TrainRow(rows * length, step, case.flops.step, case.memory, stated_peak(dtype))


def train_table(rows: Sequence[TrainRow]) -> str:
    """The rows as text; MFU is a share of the peak that the maker states."""
    lines = [
        f"{'tokens':>7} {'step ms':>9} {'tokens/s':>9} {'GFLOP':>10} {'GFLOP/s':>9} {'MFU':>6} "
        f"{'temp MiB':>9}"
    ]
    lines += [
        f"{row.tokens:>7} {1e3 * row.step:>9.1f} {row.tokens / row.step:>9.0f} "
        f"{row.flops / 1e9:>10.1f} {row.flops / row.step / 1e9:>9.0f} "
        f"{f'{row.flops / row.step / row.peak:.2f}' if row.peak else '-':>6} "
        f"{row.memory / 2**20:>9.0f}"
        for row in rows
    ]
    return "\n".join(lines)


def make_case(size: str, dtype: Any, length: int, rows: int, remat: Remat | None) -> Case:
    """Streamo's step on one device, ready to run. size: of MODELS; parameters are float32."""
    wanted = MODELS[size]
    assets = Assets(None, QwenImageProcessor())
    make = functools.partial(streamo.fresh, config=wanted, assets=assets, dtype=dtype, remat=remat)
    small = size not in qwen2_5_vl.SIZES
    config = TrainConfig(
        name="bench",
        steps=1000,
        batch_size=rows,
        # Numbers of a small model are drawn by numpy, which compiles nothing.
        model=functools.partial(_drawn, make=make) if small else make,
        weights="loaded" if small else "fresh",
        objective=functools.partial(converse, state_ids=(1, 2, 3), kind="ce"),
        data=DataConfig(source=list, transform=_untouched),
        optim=OptimConfig(lr=1e-5, schedule="constant", b2=0.95, weight_decay=0.1, clip=1.0),
        trainable=TRAINED,
    )
    mesh = make_mesh()
    setup, host = set_up(config, mesh), packed(wanted, length, rows)
    with jax.set_mesh(mesh):
        arrays, state = put(config, host, mesh), setup.make()
        program: Any = make_step(config, setup, mesh)
        step = program.lower(state, arrays).compile()
    blank = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    flops = train_flops(blank, setup.abstract.params, host)
    memory = getattr(step.memory_analysis(), "temp_size_in_bytes", 0)
    return Case(config, host, state, arrays, step, memory, flops)


def drawn(size: str) -> Any:
    """A small model of MODELS with the numbers that `make_case` gives it."""
    make = functools.partial(
        streamo.fresh, config=MODELS[size], assets=Assets(None, QwenImageProcessor())
    )
    return _drawn(nnx.Rngs(0), make=make)


def packed(config: qwen2_5_vl.Qwen2_5_VLConfig, length: int, rows: int) -> dict[str, np.ndarray]:
    """A batch of full rows, DIALOGUES dialogues of whole turns in each; the rest is padding."""
    rng, image = np.random.default_rng(0), config.image_token_id
    turns = length // (VISUAL + TEXT)
    shape = PlanShape(turns * SIDE**2, turns, SIDE**2, turns * (SIDE // 8) ** 2)
    maker = Rows(
        length=length, dialogues=DIALOGUES,
        pictures=Patches(image_id=image, window=config.vision.window, shape=shape),
    )  # fmt: skip

    def dialogue(turns: int) -> dict[str, np.ndarray]:
        text = rng.integers(4, image - 4, (turns, VISUAL + TEXT)).astype(np.int32)
        tokens, labels = text.copy(), text.copy()
        tokens[:, TEXT // 2 : TEXT // 2 + VISUAL] = image
        labels[:, TEXT // 2 : TEXT // 2 + VISUAL] = -100
        labels[0, 0] = -100
        return {
            "tokens": tokens.reshape(-1),
            "labels": labels.reshape(-1),
            "pixels": rng.integers(0, 256, (turns * SIDE**2, 3, 14 * 14), np.uint8),
            "grid": np.array([[1, SIDE, SIDE]] * turns, np.int32),
        }

    shares = [len(part) for part in np.array_split(np.arange(turns), DIALOGUES) if len(part)]
    made = [maker.row([dialogue(share) for share in shares]) for _ in range(rows)]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _drawn(rngs: nnx.Rngs, *, make: Callable[[nnx.Rngs], Any]) -> Any:
    del rngs  # numpy's generator draws: nothing has to be compiled
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = float("scale" in jax.tree_util.keystr(path))
        return jnp.asarray(rng.normal(mean, 0.02, leaf.shape).astype(np.float32))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def _untouched(record: Any, rng: np.random.Generator) -> Any:
    del rng
    return record
