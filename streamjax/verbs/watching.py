"""Verbs that watch a video with a model, and those that look at a watched one again."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from streamjax.errors import InputError
from streamjax.verbs.shared import Many, Place, as_input, counting, frames_in, stem_of, title_of


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
    with as_input():
        Policy(policy, every=every, **({} if window is None else {"window": window}))
        sampling = sj.Sampling(temperature, top_p, repetition_penalty, seed)
        given = {"respond": respond, "standby": standby, "hysteresis": hysteresis}
        given = {name: value for name, value in given.items() if value is not None}
        thresholds = sj.Thresholds(**given) if given else None
    frames = sj.video(video, fps=fps, max_frames=frames_in(seconds, fps))
    loaded = sj.load(model)
    if isinstance(loaded, StreamFormer):
        raise InputError(f"{model}: a StreamFormer has no words; use streamjax encode")
    if loaded.assets.tokenizer is None:
        raise InputError(f"{model}: no tokenizer.json; a question needs the model's tokenizer")
    if FrameReader(loaded).processor is None:
        raise InputError(f"{model}: no preprocessor_config.json; a frame needs the model's")
    questions = [(at[i] if i < len(at) else 0.0, words) for i, words in enumerate(ask)]
    with as_input():
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
        seen, stem_of(video, out), title=title_of(video), about=facts, traced=trace is not None
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

    with as_input():
        thresholds = Thresholds(respond, standby, hysteresis)
    changes = Changes.of(_read_trace(trace).turns, thresholds)
    print(json.dumps(changes.row()) if as_json else changes.table())


def encode(
    model: Place[str],
    video: Place[str],
    /,
    text: Many[tuple[str, ...]] = (),
    html: bool = False,
    text_model: Path | None = None,
    fps: float = 1.0,
    seconds: float | None = None,
    tower_window: int | None = None,
    out: Path | None = None,
):
    """Streams a video through a StreamFormer and writes its features: `pooled` [frames, width],
    `tokens` [frames, patches, width] (float32) and `times` in seconds, as one .npz file. With texts
    also how similar frames and patches are to them: `similarity` [frames, texts], `maps` [frames,
    rows, columns, texts]; and with --html a page that shows both.

    Example: streamjax encode path/to/streamformer clip.mp4 --out features.npz

    Example: streamjax encode MODEL clip.mp4 --text "a red circle" --text "it stops" --html

    Args:
        model: A StreamFormer's folder or run; of an assistant its tower is taken.
        video: A file, a camera's index, or an http(s), rtsp or hls url.
        text: Words to look for; may be given several times.
        html: Write a page beside the .npz file: similarity over time and over the picture.
        text_model: A SigLIP folder whose text tower and tokenizer read the words; without it those
            in the model's folder.
        fps: Frames looked at per second of video.
        seconds: Stop after so much of the video.
        tower_window: Frames that the temporal attention sees; without it the model's own default.
        out: The file to write; without it beside the video.
    """
    import numpy as np

    import streamjax as sj
    from streamjax.stream import similarity

    if html and not text:
        raise InputError('--html shows similarity to texts, found none: wanted --text "..."')
    if len(text) > similarity.MOST:
        raise InputError(f"found {len(text)} --text, wanted at most {similarity.MOST}")
    limit = frames_in(seconds, fps)
    frames = sj.video(video, fps=fps, max_frames=limit)
    loaded = sj.load(model)
    watcher = sj.Stream(getattr(loaded, "tower", loaded), tower_window=tower_window)
    compared = _beside(loaded, model, text, text_model) if text else None
    features = []
    with counting("frames", limit) as counted:
        for frame in frames:
            features.append(watcher.push(frame))
            if compared is not None:
                time = features[-1].index / fps
                compared.add(frame, features[-1], time=time, grid=watcher.grid)
            counted(len(features), limit)
    arrays = {
        "pooled": np.stack([np.asarray(f.pooled, np.float32) for f in features]),
        "tokens": np.stack([np.asarray(f.tokens, np.float32) for f in features]),
        "times": np.asarray([f.index / fps for f in features]),
    }
    if compared is not None:
        arrays |= {"texts": np.asarray(text), "similarity": np.stack(compared.frames)}
        arrays |= {"maps": np.stack(compared.maps)}
    path = out or stem_of(video, None).with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(partial, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    print(f"{path}: {shapes}")
    if compared is not None and html:
        facts = [model, "1 frame a second" if fps == 1 else f"{fps:g} frames a second"]
        page = path.with_suffix(".html")
        similarity.write_page(page, compared, title=title_of(video), about=facts)
        print(f"wrote {page}", file=sys.stderr)


def _beside(loaded: Any, model: str, texts: Sequence[str], text_model: Path | None):
    """What compares a StreamFormer's frames with texts: their features, and the way to patches."""
    import jax
    import numpy as np

    from streamjax.data.captions import CaptionTokenizer
    from streamjax.models.pretraining import DensePath, Pretraining
    from streamjax.ops.linear import unit
    from streamjax.stream.similarity import Comparison
    from streamjax.weights import pretraining, siglip_text, streamformer

    tower = getattr(loaded, "tower", loaded)
    extras = tower.assets.extras
    whole = loaded if isinstance(loaded, Pretraining) else None
    if whole is None and extras is not None and streamformer.TASKS in extras.config:
        whole = pretraining.whole_of(tower)
    if text_model is not None:
        side = siglip_text.read_text(text_model)
    elif whole is not None:
        numbers = (float(a[...]) for a in (whole.logit_scale, whole.logit_bias))
        side = siglip_text.TextSide(whole.text, *numbers)
    elif extras is None or siglip_text.prefix_of(extras.tensors) is None:
        raise InputError(f"{model}: no text tower beside it; wanted --text-model SIGLIP_FOLDER")
    else:
        side = siglip_text.text_of(tower)
    words = side.text.config
    if words.width != tower.config.hidden_size:
        raise InputError(
            f"{text_model or model}: texts have {words.width} features, wanted the tower's "
            f"{tower.config.hidden_size}: take the SigLIP that it came from"
        )
    home = text_model or loaded.assets.tokenizer
    if home is None:
        raise InputError(f"{model}: no tokenizer of captions; wanted --text-model SIGLIP_FOLDER")
    read = CaptionTokenizer(home, length=words.max_position_embeddings)
    rows = np.stack([read(text) for text in texts])
    features = jax.jit(lambda text, rows: unit(text(rows)))(side.text, rows)
    paths = [] if whole is None else [head.dense for head in whole.heads.values() if head.dense]
    dense = paths[0] if paths else DensePath(tower.head)
    return Comparison(texts, features, dense, side.logit_scale, side.logit_bias)


def _read_trace(path: Path):
    """A trace; what it warns of is told on stderr in one line."""
    from streamjax.stream.trace import read_trace

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trace = read_trace(path)
    for warning in told:
        print(f"streamjax: {warning.message}", file=sys.stderr)
    return trace
