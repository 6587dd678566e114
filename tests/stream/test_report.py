"""The report stands alone, reads without JavaScript, and runs nothing that a user wrote."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from streamjax.stream import report
from streamjax.stream.page import picture
from tests.stream.test_trace import Said, answer

HOSTILE = "\"'><img src=x onerror=alert(1)></style></script><script>alert(2)</script>&amp;"


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside style and script."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    frames = np.random.default_rng(0).integers(0, 255, (4, 300, 500, 3), dtype=np.uint8)
    turns = [Said(0, 0.0), Said(1, 1.0, "</Standby>"), answer(2, HOSTILE), Said(3, 3.0)]
    pictures = [picture(frame) for frame in frames]
    questions = [(0.0, HOSTILE), (3.0, "And then?")]
    report.write_report(path, turns, pictures, questions, title=HOSTILE, about=[HOSTILE, "model"])
    return path.read_text()


def test_what_users_write_stays_text(made):
    page = Page(made)
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert len(page.all("script")) == 1
    assert all((a.get("src") or a.get("href")).startswith("data:") for a in page.all("img"))
    assert page.text.count(HOSTILE) >= 5  # title, heading, about, question, answer


def test_nothing_is_fetched_and_only_our_script_may_run(made):
    page = Page(made)
    assert not page.all("link") and not page.all("iframe")
    assert not re.search(r"url\(|@import|https?://", made)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    script = re.search(r"<script>(.*?)</script>\n</body>", made, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_every_second_is_on_the_page_without_the_script(made):
    page = Page(made)
    cards = [a for a in page.all("li") if (a.get("id") or "").startswith("t")]
    assert [card["id"] for card in cards] == ["t0", "t1", "t2", "t3"]
    assert [card["data-caption"] for card in cards] == ["", "", HOSTILE, HOSTILE]
    anchors = {a["href"] for a in page.all("a")}
    assert anchors == {"#t0", "#t1", "#t2", "#t3"}  # the timeline's columns lead to them
    for word in ("0:02", "80%", "30 ms · vision 10 · decode 20", "And then?", "Standby"):
        assert word in page.text


def test_pictures_are_small_and_tiny_ones_exact(rng):
    large = Image.open(io.BytesIO(picture(np.zeros((1080, 1920, 3), np.uint8))))
    assert (large.format, large.size) == ("JPEG", (480, 270))
    tiny = rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    kept = Image.open(io.BytesIO(picture(tiny)))
    assert kept.format == "PNG" and np.array_equal(np.asarray(kept), tiny)
    for size in ((1, 1), (3, 5000), (5000, 3)):  # odd, but pictures
        Image.open(io.BytesIO(picture(np.zeros((*size, 3), np.uint8)))).load()


def test_one_turn_of_one_pixel_and_many_turns(tmp_path):
    dot = picture(np.zeros((1, 1, 3), np.uint8))
    report.write_report(tmp_path / "one.html", [Said(0, 0.0)], [dot], title="one")
    many = [Said(i, float(i)) if i % 60 else answer(i, f"Minute {i // 60}") for i in range(900)]
    report.write_report(tmp_path / "many.html", many, [dot] * 900, title="many")
    assert (tmp_path / "many.html").stat().st_size < 2e6


def test_turns_and_pictures_have_to_match(tmp_path):
    with pytest.raises(ValueError, match="one picture a turn: found 1 turns, 0 pictures"):
        report.write_report(tmp_path / "a.html", [Said(0, 0.0)], [], title="a")
    assert list(tmp_path.iterdir()) == []
