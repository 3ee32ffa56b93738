"""An OpenAI-compatible server: asked through the `openai` client, again where that may help, its secrets hidden."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from neftcli.errors import InputError, Problem
from neftcli.system.network import explain_unreachable

if TYPE_CHECKING:
    import httpx2

    from neftcli.recipe.schema import Judge

KEY_VARIABLE = "OPENAI_API_KEY"

_ADDRESS = re.compile(
    r"(https?)://(?:[^@/?#\s]*@)?([a-z\d._-]+|\[[a-f\d:.]+\])(:\d+)?(/[^\s?#@]*)?", re.ASCII | re.IGNORECASE
)
_KEY_LIKE = re.compile(r"\bsk-[^\s\"'<>,]+")
_SHORTEST_SECRET = 4  # shorter ones are no secrets, and to hide them would tear words and verdicts
_LONGEST_QUOTE = 300
OF_ONE_QUESTION = (400, 413, 422)
MOST_BYTES = 4 * 2**20
"""The longest body that is read of a reply; a reply of 1,000 tokens takes about 5 kB."""


def strip_credentials(base_url: str) -> str:
    """A server's address as it may be shown and stored: no user name, no password, no closing slash."""
    if address := _ADDRESS.fullmatch(base_url):
        scheme, host, port, path = address.groups("")
        return f"{scheme.lower()}://{host.lower()}{port}{path}".rstrip("/")
    # Not an address, so a password may stand anywhere before the last @, and a key behind ? or #.
    return re.split(r"[?#]", re.sub(r"^(https?://)?.*@", r"\1", base_url, flags=re.DOTALL))[0]


def is_valid_address(base_url: str) -> bool:
    """Return whether it is an http(s) address without a query, with a possible port."""
    try:
        return _ADDRESS.fullmatch(base_url) is not None and urlsplit(base_url).port != 0
    except ValueError:  # a port above 65535, or brackets around what is no IPv6 address
        return False


def require_reachable(settings: Judge) -> None:
    """Try a connection, so that a missing server is reported before hours of work.

    Raises:
        InputError: There is none, or a proxy's address can't be used.
    """
    reason = explain_unreachable(urlsplit(settings.base_url or ""))
    if reason:
        shown = strip_credentials(settings.base_url or "")
        raise InputError(
            Problem(
                f"evaluation.judge.base_url: no connection to {shown}",
                reason,
                "start the server, or put the address right: --judge http://127.0.0.1:8000/v1",
            )
        )


class RequestRejected(Problem):
    """What a server refuses of one question alone, such as its length or its content; others may be answered."""


class _RedirectedError(Exception):
    """The server redirects to a different server, which would be sent the rows, the answers and the key."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class ChatServer:
    """The connection to the judge; it asks, asks again where that may help, and hides secrets in what comes back.

    Waiting and asking again is the openai client's work. A body that is no chat completion looks to it like a broken
    connection (`_refuse_nonsense`), so that one count and one backoff hold for all failures. Each request has a
    deadline (`_Request`), a limit of bytes, and stays at the server that was named.
    """

    def __init__(self, settings: Judge) -> None:
        base_url = settings.base_url or ""
        self._settings = settings
        self._address = strip_credentials(base_url)
        self._limit = "max_tokens"
        parts, key = urlsplit(base_url), api_key()
        credentials = (unquote(parts.username or ""), unquote(parts.password or ""))
        basic = base64.b64encode(":".join(credentials).encode()).decode()
        secrets = {key, parts.username, parts.password, *credentials, basic}
        self._secrets = sorted((text for text in secrets if text and len(text) >= _SHORTEST_SECRET), key=len)[::-1]
        _silence_transport()
        with _without_openai_variables():
            from openai import OpenAI

            self._client = OpenAI(
                api_key=key or "none",
                base_url=self._address,
                timeout=settings.timeout,
                max_retries=settings.max_retries,
                default_headers={"Accept-Encoding": "identity"},
                http_client=_bounded_client(settings.timeout, credentials if any(credentials) else None),
            )

    def close(self) -> None:
        """Nothing is sent any more, not even by questions that wait to be asked again."""
        self._client.close()

    def ask(self, prompt: str) -> tuple[str, dict[str, int]] | Problem:
        """The reply to a prompt with the tokens it took, or what is wrong for good."""
        from openai import APIConnectionError, APIStatusError

        try:
            reply, usage = _completion(self._send(prompt))
        except APIStatusError as error:
            return self._refusal(error)
        except APIConnectionError as error:
            return self._failure(f"the judge at {self._address} failed", self._broken(error))
        except _RedirectedError as error:
            return self._redirected(error.target)
        return self._hide(reply), usage

    def _send(self, prompt: str) -> str:
        from openai import BadRequestError

        limit = self._limit
        try:
            return self._post(prompt, limit)
        except BadRequestError as error:
            if limit != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
        self._limit = "max_completion_tokens"  # what OpenAI's reasoning models call it, and no other server
        return self._post(prompt, self._limit)

    def _post(self, prompt: str, limit: str) -> str:
        return self._client.chat.completions.with_raw_response.create(
            model=self._settings.model or "",
            messages=[{"role": "user", "content": prompt}],
            temperature=self._settings.temperature,
            extra_body={limit: self._settings.max_tokens},
        ).text

    def _refusal(self, error: Any) -> Problem:
        """What an error status (openai.APIStatusError) means, and what to do."""
        status, judge = error.status_code, f"the judge at {self._address}"
        body = error.body if isinstance(error.body, dict) else {}
        messages = [body[name] for name in ("message", "detail") if isinstance(body.get(name), str)]
        said = f"{status}: {messages[0] if messages else error.response.text}"
        if status in (401, 403):
            key = f"the key in {KEY_VARIABLE}" if api_key() else f"to answer without a key in {KEY_VARIABLE}"
            return self._failure(f"{judge} refuses {key}", said, f"export {KEY_VARIABLE}=KEY, then ")
        if status == 404:
            unknown = f"{judge} knows no model {self._settings.model}, or the address is wrong"
            return self._failure(unknown, said, "--judge-model NAME, --judge with an address that ends in /v1; ")
        if status in OF_ONE_QUESTION:
            problem = self._failure(f"{judge} refuses the question", said, "put right what it says, then ")
            return RequestRejected(problem.message, problem.got, problem.hint)
        passes = status in (408, 409, 429) or status >= 500
        return self._failure(f"{judge} failed", said, "" if passes else "put right what it says, then ")

    def _redirected(self, target: str) -> Problem:
        """The problem of a redirect to a different server; the address to type has no query, which may be a secret."""
        address = strip_credentials(target).removesuffix("/chat/completions")
        problem = self._failure(f"the judge at {self._address} redirects to a different server", address)
        hint = f"--judge {problem.got}    if that server may have the rows, the answers and the key"
        return Problem(problem.message, problem.got, hint)

    def _broken(self, error: Exception) -> str:
        """What broke a connection (openai.APIConnectionError)."""
        from openai import APITimeoutError

        if isinstance(error, APITimeoutError):
            return f"no reply within {self._settings.timeout:g} seconds (evaluation.judge.timeout)"
        return str(error.__cause__) or type(error.__cause__).__name__

    def _failure(self, message: str, said: str, first: str = "") -> Problem:
        # Hidden before it is cut, so that no half of a key is left.
        quoted = "".join(letter if letter.isprintable() else " " for letter in self._hide(said))
        quoted = " ".join(quoted.split())
        quoted = f"{quoted[:_LONGEST_QUOTE]}…" if len(quoted) > _LONGEST_QUOTE else quoted
        return Problem(self._hide(message), quoted, f"{first}the same command again: it goes on from there")

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")
        return _KEY_LIKE.sub("[hidden]", text)


def api_key() -> str:
    """The key of the environment, or an empty string."""
    return os.environ.get(KEY_VARIABLE, "").strip()


class _Request:
    """A request in a thread of its own, which is abandoned at its deadline.

    A timeout of sockets bounds each read; a server that sends a byte now and then is never late by it, and looking up
    an address has no timeout at all.
    """

    def __init__(self) -> None:
        self._streams: list[Any] = []
        self._abandoned = threading.Event()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Keep the connection that httpcore reports; an abandoned request sends nothing more.

        Raises:
            TimeoutError: It is abandoned.
        """
        if hasattr(stream := info.get("return_value"), "get_extra_info"):
            self._streams.append(stream)
        if self._abandoned.is_set():
            for stream in self._streams:
                stream.close()
            raise TimeoutError

    def within(self, seconds: float, send: Callable[[], httpx2.Response]) -> httpx2.Response | None:
        """The response to `send` with its body; None if there is none in time."""
        outcome: list[httpx2.Response | BaseException] = []

        def run() -> None:
            try:
                outcome.append(send())
            except BaseException as error:  # raised again in the thread that waits
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        if not outcome:
            self._abandon()
            return None
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _abandon(self) -> None:
        """End the connection, which wakes the thread from the read in which it waits."""
        self._abandoned.set()
        for stream in self._streams:
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _bounded_client(seconds: float, credentials: tuple[str, str] | None) -> httpx2.Client:
    """A client of which each request, redirects included, takes at most `seconds`, and no reply much memory.

    It opens a connection for each request: only of a new one httpcore tells which it is, so that it can be ended.
    """
    import httpx2
    from openai import DefaultHttpxClient

    class BoundedClient(DefaultHttpxClient):
        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            bounded, whole = _Request(), super().send
            request.extensions["trace"] = bounded.trace
            response = bounded.within(seconds, lambda: whole(request, **options))
            if response is None:
                raise httpx2.ReadTimeout("the deadline passed", request=request)
            return response

    return BoundedClient(
        auth=credentials,
        event_hooks={"response": [_refuse_other_servers, _limit, _refuse_nonsense]},
        limits=httpx2.Limits(max_keepalive_connections=0),
    )


def _refuse_other_servers(response: httpx2.Response) -> None:
    """Accept a redirect only to the scheme, host and port of the request.

    Raises:
        _RedirectedError: It leads elsewhere.
    """
    if not response.has_redirect_location:
        return
    asked = response.request.url
    target = asked.join(response.headers["location"])
    if (target.scheme, target.host, target.port) != (asked.scheme, asked.host, asked.port):
        raise _RedirectedError(str(target))


def _limit(response: httpx2.Response) -> None:
    """Stop reading a body at MOST_BYTES, and reject one that would grow when unpacked.

    Raises:
        RemoteProtocolError: It is compressed, though that was not asked for.
    """
    import httpx2

    class Limited(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for piece in self._stream:
                count += len(piece)
                if count > MOST_BYTES:
                    said = f"the reply is longer than {MOST_BYTES:,} bytes"
                    raise httpx2.RemoteProtocolError(said, request=response.request)
                yield piece

        def close(self) -> None:
            self._stream.close()

    if response.headers.get("content-encoding", "identity").lower() != "identity":
        said = f"the reply is compressed ({response.headers['content-encoding']}), which was not asked for"
        raise httpx2.RemoteProtocolError(said, request=response.request)
    response.stream = Limited(response.stream)


def _refuse_nonsense(response: httpx2.Response) -> None:
    """Treat a body that is no chat completion as a broken connection, which the openai client tries again."""
    import httpx2

    if response.is_success:
        response.read()
        try:
            _completion(response.text)
        except ValueError as error:
            raise httpx2.RemoteProtocolError(str(error), request=response.request) from None


def _completion(body: str) -> tuple[str, dict[str, int]]:
    """The text of a chat completion and the tokens it took; ValueError says why there is none."""
    try:
        parsed = json.loads(body)
        [choice, *_] = parsed["choices"]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the body is no chat completion: {body}") from None
    if not isinstance(text, str):
        more = "; its length ran out, so raise evaluation.judge.max_tokens" if reason == "length" else ""
        raise ValueError(f"the reply has no text (finish_reason {reason}){more}")
    counts = parsed.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return text, {name: counts[name] for name in names if isinstance(counts.get(name), int)}


@contextmanager
def _without_openai_variables() -> Iterator[None]:
    """Hide OPENAI_* while the client is made: they redirect it, add headers to it, or make it log."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _silence_transport() -> None:
    """No request, header or address gets into a log; for good, as a request may outlive the call that sent it."""
    for name in ("openai", "httpx2", "httpcore2"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
