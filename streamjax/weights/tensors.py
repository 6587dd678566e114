"""Tensors that are not in memory yet: in a file, or still to be cut out of a parameter.

Whoever needs values asks for them, whole (`np.asarray`) or some rows at a time; nothing is kept.
So a checkpoint larger than half of a host's memory can be loaded and saved.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.errors import InputError


class Lazy:
    """A tensor of known shape and dtype whose values `make` gives anew each time they are read."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], np.ndarray]):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._make = make

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The values of `[start:stop]` along the first axis."""
        return np.asarray(self)[start:stop]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._make().astype(self.dtype if dtype is None else dtype, copy=bool(copy))

    def __reduce__(self):
        return np.asarray, (np.asarray(self),)  # elsewhere there is no file: its values go along

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)}, {self.dtype})"


class OpenFile:
    """A file held open for reading at any place, by any thread, until nothing refers to it.

    What it reads stays what it was, even when another file is renamed onto its path.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer with the bytes from `offset` on. InputError when the file ends first."""
        while len(buffer):
            count = os.preadv(self._descriptor, [buffer], offset)
            if count == 0:
                raise InputError(f"{self.path}: truncated while it was read: download it again")
            buffer, offset = buffer[count:], offset + count

    def __del__(self):
        if hasattr(self, "_descriptor"):  # not when it could not be opened
            os.close(self._descriptor)


class Stored(Lazy):
    """A tensor in a file, in row-major order from byte `offset` on; reading reads only the rows."""

    def __init__(self, file: OpenFile, offset: int, shape: tuple[int, ...], dtype: Any):
        super().__init__(shape, dtype, self._read)
        self._file, self._offset = file, offset

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.part(start, stop)._read()

    def part(self, start: int, stop: int) -> "Stored":
        """`[start:stop]` along the first axis as a tensor of its own, still in the file."""
        size = self.nbytes // self.shape[0] if self.shape[0] else 0
        shape = (stop - start, *self.shape[1:])
        return Stored(self._file, self._offset + start * size, shape, self.dtype)

    def _read(self) -> np.ndarray:
        raw = np.empty(self.nbytes, np.uint8)
        self._file.read(self._offset, raw.data)
        return raw.view(self.dtype).reshape(self.shape)


Tensor = np.ndarray | Lazy


def rows(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """`tensor[start:stop]` in memory, reading no more than that where that is possible."""
    return tensor.rows(start, stop) if isinstance(tensor, Lazy) else tensor[start:stop]


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array at an address that XLA's CPU backend takes over without copying."""
    dtype, boundary = np.dtype(dtype), 64
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + boundary, np.uint8)
    skip = -raw.ctypes.data % boundary
    return raw[skip : skip + size].view(dtype).reshape(shape)


def all_finite(array: np.ndarray) -> bool:
    """Whether no value is infinite or not a number."""
    if array.dtype.itemsize != 2:
        return bool(np.isfinite(array).all())
    # numpy takes bfloat16 and float16 value by value; as integers they are compared at once.
    top = np.full((), np.inf, array.dtype).view(np.uint16)
    return array.size == 0 or bool(((array.view(np.uint16) & 0x7FFF).max()) < top)
