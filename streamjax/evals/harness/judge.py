"""Another model as the judge of answers: any server that speaks OpenAI's chat completions.

What it has said is kept in a file, one line for each prompt, so that a rerun asks nothing twice.
"""

import concurrent.futures
import hashlib
import http.client
import json
import math
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamjax.errors import InputError, RunError
from streamjax.evals.benchmarks.benchmark import Benchmark, Judging, Records

KEY = "STREAMJAX_JUDGE_KEY"
"""The environment variable with the server's key, which goes to the server and is never written."""

TEMPERATURE = 0
MAX_TOKENS = 1024
# Of a reply, in bytes; of one try, in seconds.
LARGEST = 1 << 20
PATIENCE = 120.0
# Seconds between tries. A server that says how long is waited for, up to the longest.
WAITS = (1.0, 4.0, 15.0)
LONGEST_WAIT = 60.0
AT_ONCE = 4
# So many answers in a row that cannot be judged end the work: it is not the answers.
HOPELESS = 3


class _Busy(Exception):
    """This try came to nothing, another may not. wait: seconds that the server asks for."""

    def __init__(self, line: str, *, wait: float | None = None, nobody: bool = False):
        super().__init__(line)
        self.wait = wait
        self.nobody = nobody


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go to whoever is named there."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


class Judge:
    """A model behind a URL, `http://localhost:8000/v1` for example; without a path it is /v1.

    cache: a file of JSON lines with what was asked and what was replied, begun where it is missing.
    A key that the server wants comes from the environment variable STREAMJAX_JUDGE_KEY. problems:
    a line for what the last `judged` could not settle.

    Raises InputError for a URL, a key or a cache that cannot be used.
    """

    def __init__(self, url: str, model: str, *, cache: Path | None = None):
        if not model:
            raise InputError("the judge's model is '', wanted a name that its server knows")
        self.url = _base(url)
        self.model = model
        self.problems: tuple[str, ...] = ()
        self._key = _key()
        self._cache = cache
        self._said = {} if cache is None else _load(cache)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._reached = False
        self._open = urllib.request.build_opener(_Stay).open

    def manifest(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """What decides a verdict: the server, its model, the decoding, the prompts."""
        return {
            "url": self.url,
            "model": self.model,
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
            "prompts": dict(benchmark.judge_prompts),
        }

    def ask(self, prompt: str) -> str:
        """The reply to a prompt, from the cache or the server; "" where the model says nothing.

        Raises InputError where every prompt would fail alike (no such server, key or model), and
        RunError where this one does, after several tries.
        """
        payload = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
        }
        body = json.dumps(payload).encode()
        asked = hashlib.sha256(f"{self.url}\n".encode() + body).hexdigest()
        if asked not in self._said:
            reply = self._reply(body)
            row = {"asked": asked, "model": self.model, "prompt": prompt, "reply": reply}
            with self._lock:
                self._said[asked] = reply
                self._keep(row)
        return self._said[asked]

    def stop(self) -> None:
        """Ends the waiting between tries, for good."""
        self._stopped.set()

    def _reply(self, body: bytes) -> str:
        tries = 0
        while True:
            try:
                reply = self._tried(body)
                self._reached = True
                return reply
            except _Busy as error:
                tries += 1
                if error.nobody and not self._reached:
                    wanted = "wanted the URL of an OpenAI-compatible server that runs"
                    raise InputError(f"judge {self.url}: {error}; {wanted}") from None
                if tries > len(WAITS):
                    raise RunError(f"judge {self.url}: {error}, tried {tries} times") from None
                wait = WAITS[tries - 1] if error.wait is None else min(error.wait, LONGEST_WAIT)
            if self._stopped.wait(wait):
                raise RunError(f"judge {self.url}: stopped")

    def _tried(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        until = time.monotonic() + PATIENCE
        try:
            with self._open(request, timeout=PATIENCE) as response:
                content = _read(response, until)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, until) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Busy(f"no reply in {PATIENCE:g} s") from None
            nobody = isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))
            raise _Busy(self._line(reason) or type(reason).__name__, nobody=nobody) from None
        try:
            message = json.loads(content)["choices"][0]["message"]
            said = message.get("content") or message.get("refusal") or ""
        except (ValueError, LookupError, TypeError, AttributeError):
            said = None
        if not isinstance(said, str):
            raise _Busy(f"{self._line(content)!r} is no chat completion")
        return said

    def _refusal(self, error: urllib.error.HTTPError, until: float) -> Exception:
        """What an HTTP status says: of all prompts, of this one, or of now."""
        try:
            said = self._line(_read(error, until))
        except (OSError, http.client.HTTPException, RunError):
            said = ""
        line = f"HTTP {error.code}" + (f" ({said})" if said else "")
        where = f"judge {self.url}: {line}"
        if 300 <= error.code < 400:
            there = self._line(error.headers.get("Location") or "elsewhere")
            return InputError(f"{where}: it sends us to {there}; give the URL of that server")
        if error.code in (401, 403):
            found = "was not taken" if self._key else "is not set"
            return InputError(f"{where}: {KEY} {found}; set it to a key of this server")
        if error.code in (404, 405):
            return InputError(
                f"{where}: no chat completions there, or no model {self.model!r}; give the URL up "
                "to its /v1, and a model that it serves"
            )
        if error.code >= 500 or error.code in (408, 425, 429):
            return _Busy(line, wait=_seconds(error.headers.get("Retry-After")))
        return RunError(where)

    def _line(self, said: object) -> str:
        """Words of a server as part of one of our lines: short, printable, without the key."""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        text = text.replace(self._key, "***") if self._key else text
        shown = " ".join(text.split())
        shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
        return shown if len(shown) <= 120 else f"{shown[:117]}..."

    def _keep(self, row: Mapping[str, Any]) -> None:
        if self._cache is None:
            return
        try:
            with self._cache.open("a+b") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                cut_off = file.read(1) not in (b"", b"\n")
                file.write(b"\n" * cut_off + json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise RunError(f"{self._cache}: {error.strerror}; earlier replies are there") from None


def judged(
    benchmark: Benchmark,
    records: Records,
    answers: Mapping[str, Any],
    judge: Judge,
    progress: Callable[[int, int], None] | None = None,
) -> Mapping[str, Any]:
    """A judge's verdicts by id, for `records.verdicts`, where the benchmark's score reads them.

    One that the judge could not give is None; `judge.problems` counts those. progress: (done,
    total), called after each answer.

    Raises InputError where there is nothing to judge or no server, RunError where it answers no
    more; what it said until then is in its cache, so that a rerun goes on from there.
    """
    if benchmark.judging is None:
        raise InputError(f"{benchmark.name}: none of its answers needs a judge; leave it out")
    todo = benchmark.judging(records, answers)
    verdicts: dict[str, Any] = {}
    failures: list[str] = []
    in_a_row = 0
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    try:
        for one, replies in [(one, pool.submit(_replies, judge, one)) for one in todo]:
            try:
                verdicts[one.id] = one.verdict(replies.result())
                in_a_row = 0
            except RunError as error:
                verdicts[one.id] = None
                failures.append(str(error))
                in_a_row += 1
                if in_a_row == HOPELESS:
                    left = len(todo) - len(verdicts)
                    raise RunError(
                        f"{in_a_row} answers in a row could not be judged, {left} are left; a "
                        f"rerun goes on from there; the last: {error}"
                    ) from None
            if progress is not None:
                progress(len(verdicts), len(todo))
    except BaseException:
        judge.stop()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    unclear = sum(verdict is None for verdict in verdicts.values()) - len(failures)
    lines = []
    if failures:
        lines.append(f"{len(failures)} answers could not be judged, the first: {failures[0]}")
    if unclear:
        lines.append(f"{unclear} answers on which the judge's replies were unclear")
    judge.problems = tuple(lines)
    return verdicts


def _replies(judge: Judge, one: Judging) -> list[str]:
    return [judge.ask(prompt) for prompt in one.prompts]


def _base(url: str) -> str:
    """The URL up to the API's version."""
    wanted = "wanted one such as http://localhost:8000/v1"
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise InputError(f"the judge's URL has characters that no URL has, {wanted}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"the judge's URL cannot be read; {wanted}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"the judge's URL is none of http or https, {wanted}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(
            f"the judge's URL has a user, a query or a fragment, {wanted}; a key goes into the "
            f"environment variable {KEY}"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY} holds characters that no key has; set it to the server's key")
    return key


def _load(cache: Path) -> dict[str, str]:
    said: dict[str, str] = {}
    if not cache.parent.is_dir():
        raise InputError(f"{cache}: its folder is missing; make it")
    try:
        lines = cache.read_bytes().split(b"\n") if cache.exists() else []
    except OSError as error:
        raise InputError(f"{cache}: {error.strerror}; wanted a file of a judge's replies") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # Cut off when a run was ended: it is asked again.
        kept = isinstance(row, dict) and isinstance(row.get("reply"), str) and row.get("asked")
        if not kept:
            raise InputError(f"{cache}, line {number}: no reply of a judge; name another file")
        said[kept] = row["reply"]
    return said


def _read(response: Any, until: float) -> bytes:
    parts: list[bytes] = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if sum(map(len, parts)) > LARGEST:
            raise RunError(f"a judge's reply has more than {LARGEST} bytes; it was not read on")
        if time.monotonic() > until:
            raise TimeoutError
    return b"".join(parts)


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
