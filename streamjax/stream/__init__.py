"""Models that watch: `Stream(model)`, then `push(frame)` for every frame."""

from collections.abc import Sequence
from typing import Any

from streamjax.models.streamformer import StreamFormer
from streamjax.models.vlm import VideoLM
from streamjax.stream.decisions import Thresholds, redecide
from streamjax.stream.features import Features, FeatureStream
from streamjax.stream.sampling import Sampling
from streamjax.stream.session import Session, StreamBatch, Turn
from streamjax.stream.snapshot import restore
from streamjax.stream.trace import Trace, read_trace

__all__ = [
    "FeatureStream",
    "Features",
    "Sampling",
    "Session",
    "Stream",
    "StreamBatch",
    "Thresholds",
    "Trace",
    "Turn",
    "read_trace",
    "redecide",
    "restore",
]


def Stream(
    model: Any,
    *,
    window: int | None = None,
    tower_window: int | None = None,
    tokenizer: Any = None,
    policy: str = "session",
    every: int = 1,
    fps: float | int = 1.0,
    system: str | None = None,
    max_new_tokens: int = 128,
    capacity: int | None = None,
    sampling: Sampling | None = None,
    thresholds: Thresholds | None = None,
    state_ids: Sequence[int] | None = None,
    end_id: int | None = None,
) -> Any:
    """A stream on a model: a FeatureStream for a StreamFormer, a Session for an assistant.

    tower_window: frames that a StreamFormer tower's temporal attention sees (default: its
    num_frames). For an assistant:

    policy: what it remembers. `session` keeps keys and values of the last `window` turns, the
    current one included (default 120), the system prompt and the questions; `full` keeps everything
    up to `capacity`; `refill` reads the last `window` turns again every `every` turns, as Streamo
    does at each; `recent` reads the questions and the last `window` frames at every turn, without
    past answers. tokenizer: the object; default is the folder's own. fps: turns a second, for the
    time tags. system: the system prompt; None takes the tokenizer's `system_prompt` entry, or
    Streamo's own. max_new_tokens: of one answer. capacity: tokens remembered (default: enough for
    the window with 48 tokens of text a turn; for `full` the model's max_position_embeddings); a
    turn is forgotten early when its room is needed. sampling: how words are chosen (default:
    greedily). thresholds: when to speak (default: the likeliest state). state_ids, end_id: for
    token chunks, when there is no tokenizer.

    Raises ValueError for a model that cannot stream and for settings that cannot work.
    """
    if isinstance(model, StreamFormer):
        return FeatureStream(model, window=tower_window)
    if not isinstance(model, VideoLM):
        raise ValueError(
            f"cannot stream a {type(model).__name__}, wanted a StreamFormer or a video LLM"
        )
    batch = StreamBatch(
        model, slots=1, policy=policy, window=window, every=every, tower_window=tower_window,
        tokenizer=tokenizer, max_new_tokens=max_new_tokens, capacity=capacity,
        state_ids=state_ids, end_id=end_id,
    )  # fmt: skip
    return batch.join(system=system, fps=fps, sampling=sampling, thresholds=thresholds)
