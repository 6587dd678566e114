"""Verbs about this machine: how fast it is, and what it has."""

import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Literal

from streamjax.errors import InputError
from streamjax.verbs.shared import Place, counting

Remat = Literal["nothing_saveable", "attention_saveable", "dots_with_no_batch_dims_saveable"]
Family = Literal["streamformer", "llava_streamformer", "qwen2_5_vl", "qwen3_vl", "internvl"]


def bench(
    what: Place[Literal["encode", "stream", "train"]],
    /,
    window: tuple[int, ...] = (16, 64),
    family: Family | None = None,
    context: tuple[int, ...] = (1024, 4096, 8192),
    dtype: Literal["float32", "bfloat16"] = "float32",
    size: Literal["base", "tiny", "3B", "7B"] = "base",
    frames: int = 20,
    batch: tuple[int, ...] = (1,),
    clip: int = 16,
    steps: int = 3,
    remat: Remat | None = None,
    peers: bool = False,
):
    """Times a streaming frame beside its floor: the model's matrix products alone, and the bytes of
    its cache at this machine's read bandwidth, measured in the same run. Medians, in milliseconds.
    Of the other families it times a silent turn under each window policy. A training step stands
    beside its products alone (StreamFormer), and the share of the device's peak that it reaches is
    told (MFU).

    Example: streamjax bench encode --window 16 64 --dtype bfloat16
    Example: streamjax bench stream --family qwen2_5_vl --context 1024 4096 8192 --peers
    Example: streamjax bench train --family streamformer --batch 1 --clip 8 --peers
    Example: streamjax bench train --family qwen2_5_vl --context 1024 2048 --peers
    Example: streamjax bench train --family qwen2_5_vl --size 3B --dtype bfloat16 --context 8192

    Args:
        what: A StreamFormer (encode), an assistant with tower and language model (stream), or a
            training step: forward, backward, AdamW (train), of StreamFormer's pre-training or
            of Streamo's.
        window: Frames (encode) or turns (stream) remembered; a row each.
        family: The assistant's family; those of real video LLMs take --context for --window.
            encode knows StreamFormer only, train that and qwen2_5_vl.
        context: Tokens remembered, for those families; a table each. Of a row that is trained on.
        dtype: Of the parameters and the computation; a training's parameters stay float32.
        size: base is StreamFormer's own (224 pixels, 12 layers of 768) and of a video LLM what one
            core trains, tiny a smoke test; 3B and 7B are Qwen2.5-VL's own, to be trained.
        frames: Frames timed for each row.
        batch: Clips or rows of a training step; a line each.
        clip: Frames of a clip that is trained on.
        steps: Training steps timed for each row; one of base takes seconds to minutes on a CPU.
        remat: What layers of qwen2_5_vl keep when they are trained; by default all, of 3B and 7B
            what attention gives.
        peers: Runs a script of the repository's benchmarks/ instead: vlm_stream.py times
            transformers (growing cache, and reading the window again), streamformer_train.py the
            original's step in PyTorch, vlm_train.py transformers' step, on the same weights in the
            same run.
    """
    own = "llava_streamformer" if what == "stream" else "streamformer"
    family = family or own
    if min(window, default=0) < 2 or min(frames, clip, steps, *context, *batch) < 1:
        raise InputError(
            f"--window {window} --context {context} --frames {frames} --batch {batch} --clip "
            f"{clip} --steps {steps}: wanted windows >= 2, the others >= 1"
        )
    if size in ("3B", "7B") and (what, family) != ("train", "qwen2_5_vl"):
        raise InputError(f"--size {size} goes with: bench train --family qwen2_5_vl")
    if (what, family) == ("train", "qwen2_5_vl"):
        _bench_train_vlm(batch, context, steps, dtype, size, remat, peers)
    elif what == "stream" and family not in ("streamformer", "llava_streamformer"):
        _bench_family(family, context, dtype, size, frames, peers)
    elif family != own or (peers and what != "train"):
        raise InputError(
            "--peers and --family go with: bench stream --family qwen2_5_vl, or bench train of "
            "streamformer or qwen2_5_vl"
        )
    elif what == "train":
        _bench_train(batch, clip, steps, dtype, size, peers)
    else:
        _bench_frame(what, window, dtype, size, frames)


def _bench_frame(what, window, dtype, size, frames):
    import jax.numpy as jnp

    from streamjax.bench import frame

    run = frame.bench_encode if what == "encode" else frame.bench_stream
    rows = []
    with counting("windows", len(window)) as counted:
        for size_of_window in window:
            rows.append(run(size, jnp.dtype(dtype), size_of_window, frames))
            counted(len(rows), len(window))
    print(frame.table(rows, "frames" if what == "encode" else "turns"))


def _bench_train(batch, clip, steps, dtype, size, peers):
    import jax.numpy as jnp

    from streamjax.bench import train

    if peers:
        if dtype != "float32":
            raise InputError(f"--peers --dtype {dtype}: a training is compared in float32")
        for clips in batch:
            _run_script(
                "benchmarks/streamformer_train.py", "--size", size, "--batch", clips,
                "--frames", clip, "--steps", steps,
            )  # fmt: skip
        return
    rows = []
    with counting("batches", len(batch)) as counted:
        for clips in batch:
            rows.append(train.bench_train(size, jnp.dtype(dtype), clips, clip, steps))
            counted(len(rows), len(batch))
    print(train.train_table(rows))


def _bench_train_vlm(batch, lengths, steps, dtype, size, remat, peers):
    import jax.numpy as jnp

    from streamjax.bench import train_vlm

    if peers:
        if dtype != "float32" or size in ("3B", "7B"):
            raise InputError(
                f"--peers --dtype {dtype} --size {size}: a training is compared in float32, base "
                "or tiny"
            )
        for rows in batch:
            _run_script(
                "benchmarks/vlm_train.py", "--size", size, "--rows", rows, "--steps", steps,
                "--remat", remat or "", "--length", *lengths,
            )  # fmt: skip
        return
    if size in ("3B", "7B"):
        remat = remat or "attention_saveable"
    cases = [(rows, length) for rows in batch for length in lengths]
    found = []
    with counting("cases", len(cases)) as counted:
        for rows, length in cases:
            found.append(train_vlm.bench_train(size, jnp.dtype(dtype), length, rows, steps, remat))
            counted(len(found), len(cases))
    print(train_vlm.train_table(found))


def _run_script(script, *args):
    import subprocess
    import sys

    if not Path(script).is_file():
        raise InputError(f"--peers: no {script} here: run it in a clone of the repository")
    if subprocess.run([sys.executable, script, *map(str, args)]).returncode:
        raise RuntimeError(f"{script} failed; its message stands above")


def _bench_family(family, context, dtype, size, frames, peers):
    import jax.numpy as jnp

    from streamjax.bench import policies

    if peers:
        _run_script(
            "benchmarks/vlm_stream.py", "--family", family, "--size", size, "--turns", frames,
            "--dtype", dtype, "--context", *context,
        )  # fmt: skip
        return
    tables = []
    with counting("contexts", len(context)) as counted:
        for tokens in context:
            cycles = -(-frames // policies.EVERY)
            rows = policies.bench_policies(family, size, jnp.dtype(dtype), tokens, cycles)
            tables.append(policies.policy_table(rows))
            counted(len(tables), len(context))
    print("\n\n".join(tables))


def doctor():
    """Says what this machine has, one line each: versions, devices, the speed of the number
    types, video codecs.

    Example: streamjax doctor
    """
    from streamjax import __version__

    print(f"streamjax {__version__}, Python {platform.python_version()}, {platform.platform()}")
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
             "transformers", "av", "safetensors", "tyro", "rich")  # fmt: skip
    for name in names:
        print(f"{name} {importlib.metadata.version(name)}")
    _tell_devices()
    _tell_number_types()
    _tell_codecs()


def _tell_devices():
    import jax

    for device in jax.devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        room = f", {memory / 2**30:.1f} GiB" if memory else ""
        print(f"device {device.id}: {device.platform} {device.device_kind}{room}")


def _tell_number_types(size: int = 512):
    """The speed of a matrix product as the models write it (ops/linear.py)."""
    import jax
    import jax.numpy as jnp

    from streamjax.ops.linear import linear

    product = jax.jit(linear)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        name = jnp.dtype(dtype).name
        try:
            x = jnp.ones((size, size), dtype)
            product(x, x).block_until_ready()
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            print(f"{name}: no ({str(error).splitlines()[0]})")
            continue
        taken = []
        for _ in range(5):
            begin = time.perf_counter()
            product(x, x).block_until_ready()
            taken.append(time.perf_counter() - begin)
        print(
            f"{name}: yes, {2 * size**3 / min(taken) / 1e9:,.0f} GFLOP/s in a {size}-wide product"
        )


def _tell_codecs():
    import av
    from av.codec import Codec

    version = ".".join(map(str, av.library_versions["libavcodec"]))
    print(f"libavcodec {version}")

    def has(name: str, mode: Literal["r", "w"]) -> str:
        try:
            Codec(name, mode)
        except av.codec.codec.UnknownCodecError:
            return "no"
        return "yes"

    for name, encoder in (("h264", "libx264"), ("hevc", "libx265"), ("vp9", "libvpx-vp9"),
                          ("av1", "libsvtav1")):  # fmt: skip
        print(f"{name}: decode {has(name, 'r')}, encode {has(encoder, 'w')}")
