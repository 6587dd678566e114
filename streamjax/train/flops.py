"""How many operations a step needs: counted from the parameters and the shapes of a batch.

A product with a kernel takes two operations per value of the kernel and row that meets it; the
gradient by the row as many again, and the gradient by the kernel too. Which rows meet which kernel
is said here for every family; the sizes are the model's own. Attention is counted by the pairs that
see each other: of causal attention half. What is worked out a second time (rematerialisation) is
not counted: this is the number that a share of the peak (MFU) is about.

XLA's own count takes a loop's body once, and so 1 of 28 layers of a model that scans them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from streamjax.models.decoder import DecoderConfig
from streamjax.models.internvl import InternVL
from streamjax.models.llava_streamformer import POOL, LlavaStreamFormer
from streamjax.models.pretraining import Pretraining
from streamjax.models.qwen_vl import QwenVL
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.train.objectives import AlignedTower

KERNELS = ("kernel", "lora_a", "lora_b", "head", "embed")


class Part(NamedTuple):
    """Kernels below `path` that `rows` rows meet, and pairs that attend to each other there.

    pairs: query-key pairs times the width of all heads, of all layers of the part together. share:
    of the kernels' values that count (1/3: the rows meet a third of a fused kernel).
    """

    path: str
    rows: float
    pairs: float = 0.0
    share: float = 1.0


class Flops(NamedTuple):
    """Operations of a step: all of it, of its forward pass, and of its attention (in `step`)."""

    step: float
    forward: float
    attention: float


# Parts in the order of the forward pass; several where what is made side by side meets in the loss.
Branches = Sequence[Sequence[Part]]


def train_flops(
    model: Any, trained: Any, batch: Mapping[str, Any], *, task: str | None = None
) -> Flops:
    """Of one forward and backward pass over a batch (arrays, or their shapes), without remat.

    trained: the state of what is trained (`TrainState.params`); gradients go no further down than
    to the first of it. task: of a `Pretraining`. Raises TypeError for a model or a batch whose
    operations nobody has written down here.
    """
    sizes = _kernels(nnx.state(model))
    moving = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)}
    forward = step = attention = 0.0
    for branch in branches(model, batch, task=task):
        behind = False  # something before this part is trained
        for at, part in enumerate(branch):
            own = _owned(part, branch, sizes)
            both = {n: 2.0 * part.rows * part.share * size for n, size in own.items()}
            some = any(name in moving for name in own)
            scores = 4.0 * part.pairs
            forward += sum(both.values()) + scores
            # The first part's input is data, which nobody asks the gradient of.
            by_input = behind or (some and at > 0)
            step += sum(f * (1 + by_input + (n in moving)) for n, f in both.items())
            scores *= 3 if by_input or some else 1
            step, attention = step + scores, attention + scores
            behind = behind or some
    return Flops(step, forward, attention)


def turn_flops(model: Any, tokens: int, context: int, batch: Mapping[str, Any]) -> float:
    """Of a turn of a stream: `tokens` new ones against `context` held, and its frame."""
    sizes = _kernels(nnx.state(model))
    parts = [part for branch in branches(model, batch) for part in branch]
    rows = batch["tokens"].shape[0]
    seen = [p for p in parts if not p.path.startswith("decoder")]
    total = sum(
        2.0 * p.rows * p.share * sum(_owned(p, parts, sizes).values()) + 4.0 * p.pairs for p in seen
    )
    c: DecoderConfig = model.config.decoder
    layers = sum(n for path, n in sizes.items() if path.startswith("decoder/layers/"))
    pairs = rows * tokens * (context + tokens / 2) * c.num_attention_heads * c.head
    head = rows * c.hidden_size * c.vocab_size  # of the last token
    return total + 2.0 * rows * tokens * layers + 4.0 * c.num_hidden_layers * pairs + 2.0 * head


def branches(model: Any, batch: Mapping[str, Any], *, task: str | None = None) -> Branches:
    """Which rows of the batch meet which kernels. Raises TypeError as `train_flops`."""
    shapes = {name: tuple(array.shape) for name, array in batch.items()}
    match model:
        case Pretraining():
            return _pretraining(model, shapes, task or next(iter(model.kinds)))
        case AlignedTower():
            clips = shapes["frames"]
            return [streamformer(model.tower.config, clips, "tower/")]
        case LlavaStreamFormer():
            return [_llava(model, shapes)]
        case QwenVL():
            return [[*_qwen_tower(model, shapes), *_decoder(model, shapes)]]
        case InternVL():
            return [[*_intern_tower(model, shapes), *_decoder(model, shapes)]]
        case StreamFormer():
            return [streamformer(model.config, shapes["frames"])]
        case SiglipText():
            return [siglip_text(model, shapes["text"])]
    raise TypeError(f"the operations of {type(model).__name__} are not written down: add its parts")


def decoder_parts(
    c: DecoderConfig, rows: int, length: int, *, labelled: int, prefix: str = "decoder/"
) -> list[Part]:
    """Of `rows` causal sequences, whose head looks at `labelled` tokens each."""
    seen = rows * length * (length + 1) / 2
    width = c.num_attention_heads * c.head * c.num_hidden_layers
    head = "embed" if c.tie_word_embeddings else "head"
    return [
        Part(f"{prefix}layers/", rows * length, seen * width),
        Part(f"{prefix}{head}", rows * labelled),
    ]


def streamformer(c: StreamFormerConfig, clips: Sequence[int], prefix: str = "") -> list[Part]:
    """clips: the shape [b t h w 3]. Over time causal pairs, if it is causal; over space all."""
    b, t, height, width, _ = clips
    p = (height // c.patch_size) * (width // c.patch_size)
    patches, d = b * t * p, c.hidden_size
    over_time = t * (t + 1) / 2 if c.enable_causal_temporal else t * t
    pairs = c.num_hidden_layers * d * (b * p * over_time + patches * p)
    return [
        Part(f"{prefix}patch/", patches),
        Part(f"{prefix}layers/", patches, pairs),
        # One query for all frames: keys are met by it, values by the attended mean of a frame. The
        # scores and the mean are of patches, once per head.
        Part(f"{prefix}head/qkv/", b * t, patches * d * c.num_attention_heads, share=1 / 3),
        Part(f"{prefix}head/", b * t),
    ]


def siglip_text(model: SiglipText, texts: Sequence[int], prefix: str = "") -> list[Part]:
    """texts: the shape [b l]. Every token sees every token."""
    (b, length), c = texts, model.config
    pairs = c.num_hidden_layers * c.hidden_size * b * length**2
    return [Part(f"{prefix}layers/", b * length, pairs), Part(f"{prefix}head/", b)]


def _pretraining(model: Pretraining, shapes: Mapping[str, tuple[int, ...]], task: str) -> Branches:
    clips, path = shapes["frames"], model.heads[task].dense
    b, t = clips[:2]
    parts = streamformer(model.tower.config, clips, "tower/")
    patches = parts[0].rows
    if path is not None:  # tasks about pixels read patches, and not the pooling head
        parts = [*parts[:2], Part(f"heads/{task}/dense/", patches)]
    texts = [siglip_text(model.text, shapes["text"], "text/")] if "text" in shapes else []
    # What is compared with what: rows of the model's width against the candidates' texts.
    width = model.tower.config.hidden_size
    tables = model.labels[task].values() if task in model.labels else ()
    classes = sum(table.get_value().shape[0] for table in tables) or b
    candidates = shapes["choices"][-1] if "choices" in shapes else classes
    compared = patches if path is not None else b * t
    if model.kinds[task] in ("recognition", "retrieval"):
        compared = b
    if model.kinds[task] == "grounding":
        candidates = 1
    # One product, where a pair of attention has two.
    parts.append(Part("", 0, compared * candidates * width / 2))
    return [parts, *texts]


def _llava(model: LlavaStreamFormer, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    clips, (b, k, length) = shapes["frames"], shapes["tokens"]
    tower = streamformer(model.config.tower, clips, "tower/")[:2]
    visual = tower[0].rows / POOL**2
    labelled = length - visual / b
    return [
        *tower,
        Part("projector/", tower[0].rows),
        *decoder_parts(model.config.decoder, b * k, length, labelled=max(int(labelled), 1)),
    ]


def _qwen_tower(model: QwenVL, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    c = model.config.vision
    b, p = shapes["pixels"][:2]
    size = shapes["plan_slices"][-1]
    whole = len(getattr(c, "fullatt_block_indexes", range(c.depth)))
    near = shapes["plan_windows"][-1] if "plan_windows" in shapes else 0
    pairs = b * p * c.hidden_size * (whole * size + (c.depth - whole) * near)
    tokens = b * p / c.spatial_merge_size**2
    return [
        Part("visual/patch/", b * p),
        Part("visual/layers/", b * p, pairs),
        Part("visual/", tokens),  # the merger, and those of deepstack
    ]


def _intern_tower(model: InternVL, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    c = model.config.vision
    b, tiles, _, height, width = shapes["pixels"]
    p = (height // c.patch_size) * (width // c.patch_size)
    pairs = b * tiles * (p + 1) ** 2 * c.hidden_size * c.num_hidden_layers
    return [
        Part("visual/patch/", b * tiles * p),
        Part("visual/layers/", b * tiles * (p + 1), pairs),
        Part("projector/", b * tiles * p / model.config.merge**2),
    ]


def _decoder(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Part]:
    """Every token of a row that is no picture's is taken to have a label."""
    b, length = shapes["tokens"]
    if isinstance(model, InternVL):
        merged = (model.config.vision.patch_size * model.config.merge) ** 2
        visual = math.prod(shapes["pixels"][1:]) // 3 // merged
    else:
        visual = shapes["pixels"][1] // model.config.vision.spatial_merge_size**2
    return decoder_parts(model.config.decoder, b, length, labelled=max(length - visual, 1))


def _kernels(state: Any) -> dict[str, int]:
    """The number of values of everything that rows are multiplied with, by path."""
    return {
        "/".join(map(str, path)): math.prod(variable.get_value().shape)
        for path, variable in nnx.to_flat_state(state)
        if path[-1] in KERNELS
    }


def _owned(part: Part, parts: Sequence[Part], sizes: Mapping[str, int]) -> dict[str, int]:
    """The kernels of a part: below its path, and below no longer one."""
    if not part.path:
        return {}
    longer = [p.path for p in parts if len(p.path) > len(part.path)]
    return {
        name: size
        for name, size in sizes.items()
        if name.startswith(part.path) and not any(name.startswith(path) for path in longer)
    }
