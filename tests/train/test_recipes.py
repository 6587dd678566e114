"""Recipes are files, found by name, changed key by key, and written down."""

import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from streamjax.errors import InputError
from streamjax.train.recipes import changes, describe, find_recipe, load_recipe, override
from tests.train import toy

RECIPE = """
import dataclasses
from tests.train import toy

@dataclasses.dataclass
class Thing:
    text: str = "x"

def transform(record, rng):
    return {"x": Thing().text}

def config():
    return toy.config(name="mine", data=dataclasses.replace(toy.config().data, transform=transform))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return path


def test_a_file_is_run_and_not_imported(recipe):
    config = load_recipe(recipe, ["steps=3", "optim.lr=1e-5"])
    assert (config.name, config.steps, config.optim.lr) == ("mine", 3, 1e-5)
    assert not any("mine" in name for name in sys.modules)


def test_functions_of_a_recipe_travel_to_workers(recipe):
    cloudpickle = pytest.importorskip("cloudpickle")
    transform = cloudpickle.loads(cloudpickle.dumps(load_recipe(recipe).data.transform))
    assert transform(None, None) == {"x": "x"}


def test_a_name_is_looked_up_and_the_nearest_one_told(recipe, monkeypatch):
    (recipe.parent / "configs").mkdir()
    (recipe.parent / "configs" / "demo_thing.py").write_text(RECIPE)
    monkeypatch.chdir(recipe.parent)
    assert find_recipe("demo_thing").name == "demo_thing.py"
    with pytest.raises(FileNotFoundError, match="did you mean 'demo_thing'"):
        find_recipe("demo_thin")
    with pytest.raises(FileNotFoundError, match=r"gone\.py: no such recipe file"):
        find_recipe("gone.py")


def test_a_file_without_config_is_an_error(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match=r"wanted `def config\(\) -> TrainConfig`"):
        load_recipe(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("steps=7", "steps", 7),
        ("optim.clip=none", "optim.clip", None),
        ("optim.clip=2", "optim.clip", 2.0),
        ("optim.kind=muon", "optim.kind", "muon"),
        ("mesh.fsdp=8", "mesh.fsdp", 8),
        ("data.shuffle=false", "data.shuffle", False),
        ("trainable=projector,decoder/layers", "trainable", ("projector", "decoder/layers")),
        ("frozen=('tower',)", "frozen", ("tower",)),
        ("frozen=", "frozen", ()),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_overrides_are_typed_by_their_fields(text, key, value):
    found = override(toy.config(), [text])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps", "has no '='"),
        ("optim.lrr=1", "unknown key 'lrr', did you mean 'lr'"),
        ("optm.lr=1", "unknown key 'optm', did you mean 'optim'"),
        ("steps=1.5", "steps='1.5': wanted int"),
        ("optim.kind=sgd", "wanted one of 'adamw', 'muon'"),
        ("optim.clip=tight", "wanted float or none"),
        ("data.shuffle=2", "wanted bool"),
        ("optim=adamw", "names a group, wanted one of optim.kind"),
        ("steps.more=1", "'steps' has no parts"),
        ("objective=loss", "is a function: change it in the recipe"),
        ("data.source=x", "is a function"),
        ("steps=0", "steps=0, wanted 1 or more"),
        ("accumulate=3", "does not divide into accumulate=3"),
    ],
)
def test_a_wrong_override_is_one_line(text, told):
    with pytest.raises(InputError) as error:
        override(toy.config(), [text])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_description_is_plain_json_without_addresses():
    source = functools.partial(toy.transform, rng=np.arange(3))
    config = toy.config(data=toy.DataConfig(source=source, transform=lambda r, g: r))
    text = json.dumps(describe(config))
    assert "0x" not in text
    assert "sha256" in text
    assert "toy_data.transform" in text
    assert describe(Path("a") / "b") == "a/b"
    long = type("Long", (), {"__repr__": lambda self: "x" * 999})()
    assert re.fullmatch(r"x{80} \.\.\. sha256 [0-9a-f]{16}", describe(long))
    assert describe(config) == describe(config)


def test_changes_name_the_keys_that_differ():
    before = describe(toy.config())
    assert changes(before, before) == []
    after = describe(override(toy.config(), ["optim.lr=2.0", "mesh.fsdp=2"]))
    assert changes(before, after) == ["optim.lr=2.0 (was 0.01)", "mesh.fsdp=2 (was 1)"]


ASKING = """
from pathlib import Path
from tests.train import toy

def config(base: str = "none", rate: float = 1e-2, run: str | Path | None = None, tiny: bool = False):
    return toy.config(name=f"{base} {run}", steps=3 if tiny else 9, optim=toy.OptimConfig(lr=rate))
"""


def test_a_recipe_is_given_what_it_asks_for(tmp_path):
    path = tmp_path / "asking.py"
    path.write_text(ASKING)
    config = load_recipe(path, ["base=a=b", "rate=0.5", "steps=4", "optim.b1=0.5"], run="here")
    assert (config.name, config.optim.lr, config.steps, config.optim.b1) == (
        "a=b here",
        0.5,
        4,
        0.5,
    )
    assert load_recipe(path, tiny=True).steps == 3
    for texts, told in (
        (["bse=x"], "unknown key 'bse', did you mean 'base'?"),
        (["stepps=1"], "did you mean 'steps'?"),
        (["rate=fast"], "wanted float"),
        (["run=x"], "said as --run x"),
    ):
        with pytest.raises(InputError) as error:
            load_recipe(path, texts)
        assert told in str(error.value)


def test_a_recipe_without_a_tiny_form_says_so(recipe):
    with pytest.raises(InputError, match=r"mine.py takes no 'tiny'"):
        load_recipe(recipe, tiny=True)


def test_overrides_apply_together():
    config = toy.config(batch_size=8, accumulate=4)
    assert override(config, ["batch_size=6", "accumulate=3"]).batch_size == 6
