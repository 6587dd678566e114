"""StreamFormer and what it is pre-trained with: a frozen text tower, and one head per task.

A head is two numbers, the scale and bias of similarities, and for tasks about pixels a way from a
patch to a text. Texts of closed label sets are encoded once, before training.
specs/streamformer.md sections 4 and 5.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from streamjax.data.processors import Assets
from streamjax.errors import InputError
from streamjax.models.siglip_text import SiglipText
from streamjax.models.streamformer import (
    PoolingHead,
    StreamFormer,
    StreamFormerConfig,
    with_lora,
)
from streamjax.ops.linear import unit

CLOSED = ("recognition", "localization", "segmentation")  # kinds whose texts are label sets
DENSE = ("segmentation", "referring")  # kinds about pixels
KINDS = (*CLOSED, "retrieval", "grounding", "referring")

Labels = Mapping[str, Mapping[str, Any]]  # task -> data set -> an array with a row per class


class DensePath(nnx.Module):
    """The pooling head without its attention: what it would say of a frame of this patch alone.

    Copies of the head's value map, output map, norm and MLP, trained with their task and so
    drifting from the head's own (quirk Q5: meant to be frozen by the original, and not).
    """

    def __init__(self, head: PoolingHead):
        d = head.out.kernel.shape[0]
        self.w_v = jax.tree.map(lambda a: a[..., 2 * d :], head.qkv)
        self.v_proj, self.norm, self.mlp = (
            jax.tree.map(jnp.copy, part) for part in (head.out, head.norm, head.mlp)
        )

    def __call__(self, tokens: Float[Array, "b t p d"]) -> Float[Array, "b t p d"]:
        x = self.v_proj(self.w_v(tokens))
        return x + self.mlp(self.norm(x))


class TaskHead(nnx.Module):
    """What one task has of its own; `dense` is None for tasks about frames and clips.

    `datasets` names the task's label tables in the order that samples count them.
    """

    def __init__(self, kind: str, datasets: tuple[str, ...], tower: StreamFormer, scale, bias):
        self.kind, self.datasets = kind, datasets
        self.logit_scale = nnx.Param(jnp.array(scale, jnp.float32))
        self.logit_bias = nnx.Param(jnp.array(bias, jnp.float32))
        self.dense = DensePath(tower.head) if kind in DENSE else None


class Pretraining(nnx.Module):
    """A tower, the frozen text tower, the tasks' heads, and the class features of closed sets.

    kinds: task -> one of KINDS. labels: for each task of a closed kind its class features [c d] by
    data set, in the order that samples count the sets; recognition has one set. logit_scale and
    logit_bias are SigLIP's: every head begins with a copy, and the model's own, in no loss, are
    kept for saving. Tables and those two are no `nnx.Param`, and so never trained.

    Raises InputError for an unknown kind, and for label tables that are missing, empty, not wanted,
    or not as wide as the tower.
    """

    def __init__(
        self,
        tower: StreamFormer,
        text: SiglipText,
        *,
        kinds: Mapping[str, str],
        labels: Labels,
        logit_scale: Any,
        logit_bias: Any,
    ):
        _check(kinds, labels, tower.config.hidden_size)
        self.tower, self.text = tower, text
        self.logit_scale = nnx.Variable(jnp.array(logit_scale, jnp.float32).reshape(()))
        self.logit_bias = nnx.Variable(jnp.array(logit_bias, jnp.float32).reshape(()))
        first = self.logit_scale[...], self.logit_bias[...]
        self.heads = nnx.Dict(
            {
                task: TaskHead(kind, tuple(labels.get(task, ())), tower, *first)
                for task, kind in kinds.items()
            }
        )
        self.labels = nnx.Dict(
            {
                task: nnx.Dict({name: nnx.Variable(jnp.asarray(a)) for name, a in tables.items()})
                for task, tables in labels.items()
            }
        )

    @property
    def assets(self) -> Assets:
        """What came along in the tower's folder."""
        return self.tower.assets

    @property
    def kinds(self) -> dict[str, str]:
        """Task -> kind."""
        return {task: head.kind for task, head in self.heads.items()}

    def classes(self, task: str) -> tuple[Float[Array, "c d"], np.ndarray]:
        """The class features of all data sets of a task in one table, and where each set begins.

        The second is host int32 [data sets + 1]: set i has rows start[i] to start[i + 1].
        """
        tables = [self.labels[task][name][...] for name in self.heads[task].datasets]
        starts = np.cumsum([0, *(len(table) for table in tables)], dtype=np.int32)
        return jnp.concatenate(tables), starts

    def pooled(self, frames: Float[Array, "b t h w 3"]) -> Float[Array, "b t d"]:
        """Unit features of normalised frames, comparable with texts."""
        return unit(self.tower(frames).pooled)

    def texts(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Unit features of texts, without a gradient."""
        return jax.lax.stop_gradient(unit(self.text(tokens)))

    def dense(self, task: str, tokens: Float[Array, "b t p d"]) -> Float[Array, "b t p d"]:
        """Unit features of patches, comparable with texts. Raises InputError for other tasks."""
        path = self.heads[task].dense
        if path is None:
            raise InputError(f"{task} is {self.heads[task].kind}, which has no dense features")
        return unit(path(tokens))


def pretraining(
    tower: StreamFormer,
    text: SiglipText,
    *,
    kinds: Mapping[str, str],
    prompts: Labels,
    logit_scale: Any,
    logit_bias: Any,
    lora: nnx.Rngs | None,
) -> Pretraining:
    """The model as the original's training starts it.

    prompts: for each task of a closed kind, token ids [c templates l] of its classes by data set
    (data/captions.py makes them). lora: draws the LoRA that is added to the tower's spatial
    attention (A from N(0, 0.02^2), B zero: the same function at first); None leaves the tower as
    it is, with the LoRA that it may have. The order is the original's: heads copy the pooling head,
    then LoRA is added. Raises InputError as `Pretraining` does.
    """
    features = {
        task: {name: class_features(text, jnp.asarray(ids)) for name, ids in tables.items()}
        for task, tables in prompts.items()
    }
    if lora is not None and not tower.config.add_lora_spatial:
        tower = with_lora(tower, rngs=lora)
    return Pretraining(
        tower, text, kinds=kinds, labels=features, logit_scale=logit_scale, logit_bias=logit_bias
    )


def class_features(
    text: SiglipText, prompts: Int[Array, "c m l"], *, rows: int = 512
) -> Float[Array, "c d"]:
    """The mean of each class's unit features over its m prompts, not brought to length 1 again.

    The text tower reads `rows` prompts at a time. specs/streamformer.md section 4, quirk Q12.
    """
    return _class_features(text, prompts, rows=rows)


@functools.partial(jax.jit, static_argnames="rows")
def _class_features(text, prompts, *, rows):
    c, m, length = prompts.shape
    flat = jax.lax.map(
        lambda ids: unit(text(ids[None]))[0], prompts.reshape(c * m, length), batch_size=rows
    )
    return flat.reshape(c, m, -1).mean(1)


def frozen(config: StreamFormerConfig) -> tuple[str, ...]:
    """What pre-training leaves alone, as parts of paths (`TrainConfig.frozen`).

    The text tower, and where LoRA corrects them, the base matrices and biases of the spatial
    attention; all else is trained (specs/streamformer.md 2.5). Label tables and the model's own
    scale and bias are no parameters.
    """
    if not config.add_lora_spatial:
        return ("text",)
    leaves = ["out/kernel", "out/bias", "qkv/kernel", *["qkv/bias"] * config.qkv_bias]
    return ("text", *(f"tower/layers/attn/{leaf}" for leaf in leaves))


def _check(kinds: Mapping[str, str], labels: Labels, width: int) -> None:
    for task, kind in kinds.items():
        if kind not in KINDS:
            raise InputError(f"task {task} is of kind {kind!r}, wanted one of {', '.join(KINDS)}")
        sizes = {name: a.shape for name, a in labels.get(task, {}).items()}
        wrong = next((n for n, s in sizes.items() if len(s) != 2 or not s[0] or s[1] != width), "")
        if wrong:
            raise InputError(
                f"task {task}: the labels of {wrong} are {list(sizes[wrong])}, wanted [classes "
                f"{width}], one row per class and as wide as the tower"
            )
        found = len(sizes)
        if (kind in CLOSED and not found) or (kind == "recognition" and found > 1):
            wanted = "one table" if kind == "recognition" else "a table per data set"
            raise InputError(f"task {task}: found {found} label tables, {kind} wants {wanted}")
        if kind not in CLOSED and found:
            raise InputError(f"task {task}: found {found} label tables, {kind} reads captions")
    stray: Sequence[str] = [task for task in labels if task not in kinds]
    if stray:
        raise InputError(f"labels of {stray[0]}, which is no task: {', '.join(kinds)} are")
