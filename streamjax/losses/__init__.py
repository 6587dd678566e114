"""What is minimised. One file per family; values and gradients in float32."""

from streamjax.losses.stream import (
    StreamMetrics,
    chunked_stream_loss,
    state_f1,
    stream_loss,
    stream_metrics,
)

__all__ = ["StreamMetrics", "chunked_stream_loss", "state_f1", "stream_loss", "stream_metrics"]
