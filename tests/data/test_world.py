"""The embedded world: a seed gives one film, and the film shows what the script says."""

import dataclasses

import numpy as np
import pytest

from streamjax.data.world import (
    SPLITS,
    VERBS,
    WorldConfig,
    boxes_of,
    in_bowl,
    is_novel,
    lamp_mask,
    light_at,
    render,
    render_masks,
    sentence,
    turns_of,
    write_script,
)
from streamjax.errors import InputError

WORLD = WorldConfig()
FULL = WorldConfig(
    actions=tuple(VERBS), shapes=("circle", "square", "triangle", "star"), events=(4, 6),
    seconds=(24, 28), things=(3, 5),
)  # fmt: skip


def test_the_same_seed_gives_the_same_script_and_pixels():
    first, second = (write_script(WORLD, "train", 7) for _ in range(2))
    assert first == second
    assert np.array_equal(render(first), render(second))
    assert first != write_script(dataclasses.replace(WORLD, seed=1), "train", 7)


def test_splits_share_no_clip():
    scripts = [
        write_script(WORLD, split, i) for split in ("train", "val", "test") for i in range(30)
    ]
    told = [(s.things, s.places, s.events) for s in scripts]
    assert len(set(told)) == len(told)


def test_held_out_combinations_are_seen_in_novel_alone_and_their_pairs_everywhere():
    def shown(split):
        return {
            (s.things[e.thing], e.action)
            for s in (write_script(WORLD, split, i) for i in range(120))
            for e in s.events
        }

    seen = shown("train") | shown("val") | shown("test")
    assert not any(is_novel(WORLD, *combination) for combination in seen)
    for index in range(20):
        script = write_script(WORLD, "novel", index)
        assert any(is_novel(WORLD, script.things[e.thing], e.action) for e in script.events)
    pairs = {(t.colour, a) for t, a in seen} | {(t.shape, a) for t, a in seen}
    assert len(pairs) == (len(WORLD.colours) + len(WORLD.shapes)) * len(WORLD.actions)


@pytest.mark.parametrize("config", [WORLD, FULL], ids=["demo", "everything"])
def test_every_second_of_an_event_looks_different_and_the_one_after_does_not(config):
    """That an event is over can be decided from the frames so far, without looking ahead."""
    changed = still = 0
    for index in range(12):
        script = write_script(dataclasses.replace(config, light_changes=(0, 0)), "train", index)
        frames = render(script, range(script.seconds)).astype(int)
        moves = np.abs(np.diff(frames, axis=0)).max((1, 2, 3)) > 12
        for event in script.events:
            first, stop = turns_of(event)
            assert moves[first - 1 : stop - 1].all(), (script.name, event)
            changed += stop - first
            if stop < script.seconds:
                assert not moves[stop - 1], (script.name, event)
                still += 1
    assert changed > 50 and still > 20


def test_every_action_happens_in_a_world_that_allows_it():
    done = {e.action for i in range(60) for e in write_script(FULL, "train", i).events}
    assert done == set(VERBS)


def test_masks_cover_the_things_where_they_are_painted():
    script = write_script(WORLD, "train", 3)
    frames, masks = render_masks(script, [0.0])
    for thing, mask in zip(script.things, masks[:, 0], strict=True):
        assert mask.sum() > 60, thing
        paint = np.median(frames[0][mask], axis=0)
        channel = {"red": 0, "green": 1, "blue": 2}.get(thing.colour)
        assert channel is None or paint.argmax() == channel
    assert not (masks[:, 0].sum(0) > 1).any()  # a pixel shows one thing
    x0, y0, x1, y1 = boxes_of(masks)[0, 0].astype(int)
    assert masks[0, 0, y0:y1, x0:x1].sum() == masks[0, 0].sum()
    assert lamp_mask(WORLD).sum() > 30


def test_the_light_and_the_bowl_follow_the_script():
    script = next(
        s for s in (write_script(WORLD, "train", i) for i in range(50))
        if any(e.action == "drop" for e in s.events) and len(s.lights) > 1
    )  # fmt: skip
    drop = next(e for e in script.events if e.action == "drop")
    assert in_bowl(script, drop.start) + 1 == in_bowl(script, drop.end)
    change = script.lights[1]
    assert light_at(script, change.time - 0.1) == script.lights[0].colour
    assert light_at(script, change.time) == change.colour
    lamp = lamp_mask(WORLD)
    before, after = render(script, [change.time - 0.1, change.time])
    assert np.abs(before[lamp].astype(int) - after[lamp]).max() > 30


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 200), (65, 47), (128, 224)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_any_size_renders(size):
    config = WorldConfig(height=size[0], width=size[1], seconds=(5, 6), events=(1, 1))
    frames = render(write_script(config, "train", 0))
    assert frames.shape[1:] == (*size, 3) and frames.dtype == np.uint8


def test_sentences_name_the_thing_and_what_it_does():
    script = write_script(WORLD, "train", 0)
    event = script.events[0]
    thing = script.things[event.thing]
    assert sentence(script, event) == f"the {thing.colour} {thing.shape} {VERBS[event.action]}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colours": ("red", "mauve")}, "'mauve' is not one of red"),
        ({"actions": ("fly",)}, "'fly' is not one of move"),
        ({"seconds": (9, 3)}, "9..3 is not a range"),
        ({"height": 0}, "0x64"),
        ({"duration": (1, 2)}, "needs 2 s"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(changes, told):
    with pytest.raises(InputError, match=told):
        dataclasses.replace(WORLD, **changes)


def test_an_unknown_split_and_an_empty_world_are_named():
    with pytest.raises(InputError, match="'dev' is not one of " + ", ".join(SPLITS)):
        write_script(WORLD, "dev", 0)
    with pytest.raises(InputError, match="finds no clip"):
        write_script(dataclasses.replace(WORLD, hold_out=1), "train", 0)
