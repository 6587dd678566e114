"""What a video LLM is trained on: Streamo's records as dialogues with their frames, in rows.

A dialogue is as long as its video; a row has one shape, whatever lies in it. Everything that
depends on the frames' sizes is made here, by numpy: positions, and the index arrays of the tower.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data.annotations.streamo import Record, read_records
from streamjax.data.chat import IGNORE, ChatFormat, encode
from streamjax.data.dialogue import num_turns, to_image, to_stream
from streamjax.data.positions import mrope_positions
from streamjax.data.processors import InternVLImageProcessor, QwenImageProcessor
from streamjax.data.processors.plans import PlanShape, needed, plan_arrays
from streamjax.data.video import video
from streamjax.errors import InputError

Sample = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Pictures as Qwen's towers take them: patches, a plan of index arrays, M-RoPE positions.

    image_id: the placeholder. window, table: of `plan_arrays`. shape: what a row has room for.
    """

    image_id: int
    window: int | None = None
    table: int | None = None
    shape: PlanShape


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Pictures as InternVL's tower takes them: at most `most` tiles in a row."""

    most: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Dialogues side by side, at most `dialogues` of them, in rows of one shape.

    length: tokens of a row. merge: merge x merge patches are one visual token.
    """

    length: int
    pictures: Patches | Tiles
    merge: int = 2
    dialogues: int = 1

    def lack(self, tokens: int, grid: np.ndarray) -> str:
        """What of these tokens and pictures [n 3] no row has room for; empty where all fits."""
        wants = [("tokens", tokens, self.length)]
        if isinstance(self.pictures, Tiles):
            wants.append(("frames", len(grid), self.pictures.most))
        else:
            p, room = self.pictures, self.pictures.shape
            need = needed(grid, merge=self.merge, window=p.window, table=p.table)
            wants += [
                ("frames", need.slices, room.slices),
                ("patches", need.patches, room.patches),
                ("patches in a frame", need.slice_size, room.slice_size),
                ("windows", need.windows, room.windows),
            ]
        over = [f"{found} {name}, wanted at most {most}" for name, found, most in wants
                if found > most]  # fmt: skip
        return "; ".join(over)

    def fits(self, samples: Sequence[Sample]) -> bool:
        """Whether these dialogues share a row."""
        if len(samples) > self.dialogues:
            return False
        grid = np.concatenate([s["grid"] for s in samples])
        return not self.lack(sum(len(s["tokens"]) for s in samples), grid)

    def row(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Samples of `Dialogues` -> one row.

        tokens, labels, segments int32 [l]: segments number the dialogues, -1 behind them. pixels
        uint8 [tiles 3 h w]; or of patches: pixels [p 3 d], positions int32 [3 l], and the arrays of
        the tower's plan, `plan_` before their names.
        """
        tokens, labels, segments = (
            np.full(self.length, fill, np.int32) for fill in (0, IGNORE, -1)
        )
        start = 0
        for number, sample in enumerate(samples):
            stop = start + len(sample["tokens"])
            tokens[start:stop], labels[start:stop] = sample["tokens"], sample["labels"]
            segments[start:stop] = number
            start = stop
        row = {"tokens": tokens, "labels": labels, "segments": segments}
        pixels = [s["pixels"] for s in samples]
        p = self.pictures
        if isinstance(p, Tiles):
            return row | {"pixels": _padded(pixels, p.most)}
        grid = np.concatenate([s["grid"] for s in samples])
        positions, _ = mrope_positions(
            tokens[None], grid, image_id=p.image_id, merge=self.merge,
            mask=segments[None] >= 0, segments=segments[None],
        )  # fmt: skip
        plan = plan_arrays(
            grid, merge=self.merge, window=p.window, table=p.table, shape=p.shape
        )  # fmt: skip
        return (
            row
            | {"pixels": _padded(pixels, p.shape.patches), "positions": positions[:, 0]}
            | {f"plan_{name}": array for name, array in plan.items()}
        )


@dataclass
class Dialogues:
    """Record -> {"tokens", "labels" int32 [l], "pixels" uint8 [n ...], "grid" int32 [images 3]}.

    One frame a second, each a picture of its own; the system prompt is the published one. pixels
    are the processor's `frame_bytes`, normalised on the device. parity: of `to_stream` and of the
    choice of frames. InputError, before all of a video is decoded: a missing or broken video, one
    without a whole second, a dialogue that does not fit a row of `rows`, which names the video.
    """

    tokenizer: Any
    processor: QwenImageProcessor | InternVLImageProcessor
    format: ChatFormat
    rows: Rows
    parity: str = "fixed"

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng  # nothing is drawn: a dialogue is its record
        released = self.parity == "upstream"
        shown = video(record.video, fps=1, rule="train" if released else "time")
        assert shown.info is not None  # a file has one
        turns = num_turns(shown.info.fps, shown.info.frames, parity=self.parity)
        if turns < 1:
            raise InputError(
                f"{record.video}: {shown.info.duration:.2f} s give 0 frames at 1 fps, wanted at "
                "least one"
            )
        dialogue = to_stream(record.content, turns, parity=self.parity)
        frames = iter(shown)
        first = next(frames)
        _, cell = self.processor.frame_bytes(first)
        grid = np.array([cell] * turns, np.int32)
        encoded = encode(
            self.tokenizer,
            [{**m, "content": m["content"].replace("<stream>", "<image>")}
             for m in dialogue["messages"]],
            int(np.prod(cell)) // self.rows.merge**2,
            format=self.format,
        )  # fmt: skip
        if lack := self.rows.lack(len(encoded.tokens), grid):
            raise InputError(f"{record.video}: {turns} seconds are {lack}")
        images = [first, *itertools.islice(frames, turns - 1)]
        fitted = to_image(dialogue, images, parity=self.parity)
        if fitted is None:  # the released code discards such a sample without a word
            raise InputError(f"{record.video}: {len(images)} frames for {turns} turns")
        pixels = [self.processor.frame_bytes(image)[0] for image in fitted["images"]]
        return {
            "tokens": encoded.tokens,
            "labels": encoded.labels,
            "pixels": np.concatenate(pixels),
            "grid": grid,
        }


def read_all(annotations: str | Path, *, root: str | Path) -> list[Record]:
    """The records of an annotation file, or of every .json file of a folder, by name.

    root: the folder that the videos' paths are relative to. FileNotFoundError: no such file, or
    none in the folder. InputError as `read_records`.
    """
    path = Path(annotations)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        found = "no .json file in it" if path.is_dir() else "missing"
        raise FileNotFoundError(f"{annotations}: {found}, wanted Streamo's annotations")
    return [record for file in files for record in read_records(file, root=root)]


def _padded(pieces: Sequence[np.ndarray], rows: int) -> np.ndarray:
    out = np.zeros((rows, *pieces[0].shape[1:]), pieces[0].dtype)
    np.concatenate(pieces, out=out[: sum(map(len, pieces))])
    return out
