"""A judge behind a URL: what it is asked, what it costs to ask again, and servers that misbehave."""

import dataclasses
import http.server
import json
import threading
import time

import pytest

from streamjax.errors import InputError, RunError
from streamjax.evals.benchmarks import streamo_bench
from streamjax.evals.benchmarks.benchmark import Benchmark, Judging, Records
from streamjax.evals.harness import judge as judging
from streamjax.evals.harness.judge import Judge, judged

CAPTIONS = ("narration", "dense_caption")


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}), {}


class Server:
    """A server of one test: `reply` makes (status, body, headers) from a prompt; `seen` is what came."""

    def __init__(self):
        self.seen = []
        self.reply = lambda prompt: completion("Verdict: A")
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append((self.path, dict(self.headers), body))
                status, said, headers = server.reply(body["messages"][0]["content"])
                said = said if isinstance(said, bytes) else said.encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(said)))
                    self.end_headers()
                    self.wfile.write(said)
                except OSError:
                    pass

            def log_message(self, format, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def prompts(self):
        return [body["messages"][0]["content"] for _, _, body in self.seen]


@pytest.fixture(scope="module")
def running():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(running, monkeypatch):
    running.seen.clear()
    running.reply = lambda prompt: completion("Verdict: A")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(judging.KEY, raising=False)
    monkeypatch.setattr(judging, "WAITS", (0.001, 0.001, 0.001))
    return running


def test_it_asks_a_chat_completion_greedily(server):
    assert Judge(server.url, "big").ask("Which?") == "Verdict: A"
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert body["model"] == "big" and body["temperature"] == 0
    assert body["messages"] == [{"role": "user", "content": "Which?"}]
    assert "Authorization" not in headers


def test_the_key_goes_to_the_server_and_nowhere_else(server, monkeypatch, tmp_path):
    monkeypatch.setenv(judging.KEY, "sk-secret\n")
    judge = Judge(server.url + "/v1/", "big", cache=tmp_path / "judge.jsonl")
    judge.ask("Which?")
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in (tmp_path / "judge.jsonl").read_text()
    assert "sk-secret" not in json.dumps(judge.manifest(bench()))
    server.reply = lambda prompt: (401, "no key sk-secret here", {})
    with pytest.raises(InputError, match="HTTP 401.*STREAMJAX_JUDGE_KEY was not taken") as told:
        judge.ask("And now?")
    assert "sk-secret" not in str(told.value) and "***" in str(told.value)
    monkeypatch.setenv(judging.KEY, "sk\nsecret")
    with pytest.raises(InputError, match="characters that no key has") as told:
        Judge(server.url, "big")
    assert "secret" not in str(told.value)


def test_a_rerun_asks_nothing_twice(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    Judge(server.url, "big", cache=cache).ask("one\u2028line")
    with cache.open("ab") as file:
        file.write(b'{"asked": "cut off')
    again = Judge(server.url, "big", cache=cache)
    assert again.ask("one\u2028line") == "Verdict: A" and len(server.seen) == 1
    again.ask("two")
    again = Judge(server.url, "big", cache=cache)
    assert again.ask("two") == again.ask("one\u2028line") and len(server.seen) == 2
    Judge(server.url, "other", cache=cache).ask("two")
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "bad",
    [
        (500, "out of memory", {}),
        (503, "", {"Retry-After": "0"}),
        (429, "slow down", {"Retry-After": "nan"}),
        (200, "<html>\n", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": {"content": [1]}}]}', {}),
        (200, "[1]", {}),
    ],
)
def test_what_may_pass_is_tried_again_and_told_when_it_does_not(server, bad):
    server.reply = lambda prompt: bad if len(server.seen) < 3 else completion("fine")
    assert Judge(server.url, "big").ask("Which?") == "fine"
    server.reply = lambda prompt: bad
    with pytest.raises(RunError, match="tried 4 times") as told:
        Judge(server.url, "big").ask("Which?")
    assert "\n" not in str(told.value) and len(server.seen) == 7


@pytest.mark.parametrize(
    ("bad", "error", "line"),
    [
        ((404, "nothing here", {}), InputError, "no model 'big'; give the URL up to its /v1"),
        ((403, "", {}), InputError, "STREAMJAX_JUDGE_KEY is not set"),
        ((307, "", {"Location": "http://127.0.0.1:9/v2"}), InputError, "sends us to http://127"),
        ((400, "too long\x1b[31m", {}), RunError, r"HTTP 400 \(too long"),
        ((200, "x" * (judging.LARGEST + 1), {}), RunError, "more than 1048576 bytes"),
    ],
)
def test_what_will_not_pass_is_told_at_once(server, bad, error, line):
    server.reply = lambda prompt: bad
    with pytest.raises(error, match=line) as told:
        Judge(server.url, "big").ask("Which?")
    assert len(server.seen) == 1
    assert str(told.value).isprintable()


def test_a_server_that_hangs_is_not_waited_for_long(server, monkeypatch):
    monkeypatch.setattr(judging, "PATIENCE", 0.1)
    monkeypatch.setattr(judging, "WAITS", (0.001,))
    server.reply = lambda prompt: time.sleep(0.4) or completion("late")
    with pytest.raises(RunError, match="no reply in 0.1 s, tried 2 times"):
        Judge(server.url, "big").ask("Which?")


def test_no_server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match="127.0.0.1:9/v1.*refused.*wanted the URL of an OpenAI"):
        Judge("http://127.0.0.1:9", "big").ask("Which?")


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("localhost:8000", "none of http or https, wanted one such as http://"),
        ("file:///etc/hosts", "wanted one such as"),
        ("http://", "wanted one such as"),
        ("ftp://me:sk-secret@host", "none of http or https"),
        ("http://[::1", "cannot be read"),
        ("http://host:port", "cannot be read"),
        ("http://me:sk-secret@host/v1", "a key goes into the environment variable"),
        ("https://host/v1?key=sk-secret", "a key goes into the environment variable"),
        ("http://höst/v1", "characters that no URL has"),
    ],
)
def test_a_url_that_is_none(url, line):
    with pytest.raises(InputError, match=line) as told:
        Judge(url, "big")
    assert "sk-secret" not in str(told.value) and "\n" not in str(told.value)


def test_a_url_may_be_given_in_full():
    assert Judge("http://h:1/v1/chat/completions", "m").url == "http://h:1/v1"
    assert Judge("https://h/openai/v2/", "m").url == "https://h/openai/v2"


def test_a_cache_that_is_none(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "answer": "B"}\n')
    with pytest.raises(InputError, match="line 1: no reply of a judge; name another file"):
        Judge("http://h", "m", cache=tmp_path / "answers.jsonl")
    with pytest.raises(InputError, match="its folder is missing"):
        Judge("http://h", "m", cache=tmp_path / "none" / "judge.jsonl")
    with pytest.raises(InputError, match="wanted a file of a judge's replies"):
        Judge("http://h", "m", cache=tmp_path)
    with pytest.raises(InputError, match="the judge's model is ''"):
        Judge("http://h", "")


def bench():
    """A benchmark in which two prompts judge each answer."""

    def ask(records, answers):
        return [
            Judging(key, (f"{key} first", f"{key} second"), lambda said: dict(a=1).get(said[0]))
            for key in answers
        ]

    unused = lambda *_: pytest.fail("the judge only judges")
    nothing = Benchmark("b", "B", {"r": ""}, unused, unused, unused)
    return dataclasses.replace(nothing, judging=ask, judge_prompts={"pair": "{a} or {b}?"})


ANSWERS = {str(i): "text" for i in range(8)}
NOTHING = Records([], [])


def test_every_answer_gets_its_verdict_and_progress_is_told(server):
    server.reply = lambda prompt: completion("a" if prompt.startswith("3") else "b")
    steps = []
    judge = Judge(server.url, "big")
    verdicts = judged(bench(), NOTHING, ANSWERS, judge, lambda done, of: steps.append((done, of)))
    assert verdicts == {key: 1 if key == "3" else None for key in ANSWERS}
    assert list(verdicts) == list(ANSWERS) and steps == [(i, 8) for i in range(1, 9)]
    assert sorted(server.prompts) == sorted(
        f"{k} {p}" for k in ANSWERS for p in ("first", "second")
    )
    assert judge.problems == ("7 answers on which the judge's replies were unclear",)
    assert judge.manifest(bench()) == {
        "url": f"{server.url}/v1",
        "model": "big",
        "temperature": 0,
        "max_tokens": 1024,
        "prompts": {"pair": "{a} or {b}?"},
    }


def test_one_that_fails_is_counted_and_the_rest_goes_on(server):
    server.reply = lambda prompt: (500, "", {}) if prompt[0] in "25" else completion("a")
    judge = Judge(server.url, "big")
    verdicts = judged(bench(), NOTHING, ANSWERS, judge)
    assert [key for key, verdict in verdicts.items() if verdict is None] == ["2", "5"]
    (line,) = judge.problems
    assert line.startswith("2 answers could not be judged, the first: judge http") and "500" in line


def test_a_server_that_dies_ends_it_in_one_line_and_a_rerun_goes_on(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    server.reply = lambda prompt: (500, "", {}) if prompt[0] > "2" else completion("a")
    with pytest.raises(
        RunError, match="3 answers in a row could not be judged, 2 are left"
    ) as told:
        judged(bench(), NOTHING, ANSWERS, Judge(server.url, "big", cache=cache))
    assert "\n" not in str(told.value)
    server.reply = lambda prompt: completion("a")
    time.sleep(0.1)  # Until what was on its way has ended.
    server.seen.clear()
    verdicts = judged(bench(), NOTHING, ANSWERS, Judge(server.url, "big", cache=cache))
    assert set(verdicts.values()) == {1} and min(server.prompts) > "2"


def ours_first(prompt):
    return prompt.index("Step 0.") < prompt.index("A cat.")


@pytest.mark.parametrize(
    ("reply", "verdicts", "rate"),
    [
        (lambda prompt: "The first.\nVerdict: A", "tie", 0),
        (lambda prompt: "Verdict: " + ("A" if ours_first(prompt) else "B"), "win", 100),
        (lambda prompt: "Verdict: " + ("B" if ours_first(prompt) else "A"), "lose", 0),
        (lambda prompt: "As a language model I must not prefer.", None, None),
    ],
)
def test_captions_of_streamo_bench(server, tmp_path, golden, reply, verdicts, rate):
    folder = golden / "bench" / "streamo_bench"
    for name in ("streamo_bench.json", "predictions.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    rival = {f"{video}_{task}": [[3, "A cat."]] for video in "01" for task in CAPTIONS}
    (tmp_path / streamo_bench.BASELINE).write_text(json.dumps(rival))
    records = streamo_bench.read(tmp_path)
    answers = json.loads((tmp_path / "predictions.json").read_text())
    answers = {key: [[26, "Step 0."]] if key in rival else said for key, said in answers.items()}
    server.reply = lambda prompt: completion(reply(prompt))
    found = judged(streamo_bench.STREAMO_BENCH, records, answers, Judge(server.url, "big"))
    assert found == dict.fromkeys(rival, verdicts) and len(server.seen) == 8
    records = dataclasses.replace(records, verdicts=found)
    scores = streamo_bench.score(records, answers, "streamo_derived")
    assert scores.table["Narration (win rate)"] == rate
    assert (scores.table["Average"] is None) == (rate is None)


def test_a_benchmark_without_anything_to_judge(server):
    plain = dataclasses.replace(bench(), judging=None)
    with pytest.raises(InputError, match="b: none of its answers needs a judge"):
        judged(plain, NOTHING, ANSWERS, Judge(server.url, "big"))
