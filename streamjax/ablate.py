"""`streamjax ablate`: what each loss brings, and each trick, on the embedded world.

Table 4 of the Streamo paper in miniature. World, tokenizer and tower are the demo's and are made
once; every variant then trains its assistant with every seed, for as many steps of as many
dialogues, and is scored free-running on the same held-out videos:

    runs/ablation/world/, tokenizer/, tower/    made once
    runs/ablation/<variant>/seed<n>/run/        a training run
    runs/ablation/<variant>/seed<n>/*.json      what it answered on each split, second by second
    runs/ablation/<variant>/seed<n>/scores.json its scores; a run that has them is skipped
    runs/ablation/ablation.json, .md, .svg, .html    all of it together

A seed draws the assistant's weights and the order of the data; tower and world are one for all, so
that the spread is of the assistant's training alone.
"""

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamjax import demo
from streamjax.data.assistant import ClipRecords
from streamjax.data.world_files import read_manifest, write_world
from streamjax.errors import InputError

SLOTS = 32  # dialogues that are watched at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train the assistant.

    kind, alpha, whole: of `train.objectives.assist`. history_noise, contrast: of
    `data.assistant.DialogueSamples`. without: kinds of instruction that are not learned from.
    """

    about: str
    kind: str = "focal"
    alpha: str | None = "present"
    whole: bool = False
    history_noise: float = 0.5
    contrast: bool = False
    without: tuple[str, ...] = ()


VARIANTS = {
    "ce": Variant(about="cross-entropy", kind="ce"),
    "scale": Variant(about="fixed weights 0.3, 1.3, 2.0", kind="scale"),
    "focal": Variant(about="focal, as released"),
    "focal_paper": Variant(about="focal, as in the paper", alpha="paper", whole=True),
    "no_noise": Variant(about="focal, history without noise", history_noise=0.0),
    "full_noise": Variant(about="focal, quiet history all noise", history_noise=1.0),
    "contrast": Variant(about="focal, contrasting instructions", contrast=True),
    # Dialogues that ask for every event teach when something ends, whoever it was.
    "no_captions": Variant(about="focal, no captions learned", without=("caption", "light_when")),
}
# Kinds that ask for one thing among several: what it takes to follow an instruction.
SELECTIVE = ("ground", "alert_event", "alert_action", "what_does", "light_turns")
LAST = "test_calibrated.json"  # of what a run answers, the last to be written
LOSSES = ("ce", "scale", "focal", "focal_paper")
REFERENCE = "focal"  # the demo's: the others are compared with it, seed by seed

FULL = dataclasses.replace(demo.FULL, held_out=60, tower_steps=500, assistant_steps=400)
FAST = dataclasses.replace(
    demo.FAST, train=48, held_out=8, tower_steps=12, assistant_steps=8, dialogues=16
)


def run(
    folder: str | Path = "runs/ablation",
    *,
    seeds: int = 3,
    variants: Sequence[str] = LOSSES,
    fast: bool = False,
) -> dict[str, Any]:
    """Trains and scores what is not there yet, and returns everything that is asked for.

    seeds: how many, from 0 on. variants: names of VARIANTS. fast: a few steps on a reduced world,
    for tests; its numbers mean nothing. Call it again to go on, or with more seeds and variants:
    the tables show all variants that stand there. Raises InputError for an unknown variant, no
    seed, and a folder of another size.
    """
    folder, size = Path(folder), FAST if fast else FULL
    for name in variants:
        if name not in VARIANTS:
            raise InputError(f"no variant {name!r}: wanted one of {', '.join(VARIANTS)}")
    if seeds < 1 or not variants:
        raise InputError(f"{seeds} seeds of {len(variants)} variants: wanted one of each or more")
    _claim(folder, size)
    wanted = [(seed, name) for seed in range(seeds) for name in variants]
    if not all((folder / name / f"seed{seed}" / LAST).exists() for seed, name in wanted):
        with demo.stage("the world"):
            demo.make_world(folder, size)
            _validation(folder / "world", size)
        with demo.stage("the tower that all share"):
            demo.train_tower(folder, size)
    for seed, name in wanted:  # in this order, one that is stopped has whole rounds to compare
        with demo.stage(f"{name}, seed {seed}"):
            one(folder, size, name, seed)
    return report(folder, variants, seeds)


def one(folder: Path, size: demo.Size, name: str, seed: int) -> dict[str, Any]:
    """The scores of one variant and seed: read where they are there, else trained and scored.

    Without its scores.json alone a run is scored again from what it answered.
    """
    home = folder / name / f"seed{seed}"
    if (home / "scores.json").exists():
        return json.loads((home / "scores.json").read_text())
    if not (home / LAST).exists():
        train(folder, size, VARIANTS[name], home / "run", seed)
        watch(folder, size, home)
    found = scored(home)
    demo.write_json(home / "scores.json", {"variant": name, "seed": seed, **found})
    row = found["test"]
    print(f"   macro-F1 {row['macro_f1']:.3f}, precision {row['precision']:.3f}, recall "
          f"{row['recall']:.3f}, text {row['text']:.3f}", file=sys.stderr)  # fmt: skip
    return {"variant": name, "seed": seed, **found}


def train(folder: Path, size: demo.Size, variant: Variant, run: Path, seed: int) -> None:
    """The demo's assistant with what the variant changes."""
    from streamjax.train import load_recipe, train

    recipe: Any = load_recipe(
        "demo_assistant", world=folder / "world", tower_run=folder / "tower",
        tokenizer=folder / "tokenizer", steps=size.assistant_steps,
    )  # fmt: skip
    data = recipe.data
    samples = dataclasses.replace(
        data.transform, history_noise=variant.history_noise, contrast=variant.contrast
    )
    source = functools.partial(_asked, data.source, variant.without)
    objective = functools.partial(
        recipe.objective, kind=variant.kind, alpha=variant.alpha, whole=variant.whole
    )
    recipe = dataclasses.replace(
        recipe, seed=seed, objective=objective,
        data=dataclasses.replace(data, source=source, transform=samples),
    )  # fmt: skip
    train(recipe, run, compilation_cache=folder / "cache")


def _asked(source: Callable[[], list[ClipRecords]], without: tuple[str, ...]) -> list[ClipRecords]:
    """The clips of a source, less these kinds of instruction."""
    return [
        dataclasses.replace(
            clip, records=tuple(r for r in clip.records if r.content["kind"] not in without)
        )
        for clip in source()
    ]


def watch(folder: Path, size: demo.Size, home: Path) -> None:
    """Free-running answers to all splits, and to `test` again with what `val` finds best."""
    from streamjax.evals.timing import assistant as evals
    from streamjax.evals.timing import operating
    from streamjax.folders import load

    model = load(home / "run")

    def watched(split: str, count: int, thresholds=None) -> list[evals.Watched]:
        clips = demo.clips_of(folder / "world", split, size.kinds)
        return evals.free_run(model, clips, count, slots=SLOTS, thresholds=thresholds)

    for split in ("val", "test"):
        evals.keep(home / f"{split}.json", watched(split, size.dialogues))
    if size.novel_dialogues:
        evals.keep(home / "novel.json", watched("novel", size.novel_dialogues))
    thresholds = operating.fitted(evals.kept(home / "val.json"))
    evals.keep(home / LAST, watched("test", size.dialogues, thresholds))


def scored(home: Path) -> dict[str, Any]:
    """Scores from what was answered: as trained, along its thresholds, and with fitted ones."""
    from streamjax.evals.timing import assistant as evals
    from streamjax.evals.timing import operating

    test, calibrated = evals.kept(home / "test.json"), evals.kept(home / LAST)
    thresholds = operating.fitted(evals.kept(home / "val.json"))
    rows = (home / "run" / "metrics.jsonl").read_text().splitlines()
    scores = {
        "train_seconds": round(sum(json.loads(row)["seconds"] for row in rows), 1),
        "test": evals.total(test).row(),
        "by_kind": {kind: found.row() for kind, found in evals.by_kind(test).items()},
        "curve": operating.curve(test),
        "thresholds": dataclasses.asdict(thresholds),
        "redecided": evals.total(operating.redecided(test, thresholds)).row(),
        "calibrated": evals.total(calibrated).row(),
    }
    for name, seen in (("selective", test), ("selective_calibrated", calibrated)):
        if found := [w for w in seen if w.kind in SELECTIVE]:
            scores[name] = evals.total(found).row()
    if (home / "novel.json").exists():
        scores["novel"] = evals.total(evals.kept(home / "novel.json")).row()
    return scores


def report(folder: Path, variants: Sequence[str], seeds: int) -> dict[str, Any]:
    """Everything together, as JSON, as tables and as a picture, in the folder.

    Of the variants that were asked for, and of the others that stand there with all these seeds.
    """
    from streamjax.evals.timing.operating_picture import draw, page

    files = {
        name: [folder / name / f"seed{seed}" / "scores.json" for seed in range(seeds)]
        for name in VARIANTS
    }
    found = {
        name: [json.loads(file.read_text()) for file in files[name]]
        for name in VARIANTS
        if name in variants or all(file.exists() for file in files[name])
    }
    content = {"size": json.loads((folder / "size.json").read_text()), "runs": found}
    demo.write_json(folder / "ablation.json", content)
    tables = table(found)
    (folder / "ablation.md").write_text(tables + "\n")
    titles = {name: VARIANTS[name].about for name in found}
    picture = draw(found, titles)
    (folder / "ablation.svg").write_text(picture + "\n")
    (folder / "ablation.html").write_text(page(picture, tables))
    print(tables)
    return content


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and deviation over seeds, a row per variant: scores, then operating points."""
    from streamjax.evals.timing.operating import answer_f1

    seeds = len(next(iter(found.values())))
    n = next(iter(found.values()))[0]["test"]["dialogues"]
    lines = [
        f"| {n} dialogues, {seeds} seeds | macro-F1 | precision | recall | answer F1 | text | "
        f"selective, macro-F1 | held-out combinations, macro-F1 | macro-F1 beside {REFERENCE}'s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = [_spread([run["test"][key] for run in runs]) for key in
                 ("macro_f1", "precision", "recall")]  # fmt: skip
        cells.append(_spread([answer_f1(r["test"]["precision"], r["test"]["recall"])
                              for r in runs]))  # fmt: skip
        cells.append(_spread([run["test"]["text"] for run in runs]))
        cells += [_spread([run[part]["macro_f1"] for run in runs if part in run])
                  for part in ("selective", "novel")]  # fmt: skip
        cells.append(_gain(found, name))
        lines.append(f"| {VARIANTS[name].about} | {' | '.join(cells)} |")
    lines += [
        "",
        "| operating points | best answer F1 along the curve | at precision, recall | thresholds "
        "from validation: macro-F1 | precision | recall | selective, macro-F1 | "
        "gain in macro-F1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        best = [max(run["curve"], key=lambda p: answer_f1(p["precision"], p["recall"]))
                for run in runs]  # fmt: skip
        cells = [
            _spread([answer_f1(p["precision"], p["recall"]) for p in best]),
            ", ".join(f"{statistics.mean(p[k] for p in best):.2f}"
                      for k in ("precision", "recall")),
            *(_spread([run["calibrated"][key] for run in runs])
              for key in ("macro_f1", "precision", "recall")),
            _spread([run["selective_calibrated"]["macro_f1"] for run in runs
                     if "selective_calibrated" in run]),
            _spread([r["calibrated"]["macro_f1"] - r["test"]["macro_f1"] for r in runs], sign="+"),
        ]  # fmt: skip
        lines.append(f"| {VARIANTS[name].about} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gain(found: dict[str, list[dict[str, Any]]], name: str) -> str:
    """How much better than the reference, seed by seed."""
    if name == REFERENCE or REFERENCE not in found:
        return "-"
    pairs = zip(found[name], found[REFERENCE], strict=True)
    return _spread([a["test"]["macro_f1"] - b["test"]["macro_f1"] for a, b in pairs], sign="+")


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "-"
    wide = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {wide:.3f}"


def _validation(world: Path, size: demo.Size) -> None:
    """The videos that thresholds are fitted on."""
    if read_manifest(world)[1].get("val") != size.held_out:
        write_world(
            world, "val", size.held_out, size.world, tasks=demo.TASKS, kinds=size.kinds, workers=2
        )


def _claim(folder: Path, size: demo.Size) -> None:
    """Notes the size in the folder, or checks that it is the one that was begun with."""
    note = folder / "size.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(size)))
    if note.exists():
        if json.loads(note.read_text()) != wanted:
            raise InputError(
                f"{folder}: the ablation there has another size (world, steps or dialogues): "
                f"choose another --folder, or the same --fast"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    demo.write_json(note, wanted)
