"""LLaVA-StreamFormer against the original's numbers, whole and streamed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import streamjax as sj
from streamjax.models.llava_streamformer import best_pinpoint, padding_of, pool
from streamjax.weights import safetensors

FAMILIES = ("llava_streamformer_qwen2", "llava_streamformer_llama")


class Case:
    """One golden folder in float32 and its arrays."""

    def __init__(self, folder):
        self.model = sj.load(folder, dtype="float32")
        self.io, _ = safetensors.read_file(folder / "io.safetensors")
        self.side = self.io["video.pixel_values"].shape[-1] // 4
        self.frames = len(self.io["video.pixel_values"])

    def grid(self, *counts):
        return np.array([[t, self.side, self.side] for t in counts])

    def check(self, found, name, atol=2e-5):
        np.testing.assert_allclose(found, self.io[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def qwen2(golden):
    return Case(golden / FAMILIES[0])


@pytest.fixture(scope="module", params=FAMILIES)
def case(golden, request):
    return Case(golden / request.param)


extend = jax.jit(
    lambda m, tokens, cache, features=None: m.extend(tokens, cache, features=features),
    donate_argnames="cache",
)


# Unjitted, a scan is compiled anew at every call.
watch = jax.jit(lambda m, frames: m.tower(frames, time_rule="hold").tokens)
_encode = jax.jit(
    lambda m, pixels, grid, sizes: m.encode_images(pixels, grid, image_sizes=sizes),
    static_argnames=("grid", "sizes"),
)
_forward = jax.jit(
    lambda m, tokens, pixels, grid, **how: m(tokens, pixels, grid, **how).logits,
    static_argnames="grid",
)


def encode(model, pixels, grid, sizes=None):
    return _encode(model, pixels, static(grid), None if sizes is None else tuple(sizes))


def forward(model, tokens, pixels, grid, **how):
    return _forward(model, tokens, pixels, static(grid), **how)


def static(grid):
    return tuple(map(tuple, grid.tolist()))


def with_options(model, **options):
    """The same weights under another config."""
    other = jax.tree.map(lambda a: a, model)
    other.config = dataclasses.replace(model.config, **options)
    return other


def test_video_features_at_every_stage(qwen2):
    frames = jnp.moveaxis(jnp.asarray(qwen2.io["video.pixel_values"]), 1, -1)[None]
    tokens = watch(qwen2.model, frames)
    qwen2.check(tokens[0], "video.tower_features")
    projected = qwen2.model.projector(tokens)
    qwen2.check(projected[0], "video.projected")
    side = (qwen2.side, qwen2.side)
    for mode, name in (("average", "pooled"), ("bilinear", "pooled"), ("max", "pooled_max")):
        pooled = pool(projected, side, mode)[0]
        qwen2.check(pooled.reshape(qwen2.frames, -1, 48), f"video.{name}")


@pytest.mark.parametrize("newline", ["one_token", "frame", "grid"])
def test_newlines(qwen2, newline):
    model = with_options(qwen2.model, mm_newline_position=newline)
    grid = qwen2.grid(qwen2.frames)
    features = encode(model, qwen2.io["video.pixel_values"], grid)
    qwen2.check(features[None], f"video.inputs_embeds_{newline}")
    expanded = model.expand(qwen2.io["video.input_ids"], grid)
    assert (expanded == -200).sum() == len(features)


def test_video_logits_and_greedy_tokens(case):
    model, pixels, grid = case.model, case.io["video.pixel_values"], case.grid(case.frames)
    tokens = model.expand(case.io["video.input_ids"], grid)
    features = encode(model, pixels, grid)
    if "video.inputs_embeds" in case.io:
        case.check(model.embed(tokens, features), "video.inputs_embeds")
    case.check(forward(model, tokens, pixels, grid), "video.logits", 2e-4)

    out, cache = extend(model, tokens, model.init_cache(1, capacity=160), features)
    logits = [out.logits[0, -1]]
    for token in case.io["video.greedy_tokens"]:
        assert int(logits[-1].argmax()) == token
        out, cache = extend(model, np.array([[token]]), cache)
        logits.append(out.logits[0, -1])
    case.check(jnp.stack(logits[:-1]), "video.greedy_logits", 2e-4)


def test_pictures(qwen2):
    model, tiles = qwen2.model, qwen2.io["anyres.pixel_values"]
    size = tuple(qwen2.io["anyres.image_size_wh"].tolist())
    frames = watch(model, jnp.moveaxis(jnp.asarray(tiles), 1, -1)[:, None])
    qwen2.check(model.projector(frames)[:, 0], "anyres.projected")
    whole = encode(model, tiles, qwen2.grid(5), [size])
    qwen2.check(whole[None], "anyres.inputs_embeds_visual")
    one = encode(model, tiles[:1], qwen2.grid(1), [size])
    qwen2.check(one[None], "single.inputs_embeds_visual")


def test_a_video_and_a_picture_in_one_sequence(qwen2):
    model, sizes = qwen2.model, [None, tuple(qwen2.io["anyres.image_size_wh"].tolist())]
    pixels = [qwen2.io["video.pixel_values"][:2], qwen2.io["anyres.pixel_values"]]
    pixels, grid = np.concatenate(pixels), qwen2.grid(2, 5)
    tokens = model.expand(qwen2.io["mixed.input_ids"], grid, image_sizes=sizes)
    features = encode(model, pixels, grid, sizes)
    qwen2.check(model.embed(tokens, features), "mixed.inputs_embeds")


def test_streamed_features_and_the_prompt_after_them(golden, qwen2):
    """The original's streaming: features of the last frames, and the prompt read from scratch."""
    about = json.loads((golden / FAMILIES[0] / "meta.json").read_text())["streaming"]
    model, kept = qwen2.model.fold(), about["context_length"]
    frames = np.moveaxis(qwen2.io["video.pixel_values"], 1, -1)
    side = 4 * qwen2.side
    cache = model.tower.init_cache(1, height=side, width=side, capacity=8)
    step = jax.jit(lambda m, frame, cache: m.encode_frame(frame, cache))
    features = []
    for i, frame in enumerate(frames):
        visual, cache = step(model, frame[None], cache)
        features = [*features, visual[0]][-kept:]
        qwen2.check(jnp.concatenate(features)[None], f"streaming.visual_{i}")
        tokens = model.expand(qwen2.io["video.input_ids"], qwen2.grid(len(features)))
        fresh = model.init_cache(1, capacity=64)
        out, _ = extend(model, tokens, fresh, jnp.concatenate(features))
        qwen2.check(out.logits[:, -1], f"streaming.last_logits_{i}", 2e-4)


def test_rows_of_a_batch_and_packed_rows_do_not_mix(qwen2):
    model, pixels = qwen2.model, qwen2.io["video.pixel_values"]
    grid, pair = qwen2.grid(2), qwen2.grid(2, 2)
    ids = np.array([[3, 4, -200, 5], [6, -200, 7, 8]])
    tokens = model.expand(ids, pair)
    alone = jnp.concatenate(
        [forward(model, tokens[i : i + 1], pixels[2 * i : 2 * i + 2], grid) for i in range(2)]
    )
    flat = forward(model, tokens, pixels, pair)
    by_row = forward(model, tokens, pixels.reshape(2, 2, *pixels.shape[1:]), pair)
    np.testing.assert_allclose(flat, alone, atol=1e-5)
    np.testing.assert_allclose(by_row, alone, atol=1e-5)

    length = tokens.shape[1]
    packed = tokens.reshape(1, -1)
    segments = np.repeat([[0, 1]], length, axis=1)
    found = forward(model, packed, pixels, pair, segments=segments)
    np.testing.assert_allclose(found, alone.reshape(1, 2 * length, -1), atol=1e-5)

    padded = np.pad(tokens, ((0, 0), (3, 2)))
    mask = np.pad(np.ones_like(tokens), ((0, 0), (3, 2)))
    found = forward(model, padded, pixels, pair, mask=mask)
    np.testing.assert_allclose(found[:, 3:-2], alone, atol=1e-5)


def test_positions(qwen2):
    tokens = np.zeros((2, 6), np.int64)
    positions, delta = qwen2.model.positions(tokens, None)
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 and delta.tolist() == [[0], [0]]
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    positions, delta = qwen2.model.positions(tokens, None, mask=mask)
    assert positions.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 0, 0]]
    assert delta.tolist() == [[-2], [-2]]
    segments = np.array([[4, 4, 4, 9, 9, 9], [1, 2, 2, 2, 2, 3]])
    positions, _ = qwen2.model.positions(tokens, None, segments=segments)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 3, 0]]


def test_hidden_states_and_head_make_the_logits(qwen2):
    model, grid = qwen2.model, qwen2.grid(qwen2.frames)
    tokens = model.expand(qwen2.io["video.input_ids"], grid)
    hidden = jax.jit(lambda m, pixels: m.hidden(tokens, pixels, grid))(
        model, qwen2.io["video.pixel_values"]
    )
    qwen2.check(hidden @ model.head_kernel(), "video.logits", 2e-4)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((12, 12), (43, 29), (2, 0)), ((12, 12), (29, 43), (0, 2)), ((6, 12), (100, 50), (0, 0))],
)
def test_padding_is_found_again(shape, size, expected):
    assert padding_of(shape, size) == expected


def test_the_canvas_keeps_pixels_first_and_wastes_least_then():
    pinpoints = [(224, 448), (448, 224), (448, 448), (672, 224), (224, 672)]
    assert best_pinpoint((640, 480), pinpoints) == (448, 448)
    assert best_pinpoint((1000, 200), pinpoints) == (672, 224)
    assert best_pinpoint((100, 200), pinpoints) == (224, 448)


def test_errors_name_what_was_found(qwen2):
    model, pixels = qwen2.model, qwen2.io["video.pixel_values"]
    grid = qwen2.grid(qwen2.frames)
    with pytest.raises(ValueError, match="1 placeholders .* for 36 visual tokens: model.expand"):
        model.embed(qwen2.io["video.input_ids"], jnp.zeros((36, 48)))
    with pytest.raises(ValueError, match="1 placeholders .* for 2 grid rows"):
        model.expand(qwen2.io["video.input_ids"], qwen2.grid(2, 2))
    with pytest.raises(ValueError, match="does not describe 4 frames of 6x6 patches"):
        model.encode_images(pixels, qwen2.grid(3))
    with pytest.raises(ValueError, match=r"pixels have shape \[0, .*, wanted \[frames 3 h w\]"):
        model.encode_images(pixels[:0], qwen2.grid())
    with pytest.raises(ValueError, match="grid is missing"):
        model.encode_images(pixels, None)
    with pytest.raises(ValueError, match="2 rows of grid"):
        model.encode_images(pixels, qwen2.grid(2, 2), image_sizes=[None])
    with pytest.raises(ValueError, match="were its tiles cut with other"):
        encode(model, pixels, grid, [(43, 29)])
    with pytest.raises(ValueError, match="mm_newline_position is 'rows', wanted one of no_token"):
        with_options(model, mm_newline_position="rows")
    with pytest.raises(ValueError, match="cannot be streamed"):
        with_options(model, mm_newline_position="one_token").init_frames(1, (1, 6, 6))
