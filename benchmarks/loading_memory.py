"""How much memory loading and saving a checkpoint take, beside what the model itself takes.

Writes a checkpoint of a few GB (Qwen2.5-VL-3B's widths, fewer layers, bfloat16, in shards) into a
temporary folder. A fresh process a row then loads it, on one device or on fake ones with an fsdp
mesh, and saves it again; resident memory is sampled meanwhile, above what the process held before.
Loading may take the largest tensor and 1.2 times what the process keeps; saving, the largest
tensor and a tenth of what is kept.

    taskset -c 0 python benchmarks/loading_memory.py --out benchmarks/results/loading_memory.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from machine import describe

MB = 1 << 20


def config(layers: int, narrow: int) -> dict:
    """Qwen2.5-VL-3B's config.json with fewer layers, and all widths divided by `narrow`."""
    return {
        "model_type": "qwen2_5_vl", "hidden_size": 2048 // narrow,
        "intermediate_size": 11008 // narrow, "num_hidden_layers": layers,
        "num_attention_heads": 16 // narrow, "num_key_value_heads": max(2 // narrow, 1),
        "vocab_size": 151936 // narrow, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "image_token_id": 15, "video_token_id": 16,
        "vision_start_token_id": 12, "vision_end_token_id": 13,
        "vision_config": {
            "depth": layers, "hidden_size": 1280 // narrow, "intermediate_size": 3416 // narrow,
            "num_heads": 16 // narrow, "in_chans": 3, "patch_size": 14, "temporal_patch_size": 2,
            "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [layers - 1],
            "out_hidden_size": 2048 // narrow, "hidden_act": "silu", "tokens_per_second": 2,
        },
    }  # fmt: skip


def write_checkpoint(folder: Path, raw: dict, shard_bytes: int) -> dict:
    """Writes a folder of random weights, one tensor in memory at a time; says how large it is."""
    import jax
    import ml_dtypes
    from flax import nnx

    from streamjax.folders import family_of
    from streamjax.weights import safetensors
    from streamjax.weights.tensors import Lazy

    family = family_of(raw, "config.json")
    graph, state = nnx.split(family.blank(raw, "config.json"))
    hollow = jax.tree.map(lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape), state)
    shapes = family.dump(nnx.merge(graph, hollow))[1]
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16)

    def make(shape):
        return lambda: np.resize(noise, shape)

    tensors = {n: Lazy(t.shape, noise.dtype, make(t.shape)) for n, t in shapes.items()}
    (folder / "config.json").write_text(json.dumps(raw))
    safetensors.write_folder(folder, tensors, shard_bytes=shard_bytes)
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return {
        "tensors": len(sizes),
        "shards": len(list(folder.glob("*.safetensors"))),
        "MB": sum(sizes) / MB,
        "largest tensor MB": max(sizes) / MB,
    }


class Resident:
    """Samples this process's resident memory from another thread; a context manager.

    peak, anonymous, file: the most of each in MB beyond what there was at the start.
    """

    def __enter__(self):
        self._begin = self._now()
        self._most = dict(self._begin)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self._clock
        self._stop.set()
        self._thread.join()
        more = {key: self._most[key] - self._begin[key] for key in self._begin}
        self.peak, self.anonymous, self.file = (
            more[key] for key in ("VmRSS", "RssAnon", "RssFile")
        )

    def _sample(self):
        while not self._stop.wait(0.005):
            now = self._now()
            self._most = {key: max(now[key], self._most[key]) for key in now}

    @staticmethod
    def _now() -> dict:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return {key: int(found[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "RssFile")}


def measure(folder: Path, devices: int, out: Path) -> dict:
    """One load and one save in this process."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import streamjax as sj
    from streamjax.sharding import make_mesh
    from streamjax.weights import qwen2_5_vl  # noqa: F401  (what is imported is not what is loaded)

    mesh = make_mesh(fsdp=devices) if devices > 1 else None
    jax.block_until_ready(jax.numpy.ones(8))
    with Resident() as loading:
        model = sj.load(folder, mesh=mesh)
    kept = {}  # by address: devices that hold the same part may share it
    for leaf in jax.tree.leaves(model):
        for shard in leaf.addressable_shards:
            kept[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    with Resident() as saving:
        sj.save(model, out)
    rows = {"devices": devices, "kept MB": sum(kept.values()) / MB}
    for name, run in (("load", loading), ("save", saving)):
        rows |= {
            f"{name} peak MB": run.peak, f"{name} anonymous MB": run.anonymous,
            f"{name} file MB": run.file, f"{name} seconds": run.seconds,
        }  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--narrow", type=int, default=1, help="divides all widths")
    parser.add_argument("--shard-mb", type=float, default=1000.0)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        folder, devices, out = args.measure
        print(json.dumps(measure(Path(folder), int(devices), Path(out))))
        return
    result = {"rows": []}
    with tempfile.TemporaryDirectory() as home:
        folder, saved = Path(home) / "model", Path(home) / "saved"
        folder.mkdir()
        result["checkpoint"] = write_checkpoint(
            folder, config(args.layers, args.narrow), int(args.shard_mb * 1e6)
        )
        print(result["checkpoint"], file=sys.stderr)
        for devices in args.devices:
            run = subprocess.run(
                [sys.executable, __file__, "--measure", folder, str(devices), saved],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            row = json.loads(run.stdout)
            largest = result["checkpoint"]["largest tensor MB"]
            row["load allowed MB"] = largest + 1.2 * row["kept MB"]
            row["save allowed MB"] = largest + 0.1 * row["kept MB"]
            result["rows"].append(row)
            shutil.rmtree(saved)
    result["machine"] = describe()
    keys = ("devices", "kept MB", *(f"{a} {b}" for a in ("load", "save") for b in (
        "peak MB", "anonymous MB", "file MB", "allowed MB", "seconds")))  # fmt: skip
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in result["rows"]:
        print("| " + " | ".join(f"{row[key]:.0f}" for key in keys) + " |")
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    kinds = [(row, kind) for row in result["rows"] for kind in ("load", "save")]
    over = [row for row, kind in kinds if row[f"{kind} peak MB"] > row[f"{kind} allowed MB"]]
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
