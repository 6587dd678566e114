"""InternVL3-2B learns Streamo's task: to watch, and when to speak.

    streamjax train streamo_internvl3_2b base=InternVL3-2B-hf \\
        annotations=Streamo-Instruct-465K/ videos=videos/
    streamjax train streamo_internvl3_2b --tiny

`base` is the model's folder (OpenGVLab/InternVL3-2B-hf of the hub). `annotations` is a file of
Streamo's raw records, or a folder of such .json files: maifoundations/Streamo-Instruct-465K of the
hub, which holds labels only. `videos` is the folder that their paths are relative to, to be filled
from each source.

The published run: 512 dialogues a step, one to a row; one epoch (465,800 / 512 = 909 steps); AdamW
with betas .9 and .95 at 1e-5, cosine to 0 after 5 % of warm-up, decay .1, clipping at norm 1; focal
loss with gamma 2, alpha from each dialogue's own states; the tower frozen, projector and language
model trained, bfloat16 with float32 weights of what is trained; one frame a second, one tile of 256
visual tokens; 32,768 tokens at most (about 115 seconds), longer dialogues skipped. All of this is
what the paper and the released code say of Qwen2.5-VL; of InternVL3 it is known only that it was
trained so too. How many tiles a frame got is not among it: one, as videos have it.

What differs: dialogues keep the answers that the released converter loses and frames do not drift
(`parity=upstream` for word for word, docs/differences.md); the loss is computed in float32; a
sample that cannot be made is left out, not replaced by another at random. The three state tokens
take the embeddings from 151,674 rows to 151,680; each new row is the mean of the old.

Eight devices of 80 GB are assumed (mesh.fsdp=8, a row each at a time). A row is padded to 32,768
tokens, several times the mean dialogue: `dialogues=16 batch_size=128 accumulate=16` puts dialogues
side by side instead, an estimated three to a row by the paper's durations; each keeps its own loss.

Not run here: no time and no score is claimed. `--tiny` (a random model of the family with 2 + 2
layers, 60 steps on the embedded world, exported) took 71 s on one busy core of an AMD EPYC.
"""

import functools
from pathlib import Path

from streamjax.models.layers import Remat
from streamjax.train import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig, streamo
from streamjax.train.objectives import converse
from streamjax.train.shapes import streamo_start as shaped

NAME = "streamo_internvl3_2b"
TRAINED = ("decoder", "projector")


def config(
    base: str | Path = "InternVL3-2B-hf",
    annotations: str | Path = "Streamo-Instruct-465K",
    videos: str | Path = "videos",
    length: int = 32768,
    dialogues: int = 1,
    parity: str = "fixed",
    remat: Remat = "nothing_saveable",
    run: str | Path | None = None,
    tiny: bool = False,
    shapes: bool = False,
) -> TrainConfig:
    home = Path(run or f"runs/{NAME}{'_tiny' * tiny}")
    if tiny:
        start = streamo.from_world("internvl", home)
    elif shapes:
        start = shaped("internvl", "2B", trained=TRAINED, length=length, dialogues=dialogues)
    else:
        start = streamo.from_base(
            "internvl", base, home, annotations=annotations, videos=videos, trained=TRAINED,
            length=length, dialogues=dialogues, parity=parity,
        )  # fmt: skip
    published = TrainConfig(
        name=NAME,
        steps=max(start.records // 512, 1),
        batch_size=512,
        accumulate=64,
        model=functools.partial(start.model, remat=remat),
        weights=start.weights,
        objective=functools.partial(
            converse, state_ids=start.state_ids, kind="focal", gamma=2.0, alpha="present"
        ),
        data=start.data,
        optim=OptimConfig(
            kind="adamw", lr=1e-5, schedule="cosine", warmup=0.05, final=0.0,
            b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0,
        ),
        trainable=TRAINED,
        seed=42,
        mesh=MeshConfig(fsdp=8),
        checkpoint=CheckpointConfig(every=100, keep=2),
        log_every=5,
    )  # fmt: skip
    return streamo.shrunk(published) if tiny else published
