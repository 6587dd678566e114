"""The verbs of benchmarks: a model asked and scored, answers scored, two results compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from streamjax.errors import InputError
from streamjax.verbs.shared import Place

# Not of `evals.benchmarks`: what they are given differs. `streamjax eval MODEL NAME ...` is a
# function of its own, eval_NAME.
OTHERS = ("pretraining",)


def eval(model: Place[str], benchmark: Place[str], /, data: Path):
    """Scores a model on a benchmark.

    Example: streamjax eval MODEL videomme --data videomme/

    Args:
        model: A training run, a Hugging Face folder, or a hub id.
        benchmark: Its name.
        data: The benchmark's annotation files.
    """
    from streamjax.evals import benchmarks

    benchmarks.find(benchmark)


def eval_score(
    benchmark: Place[str],
    /,
    data: Path,
    predictions: Path,
    rule: str | None = None,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Scores answers that were made elsewhere, or by an earlier run, and prints a table with how
    many answers stand behind each number.

    Example: streamjax eval score videomme --data videomme/ --predictions answers.json

    Example: streamjax eval score mlvu --data mlvu/ --predictions answers.json --rule lmms_eval_2026

    Args:
        benchmark: Its name; `streamjax eval --help` tells all.
        data: The benchmark's annotation files.
        predictions: The answers: a file or folder in the benchmark's own form, a JSON file of
            {id: text or null}, JSON lines of {"id", "answer"}, or the folder of a run.
        rule: How answers are read and averaged; without it the benchmark's own.
        out: Write the result there too, as JSON with everything that decided it.
        as_json: Print that JSON instead of the table.
    """
    from streamjax import __version__
    from streamjax.evals import benchmarks, results, scored

    found = benchmarks.find(benchmark)
    chosen = scored.rule_of(found, rule)
    if not data.is_dir():
        raise InputError(f"--data {data}: no such folder; wanted {found.title}'s files")
    answers_file = scored.answers_at(predictions)
    if out is not None:
        results.writable(out)
    records = found.read(data)
    scores = found.score(records, found.answers(answers_file), chosen)
    manifest = {
        "benchmark": found.name,
        "rule": chosen,
        "rule_words": found.rules[chosen],
        "data": results.files_hash(records.files, data),
        "predictions": results.files_hash(
            scored.files_of(answers_file),
            answers_file if answers_file.is_dir() else answers_file.parent,
        ),
        "streamjax": __version__,
    }
    result = scored.document(found.name, chosen, scores, manifest)
    _show(result, found.title, found.rules[chosen], out=out, as_json=as_json)


def _show(
    result: Mapping[str, Any], title: str, words: str, *, out: Path | None, as_json: bool
) -> None:
    from streamjax.evals import results, scored

    print(json.dumps(result, indent=2) if as_json else scored.table(result, title, words))
    if out is not None:
        results.write(out, result)
