"""SigLIP's text tower: a bidirectional transformer whose last position is the text's feature.

StreamFormer is trained against it and never trains it. There is no mask: padding is attended to,
so a text means what its row of ids, padding included, means. specs/streamformer.md section 4.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from streamjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    Remat,
    parameter,
    run_layers,
    stack,
)
from streamjax.ops.attention import full_attention
from streamjax.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipTextConfig:
    """transformers' `text_config` under its own names and with its defaults: the base model.

    projection_size: of the feature; None is hidden_size. Raises ValueError for an unknown
    activation and for sizes that are not positive or do not divide.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    projection_size: int | None = None

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, wanted one of {', '.join(ACTIVATIONS)}"
            )
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if type(size) is int and size < 1:
                raise ValueError(f"{field.name} is {size}, wanted a positive number")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, wanted a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def width(self) -> int:
        """The width of a text's feature."""
        return self.projection_size or self.hidden_size


class Block(nnx.Module):
    """One pre-norm layer; every token attends to every token."""

    def __init__(self, c: SiglipTextConfig, *, rngs: nnx.Rngs):
        d, f, init = c.hidden_size, c.intermediate_size, initializers.xavier_uniform()

        def make(i, o, names):
            return Linear(i, o, names, init=init, rngs=rngs)

        self.num_heads, self.act = c.num_attention_heads, c.hidden_act
        self.attn_norm = LayerNorm(d, eps=c.layer_norm_eps, rngs=rngs)
        self.q = make(d, d, ("embed", "heads"))
        self.k = make(d, d, ("embed", "heads"))
        self.v = make(d, d, ("embed", "heads"))
        self.out = make(d, d, ("heads", "embed"))
        self.mlp_norm = LayerNorm(d, eps=c.layer_norm_eps, rngs=rngs)
        self.up = make(d, f, ("embed", "mlp"))
        self.down = make(f, d, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        b, length, d = x.shape
        y = self.attn_norm(x)
        q, k, v = (
            part(y).reshape(b, length, self.num_heads, -1).swapaxes(1, 2)
            for part in (self.q, self.k, self.v)
        )
        x = x + self.out(full_attention(q, k, v).swapaxes(1, 2).reshape(b, length, d))
        x = x + self.down(ACTIVATIONS[self.act](self.up(self.mlp_norm(x))))
        return constrain(x, "batch", None, None)


class SiglipText(nnx.Module):
    """Rows of token ids in; one feature per row out, not normalised.

    `dtype` is the dtype of the computation; fresh parameters are float32. `remat` names a policy of
    jax.checkpoint_policies for training (of a SigLIP of one's own: StreamFormer's is frozen).
    """

    def __init__(
        self,
        config: SiglipTextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        remat: Remat | None = None,
    ):
        c, d = config, config.hidden_size
        near = initializers.normal(d**-0.5)
        self.config, self.dtype, self.remat = c, jnp.dtype(dtype), remat
        self.embed = parameter(rngs, (c.vocab_size, d), ("vocab", "embed"), near)
        self.position = parameter(rngs, (c.max_position_embeddings, d), (None, "embed"), near)
        self.layers = stack(lambda r: Block(c, rngs=r), c.num_hidden_layers, rngs)
        self.norm = LayerNorm(d, eps=c.layer_norm_eps, rngs=rngs)
        self.head = Linear(d, c.width, ("embed", None), init=initializers.lecun_normal(), rngs=rngs)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Features of b texts: the head applied to the last position.

        tokens: [b l] ids, l at most max_position_embeddings; for features that mean what the
        original's mean, l is 64 and texts are padded with id 1 (data/captions.py). Raises
        ValueError for longer rows.
        """
        length, most = tokens.shape[1], self.config.max_position_embeddings
        if length > most:
            raise ValueError(f"texts are {length} tokens long, wanted at most {most}: cut them")
        # Whole rows are gathered: of rows in pieces XLA puts the result together on every device.
        table = constrain(self.embed[...], "vocab", None)
        x = table[tokens].astype(self.dtype) + self.position[:length].astype(self.dtype)
        x = constrain(x, "batch", None, None)
        x, _ = run_layers(lambda x, a: (a[0](x), None), x, self.layers, remat=self.remat)
        return self.head(self.norm(x[:, -1]))
