"""A saved stream goes on as if nothing had happened, here and in another process, bit for bit."""

import json
import zipfile

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import streamjax as sj
from streamjax.errors import InputError
from streamjax.stream import Sampling, StreamBatch, Thresholds, engine, snapshot
from tests.stream import kept

pytestmark = pytest.mark.xdist_group("kept")  # one worker compiles for both files
SAVED_AT = 17
CASES = {
    "session": ("llava", dict(sampling=Sampling(temperature=1.5, seed=3))),
    "refill": ("llava", dict(policy="refill", every=2)),
    "recent": ("llava", dict(policy="recent", thresholds=Thresholds(0.4, hysteresis=0.2))),
    # M-RoPE, deepstack, and a folder in bfloat16.
    "qwen": ("qwen", dict(policy="refill", every=2, state_ids=(1, 2, 3), end_id=59)),
}
SESSION = kept.SMALL | CASES["session"][1]  # one set of compiled programs for all that follows


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Few programs, and those kept for the other process, which would take as long again."""
    kept_as = engine.TEXT_BUCKETS
    engine.TEXT_BUCKETS = kept.BUCKETS
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    compilation_cache.reset_cache()
    yield
    engine.TEXT_BUCKETS = kept_as
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("snapshot")
    return {"llava": kept.write_assistant(home), "qwen": kept.write_qwen(home)}


@pytest.fixture(scope="module")
def models(folders):
    return {name: sj.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def expected(models, home):
    """Every case streamed to its end, and saved on the way."""
    found = {}
    for name, (family, options) in CASES.items():
        stream = sj.Stream(models[family], **kept.SMALL, **options)
        kept.watch(stream, models[family], 0, SAVED_AT)
        stream.save(home / f"{name}.snapshot")
        found[name] = kept.numbers(kept.watch(stream, models[family], SAVED_AT, kept.TURNS))
    return found


def test_another_process_goes_on_bit_for_bit(folders, expected, home):
    pairs = [(str(folders[f]), str(home / f"{name}.snapshot")) for name, (f, _) in CASES.items()]
    printed = kept.elsewhere(f"go_on({pairs!r}, {SAVED_AT}, {kept.TURNS})")
    for name, found in zip(CASES, json.loads(printed), strict=True):
        assert found == expected[name], name
    assert {state for turns in expected.values() for _, _, state, *_ in turns} == set(
        sj.data.dialogue.STATES
    ), "the case is too easy: not every state came up"


@pytest.mark.parametrize("name", CASES)
def test_here_too_and_it_is_the_same_file_again(models, expected, home, name, tmp_path):
    model = models[CASES[name][0]]
    stream = sj.restore(model, home / f"{name}.snapshot")
    stream.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (home / f"{name}.snapshot").read_bytes()
    assert kept.numbers(kept.watch(stream, model, SAVED_AT, kept.TURNS)) == expected[name]


def test_questions_in_flight_are_kept(models, home, expected):
    model = models["llava"]
    streams = [sj.restore(model, home / "session.snapshot")]
    handle = streams[0].ask("what is it")
    streams[0].ask("is it red", at=SAVED_AT + 2.0)
    streams[0].withdraw(1)  # of a turn long forgotten: it stands in the sink
    streams[0].save(home / "asked.snapshot")
    streams.append(sj.restore(model, home / "asked.snapshot"))
    a, b = (kept.watch(stream, model, SAVED_AT, kept.TURNS) for stream in streams)
    assert kept.numbers(a) == kept.numbers(b) != expected["session"]
    assert (a[0].asked, a[0].withdrawn) == (b[0].asked, b[0].withdrawn)
    assert [asked.handle for asked in a[0].asked] == [handle, handle + 1]


def test_before_the_first_frame(models, tmp_path):
    stream = sj.Stream(models["llava"], **SESSION)
    stream.ask("what is it")
    stream.save(tmp_path / "a")
    again = sj.restore(models["llava"], tmp_path / "a")
    a, b = (kept.watch(s, models["llava"], 0, 3) for s in (stream, again))
    assert kept.numbers(a) == kept.numbers(b) and b[0].asked == a[0].asked


def test_a_stream_of_a_batch_goes_on_alone(models, tmp_path):
    model, frames = models["llava"], kept.frames_for(models["llava"])
    batch = StreamBatch(model, slots=2, **kept.SMALL)
    quiet = Thresholds(respond=1.0)  # words would compile another program
    first, second = batch.join(thresholds=quiet), batch.join(thresholds=quiet)
    second.ask("what is it")
    for i, frame in enumerate(frames[:6]):
        batch.push({first: frame, second: frames[-1 - i]})
    second.save(tmp_path / "second")
    alone = sj.restore(model, tmp_path / "second")
    for frame in frames[8:10]:
        a, b = second.push(frame), alone.push(frame)
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
        assert (a.state, a.index) == (b.state, b.index)


def test_bfloat16_is_kept_as_it_is(expected, home):
    with zipfile.ZipFile(home / "qwen.snapshot") as file:
        kinds = json.loads(file.read("snapshot.json"))["arrays"]
    assert kinds["cache.k.0"] == kinds["spans.0.tokens"] == kinds["spans.1.deepstack"] == "bfloat16"


def test_every_field_of_a_book_is_written(models):
    """A field that is added has to be looked at: is it written, or made from the settings?"""
    book = sj.Stream(models["llava"])._book
    made = {"policy", "tokenizer", "format", "system", "close", "fps", "_header", "_bare"}
    assert vars(book).keys() == made | {*snapshot._PLAIN, "waiting", "sunk", "spans"}


def test_another_model_is_told(models, expected, home, tmp_path):
    path = home / "session.snapshot"
    with pytest.raises(InputError, match="a stream on a LlavaStreamFormer, found a Qwen3_VL"):
        sj.restore(models["qwen"], path)
    trained = jax.tree.map(lambda a: a * 1.001, models["llava"])
    with pytest.raises(InputError, match="a stream on other weights"):
        sj.restore(trained, path)
    shallow = kept.write_assistant(tmp_path, num_key_value_heads=4)
    with pytest.raises(InputError, match=r"decoder.num_key_value_heads 2, found 4"):
        sj.restore(sj.load(shallow), path)


def test_files_that_are_no_snapshots(models, expected, home, tmp_path):
    whole, path = (home / "refill.snapshot").read_bytes(), tmp_path / "broken"
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for broken in (whole[: len(whole) // 2], whole[:-5], b"", b"not a zip", bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"broken: no whole snapshot") as told:
            sj.restore(models["llava"], path)
        assert "\n" not in str(told.value)
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"foreign.npz: no snapshot.json"):
        sj.restore(models["llava"], tmp_path / "foreign.npz")
    with pytest.raises(FileNotFoundError):
        sj.restore(models["llava"], tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head | {"snapshot": 2}, "snapshot version 2, wanted 1"),
        (lambda head: head["arrays"].pop("cache.v.0") and head, "its arrays are not those"),
        (lambda head: head["arrays"].update({"cache.k.0": "int32"}) or head, "is float32, wanted"),
        (lambda head: head["engine"].update(ring=64) or head, "a ring of 64 slots"),
        (lambda head: head["stream"].update(window=1) or head, "window is 1 turns, wanted"),
        (lambda head: head["stream"].update(stop_ids=[1]) or head, "stop_ids are"),
        (lambda head: head["stream"].pop("fps") and head, "no fps"),
    ],
)
def test_what_a_snapshot_says_is_checked(models, expected, home, tmp_path, change, message):
    with (
        zipfile.ZipFile(home / "refill.snapshot") as old,
        zipfile.ZipFile(tmp_path / "changed", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name == "snapshot.json":
                data = json.dumps(change(json.loads(data)))
            new.writestr(name, data)
    with pytest.raises(InputError, match=message):
        sj.restore(models["llava"], tmp_path / "changed")


def test_nothing_is_left_of_a_failure(models, tmp_path, monkeypatch):
    stream = sj.Stream(models["llava"], **SESSION)
    stream.push(kept.frames_for(models["llava"])[0])

    def fails(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(np.lib.format, "write_array", fails)
    with pytest.raises(OSError, match="disk full"):
        stream.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.save(tmp_path / "a")
