"""InternVL3 against transformers' numbers: whole, batched, streamed, evicted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.weights import safetensors

CHUNK = 48  # tokens of a step, and LONG of a whole dialogue: two programs for all of them
LONG = 168
IMAGE, TOKENS = 242, 9  # the placeholder, and how many a tile becomes


class Case:
    """The golden folder in float32, its arrays, and the same model in its stream form."""

    def __init__(self, folder):
        self.model = sj.load(folder, dtype="float32")
        self.folded = self.model.fold()
        tensors, _ = safetensors.read_file(folder / "io.safetensors")
        self.io = {name: np.asarray(tensor) for name, tensor in tensors.items()}

    def check(self, found, name, atol=2e-4):
        np.testing.assert_allclose(found, self.io[name], atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def case(golden):
    return Case(golden / "internvl")


def grid(*tiles):
    return np.array([[count, 6, 6] for count in tiles])


_forward = jax.jit(lambda m, tokens, pixels, mask: m(tokens, pixels, mask=mask).logits)


def forward(model, tokens, pixels):
    """Logits of one dialogue, padded in front to LONG tokens and behind to 6 tiles."""
    room = LONG - tokens.shape[1]
    mask = np.arange(LONG)[None] >= room
    pixels = np.zeros((0, 3, 24, 24), np.float32) if pixels is None else pixels
    pixels = np.pad(pixels, ((0, 6 - len(pixels)), (0, 0), (0, 0), (0, 0)))
    logits = _forward(model, np.pad(tokens, ((0, 0), (room, 0))), pixels, mask)
    return logits[:, room:]


@jax.jit
def _extend(model, tokens, cache, features, lengths):
    out, cache = model.extend(tokens, cache, features=features, lengths=lengths)
    return out.logits, cache


def extend(model, tokens, cache, features=None):
    """A chunk of at most CHUNK tokens, with at most CHUNK visual tokens [n d]."""
    length, width = tokens.shape[1], model.config.decoder.hidden_size
    features = jnp.zeros((0, width)) if features is None else features
    features = jnp.pad(features, ((0, CHUNK - len(features)), (0, 0)))
    tokens = np.pad(tokens, ((0, 0), (0, CHUNK - length)))
    logits, cache = _extend(model, tokens, cache, features, np.array([length]))
    return logits[:, :length], cache


def test_vision_features(case):
    io = case.io
    states = jax.jit(lambda m, pixels: m.visual(pixels))(case.model, io["stream5.pixel_values"])
    case.check(states, "stream5.vision_last_hidden", 2e-5)
    for name, tiles in (("stream5", [1] * 5), ("multi", io["multi.tiles_per_image"])):
        pixels = io[f"{name}.pixel_values"]
        features = case.model.encode_images(pixels, grid(*tiles))
        case.check(features.reshape(-1, TOKENS, 64), f"{name}.vision_features", 2e-5)
        np.testing.assert_array_equal(features, case.model.encode_images(pixels, None))


def test_one_call_with_everything(case):
    io, model = case.io, case.model
    tiles = io["multi.tiles_per_image"]
    out = model(io["multi.input_ids"], io["multi.pixel_values"], grid(*tiles))
    case.check(out.logits, "multi.logits")
    assert model.visual_tokens(grid(*tiles)) == [TOKENS * n for n in tiles]
    tokens = io["multi.input_ids"][0]
    short = tokens[np.append(True, (tokens[1:] != IMAGE) | (tokens[:-1] != IMAGE))]
    np.testing.assert_array_equal(model.expand(short, grid(*tiles)), tokens)


@pytest.mark.parametrize("name", ["stream5", "live", "text"])
def test_dialogues(case, name):
    pixels = None if name == "text" else case.io["stream5.pixel_values"]
    case.check(forward(case.model, case.io[f"{name}.input_ids"], pixels), f"{name}.logits")


def test_a_padded_batch(case):
    """With pictures by rows too: [b tiles 3 h w] keeps them where their rows are."""
    io, model = case.io, case.model
    tokens, mask = io["batch.input_ids"], io["batch.attention_mask"]
    positions, delta = model.positions(tokens, grid(1), mask=mask)
    np.testing.assert_array_equal(positions, io["batch.position_ids"])
    assert delta.tolist() == [[0], [-9]]
    pixels, real = io["stream5.pixel_values"], mask > 0
    found = _forward(model, tokens, pixels[:1], mask)
    np.testing.assert_allclose(found[real], io["batch.logits"][real], atol=2e-4)

    twice = np.concatenate([tokens[:1]] * 2)
    found = _forward(model, twice, pixels[:2, None], np.ones_like(twice))
    np.testing.assert_allclose(found[0], io["batch.logits"][0], atol=2e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_greedy_tokens(case):
    io, model = case.io, case.folded
    tokens, seen = io["stream5.input_ids"], 0
    features = case.model.encode_images(io["stream5.pixel_values"])
    cache = model.init_cache(1, capacity=200)
    for start in range(0, tokens.shape[1], CHUNK):
        chunk = tokens[:, start : start + CHUNK]
        count = int((chunk == IMAGE).sum())
        logits, cache = extend(model, chunk, cache, features[seen : seen + count])
        seen += count
    found = []
    for token in io["stream5.greedy_tokens"]:
        found.append(logits[0, -1])
        assert int(found[-1].argmax()) == token
        logits, cache = extend(model, np.array([[token]]), cache)
    case.check(jnp.stack(found), "stream5.greedy_logits")


def test_a_dialogue_grown_frame_by_frame_and_turns_forgotten(case):
    io, model = case.io, case.folded
    tokens, frames = io["live.input_ids"], io["stream5.pixel_values"]
    starts = [*io["live.turn_starts"].tolist(), tokens.shape[1]]
    encode = jax.jit(lambda model, pixels, state: model.encode_frame(pixels, state))
    state = model.init_frames(1, (1, 6, 6))
    cache, logits = model.init_cache(1, capacity=200), []
    for start, stop, frame in zip(starts[:-1], starts[1:], frames, strict=True):
        features, state = encode(model, frame[None, None], state)
        before = cache
        found, cache = extend(model, tokens[:, start:stop], cache, features[0])
        logits.append(found)
    case.check(jnp.concatenate(logits, axis=1), "live.logits")
    for start, answer, length in zip(
        starts[:-1], io["live.generated"], io["live.turn_prompt_len"], strict=True
    ):
        first = start + length - 1  # the first answer comes after the whole prompt
        at = slice(first, first + len(answer))
        assert io["live.logits"][0, at].argmax(-1).tolist() == answer.tolist()

    sink, begin, end, last, _ = io["evict.spec_sink_evictstart_evictend_lastturnstart_delta"]
    assert (sink, last) == (begin, starts[-2])
    shorter = jax.jit(lambda m, c: m.evict(c, int(begin), int(end)))(model, before)
    found, _ = extend(model, tokens[:, last:], shorter, features[0])
    case.check(found, "evict.logits_shrink")
    # Read anew, as Streamo's own window does.
    left = np.concatenate([tokens[:, :begin], tokens[:, end:]], axis=1)
    found = forward(case.model, left, frames[2:])
    case.check(found[:, last - (end - begin) :], "evict.logits_reprefill")


def test_streams_of_several_tiles_and_rows(case):
    pixels = case.io["multi.pixel_values"].reshape(2, 3, 3, 24, 24)
    state = case.model.init_frames(2, (3, 6, 6))
    features, _ = jax.jit(lambda m, p, s: m.encode_frame(p, s))(case.model, pixels, state)
    assert features.shape == (2, 3 * TOKENS, 64)
    case.check(features.reshape(6, TOKENS, 64), "multi.vision_features", 2e-5)


def test_a_folder_that_does_not_name_its_placeholder(golden, case):
    """OpenGVLab's config leaves it to the tokenizer; without one, the counts tell."""
    model = sj.load(golden / "internvl_opengvlab_keys", dtype="float32")
    assert model.config.image_token_id is None
    tokens, pixels = case.io["stream5.input_ids"], case.io["stream5.pixel_values"]
    features = case.model.encode_images(pixels)
    np.testing.assert_array_equal(model.embed(tokens, features), case.model.embed(tokens, features))
    mask = case.io["batch.attention_mask"]
    found = _forward(model, case.io["batch.input_ids"], pixels[:1], mask)
    real = mask > 0
    np.testing.assert_allclose(found[real], case.io["batch.logits"][real], atol=2e-4)
    with pytest.raises(ValueError, match="no token occurs 45 times, once for each visual token"):
        model.embed(np.zeros((1, 4), int), features)
    with pytest.raises(ValueError, match="image_token_id is unknown"):
        model.expand(np.array([1, IMAGE]), grid(1))
    model.config = dataclasses.replace(model.config, image_token_id=IMAGE)
    assert model.expand(np.array([1, IMAGE]), grid(1)).tolist() == [1] + [IMAGE] * TOKENS


def test_gradients_reach_every_parameter(case):
    """With rematerialised layers, as in training."""
    model = jax.tree.map(lambda a: a, case.model)
    model.visual.remat = model.decoder.remat = "nothing_saveable"
    tokens, pixels = case.io["batch.input_ids"], case.io["stream5.pixel_values"][:1]

    @jax.jit
    @jax.grad
    def gradient(model):
        return jnp.square(model(tokens, pixels, grid(1)).logits).mean()

    flat = nnx.to_flat_state(nnx.state(gradient(model)))
    assert all(np.isfinite(a.get_value()).all() for _, a in flat)
    still = {".".join(path) for path, a in flat if np.abs(a.get_value()).max() < 1e-9}
    # Attention does not see a bias that all keys share.
    assert still <= {"visual.layers.k.bias"}


def test_errors_name_what_was_found(case):
    model, pixels = case.model, case.io["stream5.pixel_values"]
    with pytest.raises(ValueError, match="does not describe 5 tiles of 6x6 patches"):
        model.encode_images(pixels, grid(2, 2))
    with pytest.raises(ValueError, match="tiles of 24x22 pixels, wanted sides .* multiples of 8"):
        model.encode_images(pixels[..., :22])
    with pytest.raises(ValueError, match="tiles are 2x24x24, wanted 3 channels and sides"):
        model.encode_images(pixels[:, :2])
    with pytest.raises(ValueError, match="9 placeholders .242. for 45 visual tokens"):
        model.embed(case.io["batch.input_ids"], jnp.zeros((45, 64)))
    vision = model.config.vision
    for changes, message in (
        (dict(norm_type="batch"), "norm_type is 'batch', wanted one of layer_norm, rms_norm"),
        (dict(image_size=25), "image_size is 25, wanted a multiple of patch_size=4"),
        (dict(num_attention_heads=5), "hidden_size is 32, wanted a multiple of"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(vision, **changes)
    with pytest.raises(ValueError, match="downsample_ratio is 0.25, wanted 1 / n"):
        dataclasses.replace(model.config, downsample_ratio=0.25)
    assert json.dumps(dataclasses.asdict(model.config))
