"""A silent turn of a streaming video LLM, beside transformers on the same weights.

Two peers, both transformers in PyTorch (sdpa), on the weights that ours exported, in the same run:

    incremental  a DynamicCache that grows: a forward for the turn's chunk and one for the decoded
                 token, as `generate` does it; "one forward" lets that token ride with the next
                 chunk, as ours does
    re-prefill   the window read again at every turn, as Streamo's own loop does it; its frames'
                 visual tokens are kept, which Streamo's are not

All are timed in turns, in CPU seconds of this process; the medians are what a busy machine disturbs
least, and the ratios are of pairs. Before anything is timed, all three must give the same logits.
Pin it to one core:

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/vlm_stream.py --family qwen2_5_vl \\
        --out benchmarks/results/vlm_stream_qwen2_5_vl.json
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from machine import describe

import streamjax as sj
from streamjax.bench.frame import DECODERS
from streamjax.bench.policies import FAMILIES, TURN, filled, subject, tokens_held
from streamjax.stream.book import POLICIES

CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
STATE = 1  # the decoded token of every turn here


class Peer:
    """transformers on our weights: the same turns, with a growing cache or read again."""

    def __init__(self, case, family, dtype):
        with tempfile.TemporaryDirectory() as folder:
            sj.save(case.model, Path(folder) / "model")
            self.model = getattr(transformers, CLASSES[family]).from_pretrained(
                Path(folder) / "model", dtype=getattr(torch, dtype), attn_implementation="sdpa"
            ).eval()  # fmt: skip
        self.family, self.case = family, case
        self.pixels = torch.from_numpy(case.frame[0]).to(self.model.dtype)
        self.grid = torch.tensor([case.frame[1]])
        self.place, self.advance = placement(case)
        self.visual = self.look()
        self.past = None

    def look(self):
        """The frame's visual tokens; Qwen3-VL's with what its first layers add."""
        arguments = (self.pixels,) if self.family == "internvl" else (self.pixels, self.grid)
        out = self.model.model.get_image_features(*arguments)
        deep = getattr(out, "deepstack_features", None) or ()
        tokens, *deep = (joined(a) for a in (out.pooler_output, *deep))
        return tokens.reshape(-1, tokens.shape[-1]), deep

    def read(self, turns, visual, first, answered, cache):
        """`turns` turns from number `first` on, each after its predecessor's token where
        `answered`; one forward. Returns the last logits."""
        chunk, tokens, deep = self.case.chunk, *visual
        ids, places = [], []
        for i in range(first, first + turns):
            if answered and i:
                ids.append(STATE)
                places.append(np.full((len(self.place), 1), i * (self.advance + 1) - 1))
            ids += chunk
            places.append(self.place + i * (self.advance + 1))
        ids = torch.tensor([ids])
        here = ids == chunk[len(chunk) // 2]
        embeds = self.model.get_input_embeddings()(ids)
        embeds[here] = tokens.repeat(turns, 1).to(embeds.dtype)
        extra = {}
        if deep:
            extra = {"visual_pos_masks": here,
                     "deepstack_visual_embeds": [d.repeat(turns, 1) for d in deep]}  # fmt: skip
        return self.forward(embeds, np.concatenate(places, axis=1), cache, **extra)

    def forward(self, embeds, places, cache, **extra):
        places = torch.from_numpy(places)
        places = places[:, None] if len(places) == 3 else places
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).last_hidden_state
        return self.model.lm_head(hidden[:, -1])[0]

    def fill(self, turns):
        self.turns, self.past = turns, transformers.DynamicCache()
        for i in range(turns):
            logits = self.read(1, self.visual, i, True, self.past)
        return logits

    def incremental(self, *, one_forward):
        """The next turn on top of the cache, which is then brought back to where it was."""
        held = self.past.get_seq_length()
        self.read(1, self.look(), self.turns, one_forward, self.past).argmax()
        if not one_forward:
            self.answer(self.past)
        return lambda: self.past.crop(held - self.past.get_seq_length())

    def prefill(self):
        cache = transformers.DynamicCache()
        self.look()
        self.read(self.turns + 1, self.visual, 0, True, cache).argmax()
        self.answer(cache)
        return lambda: None

    def answer(self, cache):
        """The forward of the decoded token, which finds that nothing follows."""
        at = (self.turns + 1) * (self.advance + 1) - 1
        embeds = self.model.get_input_embeddings()(torch.tensor([[STATE]]))
        self.forward(embeds, np.full((len(self.place), 1), at), cache).argmax()


def joined(tokens):
    """Visual tokens that transformers hands out picture by picture, as one array."""
    return torch.cat(list(tokens)) if isinstance(tokens, (list, tuple)) else tokens


def placement(case):
    """A chunk's positions [axes l] and how far it moves on."""
    tokens = np.asarray([[*case.chunk, 5]])
    positions, _ = case.model.positions(tokens, np.asarray([case.frame[1]]))
    positions = np.asarray(positions).reshape(-1, tokens.shape[1])
    return positions[:, :-1].astype(np.int64), int(positions[0, -1])


def agree(case, peer, turns=3):
    """The largest difference of the logits of a few turns, each with its answer: ours offline."""
    theirs = peer.fill(turns)
    tokens = [t for i in range(turns) for t in ([STATE] if i else []) + case.chunk]
    grid = np.asarray([case.frame[1]] * turns)
    pixels = np.concatenate([case.frame[0]] * turns)
    ours = jax.jit(lambda m: m(np.asarray([tokens]), pixels, grid).logits[0, -1])(case.model)
    again = peer.read(turns, peer.visual, 0, True, transformers.DynamicCache())
    scale = float(theirs.abs().max())
    found = [float(np.abs(np.asarray(a) - theirs.numpy()).max()) for a in (ours, again)]
    return max(found) / scale


@torch.inference_mode()
def compare(case, peer, context, count):
    ours = {p: filled(case, p, context, count) for p in POLICIES}
    peer.fill(max(context // TURN, 10))
    calls = {f"ours, {policy}": turn for policy, (_, turn) in ours.items()}
    calls["incremental"] = lambda: peer.incremental(one_forward=False)
    calls["incremental, one forward"] = lambda: peer.incremental(one_forward=True)
    seconds = {name: [] for name in [*calls, "re-prefill"]}
    for i in range(count):
        for name, call in calls.items():
            seconds[name].append(timed(call))
        if i % 4 == 0:
            seconds["re-prefill"].append(timed(peer.prefill))
    row = {"context": context, "tokens in the peers' cache": int(peer.past.get_seq_length())}
    row |= {"tokens in ours": tokens_held(ours["session"][0])}
    row |= {f"{name}, CPU ms": 1e3 * middle(s, name) for name, s in seconds.items()}
    mine = row["ours, session, CPU ms"]
    for name in ("incremental", "incremental, one forward", "re-prefill"):
        row[f"{name} / session"] = row[f"{name}, CPU ms"] / mine
    return row


def middle(seconds, name):
    """A reading every 16 turns is part of `refill`: its mean, and the others' median."""
    return statistics.mean(seconds) if "refill" in name else statistics.median(seconds)


def timed(call):
    begin = time.process_time()
    after = call()
    seconds = time.process_time() - begin
    if callable(after):
        after()
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(FAMILIES), default="qwen2_5_vl")
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--size", choices=list(DECODERS), default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--turns", type=int, default=32, help="turns timed for each context")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    case = subject(args.family, args.size, jnp.dtype(args.dtype))
    peer = Peer(case, args.family, args.dtype)
    result = {"family": args.family, "size": args.size, "dtype": args.dtype, "rows": []}
    if args.dtype == "float32":
        result["largest relative difference of logits"] = difference = agree(case, peer)
        assert difference < 1e-3, f"ours and transformers differ by {difference}"
    for context in args.context:
        row = compare(case, peer, context, args.turns)
        result["rows"].append(row)
        for name, value in row.items():
            print(
                f"{name:<40} {value:>10,.2f}"
                if isinstance(value, float)
                else f"{name:<40} {value:>7}"
            )
        print(flush=True)
    result["machine"] = describe() | {
        "torch": torch.__version__, "transformers": transformers.__version__
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
