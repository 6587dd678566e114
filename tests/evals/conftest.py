"""A tiny assistant in a folder, small videos, and a benchmark's files about them, for all tests of
running benchmarks: one model, so that they share compiled programs."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="session")
def assistant(tmp_path_factory):
    """(its folder, the model)."""
    import streamjax as sj
    from streamjax.data.processors import Assets, ImageProcessor
    from tests.stream import oracle

    home = tmp_path_factory.mktemp("assistant")
    words = oracle.make_tokenizer(home / "words")
    model = oracle.make_model("llava", words)
    side = oracle.SIDE
    model.assets = Assets(
        tokenizer=str(home / "words"), processor=ImageProcessor(size=(side, side))
    )
    sj.save(model, home / "model")
    return home / "model", model


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """a.mp4, b.mp4: 4 s at 5 frames a second, each frame of a brightness of its own; pictures/, 4
    of them; broken.mp4; out.mp4, a link that leads out."""
    from PIL import Image

    from streamjax.data.video import write_video

    home = tmp_path_factory.mktemp("filmed")
    root = home / "videos"
    (root / "pictures").mkdir(parents=True)
    for name, seed in (("a", 0), ("b", 1)):
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 255, (20, 16, 16, 3), np.uint8) // 8
        frames += (np.arange(20, dtype=np.uint8) * 10)[:, None, None, None]
        write_video(root / f"{name}.mp4", frames, 5, gop=5, crf=0)
    write_video(home / "secret.mp4", np.zeros((3, 16, 16, 3), np.uint8), 1)
    (root / "out.mp4").symlink_to(home / "secret.mp4")
    (root / "broken.mp4").write_bytes((root / "a.mp4").read_bytes()[:200])
    for i in range(4):
        picture = np.full((16, 16, 3), 60 * i, np.uint8)
        Image.fromarray(picture).save(root / "pictures" / f"{i:03d}.png")
    return root


def record(id, video, realtime, task="OCR"):
    return {
        "id": id, "task": task, "video": video, "realtime": realtime, "question": "what is it",
        "answer": "red", "options": ["red", "green"], "gt": 0,
    }  # fmt: skip


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """A folder of OVO-Bench: three questions on two videos, and one on a video that is missing."""
    folder = tmp_path_factory.mktemp("ovo")
    rows = [record(0, "a.mp4", 2), record(1, "a.mp4", 3.5), record(2, "b.mp4", 2)]
    rows.append(record(3, "missing.mp4", 2, task="EPM"))
    (folder / "ovo_bench_new.json").write_text(json.dumps(rows))
    return folder
