"""What the pages of a stream share: one file that stands alone, its pictures, its time axis.

A page's content policy forbids the network and every script but its own; without JavaScript it can
be read whole. What comes from outside is escaped by whoever writes it into the body.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from streamjax.stream.trace import clock

_LONG_SIDE = 480  # pixels of an embedded picture; larger frames are shrunk to it
_LOSSLESS = 128 * 128  # up to this many pixels a picture is kept exactly, as PNG
_PNG = b"\x89PNG"  # how such a file begins
REEL = 58  # height of the pictures along a time axis, in pixels
WIDTH = 954  # least width of a time axis; many turns make it wider, and the page scrolls it
NARROWEST = 7.0  # least width of a turn on it


def document(
    *,
    title: str,
    kind: str,
    about: Sequence[str],
    facts: Sequence[tuple[str, str]],
    body: str,
    styles: Sequence[str],
    script: str = "",
) -> str:
    """A whole page.

    title: most often the video's name. kind: of page, after our name. about: short facts for the
    line under the title. facts: (name, number) below it; body: everything after that; both are
    markup. styles, script: files of this folder.
    """
    code = part(script) if script else ""
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{allowed}'" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}, streamed</title>
<style>{"".join(part(name) for name in styles)}</style>
</head>
<body>
<input type="checkbox" id="theme" class="unseen" aria-label="Turn light and dark around">
<div class="page">
<header>
<div class="brand"><span><b>streamjax</b> {kind}</span><label for="theme">Theme</label></div>
<h1>{escape(title)}</h1>
<p class="about">{"".join(f"<span>{escape(fact)}</span>" for fact in about)}</p>
<dl class="facts">{items}</dl>
</header>
<main>
{body}
</main>
<footer>Made by streamjax. This page needs no network.</footer>
</div>
{f"<script>{code}</script>" if script else ""}
</body>
</html>
"""


def picture(frame: UInt8[np.ndarray, "h w 3"], *, side: int = _LONG_SIDE) -> bytes:
    """A frame as a page keeps it: JPEG of at most `side` pixels a side, or PNG when it is tiny.

    frame: RGB [h w 3]. A stream that lasts keeps these instead of its frames.
    """
    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    return encoded(image, lossless=image.width * image.height <= _LOSSLESS)


def smaller(picture: bytes, side: int) -> bytes:
    """A picture of at most `side` pixels a side; as it is where it is no larger."""
    image = Image.open(io.BytesIO(picture))
    if max(image.size) <= side:
        return picture
    image.thumbnail((side, side))
    return encoded(image, lossless=picture.startswith(_PNG))


def size_of(picture: bytes) -> tuple[int, int]:
    """(width, height) of a picture."""
    return Image.open(io.BytesIO(picture)).size


def style_of(picture: bytes) -> str:
    """The class of a picture on the page: tiny ones keep their pixels sharp."""
    width, height = size_of(picture)
    return "tiny" if width * height <= _LOSSLESS else ""


def encoded(image: Image.Image, *, lossless: bool) -> bytes:
    """An image as the bytes of a file."""
    out = io.BytesIO()
    if lossless:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=82, optimize=True)
    return out.getvalue()


def source(picture: bytes) -> str:
    """A picture as the address that holds it."""
    kind = "png" if picture.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def reel(pictures: Sequence[bytes], step: float, width: float) -> str:
    """Small pictures along the time axis of an SVG, as many as fit side by side."""
    image, style = Image.open(io.BytesIO(pictures[0])), style_of(pictures[0])
    wide = min(max(image.width / image.height, 0.5), 2.4) * REEL
    count = max(int(width // (wide + 2)), 1)
    room = width / count
    shown = []
    for place in range(count):
        i = min(int((place + 0.5) * room / step), len(pictures) - 1)
        image = Image.open(io.BytesIO(pictures[i])).convert("RGB")
        image.thumbnail((2 * REEL * 3, 2 * REEL))
        shown.append(
            f'<image class="{style}" href="{source(encoded(image, lossless=bool(style)))}" '
            f'x="{place * room:.1f}" y="0" width="{room - 2:.1f}" height="{REEL}" '
            f'preserveAspectRatio="xMidYMid slice"/>'
        )
    return "".join(shown)


def ticks(times: Sequence[float], step: float, y: int) -> str:
    """The times under a time axis, as many as can be read."""
    every = next((n for n in (1, 2, 5, 10, 15, 30, 60, 120, 300) if n * step >= 44), 600)
    return "".join(
        f'<text class="tick" x="{max((i + 0.5) * step, 13.0):.1f}" y="{y}">{clock(time)}</text>'
        for i, time in enumerate(times)
        if i % every == 0
    )


def part(name: str) -> str:
    """A file of this folder: style or script."""
    return files("streamjax.stream").joinpath(name).read_text(encoding="utf-8")
