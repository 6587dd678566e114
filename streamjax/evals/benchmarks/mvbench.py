"""MVBench: twenty tasks about what happens in a clip, three to five options each.

Annotations: the twenty lists of the hub (`json/<task>.json` or beside each other), any of them. A
question's id is `<task>.json:<k>`, k counting its file's records. Its videos lie in a folder for
each source, as the hub's archives unpack. specs/benchmarks.md section 6.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamjax.errors import InputError
from streamjax.evals.benchmarks import choices
from streamjax.evals.benchmarks.benchmark import (
    Benchmark,
    Graded,
    Question,
    Records,
    Scores,
    matched,
    read_answers,
)


class Task(NamedTuple):
    """title: as the paper writes it. folder: where the authors' notebook looks for its videos. cut:
    lmms-eval's folder, where a clip is a file of its own. timed: whether a record says which
    seconds of its video are the clip.
    """

    title: str
    folder: str
    cut: str
    timed: bool = False


CLEVRER, PERCEPTION = "clevrer/video_validation", "perception/videos"
CHARADES, CHARADES_CUT = "star/Charades_v1_480", "star/Charades_segment"
TASKS = {
    "action_sequence": Task("Action Sequence", CHARADES, CHARADES_CUT, True),
    "action_prediction": Task("Action Prediction", CHARADES, CHARADES_CUT, True),
    "action_antonym": Task("Action Antonym", "ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": Task(
        "Fine-grained Action", "Moments_in_Time_Raw/videos", "Moments_in_Time_Raw/videos"
    ),
    "unexpected_action": Task("Unexpected Action", "FunQA_test/test", "FunQA_test/test"),
    "object_existence": Task("Object Existence", CLEVRER, CLEVRER),
    "object_interaction": Task("Object Interaction", CHARADES, CHARADES_CUT, True),
    "object_shuffle": Task("Object Shuffle", PERCEPTION, PERCEPTION),
    "moving_direction": Task("Moving Direction", CLEVRER, CLEVRER),
    "action_localization": Task(
        "Action Localization", "sta/sta_video", "sta/sta_video_segment", True
    ),
    "scene_transition": Task("Scene Transition", "scene_qa/video", "scene_qa/video"),
    "action_count": Task("Action Count", PERCEPTION, PERCEPTION),
    "moving_count": Task("Moving Count", CLEVRER, CLEVRER),
    "moving_attribute": Task("Moving Attribute", CLEVRER, CLEVRER),
    "state_change": Task("State Change", PERCEPTION, PERCEPTION),
    "fine_grained_pose": Task("Fine-grained Pose", "nturgbd", "nturgbd_convert"),
    "character_order": Task("Character Order", PERCEPTION, PERCEPTION),
    "egocentric_navigation": Task("Egocentric Navigation", "vlnqa", "vlnqa"),
    "episodic_reasoning": Task(
        "Episodic Reasoning", "tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment", True
    ),
    "counterfactual_inference": Task("Counterfactual Inference", CLEVRER, CLEVRER),
}
# Its videos are folders of pictures, 00001.jpg the first.
OF_PICTURES = "episodic_reasoning"
FRAMES = 16

RULES = {
    "official": "the first word, without dots, is part of `(x)` or holds it (check_ans); an empty "
    "answer is right there; Avg over all questions",
    "lmms_eval_2026": "a leading `X.`, else the first letter a to e that stands alone (lmms-eval "
    "0.7.2); an empty answer does not count; mean over tasks",
    "lmms_eval_legacy": "the same in lmms-eval 0.3.0",
}
PROTOCOLS = {
    "official": "the authors' system prompt, 16 frames of the clip, `Best option:(` begun for the "
    "model; the answer is `(` and its first line",
    "lmms_eval": "lmms-eval's prompt, and its folders of clips that are cut already",
}
SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail "
    "and movement of objects, and the action and pose of persons. Based on your observations, "
    "select the best option that accurately addresses the question.\n"
)
SUFFIX = "\nOnly give the best option."
PREFIX = "Best option:("


@dataclasses.dataclass(frozen=True)
class Asked(choices.Choice):
    """One question. start, end: seconds of the clip; an `end` of None is the whole video. fps: of
    the pictures where the video is a folder of them, else 0.
    """

    start: float = 0.0
    end: float | None = None
    fps: float = 0.0


def read(folder: Path) -> Records:
    """The questions of a folder; tasks that are not there are left out.

    Raises InputError where no file of a task is there, or none is of this benchmark's form.
    """
    files = choices.task_files(folder, TASKS)
    if not files:
        choices.find_file(folder, ("json/action_sequence.json", "action_sequence.json"), "MVBench")
    records, problems = choices.gather(choices.rows_of(files), _asked, "MVBench")
    return Records(records, files, problems)


def is_hit(answer: str, truth: str) -> bool:
    """Whether the authors take an answer for the option `(X) text`: by its first word alone.

    Case and dots do not matter. What is part of "(x)" is a hit: "X", "(x", "x)", and nothing.
    """
    word, option = answer.lower().split(" ")[0], truth.lower().split(" ")[0]
    return word.replace(".", "") in option or option in word


def score(records: Records, answers: Mapping[str, Any], rule: str) -> Scores:
    """Accuracy of each task, and over all; `gt` of the details is what answers are held against."""
    said, odd = choices.told(answers)
    asked: Sequence[Asked] = records.records
    known = [one.id for one in asked]
    problems = (*records.problems, *odd, *matched(known, answers, "MVBench"))
    judge = _official if rule == "official" else _lone
    graded = tuple(judge(one, said.get(one.id)) for one in asked)
    groups = choices.by_group(graded)
    table = tabulate(graded, rule)
    average = next(reversed(table))
    return Scores(
        table=table,
        n=choices.counted(groups | {average: graded}),
        graded=graded,
        unanswered=choices.unanswered(graded),
        unparsed=choices.unread(graded),
        problems=problems,
        details={"gt": {one.id: one.truth for one in asked}},
    )


def tabulate(graded: Sequence[Graded], rule: str) -> dict[str, Any]:
    """Percentages of the tasks that have a question, and their average by the rule."""
    groups = choices.by_group(graded)
    tasks = {
        task.title: choices.percent(groups[task.title])
        for task in TASKS.values()
        if task.title in groups
    }
    if rule == "official":
        return {"per_task": tasks, "Avg": choices.percent(graded)}
    return {"per_task": tasks, "mean_of_tasks": sum(tasks.values()) / len(tasks) if tasks else 0.0}


def frame_indices(
    fps: float, last: int, start: float, end: float | None, segments: int = FRAMES, first: int = 0
) -> list[int]:
    """The authors' frames of a clip: one near the middle of each of its equal parts.

    last: the last frame's index, and first: the first one's; pictures of a folder count from 1, and
    their number is the last.
    """
    begin = first if end is None else max(first, round(start * fps))
    stop = last if end is None else min(round(end * fps), last)
    part = (stop - begin) / segments
    return [int(begin + part / 2 + round(part * k)) for k in range(segments)]


def questions(records: Records, protocol: str) -> list[Question]:
    """Each question with 16 frames of its clip."""
    return [
        _official_question(one) if protocol == "official" else _lmms_question(one)
        for one in records.records
    ]


def first_line(text: str) -> str:
    """What the authors keep of a reply that they began with a parenthesis."""
    return "(" + text.split("\n")[0]


def _official_question(one: Asked) -> Question:
    return Question(
        id=one.id,
        video=f"{TASKS[one.task].folder}/{one.video}",
        prompt=f"Question: {one.question}\nOptions:\n{one.lines()}".rstrip() + SUFFIX,
        start=one.start,
        end=one.end,
        system=SYSTEM,
        prefix=PREFIX,
        frames=FRAMES,
        spread=_spread_pictures if one.fps else _spread,
        max_new_tokens=100,
        kept=first_line,
        pictures_fps=one.fps or None,
    )


def _lmms_question(one: Asked) -> Question:
    options = one.lines() + "\n"
    return Question(
        id=one.id,
        video=f"{TASKS[one.task].cut}/{one.video}",
        prompt=f"Question:{one.question}\nOption:\n{options}{SUFFIX[1:]}\n",
        frames=FRAMES,
        max_new_tokens=16,
    )


def _spread(fps: float, frames: int, start: float, end: float | None, segments: int) -> list[int]:
    return frame_indices(fps, frames - 1, start, end, segments)


def _spread_pictures(
    fps: float, frames: int, start: float, end: float | None, segments: int
) -> list[int]:
    """`frame_indices` of a folder of pictures, counted from 0."""
    return [at - 1 for at in frame_indices(fps, frames, start, end, segments, first=1)]


def _official(one: Asked, answer: str | None) -> Graded:
    group = TASKS[one.task].title
    if answer is None:
        return Graded(one.id, group, 0.0, one.video, "", answered=False)
    letters = choices.LETTERS[: len(one.options)]
    read = "".join(letter for letter in letters if is_hit(answer, f"({letter})"))
    return Graded(one.id, group, float(is_hit(answer, one.truth)), one.video, read)


def _lone(one: Asked, answer: str | None) -> Graded:
    group = TASKS[one.task].title
    if not answer:
        return Graded(one.id, group, None, one.video, "", answered=answer is not None)
    read = choices.lone_letter(answer)
    right = read == choices.lone_letter(one.letter)
    letter = read.upper() if read.upper() in tuple(choices.LETTERS) else ""
    return Graded(one.id, group, float(right), one.video, letter)


def _asked(where: str, row: Any) -> Asked:
    task = where.split(".json:")[0]
    question = choices.text_of(row, "question")
    options = choices.options_of(row, "candidates")
    start, end, fps = 0.0, None, 0.0
    if TASKS[task].timed:
        start, end = choices.number_of(row, "start"), choices.number_of(row, "end")
        if end <= start:
            raise InputError(f"ends at {end} s and starts at {start} s, wanted it to end later")
    if task == OF_PICTURES:
        fps = choices.number_of(row, "fps") if "fps" in row else 3.0
    return Asked(
        id=where,
        task=task,
        video=choices.text_of(row, "video"),
        question=question,
        options=options,
        right=choices.index_of(options, choices.text_of(row, "answer"), letter=False),
        start=start,
        end=end,
        fps=fps,
    )


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    rules=RULES,
    read=read,
    answers=read_answers,
    score=score,
    tabulate=tabulate,
    protocols=PROTOCOLS,
    questions=questions,
)
