"""Tiny streams for what outlives a process: traces and snapshots, in this one and in another."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import streamjax as sj
from streamjax.data.processors import Assets, ImageProcessor
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.models.decoder import DecoderConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.qwen3_vl import Qwen3_VL, Qwen3_VLConfig, VisionConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.stream import engine

SIDE, TURNS = 16, 26
SYSTEM = "you watch"
WORDS = "you watch tell me when the light turns red green what is it now moving ball"
QUESTIONS = {0: "tell me when the light turns red", 5: "what is it now"}
# As small as they may be, so that everything is forgotten several times.
# Every text in one size of chunk: half the programs to compile.
BUCKETS = (64, 64, 64, 64, 64, 64, 512)
SMALL = dict(max_new_tokens=4, capacity=300, window=3)


def write_assistant(home: Path, **decoder) -> Path:
    """A folder with a LLaVA-StreamFormer that says all sorts of things; its tower remembers."""
    decoder = dict(num_attention_heads=4, num_key_value_heads=2) | decoder
    tokenizer = build_word_tokenizer([WORDS], home / "words", numbers=60, tags=60)
    settings = home / "words" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"system_prompt": SYSTEM}))
    config = LlavaStreamFormerConfig(
        tower=StreamFormerConfig(
            image_size=SIDE, patch_size=4, num_frames=4, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
        ),
        decoder=DecoderConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            rope_theta=100.0, max_position_embeddings=1024, **decoder,
        ),
    )  # fmt: skip
    model = filled(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0)))
    size = (SIDE, SIDE)
    model.assets = Assets(tokenizer=str(home / "words"), processor=ImageProcessor(size=size))
    sj.save(model, home / "assistant")
    return home / "assistant"


def write_qwen(home: Path) -> Path:
    """A folder with a Qwen3-VL (M-RoPE, deepstack) in bfloat16, without tokenizer or processor."""
    config = Qwen3_VLConfig(
        vision=VisionConfig(
            depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
            patch_size=4, num_position_embeddings=16, deepstack_visual_indexes=(0,),
            temporal_patch_size=2, spatial_merge_size=2, hidden_act="gelu_pytorch_tanh",
        ),
        decoder=DecoderConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=False,
            qk_norm=True, rope_theta=100.0, mrope_section=(2, 1, 1), mrope_interleaved=True,
            max_position_embeddings=1024,
        ),
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip
    model = filled(lambda: Qwen3_VL(config, rngs=nnx.Rngs(0)), jnp.bfloat16)
    sj.save(model, home / "qwen")
    return home / "qwen"


def filled(make, dtype=jnp.float32):
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), dtype), shapes)
    return nnx.merge(graph, values)


def frames_for(model) -> list:
    """Pictures for a LLaVA; (pixels, grid row) for a Qwen without a processor."""
    rng = np.random.default_rng(0)
    if isinstance(model, LlavaStreamFormer):
        return list(rng.integers(0, 256, (TURNS, SIDE, SIDE, 3), np.uint8))
    c = model.config.vision
    width = 3 * c.temporal_patch_size * c.patch_size**2
    return [(rng.normal(size=(16, width)).astype(np.float32), (1, 4, 4)) for _ in range(TURNS)]


def pushed(model, index: int) -> dict:
    """What is pushed with a frame: a ready chunk where there is no tokenizer."""
    if isinstance(model, LlavaStreamFormer):
        return {}
    head = [7, 8, 9] if index == 0 else []
    chunk = [*head, 11, 12, model.placeholders[0], 20 + index]
    return {"tokens": chunk, "keep": len(head)}


def watch(stream, model, start: int, stop: int) -> list:
    turns = []
    for index, frame in list(enumerate(frames_for(model)))[start:stop]:
        if index in QUESTIONS and stream.tokenizer is not None:
            stream.ask(QUESTIONS[index])
        turns.append(stream.push(frame, **pushed(model, index)))
    return turns


def numbers(turns) -> list:
    """All that has to be the same, as JSON has it."""
    return [[t.index, t.time, t.state, list(t.probabilities), list(t.tokens)] for t in turns]


def go_on(pairs: list[tuple[str, str]], start: int, stop: int) -> None:
    """Prints what restored streams say: pairs of (model folder, snapshot)."""
    engine.TEXT_BUCKETS = BUCKETS
    found = []
    for folder, path in pairs:
        model = sj.load(folder)
        found.append(numbers(watch(sj.restore(model, path), model, start, stop)))
    json.dump(found, sys.stdout)


def elsewhere(call: str) -> str:
    """What `kept.CALL` prints in another process, set up as this one is."""
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "jax.config.update('jax_default_matmul_precision', 'highest')\n"
        f"jax.config.update('jax_compilation_cache_dir', {jax.config.jax_compilation_cache_dir!r})\n"
        f"from tests.stream import kept; kept.{call}"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
