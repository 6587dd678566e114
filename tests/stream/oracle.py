"""Tiny models of every family, and what their streams must equal, written down without a cache.

`whole` is the forward over the tokens that a turn sees, all turns as rows of one batch. `restricted`
is attention over retained tokens, numbered contiguously, with what was computed before they were
forgotten.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import streamjax as sj
from streamjax.data import chat
from streamjax.data.dialogue import STATES, user_content
from streamjax.data.positions import mrope_positions
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.models import qwen2_5_vl, qwen3_vl
from streamjax.models.decoder import DecoderConfig
from streamjax.models.internvl import InternViTConfig, InternVL, InternVLConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.ops.rope import mrope_axes

SEEDS = {"llava": 4, "qwen2_5_vl": 8, "qwen3_vl": 7, "internvl": 8}
FAMILIES = tuple(SEEDS)
SIDE, SYSTEM = 16, "you watch"
WORDS = "you watch tell me when the light turns red green what is it now moving ball"
MARKS = ["<|vision_start|>", "<|vision_end|>", "<img>", "</img>"]
LENGTH, ROWS = 192, 112  # of `whole`: one program per family
ROOM = 3072  # of `restricted`: its small operations are compiled once
TEXT, SMALL = 6, dict(max_new_tokens=6, capacity=400)  # one capacity: one program per policy


def make_tokenizer(folder: Any) -> Any:
    """Words, without ready time tags: every turn's text then has one of a few lengths."""
    tokenizer = build_word_tokenizer([WORDS], folder, numbers=400, tags=0)
    tokenizer.add_tokens(MARKS, special_tokens=True)
    return tokenizer


def make_model(family: str, tokenizer: Any) -> Any:
    """Weights with which all states come up, answers of all lengths, and every position counts."""
    pad = len(tokenizer)
    options: dict[str, Any] = dict(
        vocab_size=pad + 2, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=100.0,
        max_position_embeddings=1024,
    )  # fmt: skip
    ids: dict[str, Any] = dict(image_token_id=pad, video_token_id=pad + 1)
    tower: dict[str, Any] = dict(
        hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, patch_size=2,
        temporal_patch_size=2, spatial_merge_size=2,
    )  # fmt: skip
    if family == "llava":
        vision = StreamFormerConfig(
            image_size=SIDE, patch_size=4, num_frames=4, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
        )  # fmt: skip
        config: Any = LlavaStreamFormerConfig(tower=vision, decoder=DecoderConfig(**options))
        kind: Any = LlavaStreamFormer
    elif family == "internvl":
        vision = InternViTConfig(
            image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        )  # fmt: skip
        config = InternVLConfig(vision=vision, decoder=DecoderConfig(**options), image_token_id=pad)
        kind = InternVL
    elif family == "qwen2_5_vl":
        vision = qwen2_5_vl.VisionConfig(
            depth=2, window_size=8, fullatt_block_indexes=(1,), tokens_per_second=2,
            hidden_act="silu", **tower,
        )  # fmt: skip
        decoder = DecoderConfig(**options, mrope_section=(2, 1, 1))
        config = qwen2_5_vl.Qwen2_5_VLConfig(vision=vision, decoder=decoder, **ids)
        kind = qwen2_5_vl.Qwen2_5_VL
    else:
        vision = qwen3_vl.VisionConfig(
            depth=2, num_position_embeddings=16, deepstack_visual_indexes=(0, 1),
            hidden_act="gelu_pytorch_tanh", **tower,
        )  # fmt: skip
        decoder = DecoderConfig(
            **options, mrope_section=(2, 1, 1), mrope_interleaved=True, qk_norm=True,
            attention_bias=False,
        )  # fmt: skip
        config = qwen3_vl.Qwen3_VLConfig(vision=vision, decoder=decoder, **ids)
        kind = qwen3_vl.Qwen3_VL
    graph, shapes = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(SEEDS[family])

    def value(path, a):
        name = jax.tree_util.keystr(path)
        scale = 0.7 if ".embed" in name or "'embed'" in name else 0.3
        noise = rng.normal(0, scale, a.shape)
        return jnp.asarray(noise + 1 if "norm" in name and "scale" in name else noise, a.dtype)

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(value, shapes))
    ends = model.decoder.head[...].at[:, chat.end_id(tokenizer)].multiply(2.5)
    model.decoder.head[...] = ends
    return model


def make_frames(model: Any, count: int) -> list[Any]:
    """What is pushed: pictures for LLaVA, (pixels, grid row) for the others. Qwen's are oblong."""
    rng = np.random.default_rng(0)
    if isinstance(model, LlavaStreamFormer):
        return list(rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
    if isinstance(model, InternVL):
        shape, row = (1, 3, 8, 8), (1, 4, 4)
    else:
        shape, row = (24, 24), (1, 4, 6)
    return [(rng.normal(size=shape).astype(np.float32), row) for _ in range(count)]


def watch(
    model: Any, tokenizer: Any, frames: Sequence[Any], questions: Any = (), **options: Any
) -> list[sj.stream.Turn]:
    """All turns. questions: (turn, words), or (turn, words, the turn it is withdrawn before)."""
    stream = sj.Stream(model, tokenizer=tokenizer, system=SYSTEM, **(SMALL | options))
    handles, turns = {}, []
    for index, frame in enumerate(frames):
        for i, (at, text, *until) in enumerate(questions):
            if at == index:
                handles[i] = stream.ask(text)
            if until == [index]:
                stream.withdraw(handles[i])
        turns.append(stream.push(frame))
    return turns


class Transcript:
    """What was said, as tokens, with where everything stands that a policy treats by itself."""

    def __init__(self, model: Any, tokenizer: Any, turns: Sequence[Any], questions: Any = ()):
        self.model, self.tokenizer, self.turns = model, tokenizer, turns
        self.format = dataclasses.replace(_format(model), placeholder=model.placeholders[0])
        self.grid = (1, 4, 4) if len(model.placeholders) == 1 else (1, 4, 6)
        (self.visual,) = model.visual_tokens([self.grid])
        self.until = [q[2] if len(q) > 2 else len(turns) for q in questions]
        self.put = [q[0] for q in questions]
        self.texts = [q[1] for q in questions]
        self.tokens = chat.opening(tokenizer, SYSTEM).tolist()
        self.opening = list(self.tokens)
        self.begins, self.decides, self.words = [0], [], []
        self.asked = [np.zeros(0, int) for _ in questions]  # each one's tokens
        header = self._ids(f"\n{chat.START}user\n")
        self.close = chat.end_id(tokenizer)
        for turn in turns:
            mine = [i for i, at in enumerate(self.put) if at == turn.index < self.until[i]]
            user = user_content(turn.index, "\n".join(self.texts[i] for i in mine))
            chunk = chat.turn_chunk(tokenizer, user, self.visual, format=self.format).tolist()
            at = len(self.tokens) + len(header)
            self.words.append(at)
            for i in mine:
                count = len(self._ids(f"{self.texts[i]}\n"))
                self.asked[i], at = np.arange(at, at + count), at + count
            self.tokens += chunk
            self.decides.append(len(self.tokens) - 1)
            # What decoding has put into the cache belongs to this turn, the rest to the next.
            said = list(turn.tokens)
            held = len(said) - (len(said) == TEXT + 1) if turn.state == STATES[2] else 0
            self.begins.append(len(self.tokens) + held)
            self.tokens += [*said, self.close]

    def retained(self, turn: int, start: int) -> np.ndarray:
        """What a turn's queries may see (not later than themselves), whole turns from `start`."""
        kept = np.ones(self.begins[turn + 1], bool)
        if start:
            kept[self.words[0] : self.words[start]] = False
        for i, tokens in enumerate(self.asked):
            if self.put[i] <= turn:
                kept[tokens] = turn < self.until[i]
        return np.flatnonzero(kept)

    def prompts(self, start: Any) -> list[tuple[list[int], int]]:
        """Per turn its whole prompt with the answer, and the first frame; start(turn): of turns."""
        found = []
        for turn in range(len(self.turns)):
            kept = self.retained(turn, start(turn))
            found.append(([self.tokens[i] for i in kept], start(turn)))
        return found

    def recent(self, window: int) -> list[tuple[list[int], int]]:
        """The prompts of the policy `recent`: head, questions, the last frames with their tags."""
        found = []
        for turn in range(len(self.turns)):
            first = max(0, turn + 1 - window)
            put = zip(self.texts, self.put, self.until, strict=True)
            texts = [text for text, at, until in put if at <= turn < until]
            user = "\n".join([*texts, *(user_content(t) for t in range(first, turn + 1))])
            chunk = chat.turn_chunk(self.tokenizer, user, self.visual, format=self.format)
            found.append(([*self.opening, *chunk.tolist(), *self.turns[turn].tokens], first))
        return found

    def grids(self, tokens: Any) -> np.ndarray | None:
        frames = int(np.sum(np.asarray(tokens) == self.model.placeholders[0])) // self.visual
        return np.tile(self.grid, (frames, 1))

    def positions(self, tokens: Any) -> np.ndarray:
        """[axes l] of tokens alone, numbered from 0."""
        tokens = np.asarray(tokens)
        if len(self.model.placeholders) == 1:
            return np.arange(len(tokens))[None]
        c = self.model.config
        found, _ = mrope_positions(
            tokens[None], self.grids(tokens), image_id=c.image_token_id,
            video_id=c.video_token_id, merge=2,
        )  # fmt: skip
        return found[:, 0]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _format(model: Any) -> chat.ChatFormat:
    if isinstance(model, LlavaStreamFormer):
        return chat.LLAVA
    return chat.INTERNVL if isinstance(model, InternVL) else chat.QWEN


def features_of(model: Any, frames: Sequence[Any]) -> Any:
    """Every frame's visual tokens, [n d] in order, by the model that reads whole dialogues."""
    if isinstance(model, LlavaStreamFormer):
        pixels = np.moveaxis((np.stack(frames).astype(np.float32) / 255 - 0.5) / 0.5, -1, 1)
        return model.encode_images(pixels, [[len(frames), 4, 4]])
    pixels = np.concatenate([frame[0] for frame in frames])
    return model.encode_images(pixels, np.asarray([frame[1] for frame in frames]))


@jax.jit
def forward(model: Any, tokens: Any, features: Any, positions: Any, segments: Any) -> Any:
    deep = model.deepstack(tokens, features)
    x = model.embed(tokens, features)
    return model.decoder.logits(model.decoder(x, positions, segments, deepstack=deep))


def whole(
    transcript: Transcript, prompts: Sequence[tuple[list[int], int]], frames: Sequence[Any]
) -> list[np.ndarray]:
    """The logits of one-shot forwards over prompts of (tokens, the first frame in them)."""
    model, visual = transcript.model, transcript.visual
    features = features_of(model, frames)
    found = []
    for start in range(0, len(prompts), ROWS):
        part = prompts[start : start + ROWS]
        tokens = np.zeros((ROWS, LENGTH), np.int32)
        axes = len(transcript.positions([1]))
        positions = np.zeros((axes, ROWS, LENGTH), np.int32)
        segments = np.full((ROWS, LENGTH), -1, np.int32)
        places = np.zeros((ROWS, LENGTH // 2), int)
        for row, (prompt, first) in enumerate(part):
            tokens[row, : len(prompt)] = prompt
            positions[:, row, : len(prompt)] = transcript.positions(prompt)
            segments[row, : len(prompt)] = 0
            places[row] = np.arange(LENGTH // 2) + first * visual
        places = np.minimum(places, len(frames) * visual - 1)
        seen = jax.tree.map(lambda a, at=places: a[..., at, :], features)
        logits = forward(model, tokens, seen, positions if axes == 3 else positions[0], segments)
        found += [np.asarray(logits[row]) for row in range(len(part))]
    return found


def restricted(transcript: Transcript, frames: Sequence[Any], start: Any) -> np.ndarray:
    """Per turn, attention over the retained tokens, renumbered: the logits of all tokens.

    No cache and no ring: every layer computes all tokens' unrotated queries, keys and values, and
    rotates the keys of each turn's retained tokens by their place among them. start(turn): the
    first of the turns that are whole.
    """
    model, c = transcript.model, transcript.model.config.decoder
    half = c.head // 2
    axis_of = np.zeros(half, int)
    if c.mrope_section is not None:
        axis_of = np.asarray(mrope_axes(c.mrope_section, interleaved=c.mrope_interleaved))
    count = len(transcript.tokens)
    tokens = np.pad(np.asarray([transcript.tokens]), ((0, 0), (0, ROOM - count)))
    features = features_of(model, frames)
    x, deep = model.embed(tokens, features), model.deepstack(tokens, features)
    turns = range(len(transcript.decides))
    kept = [transcript.retained(turn, start(turn)) for turn in turns]
    places = [transcript.positions(np.asarray(transcript.tokens)[k]) for k in kept]

    def rotated(a, places):
        angles = places[axis_of].T / c.rope_theta ** (np.arange(0, c.head, 2) / c.head)
        turned = (a[..., :half] + 1j * a[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attend(q, k, v):
        q, k, v = (np.asarray(a[0], np.float64) for a in (q, k, v))
        k, v = (np.repeat(a, len(q) // len(a), axis=0) for a in (k, v))
        out = np.zeros_like(q)
        for turn in turns:
            mine = np.arange(transcript.begins[turn], transcript.begins[turn + 1])
            at = np.searchsorted(kept[turn], mine)
            rows = rotated(q[:, mine], places[turn][:, at])
            keys = rotated(k[:, kept[turn]], places[turn])
            scores = rows @ keys.swapaxes(1, 2) * c.head**-0.5
            scores = np.where(kept[turn] <= mine[:, None], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights = weights / weights.sum(-1, keepdims=True)
            out[:, mine] = weights @ v[:, kept[turn]]
        return jnp.asarray(out[None], jnp.float32), None

    for i in range(c.num_hidden_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], model.decoder.layers)
        x, _ = layer(x, attend)
        if deep is not None and i < len(deep):
            x = x + deep[i]
    return np.asarray(model.decoder.logits(model.decoder.norm(x))[0])


def check(transcript: Transcript, turn: int, logits: np.ndarray, at: int, atol: float = 1e-4):
    """A turn's decision, and every greedy word, follows from the logits; `at`: where it decides."""
    found, tokenizer, model = transcript.turns[turn], transcript.tokenizer, transcript.model
    ids = np.asarray(chat.state_ids(tokenizer))
    shares = np.exp(logits[at][ids] - logits[at][ids].max())
    np.testing.assert_allclose(
        found.probabilities, shares / shares.sum(), atol=atol, err_msg=f"turn {turn}"
    )
    assert found.state == STATES[int(np.argmax(found.probabilities))]
    stops = (transcript.close, tokenizer.pad_token_id)
    said = found.tokens[1:]
    following = [*said, None] if found.state == STATES[2] and len(said) < TEXT else said
    for i, token in enumerate(following):
        words = logits[at + 1 + i].copy()
        words[[p for p in model.placeholders if p >= 0]] = -np.inf
        best = int(words.argmax())
        assert best in stops if token is None else token == best, (turn, i)


def check_whole(transcript: Transcript, prompts: Any, frames: Any, atol: float = 1e-4):
    """All turns against one-shot forwards over their prompts, which end with their answers."""
    for turn, (logits, (prompt, _)) in enumerate(
        zip(whole(transcript, prompts, frames), prompts, strict=True)
    ):
        last = len(prompt) - 1 - prompt[::-1].index(transcript.model.placeholders[0])
        state = chat.state_ids(transcript.tokenizer)[STATES.index(transcript.turns[turn].state)]
        at = prompt.index(state, last) - 1 if state in prompt[last:] else len(prompt) - 1
        check(transcript, turn, logits, at, atol)
