"""Benchmarks of others: one file each, with its reader, questions, parsers and scores."""

import importlib
import re

from streamjax.errors import InputError
from streamjax.evals.benchmarks.benchmark import Benchmark

# Name on the command line -> (file, its Benchmark); a file is read when its benchmark is asked for.
NAMES = {
    "ovo_bench": ("ovo_bench", "OVO_BENCH"),
    "ovo_bench_streamo": ("ovo_bench_streamo", "OVO_BENCH_STREAMO"),
    "streamingbench": ("streamingbench", "STREAMINGBENCH"),
    "streamo_bench": ("streamo_bench", "STREAMO_BENCH"),
    "videomme": ("videomme", "VIDEOMME"),
    "mvbench": ("mvbench", "MVBENCH"),
    "tempcompass": ("tempcompass", "TEMPCOMPASS"),
    "longvideobench": ("longvideobench", "LONGVIDEOBENCH"),
    "mlvu": ("mlvu", "MLVU"),
    "etbench": ("etbench", "ETBENCH"),
    "ar_k400": ("action_recognition", "K400"),
    "ar_ssv2": ("action_recognition", "SSV2"),
    "oad_thumos14": ("action_detection", "THUMOS14"),
    "oad_tvseries": ("action_detection", "TVSERIES"),
    "vis_ytvis2019": ("video_instances", "YTVIS2019"),
    "vis_ovis": ("video_instances", "OVIS"),
}
SHORT = {
    "k400": "ar_k400",
    "kinetics400": "ar_k400",
    "ssv2": "ar_ssv2",
    "thumos14": "oad_thumos14",
    "tvseries": "oad_tvseries",
    "ytvis2019": "vis_ytvis2019",
    "ovis": "vis_ovis",
}


def find(name: str) -> Benchmark:
    """A benchmark by its name; case, dashes and underscores do not matter.

    Raises InputError for an unknown name; it lists those that are known.
    """
    plain = _plain(name)
    by_plain = {_plain(known): known for known in NAMES} | SHORT
    if plain not in by_plain:
        raise InputError(f"benchmark {name!r}: wanted one of {', '.join(NAMES)}")
    file, attribute = NAMES[by_plain[plain]]
    return getattr(importlib.import_module(f"{__name__}.{file}"), attribute)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
