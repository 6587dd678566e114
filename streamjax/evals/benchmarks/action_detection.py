"""THUMOS14 and TVSeries: which action is under way, told for every frame while it runs.

A folder has `data_info.json` (classes and sessions) and `target_perframe/<session>.npy` [t c], 4 a
second, several classes at once. Answers are a folder of `<session>.npy`: scores [t c] of the same
frames. Frames of all sessions are ranked together, class by class:

    THUMOS14  AP  = sum over thresholds of (recall - recall before) * precision
    TVSeries  cAP = mean over positives of TP / (TP + FP / w), w = negatives / positives

and mAP, mcAP are means over the classes that some frame shows, without the background (0) and the
class to ignore; frames that show the latter are dropped first. All are fractions. (The paper's
table says mAP for TVSeries too; what is computed is mcAP.) Per stage, only one tenth of each
instance counts as positive, beside all negatives. specs/benchmarks.md section 12.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from streamjax.data.annotations.files import inside
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Records,
    Scores,
    matched,
    read_json,
)
from streamjax.evals.pretraining.localization import average_precision

RULES = {
    "official": "as the original computes it; the order of equal scores in cAP is its sort's",
    "streamjax": "frames of equal scores count together; stages leave out classes no frame shows",
}
NAMES = {"AP": "mAP", "cAP": "mcAP"}
STAGES = 10

Precision = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Info:
    """Of a data set: class names, the class to ignore (negative: none), and its metric."""

    classes: tuple[str, ...]
    ignored: int
    metric: str


@dataclass(frozen=True)
class Session:
    """One video: target [t c] says which classes its frames show."""

    id: str
    target: Bool[np.ndarray, "t c"]
    info: Info


def read(folder: Path, *, dataset: str) -> Records:
    """The test sessions. InputError: no such data set, none of its sessions."""
    path = folder / "data_info.json"
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get(dataset), dict):
        held = ", ".join(found) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InputError(f"{path}: holds {held}; wanted {dataset}")
    info = _info(found[dataset], f"{path}: {dataset}")
    names = found[dataset].get("test_session_set")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}: {dataset}: test_session_set {names!r}; wanted names of videos")
    sessions: dict[str, Session] = {}
    files, problems = [path], []
    for name in names:
        try:
            if name in sessions:
                raise InputError(f"{path}: session {name!r} stands there twice")
            file = inside(folder / "target_perframe", f"{name}.npy", f"{path}: session {name!r}")
            target = load(file)
            if target.ndim != 2 or target.shape[1] != len(info.classes) or not len(target):
                raise InputError(
                    f"{file}: shape {list(target.shape)}; wanted [frames, {len(info.classes)}]"
                )
            sessions[name] = Session(name, target == 1, info)
            files.append(file)
        except InputError as error:
            problems.append(str(error))
    if not sessions:
        raise InputError(f"{problems[0]} (none of {len(names)} sessions can be used)")
    return Records(list(sessions.values()), files, tuple(problems))


def answers(path: Path) -> Mapping[str, Any]:
    """{session: its file of scores} of a folder; files are read when they are scored."""
    nested = path / "pred_scores"
    path = nested if nested.is_dir() else path
    if not path.is_dir():
        raise InputError(
            f"{path}: no folder; wanted one with <session>.npy, scores [frames, classes]"
        )
    found = {file.stem: file for file in sorted(path.glob("*.npy"))}
    if not found:
        raise InputError(f"{path}: no .npy file; wanted <session>.npy, scores [frames, classes]")
    return found


def load(path: Path) -> np.ndarray:
    """Numbers of a .npy file. InputError: missing, broken, of objects, NaN or infinite."""
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: no array of numbers ({error})") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise InputError(f"{path}: {getattr(found, 'dtype', 'no array')}; wanted numbers")
    if not np.isfinite(found).all():
        raise InputError(f"{path}: {(~np.isfinite(found)).sum()} values are NaN or infinite")
    return found


def score(records: Records, replies: Mapping[str, Any], rule: str) -> Scores:
    """The mean over classes under the metric's name, and each class; sessions without usable
    scores are left out and told. InputError where that leaves none."""
    sessions: Sequence[Session] = records.records
    problems = [*records.problems, *matched([s.id for s in sessions], replies, "data set")]
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    graded, missing = [], 0
    for session in sessions:
        given = replies.get(session.id)
        usable = given is not None
        missing += not usable
        try:
            if usable:
                seen.append((_scores_of(given, session), session.target))
        except InputError as error:
            problems.append(f"{error}; left out")
            usable = False
        graded.append(Graded(session.id, "", None, session.id, None, usable))
    if not seen:
        raise InputError(f"{problems[0]} (none of {len(sessions)} sessions can be scored)")
    info = sessions[0].info
    scores, target = (np.concatenate(part) for part in zip(*seen, strict=True))
    frames = len(scores)
    if info.ignored >= 0:
        kept = ~target[:, info.ignored]
        scores, target = scores[kept], target[kept]
    counted = [i for i in range(1, len(info.classes)) if i != info.ignored]
    shown = [i for i in counted if target[:, i].any()]
    if not shown:
        raise InputError(f"none of {frames} frames shows a class other than the background")
    calibrated = functools.partial(calibrated_precision, together=rule == "streamjax")
    metrics: dict[str, Precision] = {"AP": average_precision, "cAP": calibrated}

    def means(name: str) -> dict[str, float]:
        metric = metrics[name]
        return {info.classes[i]: metric(scores[:, i], target[:, i]) for i in shown}

    per_class = means(info.metric)
    mean = _mean(per_class.values())
    other = next(name for name in metrics if name != info.metric)
    tied = info.metric == "cAP" and any(_tied(scores[:, i], target[:, i]) for i in shown)
    if tied and rule == "official":
        problems.append("equal scores of right and wrong frames: the official order is undefined")
    staged = shown if rule == "streamjax" else counted
    stages = _per_stage(scores, target, staged, metrics[info.metric])
    table: dict[str, Any] = {NAMES[info.metric]: mean, "per_class": per_class}
    return Scores(
        table=table,
        n={"sessions": len(seen), "frames": len(scores), "classes": len(shown)},
        graded=tuple(graded),
        unanswered=missing,
        unparsed=len(sessions) - missing - len(seen),
        problems=tuple(problems),
        details={
            "metric": NAMES[info.metric],
            "mean": mean,
            "per_class": per_class,
            "same_data_other_metric": {other: _mean(means(other).values())},
            "per_stage_mean": stages,
            "n_frames": frames,
            "n_frames_after_postprocessing": len(scores),
        },
    )


def calibrated_precision(
    score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], *, together: bool = False
) -> float:
    """Average precision as if there were as many negatives as positives; NaN without a positive.

    together: frames of one score stand at the last place of theirs; without it where numpy's
    default sort, not a stable one, puts them, as the original does.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable" if together else None)
    said = positive[order]
    right, wrong, eps = np.cumsum(said), np.cumsum(~said), np.finfo(float).eps
    if together:
        ranked = score[order]
        last = np.searchsorted(-ranked, -ranked, side="right") - 1
        right, wrong = right[last], wrong[last]
    w = wrong[-1] / right[-1]
    precision = right / (right + wrong / (w + eps) + eps)
    return float(precision[said].sum() / said.sum())


def _per_stage(
    scores: np.ndarray, target: np.ndarray, classes: Sequence[int], metric: Precision
) -> dict[str, float | None]:
    """Means over the classes; a class without positives has AP 0 and no cAP, which makes the mean
    None, as in the original."""
    values = np.zeros((STAGES, len(classes)))
    for k, i in enumerate(classes):
        positive = target[:, i]
        if metric is average_precision and not positive.any():
            continue
        order = np.argsort(-scores[:, i], kind="stable")  # once: the metric sorts sorted ones
        score, right, spans = scores[order, i], positive[order], list(_runs(positive))
        for stage in range(STAGES):
            counts = ~positive
            for start, end in spans:
                first = start + int((end - start) * stage / STAGES)
                stop = max(first + 1, start + int((end - start) * (stage + 1) / STAGES))
                counts[first:stop] = True
            counts = counts[order]
            values[stage, k] = metric(score[counts], right[counts])
    return {
        f"{100 * stage // STAGES:2d}%_{100 * (stage + 1) // STAGES:3d}%": (
            float(mean) if np.isfinite(mean) else None
        )
        for stage, mean in enumerate(values.mean(1))
    }


def _runs(positive: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last frame of each run."""
    edges = np.flatnonzero(np.diff(positive.astype(np.int8), prepend=0, append=0))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield start, stop - 1


def _tied(score: np.ndarray, positive: np.ndarray) -> bool:
    return bool(np.isin(score[positive], score[~positive]).any())


def _scores_of(given: Any, session: Session) -> Float[np.ndarray, "t c"]:
    found = load(Path(given)) if isinstance(given, str | Path) else np.asarray(given)
    if found.shape != session.target.shape:
        raise InputError(
            f"scores of {session.id!r} have shape {list(found.shape)}; wanted "
            f"{list(session.target.shape)}, the frames and classes of its targets"
        )
    return found.astype(np.float64)


def _info(found: Mapping[str, Any], where: str) -> Info:
    classes, ignored, metric = (found.get(k) for k in ("class_names", "ignore_index", "metrics"))
    if not isinstance(classes, list) or len(classes) < 2:
        raise InputError(f"{where}: class_names {classes!r}; wanted a list, the background first")
    if not isinstance(ignored, int) or ignored >= len(classes):
        raise InputError(f"{where}: ignore_index {ignored!r}; wanted one of {len(classes)} classes")
    if metric not in NAMES:
        raise InputError(f"{where}: metrics {metric!r}; wanted one of {', '.join(NAMES)}")
    return Info(tuple(map(str, classes)), ignored, metric)


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _benchmark(name: str, title: str, dataset: str) -> Benchmark:
    reader = functools.partial(read, dataset=dataset)
    return Benchmark(name, title, RULES, reader, answers, score)


THUMOS14 = _benchmark("oad_thumos14", "THUMOS14, online", "THUMOS")
TVSERIES = _benchmark("oad_tvseries", "TVSeries, online", "TVSeries")
