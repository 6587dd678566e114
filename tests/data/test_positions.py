"""M-RoPE positions: the original's numbers, a walk token by token, and what is refused."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamjax.data.positions import mrope_positions
from streamjax.errors import InputError

IMAGE, VIDEO = 242, 243
IDS = {"image_id": IMAGE, "video_id": VIDEO}
FAMILIES = {"qwen2_5_vl": 2, "qwen2_5_vl_tied_sharded": 2, "qwen3_vl": None}


@pytest.fixture(scope="module")
def cases(golden):
    return load_file(golden / "positions" / "io.safetensors")


@pytest.fixture(scope="module")
def streamo(golden):
    return json.loads((golden / "streamo" / "e_mrope.json").read_text())


@pytest.fixture(scope="module")
def dialogues(golden, streamo):
    """name -> (tokens [1 l], grid, positions [3 1 l], delta)."""
    tokens = json.loads((golden / "streamo" / "c_tokens.json").read_text())
    told = {f"c_tokens.json:{case['name']}": case["input_ids"] for case in tokens["dialogues"]}
    return {
        case["name"]: (
            np.array([case["input_ids"] if "input_ids" in case else told[case["input_ids_from"]]]),
            np.array(case["image_grid_thw"]),
            np.array(case["position_ids"])[:, None],
            case["mrope_delta"],
        )
        for case in streamo["cases"]
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["stream5", "live", "multi"])
def test_golden_pictures(cases, family, case):
    grid = cases[f"{family}/{'multi' if case == 'multi' else 'stream5'}.image_grid_thw"]
    for rule in ("max", "tf5_23"):
        found, delta = mrope_positions(
            cases[f"{family}/{case}.input_ids"], grid, tokens_per_second=FAMILIES[family],
            rule=rule, **IDS,
        )  # fmt: skip
        np.testing.assert_array_equal(found, cases[f"{family}/{case}.position_ids"])
        np.testing.assert_array_equal(delta, cases[f"{family}/{case}.rope_deltas"])
        assert found.dtype == delta.dtype == np.int32


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_golden_left_padding(cases, family):
    tokens, mask = (cases[f"{family}/batch.{k}"] for k in ("input_ids", "attention_mask"))
    grid = cases[f"{family}/stream5.image_grid_thw"][:1]
    wanted = cases[f"{family}/batch.position_ids"]
    found, delta = mrope_positions(tokens, grid, mask=mask, rule="tf5_23", **IDS)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(delta, cases[f"{family}/batch.rope_deltas"])
    found, delta = mrope_positions(tokens, grid, mask=mask, **IDS)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(delta[:, 0], wanted.max((0, 2)) + 1 - tokens.shape[1])


@pytest.mark.parametrize("case", ["video_short", "video_long"])
@pytest.mark.parametrize(("rule", "name"), [("max", "max_rule"), ("tf5_23", "tf5_23")])
def test_golden_videos(cases, case, rule, name):
    found, _ = mrope_positions(
        cases[f"qwen2_5_vl/{case}.input_ids"], cases[f"qwen2_5_vl/{case}.video_grid_thw"],
        seconds_per_grid=cases[f"qwen2_5_vl/{case}.second_per_grid_ts"], tokens_per_second=2,
        rule=rule, **IDS,
    )  # fmt: skip
    np.testing.assert_array_equal(found, cases[f"qwen2_5_vl/{case}.position_ids_{name}"])


def test_golden_video_of_stamped_slices(cases):
    found, _ = mrope_positions(
        cases["qwen3_vl/video.input_ids"], cases["qwen3_vl/video.video_grid_thw"],
        tokens_per_second=None, **IDS,
    )  # fmt: skip
    np.testing.assert_array_equal(found, cases["qwen3_vl/video.position_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_what_is_left_after_eviction_counts_anew(cases, family):
    _, start, stop, *_ = cases[f"{family}/evict.spec_sink_evictstart_evictend_lastturnstart_delta"]
    tokens = cases[f"{family}/live.input_ids"]
    gone = (tokens[0, start:stop] == IMAGE).sum()
    grid = cases[f"{family}/stream5.image_grid_thw"]
    first = np.flatnonzero(np.cumsum(grid.prod(1) // 4) == gone)[0] + 1
    found, _ = mrope_positions(np.delete(tokens, np.s_[start:stop], axis=1), grid[first:], **IDS)
    np.testing.assert_array_equal(found, cases[f"{family}/evict.shrink_position_ids"])


def test_golden_dialogues(dialogues):
    assert len(dialogues) == 10
    for name, (tokens, grid, wanted, wanted_delta) in dialogues.items():
        found, delta = mrope_positions(tokens, grid, image_id=151655, video_id=151656)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert delta.tolist() == [[wanted_delta]]


def test_golden_left_padded_dialogues(streamo, dialogues):
    batch = streamo["left_padded_batch"]
    mask = np.array(batch["attention_mask"])
    tokens = np.full(mask.shape, 151643)
    for row, name in enumerate(batch["members"]):
        tokens[row, mask[row] == 1] = dialogues[name][0]
    grid = np.concatenate([dialogues[name][1] for name in batch["members"]])
    found, delta = mrope_positions(tokens, grid, image_id=151655, mask=mask)
    wanted = np.where(mask, np.array(batch["position_ids"]), 0)
    np.testing.assert_array_equal(found, wanted)
    assert delta[:, 0].tolist() == batch["mrope_delta"]


def test_packed_dialogues_start_over(dialogues):
    names = list(dialogues)
    rows = [names[:4], names[4:]]
    length = max(sum(dialogues[n][0].shape[1] for n in row) for row in rows)
    tokens, segments = np.zeros((2, length), int), np.full((2, length), -1)
    wanted = np.zeros((3, 2, length), int)
    for b, row in enumerate(rows):
        start = 0
        for i, name in enumerate(row):
            stop = start + dialogues[name][0].shape[1]
            tokens[b, start:stop], segments[b, start:stop] = dialogues[name][0], i
            wanted[:, b, start:stop] = dialogues[name][2][:, 0]
            start = stop
    grid = np.concatenate([dialogues[n][1] for n in names])
    found, _ = mrope_positions(tokens, grid, image_id=151655, mask=segments >= 0, segments=segments)
    np.testing.assert_array_equal(found, wanted)


def walk(tokens, grid, seconds, per_second, rule):
    """The rule as specs/vlm.md tells it, one token after another."""
    at, cursor, out, grid, seconds = 0, 0, [], list(grid), list(seconds)
    while at < len(tokens):
        if tokens[at] not in (IMAGE, VIDEO):
            out.append([cursor] * 3)
            at, cursor = at + 1, cursor + 1
            continue
        t, h, w = np.array(grid.pop(0)) // [1, 2, 2]
        scale = seconds.pop(0) * per_second if tokens[at] == VIDEO else 1
        block = [[int(i * scale), y, x] for i in range(t) for y in range(h) for x in range(w)]
        out += [[cursor + o for o in offset] for offset in block]
        at += len(block)
        cursor += max(h, w) if rule == "tf5_23" else 1 + max(max(o) for o in block)
    return np.array(out).T


@pytest.mark.parametrize("rule", ["max", "tf5_23"])
def test_equals_a_walk_on_random_dialogues(rng, rule):
    rows, grids, seconds = [], [], []
    wanted = []
    for _ in range(6):
        tokens, grid, own = [], [], []
        for _ in range(5):
            tokens += [7] * rng.integers(0, 4)
            t, h, w = rng.integers(1, 4, 3)
            video = bool(rng.integers(2))
            t = t if video else 1
            own += [float(rng.choice([0.5, 0.75, 1, 2]))] * video
            grid.append([t, 2 * h, 2 * w])
            tokens += [VIDEO if video else IMAGE] * (t * h * w)
        wanted.append(walk(tokens, grid, own, 4, rule))
        rows.append(tokens), grids.extend(grid), seconds.extend(own)
    length = max(map(len, rows))
    mask = np.array([[False] * (length - len(r)) + [True] * len(r) for r in rows])
    tokens = np.zeros((6, length), int)
    tokens[mask] = np.concatenate(rows)
    found, delta = mrope_positions(tokens, grids, mask=mask, seconds_per_grid=seconds,
                                   tokens_per_second=4, rule=rule, **IDS)  # fmt: skip
    for b in range(6):
        np.testing.assert_array_equal(found[:, b, mask[b]], wanted[b])
    assert not found[:, ~mask].any()
    assert delta.shape == (6, 1)


def test_a_long_row_takes_milliseconds():
    turn = [5] * 12 + [IMAGE] * 120
    tokens = np.array([turn * 250])
    grid = np.tile([1, 16, 30], (250, 1))
    mrope_positions(tokens, grid, **IDS)
    begin = time.perf_counter()
    found, _ = mrope_positions(tokens, grid, **IDS)
    assert time.perf_counter() - begin < 0.25  # 5 ms on a quiet core
    assert found.max() == 250 * 27 - 1


def test_text_alone_needs_no_grid():
    found, delta = mrope_positions(np.zeros((2, 3), int), **IDS)
    np.testing.assert_array_equal(found, np.tile(np.arange(3), (3, 2, 1)))
    assert delta.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("tokens", "grid", "more", "told"),
    [
        ([IMAGE] * 3, [[1, 4, 4]], {}, "3 placeholders for 4 visual tokens of 1 grid rows"),
        ([IMAGE] * 4, None, {}, "4 placeholders for 0 visual tokens of 0 grid rows"),
        ([1] * 4, [[1, 4, 4]], {}, "0 placeholders for 4 visual tokens"),
        ([IMAGE] * 2 + [1] + [IMAGE] * 2, [[1, 4, 4]], {}, "row 0 wants 4 placeholders in one run, found 2"),
        ([IMAGE] * 2 + [VIDEO] * 2, [[1, 4, 4]], {}, "found 2"),
        ([IMAGE] * 4, [[1, 4, 4]], {"segments": [[0, 0, 1, 1]]}, "found 2"),
        ([IMAGE] * 4, [[1, 4, 3]], {}, "[1, 4, 3], wanted patches (t, rows, columns)"),
        ([IMAGE] * 4, [[0, 4, 4]], {}, "[0, 4, 4], wanted patches (t, rows, columns)"),
        ([IMAGE] * 4, [4, 4], {}, "grid has shape [2], wanted [images, 3]"),
        ([VIDEO] * 4, [[1, 4, 4]], {"seconds_per_grid": [1.0, 2.0]}, "2 values, wanted one per video: 1"),
        ([1], None, {"rule": "last"}, "rule is 'last', wanted one of max, tf5_23"),
        ([1], None, {"mask": [[1, 1]]}, "another shape than tokens [1, 1]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tokens, grid, more, told):
    with pytest.raises(InputError) as error:
        mrope_positions(np.array([tokens]), grid, **IDS, **more)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_tokens_are_rows():
    with pytest.raises(InputError, match=r"shape \[3\], wanted \[b l\]"):
        mrope_positions(np.zeros(3, int), **IDS)
