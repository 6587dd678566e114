"""Eight fake CPU devices, exact float32, no network: what every test may count on.

Nothing here imports streamjax, so that jaxtyping's import hook still sees every module first.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Most of what tests compile runs once: XLA does it in a hurry, a third sooner. `...=0 pytest` runs
# them on the programs that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import numpy as np
import pytest

# Both must be said before the first array: the devices exist once, the precision is compiled in.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of small cases copied from the original implementations, one folder a family."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """For tests that train or stream for long: XLA takes its time, as for users."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator with the same seed for every test, whatever ran before."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with world/ (a few written clips and their annotations) and tokenizer/."""
    from tests import small_world  # streamjax is imported here, after the hook

    return small_world.make(tmp_path_factory.mktemp("small_world"))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Qwen2.5-VL tokenizer, as its base model has it: without the state tokens."""
    from tests import qwen_bpe

    return qwen_bpe.write(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same, loaded, with the state tokens."""
    from streamjax.data.tokenizer import copy_with_states, load_tokenizer

    folder = tmp_path_factory.mktemp("streamo")
    copy_with_states(qwen_folder, folder)
    return load_tokenizer(folder)
