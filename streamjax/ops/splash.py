"""Causal attention on TPUs: JAX's splash kernel, with grouped heads and packed rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

LANES = 128  # of a TPU: blocks are multiples of it
QUERIES = 512  # of a block, at most
KEYS = 1024


@dataclasses.dataclass(frozen=True)
class Splash:
    """The kernel for sequences of one length, cut into `shards` along the queries.

    kept: the name under which a remat policy keeps outputs and log-sums.
    interpret: Pallas' interpreter, for a machine without a TPU.
    """

    length: int
    kept: str
    shards: int = 1
    interpret: bool = False

    @property
    def padded(self) -> int:
        """What queries and keys are padded to."""
        return self.length + -self.length % (LANES * self.shards)

    def kernel(self, heads: int) -> Any:
        """The kernel's index arrays, a pytree; those of a shard are its slice by `specs`."""
        rows = next(size for size in _halves(QUERIES) if self.padded // self.shards % size == 0)
        columns = next(size for size in _halves(KEYS) if self.padded % size == 0)
        at_once = min(columns, QUERIES)
        # The fused backward kernel would write one gradient of the queries per block of keys.
        blocks = BlockSizes(
            block_q=rows, block_kv=columns, block_kv_compute=at_once,
            block_q_dkv=rows, block_kv_dkv=columns, block_kv_dkv_compute=at_once,
            block_q_dq=rows, block_kv_dq=columns,
        )  # fmt: skip
        mask = CausalMask((self.padded, self.padded), shard_count=self.shards)
        return make_splash_mha(
            MultiHeadMask([mask] * heads), block_sizes=blocks, head_shards=1,
            q_seq_shards=self.shards, residual_checkpoint_name=self.kept, interpret=self.interpret,
        )  # fmt: skip

    def specs(self, kernel: Any, mesh: AbstractMesh, axes: str | tuple[str, ...] | None) -> Any:
        """How `shard_map` hands the kernel to devices that hold queries along these mesh axes."""
        return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axes)))

    def __call__(
        self,
        kernel: Any,
        q: Float[Array, "b n l h"],
        k: Float[Array, "b k s h"],
        v: Float[Array, "b k s h"],
        ids: tuple[Int[Array, "b l"], Int[Array, "b s"]] | None,
    ) -> Float[Array, "b n l h"]:
        """One shard's queries against all keys; both padded already."""
        # The kernel does not scale. Rounding q once more is what its callers live with.
        q = q * q.shape[-1] ** -0.5
        if ids is None:
            return jax.vmap(lambda q, k, v: kernel(q, k, v))(q, k, v)
        return jax.vmap(lambda q, k, v, i, j: kernel(q, k, v, SegmentIds(i, j)))(q, k, v, *ids)

    def pad(self, x: Array, axis: int) -> Array:
        """Keys that stand behind every real query; edge values, so that no row sees nothing."""
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, self.padded - self.length)
        return jnp.pad(x, widths, mode="edge")


def _halves(size: int) -> list[int]:
    """size, size / 2, ... down to the lanes."""
    found = [size]
    while found[-1] > LANES:
        found.append(found[-1] // 2)
    return found
