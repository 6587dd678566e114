"""What a stream keeps in mind, token for token, against the windowed dialogue written anew.

No model: the cache is played by two lists. Everything that reaches a model goes through the work
that a book hands out, so that what holds here, holds for every family.
"""

import dataclasses

import numpy as np
import pytest

from streamjax.data import chat
from streamjax.data.dialogue import STATES, user_content, window_messages
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.stream.book import MARGIN, Book, Policy

SYSTEM, VISUAL, SPARE, CAPACITY = "You watch. Speak when it matters.", 3, 24, 900
QUESTIONS = (
    "what is it?", "Tell me when the light turns red!", "count to 5", "où est-il ?", "a\nb", "(x)",
    "Was läuft da?\nA. nothing\nB. 12",
)  # fmt: skip
ANSWERS = ("", "", "", " It is red.", " 12", " a ball, moving\nfast", " no")


class Cache:
    """What the device would hold, as tokens: a sink, and a ring with running numbers."""

    def __init__(self):
        self.sink, self.ring, self.first = [], {}, 0

    def take(self, work):
        if work.fresh:
            self.__init__()
        for tokens, seen in work.reads:
            assert sum(t == PAD for t in tokens) == VISUAL * len(seen)
            self.append(tokens)
        if work.kept is not None:
            self.sink = [self.sink[s] for s in work.kept] + [self.ring[n] for n in work.moved]
        for number in range(self.first, self.first + work.drop):
            del self.ring[number]
        self.first += work.drop
        self.append(work.tokens)

    def append(self, tokens):
        end = self.first + len(self.ring)
        self.ring |= dict(enumerate(tokens, end))

    def cut(self, start, stop):
        numbers = [n for n in self.ring if not start <= n < stop]
        self.ring = {self.first + i: self.ring[n] for i, n in enumerate(numbers)}

    @property
    def tokens(self):
        return self.sink + [self.ring[n] for n in sorted(self.ring)]


PAD = -200
FORMATS = {
    "qwen": dataclasses.replace(chat.QWEN, placeholder=PAD),
    "internvl": dataclasses.replace(chat.INTERNVL, placeholder=PAD),
    "llava": chat.LLAVA,
}


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory):
    words = "You watch Speak when it matters what is Tell me the light turns red count to nothing"
    return build_word_tokenizer([words], tmp_path_factory.mktemp("words"), numbers=60, tags=20)


@pytest.fixture(params=["words", "qwen"])
def tokenizer(request):
    """Both kinds: one whose marks swallow newlines, and the real one, whose newlines merge."""
    name = {"words": "word_tokenizer", "qwen": "qwen_tokenizer"}[request.param]
    return request.getfixturevalue(name)


class Play:
    """A book and its cache, driven turn by turn, with what was said and asked written down."""

    def __init__(self, tokenizer, policy, *, format=chat.LLAVA, system=SYSTEM, fps=1, seed=0):
        self.tokenizer, self.format, self.system, self.fps = tokenizer, format, system, fps
        self.policy, self.rng = policy, np.random.default_rng(seed)
        self.book = Book(
            policy, tokenizer=tokenizer, format=format, system=system,
            close=chat.end_id(tokenizer), fps=fps,
        )  # fmt: skip
        self.book.sink_slots = self.book.sink_wanted()
        self.cache, self.answers, self.capacity = Cache(), [], CAPACITY
        self.standing, self.put = {}, {}  # handle -> text; handle -> turn
        self.start = 0  # the first turn that is still whole

    def ask(self, text):
        handle = self.book.ask(text, -1.0)
        self.standing[handle] = text
        return handle

    def withdraw(self, handle):
        gone = self.book.withdraw(handle)
        del self.standing[handle]
        if isinstance(gone, tuple):
            self.cache.cut(*gone)
        elif gone is not None:
            self.cache.sink = [self.cache.sink[slot] for slot in gone]

    def see(self):
        """The next turn, up to where its answer begins; returns the work."""
        turn = self.book.index
        for handle in self.standing:
            self.put.setdefault(handle, turn)
        self.book = self.book.draft()
        work = self.book.turn(VISUAL, self.capacity, SPARE)
        window, every = self.policy.window, self.policy.every
        if self.policy.name == "refill" and turn + 1 - self.start >= window + every:
            self.start += every
        elif self.policy.name in ("session", "recent"):
            self.start = max(0, turn + 1 - window)
        self.cache.take(work)
        assert (self.book.first, self.book.end - self.book.first) == (
            self.cache.first, len(self.cache.ring),
        )  # fmt: skip
        assert self.book.held == len(self.cache.tokens)
        assert len(self.cache.sink) == self.book.in_sink <= self.book.sink_slots
        assert len(self.cache.ring) + SPARE < self.capacity
        return work

    def say(self, words):
        state = STATES[2] if words else STATES[self.rng.integers(2)]
        answer = self.tokenizer(state + words, add_special_tokens=False)["input_ids"]
        # An answer that its limit has cut lacks its last token in the cache.
        held = len(answer) - int(self.rng.integers(2)) if words else 0
        self.book.say(answer, held, object())
        if self.policy.name != "recent":
            self.cache.append(answer[:held])
        self.answers.append(state + words)

    def dialogue(self):
        """The tokens that the policy means, from the words alone."""
        turn = self.book.index - 1
        old = [t for h, t in self.standing.items() if self.put[h] < self.start]

        def asked(turn):
            return [t for h, t in self.standing.items() if self.put[h] == turn]

        messages = [{"role": "system", "content": self.system}]
        if self.policy.name == "recent":
            frames = [user_content(t, fps=self.fps) for t in range(self.start, turn + 1)]
            words = "\n".join([*self.standing.values(), *frames])
            messages.append({"role": "user", "content": words})
        else:
            for t in range(self.start, turn + 1):
                question = "\n".join((old if t == self.start else []) + asked(t))
                content = user_content(t, question, fps=self.fps)
                messages.append({"role": "user", "content": content})
                if t < turn:
                    messages.append({"role": "assistant", "content": self.answers[t]})
        return chat.encode(self.tokenizer, messages, VISUAL, format=self.format).tokens.tolist()


POLICIES = [
    Policy("full"),
    Policy("session", window=2),
    Policy("session", window=5),
    Policy("refill", window=2),
    Policy("refill", window=5),
    Policy("refill", window=4, every=3),
    Policy("recent", window=1),
    Policy("recent", window=4),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.name}-{p.window}-{p.every}")
def test_what_is_kept_is_the_windowed_dialogue(tokenizer, policy):
    """Questions asked and taken back at any time, answers of any kind, a hundred turns forgotten."""
    turns = 30 if policy.name == "full" else 120
    play = Play(tokenizer, policy)
    if policy.name == "full":
        play.capacity = 10**6
    for turn in range(turns):
        if play.rng.random() < 0.25 and len(play.standing) < 4:
            for _ in range(play.rng.integers(1, 3)):
                play.ask(str(play.rng.choice(QUESTIONS)))
        if play.standing and play.rng.random() < 0.2:
            play.withdraw(int(play.rng.choice(list(play.standing))))
        play.see()
        if turn < 12 or turn % 6 == 0:
            assert play.cache.tokens == play.dialogue(), turn
        play.say(str(play.rng.choice(ANSWERS)))
    assert play.cache.tokens[: len(play.book.head)] == play.book.head


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("system", "fps"), [("", 1), (SYSTEM, 2)])
def test_formats_system_prompts_and_frame_rates(tokenizer, format, system, fps):
    policy = Policy("session", window=3)
    play = Play(tokenizer, policy, format=FORMATS[format], system=system, fps=fps)
    if not system:  # the same for chat.encode, which has a prompt of its own otherwise
        play.format = dataclasses.replace(FORMATS[format], system="")
    for turn in range(14):
        if turn in (0, 5):
            play.ask(QUESTIONS[turn])
        play.see()
        assert play.cache.tokens == play.dialogue(), turn
        play.say(ANSWERS[turn % len(ANSWERS)])


@pytest.mark.parametrize("question_time", [0, 4])
@pytest.mark.parametrize("name", ["session", "refill"])
def test_it_is_what_streamo_sends_at_every_round(tokenizer, name, question_time):
    """Against `window_messages`, which the released script's own rounds are checked with."""
    play = Play(tokenizer, Policy(name, window=4))
    for turn in range(12):
        if turn == question_time:
            play.ask(QUESTIONS[1])
        play.see()
        sent = window_messages(
            turn, play.answers, question=QUESTIONS[1], question_time=question_time, max_rounds=4,
            system=SYSTEM,
        )["messages"]  # fmt: skip
        encoded = chat.encode(tokenizer, sent, VISUAL, format=chat.LLAVA).tokens.tolist()
        assert play.cache.tokens == encoded, turn
        play.say(ANSWERS[turn % len(ANSWERS)])


@pytest.mark.parametrize("name", ["session", "refill", "recent"])
def test_the_oldest_questions_make_room_and_the_newest_stays(word_tokenizer, name):
    play = Play(word_tokenizer, Policy(name, window=2))
    for _ in range(40):
        newest = play.ask(QUESTIONS[6])
        play.see()
        play.say("")
        asked = sum(len(q.tokens) for q in play.book.sunk)
        count = len(word_tokenizer(QUESTIONS[6] + "\n")["input_ids"])
        assert asked <= MARGIN + 64 + count
    standing = {q.handle for q in (*play.book.sunk, *(q for s in play.book.spans
                                                      for q in s.questions))}  # fmt: skip
    assert newest in standing and 1 not in standing
    with pytest.raises(ValueError, match="no question has the handle 1: it was withdrawn or forg"):
        play.book.withdraw(1)
    long = "what is it " * 60
    if name == "session":
        with pytest.raises(ValueError, match="the question has .* tokens and questions have room"):
            play.ask(long)
    else:  # read again as it is, alone
        play.ask(long)
        for _ in range(3):
            play.see()
            play.say("")
        assert play.book.sunk[-1].text == long


def test_a_long_question_asked_first_gets_room(word_tokenizer):
    play = Play(word_tokenizer, Policy("session", window=2))
    play.book.sink_slots, text = 0, "what is it " * 60
    play.ask(text)
    play.book.sink_slots = play.book.sink_wanted()
    for turn in range(6):
        play.see()
        assert play.cache.tokens == play.dialogue(), turn
        play.say("")
    assert play.book.sunk[0].text == text


def test_a_small_capacity_forgets_earlier_and_refill_by_whole_steps(word_tokenizer):
    reads = 0
    play = Play(word_tokenizer, Policy("refill", window=50, every=5))
    play.capacity = 260
    for turn in range(30):
        reads += play.see().fresh
        play.start = turn + 1 - len(play.book.spans)
        assert play.cache.tokens == play.dialogue(), turn
        play.say("")
    assert 0 < reads < 30 / 3
    play = Play(word_tokenizer, Policy("session", window=50))
    play.capacity = 150
    for turn in range(30):
        play.see()
        play.start = turn + 1 - len(play.book.spans)
        assert play.cache.tokens == play.dialogue(), turn
        play.say("")
    assert 2 <= len(play.book.spans) < 20


@pytest.mark.parametrize("name", ["full", "session", "refill", "recent"])
def test_a_turn_that_does_not_fit_leaves_the_book_as_it_was(word_tokenizer, name):
    def picture(book):
        spans = [(tuple(s.questions), tuple(s.rest)) for s in book.spans]
        numbers = book.index, book.first, book.end, book.head_sunk, book.stale
        lists = (tuple(a) for a in (book.head, book.sunk, book.waiting, book.pending))
        return spans, numbers, *lists

    play = Play(word_tokenizer, Policy(name, window=3))
    for _ in range(5):
        play.see()
        play.say(" it is red")
    handle = play.book.ask("what is it " * 20, -1.0)
    before = picture(play.book)
    with pytest.raises(ValueError, match="larger"):
        play.book.draft().turn(VISUAL, 60, SPARE)
    assert picture(play.book) == before
    play.book.withdraw(handle)
    play.see()
    assert play.cache.tokens == play.dialogue()


def chunks(tokenizer, turn):
    head = chat.opening(tokenizer, SYSTEM).tolist() if turn == 0 else []
    return len(head), head + chat.turn_chunk(tokenizer, user_content(turn), 1, format=chat.LLAVA
                                             ).tolist()  # fmt: skip


def test_ready_chunks_keep_their_heads(word_tokenizer):
    """`keep` of the first chunk is the system prompt; of a later one it stands like a question."""
    book = Book(
        Policy("session", window=3), tokenizer=None, format=chat.LLAVA, system="", close=7, fps=1
    )
    cache, rest, kept = Cache(), [], []
    for turn in range(9):
        keep, chunk = chunks(word_tokenizer, turn)
        if turn == 4:
            keep = 2
        if not book.sink_slots:
            book.sink_slots = book.sink_wanted(keep)
        cache.take(book.turn(VISUAL, CAPACITY, SPARE, chunk, keep))
        at = chunk.index(PAD)
        kept.append(chunk[:keep])
        rest.append(chunk[keep:at] + [PAD] * VISUAL + chunk[at + 1 :])
        first = max(0, turn - 2)
        words = [token for head in kept[: first + 1] for token in head]
        for t in range(first, turn + 1):
            words = words + (kept[t] if t > first else []) + rest[t] + [11, 7] * (t < turn)
        assert cache.tokens == words, turn
        book.say([11], 0)
    with pytest.raises(ValueError, match="no question has the handle 0"):
        book.withdraw(0)


def test_ready_chunks_that_cannot_be(word_tokenizer):
    book = Book(
        Policy("session", window=3), tokenizer=None, format=chat.LLAVA, system="", close=7, fps=1
    )
    book.sink_slots = 128
    for tokens, keep, message in [
        ([1, 2], 0, r"the chunk has 0 placeholders \(-200\), wanted 1, or 3"),
        ([PAD, 1, PAD, PAD], 0, r"placeholders \(-200\) are not side by side"),
        ([1, 2, PAD], 3, "keep is 3, wanted 0 to 2, the tokens before the frame"),
        ([1, 2, PAD], -1, "keep is -1, wanted 0 to 2"),
        ([1] * 200 + [PAD], 129, "keep is 129, wanted at most 128: the sink has no more room"),
        (None, 3, "keep is 3 without tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            book.draft().turn(VISUAL, CAPACITY, SPARE, tokens, keep)
    recent = Book(Policy("recent"), tokenizer=word_tokenizer, format=chat.LLAVA, system="",
                  close=7, fps=1)  # fmt: skip
    with pytest.raises(ValueError, match="'recent' writes its own prompt"):
        recent.turn(VISUAL, CAPACITY, SPARE, [1, PAD])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="shrink"), "policy is 'shrink', wanted one of session, full, refill, recent"),
        (dict(window=1), "window is 1 turns, wanted at least 2"),
        (dict(name="recent", window=0), "window is 0 turns, wanted at least 1"),
        (dict(name="refill", every=0), "every is 0 turns, wanted at least 1"),
    ],
)
def test_policies_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)
