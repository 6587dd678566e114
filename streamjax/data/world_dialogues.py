"""Instructions and their timed answers for a clip of the embedded world, as Streamo raw records.

`KINDS` names the kinds of instruction. Each is a function `(script, rng) -> Record or None` (None
when the clip cannot carry it); a record is what `streamjax.data.dialogue.to_stream` reads. Times
in a record are Streamo's: T means the second `<{T-1}s-{T}s>`, a span makes Standby from `st_time`
to `end_time` and answers one second later, a lone `time` answers at once.

Instructions contrast on one clip: the same event is asked for by name, by action or not at all,
the target may never appear, and the light that turns green is not the light that turns red.
"""

from collections.abc import Callable

import numpy as np

from streamjax.data.world import (
    LIGHTS,
    VERBS,
    Event,
    Script,
    in_bowl,
    light_at,
    sentence,
    turns_of,
)

Record = dict
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def make_record(script: Script, kind: str, seed: int = 0) -> Record | None:
    """The record of one `kind` of instruction for a clip, or None when the clip cannot carry it.

    `seed` chooses among the targets; the same script, kind and seed give the same record.
    """
    order = list(KINDS).index(kind)
    rng = np.random.default_rng([script.config.seed, script.index, order, seed])
    made = KINDS[kind](script, rng)
    if made is None:
        return None
    task, question, answers = made
    return {
        "video_name": script.name,
        "video_path": f"{script.name}.mp4",
        "task_type": task,
        "source": "world",
        "kind": kind,
        "question": [{"content": question, "time": "0"}],
        "response": answers,
    }


def span(event: Event, content: str) -> dict:
    """Standby while the event lasts, `content` in the second after."""
    first, stop = turns_of(event)
    return {"content": content, "st_time": str(first + 1), "end_time": str(stop), "time": ""}


def instant(second: int, content: str) -> dict:
    """`content` in the second `<{second}s-...>`, no Standby before."""
    return {"content": content, "st_time": "", "end_time": "", "time": str(second + 1)}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _narrate(script: Script, rng):
    answers = [instant(turns_of(e)[1], _capital(sentence(script, e)) + ".") for e in script.events]
    return "Narration", "Narrate the video.", answers


def _caption(script: Script, rng):
    answers = [span(e, _capital(sentence(script, e)) + ".") for e in script.events]
    return "Event Caption", "Describe every event.", answers


def _steps(script: Script, rng):
    answers = [span(e, _capital(VERBS[e.action]) + ".") for e in script.events]
    return "Action Caption", "List the actions.", answers


def _ground(script: Script, rng):
    target = _target(script, rng, present=0.7)
    if target is None:
        return None
    name, matches = target
    answers = []
    for event in matches:
        first, stop = turns_of(event)
        answers.append(span(event, f"Given event occurred between {first}s to {stop}s."))
    return "Event Grounding", f"Localize the event: {name}", answers


def _alert_event(script: Script, rng):
    target = _target(script, rng, present=0.55)
    if target is None:
        return None
    name, matches = target
    answers = [span(e, _capital(sentence(script, e)) + ".") for e in matches]
    return "Time-sensitive QA", f"Tell me when {name}.", answers


def _alert_action(script: Script, rng):
    happened = [e.action for e in script.events]
    action = _pick(rng, happened, script.config.actions, present=0.6)
    answers = [
        span(e, _capital(sentence(script, e)) + ".") for e in script.events if e.action == action
    ]
    return "Time-sensitive QA", f"Tell me when something {VERBS[action]}.", answers


def _what_does(script: Script, rng):
    actors = sorted({e.thing for e in script.events})
    thing = int(_pick(rng, actors, tuple(range(len(script.things))), present=0.7))
    answers = [span(e, f"It {VERBS[e.action]}.") for e in script.events if e.thing == thing]
    return "Time-sensitive QA", f"What does the {script.things[thing].name} do?", answers


def _light_now(script: Script, rng):
    answers = [
        instant(int(np.ceil(change.time)), f"It is {change.colour}.") for change in script.lights
    ]
    return "Time-sensitive QA", "What colour is the light?", answers


def _light_turns(script: Script, rng):
    shown = [change.colour for change in script.lights[1:]]
    colour = _pick(rng, shown, tuple(LIGHTS), present=0.65)
    answers = [
        instant(int(np.ceil(change.time)), f"The light turns {colour}.")
        for change in script.lights[1:]
        if change.colour == colour
    ]
    return "Time-sensitive QA", f"Tell me when the light turns {colour}.", answers


def _bowl_count(script: Script, rng):
    answers = [instant(0, f"{_capital(NUMBERS[in_bowl(script, 0.0)])}.")]
    for event in script.events:
        if event.action == "drop":
            answers.append(span(event, f"{_capital(NUMBERS[in_bowl(script, event.end)])}."))
    return "Time-sensitive QA", "How many things are in the bowl?", answers


def _bowl_what(script: Script, rng):
    answers = [
        span(e, f"A {script.things[e.thing].name}.") for e in script.events if e.action == "drop"
    ]
    return "Time-sensitive QA", "What falls into the bowl?", answers


def _light_when(script: Script, rng):
    if not script.events:
        return None
    answers = [
        span(e, f"{_capital(light_at(script, float(turns_of(e)[1])))}.") for e in script.events
    ]
    return "Time-sensitive QA", "What colour is the light after each event?", answers


KINDS: dict[str, Callable] = {
    "narrate": _narrate,
    "caption": _caption,
    "steps": _steps,
    "ground": _ground,
    "alert_event": _alert_event,
    "alert_action": _alert_action,
    "what_does": _what_does,
    "light_now": _light_now,
    "light_turns": _light_turns,
    "bowl_count": _bowl_count,
    "bowl_what": _bowl_what,
    "light_when": _light_when,
}


def _pick(rng, happened, possible, *, present: float):
    """One of what happened, or with probability 1 - `present` one of what did not."""
    absent = [p for p in possible if p not in happened]
    if happened and (not absent or rng.random() < present):
        return happened[rng.integers(len(happened))]
    return absent[rng.integers(len(absent))]


def _target(script: Script, rng, *, present: float):
    """An event to ask for by its full name, and the events that match it (none when absent).

    An absent target is a near miss where one exists: the right thing with another action, or the
    right action with another thing.
    """
    if not script.events:
        return None
    event = script.events[rng.integers(len(script.events))]
    if event.other is not None or rng.random() < present:
        name = sentence(script, event)
        return name, [e for e in script.events if sentence(script, e) == name]
    happened = {sentence(script, e) for e in script.events}
    actions = [a for a in script.config.actions if a != "collide"]
    misses = [f"the {script.things[event.thing].name} {VERBS[a]}" for a in actions]
    misses += [f"the {thing.name} {VERBS[event.action]}" for thing in script.things]
    misses = [m for m in misses if m not in happened]
    return (misses[rng.integers(len(misses))], []) if misses else None


def vocabulary(script_config) -> tuple[str, ...]:
    """Every word that instructions and answers of a world can contain, sorted."""
    texts = [
        "Narrate the video.", "Describe every event.", "List the actions.",
        "Given event occurred between 1s to 2s.", "Localize the event:", "Tell me when something.",
        "What does the do?", "What colour is the light?", "It is.", "The light turns.",
        "How many things are in the bowl?", "What falls into the bowl?", "A thing.",
        "What colour is the light after each event?",
        *script_config.colours, *script_config.shapes, *LIGHTS, *NUMBERS,
        *(VERBS[a] for a in script_config.actions),
    ]  # fmt: skip
    words = {w.strip(".?:") for text in texts for w in text.split()}
    words = {w for w in words if w.isalpha()}
    return tuple(sorted(words | {_capital(w) for w in words}))
