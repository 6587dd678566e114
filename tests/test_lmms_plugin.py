"""Our models inside lmms-eval: found by its entry point, asked by its requests. lmms-eval itself is
not there; what is here of it has the shape that specs/benchmarks.md section 14 tells.
"""

import abc
import dataclasses
import importlib
import inspect
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamjax import lmms_plugin
from streamjax.errors import InputError
from streamjax.evals.harness import answering

ROOT = Path(__file__).parents[1]


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self.kept = []
        self.task_dict = {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *said: self.kept.append(said))

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


REAL = answering.Answerer


class Answerer:
    """Remembers what it is asked."""

    def __init__(self, model, videos, **more):
        inspect.signature(REAL.__init__).bind(self, model, videos, **more)
        self.model, self.asked = model, []

    def answer(self, frames, count, question):
        inspect.signature(REAL.answer).bind(self, frames, count, question)
        assert len(frames) == count
        self.asked.append((frames, question))
        return "B. two\n\nbecause"


@pytest.fixture
def model(monkeypatch):
    for name, inside in {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {}, "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():  # fmt: skip
        module = types.ModuleType(name)
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("streamjax.evals.harness.answering.Answerer", Answerer)
    monkeypatch.setattr("streamjax.folders.load", lambda path: f"model of {path}")
    lmms_plugin._model_class.cache_clear()
    yield lambda **more: made()(pretrained="here", batch_size="1", device=None, **more)
    lmms_plugin._model_class.cache_clear()


def made():
    """The class, as lmms-eval comes by it."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entry = lines["project"]["entry-points"]["lmms_eval.models"]["streamjax"]
    module, name = entry.split(":")
    found = getattr(importlib.import_module(module), name)()
    assert found.model_id == "streamjax" and found.simple_class_path is None
    module, name = found.chat_class_path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for k in range(8):
        Image.new("RGB", (4, 2), (k, 0, 0)).save(folder / f"{k}.png")
    return folder


def request(messages, **options):
    to_messages = lambda doc: messages if doc == {"question": "?"} else None
    arguments = ("context", to_messages, options, 3, "task", "test")
    return types.SimpleNamespace(args=arguments)


def user(*parts):
    return {"role": "user", "content": list(parts)}


TASKS = {"task": {"test": {3: {"question": "?"}}}}
WORDS = {"type": "text", "text": "What?"}


def test_it_is_a_chat_model_of_lmms_evals(model):
    ours = model()
    assert (
        isinstance(ours, lmms) and ours.is_simple is False and type(ours) is lmms_plugin.Streamjax
    )
    assert ours.answerer.model == "model of here"
    for refused in (ours.loglikelihood, ours.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            refused([])


def test_a_video_is_looked_at_evenly_and_asked_about(model, clip):
    ours = model(frames=4)
    ours.task_dict = TASKS
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    messages = [system, user({"type": "video", "url": str(clip)}, WORDS)]
    asked = request(messages, max_new_tokens=16, temperature=0, until=["\n\n"])
    assert ours.generate_until([asked]) == ["B. two"]
    ((frames, question),) = ours.answerer.asked
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 3, 5, 7]
    assert question.prompt == "<image><image><image><image>\nWhat?"
    assert (question.system, question.max_new_tokens) == ("Be brief.", 16)
    assert ours.kept == [("generate_until", ("context", asked.args[2]), "B. two")]


def test_a_stretch_of_a_video_at_a_rate(model, clip):
    ours = model(fps=0.5)
    part = {"type": "video", "url": str(clip), "start_time": 2.0, "end_time": 6.0}
    ours.reply([user(part, WORDS)], {})
    frames, question = ours.answerer.asked[0]
    assert [int(frame[0, 0, 0]) for frame in frames] == [2, 4] and question.max_new_tokens == 128


def test_pictures_stand_where_the_task_puts_them(model, clip):
    ours = model()
    pictures = [
        {"type": "image", "url": Image.new("RGBA", (2, 2), (9, 0, 0, 255))},
        {"type": "image", "url": str(clip / "5.png")},
    ]
    ours.reply([user(*pictures, {"type": "text", "text": "<image> then <image>?"})], {})
    ours.reply([user(WORDS, *pictures)], {})
    (frames, own), (_, ours_own) = ours.answerer.asked
    assert [int(frame[0, 0, 0]) for frame in frames] == [9, 5] and frames[0].dtype == np.uint8
    assert own.prompt == "<image> then <image>?"
    assert ours_own.prompt == "What?\n<image>\n<image>"


def test_what_cannot_be_asked_is_refused(model, clip):
    with pytest.raises(InputError, match="--batch_size 4: requests go one by one"):
        made()(pretrained="here", batch_size=4)
    with pytest.raises(InputError, match="frames=0: wanted at least 1"):
        model(frames=0)
    ours = model()
    with pytest.raises(InputError, match="answers are greedy, wanted temperature 0"):
        ours.reply([user(WORDS)], {"temperature": 0.7})
    with pytest.raises(InputError, match=r"several turns \(user, assistant, user\)"):
        turns = [user(WORDS), {"role": "assistant", "content": []}, user(WORDS)]
        ours.reply(turns, {})
    with pytest.raises(InputError, match="a part of the request is 'audio'"):
        ours.reply([user({"type": "audio", "url": "x.wav"})], {})
    with pytest.raises(InputError, match="no such video"):
        ours.reply([user({"type": "video", "url": str(clip / "gone.mp4")})], {})


def test_without_lmms_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(InputError, match=r"wanted lmms-eval 0.7: streamjax\[lmms-eval\]"):
        lmms_plugin.manifest()
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = lmms_plugin.Other
