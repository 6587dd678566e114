"""What StreamFormer's pre-training recipes share: from a SigLIP folder and annotations to a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from streamjax.data.captions import CLASS_TEMPLATES, NAME_TEMPLATES, CaptionTokenizer
from streamjax.data.tasks import Labels
from streamjax.data.world import WorldConfig
from streamjax.errors import InputError
from streamjax.models.layers import Remat
from streamjax.models.pretraining import CLOSED, Pretraining, pretraining
from streamjax.models.siglip import Siglip
from streamjax.models.siglip_text import SiglipTextConfig
from streamjax.models.streamformer import StreamFormerConfig
from streamjax.train.siglip import make_world
from streamjax.weights.siglip import save_siglip, streamformer_from_siglip
from streamjax.weights.siglip_text import read_text


def from_siglip(
    rngs: nnx.Rngs,
    *,
    siglip: str | Path,
    kinds: Mapping[str, str],
    labels: Mapping[str, Labels],
    words: CaptionTokenizer,
    num_frames: int = 16,
    dtype: Any = jnp.float32,
    remat: Remat | None = None,
    before: Callable[[Any], None] | None = None,
) -> Pretraining:
    """The model that pre-training starts from: a SigLIP folder, lifted to video, with LoRA.

    Class features of closed label sets are computed here, once: 28 prompts for an action, the bare
    name for a thing (specs/streamformer.md section 4). kinds, labels: of every task, as
    `data.tasks.Task` has them. words: of the same SigLIP. rngs draws the temporal part and the
    LoRA. dtype: of the computation; parameters are float32. remat: a policy of
    jax.checkpoint_policies for the tower's layers. before: given the tower before LoRA is added, to
    begin elsewhere than the original does.

    Raises FileNotFoundError and InputError as `streamformer_from_siglip` does, InputError for a
    folder without a text tower, or without the scale and bias of its similarities.
    """
    seed = int(jax.random.bits(rngs.params()))
    tower = streamformer_from_siglip(siglip, seed=seed, num_frames=num_frames)
    tower.dtype, tower.remat = jnp.dtype(dtype), remat
    if before is not None:
        before(tower)
    side = read_text(siglip)
    if side.logit_scale is None or side.logit_bias is None:
        raise InputError(f"{siglip}: logit_scale or logit_bias is missing, wanted a whole SigLIP")
    prompts = {
        task: {
            dataset: words.prompts(names, templates_of(kinds[task]))
            for dataset, names in labels[task].items()
        }
        for task in kinds
        if kinds[task] in CLOSED
    }
    side.text.dtype = jnp.dtype(dtype)
    return pretraining(
        tower,
        side.text,
        kinds=kinds,
        prompts=prompts,
        logit_scale=side.logit_scale,
        logit_bias=side.logit_bias,
        lora=rngs,
    )


def templates_of(kind: str) -> tuple[str, ...]:
    """The prompts of a class name: 28 for an action, the bare name for a thing."""
    return NAME_TEMPLATES if kind == "segmentation" else CLASS_TEMPLATES


def tiny_start(run: str | Path) -> tuple[Path, Path]:
    """A random SigLIP of three layers and the embedded world, written to the run's folder where
    they are missing: (SigLIP's folder, the world's)."""
    run = Path(run)
    world = make_world(
        run / "world", WorldConfig(seconds=(6, 8), events=(1, 2), hold_out=0), train=8, held_out=4
    )
    if not (run / "siglip").exists():
        vision = StreamFormerConfig(
            image_size=64, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=96, enable_causal_temporal=True,
        )  # fmt: skip
        text = SiglipTextConfig(
            vocab_size=len(CaptionTokenizer(world)), hidden_size=48, intermediate_size=96,
            num_hidden_layers=2, num_attention_heads=4,
        )  # fmt: skip
        model = Siglip(vision, text, rngs=nnx.Rngs(0))
        save_siglip(
            model.tower, model.text, run / "siglip", tokenizer=world,
            logit_scale=model.logit_scale[...], logit_bias=model.logit_bias[...],
        )  # fmt: skip
    return run / "siglip", world
