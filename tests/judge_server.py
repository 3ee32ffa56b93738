"""An OpenAI-compatible server on 127.0.0.1 that answers as it is told, and can misbehave.

It counts what it is asked: what tests say about caching, retries and money is read off `requests`.
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
    """What the server was asked, once."""

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
    """A server that runs.

    Attributes:
        url: Its address, as `evaluation.judge.base_url` wants it.
        judge: From a prompt to a reply, for requests that the script leaves alone.
        script: What the next requests meet, in their order; `always` is what all later ones meet.
        requests: What came, in the order in which it came.
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
    """One request under way, as a behaviour sees it."""

    server: JudgeServer
    request: Request
    handler: BaseHTTPRequestHandler

    def send(self, status: int, body: str | bytes, type: str = "application/json", **headers: str) -> None:
        """Answers in full."""
        content = body.encode() if isinstance(body, str) else body
        self.handler.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": type, "Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(content)

    def reply(self, text: str | None, finish_reason: str = "stop") -> None:
        """Answers with a chat completion."""
        self.send(200, completion(text, finish_reason))


Behaviour = Callable[[Exchange], None]


def completion(text: str | None, finish_reason: str = "stop") -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def fine(exchange: Exchange) -> None:
    """What the server's judge says."""
    exchange.reply(exchange.server.judge(exchange.request.prompt))


def says(text: str | None, finish_reason: str = "stop") -> Behaviour:
    """This text, or a null."""
    return lambda exchange: exchange.reply(text, finish_reason)


def status(code: int, message: str = "no", **headers: str) -> Behaviour:
    """An error in OpenAI's form; headers with underscores for hyphens."""
    return lambda exchange: exchange.send(code, json.dumps({"error": {"message": message, "code": code}}), **headers)


def echoes_the_key(exchange: Exchange) -> None:
    """401 with all that came in the Authorization header, in body and header."""
    sent = exchange.request.headers["authorization"]
    exchange.send(401, json.dumps({"error": {"message": f"wrong key: {sent}, {sent.split()[-1]}"}}), X_Sent=sent)


def body(text: str | bytes, type: str = "application/json") -> Behaviour:
    """200 with this body, whatever it is."""
    return lambda exchange: exchange.send(200, text, type)


def cut(exchange: Exchange) -> None:
    """The connection breaks in the middle of the body."""
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
    """No answer until the server stops."""
    exchange.server.released.wait()
    exchange.handler.close_connection = True


def drips(exchange: Exchange, pause: float = 0.05, *, headers: bool = False) -> None:
    """A byte now and then, for ever: of a body, or of a header."""
    start = b"HTTP/1.1 200 OK\r\n" + (b"X-Slow: " if headers else b"\r\n")
    exchange.handler.wfile.write(start)
    exchange.handler.close_connection = True
    while not exchange.server.released.wait(pause):
        exchange.handler.wfile.write(b" ")


def streams(exchange: Exchange) -> None:
    """A body without an end, as fast as it is taken; `server.sent` counts its bytes."""
    exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    exchange.handler.close_connection = True
    piece = b" " * 65536
    while not exchange.server.released.is_set():
        exchange.handler.wfile.write(piece)
        exchange.server.sent += len(piece)


def redirects(target: str, status: int = 307) -> Behaviour:
    """To a path or an address."""
    return lambda exchange: exchange.send(status, "", Location=target)


def bomb(exchange: Exchange) -> None:
    """A body of 1 GB, in 1 MB."""
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(1024)) + packer.flush()
    exchange.send(200, packed, Content_Encoding="gzip")


@contextmanager
def judge_server(judge: Judgement = lambda prompt: "A") -> Iterator[JudgeServer]:
    """Runs a server on a free port of 127.0.0.1."""
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
    """Settings that ask this server, one question at a time."""
    return replace(Judge(base_url=server.url, model="m", concurrency=1), **settings)  # type: ignore[arg-type]


def silent(done: int, total: int) -> None:
    """Shows no progress."""


def answers_in(prompt: str) -> tuple[str, str]:
    """The answers A and B in the built-in prompt."""
    found = re.search(r"=== Answer A ===\n(.*)\n\n=== Answer B ===\n(.*)\n\n=== Your", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def prefers_longer(prompt: str) -> str:
    """A judge that likes length, wherever it stands."""
    a, b = answers_in(prompt)
    return "TIE" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def hashed_verdict(prompt: str) -> str:
    """A judge whose verdict hangs on every character, and is sometimes none."""
    return ["A", "B", "TIE", "**A.**", "Verdict: B", "no idea"][hashlib.sha256(prompt.encode()).digest()[0] % 6]
