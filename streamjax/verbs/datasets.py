"""Verbs that write what is trained on, and look at it."""

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


def data_pack(
    folder: Place[Path],
    out: Place[Path],
    /,
    tasks: tuple[str, ...] = (),
    split: tuple[str, ...] = ("train",),
    shards: int = 16,
    max_bad: float = 0.01,
):
    """Packs annotations of StreamFormer's pre-training tasks, with the encoded videos and pictures
    that they speak of, as ArrayRecord shards in one TFDS dataset folder. Interrupted, the same call
    goes on where it stopped.

    Example: streamjax data pack world/ packed/ --split train val --shards 64

    Args:
        folder: Annotations and media, laid out as `streamjax world` writes them.
        out: The folder to write; it must not be there, and appears when it is complete.
        tasks: Of kinetics, ssv2, retrieval, grounding, localization, vis, refvos; without it all
            that the folder has.
        split: The annotations' splits.
        shards: Files for each task and for the media.
        max_bad: The share of a task's records that may be left out, for want of their files.
    """
    from streamjax.data.packing import pack

    with counting("MB") as counted:
        manifest = pack(
            folder, out, tasks=tasks, splits=split, shards=shards, max_bad=max_bad,
            progress=lambda done, total: counted(done // 10**6, max(total // 10**6, 1)),
        )  # fmt: skip
    print(manifest.table())


def data_info(folder: Place[Path], /, check: bool = False):
    """Prints what a packed data set holds: a line for each split.

    Example: streamjax data info packed/ --check

    Args:
        folder: What `streamjax data pack` wrote.
        check: Read all of it, and compare it with the checksums.
    """
    from streamjax.data.packed import read_manifest, verify

    manifest = read_manifest(folder)
    if check:
        with counting("MB") as counted:
            verify(folder, lambda done, total: counted(done // 10**6, max(total // 10**6, 1)))
    print(manifest.table())
    if check:
        print("all checksums hold")
