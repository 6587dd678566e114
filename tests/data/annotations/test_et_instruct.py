"""E.T. Instruct: both files say the same, and what is wrong with a record is told."""

import json
from pathlib import Path

import pytest

from streamjax.data.annotations.et_instruct import read_instructions
from streamjax.data.annotations.files import read_json
from streamjax.errors import InputError


@pytest.fixture(scope="module")
def case() -> Path:
    return Path(__file__).parents[2] / "golden/bench/et_instruct"


@pytest.mark.parametrize("style", ["txt", "vid"])
def test_both_files_give_the_same_records(case, style):
    found = read_instructions(case / f"et_instruct_164k_{style}.json", root="videos")
    wanted = read_json(case / "expected.json")
    assert len(found) == len(wanted)
    for record, want in zip(found, wanted, strict=True):
        assert record.turns == ((want["user"], want["assistant"]),)
        assert record.video == Path("videos") / want["video"]
        assert record.task == want["task"]
        for field in ("src", "tgt"):
            times = getattr(record, field)
            assert (None if times is None else list(times)) == want[field]


GOOD = {
    "task": "tem", "source": "s", "video": "s/a.mp4", "duration": 10, "src": [[1, 2.0]], "tgt": [3],
    "conversations": [{"from": "human", "value": "<image>\nAt <vid> - <vid>?"},
                      {"from": "gpt", "value": "At <vid>."}],
}  # fmt: skip


def _read(tmp_path, records, bad=None):
    path = tmp_path / "vid.json"
    path.write_text(json.dumps(records))
    return read_instructions(path, root=tmp_path, bad=bad)


def test_times_are_written_as_the_file_writes_them(tmp_path):
    (record,) = _read(tmp_path, [GOOD])
    assert record.turns == (("<image>\nAt 1 - 2.0?", "At 3."),)
    assert (record.src, record.tgt) == ((1, 2.0), (3,))


WRONG = [
    ({"task": None}, "task None; wanted text"),
    ({"video": "../a.mp4"}, "leaves"),
    ({"duration": "10"}, "duration '10'; wanted seconds"),
    ({"src": [1]}, "turn 0: more <vid> than times"),
    ({"src": None}, "turn 0: more <vid> than times"),
    ({"tgt": [3, 4]}, "fewer <vid> than times of the gpt"),
    ({"tgt": ["3"]}, "tgt \\['3'\\]; wanted seconds"),
    ({"tgt": [float("nan")]}, "wanted seconds"),
    ({"conversations": GOOD["conversations"][:1]}, "wanted human, gpt by turns"),
    ({"conversations": GOOD["conversations"][::-1]}, "turn 0 is .* wanted what the human says"),
]


@pytest.mark.parametrize(("change", "told"), WRONG)
def test_a_bad_record_is_told_or_set_aside(tmp_path, change, told):
    with pytest.raises(InputError, match=f"record 1: .*{told}"):
        _read(tmp_path, [GOOD, GOOD | change])
    bad = []
    assert len(_read(tmp_path, [GOOD, GOOD | change], bad)) == 1
    assert len(bad) == 1 and "record 1" in bad[0].reason


def test_a_file_of_something_else(tmp_path):
    with pytest.raises(InputError, match="holds a dict; wanted a list of records"):
        _read(tmp_path, {"a": 1})
    with pytest.raises(InputError, match="record 0: is a int"):
        _read(tmp_path, [1])
