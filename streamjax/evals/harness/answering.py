"""A video LLM answers a question about a stretch of a video, in one turn and greedily.

The prompt goes through the programs of a stream: frame by frame into the cache, then the words. So
a fixed number of programs is compiled for a size of frames, however many of them a question has;
and the answer is that of one forward over the whole prompt, which causal attention makes the same.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.data import chat
from streamjax.data.dialogue import STATES
from streamjax.data.tokenizer import load_tokenizer
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Polling, Question
from streamjax.evals.harness import footage
from streamjax.evals.harness.footage import Look
from streamjax.models.vlm import VideoLM
from streamjax.stream.book import Book, Policy, Work
from streamjax.stream.engine import RINGS, Engine
from streamjax.stream.features import FrameReader
from streamjax.stream.session import format_of


class Answerer:
    """Answers questions with a model.

    videos: the folder that questions' videos lie in; no path leaves it. look: which frames. most:
    tokens of an answer, None is the question's own number. tokenizer: the object; default is the
    folder's own. pictures_fps: of videos that are folders of pictures.

    Raises InputError for a model that has no words, no tokenizer or no image processor.
    """

    def __init__(
        self,
        model: Any,
        videos: Path,
        *,
        look: Look | None = None,
        most: int | None = None,
        tokenizer: Any = None,
        pictures_fps: float | int = 1.0,
    ):
        if not isinstance(model, VideoLM):
            raise InputError(f"a {type(model).__name__} has no words; wanted a video LLM")
        if tokenizer is None and model.assets.tokenizer is None:
            raise InputError("the model's folder has no tokenizer, which questions need")
        if FrameReader(model).processor is None:
            raise InputError("the model's folder has no preprocessor_config.json, wanted one")
        self.model, self.videos = model, videos
        self.look, self.most = look or Look(), most
        self.pictures_fps = pictures_fps
        self.tokenizer = tokenizer or _tokenizer_of(model.assets.tokenizer)
        self.format = format_of(model)
        end, pad = chat.end_id(self.tokenizer), self.tokenizer.pad_token_id
        self.stop_ids = (end,) if pad in (None, end) else (end, pad)
        try:
            self.state_ids = chat.state_ids(self.tokenizer)
        except InputError:  # a model that knows no states: nobody looks at their probabilities
            self.state_ids = (end, end, end)

    def __call__(self, asked: Question | Polling) -> Any:
        """The answer: text, or of a Polling whatever it makes of its answers.

        Raises InputError for a video that is missing or broken, for words that cannot be asked,
        and for more frames than the model can take.
        """
        if isinstance(asked, Polling):
            return asked.drive(self)
        rate = asked.pictures_fps or self.pictures_fps
        with footage.opened(self.videos, asked.video, pictures_fps=rate) as video:
            indices = footage.chosen(video, asked, self.look)
            said = self.answer(video.read(indices), len(indices), asked)
        return said if asked.kept is None else asked.kept(said)

    def answer(self, frames: Iterable[Any], count: int, question: Question) -> str:
        """The model's words for `count` frames, which are taken one by one; a state in front of
        the words is left out.

        Raises InputError before the second frame is taken where they are more than the model takes.
        """
        coming = iter(frames)
        reader = FrameReader(self.model)
        pixels, grid = reader(next(coming))
        (visual,) = self.model.visual_tokens([grid])
        tokens = self.prompt(question, count, visual)
        most = self.most or question.max_new_tokens
        need, limit = len(tokens) + most + 2, self.model.config.decoder.max_position_embeddings
        if need > limit:
            raise InputError(
                f"{count} frames and the words are {len(tokens)} tokens, the model takes {limit} "
                "with the answer: take fewer frames"
            )
        capacity = next((ring for ring in RINGS if ring >= need), need)
        engine = Engine(
            self.model, rows=1, grid=grid, capacity=capacity, sink_slots=0, tower_window=None,
            state_ids=self.state_ids, stop_ids=self.stop_ids, max_new_tokens=most,
        )  # fmt: skip
        # The engine asks it how much is in the cache; what is read and said is this function's.
        book = Book(
            Policy("full"), tokenizer=None, format=self.format, system="", close=self.stop_ids[0],
            fps=1,
        )  # fmt: skip
        ends = np.flatnonzero(np.asarray(tokens) == engine.placeholder)[visual - 1 :: visual] + 1
        start = 0
        for i, stop in enumerate(ends.tolist()):
            # With the last frame the cache makes room for the words behind it.
            book.end = stop if i < count - 1 else len(tokens)
            shown = pixels if i == 0 else reader(next(coming))[0]
            engine.turn({0: book}, {0: shown}, {0: Work(tokens[start:stop])})
            start = stop
        engine.read(0, tokens[start:-1])
        said = engine.speak({0: tokens[-1]})[0]
        text = self.tokenizer.decode(said)
        for state in STATES:
            if text.lstrip().startswith(state):
                return text.lstrip().removeprefix(state).lstrip()
        return text

    def prompt(self, question: Question, frames: int, visual: int) -> list[int]:
        """One turn in the model's own format, up to where the answer goes on.

        Frames come before the words, or in the place of as many `<image>` in them. Raises
        InputError for another number of these, and for words that would end the turn.
        """
        words = question.prompt
        marks = words.count(chat.IMAGE)
        if marks and marks != frames:
            raise InputError(
                f"{frames} frames for {marks} {chat.IMAGE} in the words, wanted one each"
            )
        user = words if marks else f"{chat.IMAGE * frames}\n{words}"
        system = question.system or self.format.system
        chat.check_words(system, "the system prompt")
        chat.check_words(question.prefix, "the answer's beginning")
        head = chat.opening(self.tokenizer, system).tolist()
        turn = chat.turn_chunk(
            self.tokenizer, user, visual, format=self.format, first=not head
        ).tolist()
        begun: list[int] = []
        if question.prefix:
            begun = self.tokenizer(question.prefix, add_special_tokens=False)["input_ids"]
        return [*head, *turn, *begun]


_tokenizer_of = functools.lru_cache(maxsize=4)(load_tokenizer)
