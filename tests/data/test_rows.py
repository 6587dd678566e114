"""Dialogues with frames, and the rows that they share: shapes, places, and what does not fit."""

import dataclasses

import numpy as np
import pytest

from streamjax.data.annotations.streamo import Record
from streamjax.data.chat import FORMATS, IGNORE, end_id
from streamjax.data.pipeline import DataConfig, batches
from streamjax.data.positions import mrope_positions
from streamjax.data.processors import InternVLImageProcessor, QwenImageProcessor, common
from streamjax.data.processors.plans import PlanShape, plan_arrays
from streamjax.data.rows import Dialogues, Patches, Rows, Tiles, read_all
from streamjax.data.tokenizer import load_tokenizer
from streamjax.data.video import video, write_video
from streamjax.errors import InputError

SHAPE = PlanShape(patches=480, slices=30, slice_size=16, windows=30)


@pytest.fixture(scope="module")
def tokenizer(small_world):
    words = load_tokenizer(small_world / "tokenizer")
    marks = [m for f in ("qwen2_5_vl", "internvl") for m in
             (FORMATS[f].prefix, FORMATS[f].suffix.strip(), FORMATS[f].placeholder)]  # fmt: skip
    words.add_tokens(marks, special_tokens=True)
    return words


@pytest.fixture(scope="module")
def records(small_world):
    world = small_world / "world"
    return read_all(world / "streamo", root=world / "videos")


@pytest.fixture(scope="module")
def qwen(tokenizer):
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    rows = Rows(length=4000, pictures=Patches(image_id=image, window=8, shape=SHAPE), dialogues=3)
    processor = QwenImageProcessor().with_frame_budget()
    return Dialogues(tokenizer, processor, FORMATS["qwen2_5_vl"], rows)


@pytest.fixture(scope="module")
def tiles(tokenizer):
    rows = Rows(length=4000, pictures=Tiles(most=24), dialogues=3)
    processor = InternVLImageProcessor(size=(56, 56))
    return Dialogues(tokenizer, processor, FORMATS["internvl"], rows)


def sample(dialogues, record):
    return dialogues(record, np.random.default_rng(0))


@pytest.mark.parametrize("family", ["qwen", "tiles"])
def test_a_sample_is_a_dialogue_with_a_frame_a_second(family, request, records, tokenizer):
    dialogues = request.getfixturevalue(family)
    found = sample(dialogues, records[0])
    frames = list(video(records[0].video, fps=1))
    turns = len(found["grid"])
    assert turns == len(frames) in (8, 9, 10)
    placeholder = tokenizer.convert_tokens_to_ids(dialogues.format.placeholder)
    assert (found["tokens"] == placeholder).sum() == 4 * turns
    assert (found["labels"] == end_id(tokenizer)).sum() == turns
    labelled = found["labels"] != IGNORE
    assert np.array_equal(found["labels"][labelled], found["tokens"][labelled])
    # The bytes are what the processor normalises.
    pixels, grid = dialogues.processor(frames) if family == "qwen" else dialogues.processor.video(
        np.stack(frames))  # fmt: skip
    assert np.array_equal(found["grid"], grid)
    table = common.lookup(dialogues.processor.mean, dialogues.processor.std)
    bytes_ = found["pixels"].swapaxes(0, 1)
    values = np.stack([channel[b] for channel, b in zip(table, bytes_, strict=True)], axis=1)
    if family == "qwen":  # every pixel stands there once, in place of twice
        values = np.repeat(values[:, :, None], 2, axis=2).reshape(len(values), -1)
    assert np.array_equal(values, pixels)


def test_dialogues_stand_side_by_side_in_a_row(qwen, records):
    samples = [sample(qwen, r) for r in records[:3]]
    assert qwen.rows.fits(samples)
    assert not qwen.rows.fits([*samples, samples[0]])  # dialogues=3
    row = qwen.rows.row(samples)
    sizes = [len(s["tokens"]) for s in samples]
    ids = np.repeat([0, 1, 2, -1], [*sizes, 4000 - sum(sizes)])
    assert np.array_equal(row["segments"], ids)
    for i, one in enumerate(samples):
        here = ids == i
        assert np.array_equal(row["tokens"][here], one["tokens"])
        assert np.array_equal(row["labels"][here], one["labels"])
        alone, _ = mrope_positions(
            one["tokens"][None], one["grid"], image_id=qwen.rows.pictures.image_id
        )
        assert np.array_equal(row["positions"][:, here], alone[:, 0])
    assert (row["labels"][ids == -1] == IGNORE).all()
    grid = np.concatenate([s["grid"] for s in samples])
    assert row["pixels"].shape == (480, 3, 196) and row["pixels"].dtype == np.uint8
    assert not row["pixels"][16 * len(grid) :].any()
    plan = plan_arrays(grid, merge=2, window=8, shape=SHAPE)
    for name, array in plan.items():
        assert np.array_equal(row[f"plan_{name}"], array)


def test_tiles_stand_side_by_side_too(tiles, records):
    samples = [sample(tiles, r) for r in records[:2]]
    row = tiles.rows.row(samples)
    frames = sum(len(s["grid"]) for s in samples)
    assert sorted(row) == ["labels", "pixels", "segments", "tokens"]
    assert row["pixels"].shape == (24, 3, 56, 56) and row["pixels"][frames - 1].any()
    assert not tiles.rows.fits([sample(tiles, r) for r in records[:3]])  # 24 tiles


def test_batches_are_rows_of_one_shape(qwen, records):
    data = DataConfig(source=lambda: records, transform=qwen, pack=qwen.rows)
    batch = next(batches(data, batch_size=2, seed=0))
    assert batch["tokens"].shape == (2, 4000) and batch["positions"].shape == (2, 3, 4000)
    assert batch["segments"].max(axis=1).tolist() == [2, 2]


def test_what_cannot_be_a_dialogue_is_one_line(qwen, records, tmp_path):
    def said(record, dialogues=qwen):
        with pytest.raises(InputError) as told:
            sample(dialogues, record)
        assert "\n" not in str(told.value)
        return str(told.value)

    gone = dataclasses.replace(records[0], video=tmp_path / "gone.mp4")
    assert str(gone.video) in said(gone)
    short = Record(tmp_path / "short.mp4", records[0].content, "here")
    write_video(short.video, np.zeros((7, 32, 32, 3), np.uint8), 10)
    assert "short.mp4: 0.70 s give 0 frames at 1 fps, wanted at least one" in said(short)

    def room(**changes):
        return dataclasses.replace(qwen, rows=dataclasses.replace(qwen.rows, **changes))

    assert "tokens, wanted at most 100" in said(records[0], room(length=100))
    small = dataclasses.replace(SHAPE, slices=3, patches=100)
    small = room(pictures=dataclasses.replace(qwen.rows.pictures, shape=small))
    assert "frames, wanted at most 3; 1" in said(records[0], small)
    with pytest.raises(FileNotFoundError, match="no .json file in it, wanted Streamo's annot"):
        read_all(tmp_path, root=tmp_path)
    with pytest.raises(FileNotFoundError, match="x.json: missing"):
        read_all(tmp_path / "x.json", root=tmp_path)


def test_parity_upstream_drifts_as_the_released_code(qwen, records, tmp_path):
    record = Record(tmp_path / "ntsc.mp4", records[0].content, "here")
    frames = np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 56, 56, 3), np.uint8)
    write_video(record.video, frames, 30000 / 1001, crf=0)
    fixed = sample(qwen, record)
    drifted = sample(dataclasses.replace(qwen, parity="upstream"), record)
    assert [len(s["grid"]) for s in (fixed, drifted)] == [4, 4]
    shown = [s["pixels"].reshape(4, -1).mean(1).round() for s in (fixed, drifted)]
    assert shown[0].tolist() == pytest.approx([0, 30, 60, 90], abs=2)
    assert shown[1].tolist() == pytest.approx([0, 29, 58, 87], abs=2)
