"""`streamjax eval MODEL pretraining`: StreamFormer's six tasks."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from streamjax.errors import InputError
from streamjax.verbs.shared import Place, counting


@dataclass(frozen=True)
class _Asked:
    """The arguments of the verb by their names."""

    model: str
    data: Path
    split: str
    tasks: tuple[str, ...]
    limit: int | None
    probe: bool
    views: int
    frames: int | None
    batch_size: int
    max_bad: float
    tokenizer: Path | None


def eval_pretraining(
    model: Place[str],
    benchmark: Place[str],
    /,
    data: Path,
    split: str = "test",
    tasks: tuple[str, ...] = (),
    limit: int | None = None,
    probe: bool = False,
    views: int = 1,
    frames: int | None = None,
    batch_size: int = 8,
    max_bad: float = 0.01,
    tokenizer: Path | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Scores a model on StreamFormer's six tasks (top-1/5, R@1/5/10, mAP, IoU, J&F) and prints a
    table per task, with how many records there were. The model is a run of its pre-training, or a
    StreamFormer or SigLIP with a text tower, scored without any training.

    Example: streamjax eval runs/streamformer_world pretraining --data world/ --split test

    Example: streamjax eval siglip-base/ pretraining --data packed/ --tasks vis --out vis.json

    Args:
        model: A training run, a Hugging Face folder, or a hub id.
        benchmark: Its name: pretraining.
        data: Annotations and media, laid out as `streamjax world` writes them, or packed.
        split: The annotations' split.
        tasks: Of kinetics, ssv2, retrieval, grounding, localization, vis, refvos; without it all
            that the folder has.
        limit: So many records of each task, spread over all of them; retrieval gets easier.
        probe: Of recognition also a linear probe, fitted on the split "train".
        views: Clips of a video that recognition takes, and averages.
        frames: Frames of a clip; without it what the model was made for.
        batch_size: Clips looked at together.
        max_bad: The share of a task's records that may be unusable; they are told and left out.
        tokenizer: The text tower's tokenizer, where the model's folder has none.
        out: Write the scores there too, as JSON with everything that decided them.
        as_json: Print that JSON instead of the table.
    """
    from streamjax.evals import results

    counts = {"batch-size": batch_size, "views": views, "limit": limit, "frames": frames}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"--{name} {count}: wanted at least 1")
    if out is not None:  # before the work, which may take hours
        results.writable(out)
    asked = _Asked(
        model, data, split, tasks, limit, probe, views, frames, batch_size, max_bad, tokenizer
    )  # fmt: skip
    found, decided = _evaluated(asked)
    content = results.document(found, {"benchmark": benchmark, **decided})
    print(json.dumps(content, indent=2) if as_json else results.table(found))
    if out is not None:
        results.write(out, content)


def _evaluated(asked: _Asked) -> tuple[Sequence[Any], dict[str, Any]]:
    from streamjax.data.annotations.layout import annotation_files
    from streamjax.data.captions import CaptionTokenizer
    from streamjax.data.packed import MANIFEST
    from streamjax.data.tasks import NAMES, open_tasks
    from streamjax.evals import results
    from streamjax.evals.pretraining.evaluate import ZeroShot, evaluate
    from streamjax.folders import load_with_text

    unknown = [task for task in asked.tasks if task not in NAMES]
    if unknown:
        raise InputError(f"--tasks {unknown[0]!r}: wanted some of {', '.join(NAMES)}")
    model = load_with_text(asked.model)
    if isinstance(model, tuple):
        tower, side = model
        if side.logit_scale is None or side.logit_bias is None:
            raise InputError(
                f"{asked.model}: logit_scale or logit_bias is missing, wanted a whole SigLIP"
            )
        model = ZeroShot(tower, side.text, side.logit_scale, side.logit_bias)
    tower = model.tower
    home = asked.tokenizer or tower.assets.tokenizer
    if home is None:
        raise InputError(f"{asked.model}: no tokenizer; give SigLIP's folder as --tokenizer")
    tokens = CaptionTokenizer(home, length=model.text.config.max_position_embeddings)
    frames, size = asked.frames or tower.config.num_frames, tower.config.image_size

    def opened(split: str):
        given = {"tokens": tokens, "frames": frames, "size": size, "train": False}
        every = open_tasks(asked.data, split, **given)
        wanted = [NAMES[task] for task in asked.tasks] or list(every)
        missing = [task for task in wanted if task not in every]
        if missing:
            raise InputError(
                f"{asked.data}: no annotations of {missing[0]} in split {split!r}; wanted one of "
                f"{', '.join(every)}"
            )
        return {task: every[task] for task in wanted}

    chosen = opened(asked.split)
    training = None
    if asked.probe:
        kinds = {name: task.kind for name, task in chosen.items()}
        if "recognition" not in kinds.values():
            raise InputError("--probe: none of the tasks is recognition")
        training = opened("train")
    with _bars() as progress:
        found = evaluate(
            model, chosen, tokens, probe=training, views=asked.views, batch_size=asked.batch_size,
            limit=asked.limit, max_bad=asked.max_bad, progress=progress,
        )  # fmt: skip
    packed = asked.data / MANIFEST
    splits = [asked.split, *(["train"] if asked.probe else [])]
    files = {
        path
        for folder, name in NAMES.items()
        for split in splits
        if name in chosen
        for path in annotation_files(asked.data, folder, split)
    }
    return found, {
        "model": asked.model,
        "weights": results.weights_hash(
            [model.tower, model.text, model.logit_scale, model.logit_bias]
            if isinstance(model, ZeroShot)
            else model
        ),
        "data": str(asked.data),
        "annotations": results.files_hash([packed] if packed.is_file() else [*files], asked.data),
        "split": asked.split,
        "limit": asked.limit,
        "views": asked.views,
        "frames": frames,
        "size": size,
        "zero_shot": isinstance(model, ZeroShot),
    }


@contextlib.contextmanager
def _bars():
    """A function of (task, done, total) that shows one bar after the other."""
    with contextlib.ExitStack() as stack:
        shown: dict[str, Any] = {}

        def progress(task: str, done: int, total: int) -> None:
            if task not in shown:
                stack.close()  # a terminal shows one bar at a time
                shown[task] = stack.enter_context(counting(task, total))
            shown[task](done, total)

        yield progress
