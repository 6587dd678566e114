"""A streaming assistant: one turn per frame, constant memory, a fixed number of programs.

Layout of the dialogue: Streamo's ChatML, by data/chat.py. The policy is `session` (DESIGN: what a
stream keeps): the last `window` turns, and before them a sink that stays, which is the system
prompt, the first turn's header and question, and the questions of turns since forgotten. A turn is
forgotten from the user's words on up to the next turn's user's words, so that what the model sees
is word for word the windowed dialogue that Streamo re-encodes:

    system | user header, question(s) | <5s-6s> frame ... answer | user header, <6s-7s> frame ...

Keys and values are kept, not re-encoded: a stream equals attention restricted to the retained
tokens with contiguous positions; while nothing has been forgotten, the forward over the transcript.

Silence and Standby cost one forward: the decided token rides with the next turn's chunk.
"""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from streamjax.data import chat
from streamjax.data.dialogue import DEFAULT_SYSTEM_PROMPT, RESPONSE, STATES, user_content
from streamjax.data.tokenizer import load_tokenizer
from streamjax.models.llava_streamformer import PLACEHOLDER, LlavaStreamFormer
from streamjax.stream import program
from streamjax.stream.features import FrameReader

WINDOW = 120  # turns: Streamo's own max_rounds
TEXT_BUCKETS = (8, 32, 64, 128, 256, 512)  # text tokens of a chunk, padded to one of these
RINGS = (512, 2048, 8192)  # slots a cache grows through on its way to its capacity
REBASE_AT = 100_000  # positions; specs/performance.md section 2


@dataclasses.dataclass(frozen=True)
class Turn:
    """What an assistant made of one frame.

    time: seconds of the stream. state: one of data.dialogue.STATES. probabilities: of the three
    states among themselves, in that order. text: what it said, empty unless it responded. tokens:
    the answer as generated, state included. latency in seconds: `prepare` (the frame and the text),
    `decide` (tower, projector and language model, one program), `speak` (the words), `total`.
    """

    index: int
    time: float
    state: str
    probabilities: tuple[float, ...]
    text: str
    latency: dict[str, float]
    tokens: tuple[int, ...]


@dataclasses.dataclass
class _Span:
    """A turn in the cache, by running numbers of its tokens: from its user's words to `stop`, the
    next turn's; `keep` of them, from `start` on, outlive it."""

    start: int
    keep: int
    stop: int = -1


class Session:
    """An assistant that watches: `ask(text)`, and `push(frame)` -> Turn.

    window, tower_window, tokenizer: see `sj.Stream`. system: the system prompt; None takes the
    tokenizer's `system_prompt` entry, or Streamo's own. fps: turns a second, for the time tags.
    max_new_tokens: of one answer. capacity: tokens of the window (default: enough for `window`
    turns with 48 tokens of text each); a turn is forgotten early when its room is needed.
    state_ids, end_id: for token chunks, when there is no tokenizer.

    Raises ValueError for a window below 2 turns, a system prompt too long for the capacity, and
    when there is neither a tokenizer nor state_ids and end_id.
    """

    def __init__(
        self,
        model: LlavaStreamFormer,
        *,
        window: int | None = None,
        tower_window: int | None = None,
        tokenizer: Any = None,
        fps: float | int = 1.0,
        system: str | None = None,
        max_new_tokens: int = 128,
        capacity: int | None = None,
        state_ids: Sequence[int] | None = None,
        end_id: int | None = None,
    ):
        if tokenizer is None and model.assets.tokenizer is not None and state_ids is None:
            tokenizer = _tokenizer_of(model.assets.tokenizer)
        if tokenizer is None and (state_ids is None or end_id is None):
            raise ValueError(
                "the model has no tokenizer: pass tokenizer=, or state_ids= and end_id= and give "
                "push() token chunks"
            )
        self.tokenizer, self.fps, self.max_new_tokens = tokenizer, fps, max_new_tokens
        self._frames = FrameReader(model)
        stops: tuple[int, ...] = () if end_id is None else (end_id,)
        opening: Any = ()
        if tokenizer is not None:
            if system is None:
                settings = getattr(tokenizer, "init_kwargs", {})
                system = settings.get("system_prompt", DEFAULT_SYSTEM_PROMPT)
            state_ids = chat.state_ids(tokenizer)
            stops = (chat.end_id(tokenizer),)
            if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
                stops = (*stops, tokenizer.pad_token_id)  # `<|endoftext|>` ends an answer too
            opening = chat.opening(tokenizer, system).tolist()
        self._state_ids, self._close = tuple(state_ids or ()), stops[0]
        self._form, self._leaves, self._model = program.prepare(
            model, type(model).fold, self._state_ids, stops
        )
        self._pending: list[int] = list(opening)  # known, not yet in the cache
        self._header: list[int] = []  # what stands between an answer and the user's words
        self._first_header = False
        if tokenizer is not None:
            self._first_header = not opening  # nothing before it, and no line to end
            self._header = self._ids(f"\n{chat.START}user\n")
        self._questions: list[tuple[float, str]] = []
        self._spans: deque[_Span] = deque()
        self._sunk_head = 0  # tokens of the sink that are never forgotten
        self._sunk: list[int] = []  # lengths of the questions in the sink, behind the head
        # Running numbers in the ring, as the cache counts them: first <= number < end. Keys are
        # rotated for their number minus `base`.
        self._first = self._end = self._base = 0
        self._index = 0
        self._tower_window = tower_window or model.config.tower.num_frames
        # Where they are None, the first frame decides.
        self._window: Any = window
        self._capacity: Any = capacity
        self._cache: Any = None
        self._tower_cache: Any = None
        # Room for the system prompt and some questions.
        self._sink_slots = -(-(len(self._pending) + 128) // 64) * 64

    def ask(self, text: str, at: float | int | None = None) -> None:
        """Puts a question with the next frame, or with the first one at or after `at` seconds."""
        if self.tokenizer is None:
            raise ValueError("no tokenizer: put the question's tokens into push(frame, tokens=...)")
        self._questions.append((-1.0 if at is None else float(at), text))

    def push(self, frame: np.ndarray, tokens: Any = None, *, keep: int = 0) -> Turn:
        """Watches one more frame and decides.

        frame: uint8 RGB [h w 3], or float [h w 3] normalised already. tokens: the turn's chunk, in
        place of what the chat layout makes: ints [l] with -200 once for the frame (or once per
        visual token), without the answer before it; `keep` of them, the first ones, outlive the
        turn. Raises ValueError for a frame of another shape, and a chunk longer than the cache.
        """
        begin = time.perf_counter()
        pixels = self._frames(frame)[None]
        if self._cache is None:
            self._open(*pixels.shape[1:3])
        chunk, words_at, kept = self._chunk(tokens, keep)
        padded, length, drop = self._place(chunk, words_at, kept)
        prepared = time.perf_counter()
        probabilities, self._cache, self._tower_cache = program.turn(
            self._form, self._leaves, pixels, padded, length, drop, self._cache, self._tower_cache
        )
        probabilities = np.asarray(probabilities)
        decided = time.perf_counter()
        state = int(probabilities.argmax())
        answer = [self._state_ids[state]]
        latency = {"prepare": prepared - begin, "decide": decided - prepared}
        text = ""
        if STATES[state] == RESPONSE:
            answer += self._speak(answer[0])
            if self.tokenizer is not None:
                text = self.tokenizer.decode(answer[1:]).strip()
            latency["speak"] = time.perf_counter() - decided
        else:
            self._pending = [*answer, self._close]
        latency["total"] = time.perf_counter() - begin
        index, self._index = self._index, self._index + 1
        shares = tuple(float(p) for p in probabilities)
        return Turn(index, index / self.fps, STATES[state], shares, text, latency, tuple(answer))

    def _open(self, height: int, width: int) -> None:
        """Makes the caches: only now is the frames' size known."""
        patch = self._model.config.tower.patch_size
        grid = (1, height // patch, width // patch)
        (visual,) = self._model.visual_tokens([grid])
        limit = self._model.config.decoder.max_position_embeddings
        spare = self.max_new_tokens + TEXT_BUCKETS[-1] + visual
        if self._capacity is None:
            turns = self._window or WINDOW
            room = max(limit - self._sink_slots, 2 * spare)
            whole = len(self._pending) + turns * (visual + 48) + spare
            self._capacity = min(whole, room)
        self._window = self._window or WINDOW
        if self._window < 2:
            raise ValueError(f"window is {self._window} turns, wanted at least 2")
        if self._capacity < len(self._pending) + self.max_new_tokens + visual + 32:
            raise ValueError(
                f"capacity is {self._capacity} tokens, wanted room for the system prompt "
                f"({len(self._pending)}), a frame ({visual}) and an answer ({self.max_new_tokens})"
            )
        self._visual = visual
        self._rings = [r for r in RINGS if r < self._capacity] + [self._capacity]
        self._cache = self._model.init_cache(1, capacity=self._rings[0], sink=self._sink_slots)
        self._tower_cache = self._model.init_frames(1, grid, window=self._tower_window)
        self._rebase_at = max(min(REBASE_AT, limit), 2 * self._capacity)

    def _chunk(self, tokens: Any, keep: int) -> tuple[list[int], int, int]:
        """The turn's tokens, where among them the user's words start, and how many words stay."""
        if tokens is not None:
            chunk = np.asarray(tokens).reshape(-1).tolist()
            if chunk.count(PLACEHOLDER) == 1 and self._visual > 1:
                at = chunk.index(PLACEHOLDER)
                chunk[at : at + 1] = [PLACEHOLDER] * self._visual
            if chunk.count(PLACEHOLDER) != self._visual:
                raise ValueError(
                    f"the chunk has {chunk.count(PLACEHOLDER)} placeholders ({PLACEHOLDER}), "
                    f"wanted 1, or {self._visual}: one per visual token"
                )
            return chunk, 0, keep
        now = self._index / self.fps + 1e-6
        due = [text for at, text in self._questions if at <= now]
        self._questions = [(at, text) for at, text in self._questions if at > now]
        question = "\n".join(due)
        first = self._first_header and not self._index
        user = user_content(self._index, question, fps=self.fps)
        chunk = chat.turn_chunk(
            self.tokenizer, user, self._visual, format=chat.LLAVA, first=first
        ).tolist()
        header = self._ids(f"{chat.START}user\n") if first else self._header
        words_at = stay = _shared(chunk, header)
        if question:
            line = "" if first else "\n"
            stay = _shared(chunk, self._ids(f"{line}{chat.START}user\n{question}\n"))
        return chunk, words_at, stay - words_at

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _place(self, chunk: list[int], words_at: int, kept: int) -> tuple[Any, Any, Any]:
        """Makes room, books the turn and pads the chunk: (tokens, length, drop) for `turn`."""
        whole = [*self._pending, *chunk]
        self._pending = []
        need = len(whole) + self.max_new_tokens + 1
        drop = self._forget(need)
        self._grow(need)
        start = self._end + len(whole) - len(chunk) + words_at
        if self._spans:
            self._spans[-1].stop = start
        self._spans.append(_Span(start, kept))
        # Text that no bucket takes goes first, alone, as far as it stands before the frame.
        longest = TEXT_BUCKETS[-1]
        while len(whole) - self._visual > longest and whole[0] != PLACEHOLDER:
            cut = min(whole.index(PLACEHOLDER), longest)
            arguments = self._padded(whole[:cut], longest, drop)
            self._cache = program.read(self._form, self._leaves, *arguments, self._cache)
            whole, drop = whole[cut:], 0
        text = len(whole) - self._visual
        bucket = next((b for b in TEXT_BUCKETS if b >= text), None)
        if bucket is None:
            raise ValueError(f"{text} tokens of text behind the frame, wanted {longest} at most")
        return self._padded(whole, self._visual + bucket, drop)

    def _padded(self, tokens: list[int], length: int, drop: int) -> tuple[Any, Any, Any]:
        self._end += len(tokens)
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        return padded, np.asarray([len(tokens)], np.int32), np.asarray([drop], np.int32)

    def _forget(self, need: int) -> int:
        """Lets the oldest turns go until the window and the room are kept.

        What outlives them moves into the sink at once; otherwise the tokens to drop are returned,
        for the turn's own program to drop.
        """
        drop, moved = 0, []
        while self._spans and self._spans[0].stop >= 0:
            room = self._capacity - (self._end - self._first - drop)
            if len(self._spans) < self._window and room >= need:
                break
            span = self._spans.popleft()
            oldest = self._first + drop
            if oldest < span.start:  # before the first turn's words: the system prompt
                self._sunk_head = span.start - oldest
                moved += range(oldest, span.start)
            if span.keep:
                moved += range(span.start, span.start + span.keep)
                self._sunk.append(span.keep)
            drop = span.stop - self._first
        if self._end - self._first - drop + need > self._capacity:
            raise ValueError(
                f"a turn of {need} tokens, its answer included, does not fit the capacity of "
                f"{self._capacity} tokens: make it larger"
            )
        if moved:
            self._sink(moved, drop)
        self._first += drop
        return 0 if moved else drop

    def _sink(self, moved: list[int], drop: int) -> None:
        """Moves tokens, by number, behind what the sink holds; forgets `drop` of the ring."""
        slots = list(range(self._sunk_head + sum(self._sunk) - len(moved)))
        slots += [self._sink_slots + number % self._cache.ring for number in moved]
        while len(slots) > self._sink_slots and self._sunk:  # the oldest question makes room
            gone = self._sunk.pop(0)
            del slots[self._sunk_head : self._sunk_head + gone]
        keep = np.full((1, self._sink_slots), -1, np.int32)
        keep[0, : len(slots)] = slots
        self._cache = program.pin(
            self._form, self._leaves, keep, np.asarray([drop], np.int32), self._cache
        )

    def _grow(self, need: int) -> None:
        """Takes a larger ring before the smaller one wraps around, and re-bases in time."""
        ring = self._cache.ring
        if self._end + need > ring and ring < self._capacity:
            ring = next((r for r in self._rings if r >= self._end + need), self._capacity)
            self._cache = program.grow(self._cache, ring)
        if self._end + need - self._base > self._rebase_at:
            self._cache = program.rebase(self._form, self._leaves, self._cache)
            held = self._sunk_head + sum(self._sunk) + self._end - self._first
            self._base = self._end - held

    def _speak(self, first: int) -> list[int]:
        words, count, self._cache = program.speak(
            self._form, self._leaves, jnp.int32(first), self._cache, self.max_new_tokens
        )
        said = np.asarray(words)[: int(count)].tolist()
        if len(said) < self.max_new_tokens:  # it stopped by itself: all of it is in the cache
            self._end += 1 + len(said)
            self._pending = [self._close]
        else:
            self._end += len(said)
            self._pending = [said[-1], self._close]
        return said


# Reading one takes as long as many turns, and every dialogue of an evaluation is a new stream.
_tokenizer_of = functools.lru_cache(maxsize=4)(load_tokenizer)


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two lists share at their start: a mark's last may merge with what follows."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
