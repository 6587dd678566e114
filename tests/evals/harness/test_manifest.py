"""What decided a result: hashes that change with what they are of, and refusals by name."""

import dataclasses
from typing import Any

import pytest

from streamjax.errors import InputError
from streamjax.evals import benchmarks
from streamjax.evals.benchmarks.benchmark import Polling, Question, Watching
from streamjax.evals.harness import manifest

QUESTION = Question("a", "v", "what")
WATCHING = Watching("b", "v", ((1.0, "what"),))


def test_every_word_that_is_put_is_in_the_hash():
    def prompts(*asked):
        return manifest.of_questions(asked)["prompts"]

    same = prompts(QUESTION, WATCHING)
    assert prompts(QUESTION, WATCHING) == same
    changes: list[dict[str, Any]] = [
        {"prompt": "what "}, {"system": "s"}, {"prefix": "("}, {"end": 3.0}, {"id": "c"},
    ]  # fmt: skip
    for change in changes:
        assert prompts(dataclasses.replace(QUESTION, **change), WATCHING) != same
    changes = [{"asks": ((2.0, "what"),)}, {"speaks_from": 1.0}, {"until": "response"}]
    for change in changes:
        assert prompts(QUESTION, dataclasses.replace(WATCHING, **change)) != same
    found = manifest.of_questions([QUESTION, WATCHING, Polling("p", "v", lambda ask: None)])
    assert found["items"] == 3
    assert manifest.hashed(["ab", "c"]) != manifest.hashed(["a", "bc"])


def test_scores_say_data_rule_and_code(asked):
    ovo = benchmarks.find("ovo_bench")
    found = manifest.of_scores(ovo, ovo.read(asked), asked, "official")
    assert found["benchmark"] == "ovo_bench" and found["averaging"] == ovo.rules["official"]
    assert found["data"].startswith("sha256 ") and len(found["code"]["scorer"]) == 16


def test_the_model_says_numbers_and_pixels(assistant):
    folder, model = assistant
    found = manifest.of_model(model, str(folder))
    assert found["weights"].startswith("sha256 ")
    assert found["pixels"]["processor"] == "ImageProcessor" and "size" in found["pixels"]
    assert found["machine"]["dtype"] == "float32"


BEGUN = {"data": "x", "fps": 1.0, "rule": "official", "weights": "w", "limit": None}


def test_a_folder_goes_on_under_its_own_manifest_alone(tmp_path):
    manifest.check_same(BEGUN, {**BEGUN, "rule": "other"}, tmp_path)  # scored anew
    for name, value in (("weights", "v"), ("fps", 2.0), ("limit", 3), ("prompts", "new")):
        with pytest.raises(InputError, match=f"was begun with {name} "):
            manifest.check_same(BEGUN, {**BEGUN, name: value}, tmp_path)


def test_results_that_were_not_made_alike_are_refused_by_name():
    manifest.check_comparable(BEGUN, {**BEGUN, "weights": "v", "model": "other"})
    for name, value in (("data", "y"), ("rule", "r"), ("limit", 3), ("fps", 2.0), ("recent", 4)):
        other = {**BEGUN, name: value}
        way = "" if name in ("data", "limit") else f", but with --across {name}"
        with pytest.raises(InputError, match=f"^{name} is .* cannot be compared{way}$"):
            manifest.check_comparable(BEGUN, other)
        manifest.check_comparable(BEGUN, other, across=[name])
    worded = {**BEGUN, "rule": "r", "averaging": "in other words"}
    manifest.check_comparable(BEGUN, worded, across=["rule"])
    with pytest.raises(InputError, match="--across fsp: the manifests have data, fps"):
        manifest.check_comparable(BEGUN, BEGUN, across=["fsp"])
