"""Verbs that train: the demo, recipes, and a run as a Hugging Face folder."""

import json
import sys
from pathlib import Path
from typing import Literal

from streamjax.errors import InputError
from streamjax.verbs.shared import Place


def demo(
    *, folder: Path = Path("runs/demo"), fast: bool = False, resume: bool = False, effort: int = 1
):
    """Makes a small world, trains a StreamFormer and a streaming assistant on it, exports them,
    scores them on held-out videos and watches one: about ten minutes on two CPU cores.

    Example: streamjax demo --fast --folder runs/quick

    Args:
        folder: Where everything goes.
        fast: A reduced world and less training: about a minute, lower quality.
        resume: Go on in a folder that a demo was begun in.
        effort: This many times the videos and the training.
    """
    from streamjax.demo import run

    run(folder, fast=fast, resume=resume, effort=effort)


def ablate(
    *,
    folder: Path = Path("runs/ablation"),
    seeds: int = 3,
    variants: tuple[str, ...] = (),
    fast: bool = False,
):
    """Trains the demo's assistant with each loss and several seeds, scores all of them
    free-running on the same videos, and writes the table (ablation.md) and the picture
    (ablation.html, .svg): Table 4 of the paper in miniature, about three minutes a run on one core.

    Stopped and called again it goes on: runs that have their scores are not trained again.

    Example: streamjax ablate

    Example: streamjax ablate --variants focal no_noise contrast --seeds 5

    Args:
        folder: Where everything goes.
        seeds: How many, from 0 on.
        variants: Of ce, scale, focal, focal_paper, no_noise, full_noise, contrast, no_captions;
            without it the first four, which are the losses.
        fast: A reduced world and a few steps, to see that it works; its numbers mean nothing.
    """
    from streamjax.ablate import LOSSES, run

    run(folder, seeds=seeds, variants=variants or LOSSES, fast=fast)


def train(
    recipe: Place[str],
    overrides: Place[tuple[str, ...]] = (),
    /,
    run: str | None = None,
    tiny: bool = False,
    log: tuple[Literal["tensorboard", "wandb"], ...] = (),
    profile: str | None = None,
    stopped_exit: int = 0,
):
    """Trains by a recipe, or goes on where the run stopped, and prints the last row of metrics.

    Ctrl-C and SIGTERM finish the step and save. On several processes: see launch/README.md.

    Example: streamjax train demo_assistant optim.lr=1e-3 steps=500

    Example: streamjax train streamo_qwen25vl_3b base=Qwen2.5-VL-3B-Instruct videos=videos/

    Example: streamjax train streamo_qwen25vl_3b --tiny

    Args:
        recipe: A recipe's file, or the name of one in configs/.
        overrides: What the recipe asks for (base=path), and changes to it as dotted.key=value.
        run: The run's folder, or its gs:// or s3:// url; without it runs/ and the recipe's name.
        tiny: The recipe with a tiny model on a small world made on the spot, in a minute or two,
            exported to hf/ in the run's folder (by a single process); of recipes that have one.
        log: Where the rows of metrics.jsonl go besides (tensorboard: run/tensorboard).
        profile: FIRST:LAST, two steps of which, and of those between, run/profile/ gets a trace.
        stopped_exit: The exit code after SIGTERM, for a scheduler that has to tell a run that was
            stopped from one that is done.
    """
    import jax

    from streamjax.checkpoint import place
    from streamjax.train import distributed
    from streamjax.train.loop import train
    from streamjax.train.profile import steps_of
    from streamjax.train.recipes import load_recipe

    given = {"tiny": True} if tiny else {}
    home = None if run is None else place(run)
    local = home if isinstance(home, Path) else None
    if home is not None and local is None and tiny:
        raise InputError(
            f"--tiny makes its world in the run's folder: wanted a local one, not {run}"
        )
    steps = None if profile is None else steps_of(profile)
    try:
        with distributed.stoppable(stopped_exit), distributed.joined():
            config = distributed.in_turn(lambda: load_recipe(recipe, overrides, run=local, **given))
            folder = home or Path("runs") / config.name
            done = train(config, folder, log_to=log, profile=steps)
            first, alone = jax.process_index() == 0, jax.process_count() == 1
    except distributed.Stopped:
        raise SystemExit(stopped_exit) from None
    if first:
        print(json.dumps(dict(done.metrics)))
        print(f"run in {done.run_dir}", file=sys.stderr)
    if tiny and alone:
        import streamjax as sj

        sj.save(sj.load(done.run_dir), done.run_dir / "hf")
        print(f"exported to {done.run_dir / 'hf'}", file=sys.stderr)


def export(run: Place[str], folder: Place[Path], /):
    """Writes the newest good step of a training run as a Hugging Face folder.

    Example: streamjax export runs/demo exported/

    Args:
        run: A run's folder, or any folder that holds a model.
        folder: The folder to write.
    """
    import streamjax as sj

    sj.save(sj.load(run), folder)
    print(folder)
