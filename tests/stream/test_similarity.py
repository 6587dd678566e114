"""Similarity of a stream to texts: equal to the offline model's, and on a page of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import cli
from streamjax.data.captions import CaptionTokenizer, build_caption_tokenizer
from streamjax.data.processors import Assets, ImageProcessor
from streamjax.data.video import write_video
from streamjax.models.pretraining import DensePath, Pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.ops.linear import unit
from streamjax.stream import similarity
from streamjax.stream.features import Features
from streamjax.weights.siglip import save_siglip
from tests.stream.test_report import HOSTILE, Page

TOWER = StreamFormerConfig(
    image_size=24, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
)  # fmt: skip
TEXT = SiglipTextConfig(
    vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=16,
)  # fmt: skip


def filled(make):
    """What `make()` makes, its parameters drawn by numpy, for which nothing is compiled."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), shapes)
    return nnx.merge(graph, values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video, a whole multi-task model, the bare tower, a SigLIP, and one of another width."""
    home = tmp_path_factory.mktemp("similarity")
    words = build_caption_tokenizer(["a red circle", "it stops"], home / "words")
    frames = np.random.default_rng(1).integers(0, 255, (6, 36, 48, 3), dtype=np.uint8)
    write_video(home / "clip.mp4", frames, 1)
    model = filled(
        lambda: Pretraining(
            StreamFormer(TOWER, rngs=nnx.Rngs(0)), SiglipText(TEXT, rngs=nnx.Rngs(0)),
            kinds={"TaskVIS": "segmentation"}, labels={"TaskVIS": {"A": jnp.zeros((2, 16))}},
            logit_scale=2.0, logit_bias=-1.0,
        )
    )  # fmt: skip
    processor = ImageProcessor(size=(24, 24), patch=8)
    model.tower.assets = Assets(tokenizer=str(words.folder), processor=processor)
    sj.save(model, home / "whole")
    tower = sj.load(home / "whole")
    tower.assets = Assets(processor=processor)
    sj.save(tower, home / "tower")
    tower.layers.gate[...] = np.zeros(1)
    numbers = dict(logit_scale=2.0, logit_bias=-1.0, tokenizer=words.folder)
    save_siglip(tower, model.text, home / "siglip", **numbers)
    config = SiglipTextConfig(
        vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    text = filled(lambda: SiglipText(config, rngs=nnx.Rngs(0)))
    save_siglip(tower, text, home / "narrow", **numbers)
    return home, model


def run(*args):
    return cli.main(["encode", *map(str, args)])


def test_the_stream_says_what_the_whole_clip_says(folder, tmp_path, capsys):
    home, model = folder
    asked = ("--text", "a red circle", "--text", "it stops")
    out = tmp_path / "whole.npz"
    assert run(home / "whole", home / "clip.mp4", *asked, "--out", out) == 0
    assert "similarity [6, 2], maps [6, 3, 3, 2]" in capsys.readouterr().out
    with np.load(out) as arrays:
        found = dict(arrays)
    assert found["texts"].tolist() == ["a red circle", "it stops"] and not list(
        tmp_path.glob("*.html")
    )
    read = CaptionTokenizer(home / "words", length=16)
    rows = np.stack([read(text) for text in found["texts"]])
    frames = model.assets.processor(np.stack(list(sj.video(home / "clip.mp4", fps=1))))

    @jax.jit
    def offline(model, frames, rows):
        clip = model.tower(frames, time_rule="hold", window=4)
        patches, texts = model.dense("TaskVIS", clip.tokens), model.texts(rows)
        return unit(clip.pooled)[0] @ texts.T, patches[0] @ texts.T

    whole, patches = offline(model, frames[None], rows)
    np.testing.assert_allclose(found["similarity"], whole, atol=2e-5)
    np.testing.assert_allclose(found["maps"].reshape(6, 9, 2), patches, atol=2e-5)

    # With a SigLIP's text side the same texts; without task heads the pooling head's own way.
    out = tmp_path / "tower.npz"
    siglip = ("--text-model", home / "siglip")
    assert run(home / "tower", home / "clip.mp4", *asked, *siglip, "--out", out) == 0
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["similarity"], whole, atol=2e-5)
        assert np.abs(arrays["maps"] - found["maps"]).max() > 0.01


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("tower", ["--text", "red"], "tower: no text tower beside it; wanted --text-model"),
        ("whole", ["--html"], "--html shows similarity to texts, found none"),
        ("whole", ["--text", "..."], "text '...' is empty without punctuation"),
        ("whole", ["--text", "a"] * 9, "found 9 --text, wanted at most 8"),
        ("tower", ["--text", "a", "--text-model", "narrow"], "texts have 8 features, wanted the"),
        ("tower", ["--text", "a", "--text-model", "words"], "words"),
        ("tower", ["--text", "a", "--text-model", "tower"], "model.safetensors: no text tower"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folder, model, args, said, capsys, monkeypatch):
    monkeypatch.chdir(folder[0])
    assert run(model, "clip.mp4", *args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert not list(folder[0].glob("*.npz"))


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    """A page with a text that would do harm, from the command line."""
    home, out = folder[0], tmp_path_factory.mktemp("page") / "clip.npz"
    asked = ("--text", HOSTILE, "--text", "it stops", "--html")
    assert run(home / "whole", home / "clip.mp4", *asked, "--out", out) == 0
    return out.with_suffix(".html").read_text()


def test_the_page_stands_alone_and_runs_nothing(page):
    found = Page(page)
    assert not found.all("script") and not found.all("link") and not found.all("iframe")
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert not any(word in page for word in ("url(", "@import", "http://", "https://"))
    policy = next(a["content"] for a in found.all("meta") if "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all(a["src"].startswith("data:image/") for a in found.all("img"))
    assert found.text.count(HOSTILE) >= 3  # the key, the best moment, the row of maps


def test_the_page_shows_every_frame(page):
    found = Page(page)
    cells = [a["id"] for a in found.all("td") if "id" in a]
    assert cells == [f"f{i}" for i in range(6)]
    assert [a["href"] for a in found.all("a")] == [f"#{cell}" for cell in cells]
    assert len(found.all("img")) == 6 * 3 + 2  # plain and two rows of maps, two best moments
    curves = [a["d"] for a in found.all("path") if a.get("class") == "curve"]
    assert len(curves) == 2 and all(curve.count("L") == 5 for curve in curves)
    for word in ("0:05", "Where each text fits best"):
        assert word in found.text


def test_many_frames_make_a_small_page(folder, tmp_path, rng):
    _, model = folder
    texts = unit(jnp.asarray(rng.standard_normal((2, 16), np.float32)))
    seen = similarity.Comparison(["a", "b"], texts, DensePath(model.tower.head))
    assert seen.probability(0.1) is None and seen.even is None
    seen.scale, seen.bias = np.log(10), -1.0
    assert seen.even == pytest.approx(0.1) and seen.probability(0.1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="found 0 frames and 2 texts"):
        similarity.write_page(tmp_path / "none.html", seen, title="none")
    frame = np.full((90, 160, 3), 80, np.uint8)
    for i in range(200):
        tokens, pooled = (
            rng.standard_normal((6, 16), np.float32),
            rng.standard_normal(16, np.float32),
        )
        features = Features(jnp.asarray(tokens), jnp.asarray(pooled), i, {})
        seen.add(frame, features, time=i / 2, grid=(2, 3))
    similarity.write_page(tmp_path / "many.html", seen, title="many", about=["two a second"])
    text = (tmp_path / "many.html").read_text()
    assert "60 of 200 frames" in text and "SigLIP's probability is one half" in text
    assert len(text) < 1e6
    targets = {a["href"] for a in Page(text).all("a")}
    assert len(targets) == 60 and all(f'id="{t[1:]}"' in text for t in targets)


def test_maps_grow_as_the_pixel_losses_have_it(rng):
    values = rng.standard_normal((3, 4), np.float32)
    wanted = jax.image.resize(values, (30, 28), "linear", antialias=False)
    np.testing.assert_allclose(similarity.upsample(values, 30, 28), wanted, atol=1e-5)
