"""Streamo's loss: the original's values and gradients, and the chunked form against the plain."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from streamjax.errors import InputError
from streamjax.losses import chunked_stream_loss, state_f1, stream_loss, stream_metrics
from streamjax.sharding import make_mesh

STATES = (5, 6, 7)


@pytest.fixture(scope="module")
def cases(golden):
    folder = golden / "streamo"
    with safe_open(folder / "b_loss.safetensors", "flax") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return json.loads((folder / "b_loss.json").read_text()), tensors


def arguments(case) -> dict[str, Any]:
    if case["loss_kind"] == "focal" and case.get("special_tokens_passed") != []:
        alpha = "present" if case["auto_alpha"] else None
        return {"kind": "focal", "gamma": case["gamma"], "alpha": alpha}
    if case["loss_kind"] == "loss_scale":
        return {"kind": "scale", "state_weights": case["weights_silence_standby_response"]}
    return {"kind": "ce"}


def dialogues(rng, b=2, l=24, v=16, d=12):
    """Rows of labels, a third of them ignored and half of the rest states; hidden and kernel."""
    labels = rng.integers(0, v, (b, l))
    labels = np.where(
        rng.random((b, l)) < 0.5, rng.choice(STATES, (b, l), p=[0.6, 0.3, 0.1]), labels
    )
    labels = np.where(rng.random((b, l)) < 0.33, -100, labels)
    hidden = jnp.asarray(rng.normal(size=(b, l, d)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(d, v)), jnp.float32)
    return hidden, kernel, labels


def padded(array, fill):
    """Rows and tokens without labels change nothing, and let one program serve every case."""
    b, l = array.shape[:2]
    return np.pad(array, ((0, 2 - b), (0, 24 - l)) + ((0, 0),) * (array.ndim - 2),
                  constant_values=fill)  # fmt: skip


def test_losses_and_gradients_golden(cases):
    index, tensors = cases
    assert len(index["cases"]) == 47
    alike: dict[str, list[Any]] = {}
    for case in index["cases"]:
        alike.setdefault(str(arguments(case)), []).append(case)
    for group in alike.values():
        names = [case["name"] for case in group]

        def loss_of(x, y, n, options=arguments(group[0])):  # noqa: B008
            return stream_loss(x, y, (21, 22, 23), normalizer=n, **options)

        losses, grads = jax.jit(jax.vmap(jax.value_and_grad(loss_of)))(
            np.stack([padded(np.asarray(tensors[f"{n}/logits"], np.float32), 0) for n in names]),
            np.stack([padded(tensors[f"{n}/labels"], -100) for n in names]),
            np.array([case["num_items_in_batch"] or case["counted_positions"] for case in group]),
        )
        for case, name, loss, grad in zip(group, names, losses, grads, strict=True):
            upcast = "_if_upcast_to_f32_first" if "bf16" in name else ""
            slack = 1e-6 if "confident" in name else 0
            assert loss == pytest.approx(case["loss" + upcast], rel=1e-5, abs=slack), name
            wanted = padded(np.asarray(tensors[f"{name}/grad{upcast}"], np.float32), 0)
            np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-6, err_msg=name)
            assert case["special_token_ids"] == [21, 22, 23]


def test_bfloat16_logits_are_computed_in_float32(cases):
    index, tensors = cases
    (case,) = (c for c in index["cases"] if c["name"] == "focal_bf16")
    logits, labels = tensors["focal_bf16/logits"], tensors["focal_bf16/labels"]
    loss = jax.jit(lambda x: stream_loss(x, labels, (21, 22, 23)))(logits)
    assert logits.dtype == jnp.bfloat16 and loss.dtype == jnp.float32
    assert loss == pytest.approx(case["loss_if_upcast_to_f32_first"], rel=1e-5)


def test_accumulated_steps_add_up_golden(cases):
    index, tensors = cases
    group = index["accumulation"]["accum"]
    logits = np.stack([padded(tensors[f"{name}/logits"], 0) for name in group["micro"]])
    labels = np.stack([padded(tensors[f"{name}/labels"], -100) for name in group["micro"]])
    count = group["num_items_in_batch"]
    step = jax.jit(lambda x, y: stream_loss(x, y, (21, 22, 23), normalizer=count))
    total = sum(step(x, y) for x, y in zip(logits, labels, strict=True))
    assert total == pytest.approx(group["total_loss"], rel=1e-5)


KINDS: list[dict[str, Any]] = [
    {"kind": "focal"},
    {"kind": "focal", "gamma": 0.5, "alpha": "paper", "normalizer": 7},
    {"kind": "focal", "segments": True},
    {"kind": "scale"},
    {"kind": "ce"},
]


@pytest.mark.parametrize(
    ("options", "chunk"), [*((kind, 5) for kind in KINDS), (KINDS[0], 64)], ids=str
)
def test_chunked_equals_plain(rng, options, chunk):
    hidden, kernel, labels = dialogues(rng)
    if options.get("segments"):
        numbers = np.minimum(np.arange(24) // 7, 2)
        options = {**options, "segments": np.stack([numbers, numbers[::-1] * 3])}

    def plain(hidden, kernel):
        logits = hidden @ kernel
        loss = stream_loss(logits, labels, STATES, **options)
        return loss, stream_metrics(logits, labels, STATES, segments=options.get("segments"))

    def chunked(hidden, kernel):
        return chunked_stream_loss(hidden, kernel, labels, STATES, chunk=chunk, **options)

    @jax.jit
    def both(*args):
        return [jax.value_and_grad(f, (0, 1), has_aux=True)(*args) for f in (plain, chunked)]

    ((loss, wanted), grads), ((again, metrics), chunked_grads) = both(hidden, kernel)
    assert again == pytest.approx(float(loss), rel=1e-6)
    for one, other in zip(grads, chunked_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, metrics, wanted)


def test_chunked_holds_no_more_logits_than_a_chunk():
    def temporaries(l, v, chunk):
        shapes = [((2, l, 16), jnp.float32), ((16, v), jnp.float32), ((2, l), jnp.int32)]

        def loss(hidden, kernel, labels):
            return chunked_stream_loss(hidden, kernel, labels, STATES, chunk=chunk)[0]

        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        lowered = step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        memory: Any = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes

    v, chunk = 8192, 16
    logits = 2 * chunk * v * 4
    short, long = temporaries(64, v, chunk), temporaries(512, v, chunk)
    assert long - short < 0.5 * logits  # the hidden states grow, the logits do not
    assert long < 8 * logits < 2 * 512 * v * 4


def test_counts_are_per_dialogue_when_rows_are_packed(rng):
    starts, v = [0, 9, 23, 30], 12
    logits = rng.normal(size=(1, 30, v)).astype(np.float32)
    labels = rng.choice([*STATES, 1, -100], (1, 30), p=[0.5, 0.2, 0.1, 0.1, 0.1])
    labels[:, starts[:-1]] = -100  # a dialogue's first token is never predicted
    segments = np.repeat([4, 5, 0], np.diff(starts))[None]  # any naming will do

    @jax.jit
    def both(x):
        pieces = [slice(a, b) for a, b in itertools.pairwise(starts)]
        each = [stream_loss(x[:, p], labels[:, p], STATES, normalizer=1) for p in pieces]
        return sum(each), stream_loss(x, labels, STATES, segments=segments, normalizer=1)

    each, packed = both(logits)
    assert packed == pytest.approx(float(each), rel=1e-6)


def test_a_dialogue_is_not_predicted_from_the_one_before(rng):
    _, _, labels = dialogues(rng, b=1)
    labels[0, 12] = 3
    logits = jnp.asarray(rng.normal(size=(1, 24, 16)), jnp.float32)
    segments = (np.arange(24) >= 12).astype(int)[None]
    grad = jax.jit(jax.grad(lambda x: stream_loss(x, labels, STATES, segments=segments)))(logits)
    assert not grad[0, 11].any()


def test_alpha_of_the_paper_divides_by_three():
    labels = np.array([[-100, 5, 5, 5, 6]])
    logits = jnp.zeros((1, 5, 8))
    present = stream_loss(logits, labels, STATES, gamma=0.0)
    paper = stream_loss(logits, labels, STATES, gamma=0.0, alpha="paper")
    assert present / paper == pytest.approx(1.5)


def test_no_labels_and_certainty_stay_finite():
    labels = np.full((1, 4), -100)
    logits = jnp.zeros((1, 4, 8))
    assert stream_loss(logits, labels, STATES) == 0
    certain = jnp.full((1, 4, 8), -1e4).at[:, :, 5].set(1e4)
    for gamma in (0.5, 2):
        loss, grad = jax.jit(
            jax.value_and_grad(
                lambda x, g=gamma: stream_loss(x, np.full((1, 4), 5), STATES, gamma=g)
            )
        )(certain)
        assert loss == 0 and np.isfinite(grad).all()


def test_metrics_count_states_where_a_state_was_due():
    labels = np.array([[-100, 5, 6, 7, 7, 2, 3, -100]])
    predicted = [5, 5, 7, 1, 2, 5, 5, 5]
    metrics = stream_metrics(jax.nn.one_hot(jnp.array([predicted]), 8), labels, STATES)
    assert metrics.tokens == 6 and metrics.correct == 3
    assert metrics.tp.tolist() == [1, 0, 1]
    assert metrics.fp.tolist() == [1, 0, 0]
    assert metrics.fn.tolist() == [0, 1, 1]
    assert state_f1(metrics) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("state_ids", "options", "message"),
    [
        ((), {}, r"state_ids=\(\): wanted three different ids below 8"),
        (None, {}, "wanted three different ids"),
        ((5, 6, 6), {}, "wanted three different ids"),
        ((5, 6, 8), {}, "wanted three different ids below 8"),
        (STATES, {"kind": "hinge"}, "kind='hinge': wanted one of focal, scale, ce"),
        (STATES, {"alpha": "batch"}, "alpha='batch': wanted present, paper or None"),
        (STATES, {"kind": "scale", "state_weights": (1.0,)}, "wanted three numbers"),
        (STATES, {"state_weights": (0.3, 1.3, 2.0)}, "kind='scale'"),
    ],
)
def test_what_cannot_be_meant_is_an_error(state_ids, options, message):
    logits, labels = jnp.zeros((1, 4, 8)), np.zeros((1, 4), int)
    with pytest.raises(InputError, match=message):
        stream_loss(logits, labels, state_ids, **options)
    assert np.isfinite(stream_loss(logits, labels, None, kind="ce"))


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
def test_rows_tokens_and_vocabulary_live_on_different_devices(rng):
    hidden, kernel, labels = dialogues(rng, b=4)
    labels = jnp.asarray(labels)

    def step(hidden, kernel, labels):
        def loss(hidden, kernel):
            return chunked_stream_loss(hidden, kernel, labels, STATES, chunk=5)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, kernel)

    one = jax.jit(step)(hidden, kernel, labels)
    with jax.set_mesh(make_mesh(fsdp=2, tensor=2, context=2)):
        compiled = jax.jit(step).lower(hidden, kernel, labels).compile()
        many = compiled(hidden, kernel, labels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    v, text = kernel.shape[1], compiled.as_text()
    assert f"[2,5,{v // 2}]" in text and f"[2,5,{v}]" not in text
