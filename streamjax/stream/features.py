"""StreamFormer as a stream: one frame in, its features out, in constant memory."""

import dataclasses
import time
from typing import Any

import numpy as np

from streamjax.data.processors import ImageProcessor
from streamjax.models import streamformer
from streamjax.models.streamformer import StreamFormer
from streamjax.stream import program


@dataclasses.dataclass(frozen=True)
class Features:
    """One frame's features: tokens [p d], pooled [d]; latency in seconds by part, and in total."""

    tokens: Any
    pooled: Any
    index: int
    latency: dict[str, float]


class FeatureStream:
    """A StreamFormer that watches: `push(frame)` -> Features.

    Each frame's temporal attention sees the last `window` frames (None: the model's num_frames),
    and frames past the end of the time table keep its last row: `model(frames, time_rule="hold",
    window=window)`, one frame at a time.
    """

    def __init__(self, model: StreamFormer, *, window: int | None = None):
        config = model.config
        self.window = config.num_frames if window is None else window
        self._form, self._leaves, self._model = program.prepare(model, streamformer.fold)
        self._frames = FrameReader(model)
        self._cache: Any = None
        self._index = 0

    def push(self, frame: np.ndarray) -> Features:
        """The features of the next frame: uint8 RGB [h w 3], or float [h w 3] normalised already.

        Raises ValueError for a frame of another shape, or of another size than the frames before.
        """
        begin = time.perf_counter()
        pixels = self._frames(frame)[None, None]
        if self._cache is None:
            height, width = pixels.shape[2:4]
            self._cache = self._model.init_cache(
                1, height=height, width=width, capacity=self.window
            )
        prepared = time.perf_counter()
        tokens, pooled, self._cache = program.features(
            self._form, self._leaves, pixels, self._cache
        )
        pooled.block_until_ready()
        end = time.perf_counter()
        latency = {"prepare": prepared - begin, "encode": end - prepared, "total": end - begin}
        index, self._index = self._index, self._index + 1
        return Features(tokens, pooled, index, latency)


class FrameReader:
    """Turns what a camera or a caller gives into the tower's input [h w 3] float32."""

    def __init__(self, model: Any):
        config = getattr(model.config, "tower", model.config)
        side = config.image_size
        processor = None if model.assets is None else model.assets.processor
        self.processor = processor or ImageProcessor(size=(side, side))
        self._size: tuple[int, ...] | None = None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        frame = np.asarray(frame)
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame has shape {list(frame.shape)}, wanted [height, width, 3]")
        if frame.dtype == np.uint8:
            pixels = self.processor(frame[None])[0]
        elif np.issubdtype(frame.dtype, np.floating):
            pixels = frame.astype(np.float32)
        else:
            raise ValueError(f"frame has dtype {frame.dtype}, wanted uint8, or normalised floats")
        if self._size is None:
            self._size = pixels.shape
        if pixels.shape != self._size:
            raise ValueError(
                f"frame is {list(pixels.shape)} after {list(self._size)}: one stream has one size"
            )
        return pixels
