"""The kernels behind causal attention: which one where, and all of them equal, on a mesh too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from streamjax.ops import attention, cudnn
from streamjax.ops.attention import causal_attention, kernel_for
from streamjax.sharding import MESH_AXES, make_mesh

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

LENGTH = 200  # a TPU's blocks do not divide it


@pytest.fixture(scope="module")
def case():
    """q, k, v of two rows, each of three dialogues and padding."""
    rng = np.random.default_rng(0)
    heads = [jnp.asarray(rng.standard_normal((2, n, LENGTH, 8)), jnp.float32) for n in (4, 2, 2)]
    cuts = np.array([[0, 50, 51, 170], [0, 9, 100, 200]])
    segments = (np.arange(LENGTH) >= cuts[:, :, None]).sum(1) - 1
    return heads, jnp.asarray(np.where(segments == 3, -1, segments), jnp.int32)


def with_gradients(function, heads):
    def weighted(*heads):
        out = function(*heads)
        return jnp.sin(out).sum(), out

    run = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    return jax.device_get(run(*heads))


@pytest.fixture(scope="module")
def whole(case):
    """By one block, without a mesh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "ROWS", 1024)
        return with_gradients(lambda *h: causal_attention(*h, case[1]), case[0])


def close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)


@pytest.mark.parametrize("axes", [None, {"data": 2, "tensor": 2, "context": 2}])
def test_splash_equals_blocks(case, whole, axes):
    """On the CPU, by Pallas' interpreter."""
    heads, segments = case
    with jax.set_mesh(make_mesh(**(axes or {"data": 1}))):
        mesh = jax.sharding.get_abstract_mesh() if axes else None
        close(
            with_gradients(lambda *h: attention._splash(*h, segments, mesh, interpret=True), heads),
            whole,
        )


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "tensor": 2, "context": 2},
        {"fsdp": 2, "tensor": 4},  # more devices than key heads
        {"data": 1, "context": 8},
    ],
)
def test_a_mesh_changes_nothing(case, whole, axes):
    heads, segments = case
    with jax.set_mesh(make_mesh(**axes)):
        close(with_gradients(lambda *h: causal_attention(*h, segments), heads), whole)


def on(platform):
    device = jax.sharding.AbstractDevice(device_kind="", num_cores=None, platform=platform)
    return AbstractMesh((2, 1, 2, 1), MESH_AXES, (AxisType.Auto,) * 4, abstract_device=device)


def test_the_kernel_is_that_of_the_devices_compiled_for(monkeypatch):
    choose = functools.partial(kernel_for, jnp.bfloat16, 128, packed=True)
    assert choose() == "blocks"
    with jax.sharding.use_abstract_mesh(on("tpu")):
        assert choose() == "splash"
    with jax.sharding.use_abstract_mesh(on("gpu")):
        assert choose() == "blocks"  # no cuDNN here
        hopper(monkeypatch)
        assert choose() == "cudnn"
        assert kernel_for(jnp.float32, 128, packed=True) == "blocks"
        assert kernel_for(jnp.bfloat16, 256, packed=False) == "blocks"
        monkeypatch.setattr(cudnn.cudnn, "check_compute_capability", lambda c: c == "8.0")
        assert choose() == "blocks"
        assert kernel_for(jnp.bfloat16, 128, packed=False) == "cudnn"


def hopper(monkeypatch):
    monkeypatch.setattr(cudnn.cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn.cudnn, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(cudnn.cudnn, "is_cuda_compute_capability_equal", lambda other: False)


@pytest.mark.parametrize(
    ("platform", "mark"), [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmha")]
)
def test_lowers_for_accelerators(monkeypatch, platform, mark):
    """Forward and backward of packed rows, for machines that are not here."""
    hopper(monkeypatch)
    shapes = [jax.ShapeDtypeStruct((1, n, 256, 128), jnp.bfloat16) for n in (4, 2, 2)]
    segments = jax.ShapeDtypeStruct((1, 256), jnp.int32)
    kernel = "splash" if platform == "tpu" else "cudnn"

    @jax.jit
    def gradients(q, k, v, segments):
        def total(*heads):
            return causal_attention(*heads, segments, kernel=kernel).astype(jnp.float32).sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    text = gradients.trace(*shapes, segments).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(mark) >= 2


def test_runs_of_a_packed_row():
    starts, lengths = cudnn.runs(jnp.array([[0, 0, 0, 1, 2, 2, -1], [4] * 7]), 5)
    assert starts.tolist() == [[0, 3, 4, 6, -1, -1], [0, -1, -1, -1, -1, -1]]
    assert lengths.tolist() == [[3, 1, 2, 1, -1], [7, -1, -1, -1, -1]]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU with cuDNN")
def test_cudnn_equals_blocks():
    rng = np.random.default_rng(0)
    heads = [jnp.asarray(rng.standard_normal((2, n, 512, 128)), jnp.bfloat16) for n in (4, 2, 2)]
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (2, 512))), jnp.int32)
    for ids in (None, segments):
        found, wanted = (
            with_gradients(
                lambda *h, kernel=kernel, ids=ids: causal_attention(*h, ids, kernel=kernel)
                .astype(jnp.float32), heads,
            )
            for kernel in ("cudnn", "blocks")
        )  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                np.float32(a), np.float32(b), atol=3e-2, rtol=3e-2
            ),
            found, wanted,
        )  # fmt: skip


def test_memory_grows_with_the_length_only():
    """Forward and backward of packed rows at 8k and 32k tokens: four times, not sixteen."""

    def needed(length):
        shapes = [jax.ShapeDtypeStruct((1, n, length, 16), jnp.bfloat16) for n in (4, 2, 2)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def total(q, k, v, ids):
            return causal_attention(q, k, v, ids).astype(jnp.float32).sum()

        run = jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes, ids)
        compiled = run.compile({"xla_backend_optimization_level": 0})
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = needed(8192), needed(32768)
    assert long < 5 * short
    assert long < 32768 * 32768  # a quarter of a byte for each score
