"""What the published recipes need of pods, and how fast they would be: a table for docs/scaling.md.

    python benchmarks/fit_table.py --out benchmarks/results/fit.json [CASE ...]
    python benchmarks/fit_table.py --docs docs/scaling.md

The first compiles the cases that are named, or all, one after the other, and puts each into the
file as soon as it is done; the second writes the file's table between the marks in the docs.
Everything runs on a CPU (streamjax[fit]); no TPU or GPU is touched, and no time here is measured.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "fit.json"
BEGIN, END = "<!-- fit table: begin -->", "<!-- fit table: end -->"
PACKED = ["dialogues=16", "batch_size=128"]  # several dialogues to a row, 128 rows a step
MESH_16 = ["mesh.fsdp=4", "mesh.tensor=4", "accumulate=32"]
MESH_64 = ["mesh.fsdp=16", "mesh.tensor=4", "accumulate=8"]

# name -> recipe, pod, overrides, further arguments of `fit`. Compiled in a hurry, as by default.
CASES: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    f"{size} {pod}": (f"streamo_qwen25vl_{size}", pod, [*PACKED, *mesh], {"search": search})
    for size in ("3b", "7b")
    for pod, mesh, search in (
        ("v5e:4x4", MESH_16, 2), ("v5p:4x4x4", MESH_64, 2), ("v6e:4x4", MESH_16, 2)
    )
} | {
    "streamformer v5e:4x4": ("streamformer_pretrain", "v5e:4x4", [], {"search": 0}),
    "stream 3b v5e:1x1": ("streamo_qwen25vl_3b", "v5e:1x1", [], {"stream": True, "search": 2}),
    "3b h100:8": (
        "streamo_qwen25vl_3b", "h100:8", [*PACKED, "mesh.fsdp=8", "accumulate=16"], {"search": 0}
    ),
}  # fmt: skip


def command(name: str) -> str:
    """What gives the same on the command line."""
    recipe, pod, overrides, more = CASES[name]
    flags = ["--stream"] * more.get("stream", False) + ["--search", str(more["search"])]
    return " ".join(["streamjax fit", recipe, *overrides, "--topology", pod, *flags])


def compiled(name: str) -> dict[str, Any]:
    from streamjax.fit import fit

    recipe, pod, overrides, more = CASES[name]
    report = fit(recipe, pod, overrides=overrides, progress=print, **more)
    return report.json()


def essence(name: str, told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a report's JSON."""
    keys = (
        "recipe", "mode", "topology", "mesh", "rows", "length", "tokens", "accumulate", "fits",
        "held", "flops", "useful_flops", "traffic", "intensity", "collectives", "prediction",
        "scaling", "efficiency", "largest", "caveats", "versions", "cpu_seconds", "rss",
    )  # fmt: skip
    programs = [
        {k: p[k] for k in ("name", "times", "fits", "needs", "of", "why", "bytes", "seconds")}
        for p in told["programs"]
    ]
    return {"command": command(name)} | {k: told[k] for k in keys} | {"programs": programs}


def put(path: Path, name: str, told: dict[str, Any]) -> None:
    """Into the file, which a reader finds whole at any time."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = essence(name, told)
    ordered = {n: kept[n] for n in CASES if n in kept}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(ordered, indent=1) + "\n")
    os.replace(part, path)


def table(kept: dict[str, Any]) -> str:
    """One row a case, in Markdown."""
    head = (
        "recipe", "pod", "mesh", "rows at a time x times", "needs, GiB a chip", "of it held",
        "bound by", "step, s", "MFU", "16 -> 256", "largest", "CPU s, GB",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(_row(case))} |" for case in kept.values())])


def _row(case: dict[str, Any]) -> list[str]:
    gib = 2**30
    most = max(case["programs"], key=lambda p: p["needs"] or math.inf)
    needs = f"{(most['needs'] or math.nan) / gib:.1f} of {(most['of'] or math.nan) / gib:.2f}"
    if not case["fits"]:
        needs = f"**does not fit**: {needs}"
    p, e, found = case["prediction"], case["efficiency"], case["largest"]
    unit = "streams" if case["mode"] == "stream" else "rows"
    largest = "-" if found is None else f"{found['rows']} {unit}{'' if found['exact'] else '+'}"
    return [
        case["recipe"] + (" --stream" if case["mode"] == "stream" else ""),
        case["topology"],
        " x ".join(f"{axis} {n}" for axis, n in case["mesh"].items() if n > 1) or "one",
        f"{case['rows']} x {case['accumulate']}",
        needs,
        f"{sum(case['held'].values()) / gib:.1f}",
        "-" if p is None else p["bound"],
        "-" if p is None else f"{p['step']:.3g} to {p['unlapped']:.3g}",
        "-" if p is None else f"{p['mfu']:.0%} to {p['mfu'] * p['step'] / p['unlapped']:.0%}",
        "-" if e is None else f"{e[0]:.0%} to {e[1]:.0%}",
        largest,
        f"{case['cpu_seconds']:.0f}, {case['rss'] / 1e9:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, help="write the table there; compiles nothing")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; wanted some of {list(CASES)}")
    if args.docs is None:
        for name in args.cases or CASES:
            print(name, flush=True)
            put(args.out, name, compiled(name))
        return
    before, _, rest = args.docs.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = table(json.loads(args.out.read_text()))
    args.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
