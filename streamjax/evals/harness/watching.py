"""A streaming model watches a benchmark's video, frame by frame, and is heard when it speaks."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamjax.data.dialogue import RESPONSE, SILENCE
from streamjax.evals.benchmarks.benchmark import Watching
from streamjax.evals.harness import footage
from streamjax.stream import StreamBatch
from streamjax.stream.trace import tracing


@dataclass
class Watcher:
    """Watches with a model, a real stream for each item.

    videos: the folder that the items' videos lie in; no path leaves it. fps: frames a second.
    policy, window, every: what is remembered (sj.Stream). most: tokens of an answer, None is the
    item's own number. traces: a folder for a trace of each item, from which decisions can be made
    again; None writes none. pictures_fps: of videos that are folders of pictures.
    """

    model: Any
    videos: Path
    fps: float | int = 1.0
    policy: str = "session"
    window: int | None = None
    every: int = 1
    most: int | None = None
    traces: Path | None = None
    tokenizer: Any = None
    pictures_fps: float | int = 1.0

    def __call__(self, asked: Watching) -> list[list[Any]]:
        """[second of the turn, its state and words] of all turns but silent ones.

        No frame of the item's end or later is decoded. Raises InputError for a video that is
        missing or broken, and for words that cannot be asked.
        """
        batch = StreamBatch(
            self.model, slots=1, policy=self.policy, window=self.window, every=self.every,
            tokenizer=self.tokenizer, max_new_tokens=self.most or asked.max_new_tokens,
        )  # fmt: skip
        stream = batch.join(system=asked.system, fps=self.fps, speaks_from=asked.speaks_from)
        for second, words in asked.asks:
            stream.ask(words, at=second)
        said: list[list[Any]] = []
        with contextlib.ExitStack() as files:
            video = files.enter_context(
                footage.opened(self.videos, asked.video, pictures_fps=self.pictures_fps)
            )
            tell = None
            if self.traces is not None:
                path = self.traces / f"{footage.file_name(asked.id)}.jsonl"
                tell = files.enter_context(tracing(path, stream))
            for frame in video.read(footage.watched(video, self.fps, asked.end)):
                turn = stream.push(frame)
                if tell is not None:
                    tell(turn)
                if turn.state != SILENCE:
                    said.append([turn.time, f"{turn.state} {turn.text}".strip()])
                if turn.state == RESPONSE and asked.until == "response":
                    break
        return said
