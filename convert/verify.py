"""Runs transformers and streamjax on the same inputs and prints how far apart they are.

    python convert/verify.py exported/ --json parity.json
    python convert/verify.py exported/ --card        # writes the numbers into exported/README.md

FOLDER is a Qwen2.5-VL, Qwen3-VL or InternVL3 folder; its own weights and, where it has one, its
image processor are used. Text is random ids and pictures are noise, both of --seed. Compared are
the logits of text, of one picture, and of a dialogue with three; and --new-tokens words decoded
greedily, transformers with its cache, streamjax with its own. Each model is in memory alone; in
float32 that takes twice the bytes of a bfloat16 folder. The other families have no class in
transformers: their numbers are held by this repository's tests.

Exit code: 0, or 1 where --atol is given and the logits differ by more.
"""

import contextlib
import datetime
import gc
import inspect
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import script
import torch
import transformers

import streamjax as sj
from streamjax.data.processors import QwenImageProcessor, read_processor
from streamjax.errors import InputError
from streamjax.folders import family_of
from streamjax.weights import card
from streamjax.weights.config import read_config

MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl", "internvl", "internvl_chat")
_PICTURES = ((240, 320), (180, 180), (320, 200))  # height, width


def inputs_of(folder: Path, raw: dict[str, Any], seed: int) -> dict[str, tuple]:
    """(tokens [1 l], pixels or None, grid or None) of each case. InputError without placeholder."""
    rng = np.random.default_rng(seed)
    model = family_of(raw, folder / "config.json").blank(raw, folder / "config.json")
    config = model.config
    if not model.placeholders:
        raise InputError(f"{folder}: no id of a picture's token, wanted a tokenizer that has it")
    start, end = (getattr(config, f"vision_{edge}_token_id", None) for edge in ("start", "end"))
    special = {*model.placeholders, start, end}
    words = np.setdiff1d(
        np.arange(min(config.decoder.vocab_size, 150_000)), [i for i in special if i is not None]
    )

    def text(count: int) -> list[int]:
        return rng.choice(words, count).tolist()

    def case(pictures: list[int]) -> tuple:
        pixels, grid = _pixels(folder, config, pictures, rng)
        tokens = text(12)
        for _ in pictures:
            around = [[i] if i is not None else [] for i in (start, end)]
            tokens += [*around[0], model.placeholders[0], *around[1], *text(9)]
        return model.expand(np.array([tokens]), grid), pixels, grid

    return {
        "text": (np.array([text(64)]), None, None),
        "one picture": case([0]),
        "three pictures": case([0, 1, 2]),
    }


def _pixels(folder: Path, config: Any, pictures: list[int], rng: np.random.Generator) -> tuple:
    """What the folder's processor makes of noise; without one, noise in its place."""
    processor = read_processor(folder)
    if processor is not None:
        coarse = [rng.integers(0, 256, (h // 20, w // 20, 3), np.uint8) for h, w in _PICTURES]
        images = [coarse[i].repeat(20, 0).repeat(20, 1) for i in pictures]
        if isinstance(processor, QwenImageProcessor):
            budget = processor.with_frame_budget(128)  # what Streamo gives a frame
            return min(processor, budget, key=lambda p: p.max_pixels)(images)
        done = [processor.frame(image) for image in images]  # one tile each, as in a stream
        return np.concatenate([pixels for pixels, _ in done]), np.array([row for _, row in done])
    vision = config.vision
    if hasattr(vision, "image_size"):
        side = vision.image_size
        pixels = rng.standard_normal((len(pictures), vision.num_channels, side, side), np.float32)
        rows = side // vision.patch_size
        return pixels, np.array([[1, rows, rows]] * len(pictures))
    merge = vision.spatial_merge_size
    grid = np.array([[1, (4 + i) * merge, (5 - i) * merge] for i in pictures])
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return rng.standard_normal((int(grid.prod(1).sum()), width), np.float32), grid


def theirs(folder: Path, cases: dict[str, tuple], dtype: str, count: int) -> tuple[dict, list[int]]:
    """Logits [l v] of every case, and the tokens that follow the last one."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager",
            output_loading_info=True, local_files_only=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: transformers cannot load it: {line}") from None
    for kind, names in report.items():
        if names:
            raise InputError(f"{folder}: transformers finds {kind}: {sorted(map(str, names))[:3]}")
    model.eval()
    model.generation_config = transformers.GenerationConfig()  # no penalties of the folder's
    takes = inspect.signature(model.forward).parameters
    logits, inputs = {}, {}
    with torch.no_grad():
        for name, (tokens, pixels, grid) in cases.items():
            script.say(f"transformers: {name}, {tokens.shape[1]} tokens")
            inputs = {"input_ids": torch.from_numpy(tokens)}
            if pixels is not None:
                inputs["pixel_values"] = torch.from_numpy(pixels).to(model.dtype)
                if "image_grid_thw" in takes:
                    inputs["image_grid_thw"] = torch.from_numpy(grid)
            if "mm_token_type_ids" in takes:
                kinds = inputs["input_ids"] == model.config.image_token_id
                inputs["mm_token_type_ids"] = kinds.long()
            logits[name] = model(**inputs).logits[0].float().numpy()
        script.say(f"transformers: {count} tokens, greedily")
        how = transformers.GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
        mask = torch.ones_like(inputs["input_ids"])
        out = model.generate(**inputs, attention_mask=mask, generation_config=how)
    words = out[0, inputs["input_ids"].shape[1] :].tolist()
    return logits, words


def ours(folder: Path, cases: dict[str, tuple], dtype: str, count: int) -> Iterator[Any]:
    """(name, logits [l v]) of every case, then (None, the tokens that follow, least margin)."""
    model = sj.load(folder, dtype=dtype)
    for name, (tokens, pixels, grid) in cases.items():
        script.say(f"streamjax: {name}, {tokens.shape[1]} tokens")
        positions, _ = model.positions(tokens, grid)
        forward = jax.jit(lambda m, t, p, at, g=grid: m(t, p, g, positions=at).logits)
        yield name, np.asarray(forward(model, tokens, pixels, positions)[0], np.float32)
    script.say(f"streamjax: {count} tokens, greedily")
    tokens, pixels, grid = list(cases.values())[-1]
    features = jax.jit(lambda m, p, g=grid: m.encode_images(p, g))(model, pixels)
    positions, _ = model.positions(tokens, grid)
    extend = jax.jit(
        lambda m, t, c, f, at: m.extend(t, c, features=f, positions=at), donate_argnums=2
    )
    cache = model.init_cache(1, capacity=tokens.shape[1] + count)
    words, margins = [], []
    out, cache = extend(model, tokens, cache, features, positions)
    for _ in range(count):
        last = out.logits[0, -1].astype(jnp.float32)
        best, second = jax.lax.top_k(last, 2)[0]
        words.append(int(last.argmax()))
        margins.append(float(best - second))
        out, cache = extend(model, np.array([[words[-1]]]), cache, None, None)
    yield None, words, min(margins)


def compare(folder: Path, *, dtype: str, count: int, seed: int) -> dict[str, Any]:
    """The report: of every case max-abs, mean-abs and argmax agreement, and the greedy tokens."""
    raw = read_config(folder / "config.json")
    if raw.get("model_type") not in MODEL_TYPES:
        raise InputError(
            f"{folder / 'config.json'}: model_type is {raw.get('model_type')!r}, for which "
            f"transformers has no class: wanted one of {', '.join(MODEL_TYPES)}"
        )
    jax.config.update("jax_default_matmul_precision", "highest")
    cases = inputs_of(folder, raw, seed)
    with _readable(folder, raw) as theirs_folder:
        wanted, their_words = theirs(theirs_folder, cases, dtype, count)
    gc.collect()
    rows, words, margin = [], [], 0.0
    for name, *found in ours(folder, cases, dtype, count):
        if name is None:
            words, margin = found
            continue
        difference = np.abs(found[0] - wanted[name])
        rows.append({
            "case": name,
            "tokens": len(difference),
            "max_abs": float(difference.max()),
            "mean_abs": float(difference.mean()),
            "argmax_agreement": float((found[0].argmax(-1) == wanted[name].argmax(-1)).mean()),
            "logits_max_abs": float(np.abs(wanted[name]).max()),
        })  # fmt: skip
    same = [a == b for a, b in zip(words, their_words, strict=False)]
    return {
        "folder": folder.resolve().name,
        "model_type": raw["model_type"],
        "dtype": dtype,
        "device": jax.devices()[0].platform,
        "seed": seed,
        "pictures": "the folder's processor" if read_processor(folder) else "noise of fixed grids",
        "versions": {n: version(n) for n in ("transformers", "torch", "jax")}
        | {"streamjax": sj.__version__},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cases": rows,
        "greedy": {
            "tokens": count,
            "equal": [*same, False].index(False),
            "transformers": their_words,
            "streamjax": words,
            "least_margin": margin,
        },
    }


@contextlib.contextmanager
def _readable(folder: Path, raw: dict[str, Any]) -> Iterator[Path]:
    """The folder; of one in OpenGVLab's layout an export, for transformers reads only the hub's."""
    if raw["model_type"] != "internvl_chat":
        yield folder
        return
    script.say("OpenGVLab's layout: transformers is given what streamjax makes of it")
    with tempfile.TemporaryDirectory() as home:
        sj.save(sj.load(folder), Path(home) / "hub")
        yield Path(home) / "hub"


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    greedy = report["greedy"]
    return [
        f"Logits of transformers and of streamjax on the same inputs (random ids; pictures: "
        f"{report['pictures']}; seed {report['seed']}), {report['dtype']}, streamjax on "
        f"{report['device']}, {report['date']}: {versions}.",
        "",
        "| case | tokens | max abs | mean abs | same argmax | largest logit |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['case']} | {r['tokens']} | {r['max_abs']:.1e} | {r['mean_abs']:.1e} | "
            f"{100 * r['argmax_agreement']:.1f} % | {r['logits_max_abs']:.1f} |"
            for r in report["cases"]
        ),
        "",
        f"Greedy decoding after the last: the first {greedy['equal']} of {greedy['tokens']} tokens "
        f"are the same (least margin between the two likeliest: {greedy['least_margin']:.1e}).",
    ]


def main() -> int:
    parser = script.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atol", type=float, help="fail where logits differ by more")
    parser.add_argument("--json", type=Path, help="a file to write the report to")
    parser.add_argument("--card", action="store_true", help="write it into the folder's README.md")
    args = parser.parse_args()
    page = args.folder / card.FILE
    if args.card:  # said before the work, not after
        card.with_parity(_text(page), [])
    report = compare(args.folder, dtype=args.dtype, count=args.new_tokens, seed=args.seed)
    print("\n".join(table(report)))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.card:
        text = card.with_parity(_text(page), table(report))
        beside = page.with_name(f".{page.name}.tmp")
        beside.write_text(text, "utf-8", "surrogateescape")
        beside.replace(page)
    near = [row["max_abs"] <= (args.atol or 0) for row in report["cases"]]  # false of NaN
    return int(args.atol is not None and not all(near))


def _text(page: Path) -> str:
    if not page.is_file():
        raise FileNotFoundError(f"{page}: missing, wanted the card that sj.save writes")
    return page.read_text("utf-8", "surrogateescape")


if __name__ == "__main__":
    script.run(main)
