"""Samples of an assistant's training: rows of dialogues about one clip."""

import dataclasses

import numpy as np
import pytest

from streamjax.data.assistant import DialogueSamples, longest, messages_of, read_clips, turns_in
from streamjax.data.chat import IGNORE, end_id, state_ids
from streamjax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def clips(small_world):
    world = small_world / "world"
    return read_clips(world / "streamo" / "train.json", root=world / "videos")


@pytest.fixture(scope="module")
def samples(small_world, clips):
    tokenizer = load_tokenizer(small_world / "tokenizer")
    made = DialogueSamples(tokenizer, 12, 0, dialogues=3, visual=4)
    made.length = longest(made, clips)
    return made


def test_clips_gather_their_records(clips):
    assert len(clips) == 6
    assert {r.content["kind"] for r in clips[0].records} == {
        "narrate", "caption", "light_now", "alert_action",
    }  # fmt: skip


def test_a_sample_is_one_clip_and_several_dialogues(clips, samples):
    sample = samples(clips[0], np.random.default_rng(0))
    turns = turns_in(clips[0].video_path)
    assert sample["frames"].shape == (12, 64, 64, 3)
    assert sample["tokens"].shape == sample["labels"].shape == (3, samples.length)
    assert ((sample["tokens"] == -200).sum(1) == 4 * turns).all()
    ends = (sample["labels"] == end_id(samples.tokenizer)).sum(1)
    assert (ends == turns).all()
    labelled = sample["labels"] != IGNORE
    assert np.array_equal(sample["tokens"][labelled], sample["labels"][labelled])
    assert samples.length % 16 == 0


def test_history_noise_changes_quiet_inputs_and_no_label(clips, samples):
    noisy = DialogueSamples(
        samples.tokenizer, 12, samples.length, dialogues=3, visual=4, history_noise=0.5
    )
    clean, blurred = (s(clips[0], np.random.default_rng(3)) for s in (samples, noisy))
    assert np.array_equal(clean["labels"], blurred["labels"])
    changed = clean["tokens"] != blurred["tokens"]
    assert changed.any()
    quiet = state_ids(samples.tokenizer)[:2]
    assert np.isin(clean["tokens"][changed], quiet).all()
    assert np.isin(blurred["tokens"][changed], quiet).all()


def test_contrasting_dialogues_ask_alike_for_different_things(clips, samples):
    light = [r for r in clips[0].records if r.content["kind"] == "light_now"]
    others = [r for r in clips[0].records if r.content["kind"] != "light_now"]
    turned = [
        dataclasses.replace(
            r, where=f"{r.where} {colour}",
            content={**r.content, "question": [{"content": f"Is it {colour}?", "time": "0"}]},
        )
        for r in light
        for colour in ("red", "green", "amber")
    ]  # fmt: skip
    clip = dataclasses.replace(clips[0], records=(*others, *turned))
    two = dataclasses.replace(samples, dialogues=2, contrast=True)
    rng, alike = np.random.default_rng(0), 0
    for _ in range(24):
        rows = two(clip, rng)["tokens"]
        assert not np.array_equal(*rows)
        asked = [two.tokenizer.decode([i for i in row if i >= 0]) for row in rows]
        pair = ["Is it" in words for words in asked]
        assert pair[0] <= pair[1]  # whoever drew one of the three has drawn two of them
        alike += all(pair)
    assert 6 <= alike < 24


def test_what_does_not_fit_says_so(clips, samples):
    short = DialogueSamples(samples.tokenizer, 4, samples.length, dialogues=1, visual=4)
    with pytest.raises(ValueError, match="seconds, wanted at most 4"):
        short(clips[0], np.random.default_rng(0))
    narrow = DialogueSamples(samples.tokenizer, 12, 16, dialogues=1, visual=4)
    with pytest.raises(ValueError, match="tokens, wanted at most 16"):
        narrow(clips[0], np.random.default_rng(0))


def test_messages_show_one_frame_a_turn(clips):
    turns = turns_in(clips[0].video_path)
    messages = messages_of(clips[0].records[0], turns)
    assert messages[0] == {"role": "system", "content": "Watch."}
    users = [m["content"] for m in messages if m["role"] == "user"]
    assert len(users) == turns and all(u.count("<image>") == 1 for u in users)
