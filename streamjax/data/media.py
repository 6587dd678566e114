"""A file that a record speaks of: on disk, as bytes, or inside of a packed data set.

Whatever reads videos, pictures and masks takes any of them, so that a packed data set gives the
very samples that the files give.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class PackedFile:
    """A file of a packed data set; its bytes are read each time they are asked for.

    name: its path in the folder that was packed; it stands in messages.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name


Media = str | os.PathLike | bytes | PackedFile


def told_name(media: Media) -> str:
    """What messages call it."""
    return f"<{len(media)} bytes>" if isinstance(media, bytes) else str(media)


def bytes_of(media: Media | int) -> bytes | None:
    """What is packed or given as bytes; None for a path (or a webcam's index)."""
    if isinstance(media, PackedFile):
        return media.read()
    return media if isinstance(media, bytes) else None


def opened(media: Media) -> io.BytesIO | io.BufferedReader:
    """The file opened for reading. OSError: it is missing or cannot be read."""
    content = bytes_of(media)
    if content is not None:
        return io.BytesIO(content)
    assert not isinstance(media, bytes | PackedFile)
    return Path(media).open("rb")
