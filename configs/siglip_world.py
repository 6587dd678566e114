"""A tiny SigLIP learns the embedded world's pictures and what is said of them.

    streamjax train siglip_world

StreamFormer's pre-training begins with a SigLIP, and the world has no released one. Single frames
of its videos against sentences: who is there, one of them, or what is going on. The temporal part
stays shut. `streamformer_world` runs this by itself where it is given no SigLIP.

Ran in 52 s on 2 busy cores of an AMD EPYC; of 48 pictures 40 % then have their own sentence
nearest.
"""

import functools
from pathlib import Path

from streamjax.data.captions import CaptionTokenizer
from streamjax.data.world import WorldConfig
from streamjax.data.world_captions import FrameSamples, read_frames
from streamjax.models.siglip_text import SiglipTextConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.train import CheckpointConfig, DataConfig, MeshConfig, OptimConfig, TrainConfig
from streamjax.train.siglip import TEMPORAL, contrast, fresh, make_world

WORLD = WorldConfig(
    seconds=(8, 10),
    things=(2, 3),
    events=(2, 3),
    light_changes=(1, 2),
    colours=("red", "green", "blue"),
    shapes=("circle", "square"),
    actions=("move", "grow", "blink", "drop"),
    hold_out=0,
)
WORDS = 32  # tokens of a text
VISION = StreamFormerConfig(
    image_size=64,
    patch_size=16,
    num_frames=8,
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=384,
    initializer_range=0.1,
    enable_causal_temporal=True,
)


def world_of(folder: str | Path) -> Path:
    """The world, made where it is not there yet."""
    return make_world(folder, WORLD, train=600, held_out=80)


def config(
    run: str | Path = "runs/siglip_world", world: str | Path | None = None, steps: int = 400
) -> TrainConfig:
    world = Path(world) if world else world_of(Path(run) / "world")
    words = CaptionTokenizer(world, length=WORDS)
    text = SiglipTextConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
    )
    return TrainConfig(
        name="siglip_world",
        steps=steps,
        batch_size=48,
        model=functools.partial(fresh, vision=VISION, text=text, tokenizer=str(world)),
        weights="fresh",
        objective=contrast,
        data=DataConfig(
            source=functools.partial(read_frames, world, "train"),
            transform=FrameSamples(words),
            threads=1,
            ahead=96,
        ),
        optim=OptimConfig(
            kind="muon", lr=0.02, adam_lr=3e-3, b2=0.99, warmup=0.05, final=0.02, weight_decay=0.01
        ),
        frozen=TEMPORAL,
        mesh=MeshConfig(data=1),  # small enough for one device, wherever it runs
        checkpoint=CheckpointConfig(every=200),
    )
