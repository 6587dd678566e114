"""The six tasks against the original's heads: from features to losses, and from pixels to losses."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from streamjax.losses import segmentation
from streamjax.losses.video_text import similarity
from streamjax.models.pretraining import Pretraining, class_features
from streamjax.models.streamformer import StreamFormer, StreamFormerOutput
from streamjax.train import video_tasks
from streamjax.weights import safetensors, siglip_text, streamformer, table

KIND = {
    "f1_head_action_recognition": "recognition",
    "f2_head_retrieval": "retrieval",
    "f3_head_localization": "localization",
    "f4_head_grounding": "grounding",
    "f5_head_vis": "segmentation",
    "f5b_head_vis_over_100_classes": "segmentation",
    "f6_head_refvos": "referring",
}
HURRY = {"xla_backend_optimization_level": 0}  # what is compiled here runs once
# The copied part of the pooling head, by the original's names and ours.
DENSE = [
    *table.linear("w_v", "w_v"),
    *table.linear("v_proj", "v_proj"),
    *table.norm("head_layernorm", "norm"),
    *table.linear("head_mlp.fc1", "mlp.up"),
    *table.linear("head_mlp.fc2", "mlp.down"),
]


class Seen(nnx.Module):
    """A tower that has looked already: what it says is given, and gets the gradient."""

    def __init__(self, config, tokens, pooled):
        self.config, self.tokens, self.pooled = config, nnx.Param(tokens), nnx.Param(pooled)

    def __call__(self, frames):
        return StreamFormerOutput(tokens=self.tokens[...], pooled=self.pooled[...])

    def rows(self, at):
        return Seen(self.config, self.tokens[at], self.pooled[at])


class Case:
    """A golden head: `model` with the case's numbers, whose tower says the case's features."""

    def __init__(self, folder, kind):
        self.io = safetensors.read_file(folder / "io.safetensors")[0]
        self.about = json.loads((folder / "case.json").read_text())
        raw = json.loads((folder / "config.json").read_text())
        config = streamformer.config_of(raw, folder)
        state = dict(safetensors.read_file(folder / "model.safetensors")[0])
        texts = siglip_text.config_of(self.about["text_config"], folder)
        text = siglip_text.fill(texts, state, source=folder)
        tower = nnx.eval_shape(lambda: StreamFormer(config, rngs=nnx.Rngs(0)))
        head = [rule for rule in streamformer.rules(config) if rule.path.startswith("head.")]
        if streamformer.PREFIX + "head.probe" in state:
            head = [dataclasses.replace(r, path=r.path.removeprefix("head.")) for r in head]
            filled = table.load(
                nnx.state(tower.head), head, state, source=folder, prefix=streamformer.PREFIX
            )
            nnx.update(tower.head, filled)
        self.labels = {
            name.partition(".")[2] or "all": a
            for name, a in self.io.items()
            if name.startswith("label_embeddings")
        }
        self.model = Pretraining(
            tower, text, kinds={"task": kind}, labels={"task": self.labels} if self.labels else {},
            logit_scale=state["logit_scale"], logit_bias=state["logit_bias"],
        )  # fmt: skip
        io = self.io
        b, t = io["pooler_output" if "pooler_output" in io else "last_hidden_state"].shape[:2]
        d, size = config.hidden_size, config.image_size
        self.model.tower = Seen(
            config,
            jnp.asarray(io.get("last_hidden_state", np.ones((b, t, config.patches, d), "f4"))),
            jnp.asarray(io.get("pooler_output", np.ones((b, t, d), "f4"))),
        )
        self.frames = jnp.zeros((b, t, size, size, 3), jnp.uint8)

    def check(self, found, name):
        tolerance = {"atol": 1e-5, "rtol": 1e-3} if "grad" in name else {"atol": 5e-5, "rtol": 1e-4}
        if name.startswith("loss"):
            tolerance = {"atol": 1e-4, "rtol": 1e-5}
        np.testing.assert_allclose(found, self.io[name], err_msg=name, **tolerance)

    def check_grads(self, grads):
        """Of the features, the two numbers, and the copied tensors where the case has them."""
        head = grads["heads"]["task"]
        self.check(head["logit_scale"].get_value(), "grad.logit_scale")
        self.check(head["logit_bias"].get_value(), "grad.logit_bias")
        for name, ours in (("pooler_output", "pooled"), ("last_hidden_state", "tokens")):
            if "grad." + name in self.io:
                self.check(grads["tower"][ours].get_value(), "grad." + name)
        if "dense" in head:
            told = table.dump(head["dense"], DENSE, prefix="grad.")
            for name in told.keys() & self.io.keys():
                self.check(np.asarray(told[name]), name)


def loss_of(model, objective):
    """(loss, (count, metrics)) and the gradients of all parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def pay(params):
        total, count, metrics = objective(nnx.merge(graph, params, rest))
        return total / count, metrics

    paid = jax.jit(jax.value_and_grad(pay, has_aux=True), compiler_options=HURRY)
    (loss, metrics), grads = paid(params)
    return loss, {k: (float(a), float(n)) for k, (a, n) in metrics.items()}, grads


@pytest.fixture(scope="module")
def case(golden):
    return functools.cache(lambda name: Case(golden / "streamformer" / name, KIND[name]))


def test_recognition_equals_the_original(case):
    c = case("f1_head_action_recognition")
    batch = {"frames": c.frames, "label": jnp.asarray(c.io["label"])}
    pay = functools.partial(video_tasks.recognise, batch=batch, task="task")
    loss, metrics, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)
    order = (c.io["logits"] > np.take_along_axis(c.io["logits"], c.io["label"][:, None], 1)).sum(1)
    assert metrics == {"top1": ((order < 1).sum(), 3), "top5": (3, 3)}


def test_class_features_are_means_of_unit_features(case):
    for name, which in (("f1_head_action_recognition", ""), ("f5_head_vis", ".YoutubeVIS")):
        c = case(name)
        prompts = jnp.asarray(c.io["label_input_ids" + which])
        found = class_features(c.model.text, prompts, rows=13)
        np.testing.assert_allclose(found, c.io["label_embeddings" + which], atol=5e-5, rtol=1e-4)


def test_retrieval_equals_the_original(case):
    c = case("f2_head_retrieval")
    batch = {"frames": c.frames, "text": jnp.asarray(c.io["caption_input_ids"])}
    pay = functools.partial(video_tasks.retrieve, batch=batch, task="task")
    loss, metrics, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)
    np.testing.assert_allclose(
        c.model.texts(batch["text"]), c.io["eval.text_features"], atol=5e-5, rtol=1e-4
    )
    assert metrics == {"top1": ((c.io["logits"].argmax(1) == np.arange(4)).sum(), 4)}


def test_localization_equals_the_original(case):
    c = case("f3_head_localization")
    names = list(c.labels)
    batch = {
        "frames": c.frames,
        "classes": jnp.asarray(c.io["label"], jnp.int32),
        "dataset": jnp.array([names.index(n) for n in c.about["dataset_of_sample"]]),
    }
    pay = functools.partial(video_tasks.localise, batch=batch, task="task")
    loss, metrics, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)
    said = [c.io[f"logits.{i}"] > 0 for i in range(3)]
    true = [
        label[:, None] == np.arange(z.shape[1])
        for label, z in zip(c.io["label"], said, strict=True)
    ]
    both = sum(2 * (s & t).sum() for s, t in zip(said, true, strict=True))
    assert metrics == {
        "f1": (both, sum(s.sum() + t.sum() for s, t in zip(said, true, strict=True)))
    }


def test_grounding_equals_the_original(case):
    c = case("f4_head_grounding")
    batch = {
        "frames": c.frames,
        "text": jnp.asarray(c.io["caption_input_ids"]),
        "inside": jnp.asarray(c.io["label"], jnp.uint8),
    }
    pay = functools.partial(video_tasks.ground, batch=batch, task="task")
    loss, metrics, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)
    said, true = c.io["logits"] > 0, c.io["label"] > 0
    assert metrics == {"f1": (2 * (said & true).sum(), said.sum() + true.sum())}


def test_segmentation_equals_the_original(case):
    """Rows of two data sets in one batch; one with a mask of its own size, one with none."""
    c = case("f5_head_vis")
    names, sizes = list(c.labels), [len(a) for a in c.labels.values()]
    every = np.arange(max(sizes))
    dataset = np.array([names.index(name) for name in c.about["dataset_of_sample"]])
    choices = np.stack([np.where(every < sizes[which], every, -1) for which in dataset])
    masks = [c.io[f"mask_target.{i}"] for i in range(4)]

    def pay(model):
        seen, paid, counted = model.tower, [], 0
        for rows in ([0, 1, 3], [2]):
            model.tower = seen.rows(jnp.array(rows))
            batch = {
                "frames": c.frames[: len(rows)],
                "classes": jnp.asarray(np.stack([masks[i] for i in rows]), jnp.int32),
                "dataset": jnp.asarray(dataset[rows]),
                "choices": jnp.asarray(choices[rows]),
            }
            total, _, metrics = video_tasks.segment(model, batch, task="task")
            paid.append(total)
            counted += metrics["pixel_accuracy"][1]
        return sum(paid), 4, {"of_size": (paid[1], counted)}

    loss, metrics, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check(metrics["of_size"][0], "loss.2")
    assert metrics["of_size"][1] == sum((mask > 0).sum() for mask in masks)
    c.check_grads(grads)
    np.testing.assert_allclose(
        c.model.heads["task"].dense(c.model.tower.tokens[...]), c.io["dense_features"],
        atol=5e-5, rtol=1e-4,
    )  # fmt: skip
    c.check(c.model.heads["task"].dense.w_v.kernel[...].T, "derived.w_v.weight")


def drawn(c):
    return {
        "frames": c.frames,
        "classes": jnp.stack([jnp.asarray(c.io[f"mask_target.{i}"]) for i in range(2)]),
        "dataset": jnp.array([0, 0]),
        "choices": jnp.stack([jnp.asarray(c.io[f"selected_class_indices.{i}"]) for i in range(2)]),
    }


def test_segmentation_among_drawn_classes_equals_the_original(case):
    c = case("f5b_head_vis_over_100_classes")
    pay = functools.partial(video_tasks.segment, batch=drawn(c), task="task", parity="upstream")
    loss, _, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)


def test_background_is_never_a_class_unless_parity_asks(case):
    c = case("f5b_head_vis_over_100_classes")
    batch = drawn(c)
    assert (batch["choices"][0] == 0).any() and not (batch["choices"][1] == 0).any()
    foreground = [(c.io[f"mask_target.{i}"] > 0).sum() for i in range(2)]
    upstream = c.io["mask_target.0"].size + foreground[1]
    for parity, counted in (("fixed", sum(foreground)), ("upstream", upstream)):
        judge = jax.jit(
            functools.partial(video_tasks.segment, task="task", parity=parity),
            compiler_options=HURRY,
        )
        assert judge(c.model, batch)[2]["pixel_accuracy"][1] == counted


def test_referring_equals_the_original(case):
    """Masks of three sizes, so the rows pay one by one, each against the captions of all."""
    c = case("f6_head_refvos")
    texts = c.model.texts(jnp.asarray(c.io["caption_input_ids"]))

    def pay(model):
        head, patches = model.heads["task"], model.dense("task", model.tower(None).tokens)
        z = similarity(patches.reshape(-1, 32), texts, head.logit_scale[...], head.logit_bias[...])
        z = z.reshape(3, 1, 14, 14, 3)
        masks = [jnp.asarray(c.io[f"mask_target.{i}"][None]) for i in range(3)]
        paid = [
            segmentation.referring(z[i : i + 1], jnp.array([i]), mask)
            for i, mask in enumerate(masks)
        ]
        return sum(found.losses.sum() for found in paid), 3, {}

    loss, _, grads = loss_of(c.model, pay)
    c.check(loss, "loss")
    c.check_grads(grads)
