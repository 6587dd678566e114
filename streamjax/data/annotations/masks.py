"""Who is where: instance masks of videos, and the object that a sentence refers to.

Formats: specs/streamformer.md section 6.1. Frames are picture files; masks are decoded when asked
for, by `class_map` and `referred_masks`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations.files import inside, label_id, literal, number, read_json, read_rows
from streamjax.errors import InputError


@dataclass(frozen=True)
class Instance:
    """One object of one class: a mask per frame (COCO's forms) or None where it is not seen."""

    label_id: int
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Instances:
    """A video as picture files, and all objects annotated in it. `where` is for messages."""

    frames: tuple[Path, ...]
    height: int
    width: int
    instances: tuple[Instance, ...]
    where: str


@dataclass(frozen=True)
class Referred:
    """A video as picture files, and the object (or group) that `text` refers to.

    masks: for MeViS one file per object, each with a mask per frame, of which the union counts; for
        Refer-YouTube-VOS one picture per frame, whose pixels equal `object_id` on the object.
    object_id: None means the first form.
    """

    frames: tuple[Path, ...]
    text: str
    masks: tuple[Path, ...]
    object_id: int | None
    where: str


def read_instances(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike,
    labels: Mapping[str, int] | None = None,
) -> list[Instances]:
    """A train_<Dataset>.json of YouTube-VIS, LV-VIS, or COCO instances (a video of one frame each).

    root: folder of the frames. labels: {category name: id} of this data set (one part of
    label2id.json); None takes a video's category_id as it is and for COCO the category's place in
    the list, as upstream does. Videos without annotations are left out.

    InputError: missing keys, an annotation of an unknown video or category, a number of masks
    other than that of frames, a path out of the root.
    """
    content = read_json(path)
    pictures = isinstance(content, dict) and "images" in content
    for key in ("images" if pictures else "videos", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: {key!r} is missing; wanted a YouTube-VIS or COCO file")
    ids = _categories(content.get("categories", []), labels, pictures, str(path))
    videos: dict[Any, dict[str, Any]] = {}
    for i, video in enumerate(content["images" if pictures else "videos"]):
        where = f"{path}: {'image' if pictures else 'video'} {i}"
        names = [_key(video, "file_name", where)] if pictures else _key(video, "file_names", where)
        frames = tuple(inside(root, name, where) for name in names)
        sides = {side: video.get(side) for side in ("height", "width")}
        videos[_key(video, "id", where)] = {"frames": frames, "where": where, "of": [], **sides}
    for i, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotation {i}"
        owner = _key(annotation, "image_id" if pictures else "video_id", where)
        if owner not in videos:
            raise InputError(f"{where}: belongs to {owner!r}, which the file does not list")
        video = videos[owner]
        if pictures:
            masks = (_key(annotation, "segmentation", where),)
        else:
            masks = tuple(_key(annotation, "segmentations", where))
        if len(masks) != len(video["frames"]):
            raise InputError(f"{where}: {len(masks)} masks; wanted {len(video['frames'])}")
        category = _key(annotation, "category_id", where)
        if category not in ids and (ids or labels is not None):
            known = "the categories" if labels is None else "the categories that have a label"
            raise InputError(f"{where}: category_id {category!r} is not in {known}")
        video["of"].append(Instance(ids.get(category, category), masks))
        for side in ("height", "width"):
            video[side] = video[side] or annotation.get(side)
    return [
        Instances(
            video["frames"],
            _key(video, "height", video["where"]),
            _key(video, "width", video["where"]),
            tuple(video["of"]),
            video["where"],
        )
        for video in videos.values()
        if video["of"]
    ]


def class_map(video: Instances, frame: int) -> Int32[np.ndarray, "h w"]:
    """The class of every pixel of one frame; 0 where there is none.

    The masks of a category are united; categories are painted in the order in which they first
    appear, later ones over earlier ones (specs/streamformer.md 6.3).
    """
    painted: dict[int, np.ndarray] = {}
    for instance in video.instances:
        mask = painted.setdefault(instance.label_id, np.zeros((video.height, video.width), bool))
        if instance.masks[frame] is not None:
            mask |= _decoded(instance.masks[frame], video.height, video.width, video.where)
    classes = np.zeros((video.height, video.width), np.int32)
    for label, mask in painted.items():
        classes[mask] = label
    return classes


def read_referred(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike,
    mask_root: str | os.PathLike,
    pictures: bool = False,
) -> list[Referred]:
    """A train_MEVIS.csv or, with `pictures`, a train_ReferYoutubeVOS.csv.

    Columns video_id, text, frames (list of names without suffix), length, obj_id, anno_id (lists).
    root: frames are root/<video_id>/<name>.jpg. mask_root: masks are <anno_id>.json, or pictures
    <video_id>/<name>.png whose pixels are obj_id[0].

    InputError: missing columns, lists that are none or empty, a length that is not that of the
    frames, a path out of its root.
    """
    found = []
    for where, row in read_rows(
        path, ("video_id", "text", "frames", "length", "obj_id", "anno_id")
    ):
        names = [str(name) for name in literal(row["frames"], "frames", where)]
        objects = literal(row["obj_id"], "obj_id", where)
        annotated = literal(row["anno_id"], "anno_id", where)
        length = number(row["length"], "length", where)
        if not names or length != len(names):
            raise InputError(f"{where}: length {row['length']}, but {len(names)} frames are named")
        if not (objects if pictures else annotated):
            raise InputError(f"{where}: no object; wanted {'obj_id' if pictures else 'anno_id'}")
        clip = row["video_id"]
        frames = tuple(inside(root, f"{clip}/{name}.jpg", where) for name in names)
        if pictures:
            masks = [f"{clip}/{name}.png" for name in names]
        else:
            masks = [f"{anno}.json" for anno in annotated]
        found.append(
            Referred(
                frames,
                row["text"],
                tuple(inside(mask_root, name, where) for name in masks),
                int(number(str(objects[0]), "obj_id", where)) if pictures else None,
                where,
            )
        )
    return found


def referred_masks(row: Referred, indices: Sequence[int]) -> Bool[np.ndarray, "t h w"]:
    """Where the object is in the frames at `indices`; nowhere where no annotation says so.

    InputError: a mask file that is missing or broken, or that names no size because every frame of
    it is null.
    """
    if row.object_id is not None:
        pictures = [read_picture(row.masks[i], "P") for i in indices]
        return np.stack([picture == row.object_id for picture in pictures])
    files = []
    size = None
    for path in row.masks:
        masks = read_json(path)
        if not isinstance(masks, list) or len(masks) != len(row.frames):
            raise InputError(f"{path}: wanted a list of {len(row.frames)} masks, one per frame")
        files.append((path, masks))
        size = size or next((m.get("size") for m in masks if isinstance(m, dict)), None)
    if not isinstance(size, list) or len(size) != 2:
        raise InputError(f"{row.masks[0]}: mask size {size!r}; wanted a mask with [height, width]")
    height, width = size
    union = np.zeros((len(indices), height, width), bool)
    for path, masks in files:
        for out, i in zip(union, indices, strict=True):
            if masks[i] is not None:
                out |= _decoded(masks[i], height, width, f"{path}: frame {i}")
    return union


def read_pictures(paths: Sequence[Path]) -> np.ndarray:
    """Frames that are picture files as uint8 RGB [t h w 3]. InputError: unreadable, other sizes."""
    frames = [read_picture(path, "RGB") for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise InputError(
                f"{path}: {frame.shape[0]}x{frame.shape[1]}; wanted "
                f"{frames[0].shape[0]}x{frames[0].shape[1]} like the clip's first frame"
            )
    return np.stack(frames)


def read_picture(path: Path, mode: str) -> np.ndarray:
    """One picture file as an array: mode "RGB" [h w 3], or "P" [h w] with the palette's indices."""
    try:
        with Image.open(path) as image:
            if mode == "P" and image.mode not in ("P", "L"):
                raise InputError(f"{path}: is {image.mode}; wanted a palette picture of object ids")
            return np.asarray(image if mode == "P" else image.convert(mode))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; wanted a picture") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error


def _categories(
    listed: Any, labels: Mapping[str, int] | None, pictures: bool, where: str
) -> dict[Any, int]:
    """category_id -> class number."""
    ids = {}
    for place, category in enumerate(listed):
        number, name = _key(category, "id", where), category.get("name")
        if labels is None:
            ids[number] = place if pictures else number
        elif name in labels:
            ids[number] = label_id(labels, name, where)
    return ids


def _key(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: is a {type(entry).__name__}; wanted an object")
    if entry.get(key) is None:
        raise InputError(f"{where}: {key!r} is missing; wanted it beside {sorted(entry)}")
    return entry[key]


def _decoded(mask: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    try:
        return rle.decode(mask, height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
