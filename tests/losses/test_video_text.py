"""The ring of texts against the original's processes; the others in tests/train/test_video_tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from streamjax.losses import video_text
from streamjax.sharding import make_mesh
from streamjax.weights import safetensors

pytestmark = [pytest.mark.devices, pytest.mark.xdist_group("devices")]

SCALE, BIAS = 2.0, -1.5


@pytest.fixture(scope="module")
def io(golden):
    path = golden / "streamformer" / "f2b_siglip_loss_world_size" / "io.safetensors"
    return safetensors.read_file(path)[0]


def weighed(video, text, scale, bias, weights):
    losses, nearest = video_text.retrieval(video, text, scale, bias)
    return (losses * weights).sum(), (losses, nearest)


@jax.jit
def paid(*inputs):
    """(losses, nearest) of each row, and the gradients of their weighted sum by all four inputs."""
    (_, out), grads = jax.value_and_grad(weighed, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)
    return out, grads


def plain(video, text, scale, bias):
    """SigLIP's formula on the whole batch."""
    z = jnp.exp(scale) * video @ text.T + bias
    sign = 2 * jnp.eye(len(z)) - 1
    return -jax.nn.log_sigmoid(sign * z).sum(1), (z.argmax(1) == np.arange(len(z)))


@pytest.mark.parametrize("ways", [2, 3])
def test_each_device_pays_what_each_process_paid(io, ways):
    def of(name):
        return [np.array(io[f"W{ways}.rank{r}.{name}"]) for r in range(ways)]

    with jax.set_mesh(make_mesh(data=ways)):
        video, text = (np.concatenate(of(f"{x}_features")) for x in ("image", "text"))
        rows = len(video) // ways
        every = np.float32(1 / rows)  # a process divides by its own rows
        for rank in range(ways):
            alone = np.repeat(np.arange(ways) == rank, rows) * every
            (losses, _), grads = paid(video, text, SCALE, BIAS, alone)
            at = slice(rank * rows, (rank + 1) * rows)
            np.testing.assert_allclose(losses[at].mean(), of("loss")[rank], atol=1e-4, rtol=1e-5)
            found = dict(
                zip(("image_features", "text", "logit_scale", "logit_bias"), grads, strict=True)
            )
            del found["text"]
            found["image_features"] = found["image_features"][at]
            for name, grad in found.items():
                wanted = of(f"grad.{name}")[rank]
                np.testing.assert_allclose(grad, wanted, atol=1e-5, rtol=1e-3, err_msg=name)
        # What came back to a text came from all processes.
        _, grads = paid(video, text, SCALE, BIAS, np.full(len(video), every))
        wanted = np.concatenate(of("grad.text_features"))
        np.testing.assert_allclose(grads[1], wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "axes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}, {}]
)
def test_the_ring_is_the_formula_on_the_whole_batch(rng, axes):
    video, text = (rng.normal(size=(8, 16)).astype(np.float32) for _ in range(2))
    video, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (video, text))
    text[:4] += 0.5 * video[:4]
    weights = rng.normal(size=8).astype(np.float32)
    inputs = video, text, np.float32(1.3), np.float32(-0.7)
    with jax.set_mesh(make_mesh(**axes)):
        found, grads = paid(*inputs, weights)
    np.testing.assert_allclose(found[0], plain(*inputs)[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], plain(*inputs)[1])
    assert 0 < found[1].sum() < 8
    wanted = jax.grad(lambda *a: (plain(*a)[0] * weights).sum(), argnums=(0, 1, 2, 3))(*inputs)
    for a, b in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_rows_that_do_not_divide_need_no_ring(rng):
    video, text = (jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) for _ in range(2))
    with jax.set_mesh(make_mesh(data=2)):
        found, _ = video_text.retrieval(video, text, jnp.float32(0.0), jnp.float32(0.0))
    np.testing.assert_allclose(found, plain(video, text, 0.0, 0.0)[0], rtol=1e-5)


def test_no_device_gathers_the_texts():
    mesh = make_mesh(data=4)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    features = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=rows)
    weights = jax.ShapeDtypeStruct((32,), jnp.float32, sharding=rows)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    with jax.set_mesh(mesh):
        compiled = paid.lower(features, features, number, number, weights).compile()
    program = compiled.as_text()
    assert "collective-permute" in program
    assert "all-gather" not in program and "all-to-all" not in program
    # Nothing in it is as large as all texts, nor as all pairs.
    assert "f32[32,16]" not in program and "f32[4,8,16]" not in program
    assert "f32[8,32]" not in program and "f32[32,32]" not in program
