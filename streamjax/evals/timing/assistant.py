"""Free-running evaluation: a stream watches held-out videos and hears only its own answers."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from streamjax.data.assistant import ClipRecords, messages_of, turns_in
from streamjax.data.dense import clip_frames
from streamjax.evals.timing.scores import (
    NOTHING,
    STATE_NAMES,
    Dialogue,
    Timing,
    from_messages,
    score,
)
from streamjax.stream import StreamBatch, Thresholds


@dataclasses.dataclass(frozen=True)
class Watched:
    """One dialogue as it should have gone and as it went; `kind` is the record's.

    probabilities: of Silence, Standby and Response, turn by turn (() where no model was asked).
    """

    kind: str
    question: str
    video: str
    wanted: Dialogue
    given: Dialogue
    probabilities: tuple[tuple[float, ...], ...] = ()


def held_out(clips: Sequence[ClipRecords], count: int) -> list[tuple[ClipRecords, int]]:
    """`count` (clip, record number) pairs, taken in turn from every kind of instruction.

    Kinds get equal shares (as far as there are records), and within a kind every clip is asked
    before one is asked again.
    """
    by_kind: dict[str, list[tuple[int, ClipRecords, int]]] = {}
    for clip in clips:
        asked: dict[str, int] = {}
        for number, record in enumerate(clip.records):
            kind = record.content.get("kind", record.content.get("task_type", ""))
            asked[kind] = asked.get(kind, 0) + 1
            by_kind.setdefault(kind, []).append((asked[kind], clip, number))
    queues = [sorted(queue, key=lambda item: item[0]) for queue in by_kind.values()]
    chosen: list[tuple[ClipRecords, int]] = []
    place = 0
    while len(chosen) < count and any(place < len(q) for q in queues):
        chosen += [(q[place][1], q[place][2]) for q in queues if place < len(q)]
        place += 1
    return chosen[:count]


def free_run(
    model: Any,
    clips: Sequence[ClipRecords],
    count: int,
    *,
    max_new_tokens: int = 16,
    slots: int = 1,
    thresholds: Thresholds | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Watched]:
    """Streams `count` held-out dialogues as a user would see them, `slots` at a time.

    Nothing of the true answers reaches a stream; a question is asked when its record says.
    thresholds: when to speak (default: the likeliest state). A dialogue goes as it would alone;
    more slots are faster and need the memory of as many streams.
    """
    chosen = held_out(clips, count)
    batch = StreamBatch(model, slots=slots, max_new_tokens=max_new_tokens)
    waiting = iter(range(len(chosen)))
    running: dict[Any, _Running] = {}
    seen: dict[int, Watched] = {}
    while len(seen) < len(chosen):
        while len(running) < slots and (place := next(waiting, None)) is not None:
            running[batch.join(thresholds=thresholds)] = _Running(place, *chosen[place])
        frames = {session: one.frame(session) for session, one in running.items()}
        for session, turn in batch.push(frames).items():
            one = running[session]
            one.turns.append(turn)
            if len(one.turns) == one.length:
                session.close()
                seen[running.pop(session).place] = one.watched()
                if progress is not None:
                    progress(len(seen), len(chosen))
    return [seen[place] for place in range(len(chosen))]


class _Running:
    """A dialogue on its way: what comes next, and the turns so far."""

    def __init__(self, place: int, clip: ClipRecords, number: int):
        self.place, self.clip, self.record = place, clip, clip.records[number]
        self.length = turns_in(clip.video_path)
        self.messages = messages_of(self.record, self.length)
        self.frames = clip_frames(clip.video_path, self.length)
        self.turns: list[Any] = []

    def frame(self, session: Any) -> np.ndarray:
        """The next frame; asks what is asked with it."""
        second = len(self.turns)
        question = _question(self.messages[1 + 2 * second]["content"])
        if question:
            session.ask(question)
        return self.frames[second]

    def watched(self) -> Watched:
        asked = self.record.content["question"]
        return Watched(
            self.record.content.get("kind", ""),
            asked[0]["content"] if asked else "",
            self.clip.video_path.stem,
            from_messages(self.messages),
            Dialogue(
                tuple(STATE_NAMES.index(turn.state.strip("</>")) for turn in self.turns),
                tuple(turn.text for turn in self.turns),
            ),
            tuple(turn.probabilities for turn in self.turns),
        )


def keep(path: str | Path, seen: Sequence[Watched]) -> None:
    """Writes the dialogues as JSON, probabilities and all; `kept` reads them."""
    Path(path).write_text(json.dumps([dataclasses.asdict(w) for w in seen]) + "\n")


def kept(path: str | Path) -> list[Watched]:
    """What `keep` has written."""
    found = []
    for row in json.loads(Path(path).read_text()):
        for name in ("wanted", "given"):
            row[name] = Dialogue(tuple(row[name]["states"]), tuple(row[name]["texts"]))
        row["probabilities"] = tuple(tuple(shares) for shares in row["probabilities"])
        found.append(Watched(**row))
    return found


def total(seen: Sequence[Watched], *, tolerance: int = 1) -> Timing:
    return sum((score(w.wanted, w.given, tolerance=tolerance) for w in seen), NOTHING)


def by_kind(seen: Sequence[Watched]) -> dict[str, Timing]:
    """The scores of each kind of instruction."""
    kinds = dict.fromkeys(w.kind for w in seen)
    return {kind: total([w for w in seen if w.kind == kind]) for kind in kinds}


# --- what needs no model -------------------------------------------------------------------------


def silent(seen: Sequence[Watched]) -> list[Watched]:
    """The baseline that never says a word."""
    return [_answered(w, np.zeros(len(w.wanted.states), int)) for w in seen]


def prior(seen: Sequence[Watched], shares: Float[np.ndarray, "3"], seed: int = 0) -> list[Watched]:
    """States drawn at random with their shares in the training data."""
    rng = np.random.default_rng(seed)
    return [_answered(w, rng.choice(3, len(w.wanted.states), p=shares)) for w in seen]


def motion(
    seen: Sequence[Watched], frames: Mapping[str, UInt8[np.ndarray, "t h w 3"]], threshold: float
) -> list[Watched]:
    """Standby while the picture changes, Response in the second after, blind to the question.

    frames: the clip of each video name, one frame per second. threshold: mean absolute difference
    of two frames, in grey levels, above which something moves.
    """
    answered = []
    for w in seen:
        clip = frames[w.video][: len(w.wanted.states)].astype(np.float32)
        moving = np.abs(np.diff(clip, axis=0)).mean((1, 2, 3)) > threshold
        states = np.concatenate([[0], moving.astype(int)])
        states[1:][~moving & np.concatenate([[False], moving[:-1]])] = 2
        answered.append(_answered(w, states))
    return answered


def state_shares(clips: Sequence[ClipRecords]) -> Float[np.ndarray, "3"]:
    """How often each state is wanted in the dialogues of `clips`."""
    counts = np.zeros(3)
    for clip in clips:
        turns = turns_in(clip.video_path)
        for record in clip.records:
            states = from_messages(messages_of(record, turns)).states
            counts += np.bincount(states, minlength=3)
    return counts / counts.sum()


def _answered(w: Watched, states: np.ndarray) -> Watched:
    empty = ("",) * len(states)
    return dataclasses.replace(w, given=Dialogue(tuple(int(s) for s in states), empty))


def _question(user: str) -> str:
    """The question in a user's turn: what stands before the time tag's line."""
    lines = user.split("\n")
    return "\n".join(lines[:-2])
