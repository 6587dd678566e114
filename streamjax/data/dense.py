"""Words for a tower to learn: per patch what stands there, per frame who does what.

Joins two annotation files that any data set of instance masks and moments has: the masks say which
"red circle" covers a patch, the grounded sentence "the red circle grows" says when it acts. Aspects
of both are the colour, the shape, the action that goes on, and the one that ended just now; a frame
also has the colour that the light shows, and the one that it turned to just now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from streamjax.data.annotations.files import read_label_sets
from streamjax.data.annotations.masks import Instances, class_map, read_instances
from streamjax.data.annotations.moments import Moment, read_grounding, read_localization
from streamjax.data.media import told_name
from streamjax.data.video import video
from streamjax.errors import InputError

PATCH_ASPECTS = ("colour", "shape", "doing", "done")
FRAME_ASPECTS = (*PATCH_ASPECTS, "light", "turned")
LIGHT = "light"  # the shape whose colour is the light's


@dataclass(frozen=True)
class Words:
    """The labels of each aspect; number 0 of each is "none", and label i is `words[i - 1]`."""

    colour: tuple[str, ...]
    shape: tuple[str, ...]
    action: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Labels per aspect, "none" included."""
        return {aspect: len(names) + 1 for aspect, names in self.of.items()}

    @property
    def of(self) -> dict[str, tuple[str, ...]]:
        """The words of each aspect."""
        return {
            "colour": self.colour, "shape": self.shape, "doing": self.action, "done": self.action,
            "light": self.colour, "turned": self.colour,
        }  # fmt: skip


@dataclass(frozen=True)
class DenseClip:
    """A video file with its masks, and its moments as (category name, action, windows)."""

    path: Path
    masks: Instances
    moments: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]


def read_words(folder: str | Path, dataset: str = "World") -> Words:
    """The words of a data set whose categories are called "<colour> <shape>"."""
    folder = Path(folder)
    things = read_label_sets(folder / "vis" / "label2id.json")[dataset]
    pairs = [name.split(" ", 1) for name in things if " " in name]
    verbs = read_label_sets(folder / "localization" / "label2id.json")[dataset]
    return Words(
        tuple(dict.fromkeys(colour for colour, _ in pairs)),
        tuple(dict.fromkeys(shape for _, shape in pairs)),
        tuple(verbs),
    )


def read_dense(folder: str | Path, split: str, dataset: str = "World") -> list[DenseClip]:
    """The clips of one split of a folder laid out as `world_files` writes it.

    Raises InputError when a file is corrupt, FileNotFoundError when one is missing.
    """
    folder = Path(folder)
    labels = read_label_sets(folder / "vis" / "label2id.json")[dataset]
    videos = read_instances(
        folder / "vis" / f"{split}_{dataset}.json", root=folder / "vis" / "frames", labels=labels
    )
    moments: dict[str, list[Moment]] = {}
    for moment in read_grounding(folder / "grounding" / f"{split}.csv", root=folder / "videos"):
        moments.setdefault(Path(told_name(moment.video)).stem, []).append(moment)
    verbs = read_label_sets(folder / "localization" / "label2id.json")
    acts = read_localization(
        folder / "localization" / f"{split}.csv", verbs, root=folder / "videos"
    )
    known = sorted({act.text for act in acts}, key=len, reverse=True)
    clips = []
    for found in videos:
        name = Path(told_name(found.frames[0])).parent.name
        told = tuple(
            (subject, verb, moment.windows)
            for moment in moments.get(name, [])
            for subject, verb in [_split(moment.text, known)]
        )
        clips.append(DenseClip(folder / "videos" / f"{name}.mp4", found, told))
    return clips


def patch_labels(
    clip: DenseClip,
    labels: Mapping[str, int],
    words: Words,
    *,
    frames: int,
    patch: int,
    share: float = 0.16,
) -> Int8[np.ndarray, "4 t p"]:
    """The labels of each patch of the first `frames` seconds, one row per aspect.

    A patch belongs to the category that covers most of it, if that is at least `share` of its
    area. "doing" lasts while a moment does; "done" marks the one second after. Seconds that the
    clip does not have are -1.
    """
    names = {number: name for name, number in labels.items()}
    rows, columns = clip.masks.height // patch, clip.masks.width // patch
    out = np.full((len(PATCH_ASPECTS), frames, rows * columns), -1, np.int8)
    for second in range(min(frames, len(clip.masks.frames))):
        pixels = class_map(clip.masks, second)[: rows * patch, : columns * patch]
        blocks = pixels.reshape(rows, patch, columns, patch).swapaxes(1, 2)
        blocks = blocks.reshape(rows * columns, patch * patch)
        out[:, second] = 0
        present = np.unique(blocks[blocks > 0]).tolist()
        covers = {number: (blocks == number).mean(1) for number in present}
        most = np.max([*covers.values(), np.zeros(len(blocks))], axis=0)
        for number, cover in covers.items():
            here = (cover >= share) & (cover == most)
            colour, shape = names[number].split(" ", 1)
            out[0, second, here] = words.colour.index(colour) + 1
            out[1, second, here] = words.shape.index(shape) + 1
            for subject, action, windows in clip.moments:
                if subject != names[number]:
                    continue
                verb = words.action.index(action) + 1
                if any(start <= second <= end for start, end in windows):
                    out[2, second, here] = verb
                if any(int(np.floor(end)) + 1 == second for _, end in windows):
                    out[3, second, here] = verb
    return out


def frame_labels(
    clip: DenseClip, labels: Mapping[str, int], words: Words, *, frames: int
) -> Int8[np.ndarray, "6 t"]:
    """The labels of each of the first `frames` seconds: who acts, how, and the light.

    The actor is named while a moment lasts and in the second after; a later moment of the list
    wins where two overlap. Seconds that the clip does not have are -1.
    """
    out = np.full((len(FRAME_ASPECTS), frames), -1, np.int8)
    seconds = min(frames, len(clip.masks.frames))
    out[:, :seconds] = 0
    for subject, action, windows in clip.moments:
        colour, shape = subject.split(" ", 1)
        who = words.colour.index(colour) + 1, words.shape.index(shape) + 1
        verb = words.action.index(action) + 1
        for start, end in windows:
            first, after = int(np.ceil(start)), int(np.floor(end)) + 1
            out[0, first : after + 1], out[1, first : after + 1] = who
            out[2, first:after] = verb
            out[3, after : after + 1] = verb
    numbers = {number: name for name, number in labels.items()}
    for instance in clip.masks.instances:
        colour, shape = numbers[instance.label_id].split(" ", 1)
        if shape == LIGHT:
            on = np.array([mask is not None for mask in instance.masks[:seconds]])
            out[4, :seconds][on] = words.colour.index(colour) + 1
    light = out[4, :seconds]
    out[5, 1:seconds] = np.where(light[1:] != light[:-1], light[1:], 0)
    out[:, seconds:] = -1
    return out


@dataclass
class DenseSamples:
    """Clip -> {"frames" uint8 [t h w 3], "patches" int8 [4 t p], "actors" int8 [6 t]}.

    labels: category name -> number. Labels are made once a clip and kept.
    """

    labels: Mapping[str, int]
    words: Words
    frames: int
    patch: int

    def __post_init__(self):
        self._made: dict[Path, dict[str, np.ndarray]] = {}

    def __call__(self, clip: DenseClip, rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng  # nothing is drawn: the whole clip is the sample
        if clip.path not in self._made:
            size = {"frames": self.frames, "patch": self.patch}
            self._made[clip.path] = {
                "patches": patch_labels(clip, self.labels, self.words, **size),
                "actors": frame_labels(clip, self.labels, self.words, frames=self.frames),
            }
        return {"frames": clip_frames(clip.path, self.frames), **self._made[clip.path]}


@lru_cache(maxsize=4096)
def clip_frames(path: Path, frames: int) -> np.ndarray:
    """The first `frames` seconds of a video at 1 fps, uint8 [t h w 3], the last frame repeated.

    Kept in memory: 4096 clips of 20 frames of 64x64 are 1 GB, and an epoch decodes nothing twice.
    """
    found = list(video(path, fps=1, max_frames=frames))
    return np.stack(found + [found[-1]] * (frames - len(found)))


def _split(text: str, verbs: Sequence[str]) -> tuple[str, str]:
    """ "the red circle grows" -> ("red circle", "grows")."""
    for verb in verbs:
        if text.startswith("the ") and text.endswith(f" {verb}"):
            return text[len("the ") : -len(verb) - 1], verb
    raise InputError(f"moment {text!r}: wanted 'the <category> <verb>' with a known verb")
