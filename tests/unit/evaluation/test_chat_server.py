"""A judge's server that fails, temporarily or permanently, and secrets that must not leak.

Oracles: the number of requests that a real server on loopback received, and a search for the key in all output.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import NeftError
from neftcli.evaluation.chat_server import MAX_REPLY_BYTES
from neftcli.evaluation.judge import (
    AnswerPair,
    JudgeError,
    judge_pairs,
    strip_credentials,
)
from neftcli.system.libraries import capture_library_output
from tests.judge_server import (
    KEY,
    PAIRS,
    Behaviour,
    Exchange,
    JudgeServer,
    body,
    bomb,
    completion,
    cut,
    drips,
    echoes_the_key,
    hashed_verdict,
    judge_of,
    judge_server,
    prefers_longer,
    redirects,
    says,
    silent,
    status,
    streams,
    stuck,
)

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.usefixtures("isolated_openai")]


# Temporary failures

TEMPORARY_FAILURES: dict[str, Behaviour] = {
    "429": status(429, Retry_After="0.01"),
    "408": status(408),
    "409": status(409),
    "500": status(500),
    "503": status(503),
    "slow": stuck,
    "cut": cut,
    "html": body("<html><body>Bad gateway</body></html>", "text/html"),
    "no choices": body('{"object": "chat.completion"}'),
    "empty choices": body('{"choices": []}'),
    "an error with status 200": body('{"error": {"message": "overloaded"}}'),
    "a list": body("[1, 2]"),
    "half a JSON": body('{"choices": [{"mess'),
    "null content": says(None),
    "empty body": body(""),
    "bytes": body(b"\xff\xfe\x00"),
}


@pytest.mark.slow
@pytest.mark.parametrize("failure", TEMPORARY_FAILURES.values(), ids=TEMPORARY_FAILURES.keys())
def test_judge_pairs_retries_a_temporary_failure(failure: Behaviour, server: JudgeServer, tmp_path: Path) -> None:
    """The question is sent once more, and its reply is stored once."""
    server.script = [failure]
    chosen = judge_of(server, timeout=0.2, max_retries=1)
    assert judge_pairs(PAIRS[:1], chosen, tmp_path / "c.jsonl", silent)[0].verdicts == ("answer", "opponent")
    assert len(server.requests) == 3
    assert server.requests[0].prompt == server.requests[1].prompt
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("failure", TEMPORARY_FAILURES.values(), ids=TEMPORARY_FAILURES.keys())
def test_judge_pairs_at_most_max_retries(failure: Behaviour, server: JudgeServer, tmp_path: Path) -> None:
    """Any failure is retried `max_retries` times."""
    server.always = failure
    with pytest.raises(JudgeError, match=r"; 0 of 4 questions are answered and kept in") as caught:
        judge_pairs(PAIRS, judge_of(server, timeout=0.1, max_retries=2), tmp_path / "c.jsonl", silent)
    assert len(server.requests) == 3
    assert caught.value.problems[0].hint.endswith("run the same command again: it resumes")
    assert caught.value.exit_code == 1
    assert isinstance(caught.value, NeftError)


def test_judge_pairs_error_quotes_the_server(server: JudgeServer, tmp_path: Path) -> None:
    """The error quotes the reply in one line, shortened."""
    for behaviour, quote in [
        (status(500, "out of\n  memory"), "500: out of memory"),
        (status(400, "context too long"), "400: context too long"),
        (body("<html>\n<p>" + "z" * 1000, "text/html"), f"the body is not a chat completion: <html> <p>{'z' * 200}"),
        (says(None, "length"), "the reply has no text (finish_reason length); it reached the token limit, so raise"),
        (stuck, "no reply within 0.1 seconds (evaluation.judge.timeout)"),
        (body('{"detail": "no"}'), '{"detail": "no"}'),
        (lambda exchange: exchange.send(500, '{"detail": "pinned"}'), "500: pinned"),
        (lambda exchange: exchange.send(500, '{"detail": [1]}'), '500: {"detail": [1]}'),
        (status(500, "\x1b[2Jcleared\x00"), "500: [2Jcleared"),
    ]:
        server.always = behaviour
        with pytest.raises(JudgeError) as caught:
            judge_pairs(PAIRS, judge_of(server, timeout=0.1, max_retries=0), tmp_path / "c.jsonl", silent)
        assert quote in caught.value.problems[0].got


def test_judge_pairs_no_server(tmp_path: Path) -> None:
    with judge_server() as server:
        gone = judge_of(server, max_retries=1)
    with pytest.raises(JudgeError, match=r"Connection refused"):
        judge_pairs(PAIRS, gone, tmp_path / "c.jsonl", silent)


def test_judge_pairs_obeys_retry_after(server: JudgeServer, tmp_path: Path) -> None:
    """The server's seconds replace the backoff, which would be far shorter."""
    server.script = [status(429, Retry_After="0.3")]
    start = time.monotonic()
    judge_pairs(PAIRS[:1], judge_of(server), tmp_path / "c.jsonl", silent)
    assert time.monotonic() - start > 0.3


def test_judge_pairs_ignores_a_long_retry_after(server: JudgeServer, tmp_path: Path) -> None:
    """At most two minutes are accepted (docs/evaluation.md)."""
    server.always = status(429, Retry_After="121")
    with pytest.raises(JudgeError, match="429"):
        judge_pairs(PAIRS[:1], judge_of(server, concurrency=1), tmp_path / "c.jsonl", silent)
    assert len(server.requests) == 1


def test_judge_pairs_exponential_backoff(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays double, less up to a quarter; also if the body is no chat completion."""
    waited: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waited.append)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 1.0)
    server.script = [status(500), body("<html>"), says(None)]
    judge_pairs(PAIRS[:1], judge_of(server), tmp_path / "c.jsonl", silent)
    waits = [seconds for seconds in waited if seconds > 0.5]  # the pool's own threads sleep a tenth of a second
    assert len(waits) == 3
    for seconds, most in zip(waits, (1, 2, 4), strict=True):
        assert 0.75 * most <= seconds <= most


def test_judge_pairs_max_completion_tokens(server: JudgeServer, tmp_path: Path) -> None:
    """If a model rejects max_tokens and asks for max_completion_tokens, all later requests use that name."""
    server.script = [status(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    judge_pairs(PAIRS, judge_of(server, max_tokens=9), tmp_path / "c.jsonl", silent)
    limits = [{name: value for name, value in request.body.items() if "tokens" in name} for request in server.requests]
    assert limits == [{"max_tokens": 9}, *[{"max_completion_tokens": 9}] * 4]
    server.always = status(400, "max_completion_tokens and max_tokens are both wrong")
    with pytest.raises(JudgeError):
        judge_pairs([AnswerPair("new", "a", "b")], judge_of(server), tmp_path / "c.jsonl", silent)
    assert len(server.requests) == 5 + 3  # max_tokens, the other name of it, and at once the other name


# Permanent failures


@pytest.mark.parametrize("concurrency", [1, 4])
def test_judge_pairs_keeps_replies_before_a_failure(concurrency: int, server: JudgeServer, tmp_path: Path) -> None:
    """The same call resumes: each question is answered once, and the verdicts are those of an uninterrupted call."""
    pairs = [AnswerPair(f"question {number}", "a", "b") for number in range(10)]
    chosen = judge_of(server, concurrency=concurrency, max_retries=0)
    server.judge = hashed_verdict
    expected = judge_pairs(pairs, chosen, tmp_path / "other.jsonl", silent)
    server.requests.clear()
    server.script = [lambda exchange: exchange.reply(hashed_verdict(exchange.request.prompt))] * 7
    server.always = status(500, "broken")
    with pytest.raises(JudgeError) as caught:
        judge_pairs(pairs, chosen, tmp_path / "c.jsonl", silent)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 7
    assert f"; 7 of 20 questions are answered and kept in {tmp_path / 'c.jsonl'}" in str(caught.value)
    assert len(server.requests) <= 7 + concurrency
    server.always = None
    server.requests.clear()
    assert judge_pairs(pairs, chosen, tmp_path / "c.jsonl", silent) == expected
    assert len(server.requests) == 13


@pytest.mark.parametrize("code", [400, 413, 422])
def test_judge_pairs_one_rejected_question(code: int, server: JudgeServer, tmp_path: Path) -> None:
    """A question that is too long or moderated has no score; the others have one, and it is sent again next time."""
    pairs = [AnswerPair("fine", "a", "b"), AnswerPair("forbidden", "a", "b"), AnswerPair("fine, too", "a", "b")]

    def moderate(exchange: Exchange) -> None:
        if "forbidden" in json.dumps(exchange.request.body):
            status(code, "this is not discussed here")(exchange)
        else:
            exchange.reply("A")

    server.always = moderate
    progress: list[tuple[int, int]] = []
    found = judge_pairs(pairs, judge_of(server), tmp_path / "c.jsonl", lambda *numbers: progress.append(numbers))
    assert [pair.score for pair in found] == [0.5, None, 0.5]
    assert found[1].verdicts == ("unparsed", "unparsed")
    assert progress[-1] == (6, 6)
    asked = len(server.requests)
    assert judge_pairs(pairs, judge_of(server), tmp_path / "c.jsonl", silent) == found
    assert len(server.requests) == asked + 2


def test_judge_pairs_waits_for_pending_replies(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pending reply is paid for, so it is awaited and stored, but not for longer than the grace period."""
    monkeypatch.setattr("neftcli.evaluation.judge.PENDING_SECONDS", 0.8)

    def slow(exchange: Exchange) -> None:
        time.sleep(0.2)
        exchange.reply("A")

    chosen = judge_of(server, concurrency=3, max_retries=0)
    server.script = [slow, stuck, status(403)]
    start = time.monotonic()
    with pytest.raises(JudgeError, match="1 of 4 questions is answered"):
        judge_pairs(PAIRS, chosen, tmp_path / "c.jsonl", silent)
    assert 0.2 < time.monotonic() - start < 6
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("code", "key", "message", "hint"),
    [
        (401, KEY, "rejects the key in OPENAI_API_KEY", "export OPENAI_API_KEY=KEY, then run the same command again"),
        (403, KEY, "rejects the key in OPENAI_API_KEY", "export OPENAI_API_KEY=KEY, then run the same command again"),
        (401, "", "needs a key in OPENAI_API_KEY", "export OPENAI_API_KEY=KEY"),
        (404, "", "has no model m, or the URL is wrong", "--judge-model NAME"),
        (400, "", "rejects the question; 0 of 4", "fix the cause, then run the same command again"),
    ],
)
def test_judge_pairs_wrong_key_or_model(
    code: int,
    key: str,
    message: str,
    hint: str,
    server: JudgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is retried; the hint says what to type."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.always = status(code, "go away")
    with pytest.raises(JudgeError) as caught:
        judge_pairs(PAIRS, judge_of(server, max_retries=5), tmp_path / "c.jsonl", silent)
    [problem] = caught.value.problems
    assert message in problem.message
    assert problem.got == f"{code}: go away"
    assert hint in problem.hint
    assert len(server.requests) == (4 if code == 400 else 1)  # a 400 may be of one question alone


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from neftcli.evaluation.judge import AnswerPair, judge_pairs
from neftcli.recipe.schema import Judge
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if this was started with &
assert "openai" not in sys.modules
pairs = [AnswerPair(f"question {number}", "a", "b") for number in range(50)]
judge_pairs(pairs, Judge(base_url=sys.argv[1], model="m", concurrency=4), Path(sys.argv[2]), lambda done, total: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failure", [stuck, status(429, Retry_After="60")], ids=["no reply", "told to wait"])
def test_judge_pairs_ctrl_c(failure: Behaviour, server: JudgeServer, tmp_path: Path) -> None:
    """Even if every thread waits for the server or for a retry; only Python's own traceback is printed."""
    cache = tmp_path / "c.jsonl"
    server.script = [says("A")] * 5
    server.always = failure
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.url, str(cache)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENAI_LOG": "debug"},
    )
    give_up = time.monotonic() + 60
    while len(server.requests) < 9 or cache.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=30)
    assert time.monotonic() - start < 5
    assert process.returncode == -signal.SIGINT
    assert output.rstrip().endswith("KeyboardInterrupt")
    assert "DEBUG" not in output
    assert len(cache.read_text().splitlines()) == 5
    assert len(server.requests) == 9


# Servers that take too long, send too much, or redirect

ENDLESS: dict[str, tuple[Behaviour, str]] = {
    "a body that drips": (drips, "no reply within 0.5 seconds (evaluation.judge.timeout)"),
    "a header that drips": (partial(drips, headers=True), "no reply within 0.5 seconds (evaluation.judge.timeout)"),
    "a body without end": (streams, f"the reply is longer than {MAX_REPLY_BYTES:,} bytes"),
    "a gzip bomb": (bomb, "the reply is compressed (gzip), which neft did not request"),
    "nested deep": (body("[" * 200_000), "the body is not a chat completion: [[["),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ENDLESS)
def test_judge_pairs_endless_reply(case: str, server: JudgeServer, tmp_path: Path) -> None:
    """A request ends within its time and memory limits, and so do the threads of abandoned requests."""
    server.always, got = ENDLESS[case]
    before = {thread.name for thread in threading.enumerate()}
    timeout = 30.0 if case in ("a body without end", "a gzip bomb") else 0.5
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(JudgeError) as caught:
        judge_pairs(PAIRS[:1], judge_of(server, timeout=timeout, max_retries=1, concurrency=1), tmp_path / "c", silent)
    assert time.monotonic() - start < (60 if timeout > 1 else 2 * timeout + 3)
    assert tracemalloc.get_traced_memory()[1] < 12 * MAX_REPLY_BYTES
    tracemalloc.stop()
    assert got in caught.value.problems[0].got
    assert len(server.requests) == 2
    assert server.sent < 4 * MAX_REPLY_BYTES + 2**25  # what the sockets hold, too
    deadline = time.monotonic() + 10
    while clients := [
        thread for thread in threading.enumerate() if thread.name not in before and "(run)" in thread.name
    ]:
        assert time.monotonic() < deadline, clients
        time.sleep(0.05)


def test_judge_pairs_slow_reply_within_the_timeout(server: JudgeServer, tmp_path: Path) -> None:
    def slow(exchange: Exchange) -> None:
        content = completion("A").encode()
        exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        for place in range(0, len(content), 40):
            exchange.handler.wfile.write(content[place : place + 40])
            time.sleep(0.05)

    server.always = slow
    assert judge_pairs(PAIRS[:1], judge_of(server, timeout=30), tmp_path / "c", silent)[0].score == 0.5
    assert len(server.requests) == 2


def test_judge_pairs_slow_dns_lookup(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request ends in time, and nothing is sent once the address is known."""
    look_up, known = socket.getaddrinfo, threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        known.wait(20)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    start = time.monotonic()
    with pytest.raises(JudgeError, match=r"no reply within 0\.3 seconds"):
        judge_pairs(PAIRS[:1], judge_of(server, timeout=0.3, max_retries=0), tmp_path / "c", silent)
    assert time.monotonic() - start < 5
    known.set()
    time.sleep(0.5)
    assert server.requests == []


@pytest.mark.parametrize("status", [307, 308])
def test_judge_pairs_follows_a_redirect_to_the_same_server(status: int, server: JudgeServer, tmp_path: Path) -> None:
    server.script = [redirects("/v2/chat/completions", status), redirects(f"{server.url}/other", status)]
    chosen = judge_of(server, concurrency=1)
    assert judge_pairs(PAIRS[:1], chosen, tmp_path / "c", silent)[0].verdicts == ("answer", "opponent")
    assert [request.path for request in server.requests[:3]] == [
        "/v1/chat/completions",
        "/v2/chat/completions",
        "/v1/other",
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["port", "host", "scheme"])
def test_judge_pairs_rejects_a_redirect_to_a_different_server(
    place: str, status: int, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names both servers; nothing is sent to the other one."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server() as other:
        port = server.url.rpartition(":")[2]
        target = {"port": other.url, "host": f"http://localhost:{port}", "scheme": f"https://127.0.0.1:{port}"}[place]
        server.always = redirects(f"{target}/chat/completions?key={KEY}", status)
        with pytest.raises(JudgeError) as caught:
            judge_pairs(PAIRS[:1], judge_of(server, concurrency=1), tmp_path / "c", silent)
        [problem] = caught.value.problems
        assert problem.message.startswith(f"the judge at {server.url} redirects to a different server; ")
        assert problem.got == target
        assert problem.hint == f"--judge {target}    if you trust that server with the rows, the answers and the key"
        assert (len(server.requests), other.requests) == (1, [])


# Secrets


def read_all_files(folder: Path) -> str:
    """Return the names and contents of all files below a folder."""
    return "\n".join(str(file) + file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def run_log(tmp_path: Path) -> Iterator[None]:
    """Write the run's log at level DEBUG."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    with capture_library_output(tmp_path / "log.txt", load=False):
        logging.getLogger("neftcli.test").debug("the log is open")
        yield
    root.setLevel(level)
    assert "the log is open" in (tmp_path / "log.txt").read_text()


@pytest.mark.usefixtures("run_log")
@pytest.mark.parametrize("behaviour", ["401", "reply", "html", "masked", "wait"])
@pytest.mark.parametrize("place", ["variable", "address"])
def test_judge_pairs_leaks_no_secret(
    behaviour: str,
    place: str,
    server: JudgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither the key nor a password in the address is in a file, the log, a message, its context or the output."""
    password = "Pass/w0rd-of-mine"  # noqa: S105
    basic = base64.b64encode(f"somebody:{password}".encode()).decode()
    url = server.url
    if place == "variable":
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    else:
        url = server.url.replace("//", "//somebody:Pass%2Fw0rd-of-mine@")
    echo = {
        "401": echoes_the_key,
        "reply": lambda exchange: exchange.reply(f"Sent: {exchange.request.headers['authorization']} {password}"),
        "html": body(f"<html>{'x' * 285} {KEY} {basic} {password} somebody", "text/html"),
        "masked": status(401, "Incorrect API key provided: sk-proj-***********fXYZ."),
        "wait": status(429, f"too many for {KEY} {basic}", Retry_After="0.01"),
    }
    server.always = echo[behaviour]
    error = ""
    with pytest.raises(JudgeError) if behaviour != "reply" else nullcontext() as caught:
        judge_pairs(PAIRS, judge_of(server, base_url=url, max_retries=1), tmp_path / "c.jsonl", silent)
    if caught is not None:
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        error = str(caught.value) + "".join(traceback.format_exception(caught.value))
    sent = {request.headers["authorization"] for request in server.requests}
    assert sent == ({f"Bearer {KEY}"} if place == "variable" else {f"Basic {basic}"})
    output = capfd.readouterr()
    everywhere = read_all_files(tmp_path) + error + output.out + output.err
    secrets = [KEY, "sk-proj", "fXYZ"] if place == "variable" else [basic, password, "Pass%2F", "somebody"]
    assert [secret for secret in secrets if secret in everywhere] == []


@pytest.mark.parametrize("key", ["none", "EMPTY", "A", "B", "TIE"])
def test_judge_pairs_key_that_is_a_common_word(
    key: str, server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any word may be the key of a local server; verdicts that contain it are still read."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.judge = prefers_longer
    assert judge_pairs(PAIRS, judge_of(server), tmp_path / "c.jsonl", silent)[0].score == 0.0


def test_judge_pairs_ignores_openai_variables(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the key is used; the other variables are unchanged afterwards."""
    others = {
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "OPENAI_ORG_ID": "an-organisation",
        "OPENAI_PROJECT_ID": "a-project",
        "OPENAI_ADMIN_KEY": "an-admin-key",
        "OPENAI_CUSTOM_HEADERS": "X-Mine: a-header\nAuthorization: Bearer another",
        "OPENAI_LOG": "debug",
        "OPENAI_API_KEY": KEY,
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    judge_pairs(PAIRS, judge_of(server), tmp_path / "c.jsonl", silent)
    assert len(server.requests) == 4
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert not {"openai-organization", "openai-project", "x-mine"} & set(request.headers)
    assert {name: os.environ[name] for name in others} == others


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("HTTPS://user:pw@Example.COM/v1/", "https://example.com/v1"),
        ("http://token@host", "http://host"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://user:pa/ss@host/v1", "http://host/v1"),
        ("http://user:pa ss?@host/v1", "http://host/v1"),
        ("user:pw@host/v1", "host/v1"),
        ("ftp://user:pw@host", "host"),
        ("http://user:p@ss@host", "http://host"),
    ],
)
def test_strip_credentials(url: str, shown: str) -> None:
    """Even if the address can't be used."""
    assert strip_credentials(url) == shown
