"""Models that watch: `Stream(model)`, then `push(frame)` for every frame."""

from collections.abc import Sequence
from typing import Any

from streamjax.models.llava_streamformer import LlavaStreamFormer
from streamjax.models.streamformer import StreamFormer
from streamjax.stream.features import Features, FeatureStream
from streamjax.stream.session import Session, Turn

__all__ = ["FeatureStream", "Features", "Session", "Stream", "Turn"]


def Stream(
    model: Any,
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
) -> Any:
    """A stream on a model: a FeatureStream for a StreamFormer, a Session for an assistant.

    window: turns that the language model remembers, the current one included (default: 120, or as
    many as fit its max_position_embeddings). tower_window: frames that the tower's temporal
    attention sees (default: its num_frames). tokenizer: the object; default is the folder's own.
    The others are Session's. Raises ValueError for a model that cannot stream.
    """
    if isinstance(model, StreamFormer):
        return FeatureStream(model, window=tower_window)
    if not isinstance(model, LlavaStreamFormer):
        raise ValueError(
            f"cannot stream a {type(model).__name__}, wanted a StreamFormer or LlavaStreamFormer"
        )
    return Session(
        model, window=window, tower_window=tower_window, tokenizer=tokenizer, fps=fps,
        system=system, max_new_tokens=max_new_tokens, capacity=capacity, state_ids=state_ids,
        end_id=end_id,
    )  # fmt: skip
