"""A generator that gives draws listed beforehand and checks that they are asked for as listed."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class ListedDraws(np.random.Generator):
    """draws: [what, range, value] in order, as the golden case of data sampling has them."""

    def __init__(self, draws: Sequence[Any]):
        super().__init__(np.random.PCG64(0))
        self.left = list(draws)

    def finished(self) -> None:
        assert not self.left, f"not drawn: {self.left}"

    def integers(self, low: Any, high: Any = None, size: Any = None, endpoint: bool = False) -> Any:
        if size is not None:  # upstream drew these at once
            what, limits, values = self.left.pop(0)
            assert what.startswith("np.random.randint") and (low, high) == (0, *limits)
            assert len(values) == size
            return np.array(values)
        if np.ndim(low) == 0:
            return self._one(int(low), int(high), endpoint)
        pairs = zip(np.asarray(low).tolist(), np.asarray(high).tolist(), strict=True)
        return np.array([self._one(a, b, endpoint) for a, b in pairs])

    def random(self) -> float:
        what, _, value = self.left.pop(0)
        assert what == "random.random"
        return value

    def uniform(self, low: float, high: float) -> float:
        what, limits, value = self.left.pop(0)
        assert what == "random.uniform" and limits == [low, high]
        return value

    def _one(self, low: int, high: int, endpoint: bool) -> int:
        what, limits, value = self.left.pop(0)
        if what.startswith("random.randint"):
            assert endpoint and limits == [low, high]
            return value
        assert what == "random.choice" and not endpoint
        if limits[0] == "range":
            assert limits[1:] == [low, high]
            return value
        assert (low, high) == (0, len(limits))
        return limits.index(value)
