"""Sets of dialogues: what is read and what is left out, held as recorded, and resumed."""

import dataclasses
import json

import numpy as np
import pytest

from streamjax.data.dialogue import user_content
from streamjax.data.video import write_video
from streamjax.errors import InputError
from streamjax.evals.timing import dialogues
from streamjax.evals.timing.dialogues import Held, read_set, totals, trace_name
from streamjax.evals.timing.scores import Dialogue


def record(video, kind="alert", *, asked="0", **more):
    return {
        "video_path": video,
        "task_type": kind,
        "question": [{"content": "tell me when", "time": asked}],
        "response": [{"content": "now", "st_time": "2", "end_time": "3", "time": ""}],
        **more,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two videos: 6 seconds at 4 fps, still but for second 3; and 4 seconds."""
    folder = tmp_path_factory.mktemp("set")
    frames = np.zeros((24, 16, 16, 3), np.uint8)
    frames[12:] = 200
    write_video(folder / "a.mp4", frames, 4)
    write_video(folder / "b.mp4", frames[:16], 4)
    write_video(folder / "short.mp4", frames[:2], 4)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def written(home, records, name="set.json"):
    (home / name).write_text(json.dumps(records))
    return home / name


def test_a_file_of_records(home):
    file = written(home, [record("a.mp4"), record("a.mp4", "ask", asked="4"), record("b.mp4")])
    found = read_set(file)
    assert [(p.id, p.kind, p.turns) for p in found.planned] == [
        ("a.mp4#0", "alert", 6),
        ("a.mp4#1", "ask", 6),
        ("b.mp4#0", "alert", 4),
    ]
    assert not found.problems and found.files == [file]
    # A question for second 3 is not known before.
    users = [m["content"] for m in found.planned[1].messages("") if m["role"] == "user"]
    assert users[0] == user_content(0) and users[3] == user_content(3, "tell me when")
    assert [p.id for p in read_set(file, kinds=("ask",)).planned] == ["a.mp4#1"]
    assert [p.kind for p in read_set(file, limit=2).planned] == ["alert", "ask"]
    twice = read_set(file, fps=2).planned[0]
    assert twice.turns == 12 and len(list(twice.frames())) == 12


def test_a_folder_as_the_world_writes_it(home, tmp_path):
    (tmp_path / "streamo").mkdir()
    (tmp_path / "videos").symlink_to(home)
    (tmp_path / "streamo" / "test.json").write_text(json.dumps([record("a.mp4", kind="say")]))
    assert [p.kind for p in read_set(tmp_path).planned] == ["say"]
    with pytest.raises(InputError, match=r"no streamo/val\.json; it has test"):
        read_set(tmp_path, "val")
    with pytest.raises(InputError, match="wanted that, or a file of records"):
        read_set(tmp_path / "videos")


def test_what_cannot_be_used_is_told_a_line_each(home):
    bad = [
        record("a.mp4", id="x"),
        record("b.mp4", id="x"),
        record("gone.mp4"),
        record("broken.mp4"),
        record("short.mp4"),
        {"video_path": "a.mp4", "question": []},
        record("a.mp4", question=[{"content": "</Silence> what", "time": 0}]),
    ]
    found = read_set(written(home, bad, "bad.json"))
    assert [p.id for p in found.planned] == ["x"]
    told = "\n".join(found.problems)
    assert len(found.problems) == told.count("\n") + 1 == 6
    for part in (
        "record 5: response is missing",
        "record 1: id 'x' stands there twice",
        "gone.mp4",
        "broken.mp4",
        "0.5 s long, wanted a turn of 1 s",
        "record 6: ",
    ):
        assert part in told
    with pytest.raises(InputError, match="none of its dialogues could be used: .*gone"):
        read_set(written(home, [record("gone.mp4")], "none.json"))
    with pytest.raises(InputError, match="no kind 'other'; wanted of alert"):
        read_set(home / "set.json", kinds=("other",))


def test_a_video_that_ends_early_holds_its_last_frame(home):
    (one, *_) = read_set(home / "set.json").planned
    frames = list(dataclasses.replace(one, turns=8).frames())
    assert len(frames) == 8
    np.testing.assert_array_equal(frames[5], frames[7])


def test_a_motion_detector_by_hand(home):
    planned = read_set(home / "set.json").planned
    movement = dialogues.movements(planned)
    moved = movement["a.mp4#0"]
    assert moved.shape == (6,) and moved[3] > 150 and moved[[0, 1, 2, 4, 5]].max() < 5
    empty = Dialogue((0,) * 6, ("",) * 6)
    held = [Held("alert", "", "a", empty, empty, ((1.0, 0.0, 0.0),) * 6, "a.mp4#0")]
    (answered,) = dialogues.moving(held, movement, 20.0)
    assert answered.given.states == (0, 0, 0, 1, 2, 0) and answered.probabilities == ()


def test_totals_are_of_kinds_and_of_all():
    wanted, said = Dialogue((0, 2), ("", "a")), Dialogue((2, 2), ("b", "a"))
    held = [Held(kind, "", kind, wanted, said, id=kind) for kind in "aab"]
    whole, kinds = totals(held)
    assert list(kinds) == ["a", "b"] and kinds["a"].dialogues == 2
    assert (whole.said, whole.wanted, whole.matched) == (6, 3, 3)
    assert (kinds["a"] + kinds["b"]).whole() == whole.whole()


def test_a_trace_has_its_place_and_a_harmless_name(home):
    (one, *_) = read_set(home / "set.json").planned
    assert trace_name(7, dataclasses.replace(one, id="../x y#1")) == "00007-.._x_y_1.jsonl"


class Batch:
    """Stands for a StreamBatch: the stream that saw a 7 cannot take its turn."""

    made = 0

    def __init__(self, model, *, slots, **options):
        Batch.made += 1

    def join(self, *, fps, thresholds):
        return Stream()

    def push(self, frames):
        if any(frame.max() == 7 for frame in frames.values()):
            raise ValueError("too long\nby far")
        return {stream: Turn("</Response>", "now", (0.1, 0.2, 0.7)) for stream in frames}


class Stream:
    def __init__(self):
        self.asked = []

    def ask(self, text):
        self.asked.append(text)

    def close(self):
        pass


@dataclasses.dataclass
class Turn:
    state: str
    text: str
    probabilities: tuple[float, ...]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_run_goes_on_past_what_fails(home, monkeypatch, slots):
    frames = {"a.mp4#0": [1, 2, 3, 4, 5, 6], "a.mp4#1": [1, 7, 3, 4, 5, 6], "b.mp4#0": [1, 2]}

    def shown(self):
        yield from (np.full((2, 2, 3), n, np.uint8) for n in frames[self.id])
        if self.id == "b.mp4#0":
            raise InputError("b.mp4: cut off")

    monkeypatch.setattr(dialogues, "StreamBatch", Batch)
    monkeypatch.setattr(dialogues.Planned, "frames", shown)
    done = []
    held, problems = dialogues.hold(
        None,
        read_set(home / "set.json").planned,
        slots=slots,
        progress=lambda n, total: done.append((n, total)),
    )
    assert [w.id for w in held] == ["a.mp4#0"]
    assert held[0].given == Dialogue((2,) * 6, ("now",) * 6)
    assert held[0].wanted.states == (0, 1, 1, 2, 0, 0)
    assert sorted(problems) == ["a.mp4#1: too long by far", "b.mp4#0: b.mp4: cut off"]
    assert done[-1] == (3, 3)
