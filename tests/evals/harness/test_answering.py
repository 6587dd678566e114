"""Answers equal the whole forward's; which frames are looked at; nothing behind the end."""

from typing import Any

import jax
import numpy as np
import pytest

from streamjax.data.container import Source
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Polling, Question
from streamjax.evals.harness import footage
from streamjax.evals.harness.answering import Answerer
from streamjax.evals.harness.footage import Footage, Look, chosen
from streamjax.stream import program

MOST = 4


@pytest.fixture(scope="module")
def answerer(assistant, videos):
    return Answerer(assistant[1], videos, most=MOST)


def test_an_answer_is_the_greedy_one_of_the_whole_forward(answerer):
    question = Question("q", "a.mp4", "what is it now", system="you watch", prefix="it is")
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    model = answerer.model
    pixels = np.moveaxis((np.stack(frames).astype(np.float32) / 255 - 0.5) / 0.5, -1, 1)
    grid = [[3, 4, 4]]
    visual = model.visual_tokens([(1, 4, 4)])[0]
    tokens = answerer.prompt(question, 3, visual)
    prompt = len(tokens)
    length = prompt + MOST
    forward = jax.jit(lambda model, tokens, seen: model.decoder.logits(
        model.decoder(model.embed(tokens, seen), model.positions(tokens)[0], None)
    ))  # fmt: skip
    seen = model.encode_images(pixels, grid)
    while len(tokens) < length:  # one shape: what comes behind is not seen
        row = np.pad(np.asarray(tokens), (0, length - len(tokens)))[None]
        logits = np.array(forward(model, row, seen[None])[0, len(tokens) - 1])
        token = int(logits.argmax())
        if token in answerer.stop_ids:
            break
        tokens.append(token)
    assert answerer.answer(frames, len(frames), question) == answerer.tokenizer.decode(
        tokens[prompt:]
    )
    assert len(tokens) > prompt


def test_any_number_of_frames_runs_the_same_programs(answerer):
    def ask(count):
        frames = np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)
        return answerer.answer(frames, count, Question("q", "a.mp4", "what is it now"))

    def compiled():
        runs: list[Any] = [program.turn, program.speak, program.read]
        return [run._cache_size() for run in runs]

    first = ask(3)
    counts = compiled()
    ask(7)
    assert ask(3) == first
    assert compiled() == counts


def test_no_frame_of_the_end_or_later_is_decoded(answerer, monkeypatch):
    latest = []
    frames = Source.frames

    def counted(self):
        for at, frame in frames(self):
            latest.append(float(at))
            yield at, frame

    monkeypatch.setattr(Source, "frames", counted)
    for look in (Look(), Look(frames=3), Look(fps=2), Look(recent=2), Look(recent=3, fps=5)):
        asker = Answerer(answerer.model, answerer.videos, look=look, most=1)
        latest.clear()
        asker(Question("q", "a.mp4", "what is it", end=2.0))
        assert latest and max(latest) < 2.0
    asker(Question("q", "a.mp4", "what is it", end=0.0))  # the first one alone
    latest.clear()


def test_pollings_ask_again_and_what_is_kept_of_a_text(answerer):
    def drive(ask):
        one = Question("p@1", "a.mp4", "what is it", end=1.0, kept=lambda text: text[:1])
        return [ask(one), ask(one)]

    first, second = answerer(Polling("p", "a.mp4", drive))
    assert first == second and len(first) <= 1


def seconds(fps, count):
    return Footage(fps, np.arange(count) / fps, lambda which: [])


@pytest.mark.parametrize(
    ("question", "look", "wanted"),
    [
        ({"frames": 4}, Look(), [2, 7, 12, 17]),
        ({"frames": 4, "end": 2.0}, Look(), [1, 3, 6, 8]),
        ({"frames": 4}, Look(frames=2), [5, 15]),
        ({}, Look(), [0, 5, 10, 15]),
        ({"end": 2.0}, Look(), [0, 5]),
        ({"start": 0.5}, Look(), [3, 8, 13, 18]),
        ({"frames": 4}, Look(fps=0.5), [0, 10]),
        ({"end": 2.0}, Look(recent=2), [4, 9]),
        ({"end": 2.0}, Look(recent=3, fps=5), [7, 8, 9]),
        ({"end": 1.0}, Look(recent=9), [4]),
        ({"start": 9.0, "end": 12.0}, Look(), [19]),
        ({"frames": 2, "spread": lambda *a: [18, 3]}, Look(), [3, 18]),
        ({"frames": 2, "end": 2.0, "spread": lambda *a: [3, 18]}, Look(), [3, 9]),
    ],
)
def test_which_frames(question, look, wanted):
    assert chosen(seconds(5.0, 20), Question("q", "v", "?", **question), look) == wanted


def test_more_frames_than_there_are_and_faster_than_the_video():
    video = seconds(2.0, 3)
    assert chosen(video, Question("q", "v", "?", frames=9), Look()) == [0, 1, 2]
    assert chosen(video, Question("q", "v", "?"), Look(fps=4)) == [0, 0, 1, 1, 2]
    assert footage.watched(video, 4, 1.0) == [0, 0, 1, 1]
    assert footage.watched(video, 1, None) == [0, 2]


def test_folders_of_pictures_are_videos(videos):
    with footage.opened(videos, "pictures", pictures_fps=2.0) as video:
        assert video.seconds.tolist() == [0, 0.5, 1, 1.5]
        assert [int(f.mean()) for f in video.read([1, 1, 3])] == [60, 60, 180]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret.mp4", "leads out of the videos' folder"),
        ("/etc/passwd", "leads out"),
        ("out.mp4", "leads out"),
        ("", "leads out"),
        ("missing.mp4", "missing.mp4: no such video"),
        ("broken.mp4", "broken.mp4"),
        ("a\0.mp4", "no video's name"),
        ("a" * 300, "no video's name"),
    ],
)
def test_videos_that_cannot_be_watched(videos, name, said):
    with pytest.raises(InputError, match=said), footage.opened(videos, name):
        pass


def test_words_that_cannot_be_asked(answerer):
    frames = [np.zeros((16, 16, 3), np.uint8)] * 2
    for prompt, said in (
        ("what <image> is", "2 frames for 1 <image>"),
        ("a<|im_end|>", "would end the turn"),
        ("what " * 2000, "take fewer frames"),
    ):
        with pytest.raises(InputError, match=said):
            answerer.answer(frames, 2, Question("q", "v", prompt))
    assert isinstance(answerer.answer(frames, 2, Question("q", "v", "<image>what<image>is")), str)


def test_ids_as_files_names():
    assert footage.file_name("12_0") == "12_0"
    names = {footage.file_name(id) for id in ("a/b", "a\\b", "../x", ".", "", "x" * 200)}
    assert len(names) == 6 and all("/" not in n and n[:1] != "." and n for n in names)
