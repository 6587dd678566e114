"""Who is where: instance masks of videos, and the object that a sentence refers to.

Formats: specs/streamformer.md section 6.1. Frames are picture files; masks are decoded when asked
for, by `class_map` and `referred_masks`.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from streamjax.data import rle
from streamjax.data.annotations.files import (
    BadRow,
    inside,
    label_id,
    literal,
    number,
    read_json,
    read_table,
)
from streamjax.data.media import Media, opened, told_name
from streamjax.errors import InputError


@dataclass(frozen=True)
class Instance:
    """One object of one class: a mask per frame (COCO's forms) or None where it is not seen."""

    label_id: int
    masks: tuple[Any, ...]


@dataclass(frozen=True)
class Instances:
    """A video as pictures, and all objects annotated in it.

    where: of the annotation, for messages. dataset: whose classes these are. picture: a single
    picture, which training makes a video of.
    """

    frames: tuple[Media, ...]
    height: int
    width: int
    instances: tuple[Instance, ...]
    where: str
    dataset: str = ""
    picture: bool = False


@dataclass(frozen=True)
class Referred:
    """A video as pictures, and the object (or group of them) that `text` refers to.

    masks: for MeViS one file per object, each with a mask per frame, of which the union counts; for
        Refer-YouTube-VOS one picture per frame, whose pixels equal `object_id` on the object; for
        RefCOCO's pictures the masks themselves, in COCO's forms, of which the union counts.
    object_id: None means the first or the last form. size: (height, width), of the last form only.
    """

    frames: tuple[Media, ...]
    text: str
    masks: tuple[Any, ...]
    object_id: int | None
    where: str
    size: tuple[int, int] | None = None


def read_instances(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike,
    labels: Mapping[str, int] | None = None,
    dataset: str = "",
    bad: list[BadRow] | None = None,
) -> list[Instances]:
    """A train_<Dataset>.json of YouTube-VIS, LV-VIS, or COCO instances (a video of one frame each).

    root: folder of the frames. labels: {category name: id} of this data set (one part of
    label2id.json). Without them, and for a file that names no categories, a video's category_id is
    its class as it is; for COCO, without them, the category's place in the list, as upstream does.
    Videos come in the order of their ids; those without annotations are left out (Q19).

    InputError: missing keys, an annotation of an unknown video or category, a number of masks
    other than that of frames, a path out of the root; with a list `bad` such a video goes there.
    """
    content = read_json(path)
    pictures = isinstance(content, dict) and "images" in content
    for key in ("images" if pictures else "videos", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: {key!r} is missing; wanted a YouTube-VIS or COCO file")
    ids = _categories(content.get("categories") or [], labels, pictures, str(path))
    kind = "image" if pictures else "video"
    listed: dict[Any, tuple[str, dict[str, Any]]] = {}
    for i, video in enumerate(content[f"{kind}s"]):
        where = f"{path}: {kind} {i}"
        listed[_key(video, "id", where)] = (where, video)
    objects: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    found = []
    for i, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotation {i}"
        with _told_to(bad):
            owner = _key(annotation, f"{kind}_id", where)
            if owner not in listed:
                raise InputError(f"{where}: belongs to {owner!r}, which the file does not list")
            objects.setdefault(owner, []).append((where, annotation))
    for owner in sorted(objects, key=lambda i: (isinstance(i, str), i)):
        with _told_to(bad):
            found.append(_instances(*listed[owner], objects[owner], ids, labels, root, dataset))
    return found


def class_map(video: Instances, frame: Any, shift: int = 0) -> Int32[np.ndarray, "h w"]:
    """The class of every pixel of one frame, plus `shift`; 0 where there is none.

    The masks of a category are united; categories are painted in the order in which they first
    appear, later ones over earlier ones (specs/streamformer.md 6.3).
    """
    painted: dict[int, np.ndarray] = {}
    for instance in video.instances:
        mask = painted.setdefault(instance.label_id, np.zeros((video.height, video.width), bool))
        if instance.masks[frame] is not None:
            size = video.height, video.width
            mask |= _decoded(instance.masks[frame], *size, video.where, picture=video.picture)
    classes = np.zeros((video.height, video.width), np.int32)
    for label, mask in painted.items():
        classes[mask] = label + shift
    return classes


def read_referred(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike,
    mask_root: str | os.PathLike,
    pictures: bool = False,
    bad: list[BadRow] | None = None,
) -> list[Referred]:
    """A train_MEVIS.csv or, with `pictures`, a train_ReferYoutubeVOS.csv.

    Columns video_id, text, frames (list of names without suffix), length, obj_id, anno_id (lists).
    root: frames are root/<video_id>/<name>.jpg. mask_root: masks are <anno_id>.json, or pictures
    <video_id>/<name>.png whose pixels are obj_id[0].

    InputError: missing columns, an empty text, lists that are none or empty, a length that is not
    that of the frames, a path out of its root; with a list `bad` such a row goes there.
    """

    def make(row: dict[str, str], where: str) -> Referred:
        names = [str(name) for name in literal(row["frames"], "frames", where)]
        objects = literal(row["obj_id"], "obj_id", where)
        annotated = literal(row["anno_id"], "anno_id", where)
        length = number(row["length"], "length", where)
        if not row["text"].strip():
            raise InputError(f"{where}: text is empty; wanted a sentence")
        if not names or length != len(names):
            raise InputError(f"{where}: length {row['length']}, but {len(names)} frames are named")
        if not (objects if pictures else annotated):
            raise InputError(f"{where}: no object; wanted {'obj_id' if pictures else 'anno_id'}")
        clip = row["video_id"]
        if pictures:
            masks = [f"{clip}/{name}.png" for name in names]
        else:
            masks = [f"{anno}.json" for anno in annotated]
        return Referred(
            tuple(inside(root, f"{clip}/{name}.jpg", where) for name in names),
            row["text"],
            tuple(inside(mask_root, name, where) for name in masks),
            int(number(str(objects[0]), "obj_id", where)) if pictures else None,
            where,
        )

    columns = ("video_id", "text", "frames", "length", "obj_id", "anno_id")
    return read_table(path, columns, make, bad=bad)


def read_referred_pictures(
    path: str | os.PathLike, *, root: str | os.PathLike, bad: list[BadRow] | None = None
) -> list[Referred]:
    """A train_ReferCOCOPseudo.json: COCO pictures, and the one that a sentence in each refers to.

    The form is that of RefCOCO as it is given out for detection (MDETR): COCO's, where every image
    has a `caption` and its own annotations; the released archive could not be read to check
    (specs/streamformer.md 6.1). root: folder of the pictures. Errors as in `read_instances`.
    """
    captions = {}
    listed = read_json(path)
    for i, image in enumerate(listed.get("images") or [] if isinstance(listed, dict) else []):
        captions[f"{path}: image {i}"] = _key(image, "caption", f"{path}: image {i}")
    found = []
    for picture in read_instances(path, root=root, bad=bad):
        with _told_to(bad):
            text = captions[picture.where]
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{picture.where}: caption {text!r}; wanted a sentence")
            masks = tuple(mask for instance in picture.instances for mask in instance.masks)
            size = picture.height, picture.width
            found.append(Referred(picture.frames, text, masks, None, picture.where, size))
    return found


def referred_masks(row: Referred, indices: Sequence[int] | np.ndarray) -> Bool[np.ndarray, "t h w"]:
    """Where the object is in the frames at `indices`; nowhere where no annotation says so.

    InputError: a mask file that is missing or broken, or that names no size because every frame of
    it is null.
    """
    if row.size is not None:
        union = np.zeros(row.size, bool)
        for mask in row.masks:
            union |= _decoded(mask, *row.size, row.where, picture=True)
        return np.repeat(union[None], len(indices), 0)
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
    if all(mask is None for _, masks in files for mask in masks):
        raise InputError(f"{row.where}: the object has no mask in any frame ({row.masks[0]})")
    if not isinstance(size, list) or len(size) != 2:
        raise InputError(f"{row.masks[0]}: mask size {size!r}; wanted a mask with [height, width]")
    height, width = size
    union = np.zeros((len(indices), height, width), bool)
    for path, masks in files:
        for out, i in zip(union, indices, strict=True):
            if masks[i] is not None:
                out |= _decoded(masks[i], height, width, f"{path}: frame {i}")
    return union


def read_pictures(paths: Sequence[Media]) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames that are picture files as uint8 RGB. InputError: unreadable, other sizes."""
    frames = [read_picture(path, "RGB") for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise InputError(
                f"{told_name(path)}: {frame.shape[0]}x{frame.shape[1]}; wanted "
                f"{frames[0].shape[0]}x{frames[0].shape[1]} like the clip's first frame"
            )
    return np.stack(frames)


def read_picture(media: Media, mode: str) -> UInt8[np.ndarray, "..."]:
    """One picture as an array: mode "RGB" [h w 3], or "P" [h w] with the palette's indices."""
    path = told_name(media)
    try:
        with opened(media) as file, Image.open(file) as image:
            if mode == "P" and image.mode not in ("P", "L"):
                raise InputError(f"{path}: is {image.mode}; wanted a palette picture of object ids")
            return np.asarray(image if mode == "P" else image.convert(mode))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; wanted a picture") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error


@contextlib.contextmanager
def _told_to(bad: list[BadRow] | None) -> Iterator[None]:
    """Puts what is wrong with a part of the file on the list, where there is one."""
    try:
        yield
    except InputError as error:
        if bad is None:
            raise
        bad.append(BadRow(str(error)))


def _instances(
    where: str,
    video: dict[str, Any],
    annotations: Sequence[tuple[str, dict[str, Any]]],
    ids: Mapping[Any, int],
    labels: Mapping[str, int] | None,
    root: str | os.PathLike,
    dataset: str,
) -> Instances:
    """One video with its objects; `ids` says which class a category is."""
    picture = "file_name" in video
    names = [video["file_name"]] if picture else _key(video, "file_names", where)
    frames = tuple(inside(root, name, where) for name in names)
    sides = {side: video.get(side) for side in ("height", "width")}
    instances = []
    for place, annotation in annotations:
        if picture:
            masks = (_key(annotation, "segmentation", place),)
        else:
            masks = tuple(_key(annotation, "segmentations", place))
        if len(masks) != len(frames):
            raise InputError(f"{place}: {len(masks)} masks; wanted {len(frames)}")
        category = _key(annotation, "category_id", place)
        if ids and category not in ids:
            known = "the categories" if labels is None else "the categories that have a label"
            raise InputError(f"{place}: category_id {category!r} is not in {known}")
        if not ids and labels is not None and category not in range(len(labels)):
            raise InputError(f"{place}: category_id {category!r}; label2id has {len(labels)}")
        instances.append(Instance(ids.get(category, category), masks))
        sides = {side: sides[side] or annotation.get(side) for side in sides}
    height, width = (_key(sides, side, where) for side in ("height", "width"))
    return Instances(frames, height, width, tuple(instances), where, dataset, picture)


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


def _decoded(
    mask: Any, height: int, width: int, where: str, *, picture: bool = False
) -> Bool[np.ndarray, "h w"]:
    """A mask of COCO's forms; polygons of single pictures are painted as upstream does."""
    try:
        if picture and isinstance(mask, list):
            return rle.filled(mask, height, width)
        return rle.decode(mask, height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
