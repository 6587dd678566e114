"""Names of pods, and what is said when libtpu cannot compile for one."""

import importlib.metadata
import importlib.util

import pytest

from streamjax.errors import InputError
from streamjax.fit import topology as pods


@pytest.mark.parametrize(
    "name, sides, devices, tpu",
    [
        ("v5e:4x4", (4, 4), 16, True),
        ("v5p:4x4x4", (4, 4, 4), 64, True),
        ("V6E:8x8", (8, 8), 64, True),
        ("v4:2x2x1", (2, 2, 1), 8, True),  # two devices to a chip
        ("tpu7x:2x2x1", (2, 2, 1), 8, True),
        ("h100:8", (8,), 8, False),
        ("gpu:16", (16,), 16, False),
    ],
)
def test_a_pod_by_its_name(name, sides, devices, tpu):
    found = pods.topology(name)
    assert (found.sides, found.devices, found.tpu) == (sides, devices, tpu)
    assert found.chip.memory > 15e9 and found.chip.flops > 1e14


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:3x3", "v5litepod-16", "v7x:2x2", "h100", "h100:0", ""]
)
def test_a_wrong_name_lists_those_that_there_are(name):
    with pytest.raises(InputError) as error:
        pods.topology(name)
    told = str(error.value)
    assert "\n" not in told
    for known in ("v5e: 1x1", "16x16", "v5p: 2x2x1", "4x4x4", "v6e", "tpu7x", "h100"):
        assert known in told


def test_the_nearest_name_is_offered():
    with pytest.raises(InputError, match="did you mean 'v5p:4x4x4'"):
        pods.topology("v5p-4x4x4")


def test_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu is missing.*pip install 'streamjax\[fit\]'"):
        pods.check_libtpu()


def test_libtpu_of_another_jax_is_named(monkeypatch):
    versions = {"libtpu": "0.0.51", "jax": "0.10.2"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", versions.get)
    monkeypatch.setattr(pods, "wanted_libtpu", lambda: "0.0.42.*")
    with pytest.raises(
        InputError, match=r"libtpu is 0\.0\.51, wanted 0\.0\.42\.\* for jax 0\.10\.2"
    ):
        pods.check_libtpu()
    versions["libtpu"] = "0.0.42.1"
    pods.check_libtpu()


def test_the_installed_jax_says_which_libtpu_it_wants():
    wanted = pods.wanted_libtpu()
    assert wanted is None or wanted.startswith("0.0.")


def test_the_compilers_process_minds_no_lock_file():
    said = pods.environment(pods.topology("v5e:2x2"))
    assert said["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1" and said["JAX_PLATFORMS"] == "cpu"
    assert pods.environment(pods.topology("h100:8"))["JAX_NUM_CPU_DEVICES"] == "8"
