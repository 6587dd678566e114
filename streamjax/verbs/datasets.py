"""Verbs that write what is trained on."""

from pathlib import Path

from streamjax.data.world import WorldConfig
from streamjax.verbs.shared import Bare, Place, counting

_WORLD = WorldConfig()


def world(
    folder: Place[Path],
    /,
    config: Bare[WorldConfig] = _WORLD,
    train: int = 200,
    val: int = 20,
    test: int = 20,
    novel: int = 20,
    workers: int = 2,
):
    """Writes the embedded world: mp4 videos, and their annotations in the formats of Streamo's
    records and of StreamFormer's six pre-training tasks. The same arguments write the same world.

    Example: streamjax world world/ --train 500 --height 96 --width 96 --seconds 20 40

    Args:
        folder: The folder to write to; what an interrupted call has written there is kept.
        train: Clips for training.
        val: Clips for validation.
        test: Clips for testing.
        novel: Clips for testing that show combinations of colour, shape and action never seen.
        workers: Processes that draw and encode.
    """
    from streamjax.data.world_files import write_world

    for split, count in (("train", train), ("val", val), ("test", test), ("novel", novel)):
        if count:
            with counting(f"{split} clips", count) as counted:
                write_world(folder, split, count, config, workers=workers, progress=counted)
            print(f"{folder}: {count} clips of {split}")
