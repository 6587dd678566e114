"""Our models inside lmms-eval, to cross-check the benchmarks that it has too. Nothing needs this.

    pip install streamjax[lmms-eval]
    lmms-eval --model streamjax --model_args pretrained=MODEL,frames=16 --tasks videomme

lmms-eval finds `manifest` through the entry point `lmms_eval.models`, and by it `Streamjax`, which
is made when it is asked for: its base is lmms-eval's. Its tasks bring their own prompts and scores;
ours with the same rules are in `evals.benchmarks`. specs/benchmarks.md section 14.
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamjax.errors import InputError

NAME = "streamjax"
IMAGE = "<image>"


def manifest() -> Any:
    """What lmms-eval wants to know of a model: its name, and where its class is.

    Raises InputError for an lmms-eval that has no registry of manifests.
    """
    try:
        registry = importlib.import_module("lmms_eval.models.registry_v2")
    except ModuleNotFoundError as error:
        raise InputError(f"no {error.name}; wanted lmms-eval 0.7: streamjax[lmms-eval]") from None
    return registry.ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.Streamjax")


def __getattr__(name: str) -> Any:
    if name != "Streamjax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _model_class()


@functools.cache
def _model_class() -> type:
    base = importlib.import_module("lmms_eval.api.model").lmms
    own = {"__module__": __name__, "__doc__": Requests.__doc__, "is_simple": False}
    return type("Streamjax", (Requests, base), own)


class Requests:
    """A video LLM that answers lmms-eval's requests one by one, greedily.

    pretrained: a training run, a Hugging Face folder, or a hub id. frames: so many of each video,
    each in the middle of its share; fps: one each 1/fps seconds instead. batch_size, device and
    max_batch_size come from lmms-eval's command line: a batch other than 1 is refused, JAX chooses
    the device.

    Raises InputError for a model without words, and for arguments that cannot be used.
    """

    task_dict: Mapping[str, Any]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str,
        frames: int = 16,
        fps: float | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        del max_batch_size, device
        if str(batch_size) != "1":
            raise InputError(f"--batch_size {batch_size}: requests go one by one, wanted 1")
        if frames < 1:
            raise InputError(f"frames={frames}: wanted at least 1")
        from streamjax.evals.harness.answering import Answerer
        from streamjax.evals.harness.footage import Look
        from streamjax.folders import load

        self.look = Look(fps=float(fps)) if fps else Look(frames=frames)
        self.answerer = Answerer(load(pretrained), Path())

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, in their order."""
        answers = []
        for request in requests:
            context, to_messages, options, number, task, split = request.args
            said = self.reply(to_messages(self.task_dict[task][split][number]), options)
            self.cache_hook.add_partial("generate_until", (context, options), said)
            answers.append(said)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Not offered: chat models are asked for text alone."""
        raise NotImplementedError("streamjax answers in words, it has no likelihoods for lmms-eval")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """Not offered: such tasks are ours to run."""
        raise NotImplementedError("for several rounds: streamjax eval MODEL ovo_bench")

    def reply(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The model's words to one message, with the media where they stand in it.

        Raises InputError for several turns, for sound, and for answers drawn by chance.
        """
        from streamjax.evals.benchmarks.benchmark import Question

        if options.get("do_sample") or (options.get("temperature") or 0) > 0:
            raise InputError(f"decoding {dict(options)}: answers are greedy, wanted temperature 0")
        system, content = _one_turn(messages)
        frames: list[Any] = []
        words: list[str] = []
        for part in content:
            if part["type"] == "text":
                words.append(part["text"])
                continue
            shown = self.pictures(part)
            frames += shown
            words.append(IMAGE * len(shown))
        if not frames:
            raise InputError("the request has no picture, wanted one or a video")
        texts = [part["text"] for part in content if part["type"] == "text"]
        # Some tasks write themselves where their pictures go.
        own = sum(text.count(IMAGE) for text in texts)
        prompt = "\n".join(texts if own and own == len(frames) else words)
        most = int(options.get("max_new_tokens") or 128)
        question = Question("", "", prompt, system=system, max_new_tokens=most)
        said = self.answerer.answer(frames, len(frames), question)
        stops = options.get("until") or ()
        for stop in [stops] if isinstance(stops, str) else stops:
            said = said.split(stop)[0] if stop else said
        return said

    def pictures(self, part: Mapping[str, Any]) -> list[Any]:
        """The pictures of a part of a message: one, or frames of a video."""
        from streamjax.evals.benchmarks.benchmark import Question
        from streamjax.evals.harness import footage

        if part["type"] == "image":
            return [_picture(part["url"])]
        if part["type"] != "video":
            raise InputError(f"a part of the request is {part['type']!r}, wanted text and pictures")
        path = Path(str(part["url"])).absolute()
        start, end = part.get("start_time") or 0.0, part.get("end_time")
        whole = Question("", path.name, "", start=start, end=end)
        with footage.opened(path.parent, path.name) as video:
            return list(video.read(footage.chosen(video, whole, self.look)))


def _one_turn(messages: Sequence[Mapping[str, Any]]) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The system's words and what the user says; InputError for more turns than that."""
    spoken = [message for message in messages if message["role"] != "system"]
    if len(spoken) != 1 or spoken[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"a request of several turns ({roles}), wanted one; set num_fewshot to 0")
    systems = [message["content"] for message in messages if message["role"] == "system"]
    texts = [said if isinstance(said, str) else said[0]["text"] for said in systems]
    content = spoken[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "\n".join(texts), parts


def _picture(found: Any) -> Any:
    """A picture's file, or a picture, as numbers."""
    if isinstance(found, str | Path):
        from streamjax.data.annotations.masks import read_picture

        return read_picture(found, "RGB")
    return np.asarray(found.convert("RGB"))
