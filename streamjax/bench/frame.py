"""How fast a stream is on this machine, beside the floor that it sets in the same run.

The floor of a frame is what nobody can leave out: the model's matrix products, at the shapes and on
the weights of the folded model and nothing else in between, and the bytes of its cache at the read
bandwidth measured here. Frames and floors are timed in turns, so that a busy machine slows both.
Weights are random: they cost what trained ones cost.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.models.decoder import DecoderConfig
from streamjax.models.llava_streamformer import (
    PLACEHOLDER,
    LlavaStreamFormer,
    LlavaStreamFormerConfig,
)
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.ops.linear import linear
from streamjax.stream import FeatureStream, Stream

# Towers and language models by size; "base" is StreamFormer's own, and a decoder of 8 layers.
TOWERS = {
    "base": StreamFormerConfig(enable_causal_temporal=True, add_lora_spatial=True),
    "tiny": StreamFormerConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, enable_causal_temporal=True, add_lora_spatial=True,
    ),
}  # fmt: skip
DECODERS = {
    "base": DecoderConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2,
    ),
    "tiny": DecoderConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    ),
}  # fmt: skip
TEXT = 24  # tokens of text in a turn that asks nothing: header, time tag, header, answer


@dataclasses.dataclass(frozen=True)
class Row:
    """Medians in seconds of one streaming frame, of its floor, and of the floor's two parts."""

    window: int
    frame: float
    products: float
    cache: float

    @property
    def floor(self) -> float:
        return self.products + self.cache


def bench_encode(size: str, dtype: Any, window: int, frames: int) -> Row:
    """A StreamFormer's frame with a full window of `window` frames."""
    model = random_model(lambda: StreamFormer(TOWERS[size], rngs=nnx.Rngs(0), dtype=dtype), dtype)
    stream = FeatureStream(model, window=window)
    frame = _noise(model.config.image_size)
    for _ in range(window + 2):
        stream.push(frame)
    folded = stream._model
    products = _tower_products(folded)
    measured = _in_turns(frames, lambda: stream.push(frame).latency["encode"], products, dtype)
    return Row(window, *measured, _bytes_of(stream._cache) / read_bandwidth())


def bench_stream(size: str, dtype: Any, window: int, frames: int) -> Row:
    """An assistant's silent turn, tower and decoder, with a full window of `window` turns."""
    config = LlavaStreamFormerConfig(tower=TOWERS[size], decoder=DECODERS[size])
    model = random_model(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0), dtype=dtype), dtype)
    stream = Stream(model, window=window, state_ids=(1, 2, 3), end_id=4, max_new_tokens=1)
    frame = _noise(config.tower.image_size)
    chunk = np.asarray([5] * (TEXT // 2) + [PLACEHOLDER] + [5] * (TEXT // 2), np.int32)
    for _ in range(window + 2):
        stream.push(frame, chunk)
    engine = stream._batch._engine
    folded = engine._model
    side = config.tower.image_size // config.tower.patch_size
    (visual,) = folded.visual_tokens([(1, side, side)])
    products = _tower_products(folded.tower)
    products += [(config.tower.patches, k) for k in _kernels(folded.projector)]
    products += [(visual + TEXT, k) for k in _layer_kernels(folded.decoder.layers)]
    products.append((1, folded.head_kernel()))
    measured = _in_turns(
        frames, lambda: stream.push(frame, chunk).latency["decide"], products, dtype
    )
    # Only the tokens that are remembered have to be read, however large the ring is.
    cache = engine.cache
    share = int(cache.length[0]) / cache.positions.shape[-1]
    held = share * _bytes_of((cache.k, cache.v)) + _bytes_of(engine.frames)
    return Row(window, *measured, held / read_bandwidth())


def read_bandwidth(megabytes: int = 256) -> float:
    """Bytes per second at which this machine sums a large array."""
    x = jnp.ones((megabytes * 2**18,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(x).block_until_ready()
    return x.nbytes / min(_seconds(lambda: total(x).block_until_ready()) for _ in range(5))


def table(rows: Sequence[Row], unit: str) -> str:
    """The rows as text: milliseconds, and how many times the floor a frame takes."""
    lines = [f"{unit:>8} {'frame ms':>9} {'floor ms':>9} {'products':>9} {'cache':>7} {'ratio':>6}"]
    lines += [
        f"{row.window:>8} {1e3 * row.frame:>9.2f} {1e3 * row.floor:>9.2f} "
        f"{1e3 * row.products:>9.2f} {1e3 * row.cache:>7.2f} {row.frame / row.floor:>6.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def _in_turns(
    count: int, frame: Callable[[], float], products: list, dtype: Any
) -> tuple[float, float]:
    """Median seconds of a frame and of the products, measured alternately."""
    floor = _products_program(products, dtype)
    floor()
    pairs = [(frame(), _seconds(floor)) for _ in range(count)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def _products_program(products: list[tuple[int, Any]], dtype: Any) -> Callable[[], Any]:
    """Runs every (rows, kernel [d f]) as one program, each product waiting for the one before."""
    kernels = [kernel for _, kernel in products]
    inputs = {(rows, k.shape[0]): jnp.ones((rows, k.shape[0]), dtype) for rows, k in products}
    order = [(rows, k.shape[0]) for rows, k in products]

    @jax.jit
    def run(inputs, kernels):
        results, before = [], jnp.zeros((), dtype)
        for place, kernel in zip(order, kernels, strict=True):
            y = linear(inputs[place] + before, kernel)
            before = y[0, 0] * 0  # a number that is only known when the product is
            results.append(y)  # all of it is wanted: nothing may be left out
        return results

    return lambda: jax.block_until_ready(run(inputs, kernels))


def _tower_products(tower: Any) -> list[tuple[int, Any]]:
    patches = tower.config.patches
    products = [(patches, tower.patch.kernel[...])]
    products += [(patches, k) for k in _layer_kernels(tower.layers)]
    # The head's query is the same for every frame: its maps are of one row, not of all patches.
    one = (tower.head.out, tower.head.mlp.up, tower.head.mlp.down)
    return products + [(1, part.kernel[...]) for part in one]


def _kernels(part: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(part) if leaf.ndim == 2]


def _layer_kernels(layers: Any) -> list[Any]:
    """The matrices of all layers, one by one, in either of their two forms."""
    if isinstance(layers, tuple):
        return _kernels(layers)
    return [kernel for leaf in jax.tree.leaves(layers) if leaf.ndim == 3 for kernel in leaf]


def random_model(make: Callable[[], Any], dtype: Any) -> Any:
    """What `make()` makes, its parameters drawn by numpy: nothing of it has to be compiled."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, 0.02, leaf.shape).astype(np.float32), dtype)

    return nnx.merge(graph, jax.tree.map(draw, shapes))


def _noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (side, side, 3)).astype(np.float32)


def _bytes_of(cache: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
