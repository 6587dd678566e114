"""A miniature OVO-Bench: its annotation file and videos, made from the embedded world.

Every task has a question that the world can answer; what an event is has been seen for certain at
its `stop` (`turns_of`), so that the truth is told in time by a model that sees one frame a second.
"""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from streamjax.data.video import write_video
from streamjax.data.world import (
    LIGHTS,
    VERBS,
    Script,
    WorldConfig,
    light_at,
    render,
    sentence,
    turns_of,
    write_script,
)

CONFIG = WorldConfig(seconds=(10, 12), events=(2, 3), things=(2, 3))
UNABLE = "Unable to answer"


def write(folder: Path, clips: int = 2, *, pictures: bool = False) -> Path:
    """folder/ovo_bench_new.json and folder/videos of the first `clips` of the world's test split.

    A video is an MP4 file, or with `pictures` a folder of PNGs, two for every second, as Streamo's
    runner reads them.
    """
    scripts = [write_script(CONFIG, "test", i) for i in range(clips)]
    records: list[dict[str, Any]] = []
    for script in scripts:
        name = script.name if pictures else f"{script.name}.mp4"
        video = folder / "videos" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        frames = render(script)
        if pictures:
            video.mkdir()
            for i, frame in enumerate(frames):
                Image.fromarray(frame).save(video / f"frame_{i:06d}.png")
        else:
            write_video(video, frames, script.config.fps)
        for record in _choices(script) + _forward(script):
            records.append({"id": len(records), "video": name, **record})
    (folder / "ovo_bench_new.json").write_text(json.dumps(records, indent=1))
    return folder


def seconds(name: str) -> int:
    """How long a video is, by its name in the annotations."""
    return write_script(CONFIG, "test", int(Path(name).stem.removeprefix("test_"))).seconds


def told(sample: dict[str, Any], at: int) -> str:
    """What a streaming model that knows everything says at a round, once it has been asked."""
    if sample["task"] == "REC":
        done = sum(end <= at + 1 for end in sample["end_times"])
        return f"</Response> {chr(ord('A') + done - 1)}" if done else "</Silence>"
    if sample["task"] == "CRR":
        return "</Response> Seen." if at + 1 >= sample["clue_time"] else "</Standby>"
    if sample["task"] == "SSR":
        place = sample["step_index"]
        start, end = sample["start_time"][place], sample["end_time"][place]
        return f"</Response> From {start}s to {end}s." if at >= end else "</Standby>"
    return f"</Response> {chr(ord('A') + sample['gt'])}. {sample['options'][sample['gt']]}"


def _choices(script: Script) -> list[dict[str, Any]]:
    first, second = script.events[:2]
    stop, late = turns_of(first)[1], turns_of(second)[1]
    names = [thing.name for thing in script.things]
    colours = list(dict.fromkeys(thing.colour for thing in script.things))
    absent = next(
        f"{colour} {shape}"
        for colour in script.config.colours
        for shape in script.config.shapes
        if f"{colour} {shape}" not in names
    )
    actor = script.things[first.thing]
    then = f"After {sentence(script, first)}, what happens?"
    happened = [sentence(script, second), f"the {absent} leaves"]
    verbs = [VERBS[first.action], VERBS["blink" if first.action != "blink" else "turn"]]
    light = light_at(script, stop)
    made = [
        ("OCR", stop + 0.4, "What does the light show?", light, list(LIGHTS)),
        ("ACR", stop, f"What does the {actor.name} do?", verbs[0], verbs),
        ("ATR", stop, f"What colour is the {actor.shape} that acts?", actor.colour, colours),
        ("STU", 1, f"Is the {names[0]} there?", "yes", ["yes", "no"]),
        ("FPD", math.ceil(first.start), f"What will the {actor.name} do?", verbs[0], verbs),
        ("OJR", 1.5, "Which of these is there?", names[0], [absent, names[0]]),
        ("EPM", late, "What happened first?", sentence(script, first), None),
        ("ASI", late, then, happened[0], happened),
        ("HLD", late, f"What does the {absent} do?", UNABLE, [UNABLE, *verbs]),
    ]
    rows = []
    for task, realtime, question, answer, options in made:
        options = options or [sentence(script, second), answer]
        options = options if len(options) > 1 else [*options, "none"]
        row = {"task": task, "realtime": realtime, "question": question, "answer": answer}
        rows.append({**row, "options": options, "gt": options.index(answer)})
    return rows


def _forward(script: Script) -> list[dict[str, Any]]:
    spans = [turns_of(event) for event in script.events]
    starts, ends = [start for start, _ in spans], [stop for _, stop in spans]
    # What was decided at a frame is known one second later.
    sure = [end + 1 for end in ends]
    every = range(1, script.seconds + 1)
    steps = [sentence(script, event) for event in script.events]
    return [
        {
            "task": "REC",
            "activity": "something happens",
            "start_times": starts,
            "end_times": sure,
            "test_info": [
                {"realtime": t, "count": sum(end <= t for end in sure)}
                for t in every
                if t > starts[0]
            ],
        },
        {
            "task": "SSR",
            "tutorial": "World",
            "all_steps": steps,
            "start_time": starts,
            "end_time": ends,
            "test_info": [
                {"realtime": t, "step": step, "type": int(start <= t <= end)}
                for step, start, end in zip(steps, starts, ends, strict=True)
                for t in (start - 1, start, end)
            ],
        },
        {
            "task": "CRR",
            "question": "What is the first thing to act?",
            "answer": script.things[script.events[0].thing].name,
            "ask_time": 1,
            "clue_time": sure[0],
            "test_info": [
                {"realtime": t, "type": int(t >= sure[0])} for t in (1, sure[0] - 1, sure[0])
            ],
        },
    ]
