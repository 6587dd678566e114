"""How fast a training step is on this machine, beside the products that it cannot do without.

The step is the trainer's own (forward, backward, AdamW) on StreamFormer's recognition task. Its
floor is the products with parameters alone, at their shapes: the forward product and the gradient
by its input of every linear map, and the gradient by its kernel where the kernel is trained. They
are timed between the steps, each shape by itself and as often as the model has it. Weights are
random: they cost what trained ones cost.
"""

import collections
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.bench.frame import TOWERS
from streamjax.data.pipeline import DataConfig
from streamjax.models.layers import Remat
from streamjax.models.pretraining import Pretraining, frozen
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import LORA_RANK, StreamFormer, StreamFormerConfig
from streamjax.sharding import make_mesh
from streamjax.train.chips import chip_of
from streamjax.train.config import OptimConfig, TrainConfig, streamformer_undecayed
from streamjax.train.state import TrainState, set_up
from streamjax.train.step import make_step, put
from streamjax.train.video_tasks import recognise

TASK = "Kinetics"
CLASSES = 400
# Layers keep what their linear maps say and work the rest out again: attention, norms, gelu. On a
# CPU that takes no longer than keeping all, and 0.6 times the memory.
REMAT: Remat = "dots_with_no_batch_dims_saveable"
# Of parameters drawn at random, by what is in their names; the others have a mean of 0.
MEANS = {"logit_scale": 2.3, "logit_bias": -2.0, "scale": 1.0, "gate": 0.5}


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of rows [m d] with a kernel [d f], `count` times in a step, and its gradients."""

    rows: int
    d: int
    f: int
    by_input: bool = True
    by_kernel: bool = True
    count: int = 1

    @property
    def flops(self) -> float:
        """Of one of the up to three products."""
        return 2.0 * self.rows * self.d * self.f

    @property
    def step_flops(self) -> float:
        return self.count * self.flops * (1 + self.by_input + self.by_kernel)


@dataclasses.dataclass(frozen=True)
class TrainRow:
    """One step of `batch` clips: median seconds of it and of its products; operations of both.

    peak: operations per second, stated of the device or measured with the products. memory: bytes
    that the compiled step needs beside the state and the batch.
    """

    batch: int
    frames: int
    step: float
    products: float
    flops: float
    product_flops: float
    peak: float
    stated: bool
    memory: int

    @property
    def mfu(self) -> float:
        """Share of the peak: operations that the step needs, not those that it does twice."""
        return self.flops / self.step / self.peak


@dataclasses.dataclass
class Case:
    """A run about to take its first step; `step(state, batch)` is compiled and takes the state."""

    config: TrainConfig
    tower: StreamFormerConfig
    state: TrainState
    batch: Any
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    memory: int


def bench_train(
    size: str, dtype: Any, batch: int, frames: int, steps: int, remat: Remat | None = REMAT
) -> TrainRow:
    """Times `steps` steps of a StreamFormer on clips of `frames` frames, and the products between.

    size: of TOWERS. dtype: of the computation; parameters and moments are float32.
    """
    case = make_case(size, dtype, batch, frames, remat)
    wanted = products(case.tower, batch, frames)
    floor = time_products(wanted, dtype)
    case.state, told = case.step(case.state, case.batch)
    jax.block_until_ready(told)
    next(floor)
    seconds, floors = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        case.state, told = case.step(case.state, case.batch)
        jax.block_until_ready((case.state, told))
        seconds.append(time.perf_counter() - begin)
        floors.append(next(floor))
    at_floor = statistics.median(floors)
    product_flops = sum(p.step_flops for p in wanted)
    peak = stated_peak(dtype)
    return TrainRow(
        batch, frames, statistics.median(seconds), at_floor,
        product_flops + attention_flops(case.tower, batch, frames), product_flops,
        peak or product_flops / at_floor, peak is not None, case.memory,
    )  # fmt: skip


def train_table(rows: Sequence[TrainRow]) -> str:
    """The rows as text: clips per second, seconds of step and floor, and the share of the peak."""
    lines = [
        f"{'clips':>5} {'frames':>6} {'clips/s':>9} {'step ms':>9} {'floor ms':>9} {'ratio':>6} "
        f"{'GFLOP':>9} {'GFLOP/s':>9} {'peak':>9} {'MFU':>6} {'temp MiB':>9}"
    ]
    lines += [
        f"{row.batch:>5} {row.frames:>6} {row.batch / row.step:>9.3f} {1e3 * row.step:>9.1f} "
        f"{1e3 * row.products:>9.1f} {row.step / row.products:>6.2f} {row.flops / 1e9:>9.1f} "
        f"{row.flops / row.step / 1e9:>9.0f} {row.peak / 1e9:>9.0f} {row.mfu:>6.2f} "
        f"{row.memory / 2**20:>9.0f}"
        for row in rows
    ]
    where = "stated for this device" if rows[0].stated else "of the products, measured here"
    return "\n".join([*lines, f"peak: {where}"])


def make_case(size: str, dtype: Any, batch: int, frames: int, remat: Remat | None = REMAT) -> Case:
    """The published step on one task and one device, weights of trained size, ready to run."""
    tower = TOWERS[size]
    config = TrainConfig(
        name="bench",
        steps=1000,
        batch_size=batch,
        model=functools.partial(_model, tower=tower, dtype=dtype, remat=remat),
        weights="loaded",
        objective=functools.partial(recognise, task=TASK),
        data=DataConfig(source=list, transform=_untouched),
        # specs/streamformer.md section 7
        optim=OptimConfig(
            lr=7e-5, schedule="constant", weight_decay=0.05, clip=None,
            no_decay=streamformer_undecayed,
        ),
        frozen=frozen(tower),
    )  # fmt: skip
    mesh = make_mesh()
    setup = set_up(config, mesh)
    side, rng = tower.image_size, np.random.default_rng(1)
    clips = {
        "frames": rng.integers(0, 256, (batch, frames, side, side, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch).astype(np.int32),
    }
    arrays, state = put(config, clips, mesh), setup.make()
    jitted: Any = make_step(config, setup, mesh)  # of one task: a jitted function
    step = jitted.lower(state, arrays).compile()
    memory = step.memory_analysis()
    return Case(config, tower, state, arrays, step, getattr(memory, "temp_size_in_bytes", 0))


def products(c: StreamFormerConfig, batch: int, frames: int) -> list[Product]:
    """Every product of a step that has a parameter on one side.

    The frozen kernels of the spatial attention have no gradient, and the frames want none. The
    pooling head's query is the same for all frames, so that its maps are of a row, not of patches.
    """
    d, f, r, n = c.hidden_size, c.intermediate_size, LORA_RANK, c.num_attention_heads
    m, clips = batch * frames * c.patches, batch * frames
    trained = not c.add_lora_spatial
    layer = [(d, 3 * d, True), (d, d, True), (d, d, True)]  # over time
    layer += [(d, 3 * d, trained), (d, d, trained), (d, f, True), (f, d, True)]
    if c.add_lora_spatial:
        layer += [(d, r, True), (r, 3 * d, True), (d, r, True), (r, d, True)]
    counts = collections.Counter(layer)
    found = [
        Product(m, i, o, by_kernel=by_kernel, count=c.num_hidden_layers * count)
        for (i, o, by_kernel), count in counts.items()
    ]
    found.append(Product(m, c.patch_size**2 * c.num_channels, d, by_input=False))
    found += [Product(m, d, n, count=2), Product(1, d, d, count=2)]  # scores and mean; the query
    found += [Product(clips, d, d, count=2), Product(clips, d, f), Product(clips, f, d)]
    # The table of classes is fixed.
    return [*found, Product(batch, d, CLASSES, by_kernel=False)]


def attention_flops(c: StreamFormerConfig, batch: int, frames: int) -> float:
    """Of scores and weighted sums over space and time, two products forward and four backward.

    Masked pairs count: the whole square over time is computed.
    """
    space = batch * frames * c.patches**2
    over_time = batch * c.patches * frames**2
    return 6 * 2.0 * c.hidden_size * c.num_hidden_layers * (space + over_time)


def time_products(
    wanted: Sequence[Product], dtype: Any, clock: Callable[[], float] = time.perf_counter
) -> Iterator[float]:
    """Yields seconds for all of them, each shape timed anew and counted as often as it occurs.

    Results are written over the ones before, so that no time goes into fresh pages.
    """
    rng = np.random.default_rng(0)
    runs: list[_Run] = []
    for p in wanted:
        x, w, g = (
            jnp.asarray(rng.normal(0, 0.1, shape), dtype)
            for shape in ((p.rows, p.d), (p.d, p.f), (p.rows, p.f))
        )
        kinds = [(x, w, (1, 0))]
        kinds += [(g, w, (1, 1))] * p.by_input + [(x, g, (0, 0))] * p.by_kernel
        for left, right, axes in kinds:
            sizes = left.shape[1 - axes[0]], right.shape[1 - axes[1]]
            runs.append(_Run(p.count, left, right, axes, jnp.zeros(sizes, dtype)))
    while True:
        total = 0.0
        for run in runs:
            begin = clock()
            run.out = jax.block_until_ready(_product(run.left, run.right, run.out, run.axes))
            total += run.count * (clock() - begin)
        yield total


@dataclasses.dataclass
class _Run:
    """One product: its sides, which axis of each is summed over, and where the result goes."""

    count: int
    left: jax.Array
    right: jax.Array
    axes: tuple[int, int]
    out: jax.Array


def stated_peak(dtype: Any) -> float | None:
    """Operations per second that the maker states, bfloat16 without sparsity; None if unknown."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.flops if chip is not None and jnp.dtype(dtype) == jnp.bfloat16 else None


@functools.partial(jax.jit, static_argnums=3, donate_argnums=2, keep_unused=True)
def _product(a, b, out, axes):
    del out  # only its memory is wanted
    y = jax.lax.dot_general(
        a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32
    )
    return y.astype(a.dtype)


def _model(
    rngs: nnx.Rngs, *, tower: StreamFormerConfig, dtype: Any, remat: Remat | None
) -> Pretraining:
    """Parameters of trained size: gates half open, norms about 1; the text tower a stand-in."""
    text = SiglipTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip

    def make() -> Pretraining:
        return Pretraining(
            StreamFormer(tower, rngs=nnx.Rngs(0), dtype=dtype, remat=remat),
            SiglipText(text, rngs=nnx.Rngs(0)),
            kinds={TASK: "recognition"},
            labels={TASK: {TASK: jnp.zeros((CLASSES, tower.hidden_size))}},
            logit_scale=0.0,
            logit_bias=0.0,
        )

    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        mean = next((mean for part, mean in MEANS.items() if part in name), 0.0)
        return jnp.asarray(rng.normal(mean, 0.02, leaf.shape).astype(np.float32))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def _untouched(record: Any, rng: np.random.Generator) -> Any:
    del rng
    return record
