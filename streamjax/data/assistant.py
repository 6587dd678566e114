"""Samples for an assistant's training: one clip, and several dialogues about it.

Dialogues about one clip contrast ("turns red" against "turns green"), and share the cost of looking
at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data.annotations.files import BadRow
from streamjax.data.annotations.streamo import Record, read_records
from streamjax.data.chat import IGNORE, LLAVA, Encoded, encode, state_ids
from streamjax.data.dense import clip_frames
from streamjax.data.dialogue import to_stream
from streamjax.data.video import probe

SYSTEM_PROMPT = "Watch."  # the demo's; three tokens instead of the published prompt's 191


@dataclass(frozen=True)
class ClipRecords:
    """A video file and the raw records about it."""

    video_path: Path
    records: tuple[Record, ...]


def read_clips(
    file: str | Path, *, root: str | Path, bad: list[BadRow] | None = None
) -> list[ClipRecords]:
    """The records of a Streamo annotation file, grouped by video, in the file's order.

    bad: where records that cannot be used go; without it the first one raises InputError.
    """
    grouped: dict[Path, list[Record]] = {}
    for record in read_records(file, root=root, bad=bad):
        grouped.setdefault(record.video, []).append(record)
    return [ClipRecords(path, tuple(records)) for path, records in grouped.items()]


def messages_of(
    record: Record,
    turns: int,
    system_prompt: str = SYSTEM_PROMPT,
    *,
    fps: float | int = 1,
    question_at_start: bool = True,
) -> list[dict]:
    """The dialogue of a record as chat messages, one `<image>` per turn; see `to_stream`."""
    stream = to_stream(
        record.content, turns, system_prompt=system_prompt, fps=fps,
        question_at_start=question_at_start,
    )  # fmt: skip
    return [
        {**message, "content": message["content"].replace("<stream>", "<image>")}
        for message in stream["messages"]
    ]


@lru_cache(maxsize=65536)
def turns_in(path: Path) -> int:
    """How many seconds of a video are turns of a dialogue at 1 fps; a file is opened once."""
    return int(probe(path).duration)


@dataclass
class DialogueSamples:
    """Clip -> {"frames" uint8 [t h w 3], "tokens" and "labels" int32 [k l]}.

    `dialogues` records of the clip are drawn for every sample; frames and rows are padded to
    `frames` and `length` (the last frame repeated, token 0, label -100). Longer ones raise, and so
    are skipped and counted by the pipeline. `visual` is the number of tokens of a frame.

    `history_noise` is the share of past Silences and Standbys that are drawn anew in what the model
    reads (never in what it is asked for). Without it a model copies the state of the second before
    and learns next to nothing about which event was asked for.

    `contrast` draws the dialogues of a sample from one kind of instruction, with different targets
    ("turns red" beside "turns green"), as far as the clip has them.
    """

    tokenizer: Any
    frames: int
    length: int
    dialogues: int
    visual: int
    history_noise: float = 0.0
    contrast: bool = False

    def __post_init__(self):
        self._encoded: dict[str, Encoded] = {}

    def __call__(self, clip: ClipRecords, rng: np.random.Generator) -> dict[str, np.ndarray]:
        turns = turns_in(clip.video_path)
        if turns > self.frames:
            raise ValueError(f"{turns} seconds, wanted at most {self.frames}")
        chosen = rng.permutation(len(clip.records))
        if self.contrast:
            kinds = [record.content.get("kind") for record in clip.records]
            # A stable sort: those of the first one's kind come first, in the order drawn.
            chosen = np.array(sorted(chosen, key=lambda i: kinds[i] != kinds[chosen[0]]))
        chosen = chosen[: self.dialogues]
        chosen = np.resize(chosen, self.dialogues)  # a clip with few records repeats them
        tokens = np.zeros((self.dialogues, self.length), np.int32)
        labels = np.full_like(tokens, IGNORE)
        for row, index in enumerate(chosen):
            encoded = self.encode(clip.records[index], turns)
            size = len(encoded.tokens)
            if size > self.length:
                raise ValueError(f"{size} tokens, wanted at most {self.length}")
            tokens[row, :size] = encoded.tokens
            labels[row, :size] = encoded.labels
            self._blur(tokens[row], labels[row], rng)
        return {
            "frames": clip_frames(clip.video_path, self.frames),
            "tokens": tokens,
            "labels": labels,
        }

    def _blur(self, tokens: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
        """Draws some of the Silences and Standbys among the answers anew, in place."""
        quiet = state_ids(self.tokenizer)[:2]
        here = np.isin(tokens, quiet) & (labels != IGNORE)
        here &= rng.random(len(tokens)) < self.history_noise
        tokens[here] = rng.choice(quiet, here.sum())

    def encode(self, record: Record, turns: int) -> Encoded:
        """The record's tokens; made once and kept, for later epochs cost nothing then."""
        if record.where not in self._encoded:
            messages = messages_of(record, turns)
            encoded = encode(self.tokenizer, messages, self.visual, format=LLAVA)
            self._encoded[record.where] = encoded
        return self._encoded[record.where]


def longest(samples: DialogueSamples, clips: Sequence[ClipRecords], multiple: int = 16) -> int:
    """The length that every dialogue of `clips` fits into, rounded up to a multiple."""
    size = max(
        len(samples.encode(record, turns_in(clip.video_path)).tokens)
        for clip in clips
        for record in clip.records
    )
    return -(-size // multiple) * multiple
