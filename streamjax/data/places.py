"""Which samples of an endless order each process takes, carried over to any number of processes."""

import dataclasses
import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import grain
from etils import epath

from streamjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Places:
    """The samples that one process takes: numbers `me`, `me + ways`, ... of what is left.

    What is left are the places `loose`, and all from `base` on. Loose ones are those that some
    processes had not come to when others were further, where rows take as many samples as fit and
    the number of processes then changed.
    """

    me: int
    ways: int
    loose: tuple[int, ...] = ()
    base: int = 0

    def number(self, count: int) -> int:
        """The number in what is left of this process's `count`-th sample."""
        return self.me + count * self.ways

    def of(self, number: int) -> int:
        """The place in the endless order of a number in what is left."""
        loose = len(self.loose)
        return self.loose[number] if number < loose else self.base + number - loose


def carried_over(states: Sequence[Mapping[str, Any]], me: int, ways: int) -> dict[str, Any]:
    """The state of process `me` of `ways` out of those that all processes of a run had saved.

    As many processes as before go on where each was. More or fewer of them share out what nobody
    had taken, so that no sample is lost and none comes twice.

    Raises InputError when the states are not those of all processes.
    """
    by_share = {state["share"][0]: state for state in states}
    before = states[0]["share"][1]
    if sorted(by_share) != list(range(before)):
        raise InputError(
            f"the places in the data of shares {sorted(by_share)} were saved, wanted those of all "
            f"{before}: the checkpoint is not whole"
        )
    if before == ways:
        return dict(by_share[me])
    first = states[0]
    old = [Places(i, before, tuple(first["loose"]), first["base"]) for i in range(before)]
    coming = [places.number(by_share[places.me]["taken"]) for places in old]
    # Below the first of these numbers all are taken, from the last one on none.
    free = [n for n in range(min(coming), max(coming)) if n >= coming[n % before]]
    end = max(max(coming), len(first["loose"]))
    loose = [old[0].of(n) for n in [*free, *range(max(coming), end)]]
    totals = {key: sum(state[key] for state in by_share.values()) for key in ("seen", "skipped")}
    return {
        # Only their sums over processes mean something: shared out evenly.
        **{key: total // ways + (me < total % ways) for key, total in totals.items()},
        "taken": 0,
        "share": [me, ways],
        "loose": loose,
        "base": old[0].of(end),
    }


class Resumable(grain.DatasetIterator):
    """An iterator whose place every process saves, and any number of processes goes on from."""

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes on from the states that all processes of a run had saved."""
        raise NotImplementedError

    def set_state(self, state: dict[str, Any]) -> None:
        self.set_states([state])

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """What Orbax calls: grain's own looks for the file of this process among as many others."""

        async def read() -> None:
            files = sorted(directory.glob("process_*.json"))
            self.set_states([json.loads(file.read_text()) for file in files])

        return read()
