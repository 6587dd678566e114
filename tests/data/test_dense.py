"""Words per patch and per frame, read from annotation files, against the script behind them."""

import numpy as np
import pytest

from streamjax.data.annotations.files import read_label_sets
from streamjax.data.dense import (
    DenseSamples,
    clip_frames,
    frame_labels,
    patch_labels,
    read_dense,
    read_words,
)
from streamjax.data.world import VERBS, light_at, render_masks, turns_of, write_script
from streamjax.data.world_files import read_manifest

SECONDS = 12


@pytest.fixture(scope="module")
def dense(small_world):
    world = small_world / "world"
    labels = read_label_sets(world / "vis" / "label2id.json")["World"]
    return read_manifest(world)[0], read_words(world), labels, read_dense(world, "train")


def test_frames_name_the_actor_its_action_and_the_light(dense):
    config, words, labels, clips = dense
    for index, clip in enumerate(clips):
        script = write_script(config, "train", index)
        assert clip.path.stem == script.name
        found = frame_labels(clip, labels, words, frames=SECONDS)
        assert (found[:, script.seconds :] == -1).all()
        wanted = np.zeros((6, script.seconds), int)
        for event in script.events:
            first, stop = turns_of(event)
            thing, verb = script.things[event.thing], words.action.index(VERBS[event.action]) + 1
            wanted[0, first : stop + 1] = words.colour.index(thing.colour) + 1
            wanted[1, first : stop + 1] = words.shape.index(thing.shape) + 1
            wanted[2, first:stop] = verb
            wanted[3, stop : stop + 1] = verb
        shown = [words.colour.index(light_at(script, s)) + 1 for s in range(script.seconds)]
        wanted[4] = shown
        wanted[5, 1:] = np.where(np.diff(shown) != 0, shown[1:], 0)
        np.testing.assert_array_equal(found[:, : script.seconds], wanted)


def test_patches_carry_the_words_of_what_covers_them(dense):
    config, words, labels, clips = dense
    script = write_script(config, "train", 0)
    found = patch_labels(clips[0], labels, words, frames=SECONDS, patch=16)
    _, masks = render_masks(script, [0.0])
    blocks = masks[:, 0].reshape(-1, 4, 16, 4, 16).mean((2, 4)).reshape(-1, 16)
    for patch in range(16):
        thing = blocks[:, patch].argmax()
        if blocks[thing, patch] > 0.3:
            assert words.colour[found[0, 0, patch] - 1] == script.things[thing].colour
            assert words.shape[found[1, 0, patch] - 1] == script.things[thing].shape
    acting = found[2, : script.seconds].max(1) > 0
    busy = np.zeros(script.seconds, bool)
    for event in script.events:
        busy[slice(*turns_of(event))] = True
    assert not (acting & ~busy).any() and acting.sum() >= busy.sum() - 1


def test_samples_have_one_shape_and_pad_with_the_last_frame(dense):
    _, words, labels, clips = dense
    sample = DenseSamples(labels, words, SECONDS, 16)
    shapes = {
        tuple((k, v.shape) for k, v in sample(c, np.random.default_rng(0)).items()) for c in clips
    }
    assert len(shapes) == 1
    frames = clip_frames(clips[0].path, SECONDS)
    assert frames.shape == (SECONDS, 64, 64, 3)
    assert np.array_equal(frames[-1], frames[-2])  # no clip lasts that long
