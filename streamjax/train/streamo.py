"""What a video LLM's streaming training starts from: a base model and Streamo-Instruct, or a tiny
stand-in of the same family and the embedded world. The recipes say the rest.
"""

import dataclasses
import functools
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data import chat
from streamjax.data.chat import FORMATS, ChatFormat
from streamjax.data.dialogue import DEFAULT_SYSTEM_PROMPT
from streamjax.data.pipeline import DataConfig
from streamjax.data.processors import (
    Assets,
    InternVLImageProcessor,
    Processor,
    QwenImageProcessor,
    common,
    read_processor,
)
from streamjax.data.processors.plans import PlanShape
from streamjax.data.rows import Dialogues, Patches, Rows, Tiles, read_all
from streamjax.data.tokenizer import (
    build_word_tokenizer,
    copy_with_states,
    embedding_rows,
    load_tokenizer,
)
from streamjax.data.world import WorldConfig
from streamjax.data.world_dialogues import vocabulary
from streamjax.data.world_files import read_manifest, write_world
from streamjax.errors import InputError
from streamjax.folders import family_of, load
from streamjax.models import internvl, qwen2_5_vl, qwen3_vl
from streamjax.models.decoder import DecoderConfig
from streamjax.models.layers import Remat
from streamjax.models.vlm import VideoLM
from streamjax.models.vocabulary import grow
from streamjax.train.config import CheckpointConfig, MeshConfig, TrainConfig
from streamjax.train.state import named
from streamjax.weights.config import read_config

Family = Literal["qwen2_5_vl", "qwen3_vl", "internvl"]

FRAME_TOKENS = 128  # visual tokens of a frame, at most (MAX_PIXELS 100352)
TURN_TEXT = 20  # text tokens of a turn, at least

WORLD = WorldConfig(
    seconds=(8, 10),
    things=(2, 3),
    events=(1, 3),
    colours=("red", "green", "blue"),
    shapes=("circle", "square"),
    actions=("grow", "blink", "drop"),
    hold_out=0,
)
WORLD_CLIPS = 32
WORLD_KINDS = ("narrate", "caption", "light_now", "bowl_count")


@dataclasses.dataclass(frozen=True)
class Start:
    """The parts of a TrainConfig that a start decides, and how many records there are."""

    model: Callable[..., VideoLM]
    weights: Literal["fresh", "loaded"]
    data: DataConfig
    state_ids: tuple[int, int, int]
    records: int


def from_base(
    family: Family,
    base: str | Path,
    home: str | Path,
    *,
    annotations: str | Path,
    videos: str | Path,
    trained: tuple[str, ...],
    length: int,
    dialogues: int,
    parity: str,
) -> Start:
    """A base model's folder, and dialogues about videos.

    The tokenizer, with the three state tokens, goes to `home`/tokenizer; frames get Streamo's
    budget of 128 visual tokens (InternVL: one tile). `trained` parameters are kept in float32, the
    others and the computation in bfloat16. length: tokens of a row, in which at most `dialogues`
    stand side by side; longer dialogues are skipped.

    Raises FileNotFoundError for a folder, tokenizer or annotation that is missing, and InputError
    for a model of another family, without chat tokens or without an image processor.
    """
    base, home = Path(base), Path(home)
    path = base / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, wanted the folder of a {family} model as base=")
    raw = read_config(path)
    kinds = ("internvl", "internvl_chat") if family == "internvl" else (family,)
    if raw.get("model_type") not in kinds:
        raise InputError(
            f"{path}: model_type is {raw.get('model_type')!r}, wanted {' or '.join(kinds)} for "
            "this recipe"
        )
    processor = read_processor(base)
    if not isinstance(processor, QwenImageProcessor | InternVLImageProcessor):
        raise InputError(
            f"{base}: no image processor of its family, wanted preprocessor_config.json"
        )
    if isinstance(processor, QwenImageProcessor):
        processor = processor.with_frame_budget(FRAME_TOKENS)
    words = load_tokenizer(_with_states(base, home / "tokenizer"))
    format = FORMATS[family]
    _check_chat(words, format, base)
    model_config = _with_placeholder(family_of(raw, path).config_of(raw, path), words, format)
    records = read_all(annotations, root=videos)
    rows = rows_of(model_config, length=length, dialogues=dialogues)
    data = DataConfig(
        source=functools.partial(read_all, annotations, root=videos),
        transform=Dialogues(words, processor, format, rows, parity),
        pack=rows,
        threads=16,
        ahead=32,
        max_bad=0.1,  # dialogues that are too long count as bad: 5 % of Streamo-Instruct
    )
    assets = (str(home / "tokenizer"), processor)
    model = functools.partial(read_base, base=str(base), assets=assets, trained=trained)
    return Start(model, "loaded", data, chat.state_ids(words), len(records))


def read_base(
    rngs: nnx.Rngs,
    *,
    base: str,
    assets: tuple[str, Processor],
    trained: tuple[str, ...],
    remat: Remat | None = "nothing_saveable",
    mesh: jax.sharding.Mesh | None = None,
) -> VideoLM:
    """The base model as it is trained: with rows for the state tokens, rematerialised by layers.

    assets: the tokenizer's folder and the image processor. remat: what the language model's layers
    keep. mesh: where the parameters go. rngs is not used.
    """
    del rngs
    model = load(base, dtype=jnp.bfloat16, mesh=mesh)
    tokenizer, processor = assets
    words = load_tokenizer(tokenizer)
    model.config = _with_placeholder(model.config, words, FORMATS["internvl"])
    model = grow(model, embedding_rows(model.config.decoder.vocab_size, len(words)))
    graph, state = nnx.split(model)
    state = nnx.map_state(
        lambda path, v: (
            v.replace(v.get_value().astype(jnp.float32))
            if any(named(path, name) for name in trained)
            else v
        ),
        state,
    )
    model = nnx.merge(graph, state)
    model.decoder.remat = remat
    model.assets = dataclasses.replace(model.assets, tokenizer=tokenizer, processor=processor)
    return model


def rows_of(config: Any, *, length: int, dialogues: int) -> Rows:
    """Rows of so many tokens, with room for the frames that those can be."""
    if isinstance(config, internvl.InternVLConfig):
        tile = (config.vision.side // config.merge) ** 2
        most = max(length // (tile + TURN_TEXT), 1)
        return Rows(
            length=length, pictures=Tiles(most=most), merge=config.merge, dialogues=dialogues
        )
    merge = config.vision.spatial_merge_size
    patches = length * FRAME_TOKENS // (FRAME_TOKENS + TURN_TEXT) * merge**2
    window = getattr(config.vision, "window", None)
    shape = PlanShape(
        patches=patches,
        slices=length // 80,  # frames of 60 tokens and more
        slice_size=FRAME_TOKENS * merge**2,
        # A frame of 16 x 30 patches has 8 of 8 x 8, one of 18 x 26 has 12.
        windows=0 if window is None else patches // 32,
    )
    return Rows(length=length, pictures=_patches(config, shape), merge=merge, dialogues=dialogues)


def from_world(family: Family, home: str | Path) -> Start:
    """A tiny model of the family with random weights, and the embedded world.

    Videos, annotations and a tokenizer of the world's words are written to `home`, where they are
    missing.
    """
    home = Path(home)
    world = home / "world"
    if not ((world / "world.json").exists() and read_manifest(world)[1].get("train")):
        write_world(world, "train", WORLD_CLIPS, WORLD, tasks=("streamo",), kinds=WORLD_KINDS)
    format = FORMATS[family]
    words = _small_tokenizer(home / "tokenizer", format)
    config, processor = _small(family, words)
    rows = Rows(length=768, pictures=Tiles(most=20), dialogues=2)
    if not isinstance(config, internvl.InternVLConfig):
        window = getattr(config.vision, "window", None)
        shape = PlanShape(patches=320, slices=20, slice_size=16, windows=20 if window else 0)
        rows = dataclasses.replace(rows, pictures=_patches(config, shape))
    source = functools.partial(read_all, world / "streamo" / "train.json", root=world / "videos")
    data = DataConfig(
        source=source, transform=Dialogues(words, processor, format, rows), pack=rows, threads=1
    )
    model = functools.partial(
        fresh, config=config, assets=Assets(str(home / "tokenizer"), processor)
    )
    return Start(model, "fresh", data, chat.state_ids(words), len(source()))


def shrunk(config: TrainConfig) -> TrainConfig:
    """A recipe at the size that a tiny model takes: about a minute on two CPU cores."""
    return dataclasses.replace(
        config,
        name=f"{config.name}_tiny",
        steps=60,
        batch_size=4,
        accumulate=2,
        optim=dataclasses.replace(config.optim, lr=5e-3),
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(every=30),
        log_every=10,
    )


def fresh(
    rngs: nnx.Rngs,
    *,
    config: Any,
    assets: Assets,
    dtype: Any = jnp.float32,
    remat: Remat | None = "nothing_saveable",
) -> VideoLM:
    """A model of this configuration with random weights, rematerialised by layers."""
    model = _CLASSES[type(config)](config, rngs=rngs, dtype=dtype)
    model.decoder.remat = remat
    model.assets = assets
    return model


_CLASSES: dict[type, Callable[..., VideoLM]] = {
    qwen2_5_vl.Qwen2_5_VLConfig: qwen2_5_vl.Qwen2_5_VL,
    qwen3_vl.Qwen3_VLConfig: qwen3_vl.Qwen3_VL,
    internvl.InternVLConfig: internvl.InternVL,
}


def _patches(config: Any, shape: PlanShape) -> Patches:
    vision = config.vision
    return Patches(
        image_id=config.image_token_id, window=getattr(vision, "window", None),
        table=getattr(vision, "side", None), shape=shape,
    )  # fmt: skip


def _with_states(base: Path, folder: Path) -> Path:
    """The base's tokenizer with the state tokens, written once however many processes ask."""
    if not (folder / "tokenizer.json").is_file():
        own = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            copy_with_states(base, own)
            if (settings := base / "generation_config.json").is_file():
                shutil.copyfile(settings, own / settings.name)
            try:
                os.rename(own, folder)
            except OSError:  # another process was first
                if not (folder / "tokenizer.json").is_file():
                    raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return folder


def _check_chat(tokenizer: Any, format: ChatFormat, base: Path) -> None:
    """Raises InputError when the chat's marks are not tokens of their own."""
    marks = (chat.START, chat.END, format.prefix, format.suffix.strip(), str(format.placeholder))
    for mark in marks:
        if mark not in tokenizer.get_vocab():
            raise InputError(
                f"{base}: the tokenizer has no token {mark}, which the dialogues need: wanted an "
                "instruction-tuned model of the family"
            )


def _with_placeholder(config: Any, tokenizer: Any, format: ChatFormat) -> Any:
    """The placeholder's id from the tokenizer, where config.json does not say it (InternVL)."""
    if config.image_token_id is not None:
        return config
    found = tokenizer.convert_tokens_to_ids(format.placeholder)
    return dataclasses.replace(config, image_token_id=found)


def _small_tokenizer(folder: Path, format: ChatFormat) -> Any:
    """The words of the world and of the published prompt, and the family's marks."""
    if not (folder / "tokenizer.json").is_file():
        texts = (*vocabulary(WORLD), DEFAULT_SYSTEM_PROMPT)
        tokenizer = build_word_tokenizer(texts, folder, numbers=100, tags=20)
        marks = (format.prefix, format.suffix.strip(), format.placeholder, format.video)
        tokenizer.add_tokens([m for m in marks if m], special_tokens=True)
        tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def _small(family: Family, tokenizer: Any) -> tuple[Any, Any]:
    """A configuration of the family that a CPU trains, and its processor: 4 tokens a frame."""
    id_of = tokenizer.convert_tokens_to_ids
    qwen3 = family == "qwen3_vl"
    decoder = DecoderConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        initializer_range=0.09,
    )  # fmt: skip
    if family == "internvl":
        vision = internvl.InternViTConfig(
            image_size=56, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, attention_bias=True,
        )  # fmt: skip
        decoder = dataclasses.replace(decoder, rope_dynamic_factor=2.0)
        config = internvl.InternVLConfig(
            vision=vision, decoder=decoder, image_token_id=id_of(FORMATS[family].placeholder)
        )
        return config, InternVLImageProcessor(size=(56, 56))
    ids = dict(
        image_token_id=id_of("<|image_pad|>"), video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
    )  # fmt: skip
    decoder = dataclasses.replace(
        decoder, mrope_section=(2, 3, 3), mrope_interleaved=qwen3, qk_norm=qwen3,
        attention_bias=not qwen3, head_dim=16 if qwen3 else None,
    )  # fmt: skip
    sizes = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
        temporal_patch_size=2, spatial_merge_size=2,
    )  # fmt: skip
    if qwen3:
        tower = qwen3_vl.VisionConfig(
            **sizes, patch_size=16, num_position_embeddings=16, deepstack_visual_indexes=(0,),
            hidden_act="gelu_pytorch_tanh",
        )  # fmt: skip
        processor = QwenImageProcessor(patch=16, mean=common.HALF, std=common.HALF)
        config = qwen3_vl.Qwen3_VLConfig(vision=tower, decoder=decoder, **ids)
    else:
        tower = qwen2_5_vl.VisionConfig(
            **sizes, patch_size=14, window_size=112, fullatt_block_indexes=(1,),
            tokens_per_second=2, hidden_act="silu",
        )  # fmt: skip
        processor = QwenImageProcessor()
        config = qwen2_5_vl.Qwen2_5_VLConfig(vision=tower, decoder=decoder, **ids)
    return config, processor.with_frame_budget(FRAME_TOKENS)
