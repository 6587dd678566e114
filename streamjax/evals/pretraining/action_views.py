"""What a pre-trained StreamFormer says of the test views of Kinetics-400 and SSv2.

Views are the original's: 4 times x 3 places, or 2 x 3. A view's logits are those of pre-training,
exp(scale) * cosine of the last frame's feature with the class features + bias, with the model's own
label table; a classifier that was fine-tuned afterwards is another model. How views are merged, and
the scores: `evals/benchmarks/action_recognition.py`.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from streamjax.data import augment, sampling
from streamjax.data.media import Media
from streamjax.data.video import open_clip
from streamjax.errors import InputError
from streamjax.models.pretraining import Pretraining

TASKS = {"ar_k400": ("Kinetics", 400), "ar_ssv2": ("SSV2", 174)}  # -> task, classes
PLACES = 3


def views_of(
    benchmark: str, video: Media, *, frames: int = 16, size: int = 224
) -> Iterator[UInt8[np.ndarray, "v t h w 3"]]:
    """The views of a video, one array a time with its 3 places; decoded once.

    InputError: a video that is missing or broken.
    """
    with open_clip(video) as clip:
        if benchmark == "ar_k400":
            times = [sampling.view_indices(clip.frames, frames, i, 4) for i in range(4)]
        else:
            times = [sampling.stretch_view_indices(clip.frames, frames, i) for i in range(2)]
        pixels = clip.read(np.concatenate(times))
    for part in np.split(pixels, len(times)):
        places = [augment.side_window(part, size, place, PLACES) for place in range(PLACES)]
        yield np.stack([window.of_frames(part) for window in places])


def check(model: Pretraining, benchmark: str) -> None:
    """InputError unless the model has the benchmark's task and as many classes."""
    task, wanted = TASKS[benchmark]
    kinds = model.kinds
    if kinds.get(task) != "recognition":
        raise InputError(f"the model has the tasks {', '.join(kinds)}; {benchmark} wants {task}")
    classes = len(model.classes(task)[0])
    if classes != wanted:
        raise InputError(f"the model's {task} has {classes} classes; {benchmark} has {wanted}")


def view_logits(model: Pretraining, benchmark: str, video: Media) -> dict[str, list[float]]:
    """{"<time> <place>": logits}, as `action_recognition.answers` reads them.

    The model's number of frames and picture size. InputError: a video that is missing or broken.
    """
    task, _ = TASKS[benchmark]
    table, head = model.classes(task)[0], model.heads[task]
    config = model.tower.config
    scale, bias = (float(a[...]) for a in (head.logit_scale, head.logit_bias))
    classes = np.asarray(table, np.float64)
    batches = views_of(benchmark, video, frames=config.num_frames, size=config.image_size)
    found = {}
    for time, views in enumerate(batches):
        cosine = np.asarray(_features(model, views), np.float64) @ classes.T
        rows = np.exp(scale) * cosine + bias
        found |= {f"{time} {place}": row.tolist() for place, row in enumerate(rows)}
    return found


@jax.jit
def _features(model, frames):
    """frames uint8 [v t h w 3] -> unit features [v d] of the last ones."""
    return model.pooled(frames.astype(jnp.float32) / 127.5 - 1.0)[:, -1]
