"""Instructions about a clip: answers lie where the events are, and instructions contrast."""

import pytest

from streamjax.data.dialogue import to_stream
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.data.world import WorldConfig, turns_of, write_script
from streamjax.data.world_dialogues import KINDS, make_record, vocabulary

WORLD = WorldConfig()
SCRIPTS = [write_script(WORLD, "test", i) for i in range(40)]


def answers(script, kind, seed=0):
    record = make_record(script, kind, seed)
    messages = to_stream(record, script.seconds)["messages"]
    return [m["content"] for m in messages if m["role"] == "assistant"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_dialogues_of_one_turn_a_second(kind):
    made = [s for s in SCRIPTS if make_record(s, kind) is not None]
    assert len(made) > 30
    for script in made[:10]:
        assert make_record(script, kind) == make_record(script, kind)
        turns = answers(script, kind)
        assert len(turns) == script.seconds
        assert all(t.startswith(("</Silence>", "</Standby>", "</Response> ")) for t in turns)


def test_a_caption_stands_by_during_an_event_and_answers_in_the_second_after():
    for script in SCRIPTS:
        turns = answers(script, "caption")
        for event in script.events:
            first, stop = turns_of(event)
            assert turns[first:stop] == ["</Standby>"] * (stop - first)
            if stop < script.seconds:
                thing = script.things[event.thing]
                assert turns[stop].startswith(f"</Response> The {thing.name} ")


def test_instructions_on_one_clip_contrast():
    silent = spoken = 0
    for script in SCRIPTS:
        turns = answers(script, "alert_event")
        if set(turns) == {"</Silence>"}:
            silent += 1  # the target never appears
        else:
            spoken += 1
            assert turns != answers(script, "caption") or len(script.events) == 1
    assert silent >= 5 and spoken >= 5


def test_grounding_names_the_seconds():
    for script in SCRIPTS:
        for turn in answers(script, "ground"):
            if turn.startswith("</Response>"):
                first, stop = (int(w.strip("s.")) for w in (turn.split()[-3], turn.split()[-1]))
                assert (first, stop) in [turns_of(e) for e in script.events]


def test_the_vocabulary_spells_every_instruction_and_answer(tmp_path):
    tokenizer = build_word_tokenizer(vocabulary(WORLD), tmp_path, numbers=100, tags=30)
    for script in SCRIPTS[:10]:
        for kind in KINDS:
            record = make_record(script, kind)
            for entry in (*record["question"], *record["response"]):
                ids = tokenizer(entry["content"], add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == entry["content"]
                # One token a word and a mark or two: nothing is spelt letter by letter.
                assert len(ids) <= 2.2 * len(entry["content"].split()) + 2
