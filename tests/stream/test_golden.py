"""The transcript that transformers grew frame by frame, grown by a stream of token chunks."""

import numpy as np
import pytest

import streamjax as sj
from streamjax.stream import Thresholds
from streamjax.weights import safetensors

STATES, END, IMAGE = (247, 248, 249), 245, 242


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_live(golden, family, monkeypatch):
    monkeypatch.setattr("streamjax.stream.engine.TEXT_BUCKETS", (64, 64, 64, 128, 256, 512))
    io, _ = safetensors.read_file(golden / family / "io.safetensors")
    io = {name: np.asarray(value) for name, value in io.items()}
    tokens, pixels = io["live.input_ids"][0], io["stream5.pixel_values"]
    starts, answers = io["live.turn_starts"].tolist(), io["live.generated"].tolist()
    side = 6 if family == "internvl" else None
    grid = (
        [(1, side, side)] * 5 if side else list(map(tuple, io["stream5.image_grid_thw"].tolist()))
    )
    frames = np.split(pixels, 5)
    stream = sj.Stream(
        sj.load(golden / family, dtype="float32"), state_ids=STATES, end_id=END, capacity=256,
        max_new_tokens=2, thresholds=Thresholds(respond=0.0),
    )  # fmt: skip
    stream._batch._make(grid[0], 256, stream._book.sink_wanted(9))
    for i, (start, count) in enumerate(zip(starts, io["live.turn_prompt_len"], strict=True)):
        # The stream closes the answer before by itself.
        chunk = tokens[start + (i > 0) : start + count]
        # Any three words stand for the states: what is said first is that turn's, in any state.
        stream._batch.state_ids = (answers[i][0],) * 3
        turn = stream.push((frames[i], grid[i]), chunk, keep=9 if i == 0 else 0)
        logits = io["live.logits"][0, start + count - 1]
        assert logits.argmax() == answers[i][0]
        shares = np.exp(logits[list(STATES)] - logits[list(STATES)].max())
        np.testing.assert_allclose(turn.probabilities, shares / shares.sum(), atol=1e-4)
        assert list(turn.tokens) == answers[i]
