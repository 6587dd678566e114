"""From a raw annotation to a dialogue: one turn per frame, one state per turn.

Everything here is a rule of specs/streamo.md (sections 1, 2 and 10) over plain dicts; nothing
touches a disk or a tensor. ``parity="upstream"`` reproduces the released code word for word,
``parity="fixed"`` (the default) repairs what costs quality; each repair is named in the docstring
of its function and in docs/differences.md.

Words: a *turn* is one frame with its time tag, an optional question and the answer. The *state* of
a turn is the first token of its answer.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from streamjax.errors import InputError

PARITIES = ("fixed", "upstream")
FRAME_RULES = ("train", "inference")
WINDOW_RULES = ("inference", "ovo", "plain")

STATES = ("</Silence>", "</Standby>", "</Response>")
SILENCE, STANDBY, RESPONSE = STATES

DEFAULT_QUESTION = "Find all significant events in the video and describe them."
# The trailing spaces are part of the prompt that the released models were trained with.
DEFAULT_SYSTEM_PROMPT = (
    "\nYou are a helpful assistant specializing in streaming video analysis. \n"
    "You will receive input frame by frame, each labeled with absolute time intervals \n"
    "in the exact format <Xs-Ys> (e.g., <0s-1s>). Follow these rules precisely:\n\n"
    "1. Use </Silence> when:\n"
    "   - No relevant event has started, OR\n"
    "   - The current input is irrelevant to the given question.  \n\n"
    "2. Use </Standby> when:\n"
    "   - An event is in progress but has not yet completed, OR\n"
    "   - The current input is relevant but the question cannot yet be answered.  \n\n"
    "3. Use </Response> only when:\n"
    "   - An event has fully concluded, OR\n"
    "   - The available information is sufficient to fully answer the question.\n"
    "   Provide a complete description at this point.  \n\n"
    "Do not provide partial answers or speculate beyond the given information.  \n"
    "Whenever you deliver an answer, begin with </Response>.\n"
)

# What would be read as a frame or as a decision if it stood in a question or an answer.
RESERVED = ("<image>", "<stream>", "<video>", *STATES)


def parse_time(value: Any, fps: float | int = 1.0, *, parity: str = "fixed") -> int | None:
    """An annotated time as a count of frames from the start (5 -> 5 at 1 fps), or None if absent.

    Accepts numbers, "5", "5.0", "01:05" and "00:01:05"; None, "", "nan" and anything else that is
    not a time give None. Fractions are truncated.

    Upstream multiplies by `fps` only floats in strings and clock times, crashes on "inf"
    (OverflowError) and reads "-0:05" as +5. Fixed: every form is in seconds and is multiplied by
    `fps`; an infinite time is None; the sign of a clock time covers all of it.
    specs/streamo.md 1.2.
    """
    _check("parity", parity, PARITIES)
    if value is None:
        return None
    if parity == "upstream":
        return _parse_time_upstream(value, fps)
    if isinstance(value, str):
        text = value.strip()
        sign = -1.0 if text.startswith("-") and ":" in text else 1.0
        seconds = _seconds(text.removeprefix("-") if sign < 0 else text)
        seconds = None if seconds is None else sign * seconds
    else:
        seconds = float(value)
    if seconds is None or not math.isfinite(seconds):
        return None
    # 4.35 s at 20 fps is frame 87, not 86.99999.
    return math.trunc(round(seconds * fps, 6))


def _parse_time_upstream(value: Any, fps: float | int) -> int | None:
    if isinstance(value, (int, float)):
        return int(value)
    text = value.strip()
    try:
        return int(text)
    except ValueError:
        pass
    seconds = _seconds(text)
    return None if seconds is None or math.isnan(seconds) else int(seconds * fps)


def _seconds(text: str) -> float | None:
    parts = text.split(":")
    if len(parts) > 3:
        return None
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    seconds = 0.0
    for number in numbers:
        seconds = seconds * 60 + number
    return seconds


def frame_states(
    responses: Sequence[Mapping[str, Any]],
    num_frames: int,
    *,
    fps: float | int = 1.0,
    parity: str = "fixed",
) -> list[str]:
    """The assistant's words for every frame: a state, and after a Response one space and the text.

    A response with a span (`st_time`, `end_time`) is Standby while it lasts and a Response on the
    frame after; one with an instant (`time`) is a Response on that frame. Two answers for one
    frame: the later in the list wins.

    Upstream paints the list in order, so that a later span's Standby erases an earlier answer, and
    an answer due after the last frame is lost. Fixed: all Standbys are painted before all answers,
    and an event that ends on the last frame answers on that frame (after the answer that is
    already there, if any). specs/streamo.md 1.4.
    """
    _check("parity", parity, PARITIES)
    states = [SILENCE] * num_frames
    spans: list[tuple[int, int]] = []
    answers: list[tuple[int, str]] = []
    ending: list[str] = []
    for response in responses:
        content = _content(response)
        start = parse_time(response.get("st_time"), fps, parity=parity)
        end = parse_time(response.get("end_time"), fps, parity=parity)
        at = parse_time(response.get("time"), fps, parity=parity)
        if start is not None and end is not None:
            spans.append((_frame(start), _frame(end)))
            due = _frame(end) + 1
        elif at is not None:
            due = _frame(at)
        else:
            continue
        if parity == "upstream":
            for first, last in spans:
                states[first : last + 1] = [STANDBY] * len(states[first : last + 1])
            spans.clear()
            if content and due < num_frames:
                states[due] = f"{RESPONSE} {content}"
        elif content and due < num_frames:
            answers.append((due, content))
        elif content and due == num_frames and start is not None and end is not None:
            ending.append(content)
    for first, last in spans:
        states[first : last + 1] = [STANDBY] * len(states[first : last + 1])
    for due, content in answers:
        states[due] = f"{RESPONSE} {content}"
    for content in ending:
        said = states[-1] if states[-1].startswith(RESPONSE) else RESPONSE
        states[-1] = f"{said} {content}"
    return states


def frame_questions(
    questions: Sequence[Mapping[str, Any]],
    num_frames: int,
    *,
    fps: float | int = 1.0,
    default_question: str | None = None,
    question_at_start: bool = True,
    parity: str = "fixed",
) -> dict[int, str]:
    """Frame -> question asked there. Two questions on one frame: the later in the list wins.

    Frame 0 is given the first question of the list (the default one if the list or that question is
    empty) when it has none of its own: that is how the released models were trained, although a
    question for later is thereby known too early. `question_at_start=False` does so only when no
    question has a usable time. specs/streamo.md 1.5.
    """
    asked: dict[int, str] = {}
    for question in questions:
        content, at = _content(question), parse_time(question.get("time"), fps, parity=parity)
        if content and at is not None and _frame(at) < num_frames:
            asked[_frame(at)] = content
    if 0 not in asked and (question_at_start or not asked):
        first = _content(questions[0]) if questions else ""
        asked[0] = first or default_question or DEFAULT_QUESTION
    return asked


def time_tag(index: int, fps: float | int = 1.0) -> str:
    """`<3s-4s>`: the interval that frame `index` of a stream at `fps` stands for."""
    start, end = (f"{at / fps:.3f}".rstrip("0").rstrip(".") for at in (index, index + 1))
    return f"<{start}s-{end}s>"


def user_content(
    index: int, question: str | None = None, *, fps: float | int = 1.0, image: str = "<image>"
) -> str:
    """The user's words of turn `index`: the question if any, the time tag, the frame's mark."""
    turn = f"{time_tag(index, fps)}\n{image}"
    return f"{question}\n{turn}" if question else turn


def parse_answer(text: str) -> tuple[int | None, str]:
    """Splits an assistant's words into the index of its state (None without one) and the text."""
    for index, state in enumerate(STATES):
        if text.startswith(state):
            return index, text[len(state) :].removeprefix(" ")
    return None, text


def to_stream(
    record: Mapping[str, Any],
    num_frames: int,
    *,
    fps: float | int = 1.0,
    system_prompt: str | None = None,
    video_prefix: str | None = None,
    default_question: str | None = None,
    question_at_start: bool = True,
    parity: str = "fixed",
) -> Any:
    """A raw record (specs/streamo.md 1.1) as a dialogue of `num_frames` turns.

    The result has `messages` (system, then user and assistant per frame, the frame's place marked
    `<stream>`), `videos` = [path] and, where the record has them, `video_name`, `task_type` and
    `source`. `num_frames` comes from `num_turns`.

    Upstream drops a record (None) without a path or frames, writes frame indices instead of seconds
    into the time tags when fps != 1, and lets `<image>`, `<stream>` or a state stand in a question
    or an answer, where they are taken for frames and decisions. Fixed: these raise InputError, tags
    are in seconds; besides, the repairs of `parse_time` and `frame_states`.
    """
    _check("parity", parity, PARITIES)
    path = record.get("video_path")
    if not path:
        videos = record.get("videos")
        path = videos[0] if isinstance(videos, (list, tuple)) and videos else videos
    if not path or num_frames <= 0:
        if parity == "upstream":
            return None
        where = record.get("video_path") or record.get("video_name") or "a record"
        raise InputError(
            f"{where}: no video_path (or videos)"
            if not path
            else f"{where}: {num_frames} frames at {fps:g} fps, wanted at least 1"
        )
    if video_prefix:
        path = os.path.join(video_prefix, path)
    questions, responses = _entries(record, "question"), _entries(record, "response")
    if parity == "fixed":
        for field, entries in (("question", questions), ("response", responses)):
            for entry in entries:
                _reject_reserved(_content(entry), f"{path}: {field}")

    asked = frame_questions(
        questions,
        num_frames,
        fps=fps,
        default_question=default_question,
        question_at_start=question_at_start,
        parity=parity,
    )
    states = frame_states(responses, num_frames, fps=fps, parity=parity)
    tag_fps = fps if parity == "fixed" else 1.0
    messages = [{"role": "system", "content": system_prompt or DEFAULT_SYSTEM_PROMPT}]
    for i, state in enumerate(states):
        user = user_content(i, asked.get(i), fps=tag_fps, image="<stream>")
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": state})
    kept = {k: record[k] for k in ("video_name", "task_type", "source") if record.get(k)}
    return {"messages": messages, "videos": [path], **kept}


def num_turns(
    video_fps: float | int, total_frames: int, *, fps: float | int = 1.0, parity: str = "fixed"
) -> int:
    """How many turns a video has at `fps`.

    Upstream divides the frame count by trunc(video_fps / fps), which at 29.97 fps makes 103 turns
    of 100 seconds. Fixed: the whole intervals of 1/fps seconds that the video lasts.
    specs/streamo.md 1.6.
    """
    _check("parity", parity, PARITIES)
    if parity == "upstream":
        return total_frames // _interval(video_fps, fps)
    _check_rates(video_fps, fps)
    return int(total_frames / video_fps * fps + 1e-6)


def frame_indices(
    video_fps: float | int,
    total_frames: int,
    *,
    fps: float | int = 1.0,
    max_frames: int | None = None,
    rule: str = "train",
    parity: str = "fixed",
) -> list[int]:
    """Which frames of a video of constant rate are shown, one per turn; at most `max_frames`.

    Upstream has two rules. "train": every trunc(video_fps / fps)-th frame, which drifts by 3-4 % at
    29.97 and 23.976 fps and gives up to one frame more than there are turns. "inference": frame
    trunc(r * video_fps) at round r, with `fps` scaling the number of rounds but not the time, so
    that at 2 fps the second half repeats the last frame (`max_frames` has no effect there).
    Fixed: under either rule, frame round(i * video_fps / fps) for each of the `num_turns` turns.
    specs/streamo.md 2.1, 2.4.
    """
    _check("parity", parity, PARITIES)
    _check("rule", rule, FRAME_RULES)
    if parity == "fixed":
        turns = num_turns(video_fps, total_frames, fps=fps)
        shown = [min(round(i * video_fps / fps), total_frames - 1) for i in range(turns)]
    elif rule == "train":
        shown = list(range(0, total_frames, _interval(video_fps, fps)))
    else:
        _check_rates(video_fps, fps)
        rounds = int(total_frames / video_fps * fps)
        return [min(int(r * video_fps), total_frames - 1) for r in range(rounds)]
    return shown if max_frames is None else shown[:max_frames]


def to_image(
    row: Mapping[str, Any],
    frames: Any,
    *,
    frame_tolerance: int = 1,
    parity: str = "fixed",
) -> Any:
    """Gives each `<stream>` of a dialogue its frame: it becomes `<image>`, and `images` appears.

    A surplus of frames is cut, a lack is filled with the last one, either up to `frame_tolerance`.
    `frames` is any sequence or array, None when the video could not be read. A row without
    `<stream>` comes back as it is.

    Upstream counts `<stream>` in answers too and discards (None) what does not fit. Fixed:
    `<stream>` or `<image>` outside a user's turn, and all that upstream discards, raise InputError.
    specs/streamo.md 2.2.
    """
    _check("parity", parity, PARITIES)
    messages = row["messages"]
    wanted = sum(message["content"].count("<stream>") for message in messages)
    if wanted == 0:
        return dict(row)
    videos = row.get("videos") or row.get("video") or row.get("video_path")
    path = videos[0] if isinstance(videos, (list, tuple)) else videos
    found = 0 if frames is None else len(frames)
    if parity == "fixed":
        for message in messages:
            if "<image>" in message["content"] or (
                message["role"] != "user" and "<stream>" in message["content"]
            ):
                raise InputError(
                    f"{path}: <image> or <stream> inside the {message['role']}'s words "
                    f"{message['content'][:60]!r}: it would be taken for a frame, rewrite it"
                )
        if found == 0 or abs(found - wanted) > frame_tolerance:
            raise InputError(
                f"{path}: {found} frames for {wanted} turns, wanted within {frame_tolerance}: "
                "the annotation belongs to another video or frame rate"
            )
    if found == 0 or abs(found - wanted) > frame_tolerance:
        return None
    images = list(frames[:wanted]) + [frames[-1]] * (wanted - found)
    turned = [{**m, "content": m["content"].replace("<stream>", "<image>")} for m in messages]
    kept = {k: v for k, v in row.items() if k not in ("videos", "video", "video_path")}
    return {**kept, "messages": turned, "images": images}


def window_messages(
    round: int,
    answers: Sequence[str],
    *,
    question: str = "",
    question_time: int = 0,
    max_rounds: int | None = 120,
    global_question: bool = True,
    system: str | None = DEFAULT_SYSTEM_PROMPT,
    rule: str = "inference",
    parity: str = "fixed",
) -> dict[str, Any]:
    """What is sent to the model at `round`: the system prompt and the last `max_rounds` turns.

    `answers[i]` is what was said at round i < `round` (`</Silence>` before `question_time`).
    Returns `messages`, `frames` (the rounds whose frames stand for the `<image>`s) and
    `model_called` (False before the question). rule "inference" is the released script's, "ovo" the
    one of its OVO-Bench runner, which keeps one turn more and always shows the question at the head
    of a full window; "plain" forgets nothing.

    Upstream's "inference" with `global_question` shows the question at the head before it has been
    asked, and without a system prompt keeps turn 0 in its place and loses an answer. Fixed: the
    head repeats the question only once the question's own turn has left; no system prompt is
    simply none ("ovo" changes in the latter only, scores are compared with it).
    specs/streamo.md 10.
    """
    _check("parity", parity, PARITIES)
    _check("rule", rule, WINDOW_RULES)
    if len(answers) < round:
        raise InputError(f"round {round} needs the {round} answers before it, found {len(answers)}")
    if rule == "plain" or max_rounds is None:
        start = 0
    else:
        start = max(0, round - max_rounds + (1 if rule == "inference" else 0))

    def asked(turn: int) -> bool:
        if turn == question_time:
            return True
        if turn != start:
            return False
        if rule == "ovo":
            return start > 0
        if rule == "plain" or not global_question:
            return False
        return parity == "upstream" or question_time < start

    def user(turn: int) -> dict[str, str]:
        content = user_content(turn, question if asked(turn) else None)
        return {"role": "user", "content": content}

    turns: list[dict[str, str]] = []
    for turn in range(start, round):
        turns += [user(turn), {"role": "assistant", "content": answers[turn]}]
    turns.append(user(round))
    if system:
        turns.insert(0, {"role": "system", "content": system})
    elif parity == "upstream" and start > 0:
        # Turn 0 sits where the system prompt is expected, and everything after is off by one.
        head = (rule == "inference" and global_question) or question_time == 0
        kept = {"role": "user", "content": user_content(0, question if head else None)}
        turns = [kept, turns[0], *turns[2:]]
    return {
        "messages": turns,
        "frames": list(range(start, round + 1)),
        "model_called": round >= question_time,
    }


def _frame(time: int) -> int:
    """Time T is the end of frame T - 1; whatever comes before the video belongs to frame 0."""
    return time - 1 if time > 0 else 0


def _interval(video_fps: float | int, fps: float | int) -> int:
    return max(1, int(video_fps / fps)) if fps > 0 else 1


def _content(entry: Mapping[str, Any]) -> str:
    return entry.get("content") or ""


def _entries(record: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    entries = record.get(field) or []
    good = isinstance(entries, (list, tuple)) and all(
        isinstance(e, Mapping) and isinstance(e.get("content") or "", str) for e in entries
    )
    if not good:
        name = record.get("video_path") or record.get("video_name") or "a record"
        raise InputError(
            f"{name}: {field} is {str(entries)[:60]!r}, wanted a list of objects with a text "
            "`content` and times"
        )
    return list(entries)


def _reject_reserved(text: str, where: str) -> None:
    for mark in RESERVED:
        if mark in text:
            raise InputError(
                f"{where} contains {mark!r}, which would be read as a frame or a state: remove it"
            )


def _check_rates(video_fps: float | int, fps: float | int) -> None:
    if not (video_fps > 0 and fps > 0):
        raise InputError(f"video_fps={video_fps:g}, fps={fps:g}: both must be above 0")


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}={value!r}: wanted one of {', '.join(choices)}")
