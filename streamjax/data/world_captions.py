"""Pictures of the embedded world with sentences about them: what a tiny SigLIP learns from.

StreamFormer's pre-training begins with a SigLIP, which has seen pictures and their captions and no
video. The world's own is trained on single frames, and reads the same annotation files as the video
tasks do: instance masks say who is in a frame, grounded sentences what goes on there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from streamjax.data.annotations.files import read_label_sets
from streamjax.data.annotations.masks import read_instances, read_pictures
from streamjax.data.annotations.moments import Moment, is_inside, read_grounding
from streamjax.data.media import Media, told_name


@dataclass(frozen=True)
class CaptionedFrame:
    """A picture, the names of what is in it, and the sentences that are true of it."""

    picture: Media
    names: tuple[str, ...]
    sentences: tuple[str, ...]


def read_frames(folder: str | Path, split: str, dataset: str = "World") -> list[CaptionedFrame]:
    """Every second of every clip of a split of a folder laid out as `world_files` writes it.

    Raises InputError when a file is corrupt or missing.
    """
    folder = Path(folder)
    labels = read_label_sets(folder / "vis" / "label2id.json")[dataset]
    name_of = {number: name for name, number in labels.items()}
    moments: dict[str, list[Moment]] = {}
    for moment in read_grounding(folder / "grounding" / f"{split}.csv", root=folder / "videos"):
        moments.setdefault(Path(told_name(moment.video)).stem, []).append(moment)
    frames = []
    for video in read_instances(
        folder / "vis" / f"{split}_{dataset}.json", root=folder / "vis" / "frames", labels=labels
    ):
        told = moments.get(Path(told_name(video.frames[0])).parent.name, [])
        for second, picture in enumerate(video.frames):
            seen = [i for i in video.instances if i.masks[second] is not None]
            names = tuple(dict.fromkeys(name_of[i.label_id] for i in seen))
            true = tuple(m.text for m in told if is_inside(m, [second])[0])
            frames.append(CaptionedFrame(picture, names, true))
    return [frame for frame in frames if frame.names]


@dataclass
class FrameSamples:
    """Frame -> {"frames" uint8 [1 h w 3], "text" int32 [l]}: a clip of one frame for retrieval.

    tokens: sentence -> ids. The sentence is drawn: who is there, all in one and in random order;
    one of them alone; or what goes on.
    """

    tokens: Callable[[str], Int32[np.ndarray, " l"]]

    def __call__(self, frame: CaptionedFrame, rng: np.random.Generator) -> dict[str, np.ndarray]:
        kind = rng.choice(3, p=(0.5, 0.2, 0.3))
        if kind == 2 and frame.sentences:
            text = str(rng.choice(frame.sentences))
        elif kind == 1:
            text = f"a {rng.choice(frame.names)}"
        else:
            text = "there is " + ", ".join(f"a {name}" for name in rng.permutation(frame.names))
        return {"frames": read_pictures([frame.picture]), "text": self.tokens(text)}
