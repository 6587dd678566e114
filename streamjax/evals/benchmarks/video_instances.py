"""YouTube-VIS 2019 and OVIS: objects found, told apart and followed; average precision of tracks.

A folder has `valid.json` (COCO-like: videos, annotations with a mask or null per frame). Answers
are `results.json`, as for the benchmark's server: tracks with video, category, score and masks.
Two tracks of one video and category overlap by

    IoU = sum over frames of the masks' common area / sum over frames of their united area

and COCO's rules go on from there: tracks in order of score take the truth that they overlap most,
at IoU .50:.05:.95; precision at 101 recalls, of the 1, 10 or 100 best tracks of a video. Small,
medium, large: a track's mean area over the frames that show it, up to 128^2, to 256^2, and above.
Percentages; None where no truth is of that kind. The validation files that are public have no
annotations: wanted is a split of one's own. specs/benchmarks.md section 13, specs/downstream.md
section 4.10.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from streamjax.data import rle
from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Records,
    Scores,
    matched,
    read_json,
)

RULES = {
    "official": "as the YouTube-VIS evaluator; a track on the annotation of id 0 counts as wrong",
    "streamjax": "the same, ids do not matter",
}
FILES = ("valid.json", "val.json", "gt.json")
OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = (1, 10, 100)
AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))  # all, small, medium, large
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")
YTVIS_NAMES = (
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake",
    "monkey", "hand", "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear",
    "motorbike", "giraffe", "leopard", "fox", "deer", "owl", "surfboard", "airplane", "truck",
    "zebra", "tiger", "elephant", "snowboard", "boat", "shark", "mouse", "frog", "eagle",
    "earless_seal", "tennis_racket",
)  # fmt: skip
OVIS_NAMES = (
    "Person", "Bird", "Cat", "Dog", "Horse", "Sheep", "Cow", "Elephant", "Bear", "Zebra",
    "Giraffe", "Poultry", "Giant_panda", "Lizard", "Parrot", "Monkey", "Rabbit", "Tiger", "Fish",
    "Turtle", "Bicycle", "Motorcycle", "Airplane", "Boat", "Vehical",
)  # fmt: skip


@dataclass(frozen=True)
class Track:
    """One object through a video. area: the mean over the frames that show it.

    runs: where it is, in the flat pixels of all frames, one after the other. score: of answers.
    """

    category: int
    runs: Int64[np.ndarray, "n 2"]
    area: float
    id: int = 0
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class Video:
    """One video and what is in it. categories: those of the data set, {id: name}."""

    id: str
    height: int
    width: int
    length: int
    tracks: tuple[Track, ...]
    categories: Mapping[int, str]


def read(folder: Path, *, names: Sequence[str], others: Sequence[str], title: str) -> Records:
    """The videos and their annotations. `folder` may be the file itself.

    InputError: no such file, no annotations, categories of another benchmark. An annotation that
    cannot be used is a problem.
    """
    path = folder
    if not folder.is_file():
        path = next((folder / n for n in FILES if (folder / n).is_file()), folder / FILES[0])
    content = read_json(path)
    for key in ("videos", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            hint = " (the public validation files have none)" if key == "annotations" else ""
            raise InputError(f"{path}: {key!r} is missing{hint}; wanted an annotated split")
    problems: list[str] = []
    categories: dict[int, str] = {}
    for _, one in _listed(content, "categories", path, problems):
        categories[one["id"]] = str(one.get("name", one["id"]))
    found = set(categories.values())
    if found and not found & set(names) and found <= set(others):
        raise InputError(f"{path}: categories {sorted(found)[:3]} ...; wanted those of {title}")
    sizes: dict[int, tuple[int, int, int]] = {}
    for where, one in _listed(content, "videos", path, problems):
        size: tuple[Any, Any, Any] = (one.get("height"), one.get("width"), one.get("length"))
        if all(isinstance(n, int) and n > 0 for n in size):
            sizes[one["id"]] = size
        else:
            problems.append(f"{where}: height, width, length {list(size)}; wanted whole numbers")
    tracks: dict[int, list[Track]] = {video: [] for video in sizes}
    for where, one in _listed(content, "annotations", path, problems):
        try:
            video = one.get("video_id")
            if video not in sizes:
                raise InputError(f"{where}: video_id {video!r}; wanted one of {len(sizes)} videos")
            tracks[video].append(_annotated(one, sizes[video], categories, where))
        except InputError as error:
            problems.append(str(error))
    if not any(tracks.values()):
        raise InputError(f"{problems[0] if problems else path}: no annotation can be used")
    videos = [
        Video(str(i), *sizes[i], tuple(tracks[i]), categories) for i in sorted(sizes, key=_order)
    ]
    return Records(videos, [path], tuple(problems))


def answers(path: Path) -> Mapping[str, Any]:
    """{video: its tracks as they stand} of a `results.json`, or of the folder that it is in."""
    path = path / "results.json" if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path}: holds a {type(content).__name__}; wanted a list of tracks")
    found: dict[str, list[Any]] = {}
    for i, track in enumerate(content):
        if not isinstance(track, dict) or not isinstance(track.get("video_id"), int | str):
            raise InputError(f"{path}: track {i} is {str(track)[:60]}; wanted one with video_id")
        found.setdefault(str(track["video_id"]), []).append(track)
    return found


def score(records: Records, replies: Mapping[str, Any], rule: str) -> Scores:
    """The paper's eight columns. Tracks that cannot be used are left out and told."""
    videos: Sequence[Video] = records.records
    categories = videos[0].categories
    problems = [*records.problems, *matched([v.id for v in videos], replies, "data set")]
    if rule == "official" and any(t.id == 0 for v in videos for t in v.tracks):
        problems.append("an annotation of id 0: tracks on it count as wrong, not so by streamjax")
    counted: dict[tuple[int, int], list[_Matched]] = {}
    used, bad = 0, 0
    for video in videos:
        found, told = _answered(replies.get(video.id) or [], video)
        problems += told
        used, bad = used + len(found), bad + len(told)
        for category in categories:
            truth = [t for t in video.tracks if t.category == category]
            said = [t for t in found if t.category == category]
            if truth or said:
                for i, pairs in enumerate(_match(said, truth, id_matters=rule == "official")):
                    counted.setdefault((category, i), []).append(pairs)
    if bad and not used:
        raise InputError(f"{problems[-1]} (none of {bad} tracks can be used)")
    ids = sorted(categories, key=_order)
    curves = [[[_curve(counted.get((c, a), []), m) for m in MOST] for a in range(4)] for c in ids]
    precision = np.array([[[p for p, _ in row] for row in one] for one in curves])  # [k a m T R]
    recall = np.array([[[r for _, r in row] for row in one] for one in curves])  # [k a m T]
    stats = [
        _mean(precision[:, 0, 2]), _mean(precision[:, 0, 2, 0]), _mean(precision[:, 0, 2, 5]),
        *(_mean(precision[:, a, 2]) for a in (1, 2, 3)),
        *(_mean(recall[:, 0, m]) for m in range(3)),
        *(_mean(recall[:, a, 2]) for a in (1, 2, 3)),
    ]  # fmt: skip
    per_category = {
        categories[c]: _percent(_mean(of_class[0, 2]))
        for c, of_class in zip(ids, precision, strict=True)
    }
    table = {name: _percent(value) for name, value in zip(COLUMNS, stats, strict=False)}
    return Scores(
        table=table,
        n={
            "videos": len(videos),
            "tracks": used,
            "annotations": sum(len(v.tracks) for v in videos),
        },
        graded=tuple(Graded(v.id, "", None, v.id, None, v.id in replies) for v in videos),
        unanswered=sum(v.id not in replies for v in videos),
        unparsed=bad,
        problems=tuple(problems),
        details={"stats_raw_12": stats, "per_category_AP": per_category},
    )


def overlap(a: Int[np.ndarray, "n 2"], b: Int[np.ndarray, "m 2"]) -> float:
    """IoU of two sets of pixels, given as runs; 0 where both are empty."""
    areas = [int((runs[:, 1] - runs[:, 0]).sum()) for runs in (a, b)]
    if not all(areas):
        return 0.0
    # How many of b's pixels come before each place: steps of slope 1 and 0 between b's edges.
    before = np.zeros(b.size)
    np.cumsum(b[:, 1] - b[:, 0], out=before[1::2])
    before[2::2] = before[1:-1:2]
    up_to = np.interp(a.ravel(), b.ravel(), before).reshape(-1, 2)
    common = float((up_to[:, 1] - up_to[:, 0]).sum())
    return common / (sum(areas) - common)


# --- COCO's rules --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matched:
    """One video and category, in one range of areas.

    scores: falling. right, ignored: per threshold and track. truths: how many count.
    """

    scores: Float[np.ndarray, " d"]
    right: Bool[np.ndarray, "T d"]
    ignored: Bool[np.ndarray, "T d"]
    truths: int


def _match(
    said: Sequence[Track], truth: Sequence[Track], *, id_matters: bool
) -> Iterator[_Matched]:
    said = sorted(said, key=lambda t: -t.score)[: MOST[-1]]
    scores = np.array([t.score for t in said], np.float64)
    overlaps = np.array([[overlap(d.runs, g.runs) for g in truth] for d in said])
    overlaps = overlaps.reshape(len(said), len(truth))
    for low, high in AREAS:
        left_out = [g.crowd or not low <= g.area <= high for g in truth]
        order = np.argsort(left_out, kind="stable").tolist()
        taken = np.stack([_take(overlaps, order, truth, left_out, at) for at in OVERLAPS])
        ignored = np.append(left_out, False).astype(bool)[taken]  # -1: nothing taken
        nothing = np.array([id_matters and g.id == 0 for g in truth] + [True])
        right = ~nothing[taken]
        outside = np.array([not low <= d.area <= high for d in said], bool)
        yield _Matched(scores, right, ignored | (~right & outside), left_out.count(False))


def _take(
    overlaps: np.ndarray,
    order: Sequence[int],
    truth: Sequence[Track],
    left_out: Sequence[bool],
    at: float,
) -> Int64[np.ndarray, " d"]:
    """Which truth each track takes, -1 for none.

    order: those that count come first, and one of them is never given up for one that does not. Of
    equal overlaps the last wins. Crowds are taken any number of times.
    """
    free = [True] * len(truth)
    taken = np.full(len(overlaps), -1)
    for i, row in enumerate(overlaps.tolist()):
        best, least = -1, min(at, 1 - 1e-10)
        for j in order:
            if not free[j] and not truth[j].crowd:
                continue
            if best >= 0 and left_out[j] and not left_out[best]:
                break
            if row[j] >= least:
                best, least = j, row[j]
        if best >= 0:
            taken[i], free[best] = best, False
    return taken


def _curve(
    parts: Sequence[_Matched], most: int
) -> tuple[Float[np.ndarray, "T R"], Float[np.ndarray, " T"]]:
    """Precision at RECALLS and the last recall, per threshold; -1 where there is no truth."""
    precision, recall = np.full((len(OVERLAPS), len(RECALLS)), -1.0), np.full(len(OVERLAPS), -1.0)
    truths = sum(part.truths for part in parts)
    if not truths:
        return precision, recall
    order = np.argsort(-np.concatenate([p.scores[:most] for p in parts]), kind="stable")
    right, ignored = (
        np.concatenate([getattr(p, name)[:, :most] for p in parts], 1)[:, order]
        for name in ("right", "ignored")
    )
    precision[:], recall[:] = 0.0, 0.0
    hits, misses = (np.cumsum(a & ~ignored, 1) for a in (right, ~right))
    for i, (tp, fp) in enumerate(zip(hits, misses, strict=True)):
        if not len(tp):
            continue
        reached = tp / truths
        recall[i] = reached[-1]
        best = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
        places = np.searchsorted(reached, RECALLS, side="left")
        within = places < len(best)
        precision[i, within] = best[places[within]]
    return precision, recall


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value


# --- annotations and results ---------------------------------------------------------------------


def _listed(
    content: Mapping[str, Any], key: str, path: Path, problems: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file: kind N", entry) of a list whose entries have ids of their own."""
    seen = set()
    for i, one in enumerate(content[key]):
        where = f"{path}: {key} {i}"
        if not isinstance(one, dict) or not isinstance(one.get("id"), int | str):
            problems.append(f"{where}: {str(one)[:60]}; wanted an object with an id")
        elif one["id"] in seen:
            problems.append(f"{where}: id {one['id']!r} stands there twice; the first is taken")
        else:
            seen.add(one["id"])
            yield where, one


def _annotated(
    one: Mapping[str, Any], size: tuple[int, int, int], categories: Mapping[int, str], where: str
) -> Track:
    runs, _ = _runs(one, size, categories, where)
    areas = one.get("areas")
    if not isinstance(areas, list) or not all(_finite(a) or a is None for a in areas):
        raise InputError(f"{where}: areas {str(areas)[:60]}; wanted a number or null per frame")
    shown = [a for a in areas if a]
    area = float(np.mean(shown)) if shown else 0.0
    return Track(one["category_id"], runs, area, one["id"], bool(one.get("iscrowd")))


def _answered(given: Any, video: Video) -> tuple[list[Track], list[str]]:
    found, problems = [], []
    for i, one in enumerate(given):
        where = f"video {video.id}, track {i}"
        try:
            if not _finite(one.get("score")):
                raise InputError(f"{where}: score {one.get('score')!r}; wanted a number")
            size = (video.height, video.width, video.length)
            runs, area = _runs(one, size, video.categories, where)
            found.append(Track(one["category_id"], runs, area, score=float(one["score"])))
        except InputError as error:
            problems.append(f"{error}; left out")
    return found, problems


def _runs(
    one: Mapping[str, Any], size: tuple[int, int, int], categories: Mapping[int, str], where: str
) -> tuple[Int64[np.ndarray, "n 2"], float]:
    """Where a track is, and its mean area over the frames that show it."""
    height, width, length = size
    category, masks = one.get("category_id"), one.get("segmentations")
    if not isinstance(category, int | str) or category not in categories:
        raise InputError(f"{where}: category_id {category!r}; wanted one of {len(categories)}")
    if not isinstance(masks, list) or len(masks) != length:
        count = f"{len(masks)} masks" if isinstance(masks, list) else f"segmentations {masks!r}"
        raise InputError(f"{where}: {count}; wanted {length}, one per frame or null")
    found = []
    for frame, mask in enumerate(masks):
        try:
            runs = rle.runs(mask, height, width) if mask else np.zeros((0, 2), np.int64)
        except InputError as error:
            raise InputError(f"{where}, frame {frame}: {error}") from None
        found.append(runs + frame * height * width)
    areas = [int((runs[:, 1] - runs[:, 0]).sum()) for runs in found]
    return np.concatenate(found), float(np.mean([a for a in areas if a] or [0]))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _order(key: Any) -> tuple[bool, Any]:
    return isinstance(key, str), key


def _benchmark(name: str, title: str, names: Sequence[str], others: Sequence[str]) -> Benchmark:
    reader = functools.partial(read, names=names, others=others, title=title)
    return Benchmark(name, title, RULES, reader, answers, score)


YTVIS2019 = _benchmark("vis_ytvis2019", "YouTube-VIS 2019", YTVIS_NAMES, OVIS_NAMES)
OVIS = _benchmark("vis_ovis", "OVIS", OVIS_NAMES, YTVIS_NAMES)
