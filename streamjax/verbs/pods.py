"""The verb about machines that one does not have: whether a recipe fits a pod, and how fast."""

import json
import sys
from typing import Annotated

import tyro

from streamjax.verbs.shared import Place


def fit(
    recipe: Place[str],
    overrides: Place[tuple[str, ...]] = (),
    /,
    *,
    topology: str,
    stream: bool = False,
    capacity: int = 16384,
    search: int = 4,
    thorough: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
):
    """Compiles a recipe's train step for a TPU pod, on any Linux machine without a TPU (libtpu:
    pip install 'streamjax[fit]'), or partitions it for GPUs. Says whether it fits, the bytes on
    each device by kind, operations, bytes over links by mesh axis, the step time and MFU of a
    roofline, weak scaling, and the largest batch. Published recipes need no weights and no data.
    The exit code is 1 when it does not fit.

    Example: streamjax fit streamo_qwen25vl_7b mesh.fsdp=16 mesh.tensor=4 accumulate=32
        --topology v5p:4x4x4

    Example: streamjax fit streamo_qwen25vl_3b --stream --topology v5e:1x1

    Example: streamjax fit streamformer_pretrain --topology h100:8 --search 0 --json

    Args:
        recipe: A recipe's file, or the name of one in configs/.
        overrides: As of train: what the recipe asks for, and dotted.key=value.
        topology: A slice of TPUs by its chips (v5e:4x4, v5p:4x4x4, v6e:8x8), or GPUs by their
            number (h100:8; gpu:8 is the same).
        stream: A turn of a streaming session in the place of the train step.
        capacity: Tokens that such a stream remembers.
        search: Further compiles that may go into finding the largest batch.
        thorough: Compile as a run on TPUs would, for many minutes; without it in a hurry, into a
            less clever schedule.
        as_json: One line of JSON in the place of the text.
    """
    from rich.console import Console

    from streamjax.fit import CompileError, fit

    console = Console(stderr=True)
    with console.status("preparing") as shown:

        def tell(text: str) -> None:
            shown.update(text)
            if not console.is_terminal:
                print(text, file=sys.stderr)

        try:
            report = fit(
                recipe, topology, overrides=overrides, stream=stream, capacity=capacity,
                search=search, thorough=thorough, progress=tell,
            )  # fmt: skip
        except CompileError as error:
            print(f"streamjax: {error}", file=sys.stderr)
            raise SystemExit(1) from None
    print(json.dumps(report.json()) if as_json else report.text())
    if not report.fits:
        raise SystemExit(1)
