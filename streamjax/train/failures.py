"""How a run ends that cannot go on: in one line, its last good step kept, what is known told."""

import errno
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from etils import epath

from streamjax.checkpoint import Checkpointer
from streamjax.data.pipeline import Used
from streamjax.errors import InputError, RunError

# What the batch of the step that went wrong was made of; of several processes "-<process>" each.
NAN_BATCH = "nan_batch"

Batch = Sequence[Used] | Sequence[tuple[str, Sequence[Used]]]


class NotFiniteError(FloatingPointError):
    """The loss or the gradient is no longer a number; the run's last checkpoint is good."""


def kept(checkpoints: Checkpointer) -> str:
    """Which step is safe."""
    good = checkpoints.latest
    return f"step {good.step} is kept" if good else "no checkpoint was written yet"


def not_finite(
    step: int, key: str, value: float, used: Batch, run: Path | epath.Path, safe: str
) -> NotFiniteError:
    """The error for a step whose loss or gradient is no number, its batch's records written down.

    run/nan_batch.json holds, for every sample of the batch, its row, its place in the run's order
    of samples, the index of its record in the source, and its file where that is known.
    """
    index, count = jax.process_index(), jax.process_count()
    path = run / (f"{NAN_BATCH}-{index}.json" if count > 1 else f"{NAN_BATCH}.json")
    told = {"step": step, key: str(value), "samples": [row for part in used for row in _rows(part)]}
    path.write_text(json.dumps(told, indent=1) + "\n")
    return NotFiniteError(
        f"step {step}: {key} is {value}, wanted a finite number; {safe}: lower optim.lr or "
        f"optim.clip, or look at the data of this step, {path}"
    )


@contextmanager
def told_when_full(checkpoints: Checkpointer) -> Iterator[None]:
    """What a full disk raises in the body becomes a RunError of one line that says what is safe."""
    orbax = logging.getLogger("absl")
    orbax.addFilter(_without_a_stack)
    try:
        yield
    except (InputError, RunError, FloatingPointError):
        raise
    except Exception as error:
        said = _full(error)
        if said is None:
            raise
        raise RunError(
            f"{checkpoints.directory.parent}: the disk is full ({said}); "
            f"{_kept_after(checkpoints)}: free some space, and the same command goes on"
        ) from None
    finally:
        orbax.removeFilter(_without_a_stack)


def _without_a_stack(record: logging.LogRecord) -> bool:
    """Orbax logs the stack of what fails in its threads; it comes to us as an exception anyway."""
    if record.exc_info:
        said = record.getMessage().splitlines()
        record.msg, record.args, record.exc_info = said[0][:300] if said else "", (), None
    return True


def _kept_after(checkpoints: Checkpointer) -> str:
    """`kept`, as the folders say: what was going on when the error came is not known."""
    with suppress(Exception):  # the save that goes on may be what failed
        checkpoints.wait()
    steps = [int(p.name) for p in checkpoints.directory.iterdir() if p.name.isdecimal()]
    return f"step {max(steps)} is kept" if steps else "no checkpoint was written yet"


def _full(error: BaseException | None) -> str | None:
    """What a full disk or quota says of itself, anywhere among the causes of an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error.strerror
        # Tensorstore, which writes the arrays, has no error of its own for it.
        found = re.search(r"No space left on device|Disk quota exceeded", str(error))
        if found:
            return found[0]
        error = error.__cause__ or error.__context__
    return None


def _rows(part: Used | tuple[str, Sequence[Used]]) -> list[dict[str, Any]]:
    if isinstance(part, Used):
        return [part._asdict()]
    task, used = part
    return [{"task": task, **one._asdict()} for one in used]
