"""`streamjax eval MODEL timing`: when an assistant speaks, on any set of timed dialogues."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from streamjax.errors import InputError
from streamjax.verbs.shared import Place, as_input, counting

PAGE = "timing.html"


def eval_timing(
    model: Place[str],
    benchmark: Place[Literal["timing"]] = "timing",
    /,
    *,
    data: Path,
    split: str = "test",
    videos: Path | None = None,
    kinds: tuple[str, ...] = (),
    limit: int | None = None,
    tolerance: float = 1.0,
    fps: float = 1.0,
    policy: Literal["session", "full", "refill", "recent"] = "session",
    window: int | None = None,
    every: int = 1,
    respond: float | None = None,
    standby: float | None = None,
    hysteresis: float | None = None,
    max_new_tokens: int = 64,
    streams: int = 1,
    free_only: bool = False,
    max_bad: float = 0.01,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Lets an assistant watch held-out videos, hearing only itself, and scores when it spoke and
    what it said: F1 of the three states, precision and recall of answers within 0, 1 and 3 s,
    delays, false alarms a minute, periods, right words; for each kind of instruction, and beside
    what needs no model. Then decides again from the recorded probabilities with other thresholds.

    Example: streamjax eval runs/demo/hf timing --data runs/demo/world --out runs/demo/timing

    Example: streamjax eval MODEL timing --data streamo.json --videos videos/ --limit 100

    Example: streamjax eval MODEL timing --data world/ --respond 0.4 --hysteresis 0.0

    Args:
        model: A training run, a Hugging Face folder, or a hub id.
        benchmark: timing.
        data: A folder laid out as `streamjax world` writes it, or a file of Streamo's raw records.
        split: Of a folder, the split of its streamo/ annotations.
        videos: The folder of the videos; without it DATA/videos, or the file's own folder.
        kinds: Score these kinds of instruction only.
        limit: So many dialogues, every kind its share.
        tolerance: Seconds between an answer and the moment it was wanted, at most, where one number
            is told: false alarms, right words, thresholds.
        fps: Turns a second.
        policy: What is remembered, as of `streamjax stream`.
        window: Turns (recent: frames) that are remembered; without it 120.
        every: Turns between two readings, of policy refill.
        respond: Speak when P(Response) reaches this; without any of the three thresholds the
            likeliest state is taken, with one of them the others are 0.5, 0.5 and none.
        standby: Otherwise stand by when P(Standby) reaches this.
        hysteresis: Speak again only after P(Response) was this much below --respond.
        max_new_tokens: Of an answer.
        streams: Dialogues held at a time.
        free_only: Leave out what is decided at the true history.
        max_bad: The share of dialogues that may be unusable; they are told and left out.
        out: A folder for result.json, a trace of each dialogue, and timing.html, a page with the
            curve of precision and recall; a call that was cut off goes on there.
        as_json: Print the result's JSON instead of the tables.
    """
    del benchmark  # only the word that brought us here
    from streamjax import __version__, load
    from streamjax.evals import results
    from streamjax.evals.harness import manifest as manifests
    from streamjax.evals.harness import running, scored
    from streamjax.evals.timing.curves_page import write_page
    from streamjax.evals.timing.dialogues import hold, read_set
    from streamjax.evals.timing.report import forced, report_of
    from streamjax.evals.timing.scores import REACH, TOLERANCES
    from streamjax.models.vlm import VideoLM
    from streamjax.stream import Thresholds
    from streamjax.stream.book import Policy

    counts = {"limit": limit, "max-new-tokens": max_new_tokens, "streams": streams}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"--{name} {count}: wanted at least 1")
    if not 0 <= tolerance <= REACH:
        raise InputError(f"--tolerance {tolerance:g}: wanted 0 to {REACH} seconds")
    if not fps > 0:
        raise InputError(f"--fps {fps:g}: wanted turns a second above 0")
    given = {"respond": respond, "standby": standby, "hysteresis": hysteresis}
    given = {name: value for name, value in given.items() if value is not None}
    with as_input():
        Policy(policy, every=every, **({} if window is None else {"window": window}))
        thresholds = Thresholds(**given) if given else None
    if out is not None and out.is_file():
        raise InputError(f"--out {out}: is a file, wanted a folder")

    found = read_set(data, split, videos=videos, kinds=kinds, limit=limit, fps=fps)
    total = len(found.planned) + len(found.problems)
    _check(found.problems, total, max_bad)
    loaded = load(model)
    if not isinstance(loaded, VideoLM):
        raise InputError(f"{model}: a {type(loaded).__name__} says nothing; wanted an assistant")
    if loaded.assets.tokenizer is None:
        raise InputError(f"{model}: no tokenizer.json; dialogues need the model's tokenizer")
    (file,) = found.files
    manifest = {
        "benchmark": "timing",
        **manifests.of_model(loaded, model),
        "data": results.files_hash([file], file.parent),
        "split": split if data.is_dir() else None,
        "fps": fps,
        "policy": {"name": policy, "window": window, "every": every},
        "decoding": {"max_new_tokens": max_new_tokens, "temperature": 0},
        "thresholds": None if thresholds is None else dataclasses.asdict(thresholds),
        "streams": streams,
        "items": len(found.planned),
        "ids": manifests.hashed(one.id for one in found.planned),
        "prompts": manifests.hashed(
            message["content"]
            for one in found.planned
            for message in one.messages("")
            if message["role"] == "user"
        ),
        "rule": {"tolerance": tolerance, "tolerances": TOLERANCES, "reach": REACH},
        "code": {"streamjax": __version__},
    }
    if out is not None:
        running.begin(out, manifest)
    with counting("dialogues", len(found.planned)) as counted, as_input():
        held, failed = hold(
            loaded, found.planned, thresholds=thresholds, slots=streams,
            traces=None if out is None else out / running.TRACES, progress=counted,
            policy=policy, window=window, every=every, max_new_tokens=max_new_tokens,
        )  # fmt: skip
    problems = [*found.problems, *failed]
    _check(problems, total, max_bad if held else 0.0)
    taught = {}
    if not free_only:
        with counting("at the true history", len(found.planned)) as counted:
            taught, long = forced(loaded, found.planned, thresholds=thresholds, progress=counted)
            problems += long
    report = report_of(
        held, found.planned, problems, thresholds=thresholds, tolerance=tolerance, taught=taught
    )
    result = {**report.row(), "manifest": scored.plain(manifest)}
    print(json.dumps(result, indent=2) if as_json else report.table())
    if out is None:
        return
    results.write(out / running.RESULT, result)
    about = [str(data), f"{fps:g} turn{'s' * (fps != 1)} a second", "free-running"]
    write_page(
        out / PAGE, report.curve, report.scores, report.kinds, report.baselines,
        title=model, about=about,
    )  # fmt: skip
    print(f"wrote {out / running.RESULT} and {out / PAGE}", file=sys.stderr)


def _check(problems: Sequence[str], total: int, max_bad: float) -> None:
    """InputError where more dialogues cannot be used than may."""
    if len(problems) > max_bad * total:
        raise InputError(
            f"{len(problems)} of {total} dialogues or records could not be used, more than "
            f"--max-bad {max_bad:g} allows: {problems[0]}"
        )
