"""How many rows to try next, and what compilers say when memory runs out."""

import dataclasses
import math

import pytest

from streamjax.fit import child


def found_by(capacity, unit, top, start, compiles):
    """Runs the search against a memory of `capacity` rows at 1 byte each."""
    fits, fails = {}, set()
    (fits.update({start: float(start)}) if start <= capacity else fails.add(start))
    while (
        compiles and (rows := child.next_rows(fits, fails, unit, top, float(capacity))) is not None
    ):
        compiles -= 1
        assert rows % unit == 0 and 0 < rows <= top
        if rows <= capacity:
            fits[rows] = float(rows)
        else:
            fails.add(rows)
    return max(fits, default=0), compiles


@pytest.mark.parametrize(
    "capacity, unit, top, start, wanted",
    [
        (70, 8, 512, 8, 64),  # memory as a line: doubled once, then where the line says
        (512, 8, 64, 8, 64),  # never more than a step has
        (4, 1, 512, 64, 4),  # from what does not fit down
        (3, 4, 512, 4, 0),  # not even one row on each device
    ],
)
def test_the_largest_batch_is_found_in_few_compiles(capacity, unit, top, start, wanted):
    best, left = found_by(capacity, unit, top, start, compiles=8)
    assert best == wanted and left > 0


def test_more_rows_at_a_time_are_fewer_micro_batches():
    @dataclasses.dataclass(frozen=True)
    class Config:
        data: object
        batch_size: int
        accumulate: int

    one = Config(data=None, batch_size=128, accumulate=32)
    assert child.with_rows(one, 8) == Config(None, 128, 16)
    assert child.with_rows(one, 128) == Config(None, 128, 1)
    several = Config(data={"a": 1, "b": 2}, batch_size=128, accumulate=2)
    assert child.with_rows(several, 256) == Config(several.data, 256, 2)


@pytest.mark.parametrize(
    "text, needed, of",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (28.74G) exceeds available HBM (15.75G).\nmore", 28.74, 15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
            "hbm. Used 20.70G of 15.75G hbm. Exceeded hbm capacity by 4.95G.", 20.70, 15.75,
        ),
    ],
)  # fmt: skip
def test_what_the_compiler_says_of_memory(text, needed, of):
    found = child.out_of_memory(text)
    assert found is not None
    assert found[0] == pytest.approx(needed * 2**30) and found[1] == pytest.approx(of * 2**30)
    assert "\n" not in found[2]


def test_other_failures_are_no_question_of_memory():
    assert child.out_of_memory("INTERNAL: Mosaic failed to compile") is None
    found = child.out_of_memory("RESOURCE_EXHAUSTED: said in new words")
    assert found is not None and math.isnan(found[0])
