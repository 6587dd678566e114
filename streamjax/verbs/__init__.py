"""The verbs of the command line, one function each: what it is given, what it prints.

A verb of two words (`data pack`) is the function `data_pack`.
"""

from streamjax.verbs.datasets import data_info, data_pack, world
from streamjax.verbs.evaluating import eval, eval_compare, eval_score
from streamjax.verbs.evaluating_pretraining import eval_pretraining
from streamjax.verbs.evaluating_timing import eval_timing
from streamjax.verbs.machine import bench, doctor
from streamjax.verbs.pods import fit
from streamjax.verbs.training import ablate, demo, export, train
from streamjax.verbs.watching import encode, redecide, replay, stream

__all__ = [
    "ablate", "bench", "data_info", "data_pack", "demo", "doctor", "encode", "eval",
    "eval_compare", "eval_pretraining", "eval_score", "eval_timing", "export", "fit",
    "redecide", "replay", "stream", "train", "world",
]  # fmt: skip
