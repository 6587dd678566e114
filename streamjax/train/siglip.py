"""A small SigLIP of one's own: pictures against sentences, for those who have no released one.

StreamFormer's pre-training begins with a SigLIP. For the embedded world there is none, so one is
trained on the world's single frames, and written as a SigLIP folder: all that follows is what
follows for google/siglip-base-patch16-224.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data.captions import CLASS_TEMPLATES, build_caption_tokenizer
from streamjax.data.processors import Assets
from streamjax.data.world import LIGHTS, VERBS, WorldConfig
from streamjax.data.world_files import TASKS, read_manifest, write_world
from streamjax.losses import video_text
from streamjax.models.siglip import Siglip
from streamjax.models.siglip_text import SiglipTextConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.train.objectives import Batch, normalise

# The tower's parts that stay as they are: a SigLIP has no time.
TEMPORAL = ("tower/time", "tower/layers/gate", "tower/layers/temporal",
            "tower/layers/temporal_norm", "tower/layers/temporal_dense")  # fmt: skip


def contrast(model: Siglip, batch: Batch) -> tuple[jax.Array, jax.Array, Mapping[str, Any]]:
    """SigLIP's loss of pictures and sentences; metric: how often a picture's own is nearest.

    batch: frames uint8 [b 1 h w 3], text int [b l].
    """
    seen, said = model.pictures(normalise(batch["frames"])), model.texts(batch["text"])
    losses, nearest = video_text.retrieval(
        seen, said, model.logit_scale[...], model.logit_bias[...]
    )
    rows = jnp.float32(len(losses))
    return losses.sum(), rows, {"top1": (nearest.sum(), rows)}


def fresh(
    rngs: nnx.Rngs, *, vision: StreamFormerConfig, text: SiglipTextConfig, tokenizer: str
) -> Siglip:
    """A SigLIP with random weights and a shut temporal part; `tokenizer` is its texts' folder."""
    model = Siglip(vision, text, rngs=rngs)
    model.tower.assets = Assets(tokenizer=tokenizer)
    return model


def make_world(folder: str | Path, world: WorldConfig, *, train: int, held_out: int) -> Path:
    """The embedded world as videos, annotations of all six tasks and a tokenizer of its words.

    What is there already is kept. Raises InputError when another world is there.
    """
    folder = Path(folder)
    for split, count in (("train", train), ("test", held_out)):
        if _written(folder, split) != count:
            tasks = [task for task in TASKS if task != "streamo"]
            write_world(folder, split, count, world, tasks=tasks)
    if not (folder / "tokenizer.json").is_file():
        build_caption_tokenizer(_words(world), folder)
    return folder


def _written(folder: Path, split: str) -> int:
    return read_manifest(folder)[1].get(split, 0) if (folder / "world.json").exists() else 0


def _words(world: WorldConfig) -> list[str]:
    """Texts with every word of a world's captions, class names and prompts."""
    verbs = (VERBS[action] for action in world.actions)
    frame = "there is the light everything that then background"
    return [frame, *CLASS_TEMPLATES, *world.colours, *world.shapes, *LIGHTS, *verbs]
