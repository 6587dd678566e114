"""How long a silent turn of a video LLM takes under each window policy.

The language model is the one of `frame.bench_stream`, the tower is small and a frame 64 visual
tokens, so that what is timed is the policies. A turn is a frame, 12 tokens of text, and the answer
of the turn before; weights are random. `benchmarks/vlm_stream.py` times transformers beside it.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

from streamjax.bench.frame import DECODERS, random_model
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.models import internvl, qwen2_5_vl, qwen3_vl
from streamjax.stream import Stream
from streamjax.stream.book import POLICIES

VISUAL, TEXT = 64, 12
TURN = VISUAL + TEXT + 2  # with the state and the end of the answer before
EVERY = 16  # turns between two readings under `refill`
FRAMES = 8  # of `recent`


@dataclasses.dataclass(frozen=True)
class PolicyRow:
    """One policy: tokens in the cache, and the mean seconds of a turn over a cycle of readings."""

    policy: str
    context: int
    turn: float


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model of a family, a frame as its processor makes one, and a turn's tokens."""

    model: Any
    frame: tuple[np.ndarray, tuple[int, int, int]]
    chunk: list[int]


def subject(family: str, size: str, dtype: Any) -> Subject:
    """A model of random weights; `size` is one of bench.DECODERS."""
    model, frame = FAMILIES[family](size, dtype)
    pad = model.placeholders[0]
    return Subject(model, frame, [5] * (TEXT // 2) + [pad] * VISUAL + [6] * (TEXT // 2))


def bench_policies(
    family: str, size: str, dtype: Any, context: int, cycles: int
) -> list[PolicyRow]:
    """Each policy with about `context` tokens remembered, `cycles` times EVERY turns each."""
    case = subject(family, size, dtype)
    timed = cycles * EVERY
    turns = {policy: filled(case, policy, context, timed) for policy in POLICIES}
    held = dict.fromkeys(POLICIES, 0)
    seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for i in range(timed):
        for policy, (stream, turn) in turns.items():
            held[policy] = tokens_held(stream) if i == timed // 2 else held[policy]
            begin = time.perf_counter()
            turn()
            seconds[policy].append(time.perf_counter() - begin)
    return [PolicyRow(policy, held[policy], _cycle_mean(seconds[policy])) for policy in POLICIES]


def filled(
    case: Subject, policy: str, context: int, timed: int = 0
) -> tuple[Any, Callable[[], Any]]:
    """A stream that remembers about `context` tokens, and its next silent turn.

    `full` does so in the middle of the `timed` turns to come, `refill` in the middle of a cycle.
    `recent` has FRAMES frames, whatever the context, and words of its own, because it writes its
    prompt itself.
    """
    turns = max(context // TURN, 10)
    options: dict[str, Any] = {"window": turns, "capacity": context + 40 * TURN}
    options |= {"state_ids": (1, 2, 3), "end_id": 4}
    chunk: Any = case.chunk
    if policy == "refill":
        options |= {"window": turns - EVERY // 2, "every": EVERY}
    elif policy == "full":
        options |= {"capacity": context + (timed + 40) * TURN}
    elif policy == "recent":
        options = dict[str, Any](window=FRAMES, tokenizer=_words(), system="")
        chunk = None
    stream = Stream(case.model, policy=policy, max_new_tokens=1, **options)

    def turn():
        return stream.push(case.frame, chunk)

    # `refill` ends on a turn that reads again, so that a cycle's turns are timed with one reading.
    fill = {"full": max(turns - timed // 2, 3), "recent": FRAMES + 2, "refill": turns + EVERY // 2}
    for _ in range(fill.get(policy, turns + 3)):
        turn()
    return stream, turn


def tokens_held(stream: Any) -> int:
    return int(stream._batch._engine.cache.length[0])


def policy_table(rows: Sequence[PolicyRow]) -> str:
    lines = [f"{'policy':<8} {'tokens held':>11} {'turn ms':>8}"]
    lines += [f"{row.policy:<8} {row.context:>11} {1e3 * row.turn:>8.1f}" for row in rows]
    return "\n".join(lines)


def _cycle_mean(seconds: Sequence[float]) -> float:
    """The median, over cycles, of a cycle's mean: a reading counts, a busy moment less."""
    cycles = [seconds[i : i + EVERY] for i in range(0, len(seconds), EVERY)]
    return statistics.median(statistics.mean(cycle) for cycle in cycles)


def _words() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return build_word_tokenizer(
            ["<|vision_start|><|vision_end|><img></img>"], folder, numbers=1000
        )


def _qwen2_5_vl(size: str, dtype: Any) -> tuple[Any, tuple]:
    text, ids = DECODERS[size], _ids(size)
    vision = qwen2_5_vl.VisionConfig(
        **_tower(size), patch_size=14, window_size=112, fullatt_block_indexes=(1,),
        tokens_per_second=2, hidden_act="silu",
    )  # fmt: skip
    text = dataclasses.replace(text, mrope_section=_sections(text))
    config = qwen2_5_vl.Qwen2_5_VLConfig(vision=vision, decoder=text, **ids)
    model = random_model(
        lambda: qwen2_5_vl.Qwen2_5_VL(config, rngs=nnx.Rngs(0), dtype=dtype), dtype
    )
    return model, (_noise(256, 3 * 2 * 14 * 14), (1, 16, 16))


def _qwen3_vl(size: str, dtype: Any) -> tuple[Any, tuple]:
    text, ids = DECODERS[size], _ids(size)
    vision = qwen3_vl.VisionConfig(
        **_tower(size), patch_size=16, num_position_embeddings=256,
        deepstack_visual_indexes=(0,), hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    text = dataclasses.replace(
        text, mrope_section=_sections(text), mrope_interleaved=True, qk_norm=True,
        attention_bias=False,
    )  # fmt: skip
    config = qwen3_vl.Qwen3_VLConfig(vision=vision, decoder=text, **ids)
    model = random_model(lambda: qwen3_vl.Qwen3_VL(config, rngs=nnx.Rngs(0), dtype=dtype), dtype)
    return model, (_noise(256, 3 * 2 * 16 * 16), (1, 16, 16))


def _internvl(size: str, dtype: Any) -> tuple[Any, tuple]:
    vision = internvl.InternViTConfig(
        image_size=224, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128,
    )  # fmt: skip
    image = _ids(size)["image_token_id"]
    config = internvl.InternVLConfig(vision=vision, decoder=DECODERS[size], image_token_id=image)
    model = random_model(lambda: internvl.InternVL(config, rngs=nnx.Rngs(0), dtype=dtype), dtype)
    return model, (_noise(1, 3, 224, 224), (1, 16, 16))


FAMILIES: dict[str, Callable[[str, Any], tuple[Any, tuple]]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
}


def _tower(size: str) -> dict[str, int]:
    return {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
        "out_hidden_size": DECODERS[size].hidden_size, "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }  # fmt: skip


def _ids(size: str) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: DECODERS[size].vocab_size - 1 - i for i, name in enumerate(names)}


def _sections(text: Any) -> tuple[int, int, int]:
    """Qwen's shares of a head's pairs: a quarter for time, the rest for rows and columns."""
    half = text.head // 2
    side = half * 3 // 8
    return half - 2 * side, side, side


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
