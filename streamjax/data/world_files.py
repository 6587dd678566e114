"""Writes the embedded world as the files that real data sets come with.

    world.json                               the config, and how many clips each split has
    videos/<clip>.mp4                        H.264; <clip> is <split>_<index>
    streamo/<split>.json                     raw records, all kinds of instruction
    kinetics/<split>.csv, label2id.json      clips/<clip>_<event>.mp4; the class is the event's verb
    retrieval/<split>.csv                    captions of the whole video
    grounding/<split>.csv                    a sentence and its windows
    localization/<split>.csv, label2id.json  a verb and its windows
    vis/<split>_World.json, label2id.json    frames/<clip>/<second>.jpg; everything's masks, boxes
    refvos/<split>_World.csv                 a phrase and whom it means; masks/<clip>_<thing>.json

The formats are those of specs/streamo.md 1.1 and specs/streamformer.md 6.1 (MeViS' form for
referring expressions, LV-VIS' for instances), and `streamjax.data.annotations` reads them all.
"""

import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations.files import read_json
from streamjax.data.video import write_video
from streamjax.data.world import (
    LIGHTS,
    SPLITS,
    VERBS,
    Event,
    Script,
    WorldConfig,
    boxes_of,
    lamp_mask,
    light_at,
    render,
    render_masks,
    sentence,
    turns_of,
    write_script,
)
from streamjax.data.world_dialogues import KINDS, make_record
from streamjax.errors import InputError

TASKS = ("streamo", "kinetics", "retrieval", "grounding", "localization", "vis", "refvos")
DATASET = "World"  # what the annotations call this data set
_MOMENT_COLUMNS = (
    "video_id", "start_second", "end_second", "text", "relevant_windows", "dataset",
)  # fmt: skip
_HEADERS = {
    "kinetics": None,
    "retrieval": ("video_id", "text", "dataset"),
    "grounding": _MOMENT_COLUMNS,
    "localization": _MOMENT_COLUMNS,
    "refvos": ("video_id", "text", "frames", "length", "obj_id", "anno_id"),
}


def write_world(
    folder: str | os.PathLike,
    split: str,
    count: int,
    config: WorldConfig | None = None,
    *,
    tasks: Sequence[str] = TASKS,
    kinds: Sequence[str] = tuple(KINDS),
    variants: int = 1,
    workers: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Writes clips 0 .. count-1 of a split: the videos, then the annotations of `tasks`.

    split: "train", "val", "test" or "novel"; no two share a clip, and `novel` shows combinations
        of colour, shape and action that the others never do. Several splits share a folder.
    kinds, variants: the kinds of instruction asked of every clip, and with how many different
        targets each (those that come out equal are written once).
    workers: processes that render and encode; 0 does it in this one. The result is the same.
    progress: called with (clips done, clips) after every clip.

    The same config gives the same bytes of annotation and the same pixels before encoding. Every
    file appears complete or not at all, annotations last; videos that are there already are kept,
    so that an interrupted call can be made again.

    InputError: an unknown split, task or kind; a folder that holds another world.
    """
    config = config or WorldConfig()
    for name, found, known in (
        ("split", (split,), SPLITS), ("task", tasks, TASKS), ("kind", kinds, KINDS)
    ):  # fmt: skip
        for value in found:
            if value not in known:
                raise InputError(f"world {name} {value!r}; wanted one of {', '.join(known)}")
    if count < 1 or variants < 1:
        raise InputError(f"world of {count} clips, {variants} variants; wanted at least 1 of each")
    folder = Path(folder)
    splits = _claim(folder, config)
    film = partial(_film, folder, config, split, tuple(tasks), tuple(kinds), variants)
    rows: dict[str, list] = {task: [] for task in tasks}
    for done, found in enumerate(_each(film, count, workers), start=1):
        for task in tasks:
            rows[task].extend(found[task])
        if progress is not None:
            progress(done, count)
    for task in tasks:
        _write_annotations(folder / task, task, split, config, rows[task])
    _write_manifest(folder, config, {**splits, split: count})


def read_manifest(folder: str | os.PathLike) -> tuple[WorldConfig, dict[str, int]]:
    """The config of a written world and its number of clips per split.

    With it `world.write_script(config, split, index)` gives the truth behind any of its videos.
    InputError: no world in the folder.
    """
    path = Path(folder) / "world.json"
    content = read_json(path)
    try:
        fields: dict[str, Any] = dict(content["config"])
        for name, value in fields.items():
            fields[name] = tuple(value) if isinstance(value, list) else value
        return WorldConfig(**fields), dict(content["splits"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the manifest of a world: {error!r}") from error


def captions(script: Script) -> list[str]:
    """Sentences for the whole clip: what happens in order, who is there, what the light does."""
    happens = ", then ".join(sentence(script, event) for event in script.events)
    present = ", ".join(f"a {thing.name}" for thing in script.things)
    lights = ", then ".join(change.colour for change in script.lights)
    return [happens, f"there is {present}", f"the light is {lights}"]


# --- one clip ----------------------------------------------------------------------------------


def _film(
    folder: Path,
    config: WorldConfig,
    split: str,
    tasks: tuple[str, ...],
    kinds: tuple[str, ...],
    variants: int,
    index: int,
) -> dict[str, list]:
    """Writes the files of one clip and returns its rows of every task."""
    script = write_script(config, split, index)
    video = folder / "videos" / f"{script.name}.mp4"
    clips = {
        folder / "kinetics" / "clips" / f"{script.name}_{k}.mp4": event
        for k, event in enumerate(script.events if "kinetics" in tasks else ())
    }
    if not all(path.exists() for path in (video, *clips)):
        for path in (video, *clips):
            path.parent.mkdir(parents=True, exist_ok=True)
        frames = render(script)
        write_video(video, frames, config.fps)
        for path, event in clips.items():
            first, stop = turns_of(event)
            around = slice(round(max(first - 1, 0) * config.fps), round((stop + 1) * config.fps))
            write_video(path, frames[around], config.fps)
    rows: dict[str, list] = {}
    if "streamo" in tasks:
        rows["streamo"] = _records(script, kinds, variants)
    if "kinetics" in tasks:
        rows["kinetics"] = [
            (f"clips/{path.name}", VERBS[event.action]) for path, event in clips.items()
        ]
    if "retrieval" in tasks:
        rows["retrieval"] = [(script.name, repr(captions(script)), DATASET)]
    if "grounding" in tasks:
        rows["grounding"] = _moments(script, partial(sentence, script))
    if "localization" in tasks:
        rows["localization"] = _moments(script, lambda event: VERBS[event.action])
    if "vis" in tasks or "refvos" in tasks:
        frames, masks = render_masks(script, [float(s) for s in range(script.seconds)])
        runs = [[rle.encode(m) if m.any() else None for m in thing] for thing in masks]
        if "vis" in tasks:
            _write_pictures(folder / "vis" / "frames" / script.name, frames)
            rows["vis"] = [_instances(script, runs, masks)]
        if "refvos" in tasks:
            _write_pictures(folder / "refvos" / "frames" / script.name, frames)
            for thing, of_thing in enumerate(runs):
                path = folder / "refvos" / "masks" / f"{script.name}_{thing}.json"
                _write_text(path, _json(of_thing))
            rows["refvos"] = _expressions(script, runs)
    return rows


def _records(script: Script, kinds: tuple[str, ...], variants: int) -> list[dict]:
    records = []
    for kind in kinds:
        for seed in range(variants):
            record = make_record(script, kind, seed)
            if record is not None and record not in records:
                records.append(record)
    return records


def _moments(script: Script, text_of: Callable[[Event], str]) -> list[tuple]:
    """One row per text, with all its windows; the row's own moment is the first of them."""
    windows: dict[str, list[list[float]]] = {}
    for event in script.events:
        windows.setdefault(text_of(event), []).append([round(event.start, 2), event.end])
    return [(script.name, *found[0], text, repr(found), DATASET) for text, found in windows.items()]


def _instances(script: Script, runs: list[list], masks: np.ndarray) -> dict[str, Any]:
    """One video of a YouTube-VIS file with its annotations; ids are given when all are known."""
    labels = _things(script.config)
    boxes = boxes_of(masks)
    things = []
    for i, thing in enumerate(script.things):
        if not masks[i].any():
            continue
        x0, y0, x1, y1 = np.nan_to_num(boxes[i]).T.tolist()
        seen = [run is not None for run in runs[i]]
        box = zip(x0, y0, x1, y1, seen, strict=True)
        area = zip(masks[i].sum((1, 2)).tolist(), seen, strict=True)
        things.append(
            {
                "category_id": labels[thing.name],
                "iscrowd": 0,
                "height": script.config.height,
                "width": script.config.width,
                "segmentations": runs[i],
                "bboxes": [[a, b, c - a, d - b] if shown else None for a, b, c, d, shown in box],
                "areas": [n if shown else None for n, shown in area],
            }
        )
    things += _light_instances(script, labels)
    video = {
        "height": script.config.height,
        "width": script.config.width,
        "length": script.seconds,
        "file_names": [f"{script.name}/{name}.jpg" for name in _frame_names(script.seconds)],
    }
    return {"video": video, "annotations": things}


def _light_instances(script: Script, labels: dict[str, int]) -> list[dict[str, Any]]:
    """The traffic light: one instance for each colour that it shows, where it shows it."""
    mask = lamp_mask(script.config)
    if not mask.any():
        return []
    (x0, y0, x1, y1) = boxes_of(mask[None, None])[0, 0].tolist()
    run, area = rle.encode(mask), int(mask.sum())
    shown = [light_at(script, float(second)) for second in range(script.seconds)]
    return [
        {
            "category_id": labels[f"{colour} light"],
            "iscrowd": 0,
            "height": script.config.height,
            "width": script.config.width,
            "segmentations": [run if now == colour else None for now in shown],
            "bboxes": [[x0, y0, x1 - x0, y1 - y0] if now == colour else None for now in shown],
            "areas": [area if now == colour else None for now in shown],
        }
        for colour in LIGHTS
        if colour in shown
    ]


def _expressions(script: Script, runs: list[list]) -> list[tuple]:
    """Rows of a MeViS table: every thing by its name, and all that do the same by what they do."""
    shown = [i for i, of_thing in enumerate(runs) if any(of_thing)]
    meant = {f"the {script.things[i].name}": [i] for i in shown}
    for event in script.events:
        group = meant.setdefault(f"everything that {VERBS[event.action]}", [])
        if event.thing in shown and event.thing not in group:
            group.append(event.thing)
    names = _frame_names(script.seconds)
    return [
        (
            script.name,
            text,
            repr(names),
            len(names),
            repr(group),
            repr([f"{script.name}_{i}" for i in group]),
        )
        for text, group in meant.items()
        if group
    ]


def _frame_names(seconds: int) -> list[str]:
    return [f"{second:05d}" for second in range(seconds)]


def _things(config: WorldConfig) -> dict[str, int]:
    """Class numbers of the things; 0 stays free, for no pixel of class 0 is ever learned."""
    names = [f"{colour} {shape}" for colour in config.colours for shape in config.shapes]
    names += [f"{colour} light" for colour in LIGHTS]
    return {"background": 0} | {name: i for i, name in enumerate(names, start=1)}


# --- files -------------------------------------------------------------------------------------


def _each(film: Callable[[int], dict], count: int, workers: int) -> Iterator[dict]:
    """The rows of every clip, in order."""
    if not workers:
        yield from map(film, range(count))
        return
    # A fork of a process that runs jax's threads can hang: start clean ones.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(film, range(count), chunksize=max(1, min(16, count // (4 * workers))))


def _claim(folder: Path, config: WorldConfig) -> dict[str, int]:
    """Makes the folder this config's, or checks that it is; returns the splits already there."""
    if not (folder / "world.json").exists():
        _write_manifest(folder, config, {})
        return {}
    there, splits = read_manifest(folder)
    if read_json(folder / "world.json").get("fingerprint") != _fingerprint(there):
        raise InputError(
            f"{folder}: holds a world of another version of streamjax; choose another folder or "
            "remove that one"
        )
    if there != config:
        names = [f.name for f in dataclasses.fields(config)]
        name = next(n for n in names if getattr(there, n) != getattr(config, n))
        raise InputError(
            f"{folder}: holds a world with {name}={getattr(there, name)!r}, not "
            f"{getattr(config, name)!r}; choose another folder or remove that one"
        )
    return splits


def _fingerprint(config: WorldConfig) -> str:
    """Changes when the world's code makes something else of the same config."""
    scripts = [write_script(config, "train", index) for index in range(4)]
    digest = hashlib.sha256(repr(scripts).encode())
    digest.update(render(scripts[0]).tobytes())
    return digest.hexdigest()[:16]


def _write_manifest(folder: Path, config: WorldConfig, splits: dict[str, int]) -> None:
    content = {
        "config": dataclasses.asdict(config),
        "fingerprint": _fingerprint(config),
        "splits": dict(sorted(splits.items())),
    }
    _write_text(folder / "world.json", json.dumps(content, indent=1) + "\n")


def _write_annotations(folder: Path, task: str, split: str, config: WorldConfig, rows: list):
    if task == "streamo":
        _write_text(folder / f"{split}.json", json.dumps(rows, indent=1) + "\n")
        return
    if task == "vis":
        labels = _things(config)
        content: dict[str, list] = {
            "videos": [],
            "categories": [{"id": i, "name": name} for name, i in labels.items() if i],
            "annotations": [],
        }
        for number, row in enumerate(rows, start=1):
            content["videos"].append({"id": number, **row["video"]})
            for annotation in row["annotations"]:
                ids = {"id": len(content["annotations"]) + 1, "video_id": number}
                content["annotations"].append(ids | annotation)
        _write_text(folder / "label2id.json", _json({DATASET: labels}))
        _write_text(folder / f"{split}_{DATASET}.json", _json(content))
        return
    verbs = {VERBS[action]: i for i, action in enumerate(config.actions)}
    if task in ("kinetics", "localization"):
        labels = verbs if task == "kinetics" else {DATASET: verbs}
        _write_text(folder / "label2id.json", _json(labels))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    header = _HEADERS[task]
    table.writerows([header, *rows] if header else rows)
    name = f"{split}_{DATASET}.csv" if task == "refvos" else f"{split}.csv"
    _write_text(folder / name, text.getvalue())


def _write_pictures(folder: Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
    for name, frame in zip(_frame_names(len(frames)), frames, strict=True):
        path = folder / f"{name}.jpg"
        if not path.exists():
            encoded = io.BytesIO()
            Image.fromarray(frame).save(encoded, "JPEG", quality=95, subsampling=0)
            _write(path, encoded.getvalue())


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _write_text(path: Path, text: str) -> None:
    _write(path, text.encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_ = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial_.write_bytes(content)
        os.replace(partial_, path)
    finally:
        partial_.unlink(missing_ok=True)
