"""The verbs of the command line, one function each: what it is given, what it prints."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import tyro

from streamjax.data.world import WorldConfig
from streamjax.errors import InputError

Place = tyro.conf.Positional
Many = tyro.conf.UseAppendAction
Bare = tyro.conf.OmitArgPrefixes

_WORLD = WorldConfig()


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


def train(
    recipe: Place[str],
    overrides: Place[tuple[str, ...]] = (),
    /,
    run: Path | None = None,
    tiny: bool = False,
):
    """Trains by a recipe, or goes on where the run stopped, and prints the last row of metrics.

    Example: streamjax train demo_assistant optim.lr=1e-3 steps=500

    Example: streamjax train streamo_qwen25vl_3b base=Qwen2.5-VL-3B-Instruct videos=videos/

    Example: streamjax train streamo_qwen25vl_3b --tiny

    Args:
        recipe: A recipe's file, or the name of one in configs/.
        overrides: What the recipe asks for (base=path), and changes to it as dotted.key=value.
        run: The run's folder; without it runs/ and the recipe's name.
        tiny: The recipe with a tiny model on a small world made on the spot, in a minute or two,
            exported to hf/ in the run's folder; of recipes that have one.
    """
    from streamjax.train.loop import train
    from streamjax.train.recipes import load_recipe

    config = load_recipe(recipe, overrides, run=run, **({"tiny": True} if tiny else {}))
    done = train(config, run or Path("runs") / config.name)
    print(json.dumps(dict(done.metrics)))
    print(f"run in {done.run_dir}", file=sys.stderr)
    if tiny:
        import streamjax as sj

        sj.save(sj.load(done.run_dir), done.run_dir / "hf")
        print(f"exported to {done.run_dir / 'hf'}", file=sys.stderr)


def stream(
    model: Place[str],
    video: Place[str],
    /,
    ask: Many[tuple[str, ...]] = (),
    at: Many[tuple[float, ...]] = (),
    fps: float = 1.0,
    seconds: float | None = None,
    policy: Literal["session", "full", "refill", "recent"] = "session",
    window: int | None = None,
    every: int = 1,
    respond: float | None = None,
    standby: float | None = None,
    hysteresis: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    trace: Path | None = None,
    out: Path | None = None,
):
    """Watches a video with an assistant and prints a line a turn: time, state, the probabilities
    of silence, standby and response, latency, text. Then writes subtitles (.vtt), a trace (.jsonl)
    and a page to look at (.report.html). Ctrl-C ends the watching and still writes them.

    Example: streamjax stream runs/demo/hf clip.mp4 --ask "Tell me when the light turns green."

    Example: streamjax stream MODEL 0 --ask "Who is there?" --at 10 --policy refill --every 8

    Example: streamjax stream MODEL clip.mp4 --respond 0.4 --hysteresis 0.1 --temperature 0.7

    Args:
        model: A Hugging Face folder, a training run, or a hub id.
        video: A file, a camera's index, or an http(s), rtsp or hls url.
        ask: A question; may be given several times.
        at: When the first, second, ... question is put, in seconds; 0 where it is not given.
        fps: Frames looked at per second of video.
        seconds: Stop after so much of the video.
        policy: What is remembered: the last turns' keys and values (session), everything (full),
            the last turns read again (refill), the last frames without answers (recent).
        window: Turns (recent: frames) that are remembered; without it 120.
        every: Turns between two readings, of policy refill.
        respond: Speak when P(Response) reaches this; without any of the three thresholds the
            likeliest state is taken, with one of them the others are 0.5, 0.5 and none.
        standby: Otherwise stand by when P(Standby) reaches this.
        hysteresis: Speak again only after P(Response) was this much below --respond.
        temperature: Of the words; 0 takes the likeliest.
        top_p: Draw words from the likeliest ones that hold this share of the probability.
        repetition_penalty: Above 1, words that an answer has already become less likely.
        seed: The same seed draws the same words.
        trace: Write the trace here and line by line, for a stream that may end anyhow; without it
            it is written at the end.
        out: The folder to write to; without it beside the video.
    """
    import streamjax as sj
    from streamjax.models.streamformer import StreamFormer
    from streamjax.stream.book import Policy
    from streamjax.stream.features import FrameReader
    from streamjax.stream.trace import tracing
    from streamjax.stream.watch import HEADER, turn_line, watch, write_files

    if len(at) > len(ask):
        raise InputError(f"found {len(at)} --at for {len(ask)} --ask: wanted at most one each")
    with _as_input():
        Policy(policy, every=every, **({} if window is None else {"window": window}))
        sampling = sj.Sampling(temperature, top_p, repetition_penalty, seed)
        given = {"respond": respond, "standby": standby, "hysteresis": hysteresis}
        given = {name: value for name, value in given.items() if value is not None}
        thresholds = sj.Thresholds(**given) if given else None
    frames = sj.video(video, fps=fps, max_frames=_frames_in(seconds, fps))
    loaded = sj.load(model)
    if isinstance(loaded, StreamFormer):
        raise InputError(f"{model}: a StreamFormer has no words; use streamjax encode")
    if loaded.assets.tokenizer is None:
        raise InputError(f"{model}: no tokenizer.json; a question needs the model's tokenizer")
    if FrameReader(loaded).processor is None:
        raise InputError(f"{model}: no preprocessor_config.json; a frame needs the model's")
    questions = [(at[i] if i < len(at) else 0.0, words) for i, words in enumerate(ask)]
    with _as_input():
        watcher = sj.Stream(
            loaded, policy=policy, window=window, every=every, fps=fps, sampling=sampling,
            thresholds=thresholds,
        )  # fmt: skip

    with contextlib.ExitStack() as files:
        tell = files.enter_context(tracing(trace, watcher)) if trace else None

        def show(turn):
            if turn.index == 0:
                print(HEADER, file=sys.stderr)
            print(turn_line(turn), flush=True)
            if tell is not None:
                tell(turn)

        seen = watch(watcher, frames, questions, show=show)
    facts = [model, "1 frame a second" if fps == 1 else f"{fps:g} frames a second"]
    written = write_files(
        seen, _stem(video, out), title=_title(video), about=facts, traced=trace is not None
    )
    for path in [*written, *([trace] if trace and seen.turns else [])]:
        print(f"wrote {path}", file=sys.stderr)
    if seen.stopped:
        raise KeyboardInterrupt


def replay(
    model: Place[str], video: Place[str], trace: Place[Path], /, tolerance: float | None = None
):
    """Runs a traced stream again, with its settings and questions on the same video, and tells the
    first turn that comes out differently. Exit code: 0 all the same, 1 different.

    Example: streamjax replay runs/demo/hf clip.mp4 clip.jsonl

    Args:
        model: The Hugging Face folder, training run, or hub id that the trace was made with.
        video: The file that was watched.
        trace: What streamjax stream wrote, NAME.jsonl.
        tolerance: What probabilities may differ by. Without it nothing, if library and machine are
            the trace's, and else what rounding makes of the model's number type.
    """
    import streamjax as sj
    from streamjax.models.streamformer import StreamFormer
    from streamjax.stream.replay import tolerance_for

    traced = _read_trace(trace)
    count = len(traced.turns)
    frames = sj.video(video, fps=traced.settings.get("fps", 0), max_frames=max(count, 1))
    loaded = sj.load(model)
    if isinstance(loaded, StreamFormer):
        raise InputError(f"{model}: a StreamFormer has no words, and its stream no trace")
    near = tolerance_for(loaded, traced) if tolerance is None else tolerance
    found = sj.replay(loaded, traced, frames, tolerance=near)
    if found is not None:
        print(found)
        raise SystemExit(1)
    print(f"{count} turns: the same, {f'within {near:g}' if near else 'bit for bit'}")


def redecide(
    trace: Place[Path],
    /,
    respond: float = 0.5,
    standby: float = 0.5,
    hysteresis: float | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Makes a trace's decisions again, with other thresholds and without the model, and prints how
    many turns change their state, and where an answer comes or goes. What the model would have said
    there, and seen after it, is not in a trace.

    Example: streamjax redecide clip.jsonl --respond 0.4 --standby 0.5 --hysteresis 0.1

    Args:
        trace: What streamjax stream wrote, NAME.jsonl.
        respond: Speak when P(Response) reaches this.
        standby: Otherwise stand by when P(Standby) reaches this.
        hysteresis: Speak again only after P(Response) was this much below --respond.
        as_json: Print one JSON object instead of a table.
    """
    from streamjax.stream.decisions import Changes, Thresholds

    with _as_input():
        thresholds = Thresholds(respond, standby, hysteresis)
    changes = Changes.of(_read_trace(trace).turns, thresholds)
    print(json.dumps(changes.row()) if as_json else changes.table())


def encode(
    model: Place[str],
    video: Place[str],
    /,
    fps: float = 1.0,
    seconds: float | None = None,
    tower_window: int | None = None,
    out: Path | None = None,
):
    """Streams a video through a StreamFormer and writes its features: `pooled` [frames, width],
    `tokens` [frames, patches, width] (float32) and `times` in seconds, as one .npz file.

    Example: streamjax encode path/to/streamformer clip.mp4 --out features.npz

    Args:
        model: A StreamFormer's folder or run; of an assistant its tower is taken.
        video: A file, a camera's index, or an http(s), rtsp or hls url.
        fps: Frames looked at per second of video.
        seconds: Stop after so much of the video.
        tower_window: Frames that the temporal attention sees; without it the model's own default.
        out: The file to write; without it beside the video.
    """
    import numpy as np

    import streamjax as sj

    limit = _frames_in(seconds, fps)
    frames = sj.video(video, fps=fps, max_frames=limit)
    loaded = sj.load(model)
    watcher = sj.Stream(getattr(loaded, "tower", loaded), tower_window=tower_window)
    features = []
    with _counting("frames", limit) as counted:
        for frame in frames:
            features.append(watcher.push(frame))
            counted(len(features), limit)
    arrays = {
        "pooled": np.stack([np.asarray(f.pooled, np.float32) for f in features]),
        "tokens": np.stack([np.asarray(f.tokens, np.float32) for f in features]),
        "times": np.asarray([f.index / fps for f in features]),
    }
    path = out or _stem(video, None).with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(partial, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    print(f"{path}: {shapes}")


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


def world(
    folder: Place[Path],
    /,
    config: Bare[WorldConfig] = _WORLD,
    train: int = 200,
    val: int = 20,
    test: int = 20,
    novel: int = 20,
    workers: int = 2,
):
    """Writes the embedded world: mp4 videos, and their annotations in the formats of Streamo's
    records and of StreamFormer's six pre-training tasks. The same arguments write the same world.

    Example: streamjax world world/ --train 500 --height 96 --width 96 --seconds 20 40

    Args:
        folder: The folder to write to; what an interrupted call has written there is kept.
        train: Clips for training.
        val: Clips for validation.
        test: Clips for testing.
        novel: Clips for testing that show combinations of colour, shape and action never seen.
        workers: Processes that draw and encode.
    """
    from streamjax.data.world_files import write_world

    for split, count in (("train", train), ("val", val), ("test", test), ("novel", novel)):
        if count:
            with _counting(f"{split} clips", count) as counted:
                write_world(folder, split, count, config, workers=workers, progress=counted)
            print(f"{folder}: {count} clips of {split}")


def bench(
    what: Place[Literal["encode", "stream"]],
    /,
    window: tuple[int, ...] = (16, 64),
    family: Literal["llava_streamformer", "qwen2_5_vl", "qwen3_vl", "internvl"] = (
        "llava_streamformer"
    ),
    context: tuple[int, ...] = (1024, 4096, 8192),
    dtype: Literal["float32", "bfloat16"] = "float32",
    size: Literal["base", "tiny"] = "base",
    frames: int = 20,
    peers: bool = False,
):
    """Times a streaming frame beside its floor: the model's matrix products alone, and the bytes of
    its cache at this machine's read bandwidth, measured in the same run. Medians, in milliseconds.
    Of the other families it times a silent turn under each window policy.

    Example: streamjax bench encode --window 16 64 --dtype bfloat16
    Example: streamjax bench stream --family qwen2_5_vl --context 1024 4096 8192 --peers

    Args:
        what: A StreamFormer (encode), or an assistant with tower and language model (stream).
        window: Frames (encode) or turns (stream) remembered; a row each.
        family: The assistant's family; those of real video LLMs take --context for --window.
        context: Tokens remembered, for those families; a table each.
        dtype: Of the parameters and the computation.
        size: base is StreamFormer's own (224 pixels, 12 layers of 768), tiny a smoke test.
        frames: Frames timed for each row.
        peers: Runs benchmarks/vlm_stream.py of the repository instead, which times transformers
            (growing cache, and reading the window again) on the same weights in the same run.
    """
    import jax.numpy as jnp

    from streamjax.bench import frame

    if min(window, default=0) < 2 or frames < 1 or min(context, default=0) < 1:
        raise InputError(
            f"--window {window} --context {context} --frames {frames}: wanted windows >= 2, "
            "contexts and frames >= 1"
        )
    if family != "llava_streamformer" and what == "stream":
        _bench_family(family, context, dtype, size, frames, peers)
        return
    if peers or family != "llava_streamformer":
        raise InputError("--peers and --family go with: bench stream --family qwen2_5_vl")
    run = frame.bench_encode if what == "encode" else frame.bench_stream
    rows = []
    with _counting("windows", len(window)) as counted:
        for size_of_window in window:
            rows.append(run(size, jnp.dtype(dtype), size_of_window, frames))
            counted(len(rows), len(window))
    print(frame.table(rows, "frames" if what == "encode" else "turns"))


def _bench_family(family, context, dtype, size, frames, peers):
    import subprocess
    import sys

    import jax.numpy as jnp

    from streamjax.bench import policies

    if peers:
        script = Path("benchmarks/vlm_stream.py")
        if not script.is_file():
            raise InputError(f"--peers: no {script} here: run it in a clone of the repository")
        command = [sys.executable, str(script), "--family", family, "--size", size, "--turns",
                   str(frames), "--dtype", dtype, "--context", *map(str, context)]  # fmt: skip
        if subprocess.run(command).returncode:
            raise RuntimeError(f"{script} failed; its message stands above")
        return
    tables = []
    with _counting("contexts", len(context)) as counted:
        for tokens in context:
            cycles = -(-frames // policies.EVERY)
            rows = policies.bench_policies(family, size, jnp.dtype(dtype), tokens, cycles)
            tables.append(policies.policy_table(rows))
            counted(len(tables), len(context))
    print("\n\n".join(tables))


def doctor():
    """Says what this machine has, one line each: versions, devices, the speed of the number
    types, video codecs.

    Example: streamjax doctor
    """
    from streamjax import __version__

    print(f"streamjax {__version__}, Python {platform.python_version()}, {platform.platform()}")
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
             "transformers", "av", "safetensors", "tyro", "rich")  # fmt: skip
    for name in names:
        print(f"{name} {importlib.metadata.version(name)}")
    _tell_devices()
    _tell_number_types()
    _tell_codecs()


def _tell_devices():
    import jax

    for device in jax.devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        room = f", {memory / 2**30:.1f} GiB" if memory else ""
        print(f"device {device.id}: {device.platform} {device.device_kind}{room}")


def _tell_number_types(size: int = 512):
    """The speed of a matrix product as the models write it (ops/linear.py)."""
    import jax
    import jax.numpy as jnp

    from streamjax.ops.linear import linear

    product = jax.jit(linear)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        name = jnp.dtype(dtype).name
        try:
            x = jnp.ones((size, size), dtype)
            product(x, x).block_until_ready()
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            print(f"{name}: no ({str(error).splitlines()[0]})")
            continue
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            product(x, x).block_until_ready()
            taken.append(time.perf_counter() - begin)
        print(
            f"{name}: yes, {2 * size**3 / min(taken) / 1e9:,.0f} GFLOP/s in a {size}-wide product"
        )


def _tell_codecs():
    import av
    from av.codec import Codec

    version = ".".join(map(str, av.library_versions["libavcodec"]))
    print(f"libavcodec {version}")

    def has(name: str, mode: Literal["r", "w"]) -> str:
        try:
            Codec(name, mode)
        except av.codec.codec.UnknownCodecError:
            return "no"
        return "yes"

    for name, encoder in (("h264", "libx264"), ("hevc", "libx265"), ("vp9", "libvpx-vp9"),
                          ("av1", "libsvtav1")):  # fmt: skip
        print(f"{name}: decode {has(name, 'r')}, encode {has(encoder, 'w')}")


@contextlib.contextmanager
def _as_input():
    """What the library calls a wrong value is a wrong argument here: one line, and 2."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_trace(path: Path):
    """A trace; what it warns of is told on stderr in one line."""
    from streamjax.stream.trace import read_trace

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trace = read_trace(path)
    for warning in told:
        print(f"streamjax: {warning.message}", file=sys.stderr)
    return trace


def _frames_in(seconds: float | None, fps: float) -> int | None:
    return None if seconds is None else max(round(seconds * fps), 1)


@contextlib.contextmanager
def _counting(what: str, total: int | None = None):
    """Yields a function of (done, total) that moves a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _title(video: str) -> str:
    """What people call the video: its file's name, `camera 0`, or the last part of the url."""
    if video.isdigit():
        return f"camera {video}"
    url = urlsplit(video)
    return Path(url.path).name or url.netloc if "://" in video else Path(video).name


def _stem(video: str, out: Path | None) -> Path:
    """What the files of a video are called, ends aside: beside it, or in `out`."""
    if video.isdigit() or "://" in video:
        return (out or Path()) / re.sub(r"[^\w.-]", "_", Path(_title(video)).stem)
    return (out or Path(video).parent) / Path(video).stem
