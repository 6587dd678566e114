"""What one stream remembers, in tokens, and what it lets go: the four window policies.

A dialogue lies in the cache as

    head | sunk questions | turn, turn, turn ...

The head is the system prompt and the first user header. A turn is its questions, then the rest:
from the time tag on, up to where the next turn's words begin. When a turn is forgotten its
questions stay (they are sunk, behind the head), so that what the model sees is word for word the
windowed dialogue that Streamo re-encodes:

    system | user header, question(s) | <5s-6s> frame ... answer | user header, <6s-7s> frame ...

    full      keeps everything
    session   forgets the oldest turns' keys and values; nothing is computed again
    refill    forgets `every` turns at a time, and has all that is left read again
    recent    reads, at every turn, the head, the questions and the last frames; no answers

The book is kept on the host and knows no arrays: it says which tokens to read, keep and drop.
"""

import copy
import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from streamjax.data import chat
from streamjax.data.dialogue import user_content
from streamjax.errors import InputError

POLICIES = ("session", "full", "refill", "recent")
MARGIN = 128  # tokens of standing questions that there is room for, at least


@dataclasses.dataclass(frozen=True)
class Policy:
    """name: one of POLICIES. window: turns kept, the current one included (`recent`: frames).

    every: turns between two readings under `refill`. Raises ValueError for an unknown name, a
    window below 2 turns (1 frame), and every below 1.
    """

    name: str = "session"
    window: int = 120  # Streamo's own max_rounds
    every: int = 1

    def __post_init__(self):
        if self.name not in POLICIES:
            raise ValueError(f"policy is {self.name!r}, wanted one of {', '.join(POLICIES)}")
        least = 1 if self.name == "recent" else 2
        if self.window < least:
            raise ValueError(f"window is {self.window} turns, wanted at least {least}")
        if self.every < 1:
            raise ValueError(f"every is {self.every} turns, wanted at least 1")


@dataclasses.dataclass(eq=False)
class Question:
    """handle: what `ask` returned, 0 for a kept piece of a ready chunk, which nobody can withdraw.

    at: seconds of the stream. tokens: once it has been put.
    """

    handle: int
    text: str
    at: float
    tokens: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Span:
    """One turn in the cache; `features` are its frame's visual tokens, where they are kept."""

    questions: list[Question]
    rest: list[int]
    features: Any = None

    def __len__(self) -> int:
        return sum(len(q.tokens) for q in self.questions) + len(self.rest)

    @property
    def tokens(self) -> list[int]:
        return [token for q in self.questions for token in q.tokens] + self.rest


@dataclasses.dataclass
class Work:
    """What a turn wants done, in this order.

    fresh: empty the row. reads: (tokens, the visual tokens of their frames) to read back. moved,
    kept: what the sink shall hold, old sink slots `kept` and then ring tokens `moved`, by running
    number; None: as it is. drop: ring tokens to forget. tokens: the turn's chunk.
    """

    tokens: list[int]
    drop: int = 0
    kept: list[int] | None = None
    moved: list[int] = dataclasses.field(default_factory=list)
    fresh: bool = False
    reads: list[tuple[list[int], list[Any]]] = dataclasses.field(default_factory=list)


class Book:
    """The bookkeeping of one stream. See the module's words for the layout.

    tokenizer: None for token chunks. format: how the family writes a frame. close: the id that ends
    an answer.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        tokenizer: Any,
        format: chat.ChatFormat,
        system: str,
        close: int,
        fps: float | int,
    ):
        self.policy, self.tokenizer, self.format = policy, tokenizer, format
        self.close, self.fps, self.system = close, fps, system
        self.index = 0  # of the next turn
        self.waiting: list[Question] = []  # not put yet
        self.head: list[int] = []
        self.head_sunk = False
        self.sunk: list[Question] = []
        self.spans: deque[Span] = deque()
        self.pending: list[int] = []  # said, not yet in the cache
        self.first = self.end = 0  # running numbers in the ring: first <= number < end
        self.stale = False  # something that was read has been withdrawn: read it all again
        self._handles = 0
        self._header: list[int] = []
        self._bare = False
        if tokenizer is not None:
            opening = chat.opening(tokenizer, system).tolist()
            self.pending = opening
            self._bare = not opening  # no system prompt: no line to end before the first turn
            self._header = self._ids(f"\n{chat.START}user\n")
        self.sink_slots = 0  # of the cache, under `session` and once there is one

    def draft(self) -> "Book":
        """A copy for the next turn, which takes this one's place when the turn has been taken."""
        book = copy.copy(self)
        book.head, book.sunk, book.spans = list(self.head), list(self.sunk), deque(self.spans)
        if self.spans:  # its tokens go on
            last = self.spans[-1]
            book.spans[-1] = Span(last.questions, list(last.rest), last.features)
        return book

    def sink_wanted(self, keep: int = 0) -> int:
        """Sink slots for the head and for what is asked so far; keep: of the first ready chunk."""
        if self.policy.name != "session":
            return 0
        asked = sum(len(self._ids(f"{q.text}\n")) for q in self.waiting)
        need = len(self.pending) + max(keep, 0) + max(asked + len(self._header), MARGIN)
        return -(-need // 64) * 64

    def ask(self, text: str, at: float) -> int:
        """Notes a question for the first turn at or after `at` seconds; its handle.

        Raises ValueError for one that the sink will not hold when its turn is forgotten.
        """
        if self.sink_slots:
            head = len(self.head) or len(self.pending) + len(self._header)
            count, room = len(self._ids(f"{text}\n")), self.sink_slots - head
            if count > room:
                raise ValueError(
                    f"the question has {count} tokens and questions have room for {room}: ask it "
                    "before the first frame, which makes room for it"
                )
        self._handles += 1
        self.waiting.append(Question(self._handles, text, at))
        return self._handles

    def withdraw(self, handle: int) -> tuple[int, int] | list[int] | None:
        """Takes a question back.

        Returns what has to go from the cache: ring tokens (start, stop) to cut, or the sink slots
        that stay, or None when nothing does. Raises ValueError for a handle that no question has.
        """
        for questions in (self.waiting, *(span.questions for span in self.spans), self.sunk):
            found = next((q for q in questions if q.handle == handle > 0), None)
            if found is not None:
                break
        else:
            raise ValueError(f"no question has the handle {handle}: it was withdrawn or forgotten")
        if questions is self.waiting:
            questions.remove(found)
            return None
        if self.policy.name in ("refill", "recent"):
            questions.remove(found)
            self.stale = True
            return None
        count = len(found.tokens)
        if questions is self.sunk:
            where, total = self._slots_before(found), self.in_sink
            questions.remove(found)
            return [slot for slot in range(total) if not where <= slot < where + count]
        start = self._number_of(found)
        questions.remove(found)
        self.end -= count
        return start, start + count

    @property
    def in_sink(self) -> int:
        """Tokens in the sink."""
        if not self.head_sunk:  # under `refill` the questions of forgotten turns are in the ring
            return 0
        return len(self.head) + sum(len(q.tokens) for q in self.sunk)

    @property
    def held(self) -> int:
        """Tokens in the cache, the sink's included."""
        return self.in_sink + self.end - self.first

    def turn(
        self, visual: int, capacity: int, spare: int, tokens: Any = None, keep: int = 0
    ) -> Work:
        """Books the next turn. spare: tokens an answer may need. tokens, keep: a ready chunk.

        Raises ValueError when the turn does not fit the capacity, or has the wrong placeholders.
        """
        if self.policy.name == "recent":
            return self._recent(visual, capacity, spare, tokens)
        chunk, words_at, questions = self._chunk(visual, tokens, keep)
        entering = self.pending + chunk[:words_at]
        asked = sum(len(q.tokens) for q in questions)
        need = len(self.pending) + len(chunk) + spare + 1
        # What comes before the words belongs to the turn before.
        work = self._make_room(need, capacity)
        work.tokens = self.pending + chunk
        if self.spans:
            self.spans[-1].rest += entering
        else:
            self.head += entering
        self.spans.append(Span(questions, chunk[words_at + asked :]))
        self.pending = []
        self.end += len(work.tokens)
        self.index += 1
        return work

    def say(self, answer: Sequence[int], in_cache: int, features: Any = None) -> None:
        """Books the answer: its first `in_cache` tokens have entered the cache already.

        features: the frame's visual tokens, for policies that read frames again.
        """
        if self.policy.name == "recent":
            self.spans[-1].features = features
            return
        self.spans[-1].rest += answer[:in_cache]
        if self.policy.name == "refill":
            self.spans[-1].features = features
        self.end += in_cache
        self.pending = [*answer[in_cache:], self.close]

    def _make_room(self, need: int, capacity: int) -> Work:
        name, window = self.policy.name, self.policy.window
        work = Work([])
        most = window - 1 + (self.policy.every - 1 if name == "refill" else 0)
        full = name != "full" and len(self.spans) > most
        if self._ring + need > capacity and name == "full":
            raise InputError(
                f"the cache holds {self.held} tokens and a turn needs {need}, past its capacity of "
                f"{capacity}: make it larger (capacity=...), or take a policy that forgets"
            )
        if self._ring + need > capacity or full or self.stale:
            least = window - 1 if full else len(self.spans)
            if name == "refill" and self._ring + need > capacity:  # not at every turn from now on
                least = min(least, len(self.spans) - self.policy.every)
            gone: list[Span] = []
            while len(self.spans) > 1 and (len(self.spans) > least or self._ring + need > capacity):
                gone.append(self._forget(work))
            if name == "refill":
                self._read_again(work)
            elif gone:
                self._sink(work, gone)
        if self._ring + need > capacity:
            raise InputError(
                f"a turn of {need} tokens, its answer included, does not fit the capacity of "
                f"{capacity} tokens: make it larger"
            )
        return work

    @property
    def _ring(self) -> int:
        return self.end - self.first

    def _forget(self, work: Work) -> Span:
        """Lets the oldest turn go; notes its questions' and the head's numbers in `work.moved`."""
        number = self.first
        if self.policy.name == "session" and not self.head_sunk:
            work.moved += range(number, number + len(self.head))
            number += len(self.head)
            self.head_sunk = True
        span = self.spans.popleft()
        asked = len(span) - len(span.rest)
        work.moved += range(number, number + asked)
        gone = number + len(span) - self.first
        if self.policy.name == "refill":  # the head stays in front
            self.end -= len(span.rest)
        else:
            self.first += gone
            work.drop += gone
        self.sunk += span.questions
        return span

    def _sink(self, work: Work, gone: list[Span]) -> None:
        """Says what the sink holds from now on, when anything moved into it."""
        if not work.moved:
            return
        total = len(self.head) + sum(len(q.tokens) for q in self.sunk)
        work.kept = list(range(total - len(work.moved)))
        while total > self.sink_slots and self.sunk:  # the oldest question makes room
            count = len(self.sunk.pop(0).tokens)
            both = [*work.kept, *(-1 - n for n in work.moved)]
            del both[len(self.head) : len(self.head) + count]
            work.kept = [slot for slot in both if slot >= 0]
            work.moved = [-1 - n for n in both if n < 0]
            total -= count

    def _crowd_out(self) -> None:
        """The oldest questions make room for the newest."""
        while len(self.sunk) > 1 and sum(len(q.tokens) for q in self.sunk) > MARGIN:
            self.sunk.pop(0)

    def _read_again(self, work: Work) -> None:
        """All that is left, as reads into an empty row."""
        work.fresh, work.drop, work.moved, self.stale = True, 0, [], False
        self._crowd_out()
        front = self.head + [token for q in self.sunk for token in q.tokens]
        work.reads = [(front, [])]
        work.reads += [(span.tokens, [span.features]) for span in self.spans]
        self.first, self.end = 0, sum(len(tokens) for tokens, _ in work.reads)

    def _recent(self, visual: int, capacity: int, spare: int, tokens: Any) -> Work:
        """The whole prompt anew: head, questions, the last frames."""
        if tokens is not None:
            raise ValueError("policy 'recent' writes its own prompt: give a tokenizer, not tokens")
        now = self.index / self.fps + 1e-6
        due = [q for q in self.waiting if q.at <= now]
        self.waiting = [q for q in self.waiting if q.at > now]
        for question in due:
            question.tokens = self._ids(f"{question.text}\n")
        self.sunk += due
        self._crowd_out()
        self.spans.append(Span([], [self.index]))  # `rest` is the frame's number here
        while len(self.spans) > self.policy.window:
            self.spans.popleft()
        frames = [user_content(span.rest[0], fps=self.fps) for span in self.spans]
        user = "\n".join([*(q.text for q in self.sunk), *frames])
        opening = self.pending if not self.head else self.head
        self.head, self.pending = opening, []
        chunk = chat.turn_chunk(
            self.tokenizer, user, visual, format=self.format, first=self._bare
        ).tolist()
        whole = [*opening, *chunk]
        if len(whole) + spare + 1 > capacity:
            raise InputError(
                f"{len(self.spans)} frames are {len(whole)} tokens, past the capacity of {capacity}"
                " with an answer: make it larger (capacity=...), or the window smaller"
            )
        pad = self._placeholder()
        ends = [i + 1 for i, token in enumerate(whole) if token == pad][visual - 1 :: visual]
        starts = [0, *ends[:-1]]
        work = Work(whole[starts[-1] :], fresh=True)
        for start, stop, span in zip(starts, ends[:-1], self.spans, strict=False):
            work.reads.append((whole[start:stop], [span.features]))
        self.first, self.end = 0, len(whole)
        self.index += 1
        return work

    def _chunk(self, visual: int, tokens: Any, keep: int) -> tuple[list[int], int, list[Question]]:
        """The turn's tokens, where in them its words start, and its questions, which come first."""
        if tokens is not None:
            chunk = np.asarray(tokens).reshape(-1).tolist()
            pad = self._placeholder()
            if chunk.count(pad) == 1 and visual > 1:
                at = chunk.index(pad)
                chunk[at : at + 1] = [pad] * visual
            if chunk.count(pad) != visual:
                raise ValueError(
                    f"the chunk has {chunk.count(pad)} placeholders ({pad}), wanted 1, or "
                    f"{visual}: one per visual token"
                )
            at = chunk.index(pad)
            if any(token != pad for token in chunk[at : at + visual]):
                raise ValueError(f"the chunk's placeholders ({pad}) are not side by side")
            self._check_keep(keep, at)
            if not self.index:  # the system prompt: it belongs to the head
                return chunk, keep, []
            return chunk, 0, [Question(0, "", 0.0, chunk[:keep])] if keep else []
        if keep:
            raise ValueError(f"keep is {keep} without tokens: it counts those of a ready chunk")
        now = self.index / self.fps + 1e-6
        due = [q for q in self.waiting if q.at <= now]
        self.waiting = [q for q in self.waiting if q.at > now]
        first = self._bare and not self.index
        user = user_content(self.index, "\n".join(q.text for q in due), fps=self.fps)
        chunk = chat.turn_chunk(
            self.tokenizer, user, visual, format=self.format, first=first
        ).tolist()
        header = f"{'' if first else chr(10)}{chat.START}user\n"
        words_at = at = _shared(chunk, self._ids(header))
        text = header
        for question in due:
            text += f"{question.text}\n"
            stop = max(_shared(chunk, self._ids(text)), at)
            question.tokens, at = chunk[at:stop], stop
        return chunk, words_at, due

    def _check_keep(self, keep: int, at: int) -> None:
        """at: where the frame stands in the chunk."""
        if not 0 <= keep <= at:
            raise ValueError(f"keep is {keep}, wanted 0 to {at}, the tokens before the frame")
        room = self.sink_slots - (len(self.head) or len(self.pending))
        if self.sink_slots and keep > room:
            raise ValueError(f"keep is {keep}, wanted at most {room}: the sink has no more room")

    def _placeholder(self) -> int:
        if isinstance(self.format.placeholder, int):
            return self.format.placeholder
        return self._ids(self.format.placeholder)[0]

    def _slots_before(self, question: Question) -> int:
        before = self.sunk[: self.sunk.index(question)]
        return len(self.head) + sum(len(q.tokens) for q in before)

    def _number_of(self, question: Question) -> int:
        """The running number of a question's first token in the ring."""
        number = self.first + (0 if self.head_sunk else len(self.head))
        for span in self.spans:
            for q in span.questions:
                if q is question:
                    return number
                number += len(q.tokens)
            number += len(span.rest)
        return number

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two lists share at their start: a mark's last may merge with what follows."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
