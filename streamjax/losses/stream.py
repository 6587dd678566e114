"""The loss of a streaming dialogue: token cross-entropy, weighted on the three state tokens.

Two forms of one function: `stream_loss` from logits, and `chunked_stream_loss` from hidden states,
which never holds the logits of the whole row. specs/streamo.md section 7.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from streamjax.errors import InputError
from streamjax.sharding import mesh_axes, spec_of

KINDS = ("focal", "scale", "ce")
ALPHAS = ("present", "paper", None)
StateIds = Sequence[int] | np.ndarray | Array | None
Labels = Int[Array, "b l"] | Int[np.ndarray, "b l"]
Scalar = Float[Array, ""]

CHUNK = 256  # tokens of every row at a time, so that the kernel's gradient is seldom added to

# The weights of Silence, Standby, Response in the paper's "Loss Scale" baseline (its Table 4).
PAPER_SCALE = (0.3, 1.3, 2.0)


class StreamMetrics(NamedTuple):
    """Sums over labelled positions, teacher-forced; add those of several batches, then divide.

    `tokens` and `correct` count labelled tokens and those predicted right. `tp`, `fp`, `fn` [3]
    count, at the positions whose label is a state, the decisions for Silence, Standby and Response;
    the prediction is the best of the whole vocabulary.
    """

    tokens: Float[Array, ""]
    correct: Float[Array, ""]
    tp: Float[Array, "3"]
    fp: Float[Array, "3"]
    fn: Float[Array, "3"]


def stream_loss(
    logits: Float[Array, "b l v"] | Float[np.ndarray, "b l v"],
    labels: Labels,
    state_ids: StateIds,
    *,
    kind: str = "focal",
    gamma: float | int = 2.0,
    alpha: str | None = "present",
    state_weights: Sequence[float] | None = None,
    segments: Labels | None = None,
    normalizer: float | int | Array | None = None,
) -> Scalar:
    """Streamo's loss: sum of weight * cross-entropy over labelled tokens, over `normalizer`.

    labels are unshifted (logits at t predict the label at t + 1), -100 is ignored. `state_ids` are
    the ids of Silence, Standby and Response. The weight is 1 except where the label is a state:

      kind="focal"  alpha_k * (1 - p)^gamma, differentiated through p;
      kind="scale"  `state_weights` (default: the paper's 0.3, 1.3, 2.0);
      kind="ce"     1; `state_ids` may be None.

    alpha_k = sum_j n_j / (n_k * K), where n_k counts the labels of state k in this call, or in each
    dialogue when `segments` [b l] says which contiguous tokens belong together. K is the number
    of states present ("present": the released code), or 3 ("paper"); None leaves alpha out.

    `normalizer` defaults to the number of labelled tokens; a trainer passes that of its whole
    global step. Everything is computed in float32 (upstream rounds p to bfloat16 before 1 - p).

    Raises InputError for missing, repeated or out-of-vocabulary state ids (upstream falls back to
    plain cross-entropy), for an unknown kind or alpha, and for `state_weights` that are not three
    or not wanted by the kind. specs/streamo.md 7.
    """
    plan = _plan(labels, segments, state_ids, logits.shape[-1], kind, gamma, alpha, state_weights)
    ce = _scored(jnp.asarray(logits)[:, :-1], plan.target).ce
    return _weighted(ce, plan).sum() / _normalizer(normalizer, plan)


def stream_metrics(
    logits: Float[Array, "b l v"] | Float[np.ndarray, "b l v"],
    labels: Labels,
    state_ids: StateIds,
    *,
    segments: Labels | None = None,
) -> StreamMetrics:
    """How often the labelled tokens, and the states among them, are predicted right."""
    plan = _plan(labels, segments, state_ids, logits.shape[-1], "focal", 0.0, None, None)
    return _metrics(jnp.argmax(jnp.asarray(logits)[:, :-1], axis=-1), plan)


def chunked_stream_loss(
    hidden: Float[Array, "b l d"],
    kernel: Float[Array, "d v"],
    labels: Labels,
    state_ids: StateIds,
    *,
    kind: str = "focal",
    gamma: float | int = 2.0,
    alpha: str | None = "present",
    state_weights: Sequence[float] | None = None,
    segments: Labels | None = None,
    normalizer: float | int | Array | None = None,
    chunk: int = CHUNK,
) -> tuple[Scalar, StreamMetrics]:
    """`stream_loss(hidden @ kernel, ...)` and its metrics, `chunk` tokens of every row at a time.

    Only labelled tokens are paid for: a dialogue whose tokens are mostly image costs what its
    answers cost. The gradient is made on the way forward, from the same logits, so that there are
    never more than [b chunk v] of them, and they are computed once. Products are of hidden's dtype,
    their sums and the kernel's gradient float32. Value and gradients equal the plain form's.

    On a mesh every device pays for its own rows and tokens over its own part of the vocabulary;
    only numbers per token cross it, and the kernel's gradient once.
    """
    plan = _plan(labels, segments, state_ids, kernel.shape[-1], kind, gamma, alpha, state_weights)
    behind = ((0, 0), (0, 1))  # the last token of a row predicts nothing
    fields = {name: jnp.pad(getattr(plan, name), behind) for name in _PER_TOKEN}
    run = functools.partial(_spread, plan, min(chunk, hidden.shape[1]))

    @jax.custom_vjp
    def paid(hidden, kernel, fields):
        return run(hidden, kernel, fields, gradients=False)[0]

    def forward(hidden, kernel, fields):
        return run(hidden, kernel, fields, gradients=True)

    def backward(gradients, cotangents):
        by_hidden, by_kernel = gradients
        return (by_hidden * cotangents[0].astype(by_hidden.dtype), by_kernel * cotangents[0], None)

    paid.defvjp(forward, backward)
    total, metrics = paid(hidden, kernel, fields)
    return total / _normalizer(normalizer, plan), metrics


def _spread(plan, chunk, hidden, kernel, fields, *, gradients: bool):
    """((total, metrics), gradients by hidden and kernel), each device for its part of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return _walk(plan, chunk, None, hidden, kernel, fields, gradients)
    rows, length, _ = spec_of(hidden.shape, ("batch", "length", None), mesh)
    embed, vocab = spec_of(kernel.shape, ("embed", "vocab"), mesh)
    shared = mesh_axes(rows) + mesh_axes(length)  # what the tokens are cut over
    if not set(mesh_axes(embed)) <= set(shared):
        embed = None

    def local(hidden, kernel, fields):
        paid, by = _walk(plan, chunk, vocab, hidden, kernel, fields, gradients)
        paid = jax.lax.psum(paid, shared) if shared else paid
        if not gradients:
            return paid, by
        by_hidden, by_kernel = by
        if vocab is not None:
            by_hidden = jax.lax.psum(by_hidden, vocab)
        left = [axis for axis in shared if axis not in mesh_axes(embed)]
        by_kernel = jax.lax.psum(by_kernel, left) if left else by_kernel
        for axis in mesh_axes(embed):
            by_kernel = jax.lax.psum_scatter(by_kernel, axis, scatter_dimension=0, tiled=True)
        return paid, (by_hidden, by_kernel)

    of_hidden, of_kernel = PartitionSpec(rows, length, None), PartitionSpec(embed, vocab)
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_hidden, PartitionSpec(None, vocab), PartitionSpec(rows, length)),
        out_specs=(PartitionSpec(), (of_hidden, of_kernel) if gradients else None),
        check_vma=False,
    )
    # Cast before it is put together, which it is once and not for every chunk.
    return run(hidden, kernel.astype(hidden.dtype), fields)


def _walk(plan, chunk, vocab, hidden, kernel, fields, gradients: bool):
    """The labelled tokens of these rows over these columns of the vocabulary.

    vocab: the mesh axes that its other columns lie along, or None.
    """
    kernel = kernel.astype(hidden.dtype)
    valid = fields["valid"]
    b, length = valid.shape
    order = jnp.argsort(~valid, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -length % chunk)), constant_values=length)
    rows = jnp.arange(b)[:, None]

    def dot(left, right, axes):
        # Not ops.linear: it would round the logits to hidden's dtype.
        dims = (axes, ((), ()))
        return jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.float32)

    def body(i, carry):
        paid, by = carry
        tokens = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk, 1)
        x, here = jax.tree.map(
            lambda a: a.at[rows, tokens].get(mode="fill", fill_value=0), (hidden, fields)
        )
        part = plan._replace(**here)
        scores = _scored(dot(x, kernel, ((2,), (0,))), part.target, vocab)
        terms, pull = jax.vjp(lambda ce: _weighted(ce, part), scores.ce)
        paid = jax.tree.map(jnp.add, paid, (terms.sum(), _metrics(scores.best, part)))
        if not gradients:
            return paid, by
        (slope,) = pull(jnp.ones_like(terms))
        pushed = slope[..., None] * (scores.exps / scores.total[..., None] - scores.hit)
        pushed = pushed.astype(x.dtype)
        by_hidden, by_kernel = by
        by_x = dot(pushed, kernel, ((2,), (1,))).astype(x.dtype)
        by_hidden = by_hidden.at[rows, tokens].set(by_x, mode="drop", unique_indices=True)
        return paid, (by_hidden, by_kernel + dot(x, pushed, ((0, 1), (0, 1))))

    one, three = jnp.zeros((), jnp.float32), jnp.zeros((3,), jnp.float32)
    by = None
    if gradients:
        by = (jnp.zeros_like(hidden), jnp.zeros(kernel.shape, jnp.float32))
    begin = ((one, StreamMetrics(one, one, three, three, three)), by)
    chunks = -(-valid.sum(1).max() // chunk)
    return jax.lax.fori_loop(0, chunks, body, begin)


def state_f1(metrics: StreamMetrics) -> Scalar:
    """Macro-F1 over the states that occur or were predicted; 0 when there is none."""
    found = metrics.tp * 2 + metrics.fp + metrics.fn
    f1 = metrics.tp * 2 / jnp.maximum(found, 1)
    return f1.sum() / jnp.maximum((found > 0).sum(), 1)


class _Plan(NamedTuple):
    """What the labels alone decide, per predicting position: [b l-1], or a chunk of it."""

    target: Int[Array, "b n"]
    valid: Bool[Array, "b n"]
    state: Int[Array, "b n"]  # 0, 1, 2; 3 for every other token
    scale: Float[Array, "b n"]  # the weight but for (1 - p)^gamma
    ids: tuple[int, ...]
    gamma: float


_PER_TOKEN = ("target", "valid", "state", "scale")


def _plan(labels, segments, state_ids, vocabulary, kind, gamma, alpha, state_weights) -> _Plan:
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: wanted one of {', '.join(KINDS)}")
    if alpha not in ALPHAS:
        raise InputError(f"alpha={alpha!r}: wanted present, paper or None")
    ids = () if kind == "ce" and state_ids is None else _state_ids(state_ids, vocabulary)
    if state_weights is not None and (kind != "scale" or len(state_weights) != 3):
        raise InputError(
            f"state_weights={tuple(state_weights)} with kind={kind!r}: wanted three numbers, for "
            "Silence, Standby and Response, and kind='scale'"
        )
    labels = jnp.asarray(labels)
    target = labels[:, 1:]
    valid = target >= 0
    if segments is not None:
        segments = jnp.asarray(segments)
        valid &= segments[:, 1:] == segments[:, :-1]
        segments = segments[:, 1:]
    state = jnp.full(target.shape, 3, jnp.int32)
    for k, one in enumerate(ids):
        state = jnp.where(valid & (target == one), k, state)
    if kind == "ce":
        weights = jnp.ones((4,), jnp.float32)
    elif kind == "scale":
        weights = jnp.asarray([*(state_weights or PAPER_SCALE), 1.0], jnp.float32)
    elif alpha is None:
        weights = jnp.ones((4,), jnp.float32)
    else:
        return _Plan(
            target, valid, state, _balance(state, segments, alpha == "present"), ids, gamma
        )
    return _Plan(target, valid, state, weights[state], ids, gamma if kind == "focal" else 0.0)


def _balance(state, segments, present: bool) -> Float[Array, "b n"]:
    """alpha of every position: from the counts of its dialogue, or of the whole call."""
    one_hot = jax.nn.one_hot(state, 4, dtype=jnp.float32)[..., :3]
    if segments is None:
        counts = jnp.broadcast_to(one_hot.sum((0, 1)), one_hot.shape)
    else:
        # Dialogues are numbered along their row, whatever they were called.
        starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
        number = jnp.cumsum(starts, axis=1)

        def count(row, which):
            return jax.ops.segment_sum(row, which, num_segments=row.shape[0])[which]

        counts = jax.vmap(count)(one_hot, number)
    states = (counts > 0).sum(-1) if present else 3
    own = (counts * one_hot).sum(-1)
    balanced = counts.sum(-1) / jnp.maximum(own * states, 1)
    return jnp.where(state < 3, balanced, 1.0)


class _Scores(NamedTuple):
    """What logits say of a target: cross-entropy, the best token, and what the gradient is of."""

    ce: Float[Array, "b n"]
    best: Int[Array, "b n"]
    exps: Float[Array, "b n v"]
    total: Float[Array, "b n"]
    hit: Bool[Array, "b n v"]


def _scored(logits, target, vocab=None) -> _Scores:
    """vocab: the mesh axes along which the other columns of the logits lie, or None."""
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    first = 0 if vocab is None else jax.lax.axis_index(vocab) * size
    # A masked sum, not a gather: a vocabulary that is split over devices stays where it is.
    hit = first + jnp.arange(size) == target[..., None]
    top, best = jax.lax.stop_gradient(logits.max(-1)), jnp.argmax(logits, axis=-1)
    if vocab is not None:
        own, top = top, jax.lax.pmax(top, vocab)
        best = jax.lax.pmin(jnp.where(own == top, first + best, jnp.iinfo(jnp.int32).max), vocab)
    # The maximum is taken off both sides: added back, it would round a small cross-entropy away.
    shifted = logits - top[..., None]
    exps = jnp.exp(shifted)
    total, chosen = exps.sum(-1), jnp.where(hit, shifted, 0).sum(-1)
    if vocab is not None:
        total, chosen = jax.lax.psum((total, chosen), vocab)
    return _Scores(jnp.log(total) - chosen, best, exps, total, hit)


def _weighted(ce, plan: _Plan):
    """weight * cross-entropy per position, 0 where there is no label."""
    weight = plan.scale
    if plan.gamma:
        # 1 - p without cancellation; the floor keeps the gradient of a certain token finite.
        doubt = jnp.maximum(-jnp.expm1(-ce), 1e-30)
        weight = weight * jnp.where(plan.state < 3, doubt**plan.gamma, 1.0)
    return jnp.where(plan.valid, weight * ce, 0.0)


def _metrics(predicted, plan: _Plan) -> StreamMetrics:
    asked = (plan.valid & (plan.state < 3))[..., None]
    wanted = asked & (plan.state[..., None] == jnp.arange(3))
    decided = asked & (predicted[..., None] == jnp.asarray(plan.ids or (-1, -1, -1)))

    def total(x):
        return x.sum((0, 1)).astype(jnp.float32)

    return StreamMetrics(
        tokens=total(plan.valid),
        correct=total(plan.valid & (predicted == plan.target)),
        tp=total(decided & wanted),
        fp=total(decided & ~wanted),
        fn=total(~decided & wanted),
    )


def _normalizer(normalizer, plan: _Plan):
    if normalizer is None:
        return jnp.maximum(plan.valid.sum(), 1).astype(jnp.float32)
    return jnp.asarray(normalizer, jnp.float32)


def _state_ids(state_ids: StateIds, vocabulary: int) -> tuple[int, ...]:
    ids = () if state_ids is None else tuple(int(i) for i in np.asarray(state_ids).reshape(-1))
    if len(ids) != 3 or len(set(ids)) != 3 or not all(0 <= i < vocabulary for i in ids):
        raise InputError(
            f"state_ids={ids}: wanted three different ids below {vocabulary}, for Silence, Standby "
            "and Response (streamjax.data.chat.state_ids reads them from a tokenizer)"
        )
    return ids
