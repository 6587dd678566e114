"""The command line: answers at once, one line on what is wrong, the right exit code."""

import subprocess
import sys
import time

import pytest

from streamjax import cli, verbs
from streamjax.errors import InputError
from streamjax.verbs.shared import stem_of


def test_help_answers_at_once():
    """0.5 s is the promise; the floor of an interpreter that starts is measured beside it."""

    def seconds(*args):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *args], check=True, capture_output=True)
        return time.perf_counter() - begin

    taken = min(seconds("-m", "streamjax", "--help") - seconds("-c", "") for _ in range(5))
    assert taken < 0.4


def test_no_verb_and_help_print_every_verb(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert cli.main(args) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help_with_an_example(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: streamjax {verb}" in out
    assert f"Example: streamjax {verb}" in out


def test_eval_names_every_benchmark_and_two_have_their_own_arguments(capsys):
    from streamjax.evals.benchmarks import NAMES
    from streamjax.verbs.evaluating import OTHERS

    assert cli.main(["eval", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert [name for name in (*NAMES, *OTHERS) if name not in told] == []
    for name, option in (("pretraining", "--probe"), ("timing", "--hysteresis")):
        for args in (["model", name, "--help"], [name, "-h"]):
            assert cli.main(["eval", *args]) == 0
            out = capsys.readouterr().out
            assert "usage: streamjax eval" in out and option in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["strem"], "did you mean 'stream'?"),
        (["data", "pak"], "wanted one of data pack, data info"),
        (["data", "pack", "nowhere", "out"], "nowhere: no such folder"),
        (["stream"], "Missing from streamjax stream"),
        (["stream", "m", "v", "--fps", "fast"], "could not convert string to float: 'fast'"),
        (["stream", "m", "v", "--aks", "?"], "--ask"),
        (["stream", "m", "v", "--at", "3"], "found 1 --at for 0 --ask"),
        (["stream", "m", "missing.mp4"], "missing.mp4"),
        (["encode", "m", "missing.mp4"], "missing.mp4"),
        (["train", "demo_asistant_"], "demo_asistant_"),
        (["train", "streamo_qwen25vl_3b", "base=nowhere"], "nowhere/config.json: missing"),
        (["train", "streamo_qwen25vl_3b", "bas=nowhere"], "did you mean 'base'?"),
        (["eval", "m", "videomm", "--data", "x"], "benchmark 'videomm': wanted one of ovo_bench,"),
        (["eval", "score", "videomme", "--data", "x", "--predictions", "y"], "x: no such folder"),
        (["eval", "score", "videomme", "--data", ".", "--predictions", "y"], "y: no such file or"),
        (["eval", "score", "mlvu", "--data", ".", "--predictions", "y", "--rule", "z"], "official"),
        (["eval", "compare", "a", "b"], "a: no such file; wanted the result of a run"),
        (["export", "missing_run", "folder"], "missing_run"),
    ],
)
def test_bad_arguments_and_input_are_one_line_and_2(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("streamjax: ") and said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "streamjax: stopped\n"),
        (InputError("a.mp4: odd\n and even"), 2, "streamjax: a.mp4: odd and even\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "streamjax: x: No such file\n"),
    ],
)
def test_exit_codes(raised, code, said, capsys, monkeypatch):
    def doctor():
        """Raises."""
        raise raised

    monkeypatch.setattr(verbs, "doctor", doctor)
    assert cli.main(["doctor"]) == code
    assert said in capsys.readouterr().err


def test_a_reader_that_leaves_ends_it_quietly():
    code = (
        "import sys; from streamjax import cli, verbs\n"
        "def doctor():\n    'd'\n    for _ in range(10**6): print('line')\n"
        "verbs.doctor = doctor; sys.exit(cli.main(['doctor']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_doctor_tells_versions_devices_types_and_codecs(capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for start in ("streamjax ", "jax ", "av ", "device 7: cpu", "float32: yes", "h264: decode yes"):
        assert any(line.startswith(start) for line in lines), start


def test_files_lie_beside_the_video_or_in_out(tmp_path):
    assert stem_of(str(tmp_path / "a b.c.mp4"), None) == tmp_path / "a b.c"
    assert stem_of(str(tmp_path / "a.mp4"), tmp_path / "o") == tmp_path / "o" / "a"
    assert str(stem_of("0", None)) == "camera_0"
    assert str(stem_of("rtsp://host/live/gate.sdp?x=1/2", None)) == "gate"
    assert str(stem_of("http://host:80/", None)) == "host_80"
    assert str(stem_of("http://host/a%20b c.mp4", None)) == "a_20b_c"
