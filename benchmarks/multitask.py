"""Is pre-training on six tasks worth it? The paper's claim, on the embedded world.

    python benchmarks/multitask.py                      # 3 seeds; goes on where it was stopped
    python benchmarks/multitask.py --table              # the table again, from what was measured

Three backbones per seed: a tiny SigLIP (`siglip_world`), which the other two start from; the same
trained on all six tasks (`streamformer_world`); and the same trained on clip-level contrastive
learning alone, for as many updates of as many clips (tasks=TaskRetrieval). A seed draws the SigLIP,
the temporal part, LoRA and the order of the data; the world is one. Scores are zero-shot: classes
and sentences are texts, no head is fitted (docs/evaluation.md). The baselines have no head of most
tasks: they are read with SigLIP's scale and bias (the retrieval head's, where there is one), and
patches through the pooling head's value path.

Spread is the standard deviation over seeds, of whichever of the two backbones has the larger.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from machine import describe

import streamjax as sj
from streamjax.data.captions import CaptionTokenizer
from streamjax.data.tasks import open_tasks
from streamjax.evals.pretraining.evaluate import ZeroShot, evaluate
from streamjax.folders import load_with_text
from streamjax.train import load_recipe, train
from streamjax.train.recipes import load_module

ARMS = {"siglip": "SigLIP, the start", "clip": "clips and captions only", "six": "six tasks"}
# Score -> (task, name in the evaluation).
SCORES = {
    "localisation, frame mAP": ("TaskLocalization", "frame_map"),
    "grounding, R@1 IoU 0.5": ("TaskGrounding", "r1@0.5_f0.5"),
    "segmentation, mask mIoU": ("TaskVIS", "mask_miou"),
}
OTHERS = {
    "recognition, top-1": ("Kinetics", "top1"),
    "retrieval, text to video R@1": ("TaskRetrieval", "t2v_r1"),
    "referring, J&F": ("TaskReferVOS", "j&f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="updates; the recipe's own without")
    parser.add_argument("--folder", type=Path, default=Path("runs/multitask"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask.json"))
    parser.add_argument("--table", action="store_true", help="print what --out holds and stop")
    given = parser.parse_args()
    if not given.table:
        found = [one_seed(given.folder, seed, given.steps) for seed in range(given.seeds)]
        content = {"machine": describe(), "seeds": found}
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(json.loads(given.out.read_text())["seeds"]))


def one_seed(folder: Path, seed: int, steps: int | None) -> dict:
    """Trains what is not trained yet, scores what is not scored yet."""
    pictures, recipe = load_module("siglip_world"), load_module("streamformer_world")
    world, home = pictures.world_of(folder / "world"), folder / f"seed{seed}"
    recipe.siglip_of(home / "siglip", world, seed)
    common = {"world": world, "siglip": home / "siglip"} | ({"steps": steps} if steps else {})
    six = load_recipe("streamformer_world", [f"seed={seed}"], run=home, **common)
    size = six.batch_size * len(six.data)
    recipes = {
        "siglip": None,
        "clip": load_recipe(
            "streamformer_world", [f"seed={seed}"], run=home, tasks=("TaskRetrieval",),
            batch_size=size, **common,
        ),
        "six": six,
    }  # fmt: skip
    scores = {}
    for arm, recipe in recipes.items():
        seconds = None
        if recipe is not None:
            train(recipe, home / arm, compilation_cache=folder / "cache")
            rows = (home / arm / "metrics.jsonl").read_text().splitlines()
            seconds = round(sum(json.loads(row)["seconds"] for row in rows))
        scores[arm] = {"train_seconds": seconds, **scored(arm, home, world, six)}
    return {"seed": seed, "updates": six.steps, "clips_per_update": size, "arms": scores}


def scored(arm: str, home: Path, world: Path, recipe) -> dict:
    """What `streamjax eval` gives of an arm, kept beside it."""
    out = home / f"{arm}.scores.json"
    if not out.exists():
        if arm == "siglip":
            tower, side = load_with_text(home / arm)
            model = ZeroShot(tower, side.text, side.logit_scale, side.logit_bias)
        else:
            model = sj.load(home / arm)
        if arm == "clip":
            head = model.heads["TaskRetrieval"]
            scale, bias = float(head.logit_scale[...]), float(head.logit_bias[...])
            model = ZeroShot(model.tower, model.text, scale, bias)
        config = model.tower.config
        words = CaptionTokenizer(home / "siglip", length=model.text.config.max_position_embeddings)
        frames = next(iter(recipe.data.values())).transform.frames  # a SigLIP has no number
        tasks = open_tasks(
            world, "test", tokens=words, frames=frames, size=config.image_size, train=False
        )
        results = evaluate(model, tasks, words)
        found = {r.task: {"n": r.n, **r.scores} for r in results}
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{home.name} {arm}: {one_line(found)}", file=sys.stderr)
    return json.loads(out.read_text())


def one_line(found: dict) -> str:
    return ", ".join(f"{title} {100 * found[t][n]:.1f}" for title, (t, n) in SCORES.items())


def table(seeds: list[dict]) -> str:
    """A row per score, in percent: mean and deviation of each arm, and the gain in spreads."""
    lines = [
        f"| held out, {len(seeds)} seeds | n | {' | '.join(ARMS.values())} | gain / spread |",
        f"|---|---|{'---|' * len(ARMS)}---|",
    ]
    for title, (task, name) in {**SCORES, **OTHERS}.items():
        values = {arm: [100 * s["arms"][arm][task][name] for s in seeds] for arm in ARMS}
        mean = {arm: statistics.mean(v) for arm, v in values.items()}
        wide = {arm: statistics.stdev(v) if len(v) > 1 else 0.0 for arm, v in values.items()}
        best = max(("siglip", "clip"), key=mean.__getitem__)
        spread = max(wide["six"], wide[best])
        gain = f"{(mean['six'] - mean[best]) / spread:+.1f}" if spread else "-"
        cells = [f"{mean[arm]:.1f} ± {wide[arm]:.1f}" for arm in ARMS]
        n = seeds[0]["arms"]["six"][task]["n"]
        lines.append(f"| {title} | {n} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
