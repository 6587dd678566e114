"""`streamjax demo`: make a world, pre-train a tower, train an assistant, export it, watch with it.

Every stage leaves its result in the run's folder and is skipped when that is there, so that an
interrupted demo goes on where it stopped:

    runs/demo/world/       videos and annotations, in the formats of real data sets
    runs/demo/tower/       the StreamFormer's training run
    runs/demo/assistant/   the assistant's training run
    runs/demo/hf/          the assistant as a Hugging Face folder: all that follows loads this
    runs/demo/scores.json  free-running scores on held-out videos, beside the trivial baselines
    runs/demo/watched.*    one held-out video, watched: subtitles, trace, report.html
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from streamjax.data.assistant import SYSTEM_PROMPT, ClipRecords, read_clips
from streamjax.data.dense import clip_frames
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.data.world import WorldConfig
from streamjax.data.world_dialogues import vocabulary
from streamjax.data.world_files import read_manifest, write_world
from streamjax.errors import InputError

# What is asked of the model. Captions and the light after each event are learned from and not
# scored: they ask for every event, which a motion detector would be good at.
KINDS = (
    "narrate", "caption", "ground", "alert_event", "alert_action", "what_does", "light_now",
    "light_turns", "light_when", "bowl_count", "bowl_what",
)  # fmt: skip
SCORED = tuple(kind for kind in KINDS if kind not in ("caption", "light_when"))
TASKS = ("streamo", "grounding", "localization", "vis")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything: clips per split, steps per stage, dialogues that are scored."""

    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)
    learned: tuple[str, ...] = KINDS
    kinds: tuple[str, ...] = SCORED
    train: int = 1000
    held_out: int = 40
    tower_steps: int = 1000
    assistant_steps: int = 1500
    dialogues: int = 180
    novel_dialogues: int = 90


FULL = Size()
FAST = Size(
    world=WorldConfig(
        seconds=(10, 12),
        things=(2, 3),
        colours=("red", "green", "blue"),
        shapes=("circle", "square"),
        actions=("grow", "blink", "drop"),
        hold_out=0,
    ),
    learned=("narrate", "caption", "light_now", "bowl_count", "bowl_what"),
    kinds=("narrate", "light_now", "bowl_count", "bowl_what"),
    train=160,
    held_out=16,
    tower_steps=120,
    assistant_steps=160,
    dialogues=60,
    novel_dialogues=0,
)


def run(
    folder: str | Path = "runs/demo", *, fast: bool = False, resume: bool = False, effort: int = 1
) -> dict[str, Any]:
    """Runs every stage in `folder` and returns the scores; see the module's words.

    fast: a reduced world, under 90 seconds on 2 cores, for tests; its quality is lower. effort:
    this many times the clips and the steps. resume: go on in a folder that a demo was begun in.
    Raises InputError when the folder holds one already and `resume` is False, and when it was begun
    in another size.
    """
    folder = Path(folder)
    if effort < 1:
        raise InputError(f"effort is {effort}, wanted 1 or more")
    size = FAST if fast else FULL
    size = dataclasses.replace(
        size,
        train=size.train * effort,
        tower_steps=size.tower_steps * effort,
        assistant_steps=size.assistant_steps * effort,
    )
    _claim(folder, {"fast": fast, "effort": effort}, resume)
    begin = time.perf_counter()
    with stage("1/6 the world: videos and annotations"):
        make_world(folder, size)
    with stage("2/6 the tower learns to see"):
        train_tower(folder, size)
    with stage("3/6 the assistant learns to speak"):
        train_assistant(folder, size)
    with stage("4/6 export to a Hugging Face folder"):
        export(folder)
    with stage("5/6 held-out videos, free-running"):
        scores = evaluate(folder / "hf", folder / "world", size)
    minutes = (time.perf_counter() - begin) / 60
    scores["minutes"] = round(minutes, 2)
    write_json(folder / "scores.json", scores)
    print(table(scores))
    with stage("6/6 watching a video it has never seen"):
        watch_one(folder)
    print(f"\nAll of it in {folder}, {minutes:.1f} minutes. Watch more:")
    print(f"  streamjax stream {folder}/hf {folder}/world/videos/test_000001.mp4 "
          '--ask "Narrate the video."')  # fmt: skip
    return scores


def make_world(folder: Path, size: Size) -> None:
    """Writes the splits' videos and annotations, and the tokenizer of the world's words."""
    splits = {"train": size.train, "test": size.held_out}
    if size.novel_dialogues:
        splits["novel"] = size.held_out
    for split, count in splits.items():
        kinds = size.learned if split == "train" else size.kinds
        if _written(folder / "world", split) == count:
            continue
        with bar(f"{split} clips") as progress:
            write_world(
                folder / "world", split, count, size.world, tasks=TASKS, kinds=kinds,
                variants=2 if split == "train" else 1, workers=2, progress=progress,
            )  # fmt: skip
    words = folder / "tokenizer"
    if not (words / "tokenizer.json").exists():
        build_word_tokenizer((*vocabulary(size.world), SYSTEM_PROMPT), words, numbers=100, tags=64)
        settings = json.loads((words / "tokenizer_config.json").read_text())
        write_json(words / "tokenizer_config.json", settings | {"system_prompt": SYSTEM_PROMPT})


def train_tower(folder: Path, size: Size) -> None:
    from streamjax.train import load_recipe, train

    recipe = load_recipe("demo_tower", world=folder / "world", steps=size.tower_steps)
    train(recipe, folder / "tower", compilation_cache=folder / "cache")


def train_assistant(folder: Path, size: Size) -> None:
    from streamjax.train import load_recipe, train

    recipe = load_recipe(
        "demo_assistant", world=folder / "world", tower_run=folder / "tower",
        tokenizer=folder / "tokenizer", steps=size.assistant_steps,
    )  # fmt: skip
    train(recipe, folder / "assistant", compilation_cache=folder / "cache")


def export(folder: Path) -> None:
    """The assistant's newest step as a Hugging Face folder; loads again what it wrote."""
    from streamjax.folders import load, save

    save(load(folder / "assistant"), folder / "hf")
    load(folder / "hf")


def evaluate(model: str | Path, world: str | Path, size: Size) -> dict[str, Any]:
    """Free-running scores of a model's folder on a world's held-out videos, with the baselines."""
    from streamjax.evals.timing import assistant as evals
    from streamjax.folders import load

    loaded, world = load(model), Path(world)
    splits = {"test": size.dialogues, "novel": size.novel_dialogues}
    scores: dict[str, Any] = {}
    for split, count in splits.items():
        if not count:
            continue
        clips = clips_of(world, split, size.kinds)
        with bar(f"{split} dialogues") as progress:
            seen = evals.free_run(loaded, clips, count, progress=progress)
        scores[split] = evals.total(seen).row()
        scores[f"{split}_by_kind"] = {k: t.row() for k, t in evals.by_kind(seen).items()}
        if split == "test":
            scores["baselines"] = baselines(seen, clips, clips_of(world, "train", size.kinds)[:100])
    return scores


def table(scores: dict[str, Any]) -> str:
    """The scores as a table, baselines beside them."""
    rows = [("held-out videos", scores["test"])]
    if "novel" in scores:
        rows.append(("held-out combinations", scores["novel"]))
    rows += [(f"  {kind}", row) for kind, row in scores["test_by_kind"].items()]
    rows += list(scores["baselines"].items())
    lines = [f"{'':24}{'macro-F1':>9}{'precision':>11}{'recall':>8}{'text':>7}{'dialogues':>11}"]
    for name, row in rows:
        lines.append(
            f"{name:24}{row['macro_f1']:9.3f}{row['precision']:11.3f}{row['recall']:8.3f}"
            f"{row['text']:7.3f}{row['dialogues']:11d}"
        )
    return "\n".join(lines)


def watch_one(folder: Path) -> None:
    """Streams one held-out video to the terminal and writes its subtitles, trace and report."""
    from streamjax.data.video import video
    from streamjax.folders import load
    from streamjax.stream import Stream
    from streamjax.stream.watch import turn_line, watch, write_files

    path = folder / "world" / "videos" / "test_000000.mp4"
    question = "Narrate the video."
    print(f"{path.name}: {question}")
    seen = watch(
        Stream(load(folder / "hf")), video(path, fps=1), [(0.0, question)],
        show=lambda turn: print(turn_line(turn), flush=True),
    )  # fmt: skip
    facts = ["trained by streamjax demo", "1 frame a second"]
    for written in write_files(seen, folder / "watched", title=path.name, about=facts):
        print(f"wrote {written}", file=sys.stderr)


def baselines(seen: Sequence[Any], clips: list[ClipRecords], train: list[ClipRecords]) -> dict:
    """The scores of what needs no model, on the dialogues of `seen`, by name."""
    from streamjax.evals.timing import assistant as evals

    frames = {c.video_path.stem: clip_frames(c.video_path, 20) for c in clips}
    moving = [
        evals.total(evals.motion(seen, frames, threshold)) for threshold in (0.05, 0.2, 0.5, 1.0)
    ]
    best = max(moving, key=lambda t: t.macro_f1)  # chosen on the test itself: a generous baseline
    return {
        "always silent": evals.total(evals.silent(seen)).row(),
        "training prior": evals.total(evals.prior(seen, evals.state_shares(train))).row(),
        "motion detector": best.row(),
    }


def clips_of(world: Path, split: str, kinds: Sequence[str]) -> list[ClipRecords]:
    """The clips of a split with the records of these kinds of instruction."""
    clips = read_clips(world / "streamo" / f"{split}.json", root=world / "videos")
    return [
        dataclasses.replace(
            clip, records=tuple(r for r in clip.records if r.content["kind"] in kinds)
        )
        for clip in clips
    ]


def _written(world: Path, split: str) -> int:
    return read_manifest(world)[1].get(split, 0) if (world / "world.json").exists() else 0


def _claim(folder: Path, wanted: dict[str, Any], resume: bool) -> None:
    """Notes the demo's size in its folder, or checks that it may go on there."""
    note = folder / "demo.json"
    if note.exists():
        begun = json.loads(note.read_text())
        if not resume:
            raise InputError(
                f"{folder}: holds a demo already; go on with --resume, or choose another --folder"
            )
        if begun != wanted:
            raise InputError(f"{folder}: the demo there was begun with {begun}, not {wanted}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, wanted)


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    begin = time.perf_counter()
    print(f"\n{title}", file=sys.stderr, flush=True)
    yield
    print(f"   {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], Any]]:
    """A progress bar on a terminal; every tenth elsewhere, as a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:

        def line(done: int, total: int) -> None:
            if done == total or done % max(total // 4, 1) == 0:
                print(f"   {what}: {done}/{total}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn(f"   {what}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
