"""The device side of n streams on one model: caches, and the order in which programs run.

Rows are streams; all of them take their turn in one compiled step. The arrays have fixed shapes: a
chunk is padded to one of a few lengths, a cache grows through a few sizes, and rows that have no
frame sit out with length 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from streamjax.models.vlm import VisualFeatures
from streamjax.stream import program
from streamjax.stream.book import Book, Work
from streamjax.stream.sampling import Knobs

TEXT_BUCKETS = (8, 16, 32, 64, 128, 256, 512)  # text tokens of a chunk, padded to one of these
RINGS = (512, 2048, 8192, 32768, 131072)  # slots a cache grows through on its way to its capacity
# Positions. Float32 angles coarsen with them: at 72,000 a probability was off by 6e-4, and by 4e-6
# after re-basing, which costs one pass over the ring.
REBASE_AT = 32_768
READ = 512  # tokens read back at a time, at least


class Engine:
    """Caches for `rows` streams, and the tower's state; made when the first frame is known.

    grid: a frame's (1, rows, columns) in patches. window: of the tower. capacity: tokens per row
    besides the sink.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: int,
        grid: Any,
        capacity: int,
        sink_slots: int,
        tower_window: int | None,
        state_ids: Sequence[int],
        stop_ids: Sequence[int],
        max_new_tokens: int,
    ):
        self.rows, self.capacity, self.max_new_tokens = rows, capacity, max_new_tokens
        self.state_ids = tuple(state_ids)
        self._form, self._leaves, self._model = program.prepare(
            model, type(model).fold, self.state_ids, tuple(stop_ids)
        )
        (self.visual,) = self._model.visual_tokens([grid])
        self.placeholder = self._model.placeholders[0]
        self._frame, self._advance = _placement(self._model, grid, self.visual)
        self._rings = [r for r in RINGS if r < capacity] + [capacity]
        self.cache = self._model.init_cache(rows, capacity=self._rings[0], sink=sink_slots)
        self.frames = self._model.init_frames(rows, grid, window=tower_window)
        limit = self._model.config.decoder.max_position_embeddings
        self._rebase_at = max(min(REBASE_AT, limit), 2 * capacity)
        self._base = np.zeros(rows, np.int64)  # running numbers at which positions start
        self._read = max(READ, self.visual + TEXT_BUCKETS[3])
        self._blank: Any = None

    def turn(
        self, books: Mapping[int, Book], pixels: Mapping[int, np.ndarray], work: Mapping[int, Work]
    ) -> tuple[np.ndarray, Any]:
        """Carries out the rows' work: the states' probabilities [rows 3], and visual tokens.

        Raises ValueError, before anything has changed, for more text behind a frame than one step
        takes.
        """
        for w in work.values():
            behind = len(w.tokens) - w.tokens.index(self.placeholder) - self.visual
            if behind > TEXT_BUCKETS[-1]:
                raise ValueError(
                    f"{behind} tokens of text behind the frame, wanted {TEXT_BUCKETS[-1]} at most"
                )
        if any(w.fresh for w in work.values()):
            fresh = self._mask(row for row, w in work.items() if w.fresh)
            self.cache = program.forget_all(fresh, self.cache)
            self._base[fresh] = 0
        self._grow(books, work)
        for row, w in work.items():
            self._read_back(row, w.reads)
        if any(w.kept is not None for w in work.values()):
            self._pin(work)
        for row, w in work.items():
            self._split(row, w)
        longest = max(len(w.tokens) - self.visual for w in work.values())
        bucket = next(b for b in TEXT_BUCKETS if b >= longest)
        arguments = self._padded(
            {row: w.tokens for row, w in work.items()}, self.visual + bucket,
            {row: w.drop for row, w in work.items()},
        )  # fmt: skip
        shares, features, self.cache, self.frames = program.turn(
            self._form, self._leaves, self._pixels(pixels), *arguments, self.cache, self.frames
        )
        return np.asarray(shares), features

    def read(self, row: int, tokens: Sequence[int]) -> None:
        """Text into a row's cache, behind what it has; the last turn's book has counted it."""
        self._read_back(row, [(list(tokens), [])])

    def speak(self, first: Mapping[int, int], knobs: Knobs | None = None) -> dict[int, list[int]]:
        """The words of the rows that respond, after the token `first` of each."""
        start = np.zeros(self.rows, np.int32)
        for row, token in first.items():
            start[row] = token
        words, count, self.cache = program.speak(
            self._form, self._leaves, start, self._mask(first), self.cache, knobs,
            self.max_new_tokens,
        )  # fmt: skip
        words, count = np.asarray(words), np.asarray(count)
        return {row: words[row, : count[row]].tolist() for row in first}

    def cut(self, row: int, book: Book, start: int, stop: int) -> None:
        """Forgets the tokens start <= number < stop of a row's ring; the book has done so."""
        spans = np.zeros((2, self.rows), np.int32)  # an empty span, wherever it stands, is nothing
        # Counted from the end: the book goes on where re-basing lets the cache start anew.
        end = int(np.asarray(self.cache.end)[row])
        behind = book.end + (stop - start)
        spans[:, row] = end - (behind - start), end - (behind - stop)
        self.cache = program.cut(self._form, self._leaves, *spans, self.cache)

    def keep(self, row: int, slots: Sequence[int]) -> None:
        """Leaves only these slots in a row's sink, in this order."""
        self._pin({row: Work([], kept=list(slots))})

    def clear(self, row: int) -> None:
        """Makes a row empty for the next stream: its cache, and what the tower remembers."""
        self.cache, self.frames = program.clear(self._mask([row]), self.cache, self.frames)
        self._base[row] = 0

    def _mask(self, rows: Any) -> np.ndarray:
        mask = np.zeros(self.rows, bool)
        mask[list(rows)] = True
        return mask

    def _pixels(self, pixels: Mapping[int, np.ndarray]) -> np.ndarray:
        if self._blank is None:
            self._blank = np.zeros_like(next(iter(pixels.values())))
        return np.stack([pixels.get(row, self._blank) for row in range(self.rows)])

    def _padded(
        self, tokens: Mapping[int, Sequence[int]], length: int, drop: Mapping[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, offsets, lengths, drops) of all rows."""
        padded = np.zeros((self.rows, length), np.int32)
        offsets = np.zeros((len(self._frame), self.rows, length), np.int32)
        lengths, drops = np.zeros((2, self.rows), np.int32)
        for row, chunk in tokens.items():
            padded[row, : len(chunk)] = chunk
            offsets[:, row, : len(chunk)] = self._offsets(padded[row, : len(chunk)])
            lengths[row], drops[row] = len(chunk), drop.get(row, 0)
        return padded, offsets[0] if len(offsets) == 1 else offsets, lengths, drops

    def _offsets(self, tokens: np.ndarray) -> np.ndarray:
        """Where a chunk's tokens stand, from its first: [axes l]. Frames in it are whole."""
        here = tokens == self.placeholder
        place = (np.cumsum(here) - 1) % self.visual
        ends = here & (place == self.visual - 1)
        moves = np.where(here, np.where(ends, self._advance, 0), 1)
        begins = np.cumsum(moves) - moves
        return begins + np.where(here, self._frame[:, place], 0)

    def _read_back(self, row: int, reads: Sequence[tuple[list[int], list[Any]]]) -> None:
        tokens = [token for piece, _ in reads for token in piece]
        features = [f for _, seen in reads for f in seen]
        while tokens:
            stop = min(self._read, len(tokens))
            places = np.flatnonzero(np.asarray(tokens[:stop]) == self.placeholder)
            images, partly = divmod(len(places), self.visual)
            if partly:  # never through a frame
                stop = int(places[images * self.visual])
            seen = self._gathered(row, features[:images])
            arguments = self._padded({row: tokens[:stop]}, self._read, {})
            self.cache = program.read(self._form, self._leaves, *arguments, seen, self.cache)
            tokens, features = tokens[stop:], features[images:]

    def _gathered(self, row: int, features: Sequence[Any]) -> Any:
        """Frames' visual tokens in a row of [rows m d], with room for as many as a read holds."""
        if not features:
            return None
        room = self._read // self.visual * self.visual

        def gather(*pieces):
            joined = jnp.concatenate(pieces, axis=-2)
            spare = room - joined.shape[-2]
            joined = jnp.pad(joined, [(0, 0)] * (joined.ndim - 2) + [(0, spare), (0, 0)])
            if self.rows == 1:
                return joined[..., None, :, :]
            empty = jnp.zeros((*joined.shape[:-2], self.rows, *joined.shape[-2:]), joined.dtype)
            return empty.at[..., row, :, :].set(joined)

        return jax.tree.map(gather, *features)

    def _pin(self, work: Mapping[int, Work]) -> None:
        """Gives rows' sinks new content, where their work says so; the others keep theirs."""
        place = np.arange(self.cache.sink_slots)
        keep = np.where(place < np.asarray(self.cache.sink)[:, None], place, -1).astype(np.int32)
        drop = np.zeros(self.rows, np.int32)
        for row, w in work.items():
            if w.kept is None:
                continue
            moved = [self.cache.sink_slots + n % self.cache.ring for n in w.moved]
            slots = [*w.kept, *moved]
            keep[row] = -1
            keep[row, : len(slots)] = slots
            drop[row], w.drop = w.drop, 0
        self.cache = program.pin(self._form, self._leaves, keep, drop, self.cache)

    def _too_long(self, work: Work) -> bool:
        return len(work.tokens) - self.visual > TEXT_BUCKETS[-1]

    def _split(self, row: int, work: Work) -> None:
        """Text that no bucket takes is read first, alone, as far as it stands before the frame."""
        longest = TEXT_BUCKETS[-1]
        while self._too_long(work) and work.tokens[0] != self.placeholder:
            stop = min(work.tokens.index(self.placeholder), longest)
            arguments = self._padded({row: work.tokens[:stop]}, self._read, {row: work.drop})
            self.cache = program.read(self._form, self._leaves, *arguments, None, self.cache)
            work.tokens, work.drop = work.tokens[stop:], 0

    def _grow(self, books: Mapping[int, Book], work: Mapping[int, Work]) -> None:
        """Takes a larger ring before the smaller one wraps around, and re-bases in time."""
        ends = np.zeros(self.rows, np.int64)
        for row in work:
            ends[row] = books[row].end + self.max_new_tokens + 1
        ring = self.cache.ring
        if ends.max() > ring and ring < self.capacity:
            larger = next((r for r in self._rings if r >= ends.max()), self.capacity)
            self.cache = program.grow(self.cache, larger)
        if (ends - self._base).max() > self._rebase_at:
            self.cache = program.rebase(self._form, self._leaves, self.cache)
            for row, book in books.items():
                self._base[row] = book.end - book.held


def features_of(features: Any, row: int) -> Any:
    """One row's visual tokens of what a turn's frames became."""
    if isinstance(features, VisualFeatures):
        return VisualFeatures(features.tokens[row], features.deepstack[:, row])
    return features[row]


def _placement(model: Any, grid: Any, visual: int) -> tuple[np.ndarray, int]:
    """A frame's positions from where it begins [axes n], and how far it moves on."""
    pad = model.placeholders[0]
    text = next(i for i in range(len(model.placeholders) + 1) if i not in model.placeholders)
    tokens = np.asarray([[pad] * visual + [text]], np.int32)
    positions, _ = model.positions(tokens, np.asarray([grid]))
    positions = np.asarray(positions, np.int32).reshape(-1, visual + 1)
    return positions[:, :visual], int(positions[0, visual])
