"""An OpenAI-compatible server on 127.0.0.1 with scripted answers and failures.

It records all requests, so that tests of caching, retries and costs can count them in `requests`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from neftcli.evaluation.judge import AnswerPair
from neftcli.recipe.schema import Judge

Judgement = Callable[[str], str]


@dataclass(frozen=True)
class Request:
    """A request to the server."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The question."""
        prompt: str = self.body["messages"][-1]["content"]
        return prompt


@dataclass
class JudgeServer:
    """A running server.

    Attributes:
        url: Its address, for `evaluation.judge.base_url`.
        judge: From a prompt to a reply, for requests without a scripted behaviour.
        script: Behaviours for the next requests, in order; `always` is the behaviour for all later ones.
        requests: The requests, in the order of their arrival.
    """

    url: str
    judge: Judgement
    script: list[Behaviour] = field(default_factory=list)
    always: Behaviour | None = None
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    unexpected: list[str] = field(default_factory=list)


@dataclass
class Exchange:
    """A request that is being answered, for a behaviour."""

    server: JudgeServer
    request: Request
    handler: BaseHTTPRequestHandler

    def send(self, status: int, body: str | bytes, type: str = "application/json", **headers: str) -> None:
        """Send a complete response."""
        content = body.encode() if isinstance(body, str) else body
        self.handler.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": type, "Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(content)

    def reply(self, text: str | None, finish_reason: str = "stop") -> None:
        """Send a chat completion."""
        self.send(200, completion(text, finish_reason))


Behaviour = Callable[[Exchange], None]


def completion(text: str | None, finish_reason: str = "stop") -> str:
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def fine(exchange: Exchange) -> None:
    """Reply as the server's judge does."""
    exchange.reply(exchange.server.judge(exchange.request.prompt))


def says(text: str | None, finish_reason: str = "stop") -> Behaviour:
    """Reply with this text, or with null."""
    return lambda exchange: exchange.reply(text, finish_reason)


def status(code: int, message: str = "no", **headers: str) -> Behaviour:
    """Reply with an error in OpenAI's form; underscores in names of headers stand for hyphens."""
    return lambda exchange: exchange.send(code, json.dumps({"error": {"message": message, "code": code}}), **headers)


def echoes_the_key(exchange: Exchange) -> None:
    """Reply 401, with the Authorization header in body and header."""
    sent = exchange.request.headers["authorization"]
    exchange.send(401, json.dumps({"error": {"message": f"wrong key: {sent}, {sent.split()[-1]}"}}), X_Sent=sent)


def body(text: str | bytes, type: str = "application/json") -> Behaviour:
    """Reply 200 with this body, whatever it is."""
    return lambda exchange: exchange.send(200, text, type)


def cut(exchange: Exchange) -> None:
    """Break the connection in the middle of the body."""
    half = completion("A").encode()[:40]
    exchange.handler.send_response(200)
    exchange.handler.send_header("Content-Type", "application/json")
    exchange.handler.send_header("Content-Length", "400")
    exchange.handler.end_headers()
    exchange.handler.wfile.write(half)
    exchange.handler.wfile.flush()
    exchange.handler.connection.shutdown(socket.SHUT_RDWR)
    exchange.handler.close_connection = True


def stuck(exchange: Exchange) -> None:
    """Don't answer until the server stops."""
    exchange.server.released.wait()
    exchange.handler.close_connection = True


def drips(exchange: Exchange, pause: float = 0.05, *, headers: bool = False) -> None:
    """Send a byte now and then, forever: of a body, or of a header."""
    start = b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if headers else b"\r\n")
    exchange.handler.wfile.write(start)
    exchange.handler.close_connection = True
    while not exchange.server.released.wait(pause):
        exchange.handler.wfile.write(b" ")


def streams(exchange: Exchange) -> None:
    """Send a body without an end, as fast as it is read; `server.sent` counts its bytes."""
    exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    exchange.handler.close_connection = True
    piece = b" " * 65536
    while not exchange.server.released.is_set():
        exchange.handler.wfile.write(piece)
        exchange.server.sent += len(piece)


def redirects(target: str, status: int = 307) -> Behaviour:
    """Redirect to a path or an address."""
    return lambda exchange: exchange.send(status, "", Location=target)


def bomb(exchange: Exchange) -> None:
    """Send a body of 1 GB, compressed to 1 MB."""
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(1024)) + packer.flush()
    exchange.send(200, packed, Content_Encoding="gzip")


@contextmanager
def judge_server(judge: Judgement = lambda prompt: "A") -> Iterator[JudgeServer]:
    """Run a server on a free port of 127.0.0.1."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are written apart; a tenth of a second otherwise

        def do_POST(self) -> None:
            content = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(content) < length:
                raise ConnectionAbortedError("the client hung up while it asked")
            request = Request(
                self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(content)
            )
            with lock:
                server.requests.append(request)
                behaviour = server.script.pop(0) if server.script else server.always or fine
            behaviour(Exchange(server, request, self))

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: what the tests read is `requests`."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            # The client hangs up on answers that come too late.
            if not isinstance(sys.exc_info()[1], ConnectionError):
                server.unexpected.append(repr(sys.exc_info()[1]))

    with Server(("127.0.0.1", 0), Handler) as listening:
        server = JudgeServer(f"http://127.0.0.1:{listening.server_port}/v1", judge)
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            listening.shutdown()
    assert not server.unexpected, server.unexpected


KEY = "sk-proj-0123456789abcdefXYZ"
PAIRS = [
    AnswerPair("Name a fruit.", "Apple.", "A fruit is an apple, for one."),
    AnswerPair("2 + 3?", "5", "It is five."),
]


def judge_of(server: JudgeServer, **settings: object) -> Judge:
    """Return settings that use this server, one question at a time."""
    return replace(Judge(base_url=server.url, model="m", concurrency=1), **settings)  # type: ignore[arg-type]


def silent(done: int, total: int) -> None:
    """Report no progress."""


def answers_in(prompt: str) -> tuple[str, str]:
    """Return the answers A and B in the built-in prompt."""
    found = re.search(r"=== Answer A ===\n(.*)\n\n=== Answer B ===\n(.*)\n\n=== Your", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def prefers_longer(prompt: str) -> str:
    """Judge that prefers the longer answer, in either position."""
    a, b = answers_in(prompt)
    return "TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def hashed_verdict(prompt: str) -> str:
    """Judge whose verdict depends on every character, and is sometimes unreadable."""
    return ["A", "B", "TIE", "**A.**", "Verdict: B", "no idea"][hashlib.sha256(prompt.encode()).digest()[0] % 6]
