"""SigLIP: a picture tower and a text tower that meet in one space of features.

The picture tower is a StreamFormer whose temporal part stays shut, used on one frame at a time; to
open it is what lifts a SigLIP to video.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from streamjax.data.processors import Assets
from streamjax.models.siglip_text import SiglipText, SiglipTextConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from streamjax.ops.linear import unit


class Siglip(nnx.Module):
    """The two towers, and the scale (a logarithm) and bias of their similarities.

    Fresh ones start as SigLIP's did: nearly all pairs are negatives, and the bias says so.
    """

    def __init__(self, vision: StreamFormerConfig, text: SiglipTextConfig, *, rngs: nnx.Rngs):
        self.tower = StreamFormer(vision, rngs=rngs)
        self.text = SiglipText(text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.float32(np.log(10.0)))
        self.logit_bias = nnx.Param(jnp.float32(-10.0))

    @property
    def assets(self) -> Assets:
        """What came along in the folder, or goes into it."""
        return self.tower.assets

    def pictures(self, frames: Float[Array, "b 1 h w 3"]) -> Float[Array, "b d"]:
        """Unit features of single frames, normalised to [-1, 1]."""
        return unit(self.tower(frames).pooled[:, 0])

    def texts(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Unit features of texts."""
        return unit(self.text(tokens))
