"""Annotation records to samples of the six tasks, for training and for evaluation.

Every sample has "frames", uint8 [t h w 3] of `frames` frames, h = w = `size`, not normalised, and
what its class says. With `train` false the frames are those of evaluation, seen without chance:
the short side at `size` and its central square (retrieval: squashed). With `augment` false training
draws frames and nothing else, which is for data whose directions and colours mean something. With
`keep` all that is decoded stays in memory, which is for small data that is seen many times (files
on disk: packed ones are read each time).

Each raises InputError, one line with the reason, for a record that gives no sample: a missing or
unreadable file, a label or a text that is empty, spans outside of the video, masks of another size
than their frames, an object without any mask, and a row that its reader could not use (BadRow).
Frames: `data/sampling.py`; pixels: `data/augment.py`; source: specs/streamformer.md 6.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from streamjax.data import augment as pixels
from streamjax.data import sampling
from streamjax.data.annotations.files import BadRow
from streamjax.data.annotations.masks import (
    Instances,
    Referred,
    class_map,
    read_picture,
    read_pictures,
    referred_masks,
)
from streamjax.data.annotations.moments import (
    LocalizedVideo,
    Moment,
    frame_labels,
    is_inside,
    shown_classes,
)
from streamjax.data.annotations.videos import Action, Captioned
from streamjax.data.media import told_name
from streamjax.data.randaugment import rand_augment
from streamjax.data.video import Clip, KeptClip, open_clip
from streamjax.errors import InputError

Rng = np.random.Generator
Sample = dict[str, np.ndarray]
Tokens = Callable[[str], np.ndarray]
Maps = Callable[[Any], np.ndarray]
Kind = TypeVar("Kind")

COCO = "COCOPseudoVIS"  # the data set whose pictures become videos
MOST_CLASSES = 100  # of a data set with more, so many compete for a clip's pixels
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Action -> {"frames", "label" int32 []}.

    spread: how training and evaluation spread frames over a video, "segments" as for Kinetics,
        "stretches" as for SSv2.
    mirror_sides: flips clips whose label speaks of left or right too, as upstream does (Q13).
    view: (i, n), the i-th of n clips that evaluation takes of a video, spread as "segments".
    """

    frames: int = 16
    size: int = 224
    train: bool = True
    augment: bool = True
    keep: bool = False
    spread: Literal["segments", "stretches"] = "segments"
    mirror_sides: bool = True
    view: tuple[int, int] | None = None

    def __call__(self, record: Any, rng: Rng) -> Sample:
        action = _usable(record, Action)
        _told_text(action.label, told_name(action.video), "label")
        indices = {"segments": sampling.segment_indices, "stretches": sampling.stretch_indices}
        with open_clip(action.video, keep=self.keep) as clip:
            if self.view is not None and not self.train:
                picked = sampling.view_indices(clip.frames, self.frames, *self.view)
            else:
                picked = indices[self.spread](clip.frames, self.frames, rng if self.train else None)
            frames = clip.read(picked)
        if self.train and self.augment:
            frames = pixels.random_resized_crop(rand_augment(frames, rng), self.size, rng)
            if rng.random() < 0.5 and (self.mirror_sides or not _SIDES.search(action.label)):
                frames = pixels.flipped(frames)
        else:
            frames = _central(frames, self.size)
        return _sample(frames, label=np.int32(action.label_id))


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Captioned -> {"frames", "text" int32 [l]}; training draws one of the captions.

    tokens: text -> row of ids. mirror_sides: as of `Recognition`, by the caption.
    """

    tokens: Tokens
    frames: int = 16
    size: int = 224
    train: bool = True
    augment: bool = True
    keep: bool = False
    mirror_sides: bool = True

    def __call__(self, record: Any, rng: Rng) -> Sample:
        video = _usable(record, Captioned)
        place = int(rng.integers(0, len(video.captions))) if self.train else 0
        text = _told_text(video.captions[place], told_name(video.video), "caption")
        with open_clip(video.video, keep=self.keep) as clip:
            total = clip.frames
            if video.seconds is not None:
                total = max(1, min(total, int(video.seconds * clip.fps)))
            picked = sampling.interval_indices(total, self.frames, rng if self.train else None)
            frames = clip.read(picked)
        if not self.train:
            frames = _squashed(frames, self.size)
        elif not self.augment:
            frames = _central(frames, self.size)
        else:
            window = pixels.random_window(frames, self.size, rng)
            frames = window.of_frames(frames, "smooth")
            if rng.random() < 0.5 and (self.mirror_sides or not _SIDES.search(text)):
                frames = pixels.flipped(frames)
        return _sample(frames, text=_ids(self.tokens, text))


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Moment -> {"frames", "text" int32 [l], "inside" uint8 [t]}, 1 where the text is true.

    Evaluation adds "times" float32 [t], the frames' seconds. tokens: text -> row of ids. around:
    training shows about a frame a second around the moment ("fixfps" of the published run), or,
    where false, the whole video ("uniform").
    """

    tokens: Tokens
    frames: int = 16
    size: int = 224
    train: bool = True
    augment: bool = True
    keep: bool = False
    around: bool = True

    def __call__(self, record: Any, rng: Rng) -> Sample:
        moment = _usable(record, Moment)
        text = _told_text(moment.text, told_name(moment.video), "text")
        with open_clip(moment.video, keep=self.keep) as clip:
            _check_spans(moment, clip)
            if not self.train:
                picked = sampling.even_indices(clip.frames, self.frames)
            elif self.around:
                picked = sampling.moment_indices(
                    clip.frames, clip.fps, self.frames, moment.start, moment.end, rng
                )
                picked = np.maximum(picked, 0)
            else:
                picked = sampling.segment_indices(clip.frames, self.frames, rng)
            frames, times = clip.read(picked), np.round(picked / clip.fps, 2)
        frames = _square(frames, self.size, rng if self.train and self.augment else None)
        sample = _sample(
            frames, text=_ids(self.tokens, text), inside=is_inside(moment, times).astype(np.uint8)
        )
        return sample if self.train else sample | {"times": times.astype(np.float32)}


@dataclass(frozen=True, kw_only=True)
class Localization:
    """Moment -> {"frames", "classes" int32 [t] (-1 background), "dataset" int32 []}.

    Evaluation takes a `LocalizedVideo`, for several classes may be seen at once, and gives "times"
    float32 [t] in seconds and "shown" uint8 [t c] in place of "classes"; c is the largest set's.

    sizes: {data set: number of classes}, in the order in which "dataset" counts them.
    """

    sizes: Mapping[str, int]
    frames: int = 16
    size: int = 224
    train: bool = True
    augment: bool = True
    keep: bool = False

    def __call__(self, record: Any, rng: Rng) -> Sample:
        video = _usable(record, Moment if self.train else LocalizedVideo)
        moments = (video,) if isinstance(video, Moment) else video.moments
        name = told_name(video.video)
        dataset = _place(self.sizes, video.dataset, name)
        with open_clip(video.video, keep=self.keep) as clip:
            for moment in moments:
                _told_text(moment.text, name, "label")
                _check_class(moment.label_id, video.dataset, self.sizes, name)
                _check_spans(moment, clip)
            picked = sampling.segment_indices(clip.frames, self.frames, rng if self.train else None)
            frames, times = clip.read(picked), np.round(picked / clip.fps, 2)
        frames = _square(frames, self.size, rng if self.train and self.augment else None)
        if self.train:
            return _sample(frames, classes=frame_labels(moments[0], times), dataset=dataset)
        shown = shown_classes(moments, times, max(self.sizes.values())).astype(np.uint8)
        return _sample(frames, shown=shown, dataset=dataset, times=times.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class _Masked:
    """What the tasks whose frames are pictures with masks have in common."""

    frames: int = 16
    size: int = 224
    train: bool = True
    augment: bool = True
    keep: bool = False
    _maps: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def _annotated(
        self, video: Instances | Referred, maps_of: Maps, picture: bool, rng: Rng
    ) -> tuple[pixels.Cut, Int32[np.ndarray, "t H W"]]:
        """Squares of the frames that are drawn and of their maps; of a picture, turned copies."""
        drawn = rng if self.train and not picture else None
        picked = sampling.padded_indices(len(video.frames), self.frames, drawn)
        once, back = np.unique(picked, return_inverse=True)
        paths = [path for i in once if isinstance(path := video.frames[i], Path)]
        if self.keep and len(paths) == len(once):
            frames = np.stack([_kept_picture(path) for path in paths])
            if video.where not in self._maps:
                every = maps_of(range(len(video.frames)))
                self._maps[video.where] = every.astype(np.uint8) if every.max() < 256 else every
            maps = self._maps[video.where][once].astype(np.int32)
        else:
            frames, maps = read_pictures([video.frames[i] for i in once]), maps_of(once)
        if maps.shape != frames.shape[:3]:
            raise InputError(
                f"{video.where}: masks are {maps.shape[1]}x{maps.shape[2]}, but its frames "
                f"{frames.shape[1]}x{frames.shape[2]} ({told_name(video.frames[0])})"
            )
        if not (self.train and self.augment):
            window = pixels.centre_window(frames, self.size)
            return window.of_frames(frames)[back], window.of_classes(maps)[back]
        if picture:
            frames, maps = pixels.rotate_copies(frames[0], maps[0], self.frames, rng)
        else:
            frames, maps = frames[back], maps[back]
        window = pixels.masked_window(maps, self.size, rng)
        return window.of_frames(frames), window.of_classes(maps)


@dataclass(frozen=True, kw_only=True)
class Segmentation(_Masked):
    """Instances -> {"frames", "classes" int32 [t h w] (0 not counted), "dataset" int32 []}.

    Training adds "choices" int32 [k], the class ids that compete: all of the data set, or of more
    than 100 those that are seen and others, drawn; -1 is padding; k = min(100, largest set).
    A picture of COCO becomes a video of copies, each turned on its own.

    sizes: {data set: number of classes}, in the order in which "dataset" counts them.
    parity: "upstream" may draw class 0, the background, as one of the others (Q4).
    shift_coco: COCO's ids are one higher, with "background" before them, so that its first class,
        "person", is learned too; upstream takes it for background (Q11).
    """

    sizes: Mapping[str, int]
    parity: Literal["fixed", "upstream"] = "fixed"
    shift_coco: bool = False

    def __call__(self, record: Any, rng: Rng) -> Sample:
        video = _usable(record, Instances)
        dataset = _place(self.sizes, video.dataset, video.where)
        if all(mask is None for one in video.instances for mask in one.masks):
            raise InputError(f"{video.where}: no object has a mask in any frame")
        shift = int(self.shift_coco and video.dataset == COCO)
        for instance in video.instances:
            _check_class(instance.label_id + shift, video.dataset, self.sizes, video.where)

        def maps(picked: Any) -> np.ndarray:
            return np.stack([class_map(video, i, shift) for i in picked])

        frames, classes = self._annotated(video, maps, video.picture, rng)
        if self.train and self.augment and rng.random() < 0.5:
            frames, classes = pixels.flipped(frames), pixels.flipped(classes)
        sample = _sample(frames, classes=np.ascontiguousarray(classes), dataset=dataset)
        return sample | {"choices": self._choices(classes, video, rng)} if self.train else sample

    def _choices(self, classes: np.ndarray, video: Instances, rng: Rng) -> Int32[np.ndarray, " k"]:
        """The class ids that compete for the pixels of a clip."""
        total = self.sizes[video.dataset]
        chosen = np.arange(total)
        if total > MOST_CLASSES:
            seen = np.unique(classes[classes > 0])
            if len(seen) > MOST_CLASSES:
                raise InputError(f"{video.where}: {len(seen)} classes; at most {MOST_CLASSES}")
            others = np.setdiff1d(chosen if self.parity == "upstream" else chosen[1:], seen)
            drawn = rng.permutation(others)[: MOST_CLASSES - len(seen)]
            chosen = np.concatenate([seen, drawn])
        out = np.full(min(MOST_CLASSES, max(self.sizes.values())), -1, np.int32)
        out[: len(chosen)] = chosen
        return out


@dataclass(frozen=True, kw_only=True)
class Referring(_Masked):
    """Referred -> {"frames", "text" int32 [l], "mask" uint8 [t h w]}, 1 on what the text means.

    The object may be in none of the frames that were drawn. tokens: text -> row of ids.
    """

    tokens: Tokens

    def __call__(self, record: Any, rng: Rng) -> Sample:
        video = _usable(record, Referred)
        text = _told_text(video.text, video.where, "text")

        def maps(picked: Any) -> np.ndarray:
            return referred_masks(video, picked).astype(np.int32)

        frames, mask = self._annotated(video, maps, video.size is not None, rng)
        return _sample(frames, text=_ids(self.tokens, text), mask=mask.astype(np.uint8))


# --- records -----------------------------------------------------------------------------------


def _usable(record: Any, kind: type[Kind]) -> Kind:
    if isinstance(record, BadRow):
        raise InputError(record.reason)
    if not isinstance(record, kind):
        raise InputError(f"record is {type(record).__name__}; wanted {kind.__name__}")
    return record


def _told_text(text: str, name: str, what: str) -> str:
    if not text.strip():
        raise InputError(f"{name}: its {what} is empty; wanted words")
    return text


def _place(sizes: Mapping[str, int], dataset: str, name: str) -> np.int32:
    if dataset not in sizes:
        raise InputError(f"{name}: dataset {dataset!r}; labels are known of {sorted(sizes)}")
    return np.int32(list(sizes).index(dataset))


def _check_class(label_id: int, dataset: str, sizes: Mapping[str, int], name: str) -> None:
    if not 0 <= label_id < sizes[dataset]:
        raise InputError(f"{name}: class {label_id} of {dataset}, which has {sizes[dataset]}")


def _check_spans(moment: Moment, clip: Clip | KeptClip) -> None:
    """InputError: a span that ends before it starts, or none that touches the video."""
    name, seconds = told_name(moment.video), clip.frames / clip.fps
    for start, end in ((moment.start, moment.end), *moment.windows):
        if end < start:
            raise InputError(
                f"{name}: {moment.text[:40]!r} ends at {end:g} s, before it starts at {start:g} s"
            )
    counted = moment.windows if len(moment.windows) > 1 else ((moment.start, moment.end),)
    if all(start > seconds or end < 0 for start, end in counted):
        raise InputError(
            f"{name}: {moment.text[:40]!r} is at {counted[0][0]:g} to {counted[0][1]:g} s, outside "
            f"of the video's {seconds:.2f} s"
        )


# --- pixels ------------------------------------------------------------------------------------


def _sample(frames: np.ndarray, **rest: Any) -> Sample:
    return {"frames": np.ascontiguousarray(frames), **rest}


def _ids(tokens: Tokens, text: str) -> Int32[np.ndarray, " l"]:
    return np.asarray(tokens(text), np.int32)


def _central(frames: pixels.Frames, size: int) -> pixels.Cut:
    return pixels.centre_window(frames, size).of_frames(frames)


def _square(frames: pixels.Frames, size: int, rng: Rng | None) -> pixels.Cut:
    """The short side at `size` and a random square of it; the central one without a generator."""
    if rng is None:
        return _central(frames, size)
    return pixels.random_window(frames, size, rng).of_frames(frames)


def _squashed(frames: pixels.Frames, size: int) -> UInt8[np.ndarray, "t size size 3"]:
    pictures = (Image.fromarray(frame) for frame in frames)
    return np.stack(
        [np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in pictures]
    )


@functools.cache
def _kept_picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    return read_picture(path, "RGB")
