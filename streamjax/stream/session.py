"""Streaming assistants: one turn per frame, constant memory, a fixed number of programs.

`Session` is one stream; `StreamBatch` is many on one model, in one compiled step. What a stream
remembers is its policy's (stream/book.py); a stream equals the forward that the policy names, and
while nothing has been forgotten, the forward over the transcript.

Silence and Standby cost one forward: the decided token rides with the next turn's chunk.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from streamjax.data import chat
from streamjax.data.dialogue import DEFAULT_SYSTEM_PROMPT, RESPONSE, SILENCE, STATES
from streamjax.data.tokenizer import load_tokenizer
from streamjax.errors import InputError
from streamjax.models.internvl import InternVL
from streamjax.models.llava_streamformer import PLACEHOLDER, LlavaStreamFormer
from streamjax.models.vlm import VideoLM
from streamjax.stream.book import Book, Policy
from streamjax.stream.decisions import Decider, Thresholds
from streamjax.stream.engine import Engine, features_of
from streamjax.stream.features import FrameReader
from streamjax.stream.sampling import Sampling, knobs_of

TEXT = 48  # tokens of a turn besides its frame, on average, that a window has room for


@dataclasses.dataclass(frozen=True)
class Asked:
    """A call of `ask`: its handle, the words, and `at` in seconds (None: with the next frame)."""

    handle: int
    text: str
    at: float | None


@dataclasses.dataclass(frozen=True)
class Turn:
    """What an assistant made of one frame.

    time: seconds of the stream. state: one of data.dialogue.STATES. probabilities: of the three
    states among themselves, in that order. text: what it said, empty unless it responded. tokens:
    the answer as generated, state included. latency in seconds: `prepare` (the frame and the text),
    `decide` (tower and language model, one program), `speak` (the words), `total`. asked,
    withdrawn: the questions and the handles given to `ask` and `withdraw` since the turn before.
    chunk, keep: what was pushed with the frame, where that were tokens.
    """

    index: int
    time: float
    state: str
    probabilities: tuple[float, ...]
    text: str
    latency: dict[str, float]
    tokens: tuple[int, ...]
    asked: tuple[Asked, ...] = ()
    withdrawn: tuple[int, ...] = ()
    chunk: tuple[int, ...] | None = None
    keep: int = 0


class StreamBatch:
    """Up to `slots` assistants on one model: `join()` gives a Session, `push` takes their frames.

    Streams join and leave at any time and nothing is compiled for it; each equals the same stream
    alone. All frames have one size. policy, window, every: see `sj.Stream`; so are the others,
    which hold for every stream of the batch. Raises ValueError for settings that cannot work, and
    when there is neither a tokenizer nor state_ids and end_id.
    """

    def __init__(
        self,
        model: VideoLM,
        *,
        slots: int,
        policy: str = "session",
        window: int | None = None,
        every: int = 1,
        tower_window: int | None = None,
        tokenizer: Any = None,
        max_new_tokens: int = 128,
        capacity: int | None = None,
        state_ids: Sequence[int] | None = None,
        end_id: int | None = None,
    ):
        if not isinstance(model, VideoLM):
            raise ValueError(f"cannot stream a {type(model).__name__}, wanted a video LLM")
        if not model.placeholders:
            raise ValueError(
                "the model does not know which token stands for a frame's: set model.config = "
                "dataclasses.replace(model.config, image_token_id=...)"
            )
        for name, number in (("slots", slots), ("max_new_tokens", max_new_tokens)):
            if number < 1:
                raise ValueError(f"{name} is {number}, wanted at least 1")
        if tokenizer is None and model.assets.tokenizer is not None and state_ids is None:
            tokenizer = _tokenizer_of(model.assets.tokenizer)
        if tokenizer is None and (state_ids is None or end_id is None):
            raise ValueError(
                "the model has no tokenizer: pass tokenizer=, or state_ids= and end_id= and give "
                "push() token chunks"
            )
        self.policy = Policy(policy, every=every, **({} if window is None else {"window": window}))
        self.slots, self.tokenizer, self.max_new_tokens = slots, tokenizer, max_new_tokens
        self.format = format_of(model)
        stops: tuple[int, ...] = () if end_id is None else (end_id,)
        if tokenizer is not None:
            state_ids = chat.state_ids(tokenizer)
            stops = (chat.end_id(tokenizer),)
            if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
                stops = (*stops, tokenizer.pad_token_id)  # `<|endoftext|>` ends an answer too
        self.state_ids, self.stop_ids = tuple(state_ids or ()), stops
        if taken := {*self.state_ids, *stops} & {*model.placeholders}:
            raise ValueError(
                f"the ids {sorted(taken)} stand for visual tokens, and cannot be a state or an end"
            )
        self._model, self._capacity, self._tower_window = model, capacity, tower_window
        self._frames = FrameReader(model)
        self._engine: Any = None  # made with the first frame, whose size decides
        self._sessions: dict[int, Session] = {}

    def join(
        self,
        *,
        system: str | None = None,
        fps: float | int = 1.0,
        sampling: Sampling | None = None,
        thresholds: Thresholds | None = None,
        speaks_from: float | int = 0,
    ) -> "Session":
        """A new stream in a free slot; see `sj.Stream`. Raises ValueError when all are taken.

        speaks_from: the second before which it is silent, whatever the model makes of it.
        """
        free = [row for row in range(self.slots) if row not in self._sessions]
        if not free:
            raise ValueError(f"all {self.slots} slots are taken: a stream has to leave first")
        if fps <= 0:
            raise ValueError(f"fps is {fps}, wanted a positive number")
        settings = getattr(self.tokenizer, "init_kwargs", {})
        if system is None:
            system = settings.get("system_prompt", DEFAULT_SYSTEM_PROMPT)
        chat.check_words(system, "the system prompt")
        book = Book(
            self.policy, tokenizer=self.tokenizer, format=self.format, system=system,
            close=self.stop_ids[0], fps=fps,
        )  # fmt: skip
        session = Session(
            self, free[0], book, sampling or Sampling(), Decider(thresholds), speaks_from
        )
        if self._engine is not None:
            book.sink_slots = slots = self._engine.cache.sink_slots
            if book.sink_wanted() and len(book.pending) >= slots:
                raise ValueError(
                    f"the system prompt has {len(book.pending)} tokens, wanted below {slots}: the "
                    "first stream's made that room"
                )
            self._engine.clear(free[0])
        self._sessions[free[0]] = session
        return session

    def push(
        self,
        frames: Mapping["Session", Any],
        tokens: Mapping["Session", Any] | None = None,
        keep: Mapping["Session", int] | None = None,
    ) -> dict["Session", Turn]:
        """The next turn of the given streams; the others wait.

        frames, tokens and keep: see Session.push. Raises ValueError for a stream that is closed or
        of another batch, and whatever Session.push raises.
        """
        if not frames:
            raise ValueError("0 frames: wanted one for at least one stream")
        begin = time.perf_counter()
        by_row = {session._row: session for session in frames}
        for session in frames:
            session._check_open()
            if session._batch is not self:
                raise ValueError("a stream of another batch: push its frames there")
        pixels = {}
        for session, frame in frames.items():
            pixels[session._row], grid = self._frames(frame)
            if self._engine is None:
                kept = [min(k, np.size((tokens or {}).get(s, ()))) for s, k in (keep or {}).items()]
                self._open(grid, max(kept, default=0))
        engine, work = self._engine, {}
        books = {row: session._book for row, session in self._sessions.items()}
        # Booked on copies: a turn that cannot be taken, of any of the streams, leaves them as is.
        books |= {row: session._book.draft() for row, session in by_row.items()}
        for row, session in by_row.items():
            chunk = (tokens or {}).get(session)
            kept = (keep or {}).get(session, 0)
            work[row] = books[row].turn(
                engine.visual, engine.capacity, self.max_new_tokens, chunk, kept
            )
        prepared = time.perf_counter()
        shares, features = engine.turn(books, pixels, work)
        for row, session in by_row.items():
            session._book = books[row]
        decided = time.perf_counter()
        states = {row: s._state(shares[row].tolist()) for row, s in by_row.items()}
        answers = {row: [self.state_ids[state]] for row, state in states.items()}
        held = dict.fromkeys(by_row, 0)  # tokens of each answer that are in the cache
        speaking = [row for row, state in states.items() if STATES[state] == RESPONSE]
        if speaking:
            said = engine.speak({row: answers[row][0] for row in speaking}, self._knobs(speaking))
            for row, words in said.items():
                answers[row] += words
                # One that stopped by itself is in the cache; where it was cut, but for the last.
                held[row] = len(words) + (len(words) < self.max_new_tokens)
        ended = time.perf_counter()
        turns = {}
        keeps_frames = self.policy.name in ("refill", "recent")
        for row, session in by_row.items():
            seen = features_of(features, row) if keeps_frames else None
            books[row].say(answers[row], held[row], seen)
            latency = {"prepare": prepared - begin, "decide": decided - prepared}
            if row in speaking:
                latency["speak"] = ended - decided
            latency["total"] = time.perf_counter() - begin
            turns[session] = session._turn(
                states[row], shares[row], answers[row], latency,
                (tokens or {}).get(session), (keep or {}).get(session, 0),
            )  # fmt: skip
        return turns

    def _open(self, grid: tuple[int, int, int], keep: int) -> None:
        (visual,) = self._model.visual_tokens([grid])
        limit = self._model.config.decoder.max_position_embeddings
        head = max(len(s._book.pending) for s in self._sessions.values())
        sink = max(s._book.sink_wanted(keep) for s in self._sessions.values())
        spare = self.max_new_tokens + 512 + visual
        capacity = self._capacity
        if capacity is None:
            room = max(limit - sink, 2 * spare)
            turns = self.policy.window + (self.policy.every if self.policy.name == "refill" else 0)
            capacity = min(head + turns * (visual + TEXT) + spare, room)
            if self.policy.name == "full":
                capacity = room
        if capacity < head + self.max_new_tokens + visual + 32:
            raise ValueError(
                f"capacity is {capacity} tokens, wanted room for the system prompt ({head}), a "
                f"frame ({visual}) and an answer ({self.max_new_tokens})"
            )
        self._make(grid, capacity, sink)

    def _make(self, grid: tuple[int, int, int], capacity: int, sink: int) -> None:
        self._engine = Engine(
            self._model, rows=self.slots, grid=grid, capacity=capacity, sink_slots=sink,
            tower_window=self._tower_window, state_ids=self.state_ids, stop_ids=self.stop_ids,
            max_new_tokens=self.max_new_tokens,
        )  # fmt: skip
        for session in self._sessions.values():
            session._book.sink_slots = sink

    def _knobs(self, speaking: Iterable[int]) -> Any:
        """How the words are drawn; None, a cheaper program, where all that speak are greedy."""
        if all(self._sessions[row].sampling.greedy for row in speaking):
            return None
        rows = [self._sessions.get(row) for row in range(self.slots)]
        return knobs_of([(s.sampling, s._book.index) if s else (Sampling(), 0) for s in rows])

    def _leave(self, row: int) -> None:
        self._sessions.pop(row, None)


class Session:
    """An assistant that watches: `ask(text)`, and `push(frame)` -> Turn. Made by `sj.Stream`."""

    def __init__(
        self,
        batch: StreamBatch,
        row: int,
        book: Book,
        sampling: Sampling,
        decide: Decider,
        speaks_from: float | int = 0,
    ):
        self._batch, self._row, self._book = batch, row, book
        self.sampling, self._decide, self._speaks_from = sampling, decide, speaks_from
        self._closed = False
        self._asked: list[Asked] = []  # since the last turn, for the next one to tell
        self._withdrawn: list[int] = []

    @property
    def tokenizer(self) -> Any:
        return self._batch.tokenizer

    @property
    def fps(self) -> float | int:
        return self._book.fps

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen for this stream, as plain JSON: what a trace begins with.

        `stream.settings.reopen` makes a stream of it. capacity: None until the first frame, unless
        it was given.
        """
        batch, rule = self._batch, self._decide.thresholds
        engine = batch._engine
        return {
            "policy": batch.policy.name,
            "window": batch.policy.window,
            "every": batch.policy.every,
            "tower_window": batch._tower_window,
            "fps": self.fps,
            "system": self._book.system,
            "max_new_tokens": batch.max_new_tokens,
            "capacity": batch._capacity if engine is None else engine.capacity,
            "sampling": dataclasses.asdict(self.sampling),
            "thresholds": None if rule is None else dataclasses.asdict(rule),
            "speaks_from": self._speaks_from,
            "tokenizer": self.tokenizer is not None,
            "state_ids": list(batch.state_ids),
            "stop_ids": list(batch.stop_ids),
        }

    def ask(self, text: str, at: float | int | None = None) -> int:
        """Puts a question with the next frame, or with the first one at or after `at` seconds.

        Several may stand at once; the handle that is returned takes this one back (`withdraw`).
        Raises ValueError for an empty question, one that contains a mark of the dialogue or of a
        frame, one too long to be kept, a closed stream, and without a tokenizer.
        """
        self._check_open()
        if self.tokenizer is None:
            raise ValueError("no tokenizer: put the question's tokens into push(frame, tokens=...)")
        chat.check_question(text)
        placeholders = self._batch._model.placeholders
        if any(i in placeholders for i in self.tokenizer(text)["input_ids"]):
            raise InputError("the question contains the mark of a frame's tokens: reword")
        # A blank line in front would become one token with the newline that ends the header.
        when = None if at is None else float(at)
        handle = self._book.ask(text.strip(), -1.0 if when is None else when)
        self._asked.append(Asked(handle, text, when))
        return handle

    def withdraw(self, handle: int) -> None:
        """Takes back a question, put or not: from now on the assistant does not see it.

        What it has computed since was computed under it; `refill` and `recent` compute that anew.
        Raises ValueError for a handle that stands for no question, or no more.
        """
        self._check_open()
        gone = self._book.withdraw(handle)
        self._withdrawn.append(handle)
        engine = self._batch._engine
        if isinstance(gone, tuple):
            engine.cut(self._row, self._book, *gone)
        elif gone is not None:
            engine.keep(self._row, gone)

    def push(self, frame: Any, tokens: Any = None, *, keep: int = 0) -> Turn:
        """Watches one more frame and decides.

        frame: uint8 RGB [h w 3], float [h w 3] normalised already, or (pixels, grid row) as the
        family's processor makes them. tokens: the turn's chunk, in place of what the chat layout
        makes: ints [l] with the placeholder once for the frame (or once per visual token), without
        the answer before it; `keep` of them, the first ones, outlive the turn. Raises ValueError
        for a frame of another shape, a chunk longer than the cache, and a closed stream.
        """
        self._check_open()
        given: Any = None if tokens is None else {self: tokens}
        return self._batch.push({self: frame}, given, {self: keep})[self]

    def save(self, path: str | os.PathLike) -> None:
        """Writes all that this stream needs to go on identically, in this process or another.

        `sj.restore(model, path)` goes on from there. One file, whole or not at all, without the
        weights. A stream of a batch is written alone. Raises ValueError for a closed stream.
        """
        from streamjax.stream.snapshot import write  # which makes sessions

        self._check_open()
        write(self, path)

    def close(self) -> None:
        """Ends the stream and frees its slot; pushing after that is an error."""
        if not self._closed:
            self._closed = True
            self._batch._leave(self._row)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the stream is closed: make a new one")

    def _state(self, shares: list[float]) -> int:
        """What is decided in the turn that has just been booked."""
        silent = (self._book.index - 1) / self.fps < self._speaks_from
        return STATES.index(SILENCE) if silent else self._decide(shares)

    def _turn(
        self, state: int, shares: Any, answer: list[int], latency: dict, chunk: Any, keep: int
    ) -> Turn:
        index = self._book.index - 1
        text = ""
        if len(answer) > 1 and self.tokenizer is not None:
            text = self.tokenizer.decode(answer[1:]).strip()
        probabilities = tuple(float(p) for p in shares)
        asked, withdrawn = tuple(self._asked), tuple(self._withdrawn)
        self._asked, self._withdrawn = [], []
        return Turn(
            index, index / self.fps, STATES[state], probabilities, text, latency, tuple(answer),
            asked, withdrawn, _ints(chunk), keep,
        )  # fmt: skip


def _ints(tokens: Any) -> tuple[int, ...] | None:
    return None if tokens is None else tuple(np.asarray(tokens).reshape(-1).tolist())


def format_of(model: VideoLM) -> chat.ChatFormat:
    """How the family writes a frame among words; the placeholder by its id, for token chunks."""
    if isinstance(model, LlavaStreamFormer):
        return dataclasses.replace(chat.LLAVA, placeholder=PLACEHOLDER)
    style = chat.INTERNVL if isinstance(model, InternVL) else chat.QWEN
    return dataclasses.replace(style, placeholder=model.placeholders[0])


# Reading one takes as long as many turns, and every dialogue of an evaluation is a new stream.
_tokenizer_of = functools.lru_cache(maxsize=4)(load_tokenizer)
