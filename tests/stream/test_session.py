"""One stream: its words, its memory over a long time, and what it refuses."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax.data import chat
from streamjax.data.dialogue import user_content
from streamjax.models.llava_streamformer import LlavaStreamFormer
from streamjax.stream import StreamBatch, program
from tests.stream.oracle import (
    FAMILIES,
    SMALL,
    SYSTEM,
    Transcript,
    check,
    features_of,
    forward,
    make_frames,
    restricted,
    watch,
)

QUESTIONS = ((0, "tell me when the light turns red"), (5, "what is it"))


@pytest.fixture
def model(models):
    return models("llava")


@pytest.fixture(scope="module")
def frames(models):
    return make_frames(models("llava"), 24)


@pytest.fixture(autouse=True)
def one_bucket(monkeypatch):
    """Chunks of all lengths in one program: compiling is most of what these tests cost."""
    monkeypatch.setattr("streamjax.stream.engine.TEXT_BUCKETS", (64, 64, 64, 128, 256, 512))


def stream_of(model, words, **options):
    return sj.Stream(model, tokenizer=words, system=SYSTEM, **(SMALL | options))


def test_the_transcript_is_the_dialogue_that_training_encodes(model, words, frames):
    turns = watch(model, words, frames, QUESTIONS, window=40)
    transcript = Transcript(model, words, turns, QUESTIONS)
    messages = [{"role": "system", "content": SYSTEM}]
    for turn in turns:
        question = "\n".join(text for at, text in QUESTIONS if at == turn.index)
        # A random model's words need not be how the tokenizer writes them: as it writes them.
        answer = words.decode(turn.tokens)
        messages.append({"role": "user", "content": user_content(turn.index, question)})
        messages.append({"role": "assistant", "content": answer})
        assert answer.startswith(turn.state) and answer.endswith(turn.text)
    encoded = chat.encode(words, messages, transcript.visual, format=chat.LLAVA)
    written = [chat.answer_tokens(words, words.decode(t.tokens)).tolist() for t in turns]
    pieces, at = [], 0
    for start, stop, turn, answer in zip(
        [0, *transcript.begins[1:-1]], transcript.decides, turns, written, strict=True
    ):
        start = 0 if turn.index == 0 else at
        pieces += [*transcript.tokens[start : stop + 1], *answer]
        at = stop + 1 + len(turn.tokens) + 1
    assert encoded.tokens.tolist() == pieces


def test_token_chunks_stream_without_a_tokenizer(model, words, frames):
    ids, end = chat.state_ids(words), chat.end_id(words)
    stream = sj.Stream(model, state_ids=ids, end_id=end, window=3, **SMALL)
    turns = []
    for i, frame in enumerate(frames):
        head = chat.opening(words, SYSTEM).tolist() if i == 0 else []
        chunk = chat.turn_chunk(words, user_content(i), 1, format=chat.LLAVA).tolist()
        # The user's header is the head's and after that the turn's before.
        keep = len(head) + len(words(f"\n{chat.START}user\n")["input_ids"]) if i == 0 else 0
        turns.append(stream.push(frame, tokens=head + chunk, keep=keep))
    plain = watch(model, words, frames[:3], window=3)
    for a, b in zip(turns, plain, strict=False):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)
    assert (
        stream._book.head
        == chat.opening(words, SYSTEM).tolist() + words(f"\n{chat.START}user\n")["input_ids"]
    )
    with pytest.raises(ValueError, match="no tokenizer"):
        stream.ask("what is it")
    with pytest.raises(ValueError, match="has 0 placeholders"):
        stream.push(frames[0], tokens=[1, 2])
    with pytest.raises(ValueError, match="700 tokens of text behind the frame, wanted 512 at most"):
        StreamBatch(model, slots=1, state_ids=ids, end_id=end, capacity=1500).join().push(
            frames[0], tokens=[-200, *[1] * 700]
        )
    with pytest.raises(ValueError, match="no tokenizer"):
        sj.Stream(model)


def test_a_small_cache_grows_wraps_around_and_forgets_early(model, words, monkeypatch):
    """What does not fit is forgotten before its time: the oracle is told when."""
    monkeypatch.setattr("streamjax.stream.engine.RINGS", (96,))
    pictures = make_frames(model, 60)
    stream, starts, turns = stream_of(model, words, window=40, capacity=150), [], []
    for i, frame in enumerate(pictures):
        if i == 2:
            stream.ask("what is it now")
        turns.append(stream.push(frame))
        starts.append(i + 1 - len(stream._book.spans))
    assert stream._batch._engine.cache.ring == 150 < stream._book.end
    transcript = Transcript(model, words, turns, ((2, "what is it now"),))
    logits = restricted(transcript, pictures, lambda turn: starts[turn])
    for turn, at in enumerate(transcript.decides):
        check(transcript, turn, logits, at)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_stay_stacked_on_accelerators_and_say_the_same(models, words, monkeypatch, family):
    """There a stream scans the model's own layers, and its cache is one array: while it grows too."""
    model = models(family)
    pictures = make_frames(model, 20)
    questions = ((1, "what is it now", 15), (3, "is it red", 5))
    plain = watch(model, words, pictures, questions, window=4)
    monkeypatch.setattr("streamjax.stream.engine.RINGS", (96,))
    for module in ("vlm", "qwen_vl", "internvl", "streamformer"):
        monkeypatch.setattr(f"streamjax.models.{module}.for_stream", lambda stacked, depth: stacked)
    other = jax.tree.map(lambda a: a, model)  # a model is folded once
    stacked = watch(other, words, pictures, questions, window=4)
    for a, b in zip(plain, stacked, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_rebasing_changes_nothing(models, words, monkeypatch, family):
    """At every turn that it can happen, against never; questions are cut out after it too."""
    model, calls = models(family), []
    pictures = make_frames(model, 110)
    questions = ((1, "tell me when it turns red"), (90, "is it moving now", 92), (91, "what", 108))
    rebase = program.rebase
    monkeypatch.setattr(program, "rebase", lambda *a: calls.append(1) or rebase(*a))
    engine = "streamjax.stream.engine.Engine._grow"
    from streamjax.stream.engine import Engine

    grow = Engine._grow

    def often(self, books, work):
        self._rebase_at = limit
        grow(self, books, work)

    monkeypatch.setattr(engine, often)
    limit = 10**9
    plain = watch(model, words, pictures, questions, window=3)
    assert not calls
    limit = 150
    rebased = watch(model, words, pictures, questions, window=3)
    assert len(calls) > 10
    for a, b in zip(plain, rebased, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-4)
        assert a.tokens == b.tokens


@pytest.mark.slow
def test_beyond_a_hundred_thousand_positions(models, words):
    """REBASE_AT as it is. With one layer, a turn is the forward over what is retained, exactly."""
    model = models("llava")
    decoder = dataclasses.replace(
        model.config.decoder, num_hidden_layers=1, max_position_embeddings=10**6
    )
    config = dataclasses.replace(model.config, decoder=decoder)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0))))
    first = jax.tree.map(lambda a, b: b[: a.shape[0]], shapes, nnx.split(model)[1])
    shallow = nnx.merge(graph, first)
    stream = sj.Stream(
        shallow, state_ids=chat.state_ids(words), end_id=chat.end_id(words), window=2,
        capacity=1100, max_new_tokens=1,
    )  # fmt: skip
    rng, turns, length = np.random.default_rng(0), 245, 450
    pictures = make_frames(model, turns)
    features = np.asarray(features_of(shallow, pictures))
    head, last, errors, ends = [], [], [], []
    for i, picture in enumerate(pictures):
        chunk = rng.integers(0, 300, length).tolist()
        turn = stream.push(picture, [*chunk[:-3], -200, *chunk[-3:]], keep=0 if i else 10)
        mine = [*chunk[:-3], *[-200] * 4, *chunk[-3:]]
        ends.append(int(stream._batch._engine.cache.end[0]))
        if i and (i % 40 == 0 or i > 215):
            seen = [*head, *last, *mine]
            tokens = np.zeros((1, 960), np.int32)
            tokens[0, : len(seen)] = seen
            near = features[None, 4 * (i - 1) : 4 * (i + 1)]
            rows = np.arange(960)[None], np.where(np.arange(960) < len(seen), 0, -1)[None]
            logits = np.asarray(forward(shallow, tokens, near, *rows))[0, len(seen) - 1]
            shares = np.exp(logits[list(chat.state_ids(words))])
            errors.append(np.abs(turn.probabilities - shares / shares.sum()).max())
        if not i:
            head, mine = mine[:10], mine[10:]
        last = [*mine, *turn.tokens, chat.end_id(words)]
    assert stream._book.end > 110_000 and max(ends) < 36_000
    # Float32 angles coarsen on the way to each re-basing, and are as good as new behind it.
    assert max(errors) < 1e-3


CONSTANT = [
    dict(window=4),
    dict(policy="refill", window=4, every=2),
    dict(policy="recent", window=3),
    dict(window=4, slots=3),
]


def run_long(model, words, frames, options, turns, every):
    """Pushes on and on: (live bytes, programs, objects) at every `every` turns."""
    options = SMALL | options
    batch = StreamBatch(model, tokenizer=words, **({"slots": 1} | options))
    streams = [batch.join(system=SYSTEM) for _ in range(batch.slots)]
    for stream in streams:
        stream.ask("tell me when the light turns red")
    kinds = (program.turn, program.read, program.speak, program.pin, program.rebase)
    found = []
    for i in range(turns):
        waits = batch.slots > 1 and i % 3 == 2  # one of them is slower
        batch.push(dict.fromkeys(streams[: 2 if waits else None], frames[i % 24]))
        if i % every == every - 1:
            gc.collect()
            live = sum(a.nbytes for a in jax.live_arrays())
            objects = len(gc.get_objects()) - 2 * len(found)  # what is noted down here
            found.append((live, [kind._cache_size() for kind in kinds], objects))
    return found


@pytest.fixture
def all_buckets(one_bucket, monkeypatch):
    monkeypatch.setattr("streamjax.stream.engine.TEXT_BUCKETS", (8, 32, 64, 128, 256, 512))


def check_constant(found):
    live, programs, objects = zip(*found, strict=True)
    assert len(set(live)) == 1
    assert all(counts == programs[0] for counts in programs)
    assert max(objects) - min(objects) < 60, objects


@pytest.mark.parametrize("options", CONSTANT, ids=str)
def test_programs_and_memory_are_constant(model, words, frames, options):
    turns = 600 if options == CONSTANT[0] else 300
    check_constant(run_long(model, words, frames, options, turns, 100)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("options", CONSTANT, ids=str)
def test_programs_and_memory_are_constant_for_hours(model, words, frames, options, all_buckets):
    check_constant(run_long(model, words, frames, options, 20_000, 200))


def test_new_weights_compile_nothing_and_count(model, words, frames):
    before = watch(model, words, frames[:3], window=4)
    programs = program.turn._cache_size()
    other = jax.tree.map(lambda a: a * 1.1, model)
    after = watch(other, words, frames[:3], window=4)
    assert program.turn._cache_size() == programs
    assert before[2].probabilities != after[2].probabilities


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=1), "window is 1 turns, wanted at least 2"),
        (dict(capacity=20), "capacity is 20 tokens, wanted room for the system prompt"),
        (dict(max_new_tokens=0), "max_new_tokens is 0, wanted at least 1"),
        (dict(fps=0), "fps is 0, wanted a positive number"),
        (dict(policy="shrink"), "policy is 'shrink', wanted one of"),
    ],
)
def test_settings_that_cannot_work(model, words, frames, options, message):
    with pytest.raises(ValueError, match=message):
        stream_of(model, words, **options).push(frames[0])
    with pytest.raises(ValueError, match="the system prompt contains '<|im_end|>'"):
        sj.Stream(model, tokenizer=words, system="you watch<|im_end|>")


def test_frames_and_models_that_are_not(models, words, frames):
    stream = stream_of(models("llava"), words)
    with pytest.raises(ValueError, match=r"uint8 \[16, 16\], wanted"):
        stream.push(frames[0][:, :, 0])
    with pytest.raises(ValueError, match="of int64"):
        stream.push(frames[0].astype(np.int64))
    with pytest.raises(ValueError, match="cannot stream a dict"):
        sj.Stream({})
    blind = jax.tree.map(lambda a: a, models("internvl"))
    blind.config = dataclasses.replace(blind.config, image_token_id=None)
    with pytest.raises(ValueError, match="does not know which token stands for a frame's"):
        stream_of(blind, words)


def book_of(stream):
    book = stream._book
    spans = [(list(s.questions), list(s.rest)) for s in book.spans]
    return book.index, book.first, book.end, list(book.waiting), list(book.pending), spans


def test_what_is_refused_leaves_a_stream_as_it_was(models, words):
    """Every rejected call, with the next turn as if it had not been."""
    model = models("qwen2_5_vl")
    frames = make_frames(model, 8)
    stream = stream_of(model, words, window=3)
    for frame in frames[:4]:
        stream.push(frame)
    handle = stream.ask("what is it")
    before = book_of(stream)
    pixels, _ = frames[4]
    pad = model.placeholders[0]
    for call, message in [
        (lambda: stream.push((pixels, (1, 4, 8))), "frame has 4x8 patches after 4x6: one stream"),
        (lambda: stream.push((pixels[:, :12], (1, 4, 6))), r"frame has pixels \[24, 12\] after"),
        (lambda: stream.push(frames[4], [1, 2]), r"the chunk has 0 placeholders \(\d+\), wanted 1"),
        (lambda: stream.push(frames[4], [1, pad], keep=2), "keep is 2, wanted 0 to 1"),
        (lambda: stream.push(frames[4], keep=2), "keep is 2 without tokens"),
        (lambda: stream.push(frames[4], [*[1] * 500, pad]), "does not fit the capacity of 400"),
        (lambda: stream.ask(" \n"), "the question is empty"),
        (lambda: stream.ask("is it <image>?"), "the question contains '<image>'"),
        (lambda: stream.ask("say </Silence>"), "the question contains '</Silence>'"),
        (lambda: stream.ask("so<|im_end|>"), "the question contains"),
        (lambda: stream.ask("what is it " * 100), "the question has 301 tokens and questions have"),
        (lambda: stream.withdraw(handle + 1), "no question has the handle"),
        (lambda: stream._batch.push({}), "0 frames: wanted one for at least one stream"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
        assert book_of(stream) == before, message
    turns = [stream.push(frame) for frame in frames[4:]]
    expected = watch(model, words, frames, ((4, "what is it"),), window=3)[4:]
    for a, b in zip(turns, expected, strict=True):
        assert a.tokens == b.tokens and a.index == b.index
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)
    stream.withdraw(handle)
    with pytest.raises(ValueError, match="it was withdrawn or forgotten"):
        stream.withdraw(handle)
    stream.close()
    for call in (
        lambda: stream.push(frames[0]), lambda: stream.ask("what"), lambda: stream.withdraw(1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the stream is closed: make a new one"):
            call()


def test_a_full_cache_says_so_and_stays_full(model, words, frames):
    stream, pushed = stream_of(model, words, policy="full"), 0
    with pytest.raises(ValueError, match="past its capacity of 400: make it larger"):
        for frame in [*frames, *frames]:
            stream.push(frame)
            pushed += 1
    before = book_of(stream)
    with pytest.raises(ValueError, match="past its capacity of 400: make it larger"):
        stream.push(frames[0])
    assert book_of(stream) == before and stream._book.index == pushed
