"""The Streamo recipes: tiny runs of every family, a base folder made ready, 3B and 7B as shapes."""

import dataclasses
import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import checkpoint, cli, folders
from streamjax.data.dialogue import STATES
from streamjax.data.pipeline import batches
from streamjax.data.processors import QwenImageProcessor
from streamjax.data.tokenizer import load_tokenizer
from streamjax.errors import InputError
from streamjax.models import qwen2_5_vl
from streamjax.ops import attention
from streamjax.sharding import make_mesh
from streamjax.train import MeshConfig, load_recipe, loop, streamo, train
from streamjax.train.meter import MACHINE
from streamjax.train.progress import silent
from streamjax.train.state import set_up
from streamjax.train.step import make_step, put

RECIPES = {
    "streamo_qwen25vl_3b": "qwen2_5_vl",
    "streamo_qwen3vl_4b": "qwen3_vl",
    "streamo_internvl3_2b": "internvl",
}
HURRY = {"xla_backend_optimization_level": 0}
RNG = np.random.default_rng(0)  # dialogues draw nothing


@pytest.fixture(scope="module", autouse=True)
def short_rows():
    """Rows of a few hundred tokens are attended to at once: half the time to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "ROWS", 1024)
        yield


def hurried_step(config, setup, mesh):
    """`make_step`, compiled in a hurry."""
    step, compiled = make_step(config, setup, mesh), []

    def run(state, batch):
        compiled[:] = compiled or [step.lower(state, batch).compile(HURRY)]
        return compiled[0](state, batch)

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where tiny runs go; they share one world and one cache of compiled programs."""
    folder = tmp_path_factory.mktemp("streamo")
    streamo.from_world("qwen2_5_vl", folder / "streamo_qwen25vl_3b")
    for name in RECIPES:
        (folder / name).mkdir(exist_ok=True)
        if not (folder / name / "world").exists():
            (folder / name / "world").symlink_to(folder / "streamo_qwen25vl_3b" / "world")
    return folder


def tiny(home, name, **changes):
    config = load_recipe(name, tiny=True, run=home / name)
    return dataclasses.replace(config, **changes)


def flat(state):
    """Parameters by path, as numpy."""
    pairs = nnx.to_flat_state(jax.device_get(state))
    return {"/".join(map(str, path)): np.asarray(v.get_value()) for path, v in pairs}


def hurried(function, *args):
    """The function compiled in a hurry for these arguments."""
    return jax.jit(function).lower(*args).compile(HURRY)


def filled(make, dtype=jnp.float32):
    """What `make()` makes, its parameters drawn by numpy: faster than compiling initialisers."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), dtype), shapes)
    return nnx.merge(graph, values)


def flat_names(state):
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]


def steps_of(config, count):
    """The parameters before and after `count` steps, and the rows of metrics."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(config, mesh)
    data = batches(config.data, batch_size=config.batch_size, seed=config.seed)
    with jax.set_mesh(mesh):
        state = setup.make()
        before = flat(nnx.merge_state(state.params, state.frozen))
        step, rows = hurried_step(config, setup, mesh), []
        for _ in range(count):
            state, metrics = step(state, put(config, next(data), mesh))
            rows.append(jax.device_get(metrics))
    after = flat(nnx.merge_state(state.params, state.frozen))
    data.close()
    return before, after, rows


def check_moved(before, after, trained):
    """Bit for bit: what is trained moved, and nothing else."""
    for path, old in before.items():
        wanted = any(f"/{part}/" in f"/{path}/" for part in trained)
        # A bias of the keys has no gradient but rounding: softmax does not see it.
        moved = not np.array_equal(old, after[path])
        assert moved == wanted or path.endswith("k/bias"), path
    assert any(path.startswith("visual/layers") for path in before)


@pytest.mark.parametrize("name", [*RECIPES, "streamo_qwen25vl_7b"])
def test_each_recipe_is_built_at_its_published_values(home, name):
    config = tiny(home, name)
    assert config.name == f"{name}_tiny" and config.weights == "fresh"
    assert config.objective.keywords["gamma"] == 2 and config.optim.schedule == "cosine"
    assert config.trainable[0] == "decoder" and len(config.data.source()) == 128
    setup = set_up(config, make_mesh(data=1))
    assert not any(path.startswith("visual/layers") for path in flat_names(setup.abstract.params))


def test_two_steps_move_what_is_trained(home):
    config = tiny(home, "streamo_qwen3vl_4b", batch_size=2, accumulate=1, weights="loaded")
    make = config.model
    config = dataclasses.replace(config, model=lambda _: filled(lambda: make(nnx.Rngs(0))))
    before, after, rows = steps_of(config, 2)
    assert all(np.isfinite([row["loss"], row["grad_norm"]]).all() for row in rows)
    check_moved(before, after, config.trainable)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_of_a_packed_row_is_that_of_each_dialogue_alone(home, name):
    config = tiny(home, name)
    model = filled(lambda: config.model(nnx.Rngs(0)))
    samples = [config.data.transform(r, RNG) for r in config.data.source()[:16]]
    # Two of one length, for one compilation.
    samples = next(p for p in itertools.combinations(samples, 2)
                   if len({len(s["tokens"]) for s in p}) == len({len(s["grid"]) for s in p}) == 1
                   and not np.array_equal(p[0]["tokens"], p[1]["tokens"]))  # fmt: skip
    assert config.data.pack.fits(samples)
    row = config.data.pack.row(samples)
    batch = {k: jnp.asarray(v)[None] for k, v in row.items()}
    loss, count = hurried(lambda m, b: config.objective(m, b)[:2], model, batch)(model, batch)
    total, number, alone = 0.0, 0, None
    for one in samples:
        pixels, grid = normalised(model.assets.processor, one)
        tokens, labels = one["tokens"][None], one["labels"][None]
        given = (model, tokens, pixels, model.positions(tokens, grid)[0])
        if alone is None:
            alone = hurried(lambda m, t, x, p, g=grid: m(t, x, g, positions=p).logits, *given)
        logits = alone(*given)
        state_ids = config.objective.keywords["state_ids"]
        total += float(sj.losses.stream_loss(logits, labels, state_ids, normalizer=1.0))
        number += int((labels[:, 1:] >= 0).sum())
    assert int(count) == number > 20
    np.testing.assert_allclose(float(loss), total, rtol=1e-5)


def normalised(processor, sample):
    """Hugging Face's pixel_values of a sample's bytes."""
    shape = (3, *[1] * (sample["pixels"].ndim - 2))
    mean, std = (np.reshape(a, shape).astype(np.float32) for a in (processor.mean, processor.std))
    pixels = (sample["pixels"] / np.float32(255) - mean) / std
    if pixels.ndim == 3:  # patches: a still picture twice
        pixels = np.repeat(pixels[:, :, None], 2, axis=2).reshape(len(pixels), -1)
    return pixels.astype(np.float32), sample["grid"]


@pytest.fixture(scope="module")
def ran(home):
    """Twenty steps of a tiny run, checkpoints at 10 and 20."""
    name = "streamo_qwen25vl_3b"
    overrides = ["steps=20", "batch_size=2", "checkpoint.every=10"]
    config = load_recipe(name, overrides, tiny=True, run=home / name)
    train(config, home / name, progress=silent, compilation_cache=home / "cache")
    return config, home / name


def rows_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MACHINE} for row in rows]


def test_twenty_steps_learn_and_can_be_watched(ran):
    _, run = ran
    losses = [row["loss"] for row in rows_of(run)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert rows_of(run)[-1]["skipped"] == 0
    sj.save(sj.load(run), run / "hf")
    model = sj.load(run / "hf")
    assert model.assets.processor.max_pixels == 100352
    stream = sj.Stream(model, max_new_tokens=4)
    stream.ask("Narrate the video.")
    video = next((run / "world" / "videos").glob("*.mp4"))
    for frame in sj.video(video, fps=1, max_frames=2):
        assert sum(stream.push(frame).probabilities) == pytest.approx(1, abs=1e-4)


def test_a_run_goes_on_bit_for_bit(ran, home):
    config, run = ran
    again = home / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("20", "world", "hf"))
    done = train(config, again, progress=silent, compilation_cache=home / "cache")
    assert done.step == 20
    assert rows_of(again) == rows_of(run)
    first, second = (flat(nnx.state(sj.load(r), nnx.Param)) for r in (run, again))
    for path, value in first.items():
        assert np.array_equal(value, second[path]), path


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
def test_a_mesh_and_micro_batches_change_nothing(ran):
    config, run = ran
    assert (config.accumulate, config.mesh) == (2, MeshConfig(data=1))
    whole = dataclasses.replace(config, accumulate=1, mesh=MeshConfig(data=1, fsdp=2))
    before, _, rows = steps_of(whole, 2)
    check_moved(before, flat(nnx.state(sj.load(run), nnx.Param)), config.trainable)
    for a, b in zip(rows, rows_of(run), strict=False):
        for key in ("loss", "grad_norm", "accuracy"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4)


# --- from a base folder ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(home):
    """A tiny InternVL3 as its maker has it: bfloat16, and no state tokens."""
    config = load_recipe("streamo_internvl3_2b", tiny=True, run=home / "streamo_internvl3_2b")
    folder = home / "base"
    tokenizer = home / "base_words"
    shutil.copytree(home / "streamo_internvl3_2b" / "tokenizer", tokenizer)
    for file in tokenizer.iterdir():
        text = file.read_text()
        for i, state in enumerate(STATES):
            text = text.replace(state, f"<|spare_{i}|>")
        file.write_text(text)
    assert not {*STATES} & {*load_tokenizer(tokenizer).get_vocab()}
    model = filled(lambda: config.model(nnx.Rngs(0)), jnp.bfloat16)
    model.assets = dataclasses.replace(model.assets, tokenizer=str(tokenizer))
    sj.save(model, folder)
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    return folder


def texts(home, base, *more):
    world = home / "streamo_qwen25vl_3b" / "world"
    return [f"base={base}", f"annotations={world}/streamo/train.json", f"videos={world}/videos",
            "length=768", "dialogues=2", *more]  # fmt: skip


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
def test_a_run_from_a_base_folder_ends_in_one_that_transformers_reads(home, base, monkeypatch):
    monkeypatch.setattr(loop, "make_step", hurried_step)
    name, run = "streamo_internvl3_2b", home / "from_base"
    more = [
        "steps=2",
        "batch_size=2",
        "accumulate=1",
        "mesh.fsdp=2",
        "mesh.data=1",
        "optim.lr=1e-3",
    ]
    config = load_recipe(name, texts(home, base, *more), run=run)
    assert (config.optim.b2, config.optim.weight_decay, config.optim.warmup) == (0.95, 0.1, 0.05)
    begun = config.model(nnx.Rngs(0), mesh=make_mesh(data=1, fsdp=2))
    assert begun.decoder.embed.get_value().sharding.spec[1] in ("fsdp", ("fsdp",))
    before = flat(nnx.state(begun, nnx.Param))
    names = flat_names(set_up(config, make_mesh(data=1, fsdp=2)).abstract.params)
    params, frozen = ({p: a for p, a in before.items() if (p in names) == t} for t in (True, False))
    assert all(a.dtype == np.float32 for a in params.values())
    assert all(a.dtype == jnp.bfloat16 for a in frozen.values())
    old = np.asarray(sj.load(base).decoder.embed[...], np.float32)
    embed = params["decoder/embed"]
    words = load_tokenizer(run / "tokenizer")
    assert len(old) < len(words) < len(embed) == -(-len(words) // 128) * 128
    np.testing.assert_array_equal(embed[: len(old)], old)
    np.testing.assert_allclose(embed[len(old) :], np.tile(old.mean(0), (len(embed) - len(old), 1)),
                               atol=1e-3)  # fmt: skip
    done = train(config, run, progress=silent, compilation_cache=home / "cache")
    assert np.isfinite([done.metrics["loss"], done.metrics["grad_norm"]]).all()
    check_moved(before, flat(nnx.state(done.model, nnx.Param)), config.trainable)
    assert cli.main(["export", str(run), str(run / "hf")]) == 0
    import transformers

    raw = transformers.AutoConfig.from_pretrained(run / "hf")
    assert raw.text_config.vocab_size == len(embed)
    assert json.loads((run / "hf" / "generation_config.json").read_text()) == {"do_sample": False}


def test_what_is_no_base_is_one_line(home, base, tmp_path):
    def said(name, folder, kind=InputError, *more):
        with pytest.raises(kind) as told:
            load_recipe(name, texts(home, folder, *more), run=tmp_path / "run")
        assert "\n" not in str(told.value)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return str(told.value)

    name = "streamo_internvl3_2b"
    assert "config.json: missing, wanted the folder of a" in said(name, "no", FileNotFoundError)
    assert "wanted qwen3_vl for this recipe" in said("streamo_qwen3vl_4b", base)

    def damaged(*, without):
        folder = tmp_path / without
        shutil.copytree(base, folder)
        (folder / without).unlink()
        return folder

    assert "tokenizer.json: missing" in said(name, damaged(without="tokenizer.json"),
                                             FileNotFoundError)  # fmt: skip
    assert "no image processor" in said(name, damaged(without="preprocessor_config.json"))
    chatless = tmp_path / "chatless"
    shutil.copytree(base, chatless)
    words = json.loads((chatless / "tokenizer.json").read_text())
    words["added_tokens"] = [t for t in words["added_tokens"] if "im_start" not in t["content"]]
    (chatless / "tokenizer.json").write_text(json.dumps(words))
    assert "the tokenizer has no token <|im_start|>" in said(name, chatless)
    gone = f"annotations={tmp_path}/none.json"
    assert "none.json: missing, wanted Streamo's" in said(name, base, FileNotFoundError, gone)


# --- the published sizes, without their memory -------------------------------------------------


def equations(jaxpr):
    """How many operations a program is written down in, those of its inner programs too."""
    inner = (
        value.jaxpr if hasattr(value, "jaxpr") else value
        for eqn in jaxpr.eqns
        for param in eqn.params.values()
        for value in (param if isinstance(param, tuple | list) else [param])
    )
    return len(jaxpr.eqns) + sum(equations(j) for j in inner if hasattr(j, "eqns"))


@pytest.mark.devices
@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize(("name", "size"), [("3b", "3B"), ("7b", "7B")])
def test_the_published_sizes_trace_in_seconds(name, size, home, qwen_folder, tmp_path):
    c = qwen2_5_vl.SIZES[size]
    blank = nnx.eval_shape(lambda: qwen2_5_vl.Qwen2_5_VL(c, rngs=nnx.Rngs(0)))
    folders.describe(blank, tmp_path / "base")
    QwenImageProcessor().to_folder(tmp_path / "base")
    for file in qwen_folder.iterdir():
        shutil.copyfile(file, tmp_path / "base" / file.name)
    world = home / "streamo_qwen25vl_3b" / "world"
    places = [f"base={tmp_path / 'base'}", f"annotations={world}/streamo/train.json",
              f"videos={world}/videos"]  # fmt: skip
    config = load_recipe(f"streamo_qwen25vl_{name}", places, run=tmp_path / "run")
    assert (config.batch_size, config.accumulate, config.optim.lr) == (512, 64, 1e-5)
    assert config.objective.keywords["state_ids"] == (151665, 151666, 151667)
    row = config.data.pack.row([config.data.transform(config.data.source()[0], RNG)])
    assert row["tokens"].shape == (32768,)
    model = functools.partial(
        streamo.fresh, config=c, dtype=jnp.bfloat16,
        assets=dataclasses.replace(blank.assets, processor=config.data.transform.processor),
    )  # fmt: skip
    shapes = dataclasses.replace(config, model=model, weights="fresh")
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    setup = set_up(shapes, mesh)
    billions = sum(a.size for a in jax.tree.leaves(setup.abstract.params)) / 1e9
    assert billions == pytest.approx({"3B": 3.13, "7B": 7.66}[size], abs=0.01)
    state = checkpoint.placed(setup.abstract, setup.shardings)
    batch = {k: jax.ShapeDtypeStruct((64, 8, *v.shape), v.dtype) for k, v in row.items()}
    with jax.set_mesh(mesh):
        traced = make_step(shapes, setup, mesh).trace(state, batch)
        # 36 layers and 28 are one program each; a loop that was unrolled would be many times this.
        assert equations(traced.jaxpr.jaxpr) < 20_000
        traced.lower()
