"""A set of timed dialogues: read from annotations, held with a model, kept as traces.

Any folder laid out as `streamjax world` writes it (streamo/<split>.json, videos/), or a file of
Streamo's raw records beside its videos. What cannot be used is left out and told, a line each.
"""

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from streamjax.data.annotations.files import BadRow
from streamjax.data.annotations.streamo import Record
from streamjax.data.assistant import ClipRecords, messages_of, read_clips
from streamjax.data.video import probe, video
from streamjax.errors import InputError
from streamjax.evals.timing.assistant import Watched, held_out
from streamjax.evals.timing.scores import (
    NOTHING,
    STATE_NAMES,
    Dialogue,
    Timing,
    from_messages,
    score,
)
from streamjax.stream import StreamBatch, Thresholds, Trace, read_trace
from streamjax.stream.trace import header_of, write_trace


@dataclasses.dataclass(frozen=True)
class Planned:
    """A dialogue to be held: `turns` of a video at `fps`, and the record that says how it goes.

    id: the record's own, or its video's path and its number there. size: (width, height).
    """

    id: str
    kind: str
    record: Record
    turns: int
    fps: float | int
    size: tuple[int, int]

    def messages(self, system: str) -> list[dict]:
        """The true dialogue; a question stands where it is asked, no earlier."""
        return messages_of(self.record, self.turns, system, fps=self.fps, question_at_start=False)

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """One frame a turn, decoded as they are taken; a video that ends early holds its last."""
        count, frame = 0, None
        for frame in video(self.record.video, fps=self.fps, max_frames=self.turns):
            count += 1
            yield frame
        for _ in range(self.turns - count):
            assert frame is not None  # a video without frames is an InputError
            yield frame


@dataclasses.dataclass(frozen=True)
class Held(Watched):
    """A dialogue as it should have gone and as it went; `fps` turns a second."""

    id: str = ""
    fps: float | int = 1


@dataclasses.dataclass(frozen=True)
class DialogueSet:
    """What a set of annotations holds: dialogues, lines on what was left out, the files read."""

    planned: Sequence[Planned]
    problems: Sequence[str]
    files: Sequence[Path]


def read_set(
    data: Path,
    split: str = "test",
    *,
    videos: Path | None = None,
    kinds: Sequence[str] = (),
    limit: int | None = None,
    fps: float | int = 1,
) -> DialogueSet:
    """The dialogues of a folder as `streamjax world` writes it, or of a file of raw records.

    videos: the folder of the videos; default is `videos` in the folder, or the file's own. kinds:
    only those; `kind` of a record, or else its `task_type`. limit: so many, kinds in equal shares.
    Raises InputError when there are no annotations, no such kind, or nothing that can be used.
    """
    file, root = _places(data, split, videos)
    bad: list[BadRow] = []
    clips = read_clips(file, root=root, bad=bad)
    problems = [row.reason for row in bad]
    names = {
        record.where: str(
            record.content.get("id") or f"{clip.video_path.relative_to(root).as_posix()}#{number}"
        )
        for clip in clips
        for number, record in enumerate(clip.records)
    }
    clips = _unique(clips, problems)
    if kinds:
        known = dict.fromkeys(kind_of(r) for clip in clips for r in clip.records)
        for kind in kinds:
            if kind not in known:
                raise InputError(f"{file}: no kind {kind!r}; wanted of {', '.join(known)}")
        clips = [
            ClipRecords(c.video_path, tuple(r for r in c.records if kind_of(r) in kinds))
            for c in clips
        ]
    total = sum(len(clip.records) for clip in clips)
    planned, seen = [], {}
    for clip, number in held_out(clips, total if limit is None else limit):
        path, record = clip.video_path, clip.records[number]
        if path not in seen:
            seen[path] = _measured(path, fps)
            if isinstance(seen[path], str):
                problems.append(f"{seen[path]}; its {len(clip.records)} dialogues are left out")
        found = seen[path]
        if isinstance(found, str):
            continue
        one = Planned(names[record.where], kind_of(record), record, *found)
        try:
            one.messages("")
        except InputError as error:
            problems.append(f"{record.where}: {error}")
            continue
        planned.append(one)
    if not planned:
        reason = f": {problems[0]}" if problems else ""
        raise InputError(f"{file}: none of its dialogues could be used{reason}")
    return DialogueSet(planned, problems, [file])


def kind_of(record: Record) -> str:
    """What a record counts for: its `kind` (the embedded world's), else its `task_type`."""
    return str(record.content.get("kind") or record.content.get("task_type") or "other")


def hold(
    model: Any,
    planned: Sequence[Planned],
    *,
    thresholds: Thresholds | None = None,
    slots: int = 1,
    traces: Path | None = None,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> tuple[list[Held], list[str]]:
    """Streams dialogues as a user would see them, and tells those that could not be: (held, lines).

    Nothing of the true answers reaches a stream; a question is asked when its record says, and
    frames are decoded as they are shown. slots: streams at a time, of videos of one size. traces: a
    folder that each dialogue's trace is written to; those that are there are not held again.
    options: of `stream.StreamBatch` (policy, window, max_new_tokens, ...).
    """
    held: dict[int, Held] = {}
    problems: list[str] = []
    todo: dict[tuple[int, int], deque[int]] = {}
    for place, one in enumerate(planned):
        file = None if traces is None else traces / trace_name(place, one)
        if file is not None and file.exists():
            held[place] = _as_held(one, read_trace(file))
        else:
            todo.setdefault(one.size, deque()).append(place)
    for waiting in todo.values():
        batch = StreamBatch(model, slots=slots, **options)
        running: dict[Any, _Running] = {}
        while waiting or running:
            while waiting and len(running) < slots:
                place = waiting.popleft()
                session = batch.join(fps=planned[place].fps, thresholds=thresholds)
                running[session] = _Running(place, planned[place])
            frames, failed = {}, {}
            for session, one in running.items():
                try:
                    frames[session] = one.frame(session)
                except (ValueError, OSError) as error:
                    failed[session] = error
            turns = _pushed(batch, frames, failed)
            for session, error in failed.items():
                told = " ".join(str(error).split())
                problems.append(f"{running.pop(session).planned.id}: {told}")
                session.close()
            for session, turn in turns.items():
                one = running[session]
                one.turns.append(turn)
                if len(one.turns) < one.planned.turns:
                    continue
                held[one.place] = _held(one.planned, one.turns)
                if traces is not None:
                    file = traces / trace_name(one.place, one.planned)
                    write_trace(file, header_of(session), one.turns)
                session.close()
                del running[session]
            if progress is not None:
                progress(len(held) + len(problems), len(planned))
    return [held[place] for place in sorted(held)], problems


def trace_name(place: int, one: Planned) -> str:
    """The file of a dialogue's trace: its place in the set, and its id as a file may be called."""
    return f"{place:05}-{re.sub(r'[^A-Za-z0-9.-]+', '_', one.id)[:80]}.jsonl"


def totals(held: Sequence[Held], *, tolerance: float | int = 1) -> tuple[Timing, dict[str, Timing]]:
    """The scores of all dialogues, and of each kind."""
    kinds = dict.fromkeys(sorted({w.kind for w in held}), NOTHING)
    for w in held:
        kinds[w.kind] += score(w.wanted, w.given, tolerance=tolerance, fps=w.fps)
    return sum(kinds.values(), NOTHING), kinds


def movements(
    planned: Sequence[Planned], progress: Callable[[int, int], Any] | None = None
) -> Mapping[str, Float[np.ndarray, " t"]]:
    """How much the picture changes from turn to turn, in grey levels a pixel, by dialogue's id.

    A video is decoded once for all of its dialogues, frame by frame.
    """
    by_video: dict[Path, Float[np.ndarray, " t"]] = {}
    for done, one in enumerate(planned, 1):
        if one.record.video not in by_video:
            moved, last = [0.0], None
            for frame in one.frames():
                now = frame.astype(np.float32)
                moved += [] if last is None else [float(np.abs(now - last).mean())]
                last = now
            by_video[one.record.video] = np.asarray(moved)
        if progress is not None:
            progress(done, len(planned))
    return {one.id: by_video[one.record.video] for one in planned}


def moving(
    held: Sequence[Held], movement: Mapping[str, Float[np.ndarray, " t"]], threshold: float
) -> list[Held]:
    """The baseline blind to the question: Standby while the picture changes by more than
    `threshold` grey levels, Response in the turn after."""
    answered = []
    for w in held:
        moves = movement[w.id] > threshold
        states = moves.astype(int)
        states[1:][~moves[1:] & moves[:-1]] = 2
        given = Dialogue(tuple(states.tolist()), ("",) * len(states))
        answered.append(dataclasses.replace(w, given=given, probabilities=()))
    return answered


def _pushed(batch: Any, frames: Mapping[Any, Any], failed: dict[Any, Exception]) -> dict[Any, Any]:
    """The turns of all streams that could take theirs; the others are noted with the reason."""
    if not frames:
        return {}
    try:
        return batch.push(frames)
    except ValueError as error:  # whose turn it was is not known; none of them has taken it
        if len(frames) == 1:
            failed.update(dict.fromkeys(frames, error))
            return {}
    turns: dict[Any, Any] = {}
    for session, frame in frames.items():
        turns |= _pushed(batch, {session: frame}, failed)
    return turns


class _Running:
    """A dialogue on its way: what comes next, and the turns so far."""

    def __init__(self, place: int, planned: Planned):
        self.place, self.planned = place, planned
        users = [m["content"] for m in planned.messages("") if m["role"] == "user"]
        self._users, self._frames = users, planned.frames()
        self.turns: list[Any] = []

    def frame(self, session: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The next frame; asks what is asked with it."""
        lines = self._users[len(self.turns)].split("\n")
        if len(lines) > 2:  # above the time tag and the frame's mark
            session.ask("\n".join(lines[:-2]))
        return next(self._frames)


def _held(one: Planned, turns: Sequence[Any]) -> Held:
    questions = one.record.content["question"]
    return Held(
        one.kind,
        questions[0]["content"] if questions else "",
        one.record.video.stem,
        from_messages(one.messages("")),
        Dialogue(
            tuple(STATE_NAMES.index(turn.state.strip("</>")) for turn in turns),
            tuple(turn.text for turn in turns),
        ),
        tuple(turn.probabilities for turn in turns),
        one.id,
        one.fps,
    )


def _as_held(one: Planned, trace: Trace) -> Held:
    if len(trace.turns) != one.turns or trace.settings["fps"] != one.fps:
        raise InputError(
            f"{trace.path}: {len(trace.turns)} turns at {trace.settings['fps']:g} fps, wanted "
            f"{one.turns} at {one.fps:g}: the trace of something else; choose another folder"
        )
    return _held(one, trace.turns)


def _places(data: Path, split: str, videos: Path | None) -> tuple[Path, Path]:
    """The annotations, and the folder of their videos."""
    if data.is_file():
        return data, videos or data.parent
    file = data / "streamo" / f"{split}.json"
    if not file.is_file():
        splits = sorted(path.stem for path in file.parent.glob("*.json"))
        hint = f"; it has {', '.join(splits)}" if splits else "; wanted that, or a file of records"
        raise InputError(f"{data}: no streamo/{split}.json{hint}")
    return file, videos or data / "videos"


def _unique(clips: Sequence[ClipRecords], problems: list[str]) -> list[ClipRecords]:
    """The clips without records whose id another one before has."""
    seen: set[str] = set()
    kept = []
    for clip in clips:
        records = []
        for record in clip.records:
            told = str(record.content.get("id") or "")
            if told and told in seen:
                problems.append(f"{record.where}: id {told!r} stands there twice; remove one")
                continue
            seen.add(told)
            records.append(record)
        kept.append(ClipRecords(clip.video_path, tuple(records)))
    return kept


def _measured(path: Path, fps: float | int) -> tuple[int, float | int, tuple[int, int]] | str:
    """(turns, fps, (width, height)) of a video, or why it cannot be used."""
    try:
        info = probe(path)
    except (InputError, OSError) as error:
        return " ".join(str(error).split())
    turns = int(info.duration * fps + 1e-6)
    if not turns:
        return f"{path}: {info.duration:g} s long, wanted a turn of {1 / fps:g} s at least"
    return turns, fps, (info.width, info.height)
