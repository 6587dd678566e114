"""StreamFormer as published: SigLIP-B/16 learns video from six (or seven) tasks at once.

    streamjax train streamformer_pretrain siglip=siglip-base-patch16-224 data=pretraining/
    streamjax train streamformer_pretrain --tiny

`siglip` is the folder of google/siglip-base-patch16-224. `data` holds annotations and media, one
folder a task (docs/data.md), as files or packed by `streamjax data pack`; tasks that it does not
hold are not trained. The original's list has Kinetics-400 and SSv2 (recognition), MSRVTT, MSVD,
ActivityNet, DiDeMo, LSMDC, VATEX (retrieval), Charades-STA, QVHighlights, TaCoS, ActivityNet
Captions, DiDeMo, QuerYD (grounding), ActivityNet, FineAction, HACS (localisation), YouTube-VIS
2019, LV-VIS, COCO (segmentation), and, in the paper, MeViS and Refer-YouTube-VOS (referring), which
the released list leaves out: about a million samples.

The published run: 8 GPUs with 16 clips each of one task, gradients of one such mini-batch per task
added up (896 clips an update with seven tasks); 20 epochs; 16 frames of 224 x 224; AdamW with betas
.9 and .999, decay .05 (scales, gates and embeddings too), no clipping; 7e-5, and, because the
original reads its cosine from the start in every epoch, within 0.6 % of that to the end
(`cosine=whole` for the schedule that was meant); LoRA of rank 32 on the frozen spatial attention.
Hardware type and hours are not known to us.

What differs: bfloat16 instead of float16 with loss scaling; the samplers' overruns, the retrying of
broken samples and the referring task's data faults are mended (docs/differences.md).

Scores in the paper are of downstream use: online action detection on THUMOS14 73.8 mAP with flow
and 68.3 without, TVSeries 87.8 mcAP (88.1 in the supplement), VideoMME 55.0 without subtitles. Not
run here: no time and no score is claimed. `--tiny`, a random SigLIP of three layers on the embedded
world, shows that the path works.
"""

import functools
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

from streamjax.data.captions import CaptionTokenizer
from streamjax.data.samplers import balance, balanced_order
from streamjax.data.tasks import open_tasks
from streamjax.models.pretraining import frozen
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.train import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig
from streamjax.train import shapes as blank
from streamjax.train.config import streamformer_undecayed
from streamjax.train.pretraining import from_siglip, tiny_start
from streamjax.train.video_tasks import objectives

CLIPS = 128  # of one task in a mini-batch, over all devices
EPOCHS = 20
SAMPLES = 1_000_000  # about; the number of updates of a run in shapes alone


def config(
    siglip: str | Path = "siglip-base-patch16-224",
    data: str | Path = "pretraining",
    cosine: Literal["published", "whole"] = "published",
    run: str | Path = "runs/streamformer_pretrain",
    tiny: bool = False,
    shapes: bool = False,
) -> TrainConfig:
    clips, epochs, frames, size = CLIPS, EPOCHS, 16, 224
    dtype, remat = (jnp.float32, None) if tiny else (jnp.bfloat16, "nothing_saveable")
    if shapes:
        kinds = {name: kind for name, (kind, _) in blank.TASKS.items()}
        every = blank.pretraining_data(frames=frames, size=size)
        epoch = SAMPLES // (clips * len(every))
        model = functools.partial(blank.pretraining, num_frames=frames)
    else:
        if tiny:
            (siglip, data), (clips, epochs, frames, size) = tiny_start(run), (2, 1, 4, 64)
        words = CaptionTokenizer(siglip)
        tasks = open_tasks(data, tokens=words, frames=frames, size=size)
        kinds = {name: task.kind for name, task in tasks.items()}
        sizes = {name: len(task.source()) for name, task in tasks.items()}
        copies = balance(sizes)
        order = balanced_order({name: n * copies[name] for name, n in sizes.items()}, clips)
        epoch = len(order) // len(tasks)  # updates
        model = functools.partial(
            from_siglip,
            siglip=str(siglip),
            kinds=kinds,
            labels={name: task.labels for name, task in tasks.items()},
            words=words,
            num_frames=frames,
        )
        every = {
            name: task.data(workers=0 if tiny else 16, threads=2, max_bad=0.05)
            for name, task in tasks.items()
        }
    return TrainConfig(
        name=f"streamformer_pretrain{'_tiny' * tiny}",
        steps=epochs * epoch,
        batch_size=clips,
        model=functools.partial(model, dtype=dtype, remat=remat),
        weights="fresh" if shapes else "loaded",
        objective=objectives(kinds),
        data=every,
        order="balanced",
        accumulate=len(every),
        optim=OptimConfig(
            lr=7e-5,
            restart=epoch if cosine == "published" else None,
            weight_decay=0.05,
            no_decay=streamformer_undecayed,
            clip=None,
        ),
        seed=42,
        frozen=frozen(StreamFormerConfig(add_lora_spatial=True)),
        mesh=MeshConfig(data=1 if tiny else -1),
        checkpoint=CheckpointConfig(every=500),
    )
