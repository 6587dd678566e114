"""What the published recipes start from in shapes alone: sizes instead of folders, blank samples
instead of data. For `streamjax fit`, which computes nothing.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import (
    Assets,
    InternVLImageProcessor,
    Processor,
    QwenImageProcessor,
)
from streamjax.data.rows import Patches
from streamjax.data.samples import COCO, MOST_CLASSES
from streamjax.data.tokenizer import embedding_rows
from streamjax.models import internvl, qwen2_5_vl, qwen3_vl
from streamjax.models.layers import Remat
from streamjax.models.pretraining import Pretraining
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.models.vlm import VideoLM
from streamjax.models.vocabulary import grow
from streamjax.train.state import named
from streamjax.train.streamo import FRAME_TOKENS, Family, Start, fresh, rows_of

STATES = 3
RECORDS = 465_800  # of Streamo-Instruct
TEXT = 64  # tokens of a caption
# StreamFormer's tasks and the sizes of their label sets (specs/streamformer.md section 6.1, 9).
TASKS: dict[str, tuple[str, dict[str, int]]] = {
    "Kinetics": ("recognition", {"kinetics": 400}),
    "SSV2": ("recognition", {"ssv2": 174}),
    "TaskRetrieval": ("retrieval", {}),
    "TaskGrounding": ("grounding", {}),
    "TaskLocalization": ("localization", {"ActivityNet": 200, "FineAction": 106, "HACS": 200}),
    "TaskVIS": ("segmentation", {"YoutubeVIS": 40, "LVVIS": 1196, COCO: 80}),
    "TaskReferVOS": ("referring", {}),
}


def streamo_start(
    family: Family, size: str, *, trained: tuple[str, ...], length: int, dialogues: int
) -> Start:
    """`streamo.from_base` without a base: the released size of a family ("7B"), blank dialogues.

    Dtypes are those of training. State tokens take the last rows of the embeddings.
    """
    sizes: dict[Family, Mapping[str, Any]] = {
        "qwen2_5_vl": qwen2_5_vl.SIZES, "qwen3_vl": qwen3_vl.SIZES, "internvl": internvl.SIZES,
    }  # fmt: skip
    config = sizes[family][size]
    known = config.decoder.vocab_size
    rows = embedding_rows(known, known + STATES if family == "internvl" else known)
    plan = rows_of(config, length=length, dialogues=dialogues)
    side = getattr(config.vision, "image_size", 0)
    shape = (0, 3, config.vision.patch_size**2)
    pixels = np.zeros(shape if isinstance(plan.pictures, Patches) else (0, 3, side, side), np.uint8)
    none = np.zeros(0, np.int32)
    blank = {"tokens": none, "labels": none, "pixels": pixels, "grid": np.zeros((0, 3), np.int32)}
    processor: Processor = InternVLImageProcessor()
    if family != "internvl":
        processor = QwenImageProcessor().with_frame_budget(FRAME_TOKENS)
    model = functools.partial(
        _as_trained, config=config, rows=rows, trained=trained, processor=processor
    )
    data = DataConfig(source=lambda: [blank], transform=_untouched, pack=plan)
    return Start(model, "fresh", data, (rows - 3, rows - 2, rows - 1), RECORDS)


def _as_trained(
    rngs: nnx.Rngs,
    *,
    config: Any,
    rows: int,
    trained: tuple[str, ...],
    processor: Processor,
    remat: Remat | None = "nothing_saveable",
) -> VideoLM:
    """What `streamo.read_base` gives: what is trained in float32, the rest in bfloat16."""
    model = fresh(
        rngs, config=config, assets=Assets(None, processor), dtype=jnp.bfloat16, remat=remat
    )
    model = grow(model, rows)
    graph, state = nnx.split(model)
    state = nnx.map_state(
        lambda path, v: (
            v
            if any(named(path, name) for name in trained)
            else v.replace(v.get_value().astype(jnp.bfloat16))
        ),
        state,
    )
    return nnx.merge(graph, state)


def pretraining(
    rngs: nnx.Rngs,
    *,
    tasks: Mapping[str, tuple[str, Mapping[str, int]]] = TASKS,
    num_frames: int = 16,
    dtype: Any = jnp.bfloat16,
    remat: Remat | None = None,
) -> Pretraining:
    """What `pretraining.from_siglip` gives of SigLIP-B/16: the tower with LoRA, the text tower."""
    tower = StreamFormerConfig(
        num_frames=num_frames, enable_causal_temporal=True, add_lora_spatial=True
    )
    width = tower.hidden_size
    return Pretraining(
        StreamFormer(tower, rngs=rngs, dtype=dtype, remat=remat),
        SiglipText(SiglipTextConfig(), rngs=rngs, dtype=dtype),
        kinds={task: kind for task, (kind, _) in tasks.items()},
        labels={
            task: {name: jnp.zeros((n, width)) for name, n in sets.items()}
            for task, (_, sets) in tasks.items()
            if sets
        },
        logit_scale=0.0,
        logit_bias=0.0,
    )


def pretraining_data(
    tasks: Mapping[str, tuple[str, Mapping[str, int]]] = TASKS, *, frames: int = 16, size: int = 224
) -> dict[str, DataConfig]:
    """A blank sample of every task (data/samples.py says what is in it)."""
    t, side = (frames,), (frames, size, size)
    number = np.zeros((), np.int32)

    def blank(kind: str, sets: Mapping[str, int]) -> dict[str, np.ndarray]:
        sample = {"frames": np.zeros((*side, 3), np.uint8)}
        choices = min(max(sets.values(), default=0), MOST_CLASSES)
        match kind:
            case "recognition":
                return sample | {"label": number}
            case "retrieval":
                return sample | {"text": np.zeros(TEXT, np.int32)}
            case "grounding":
                return sample | {"text": np.zeros(TEXT, np.int32), "inside": np.zeros(t, np.uint8)}
            case "localization":
                return sample | {"classes": np.zeros(t, np.int32), "dataset": number}
            case "segmentation":
                masks = {"classes": np.zeros(side, np.int32), "dataset": number}
                return sample | masks | {"choices": np.zeros(choices, np.int32)}
            case _:
                return sample | {"text": np.zeros(TEXT, np.int32), "mask": np.zeros(side, np.uint8)}

    def config(sample: dict[str, np.ndarray]) -> DataConfig:
        return DataConfig(source=lambda: [sample], transform=_untouched)

    return {task: config(blank(kind, sets)) for task, (kind, sets) in tasks.items()}


def _untouched(record: Any, rng: np.random.Generator) -> Any:
    del rng
    return record
