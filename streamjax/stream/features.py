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
        pixels = self._frames(frame)[0][None, None]
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

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches of its frames, after the first one."""
        rows, columns = self._frames._grid[1:]
        return rows, columns


class FrameReader:
    """Turns what a camera or a caller gives into a tower's input, all of one size."""

    def __init__(self, model: Any):
        config = model.config
        tower = getattr(config, "tower", config)
        processor = None if model.assets is None else model.assets.processor
        if processor is None and hasattr(tower, "image_size"):
            side = tower.image_size
            processor = ImageProcessor(size=(side, side))
        if isinstance(processor, ImageProcessor):
            processor = dataclasses.replace(processor, patch=tower.patch_size)
        self.processor = processor
        self._grid: Any = None
        self._shape: Any = None

    def __call__(self, frame: Any) -> tuple[Any, Any]:
        """(pixels, grid row) of one frame; a pair of them passes through.

        Raises ValueError for what is no picture, and for another size than the frames' before.
        """
        if isinstance(frame, tuple):
            pixels, row = frame
            grid = tuple(int(n) for n in np.asarray(row).reshape(3))
            pixels = np.asarray(pixels)
        elif self.processor is None:
            raise ValueError(
                "the model's folder has no preprocessor_config.json: give push() pairs of (pixels, "
                "grid row), or set model.assets"
            )
        else:
            pixels, grid = self.processor.frame(frame)
        if self._grid is None:
            self._grid, self._shape = grid, pixels.shape
        if grid != self._grid:
            raise ValueError(
                f"frame has {grid[1]}x{grid[2]} patches after {self._grid[1]}x{self._grid[2]}: one "
                "stream has one size"
            )
        if pixels.shape != self._shape:
            raise ValueError(
                f"frame has pixels {list(pixels.shape)} after {list(self._shape)}: one stream has "
                "one form of them"
            )
        return pixels, grid
