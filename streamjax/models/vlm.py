"""What every video language model shares: a decoder in which visual tokens stand among words.

A family (one file each: llava_streamformer, qwen2_5_vl, qwen3_vl, internvl) says how pictures
become visual tokens, which ids in the token sequence hold their places, and where they are placed.
All the rest is here, under the names that callers rely on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from streamjax.data.processors import Assets
from streamjax.models.decoder import Decoder, DecoderConfig
from streamjax.models.layers import Remat, for_stream
from streamjax.ops.cache import KVCache, evict
from streamjax.sharding import constrain

Grid = Any  # [images, 3] host integers: (temporal slices, rows and columns of patches)
Tokens = Int[Array | np.ndarray, "b l"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LMOutput:
    """logits [b l v]."""

    logits: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualFeatures:
    """Visual tokens, and what the first k layers of the decoder add at their places (Qwen3-VL).

    tokens [*b n d], deepstack [k *b n d]. To numpy and jax it is its tokens; an index or a slice
    takes rows of both.
    """

    tokens: Any
    deepstack: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape

    @property
    def ndim(self) -> int:
        return self.tokens.ndim

    @property
    def dtype(self) -> Any:
        return self.tokens.dtype

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> "VisualFeatures":
        return VisualFeatures(self.tokens[rows], self.deepstack[:, rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tokens, dtype)

    def __jax_array__(self) -> jax.Array:
        return self.tokens


Features = Any
"""[n d] in reading order over the batch, [b n d] by rows, or VisualFeatures of either."""


class VideoLM(nnx.Module):
    """The base of the families; `decoder` is the language model.

    tokens int [b l] hold one of `placeholders` once per visual token (`expand` makes them so).
    pixels are the family's Hugging Face pixel_values; grid [images, 3] is host numpy.
    """

    config: Any  # a frozen dataclass with `decoder: DecoderConfig`
    pixel_dims: int  # dimensions of pixels; one more in front: the same number of pictures per row

    def __init__(
        self, config: Any, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: Remat | None = None
    ):
        decoder: DecoderConfig = config.decoder
        self.config, self.dtype, self.assets = config, jnp.dtype(dtype), Assets()
        self.decoder = Decoder(decoder, rngs=rngs, dtype=dtype, remat=remat)

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The ids that stand for visual tokens."""
        raise NotImplementedError

    def encode_images(self, pixels: Any, grid: Grid) -> Features:
        """All pictures' visual tokens in reading order, [n d] (Qwen3-VL: VisualFeatures)."""
        raise NotImplementedError

    def visual_tokens(self, grid: Grid) -> list[int]:
        """How many visual tokens each row of grid becomes."""
        raise NotImplementedError

    def init_frames(self, batch: int, grid: Any, *, window: int | None = None) -> Any:
        """What `encode_frame` carries from frame to frame, for frames of `grid` (t, rows, columns).

        window: the past frames that a tower with temporal attention sees (None: its own number).
        """
        raise NotImplementedError

    def encode_frame(self, pixels: Any, state: Any) -> tuple[Features, Any]:
        """The next frame of b streams as visual tokens [b n d], equal to `encode_images` over all.

        pixels: [b ...] of what the processor makes of one frame. For use inside jit.
        """
        raise NotImplementedError

    def fold(self) -> Any:
        """The same function for a stream: layers as tuples, weights folded. Not for training."""
        folded = jax.tree.map(lambda a: a, self)
        depth = self.config.decoder.num_hidden_layers
        folded.decoder.layers = for_stream(self.decoder.layers, depth)
        return folded

    def __call__(
        self,
        tokens: Tokens,
        pixels: Any = None,
        grid: Grid = None,
        *,
        mask: Any = None,
        segments: Any = None,
        positions: Any = None,
        **options: Any,
    ) -> LMOutput:
        """The logits of whole sequences; the arguments are those of `hidden`."""
        hidden = self.hidden(
            tokens, pixels, grid, mask=mask, segments=segments, positions=positions, **options
        )
        return LMOutput(self.decoder.logits(hidden))

    def hidden(
        self,
        tokens: Tokens,
        pixels: Any = None,
        grid: Grid = None,
        *,
        mask: Any = None,
        segments: Any = None,
        positions: Any = None,
        **options: Any,
    ) -> Float[Array, "b l d"]:
        """The final-normed states, for a loss that takes `head_kernel()` piece by piece.

        pixels: None, or as many as none at all, for text. mask [b l]: true for real tokens (None:
        all). segments int [b l]: packed dialogues, which do not see one another. positions: what
        `positions` gives, which is also what None stands for (inside jit they have to be given
        where they depend on the grid). options: of the family's `encode_images`. Raises ValueError
        when the placeholders are not as many as the visual tokens, and for unknown tokens.
        """
        features = None
        if pixels is not None and 0 not in np.shape(pixels):
            features = self.encode_images(pixels, grid, **options)
            if np.ndim(pixels) > self.pixel_dims:
                features = by_rows(features, len(pixels))
        x, deep = self.embed(tokens, features), self.deepstack(tokens, features)
        if positions is None:
            positions, _ = self.positions(tokens, grid, mask=mask, segments=segments)
        if mask is not None:
            ids = 0 if segments is None else jnp.asarray(segments, jnp.int32)
            segments = jnp.where(jnp.asarray(mask, bool), ids, -1)
        elif segments is not None:
            segments = jnp.asarray(segments, jnp.int32)
        positions = jnp.asarray(positions, jnp.int32)
        return self.decoder(x, positions, segments, deepstack=deep)

    def head_kernel(self) -> Float[Array, "d v"]:
        """What turns hidden states into logits."""
        return self.decoder.head_kernel()

    def positions(
        self,
        tokens: Any,
        grid: Grid = None,
        *,
        mask: Any = None,
        segments: Any = None,
        seconds_per_grid: Any = None,
        rule: str = "max",
    ) -> tuple[Any, Any]:
        """Where each token stands [b l], and the next position minus the length [b 1].

        Real tokens are counted from 0, anew in every segment; masked ones get 0. The families with
        M-RoPE place pictures by their grid instead and give [3 b l]: seconds_per_grid and rule are
        theirs (data/positions.py).
        """
        shape = np.shape(tokens)
        real = jnp.ones(shape, bool) if mask is None else jnp.asarray(mask, bool)
        before = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real
        if segments is not None:
            ids = jnp.asarray(segments, jnp.int32)
            fresh = jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
            before = before - jax.lax.cummax(jnp.where(fresh, before, 0), axis=1)
        positions = jnp.where(real, before, 0)
        return positions, positions.max(axis=1, keepdims=True) + 1 - shape[1]

    def extend(
        self,
        tokens: Tokens,
        cache: KVCache,
        *,
        features: Features = None,
        positions: Any = None,
        lengths: Any = None,
    ) -> tuple[LMOutput, KVCache]:
        """Appends a chunk to each row's past: a prompt, a turn, or one decoded token.

        features: the chunk's visual tokens, for its placeholders. positions: as the model would see
        the retained tokens; None goes on counting, which is right for text. lengths [b]: real
        tokens per row when rows are padded behind. Donate the cache. Raises ValueError when the
        chunk does not fit the cache or the features do not fit the tokens.
        """
        as_ints = [None if a is None else jnp.asarray(a, jnp.int32) for a in (positions, lengths)]
        hidden, cache = self.decoder.extend(
            self.embed(tokens, features), cache, positions=as_ints[0], lengths=as_ints[1],
            deepstack=self.deepstack(tokens, features),
        )  # fmt: skip
        return LMOutput(self.decoder.logits(hidden)), cache

    def evict(self, cache: KVCache, start: Any, stop: Any) -> KVCache:
        """Forgets tokens start <= i < stop of the cache; the rest closes up, positions too.

        What was computed after them stays as it was: this equals attention restricted to the
        retained tokens with contiguous positions, not a forward over them (specs/vlm.md 5.2 B).
        start and stop stand at text, never inside a picture.
        """
        return evict(cache, start, stop, self.config.decoder.rope_theta)

    def init_cache(self, batch: int, *, capacity: int, sink: int = 0) -> KVCache:
        """An empty cache for `capacity` tokens a row, and `sink` more for a stream's first ones."""
        return self.decoder.init_cache(batch, capacity=capacity, sink=sink)

    def expand(self, tokens: Any, grid: Grid, **options: Any) -> Int[np.ndarray, "*b l"]:
        """Repeats each placeholder once per visual token of its picture or clip; host numpy.

        tokens: int [l] or [b l], one placeholder per row of grid, in reading order. Rows that come
        out shorter are padded with 0 behind. Raises ValueError when the counts differ.
        """
        tokens = np.asarray(tokens)
        rows = tokens.reshape(-1, tokens.shape[-1])
        counts = self.visual_tokens(host_grid(grid), **options)
        here = np.isin(rows, self.placeholders)
        if (found := int(here.sum())) != len(counts):
            raise ValueError(
                f"{found} placeholders ({_listed(self.placeholders)}) for {len(counts)} grid rows"
            )
        repeats = np.ones(rows.shape, np.int64)
        repeats[here] = counts
        long = [np.repeat(row, times) for row, times in zip(rows, repeats, strict=True)]
        length = max(map(len, long))
        out = np.stack([np.pad(row, (0, length - len(row))) for row in long])
        return out.reshape(*tokens.shape[:-1], length)

    def embed(self, tokens: Tokens, features: Features = None) -> Float[Array, "b l d"]:
        """The decoder's input: embedding rows, and visual tokens in the placeholders' places.

        Features [b n d] may be padded behind in rows that have fewer. Raises ValueError when there
        are not as many as placeholders, or by rows too few, and for a token that has no row of the
        embeddings, where the tokens are known.
        """
        if not isinstance(tokens, jax.core.Tracer):
            ids, rows = np.asarray(tokens), self.config.decoder.vocab_size
            here = np.isin(ids, self.placeholders)
            if (highest := ids[~here].max(initial=0)) >= rows:
                raise ValueError(
                    f"token {highest} for {rows} rows of embeddings: is the tokenizer this "
                    "model's? streamjax.models.vocabulary.grow adds rows for new tokens"
                )
            counts = here.sum(axis=1)
            holes, given = int(counts.sum()), 0
            if features is not None:
                given = int(np.prod(features.shape[:-1]))
            padded = features is not None and features.ndim == 3
            if (counts > features.shape[1]).any() if padded else holes != given:
                raise ValueError(
                    f"{holes} placeholders ({_listed(self.placeholders)}) for {given} visual "
                    "tokens: model.expand(tokens, grid) writes one for each"
                )
        tokens = jnp.asarray(tokens, jnp.int32)
        x = self.decoder.lookup(tokens)
        if features is None:
            return x
        here = self._here(tokens)
        flat = features.tokens if isinstance(features, VisualFeatures) else features
        return jnp.where(here[..., None], placed(flat, here, x.dtype), x)

    def deepstack(self, tokens: Tokens, features: Features) -> Float[Array, "k b l d"] | None:
        """What the decoder's first layers add, zero at text; None for features without any."""
        if not isinstance(features, VisualFeatures):
            return None
        here = self._here(jnp.asarray(tokens, jnp.int32))
        levels = jax.vmap(lambda rows: placed(rows, here, self.dtype))(features.deepstack)
        return jnp.where(here[..., None], levels, 0)

    def _here(self, tokens: Int[Array, "b l"]) -> Bool[Array, "b l"]:
        found = [tokens == i for i in self.placeholders]
        return jnp.any(jnp.stack(found), axis=0)


def by_rows(features: Features, rows: int) -> Features:
    """Features in reading order [n d] as [b n/b d], where every row has as many."""
    if isinstance(features, VisualFeatures):
        k, *_, d = features.deepstack.shape
        return VisualFeatures(
            by_rows(features.tokens, rows), features.deepstack.reshape(k, rows, -1, d)
        )
    return features.reshape(rows, -1, features.shape[-1])


def host_grid(grid: Grid) -> np.ndarray:
    """The grid as host integers [images, 3]; ValueError when there is none, or only inside jit."""
    if grid is None or isinstance(grid, jax.core.Tracer):
        found = "missing" if grid is None else "traced"
        raise ValueError(f"grid is {found}, wanted host integers [images, 3]: (t, rows, columns)")
    return np.asarray(grid).reshape(-1, 3)


def placed(features: Any, here: Any, dtype: Any) -> Any:
    """The i-th visual token at the i-th placeholder [b l d]; anything elsewhere."""
    by_row = features.ndim == 3
    flat = here if by_row else here.reshape(1, -1)
    index = jnp.maximum(jnp.cumsum(flat, axis=1) - 1, 0)
    rows = constrain(features, "batch", None, None) if by_row else features[None]
    picked = jnp.take_along_axis(rows.astype(dtype), index[..., None], axis=1, mode="clip")
    return picked.reshape(*here.shape, features.shape[-1])


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
