"""What a model would decide at the true history: one forward over the true dialogue, no stream.

The easy question: every turn is decided after true answers, where a stream hears its own. Beside
free-running scores it says how much is lost to a model's own mistakes; alone it says little.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from streamjax.data import chat
from streamjax.errors import InputError
from streamjax.models.vlm import VideoLM
from streamjax.stream import StreamBatch
from streamjax.stream.features import FrameReader

_LENGTH, _FRAMES = 512, 32  # tokens and frames are padded to multiples: few programs


@dataclasses.dataclass
class Teacher:
    """Probabilities of the three states at every turn of a true dialogue.

    The tower sees the frames one after the other, as in a stream; the decoder reads the whole
    dialogue at once and forgets nothing, whatever the stream's window. tokenizer: default is the
    one of the model's folder.
    """

    model: VideoLM
    tokenizer: Any = None

    def __post_init__(self):
        batch = StreamBatch(self.model, slots=1, tokenizer=self.tokenizer)
        if batch.tokenizer is None:
            raise ValueError("the model has no tokenizer: a dialogue cannot be read")
        self.tokenizer, self._format = batch.tokenizer, batch.format
        self._states = batch.state_ids
        self.system: str = batch.join().settings["system"]

    def __call__(
        self, messages: Sequence[Mapping[str, str]], frames: Iterable[Any]
    ) -> Float[np.ndarray, "t 3"]:
        """messages: the true dialogue, a frame a turn. Raises InputError where it is too long."""
        reader, state, seen, grid = FrameReader(self.model), None, [], (1, 0, 0)
        for frame in frames:
            pixels, grid = reader(frame)
            if state is None:
                state = self.model.init_frames(1, grid)
            features, state = _see(self.model, pixels[None], state)
            seen.append(features)
        (visual,) = self.model.visual_tokens([grid])
        encoded = chat.encode(self.tokenizer, messages, visual, format=self._format)
        most = self.model.config.decoder.max_position_embeddings
        if (length := len(encoded.tokens)) > most:
            raise InputError(f"{length} tokens, wanted at most {most}: too long to be read at once")
        tokens = np.pad(encoded.tokens, (0, -length % _LENGTH))[None]
        spare = -len(seen) % _FRAMES
        seen += seen[-1:] * spare  # stand for no token
        features = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=-2), *seen)
        positions, _ = self.model.positions(tokens, np.tile(grid, (len(seen) - spare, 1)))
        at = np.pad(encoded.state_positions - 1, (0, spare))
        shares = _decide(
            self.model, tokens, features, positions, at, np.asarray(self._states, np.int32)
        )
        return np.asarray(shares)[: len(encoded.state_positions)].astype(np.float64)


@jax.jit
def _see(model: Any, pixels: Any, state: Any) -> Any:
    return model.encode_frame(pixels, state)


@jax.jit
def _decide(model: Any, tokens: Any, features: Any, positions: Any, at: Any, states: Any) -> Any:
    """Probabilities of `states` among themselves behind the tokens `at` of one row: [t 3]."""
    x, deep = model.embed(tokens, features), model.deepstack(tokens, features)
    hidden = model.decoder(x, jnp.asarray(positions, jnp.int32), None, deepstack=deep)
    logits = model.decoder.logits(hidden[:, at])[0]
    return jax.nn.softmax(logits[:, states].astype(jnp.float32))
