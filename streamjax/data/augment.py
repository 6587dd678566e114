"""What training does to a clip's pixels (specs/streamformer.md 6.3 and appendix B).

All work on whole clips, uint8 [t h w 3], and draw once for all frames where not said otherwise. A
resize and the crop that follows it are one `Window`, so that only the pixels that stay are made.
Draws come in upstream's order: y before x.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

Rng = np.random.Generator
Frames = UInt8[np.ndarray, "t h w 3"]
Classes = Int32[np.ndarray, "t h w"]
Cut = UInt8[np.ndarray, "t H W 3"]  # of another size

Filter = Literal["point", "smooth"]
"""How frames are resized: bilinear between the four nearest pixels, whatever the scale, as OpenCV
does and torch without antialias; or smoothed to the scale, as Pillow does and torch with it."""


@dataclass(frozen=True)
class Window:
    """What is cut out of a resized frame: frame -> [height width] -> the part from (top, left) on.

    crop: (height, width) of the part.
    """

    height: int
    width: int
    top: int
    left: int
    crop: tuple[int, int]

    def of_frames(self, frames: Frames, how: Filter = "point") -> Cut:
        """The part of every frame."""
        out = np.empty((len(frames), *self.crop, 3), np.uint8)
        for part, frame in zip(out, frames, strict=True):
            part[:] = self._of_frame(frame, how)
        return out

    def of_classes(self, classes: Classes) -> Int32[np.ndarray, "t H W"]:
        """The part of maps of numbers, each pixel the one that OpenCV's "nearest" takes."""
        height, width = classes.shape[1:]
        rows = (np.arange(self.top, self.top + self.crop[0]) * (height / self.height)).astype(int)
        columns = (np.arange(self.left, self.left + self.crop[1]) * (width / self.width)).astype(
            int
        )
        return classes[:, np.minimum(rows, height - 1)[:, None], np.minimum(columns, width - 1)]

    def _of_frame(self, frame: np.ndarray, how: Filter) -> np.ndarray:
        height, width = frame.shape[:2]
        if (height, width) == (self.height, self.width):
            return frame[self.top : self.top + self.crop[0], self.left : self.left + self.crop[1]]
        down, across = height / self.height, width / self.width
        picture, size = Image.fromarray(frame), self.crop[::-1]
        if how == "smooth":
            x, y = self.left * across, self.top * down
            box = (x, y, x + self.crop[1] * across, y + self.crop[0] * down)
            return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box))
        mapping = (across, 0.0, self.left * across, 0.0, down, self.top * down)
        return _transformed(picture, size, mapping, Image.Resampling.BILINEAR)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) when the short side is made `size`; the long one is rounded down."""
    if height < width:
        return size, int(size * width / height)
    return int(size * height / width), size


def centre_window(frames: Frames, size: int) -> Window:
    """Evaluation: the short side at `size`, its central square."""
    height, width = frames.shape[1:3]
    rows, columns = short_side(height, width, size)
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return Window(rows, columns, top, left, (size, size))


def side_window(frames: Frames, size: int, place: int, places: int = 3) -> Window:
    """Tests of action recognition: the short side at `size`, a square along the long one.

    place: 0 is at its beginning, places - 1 at its end.
    """
    height, width = frames.shape[1:3]
    rows, columns = short_side(height, width, size)
    top, left = (int(place * ((room - size) / (places - 1))) for room in (rows, columns))
    return Window(rows, columns, top, left, (size, size))


def random_window(frames: Frames, size: int, rng: Rng) -> Window:
    """Retrieval, grounding, localization: the short side at `size`, any square of it."""
    height, width = frames.shape[1:3]
    rows, columns = short_side(height, width, size)
    top, left = (int(rng.integers(0, room - size, endpoint=True)) for room in (rows, columns))
    return Window(rows, columns, top, left, (size, size))


def masked_window(classes: Classes, size: int, rng: Rng, *, short: int | None = None) -> Window:
    """Segmentation: the short side at `short`, and a square of it about what is annotated.

    classes: 0 where nothing is annotated. The square begins anywhere from half a side before the
    annotated area's first row (column) to half a side before its last; where no such place lies in
    the picture, or nothing is annotated, anywhere. short: by default 8/7 of `size`, 256 for 224.
    """
    height, width = classes.shape[1:]
    rows, columns = short_side(height, width, short or size * 8 // 7)
    whole = Window(rows, columns, 0, 0, (rows, columns))
    seen = whole.of_classes(classes) != 0
    rooms = (rows - size, columns - size)
    starts = []
    for others, room in zip(((0, 2), (0, 1)), rooms, strict=True):
        (places,) = np.nonzero(seen.any(others))
        if len(places):
            first, last = max(0, int(places[0]) - size // 2), min(room, int(places[-1]) - size // 2)
            starts.append((first, last))
    if len(starts) < 2 or any(first > last for first, last in starts):
        starts = [(0, room) for room in rooms]
    top, left = (int(rng.integers(first, last, endpoint=True)) for first, last in starts)
    return Window(rows, columns, top, left, (size, size))


def random_resized_crop(frames: Frames, size: int, rng: Rng) -> Cut:
    """Kinetics, SSv2: a part of 8 to 100 % of the area and 3:4 to 4:3, squashed to a square.

    Ten tries for one that lies inside; then the largest central part of allowed proportions.
    """
    height, width = frames.shape[1:3]
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(0, height - rows, endpoint=True))
            left = int(rng.integers(0, width - columns, endpoint=True))
            break
    else:
        aspect = min(max(width / height, 3 / 4), 4 / 3)
        rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
        top, left = (height - rows) // 2, (width - columns) // 2
    part = np.ascontiguousarray(frames[:, top : top + rows, left : left + columns])
    return Window(size, size, 0, 0, (size, size)).of_frames(part)


def rotate_copies(
    image: UInt8[np.ndarray, "h w 3"], classes: Int32[np.ndarray, "h w"], count: int, rng: Rng
) -> tuple[Frames, Classes]:
    """COCO's pseudo videos: `count` copies of a picture, each turned on its own.

    By -15 to 15 degrees about a point within a tenth of the sides from the middle; black, and 0,
    where the picture ends.
    """
    height, width = classes.shape
    frames, maps = [], []
    for _ in range(count):
        angle = math.radians(rng.uniform(-15, 15))
        x = math.floor(rng.uniform(-1, 1) * width / 10) + width // 2
        y = math.floor(rng.uniform(-1, 1) * height / 10) + height // 2
        cos, sin = math.cos(angle), math.sin(angle)
        # Where pixel (column, row) of the copy comes from, pixel centres being whole numbers.
        mapping = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
        frames.append(_turned(image, mapping, Image.Resampling.BILINEAR))
        maps.append(_turned(classes, mapping, Image.Resampling.NEAREST))
    return np.stack(frames), np.stack(maps)


def flipped(frames: np.ndarray) -> np.ndarray:
    """Frames [t h w 3] or maps [t h w] with left and right exchanged."""
    return frames[:, :, ::-1]


def _turned(picture: np.ndarray, mapping: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """A copy whose pixel p is the picture's at `mapping` [2 3] of (p, 1); outside all is 0."""
    # Pillow repeats the outermost pixels; with zeros around them they fade out as OpenCV has it.
    edge = 2
    padded = np.pad(picture, ((edge, edge), (edge, edge), (0, 0))[: picture.ndim])
    turn = mapping[:, :2]
    shift = mapping[:, 2:] + edge + 0.5 - turn.sum(1, keepdims=True) / 2  # its centres are at 1/2
    flat = tuple(np.hstack([turn, shift]).ravel().tolist())
    return _transformed(Image.fromarray(padded), picture.shape[1::-1], flat, resample)


def _transformed(
    picture: Image.Image,
    size: tuple[int, ...],
    mapping: tuple[float, ...],
    resample: Image.Resampling,
) -> np.ndarray:
    """[rows columns ..] for `size` (columns, rows); what lies outside of the picture is 0."""
    width, height = size
    return np.asarray(picture.transform((width, height), Image.Transform.AFFINE, mapping, resample))
