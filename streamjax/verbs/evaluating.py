"""The verbs of benchmarks: a model asked and scored, answers scored, two results compared."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from streamjax.errors import InputError
from streamjax.verbs.shared import Place, counting

# What `streamjax eval MODEL NAME` can be besides a benchmark of others, with arguments of its own:
# the function eval_NAME.
OTHERS = ("pretraining", "timing")


def eval(
    model: Place[str],
    benchmark: Place[str],
    /,
    data: Path,
    videos: Path | None = None,
    protocol: str | None = None,
    rule: str | None = None,
    limit: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    recent: int | None = None,
    max_new_tokens: int | None = None,
    policy: Literal["session", "full", "refill", "recent"] | None = None,
    window: int | None = None,
    every: int = 1,
    pictures_fps: float = 1.0,
    judge: str | None = None,
    judge_model: str | None = None,
    max_bad: float = 0.05,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Asks a model the questions of a benchmark and prints a table, with how many answers stand
    behind each number. Every answer is written down as it comes: the same call again goes on where
    it stopped, and tries again what failed.

    Benchmarks: ovo_bench, ovo_bench_streamo, streamingbench, streamo_bench, videomme, mvbench,
    tempcompass, longvideobench, mlvu, etbench. Of ar_k400, ar_ssv2, oad_thumos14, oad_tvseries,
    vis_ytvis2019 and vis_ovis answers made elsewhere are scored (streamjax eval score). Two more
    have arguments of their own (streamjax eval MODEL NAME --help): pretraining, StreamFormer's six
    tasks, and timing, when an assistant speaks.

    Example: streamjax eval MODEL videomme --data videomme/ --videos videos/ --frames 16

    Example: streamjax eval MODEL ovo_bench_streamo --data ovo/ --fps 2 --limit 50 --out runs/ovo

    Example: streamjax eval MODEL streamingbench --data sb/ --recent 4

    Args:
        model: A training run, a Hugging Face folder, or a hub id.
        benchmark: Its name; see above.
        data: The benchmark's annotation files.
        videos: The folder of its videos; without it that of the annotations.
        protocol: How it is asked, where a benchmark has several ways; without it its first.
        rule: How answers are read and averaged; without it the benchmark's own.
        limit: So many of its records, spread over all of them.
        frames: Frames of each question, spread as the benchmark spreads them.
        fps: A frame each 1/fps seconds instead; of streams, frames a second (without it 1).
        recent: The last so many frames before the question's end alone (of streams: policy recent).
        max_new_tokens: Of an answer; without it the benchmark's number.
        policy: What streams remember; without it session.
        window: Turns that streams remember; without it 120.
        every: Turns between two readings, of policy refill.
        pictures_fps: Pictures a second of videos that are folders of pictures.
        judge: The URL of an OpenAI-compatible server, for answers that another model judges.
        judge_model: The judge's name on that server.
        max_bad: The share of items that may fail, by a missing video for example.
        out: The run's folder; without it eval_BENCHMARK_MODEL.
        as_json: Print the result as JSON instead of the table.
    """
    from streamjax.evals import benchmarks
    from streamjax.evals.harness import manifest, running, scored
    from streamjax.evals.harness.footage import Look

    try:
        found = benchmarks.find(benchmark)
    except InputError as error:
        raise InputError(f"{error}, {', '.join(OTHERS)}") from None
    chosen, way = scored.rule_of(found, rule), scored.protocol_of(found, protocol)
    numbers = {
        "limit": limit, "frames": frames, "fps": fps, "recent": recent, "window": window,
        "every": every, "max-new-tokens": max_new_tokens, "pictures-fps": pictures_fps,
    }  # fmt: skip
    for name, number in numbers.items():
        if number is not None and not (number > 0):
            raise InputError(f"--{name} {number}: wanted a number above 0")
    if frames is not None and (fps is not None or recent is not None):
        raise InputError("--frames beside --fps or --recent: wanted one way to choose frames")
    _judge_given(found, judge, judge_model)
    home = videos or data
    for name, place in (("data", data), ("videos", home)):
        if not place.is_dir():
            raise InputError(f"--{name} {place}: no such folder")
    whole = found.read(data)
    # Verdicts that lie in the folder are on another model's answers.
    records = dataclasses.replace(running.limited(whole, limit), verdicts={})
    assert found.questions is not None
    asked = found.questions(records, way)
    if not asked:
        raise InputError(f"{data}: no question to ask; found {len(whole.records)} records")
    streams = any(_is_stream(one) for one in asked)
    if streams and frames is not None:
        raise InputError(f"--frames: {found.name} is watched frame by frame; wanted --fps")
    if not streams and (policy or window):
        raise InputError(f"--policy, --window: {found.name} has no streams; wanted --recent")
    if any("<image>" in getattr(one, "prompt", "") for one in asked) and (frames or fps or recent):
        raise InputError(f"protocol {way} has its frames among the words: leave their number to it")
    if recent is not None and streams:
        policy, window = "recent", recent
    memory = {"policy": policy or "session", "window": window, "every": every}
    place = out or Path(f"eval_{found.name}_{Path(model).name}")
    loaded = _loaded(model)
    decided = {
        **manifest.of_scores(found, whole, data, chosen),
        "protocol": way,
        "protocol_words": found.protocols[way],
        "limit": limit,
        **manifest.of_questions(asked),
        **manifest.of_model(loaded, model),
        "frames": frames,
        "fps": (fps or 1.0) if streams else fps,
        "recent": recent,
        "pictures_fps": pictures_fps,
        "window": memory if streams else None,
        "decoding": {"greedy": True, "max_new_tokens": max_new_tokens},
    }
    judging = _judge(judge, judge_model, place / "judge.jsonl")
    decided["judge"] = None if judging is None else judging.manifest(found)
    running.begin(place, decided)
    answer = _answering(
        loaded, home, Look(frames, fps, recent), max_new_tokens, memory, fps or 1.0,
        place / running.TRACES, pictures_fps, streams,
    )  # fmt: skip
    with counting(found.name, len(asked)) as progress:
        done = running.ask_all(asked, answer, place, progress=progress)
    records = _judged(found, records, done.answers, judging)
    scores = found.score(records, done.answers, chosen)
    result = scored.document(found.name, chosen, scores, decided)
    result["failed"] = dict(done.failed)
    lines = running.failures(done)
    if limit is not None:
        lines.insert(0, f"{len(records.records)} of {len(whole.records)} records (--limit)")
    _show(
        result, found.title, found.rules[chosen], out=place / running.RESULT, as_json=as_json,
        lines=[*(judging.problems if judging else ()), *lines],
    )  # fmt: skip
    running.check_failures(done, max_bad)


def eval_score(
    benchmark: Place[str],
    /,
    data: Path,
    predictions: Path,
    rule: str | None = None,
    judge: str | None = None,
    judge_model: str | None = None,
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
        judge: The URL of an OpenAI-compatible server, for answers that another model judges.
        judge_model: The judge's name on that server.
        out: Write the result there too, as JSON with everything that decided it.
        as_json: Print that JSON instead of the table.
    """
    from streamjax.evals import benchmarks, results
    from streamjax.evals.harness import manifest, scored

    found = benchmarks.find(benchmark)
    chosen = scored.rule_of(found, rule)
    _judge_given(found, judge, judge_model)
    if not data.is_dir():
        raise InputError(f"--data {data}: no such folder; wanted {found.title}'s files")
    file = scored.answers_at(predictions)
    if out is not None:
        results.writable(out)
    records = found.read(data)
    answers = scored.answers_of(found, file)
    if not answers:
        raise InputError(f"{file}: holds no answer, wanted those to {found.title}'s questions")
    judging = _judge(judge, judge_model, out and out.with_name(f"{out.stem}.judge.jsonl"))
    decided = {
        **manifest.of_scores(found, records, data, chosen),
        "predictions": results.files_hash(
            scored.files_of(file), file if file.is_dir() else file.parent
        ),
        "judge": None if judging is None else judging.manifest(found),
    }
    scores = found.score(_judged(found, records, answers, judging), answers, chosen)
    result = scored.document(found.name, chosen, scores, decided)
    _show(
        result, found.title, found.rules[chosen], out=out, as_json=as_json,
        lines=judging.problems if judging else (),
    )  # fmt: skip


def eval_compare(
    a: Place[Path],
    b: Place[Path],
    /,
    across: tuple[str, ...] = (),
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Puts two results of one benchmark side by side: scores, their difference, and 95 % intervals
    of all three by drawing videos again. Results that were not made alike are refused, by the name
    of what differs; the model may.

    Example: streamjax eval compare runs/ovo_a runs/ovo_b

    Example: streamjax eval compare runs/one_fps runs/two_fps --across fps

    Args:
        a: A run's folder, or a result written by --out.
        b: The other one; differences are b - a.
        across: Fields of the manifests that may differ.
        seed: The same seed draws the same videos.
        as_json: Print one JSON object instead of the table.
    """
    from streamjax.evals.harness.compare import compare, read_result, table

    results = read_result(a), read_result(b)
    rows = compare(*results, across=across, seed=seed)
    if as_json:
        columns = [dataclasses.asdict(row) for row in rows]
        told = {"a": str(a), "b": str(b), "across": list(across), "seed": seed}
        print(json.dumps({**told, "columns": columns}, indent=2))
    else:
        print(table(rows, (a.stem or str(a), b.stem or str(b))))


def _loaded(model: str):
    import streamjax as sj

    return sj.load(model)


def _is_stream(asked: Any) -> bool:
    from streamjax.evals.benchmarks.benchmark import Watching

    return isinstance(asked, Watching)


def _answering(
    model: Any,
    videos: Path,
    look: Any,
    most: int | None,
    memory: Mapping[str, Any],
    fps: float,
    traces: Path,
    pictures_fps: float,
    streams: bool,
):
    """A function of an item: the model's answer."""
    from streamjax.data.chat import state_ids
    from streamjax.evals.harness.answering import Answerer
    from streamjax.evals.harness.watching import Watcher

    answerer = Answerer(model, videos, look=look, most=most, pictures_fps=pictures_fps)
    if streams:
        state_ids(answerer.tokenizer)  # told once, and not of every item
    watcher = Watcher(
        model, videos, fps=fps, most=most, traces=traces, pictures_fps=pictures_fps, **memory
    )
    return lambda one: watcher(one) if _is_stream(one) else answerer(one)


def _judge_given(benchmark: Any, url: str | None, model: str | None) -> None:
    if (url is None) != (model is None):
        raise InputError("--judge and --judge-model: wanted both or none")
    if url is not None and benchmark.judging is None:
        raise InputError(f"--judge: none of {benchmark.name}'s answers needs a judge; leave it out")


def _judge(url: str | None, model: str | None, cache: Path | None):
    from streamjax.evals.harness.judge import Judge

    if url is None or model is None:
        return None
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    return Judge(url, model, cache=cache)


def _judged(benchmark: Any, records: Any, answers: Mapping[str, Any], judge: Any):
    """The records with the judge's verdicts."""
    from streamjax.evals.harness.judge import judged

    if judge is None:
        return records
    with counting("judged") as progress:
        verdicts = judged(benchmark, records, answers, judge, progress)
    return dataclasses.replace(records, verdicts={**records.verdicts, **verdicts})


def _show(
    result: Mapping[str, Any],
    title: str,
    words: str,
    *,
    out: Path | None,
    as_json: bool,
    lines: Sequence[str] = (),
) -> None:
    from streamjax.evals import results
    from streamjax.evals.harness import scored

    if out is not None:
        results.write(out, result)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join([scored.table(result, title, words), *lines]))
