"""What a stream's features say of texts: similarity over time and over the picture, as a page.

A frame's feature against a text's says whether it is there; the feature of one patch says where.
The page stands alone and needs no script (stream/page.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from streamjax.models.pretraining import DensePath
from streamjax.ops.linear import unit
from streamjax.stream.features import Features
from streamjax.stream.page import (
    NARROWEST,
    REEL,
    WIDTH,
    document,
    encoded,
    picture,
    reel,
    smaller,
    source,
    style_of,
    ticks,
)
from streamjax.stream.trace import clock, one_line, write_whole

MOST = 8  # texts on a page: as many colours can be told apart

_SIDE, _SMALL = 320, 200  # pixels of a kept picture, and of those in a row
_COLUMNS = 60  # frames whose maps are shown, evenly chosen
_HEIGHT = 190  # of the curves, in pixels
# From dark to bright in steps that look even (inferno); similarity.css has it too.
_RAMP = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32
)


@dataclass
class Comparison:
    """The frames of a stream beside some texts, kept small: pictures and similarities.

    words: the texts. texts: their unit features [q d]. dense: the way from a patch to a text.
    scale, bias: SigLIP's, the scale as its logarithm; with them a similarity has a probability.
    """

    words: Sequence[str]
    texts: Any
    dense: DensePath
    scale: float | None = None
    bias: float | None = None
    times: list[float] = field(default_factory=list)
    frames: list[Float32[np.ndarray, " q"]] = field(default_factory=list)
    maps: list[Float32[np.ndarray, "hp wp q"]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)

    def add(
        self,
        frame: UInt8[np.ndarray, "h w 3"],
        features: Features,
        *,
        time: float,
        grid: tuple[int, int],
    ) -> None:
        """Compares the next frame. time: in seconds of the video. grid: (rows, columns) of patches.

        frame: as the camera gave it, of any size.
        """
        whole, patches = compare(self.dense, self.texts, features.pooled, features.tokens)
        self.times.append(time)
        self.frames.append(np.asarray(whole))
        self.maps.append(np.asarray(patches).reshape(*grid, -1))
        self.pictures.append(picture(frame, side=_SIDE))

    def probability(self, similarity: float) -> float | None:
        """SigLIP's probability that frame and text belong together; None without its scale."""
        if self.scale is None or self.bias is None:
            return None
        return 1 / (1 + float(np.exp(-(np.exp(self.scale) * similarity + self.bias))))

    @property
    def even(self) -> float | None:
        """The similarity whose probability is one half."""
        if self.scale is None or self.bias is None:
            return None
        return -self.bias / float(np.exp(self.scale))


@jax.jit
def compare(
    dense: DensePath,
    texts: Float[Array, "q d"],
    pooled: Float[Array, " d"],
    tokens: Float[Array, "p d"],
) -> tuple[Float32[Array, " q"], Float32[Array, "p q"]]:
    """Cosines of a frame and of its patches with unit text features (specs/streamformer.md 5.5)."""
    patches = unit(dense(tokens[None, None]))[0, 0]
    return unit(pooled) @ texts.T, patches @ texts.T


def upsample(
    values: Float32[np.ndarray, "hp wp"], height: int, width: int
) -> Float32[np.ndarray, "h w"]:
    """Bilinear, half-pixel centres, no antialias, as the pixel losses have it: only ever larger."""
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def write_page(
    path: str | Path, seen: Comparison, *, title: str, about: Sequence[str] = ()
) -> None:
    """Writes the page, whole or not at all.

    title: most often the video's name. about: short facts for the line under it. Raises ValueError
    when no frame was seen, and for more than `MOST` texts.
    """
    if not seen.times or not 0 < len(seen.words) <= MOST:
        raise ValueError(
            f"found {len(seen.times)} frames and {len(seen.words)} texts, wanted at least one of "
            f"each and at most {MOST} texts"
        )
    frames, maps = np.stack(seen.frames), np.stack(seen.maps)
    # One scale for all texts, for their similarities mean the same; without the last outliers.
    low, high = np.quantile(maps, (0.02, 0.998)).tolist()
    count = min(len(frames), _COLUMNS)
    columns = [int((i + 0.5) * len(frames) / count) for i in range(count)]
    body = "\n".join(
        (
            _curves(seen, frames, columns),
            _best(seen, frames, low, high),
            _film(seen, columns, low, high),
        )
    )
    facts = [("Frames", f"{len(frames)}"), ("Texts", f"{len(seen.words)}")]
    page = document(
        title=title, kind="similarity to texts", about=about, facts=facts, body=body,
        styles=["report.css", "similarity.css"],
    )  # fmt: skip
    write_whole(path, page)


def overlay(
    shown: bytes,
    values: Float32[np.ndarray, "hp wp"],
    low: float,
    high: float,
    *,
    side: int = _SIDE,
) -> bytes:
    """A picture in grey with a map over it in colour, dark at `low` and bright at `high`.

    Its longer side has `side` pixels at most, and where it is tiny a whole multiple of its own.
    """
    image = Image.open(BytesIO(shown)).convert("L")
    image.thumbnail((side, side))
    factor = max(side // max(image.size), 1)
    size = image.width * factor, image.height * factor
    grey = np.asarray(image.resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    share = (upsample(values, size[1], size[0]) - low) / max(high - low, 1e-6)
    share = np.clip(share, 0, 1)
    steps = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(share, steps, channel) for channel in _RAMP.T], axis=-1)
    alpha = 0.4 + 0.4 * share[..., None]
    mixed = 0.8 * grey * (1 - alpha) + colour * alpha
    return encoded(Image.fromarray(mixed.astype(np.uint8)), lossless=False)


def _curves(seen: Comparison, frames: np.ndarray, columns: Sequence[int]) -> str:
    """One curve per text over the pictures; every column leads to the nearest frame with maps."""
    step = max(NARROWEST, WIDTH / len(frames))
    width, top = step * len(frames), REEL + 14
    low, high = float(frames.min()), float(frames.max())
    if seen.even is not None and abs(seen.even - (low + high) / 2) < 1.5 * (high - low):
        low, high = min(low, seen.even), max(high, seen.even)
    room = max(high - low, 0.01) * 0.08
    low, high = low - room, max(high, low + 0.01) + room
    bottom = top + _HEIGHT

    def y(similarity: float) -> float:
        return bottom - (similarity - low) / (high - low) * _HEIGHT

    levels = np.linspace(low + room, high - room, 4)
    names = "".join(
        f'<span class="level" style="top:{y(v) - 10:.0f}px">{v:.3f}</span>' for v in levels
    )
    lines = "".join(
        f'<line class="base" x1="0" x2="{width:.1f}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        for v in levels
    )
    if seen.even is not None and low < seen.even < high:
        lines += (
            f'<line class="even" x1="0" x2="{width:.1f}" y1="{y(seen.even):.1f}" '
            f'y2="{y(seen.even):.1f}"><title>probability one half</title></line>'
        )
    curves = []
    for q in range(len(seen.words)):
        points = [((i + 0.5) * step, y(float(v))) for i, v in enumerate(frames[:, q])]
        path = "M" + "L".join(f"{x:.1f} {v:.1f}" for x, v in points)
        x, v = points[int(frames[:, q].argmax())]
        curves.append(
            f'<g class="q{q}"><path class="curve" d="{path}"/>'
            f'<circle class="peak" cx="{x:.1f}" cy="{v:.1f}" r="5"/></g>'
        )
    near = [min(columns, key=lambda c: abs(c - i)) for i in range(len(frames))]
    links = "".join(
        f'<a href="#f{near[i]}"><title>{clock(seen.times[i])}'
        + "".join(
            f"\n{escape(one_line(words))}: {v:.3f}"
            for words, v in zip(seen.words, frames[i], strict=True)
        )
        + f'</title><rect class="column" x="{i * step:.1f}" y="0" width="{step:.1f}" '
        f'height="{bottom}"/></a>'
        for i in range(len(frames))
    )
    key = "".join(
        f'<li class="q{q}"><i></i>{escape(words)}</li>' for q, words in enumerate(seen.words)
    )
    even = " The dashed line is where SigLIP's probability is one half." if "even" in lines else ""
    return (
        f'<section class="sheet timeline" aria-label="Similarity over time"><h2>Similarity over '
        f'time</h2><ol class="key">{key}</ol><div class="lanes"><div class="names">{names}</div>'
        f'<div class="reel" tabindex="0"><svg width="{width:.0f}" height="{bottom + 24}" '
        f'role="img" aria-label="Similarity of every frame to each text">'
        f"{reel(seen.pictures, step, width)}{lines}{''.join(curves)}"
        f"{ticks(seen.times, step, bottom + 17)}{links}</svg></div></div>"
        f'<p class="hint">Cosine of the frame, as the stream knew it at that moment, and the text. '
        f"Click a moment to see its maps.{even}</p></section>"
    )


def _best(seen: Comparison, frames: np.ndarray, low: float, high: float) -> str:
    """For each text the frame that it fits best."""
    cards = []
    for q, words in enumerate(seen.words):
        i = int(frames[:, q].argmax())
        shown = source(overlay(seen.pictures[i], seen.maps[i][..., q], low, high))
        likely = seen.probability(float(frames[i, q]))
        told = f" · {100 * likely:.0f}%" if likely is not None else ""
        cards.append(
            f'<li class="sheet q{q}"><img src="{shown}" alt="The frame at {clock(seen.times[i])}">'
            f"<div><b>{escape(words)}</b><span>{clock(seen.times[i])} · {frames[i, q]:.3f}{told}"
            f"</span></div></li>"
        )
    return (
        '<section class="best" aria-label="Best moments"><h2>Where each text fits best</h2>'
        f"<ol>{''.join(cards)}</ol></section>"
    )


def _film(seen: Comparison, columns: Sequence[int], low: float, high: float) -> str:
    """A row of pictures, and under them a row of maps for each text."""
    style = style_of(seen.pictures[0])
    plain = "".join(
        f'<td id="f{i}"><img class="{style}" src="{source(smaller(seen.pictures[i], _SMALL))}" '
        f'alt="The frame at {clock(seen.times[i])}"><small>{clock(seen.times[i])}</small></td>'
        for i in columns
    )
    scale = f'<span class="scale">{low:.2f}<i></i>{high:.2f}</span>'
    rows = [f"<tr><th><b>The frames</b>{scale}</th>{plain}</tr>"]
    for q, words in enumerate(seen.words):
        maps = [
            overlay(seen.pictures[i], seen.maps[i][..., q], low, high, side=_SMALL) for i in columns
        ]
        cells = "".join(
            f'<td><img src="{source(shown)}" alt=""><small>{seen.frames[i][q]:.3f}</small></td>'
            for i, shown in zip(columns, maps, strict=True)
        )
        rows.append(f'<tr class="q{q}"><th><b>{escape(words)}</b></th>{cells}</tr>')
    left = len(seen.times) - len(columns)
    some = f" {len(columns)} of {len(seen.times)} frames, evenly chosen." if left else ""
    return (
        '<section class="sheet maps" aria-label="Similarity of every patch"><h2>Where in the '
        f'picture</h2><div class="film" tabindex="0"><table>{"".join(rows)}</table></div>'
        '<p class="hint">Cosine of every patch and the text, between patches interpolated; one '
        f"scale of colours for all texts. Under a map the frame's own similarity.{some}</p>"
        "</section>"
    )
