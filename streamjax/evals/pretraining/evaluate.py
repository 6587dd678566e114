"""The six tasks of StreamFormer's pre-training on held-out records: a row of scores per data set.

A model is what was trained on them (`Pretraining`), or a tower beside a text tower that never saw
them (`ZeroShot`). Either way classes and captions are texts, and a clip, a frame or a patch is as
near to them as its feature's cosine says:

    recognition   the last frame's feature against the class features; top-1, top-5, and a linear
                  probe where training records are given
    retrieval     the last frame's feature against all captions of the data set, and back
    localization  every frame against every class; frame mAP and segment mAP
    grounding     every sentence against the frames of its own video; mIoU and R@1 IoU m
    segmentation  every annotated pixel takes the nearest of all classes but 0, the background
    referring     a pixel is the object's where the expression is nearer than Otsu's threshold of
                  the clip says, and nearer than every expression for other objects of the video

Patches are brought to the pixels of the frames by bilinear interpolation of their cosines, before
anything is compared. Frames, times and truth are those of `data/samples.py` without `train`: masks
are cut and sized as the frames are. Formulas: the files of this folder; docs/evaluation.md.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from streamjax.data.captions import CLASS_TEMPLATES, NAME_TEMPLATES, CaptionTokenizer
from streamjax.data.media import told_name
from streamjax.data.samples import Recognition
from streamjax.data.tasks import Task
from streamjax.errors import InputError
from streamjax.evals.pretraining import (
    grounding,
    localization,
    recognition,
    retrieval,
    segmentation,
)
from streamjax.evals.pretraining.held_out import HeldOut
from streamjax.evals.results import Result
from streamjax.models.pretraining import DensePath, Pretraining, TaskHead, class_features
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import StreamFormer

Progress = Callable[[str, int, int], Any]
_BANDS = 14  # pieces of a frame whose pixels are alive at a time


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """A tower and a text tower of one SigLIP: every task's head is as training would begin it."""

    tower: StreamFormer
    text: SiglipText
    logit_scale: float
    logit_bias: float


def evaluate(
    model: Pretraining | ZeroShot,
    tasks: Mapping[str, Task],
    tokens: CaptionTokenizer,
    *,
    probe: Mapping[str, Task] | None = None,
    views: int = 1,
    batch_size: int = 8,
    limit: int | None = None,
    max_bad: float = 0.01,
    threads: int = 2,
    progress: Progress | None = None,
) -> list[Result]:
    """Scores of every task, one result per data set of it.

    tasks: of `data.tasks.open_tasks(..., train=False)`. A task is answered by the model's head of
    the same name, or else by its only head of that kind. tokens: the model's. probe: the same tasks
    of the training split, for linear probes of recognition. views: clips that recognition takes of
    a video, their probabilities averaged (a probe is fitted on one of each). limit: so many records
    of each task, spread over all (retrieval's gallery shrinks with it, which makes it easier). A
    record that gives no sample is skipped, with the reason; max_bad: the share that may be.
    progress: called with (task, records done, records).

    InputError: a task that no head can answer, a tokenizer with more ids than the text tower has,
    towers of two widths, more bad records than max_bad.
    """
    if len(tokens) > model.text.config.vocab_size:
        raise InputError(
            f"{tokens.folder}: a tokenizer of {len(tokens)} ids, the text tower has "
            f"{model.text.config.vocab_size}: use the tokenizer that came with the model"
        )
    if model.text.config.width != model.tower.config.hidden_size:
        raise InputError(
            f"the text tower's features are {model.text.config.width} wide, the tower's "
            f"{model.tower.config.hidden_size}: take the two towers of one SigLIP"
        )
    results = []
    for name, task in tasks.items():

        def feed(task: Task, name: str = name, told: str = "", views: int = 1) -> HeldOut:
            return HeldOut(
                task.source(),
                functools.partial(_sample, task, views),
                batch_size,
                limit=limit,
                max_bad=max_bad,
                threads=threads,
                progress=None if progress is None else functools.partial(progress, name + told),
            )

        head = head_for(model, name, task.kind)
        run = _Run(model.tower, model.text, head, task, tokens, batch_size)
        held = feed(task, views=views if task.kind == "recognition" else 1)
        if task.kind == "recognition" and probe is not None and name in probe:
            found = _recognition(run, held, feed(probe[name], told=" (training clips)"))
        else:
            found = _KINDS[task.kind](run, held)
        results += [
            Result(name, dataset, task.kind, scores, n, unit, tuple(held.skipped))
            for dataset, (scores, n, unit) in found.items()
        ]
    return results


def head_for(model: Pretraining | ZeroShot, name: str, kind: str) -> TaskHead:
    """The head that answers a task. InputError when none does, or several might."""
    if isinstance(model, ZeroShot):
        return TaskHead(kind, (), model.tower, model.logit_scale, model.logit_bias)
    if name in model.heads and model.heads[name].kind == kind:
        return model.heads[name]
    able = [task for task, head in model.heads.items() if head.kind == kind]
    if len(able) == 1:
        return model.heads[able[0]]
    raise InputError(
        f"task {name} is {kind}, and the model has {', '.join(able) or 'no head'} of that kind: "
        "leave the task out, or name one of its heads so"
    )


# --- the kinds: data set -> (scores, n, unit) ----------------------------------------------------

Found = dict[str, tuple[dict[str, float | int], int, str]]


@dataclasses.dataclass
class _Run:
    """What a task is worked with."""

    tower: StreamFormer
    text: SiglipText
    head: TaskHead
    task: Task
    tokens: CaptionTokenizer
    batch_size: int

    def pooled(self, samples: Mapping[str, np.ndarray], records: Sequence[Any]) -> np.ndarray:
        """Features of frames [n t d], of the records of a batch."""
        return np.asarray(_pooled(self.tower, samples["frames"]))[: len(records)]

    def texts(self, ids: Int[np.ndarray, "n l"]) -> np.ndarray:
        """Unit features [n d] of rows of ids, a batch at a time."""
        found = []
        for start in range(0, len(ids), self.batch_size):
            part = ids[start : start + self.batch_size]
            padded = np.concatenate([part, part[-1:].repeat(self.batch_size - len(part), 0)])
            found.append(np.asarray(_texts(self.text, padded))[: len(part)])
        return _unit(np.concatenate(found))

    def classes(self) -> dict[str, np.ndarray]:
        """Features [c d] of the classes of every data set, in the order of their numbers."""
        templates = NAME_TEMPLATES if self.task.kind == "segmentation" else CLASS_TEMPLATES
        return {
            dataset: np.asarray(
                class_features(self.text, jnp.asarray(self.tokens.prompts(labels, templates)))
            )
            for dataset, labels in self.task.labels.items()
        }

    def logits(self, cosine: np.ndarray) -> np.ndarray:
        scale, bias = (float(a[...]) for a in (self.head.logit_scale, self.head.logit_bias))
        return np.exp(scale) * cosine.astype(np.float64) + bias

    def patches(self, samples: Mapping[str, np.ndarray]) -> Float[Array, "b t hp wp d"]:
        assert self.head.dense is not None  # of the kinds that ask
        return _patches(self.tower, self.head.dense, samples["frames"])


def _recognition(run: _Run, held: HeldOut, training: HeldOut | None = None) -> Found:
    """With training clips a linear probe too; those of them that are skipped are told as well."""
    (classes,) = run.classes().values()
    features, labels = _clips(run, held)
    logits = run.logits(_unit(features) @ classes.T)
    sums = recognition.score(recognition.merge_views(logits), labels)
    scores = sums.row()
    if training is not None:
        seen, known = _clips(run, training)
        probe = recognition.fit_probe(seen[:, 0], known, len(classes))
        merged = recognition.merge_views(np.stack([probe(v) for v in features.swapaxes(0, 1)], 1))
        right = recognition.score(merged, labels).row()
        scores |= {f"probe_{name}": share for name, share in right.items()}
        scores["probe_clips"] = training.used
        held.skipped += training.skipped
    return {"": (scores, sums.count, "clips")}


def _clips(run: _Run, held: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Features of v views of clips [n v d], as the tower gives them, and labels [n]."""
    features, labels = [], []
    for batch in held:
        views = np.moveaxis(batch.samples["frames"], 1, 0)
        each = [run.pooled({"frames": view}, batch.records)[:, -1] for view in views]
        features.append(np.stack(each, 1))
        labels.append(batch.samples["label"][: len(batch.records)])
    return np.concatenate(features), np.concatenate(labels)


def _retrieval(run: _Run, held: HeldOut) -> Found:
    videos: dict[str, list[np.ndarray]] = {}
    captions: dict[str, list[np.ndarray]] = {}
    for batch in held:
        pooled = run.pooled(batch.samples, batch.records)
        for record, frames, text in zip(batch.records, pooled, batch.samples["text"], strict=False):
            videos.setdefault(record.dataset, []).append(frames[-1])
            captions.setdefault(record.dataset, []).append(text)
    found = {}
    for dataset, seen in videos.items():
        sums = retrieval.score(run.texts(np.stack(captions[dataset])), np.stack(seen))
        found[dataset] = (sums.row(), sums.count, "pairs")
    return found


def _localization(run: _Run, held: HeldOut) -> Found:
    tables = run.classes()
    frames: dict[str, list[localization.FrameScores]] = {}
    runs: dict[str, list[localization.Segments]] = {}
    for batch in held:
        pooled = _unit(run.pooled(batch.samples, batch.records))
        for i, (record, seen) in enumerate(zip(batch.records, pooled, strict=True)):
            classes = tables[record.dataset]
            logits = run.logits(seen @ classes.T)
            shown = batch.samples["shown"][i, :, : len(classes)] > 0
            scores = localization.FrameScores(logits.astype(np.float32), shown)
            frames.setdefault(record.dataset, []).append(scores)
            windows: list[list[grounding.Span]] = [[] for _ in classes]
            for moment in record.moments:
                windows[moment.label_id] += _windows(moment)
            times = batch.samples["times"][i].astype(float).tolist()
            piece = localization.segments(_sigmoid(logits), times, windows)
            runs.setdefault(record.dataset, []).append(piece)
    found = {}
    for dataset, parts in frames.items():
        scores = (
            localization.FrameScores.total(parts).row()
            | localization.Segments.total(runs[dataset]).row()
        )
        found[dataset] = (scores, len(parts), "videos")
    return found


def _grounding(run: _Run, held: HeldOut) -> Found:
    sums: dict[str, grounding.Grounded] = {}
    for batch in held:
        pooled = _unit(run.pooled(batch.samples, batch.records))
        texts = run.texts(batch.samples["text"][: len(batch.records)])
        for i, record in enumerate(batch.records):
            probability = _sigmoid(run.logits(pooled[i] @ texts[i]))
            times = batch.samples["times"][i].astype(float).tolist()
            one = grounding.score(probability, times, _windows(record))
            sums[record.dataset] = sums.get(record.dataset, grounding.Grounded()) + one
    return {name: (total.row(), total.count, "sentences") for name, total in sums.items()}


def _segmentation(run: _Run, held: HeldOut) -> Found:
    # Tables of one shape, so that all data sets run in one program; no pixel takes a padding.
    tables = run.classes()
    most = max(len(table) for table in tables.values())
    padded = {name: np.pad(a, ((0, most - len(a)), (0, 0))) for name, a in tables.items()}
    sums: dict[str, segmentation.ClassMasks] = {}
    clips: dict[str, int] = {}
    for batch in held:
        names = [record.dataset for record in batch.records]
        rows = names + names[-1:] * (run.batch_size - len(names))
        sizes = np.array([len(tables[name]) for name in rows])
        true = batch.samples["classes"]
        said = np.asarray(
            _nearest(run.patches(batch.samples), np.stack([padded[n] for n in rows]), sizes,
                     size=true.shape[2:])
        )  # fmt: skip
        for i, name in enumerate(names):
            one = segmentation.score_classes(said[i], true[i], len(tables[name]))
            sums[name] = sums[name] + one if name in sums else one
            clips[name] = clips.get(name, 0) + 1
    return {
        name: (total.row() | {"pixels": total.pixels}, clips[name], "videos")
        for name, total in sums.items()
    }


def _referring(run: _Run, held: HeldOut) -> Found:
    rivals = _rivals([held.records[i] for i in range(len(held.records))])
    ids = {text: row for text in {t for ts in rivals.values() for t in ts}
           if (row := _ids(run.tokens, text)) is not None}  # fmt: skip
    known = dict(zip(ids, run.texts(np.stack([*ids.values()])), strict=True)) if ids else {}
    most = max((len(texts) for texts in rivals.values()), default=0)
    total = segmentation.Referred()
    for batch in held:
        own = run.texts(batch.samples["text"])
        columns = np.repeat(own[:, None], 1 + most, axis=1)  # one's own caption is no rival
        for i, record in enumerate(batch.records):
            others = [known[t] for t in rivals.get(record.where, ()) if t in known]
            if others:
                columns[i, 1 : 1 + len(others)] = np.stack(others)
        near, first = _closeness(
            run.patches(batch.samples), columns, size=batch.samples["mask"].shape[2:]
        )
        near, first = np.asarray(near), np.asarray(first)
        for i in range(len(batch.records)):
            said = first[i] & (near[i] > otsu(near[i]))
            total += segmentation.score_object(said, batch.samples["mask"][i] > 0)
    return {"": (total.row(), total.count, "expressions")}


_KINDS: dict[str, Callable[[_Run, HeldOut], Found]] = {
    "recognition": _recognition,
    "retrieval": _retrieval,
    "localization": _localization,
    "grounding": _grounding,
    "segmentation": _segmentation,
    "referring": _referring,
}


def _rivals(records: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """`where` of an expression -> the expressions of its video that mean none of its objects.

    Sentences about the same object, and about groups that it belongs to, are no rivals.
    """
    videos: dict[tuple[str, int], list[tuple[Any, set[str]]]] = {}
    for record in records:
        if hasattr(record, "masks") and record.size is None:
            objects = (
                {told_name(mask) for mask in record.masks}
                if record.object_id is None
                else {str(record.object_id)}
            )
            key = told_name(record.frames[0]), len(record.frames)
            videos.setdefault(key, []).append((record, objects))
    return {
        record.where: tuple(
            dict.fromkeys(other.text for other, theirs in group if not theirs & objects)
        )
        for group in videos.values()
        for record, objects in group
    }


def otsu(values: Float[np.ndarray, "*n"], *, bins: int = 256) -> float:
    """The threshold that parts values into two groups whose means differ most, weighed by their
    sizes (Otsu 1979); all values are alike: that value, which none is above."""
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return high
    counts, edges = np.histogram(values, bins, (low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    sums = np.cumsum(counts * middles)
    above = counts.sum() - below
    gap = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    parted = below * above * gap**2
    return float(edges[1:-1][parted == parted.max()].mean())  # all places in a gap are as good


# --- on the device -------------------------------------------------------------------------------


@jax.jit
def _pooled(tower, frames):
    return tower(_normalised(frames)).pooled.astype(jnp.float32)


@jax.jit
def _texts(text, ids):
    return text(ids).astype(jnp.float32)


@jax.jit
def _patches(tower: StreamFormer, dense: DensePath, frames):
    features = dense(tower(_normalised(frames)).tokens).astype(jnp.float32)
    features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    rows, columns = (n // tower.config.patch_size for n in frames.shape[2:4])
    return features.reshape(*features.shape[:2], rows, columns, -1)


@functools.partial(jax.jit, static_argnames="size")
def _nearest(
    patches: Float[Array, "b t hp wp d"],
    classes: Float[Array, "b c d"],
    sizes: Int[Array, " b"],
    *,
    size: tuple[int, int],
) -> Int[Array, "b t h w"]:
    """The class of every pixel; class 0 and those from a row's size on compete for none."""
    number = jnp.arange(classes.shape[1])
    competes = (number > 0) & (number < sizes[:, None])

    def take(cosine, competes):
        return jnp.where(competes, cosine, -jnp.inf).argmax(-1).astype(jnp.int32)

    return _of_pixels(take, patches, classes, competes, size)


@functools.partial(jax.jit, static_argnames="size")
def _closeness(
    patches: Float[Array, "b t hp wp d"], columns: Float[Array, "b k d"], *, size: tuple[int, int]
) -> tuple[Float[Array, "b t h w"], Bool[Array, "b t h w"]]:
    """The cosine of every pixel with the first text, and whether no other one is nearer."""

    def take(cosine, _):
        own = cosine[..., 0]
        return own, own >= cosine.max(-1)

    return _of_pixels(take, patches, columns, columns[..., 0], size)


def _of_pixels(take, patches, columns, about, size):
    """`take(cosines [r w k], about's row)` of all pixels of all frames, some rows at a time."""
    b, t, hp, wp = patches.shape[:4]
    height, width = size
    exact = functools.partial(jnp.einsum, precision="highest")
    cosine = exact("btyxd,bkd->btyxk", patches, columns).reshape(b * t, hp, wp, -1)
    bands = next(n for n in range(min(_BANDS, height), 0, -1) if height % n == 0)
    down = _enlarging(height, hp).reshape(bands, -1, hp)
    across = _enlarging(width, wp)

    def band(i):
        grid = exact("ry,yxk->rxk", down[i % bands], cosine[i // bands])
        return take(exact("wx,rxk->rwk", across, grid), about[i // (bands * t)])

    found = jax.lax.map(band, jnp.arange(b * t * bands))
    return jax.tree.map(lambda a: a.reshape(b, t, height, width), found)


def _enlarging(size: int, grid: int) -> Float[Array, "size grid"]:
    """The matrix of bilinear interpolation from `grid` cells, half-pixel centres."""
    return jax.image.resize(jnp.eye(grid), (size, grid), "linear", antialias=False)


def _normalised(frames):
    """uint8 pixels -> StreamFormer's range [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


# --- on the host ---------------------------------------------------------------------------------


def _sample(task: Task, views: int, record: Any) -> Mapping[str, np.ndarray]:
    """Of recognition the frames of all views, [v t h w 3]."""
    rng = np.random.default_rng(0)  # evaluation draws nothing
    make = task.transform
    if not isinstance(make, Recognition):
        return make(record, rng)
    each = [make] if views == 1 else [replace(make, view=(i, views)) for i in range(views)]
    samples = [one(record, rng) for one in each]
    return {**samples[0], "frames": np.stack([sample["frames"] for sample in samples])}


def _windows(moment: Any) -> list[grounding.Span]:
    """When it is true, by the rule of `annotations.moments.is_inside`."""
    return list(moment.windows) if len(moment.windows) > 1 else [(moment.start, moment.end)]


def _ids(tokens: CaptionTokenizer, text: str) -> np.ndarray | None:
    try:
        return tokens(text)
    except InputError:
        return None


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
