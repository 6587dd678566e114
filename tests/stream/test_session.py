"""A streaming assistant against the forward over its transcript and its policy's oracle."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.data import chat
from streamjax.data.dialogue import STATES, user_content
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.models.decoder import DecoderConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.stream import program

SIDE, SYSTEM = 16, "you watch"
VISUAL = 4  # 4x4 patches, pooled


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = "you watch tell me when the light turns red green what is it now moving ball"
    return build_word_tokenizer([words], tmp_path_factory.mktemp("tokenizer"), numbers=50, tags=20)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = LlavaStreamFormerConfig(
        tower=StreamFormerConfig(
            image_size=SIDE, patch_size=4, num_frames=4, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
        ),
        decoder=DecoderConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rope_theta=100.0,
            max_position_embeddings=1024,
        ),
    )  # fmt: skip
    model = jax.jit(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(1)))()
    model.tower.layers.gate[...] = jnp.ones(1)
    # Large enough weights that every state comes up and that a wrong position shows.
    for part in (model.tower, model.projector, model.decoder):
        state = nnx.state(part, nnx.Param)
        nnx.update(part, jax.tree.map(lambda a: a * 10 if a.ndim > 1 else a, state))
    return model


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE, 3), np.uint8)


def watch(model, tokenizer, frames, questions=(), **options):
    """All turns; one capacity everywhere, so that the tests share their compiled programs."""
    stream = sj.Stream(
        model, tokenizer=tokenizer, system=SYSTEM, max_new_tokens=6, capacity=320, **options
    )
    for at, text in questions:
        stream.ask(text, at=at)
    return [stream.push(frame) for frame in frames]


class Transcript:
    """What was said, as tokens, with what the policy needs to know of every turn."""

    def __init__(self, tokenizer, turns, questions):
        self.tokens = chat.opening(tokenizer, SYSTEM).tolist()
        self.begins, self.decides, self.words, self.keeps = [0], [], [], []
        header = tokenizer(f"\n{chat.START}user\n", add_special_tokens=False)["input_ids"]
        close = chat.end_id(tokenizer)
        for turn in turns:
            asked = [text for at, text in questions if at == turn.index]
            question = "\n".join(asked)
            user = user_content(turn.index, question)
            chunk = chat.turn_chunk(tokenizer, user, VISUAL, format=chat.LLAVA).tolist()
            self.words.append(len(self.tokens) + len(header))
            lines = f"{question}\n" if question else ""
            self.keeps.append(len(tokenizer(lines, add_special_tokens=False)["input_ids"]))
            self.tokens += chunk
            self.decides.append(len(self.tokens) - 1)
            # What decoding has put into the cache belongs to this turn, the rest to the next.
            said = list(turn.tokens)
            held = 0
            if len(said) > 1:
                held = len(said) - (len(said) == 7)  # cut by max_new_tokens
            self.begins.append(len(self.tokens) + held)
            self.tokens += [*said, close]

    def retained(self, turn, window):
        """Indices of the tokens that turn's queries may see (and not later than themselves)."""
        end = self.begins[turn + 1]
        if turn < window:
            return np.arange(end)
        sink = list(range(self.words[0]))
        for old in range(turn - window + 1):
            sink += range(self.words[old], self.words[old] + self.keeps[old])
        return np.asarray([*sink, *range(self.words[turn - window + 1], end)])


def pixels_of(frames):
    return np.moveaxis((frames.astype(np.float32) / 255 - 0.5) / 0.5, -1, 1)


def oracle(model, transcript, frames, window):
    """The policy, written down: per turn, attention over the retained tokens, renumbered.

    No cache and no ring: every layer computes all tokens' unrotated queries, keys and values, and
    rotates the keys of each turn's retained tokens by their place among them. numpy, float64.
    """
    decoder, c = model.decoder, model.config.decoder
    features = model.encode_images(pixels_of(frames), [[len(frames), 4, 4]])
    # Padded to one length, so that jax compiles its small operations once for all cases.
    tokens = np.pad(np.asarray([transcript.tokens]), ((0, 0), (0, 512 - len(transcript.tokens))))
    x = model.embed(tokens, features)

    def rotated(a, places):
        angles = places[:, None] / c.rope_theta ** (np.arange(0, c.head, 2) / c.head)
        turned = (a[..., : c.head // 2] + 1j * a[..., c.head // 2 :]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attend(q, k, v):
        q, k, v = (np.asarray(a[0], np.float64) for a in (q, k, v))
        k, v = (np.repeat(a, len(q) // len(a), axis=0) for a in (k, v))
        out = np.zeros_like(q)
        for turn in range(len(transcript.decides)):
            kept = transcript.retained(turn, window)
            mine = np.arange(transcript.begins[turn], transcript.begins[turn + 1])
            rows = rotated(q[:, mine], np.searchsorted(kept, mine))
            keys = rotated(k[:, kept], np.arange(len(kept)))
            scores = rows @ keys.swapaxes(1, 2) * c.head**-0.5
            scores = np.where(kept <= mine[:, None], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, mine] = weights / weights.sum(-1, keepdims=True) @ v[:, kept]
        return jnp.asarray(out[None], jnp.float32), None

    for i in range(c.num_hidden_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], decoder.layers)
        x, _ = layer(x, attend)
    return np.asarray(decoder.logits(decoder.norm(x))[0])


def check(turns, transcript, logits, tokenizer):
    """Every decision, and every greedy word, follows from the logits."""
    ids = np.asarray(chat.state_ids(tokenizer))
    for turn, at in zip(turns, transcript.decides, strict=True):
        shares = np.exp(logits[at][ids] - logits[at][ids].max())
        expected = shares / shares.sum()
        np.testing.assert_allclose(turn.probabilities, expected, atol=1e-4)
        assert turn.state == STATES[int(np.argmax(turn.probabilities))]
        for i, token in enumerate(turn.tokens[1:]):
            assert token == logits[at + 1 + i].argmax()


QUESTIONS = ((0, "tell me when the light turns red"), (5, "what is it"))


def test_a_stream_equals_the_forward_over_its_transcript(model, tokenizer, frames):
    turns = watch(model, tokenizer, frames[:12], QUESTIONS)
    assert len({turn.state for turn in turns}) == 3, "the case is too easy: not every state came up"
    transcript = Transcript(tokenizer, turns, QUESTIONS)
    forward = jax.jit(lambda m, tokens, pixels: m(tokens, pixels, [[12, 4, 4]]).logits[0])
    tokens = np.asarray([transcript.tokens])
    logits = np.asarray(forward(model, tokens, pixels_of(frames[:12])))
    check(turns, transcript, logits, tokenizer)
    seen = transcript.begins[-1]
    expected = oracle(model, transcript, frames[:12], window=12)
    np.testing.assert_allclose(logits[:seen], expected[:seen], atol=1e-3)


def test_the_transcript_is_the_dialogue_that_training_encodes(model, tokenizer, frames):
    turns = list(watch(model, tokenizer, frames[:8], QUESTIONS))
    transcript = Transcript(tokenizer, turns, QUESTIONS)
    messages = [{"role": "system", "content": SYSTEM}]
    for turn in turns:
        question = "\n".join(text for at, text in QUESTIONS if at == turn.index)
        answer = tokenizer.decode(turn.tokens)
        messages.append({"role": "user", "content": user_content(turn.index, question)})
        messages.append({"role": "assistant", "content": answer})
    encoded = chat.encode(tokenizer, messages, VISUAL, format=chat.LLAVA)
    close = chat.end_id(tokenizer)
    written = [chat.answer_tokens(tokenizer, tokenizer.decode(t.tokens)).tolist() for t in turns]
    if written == [[*t.tokens, close] for t in turns]:
        # A random model's words need not be how the tokenizer writes them; here they are.
        assert encoded.tokens.tolist() == transcript.tokens
    assert encoded.turn_starts[0] == len(chat.opening(tokenizer, SYSTEM))


@pytest.mark.parametrize("window", [2, 5])
def test_after_eviction_a_stream_equals_its_policy(model, tokenizer, frames, window):
    turns = watch(model, tokenizer, frames, QUESTIONS, window=window)
    transcript = Transcript(tokenizer, turns, QUESTIONS)
    logits = oracle(model, transcript, frames, window)
    check(turns, transcript, logits, tokenizer)
    # Forgetting changes the result: the check above could not tell otherwise.
    whole = oracle(model, transcript, frames, window=99)
    at = transcript.decides[-1]
    assert np.abs(logits[at] - whole[at]).max() > 1e-3


def test_rebasing_changes_nothing(model, tokenizer, frames, monkeypatch):
    many = np.concatenate([frames] * 3)
    plain = watch(model, tokenizer, many, QUESTIONS, window=3)
    monkeypatch.setattr("streamjax.stream.engine.REBASE_AT", 0)
    rebased = watch(model, tokenizer, many, QUESTIONS, window=3)
    assert program.rebase._cache_size() >= 1
    for a, b in zip(plain, rebased, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
        assert a.tokens == b.tokens


def test_programs_are_few_and_memory_is_constant(model, tokenizer, frames):
    """Two thousand turns, on what the tests before have compiled: nothing is compiled anew."""
    stream = sj.Stream(
        model, tokenizer=tokenizer, system=SYSTEM, max_new_tokens=6, capacity=320, window=4
    )
    stream.ask("tell me when the light turns red")
    for i in range(40):
        stream.push(frames[i % 24])
    jitted = (program.turn, program.read, program.speak, program.pin)
    programs, live = [f._cache_size() for f in jitted], []
    for i in range(2000):
        stream.push(frames[i % 24])
        if i % 500 == 499:
            gc.collect()
            live.append(sum(a.nbytes for a in jax.live_arrays()))
    assert [f._cache_size() for f in jitted] == programs
    assert sum(programs) <= 6, dict(zip(["turn", "read", "speak", "pin"], programs, strict=True))
    assert len(set(live)) == 1


def test_questions_outlive_their_turns_and_the_oldest_makes_room(model, tokenizer, frames):
    stream = sj.Stream(
        model, tokenizer=tokenizer, system=SYSTEM, max_new_tokens=6, capacity=320, window=2
    )
    for i in range(60):
        if i < 50:
            stream.ask("tell me when the light turns red" if i % 2 else "what is it now")
        stream.push(frames[i % 24])
    book, cache = stream._book, stream._batch._engine.cache
    held = int(cache.sink[0])
    asked = sum(len(q.tokens) for q in book.sunk)
    assert held == len(book.head) + asked <= book.sink_slots
    assert 0 < len(book.sunk) < 50


def test_token_chunks_stream_without_a_tokenizer(model, tokenizer, frames):
    ids, end = chat.state_ids(tokenizer), chat.end_id(tokenizer)
    options = dict(max_new_tokens=6, capacity=320)
    stream = sj.Stream(model, state_ids=ids, end_id=end, **options)
    turns = []
    for i, frame in enumerate(frames[:6]):
        head = chat.opening(tokenizer, SYSTEM).tolist() if i == 0 else []
        chunk = chat.turn_chunk(tokenizer, user_content(i), 1, format=chat.LLAVA).tolist()
        turns.append(stream.push(frame, tokens=head + chunk))
    for a, b in zip(turns, watch(model, tokenizer, frames[:6]), strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)
    with pytest.raises(ValueError, match="no tokenizer"):
        stream.ask("what is it")
    with pytest.raises(ValueError, match="has 0 placeholders"):
        stream.push(frames[0], tokens=[1, 2])
    with pytest.raises(ValueError, match="no tokenizer"):
        sj.Stream(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=1), "window is 1 turns, wanted at least 2"),
        (dict(capacity=20), "capacity is 20 tokens, wanted room for the system prompt"),
    ],
)
def test_settings_that_cannot_work(model, tokenizer, frames, options, message):
    with pytest.raises(ValueError, match=message):
        sj.Stream(model, tokenizer=tokenizer, system=SYSTEM, **options).push(frames[0])


def test_frames_that_are_not(model, tokenizer, frames):
    stream = sj.Stream(model, tokenizer=tokenizer, system=SYSTEM)
    with pytest.raises(ValueError, match=r"uint8 \[16, 16\], wanted"):
        stream.push(frames[0, :, :, 0])
    with pytest.raises(ValueError, match="of int64"):
        stream.push(frames[0].astype(np.int64))
    with pytest.raises(ValueError, match="cannot stream a dict"):
        sj.Stream({})


def test_new_weights_compile_nothing_and_count(model, tokenizer, frames):
    before = watch(model, tokenizer, frames[:3])
    programs = program.turn._cache_size()
    other = jax.tree.map(lambda a: a * 1.1, model)
    after = watch(other, tokenizer, frames[:3])
    assert program.turn._cache_size() == programs
    assert before[2].probabilities != after[2].probabilities
