"""Connection to an OpenAI-compatible server by the `openai` client, with deadlines, limits and redaction of secrets."""

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
from neftcli.wording import count_noun

if TYPE_CHECKING:
    import httpx2

    from neftcli.recipe.schema import Judge

KEY_VARIABLE = "OPENAI_API_KEY"

_ADDRESS = re.compile(
    r"(https?)://(?:[^@/?#\s]*@)?([a-z\d._-]+|\[[a-f\d:.]+\])(:\d+)?(/[^\s?#@]*)?", re.ASCII | re.IGNORECASE
)
_KEY_LIKE = re.compile(r"\bsk-[^\s\"'<>,]+")
_MIN_SECRET = 4  # hiding shorter strings would remove parts of words and verdicts
_MAX_QUOTE = 300
QUESTION_STATUSES = (400, 413, 422)
"""Statuses that reject one question; others may be answered."""
MAX_REPLY_BYTES = 4 * 2**20
"""Bytes of a reply that are read at most; a reply of 1,000 tokens takes about 5 kB."""


def strip_credentials(base_url: str) -> str:
    """Return a server's address for messages and files: without user name, password and final slash."""
    if address := _ADDRESS.fullmatch(base_url):
        scheme, host, port, path = address.groups("")
        return f"{scheme.lower()}://{host.lower()}{port}{path}".rstrip("/")
    # Not an address, so there may be a password anywhere before the last @, and a key after ? or #.
    return re.split(r"[?#]", re.sub(r"^(https?://)?.*@", r"\1", base_url, flags=re.DOTALL))[0]


def is_valid_address(base_url: str) -> bool:
    """Return whether an address is http(s), without a query, with a valid port if any."""
    try:
        return _ADDRESS.fullmatch(base_url) is not None and urlsplit(base_url).port != 0
    except ValueError:  # a port above 65535, or brackets around something that is not an IPv6 address
        return False


def require_reachable(settings: Judge) -> None:
    """Try a connection, so that a missing server is reported before hours of work.

    Raises:
        InputError: There is no connection, or the address of a proxy can't be used.
    """
    reason = explain_unreachable(urlsplit(settings.base_url or ""))
    if reason:
        shown = strip_credentials(settings.base_url or "")
        raise InputError(
            Problem(
                f"evaluation.judge.base_url: no connection to {shown}",
                reason,
                "start the server, or correct the URL: --judge http://127.0.0.1:8000/v1",
            )
        )


class RequestRejected(Problem):
    """The problem of one question that a server rejects, e.g. for its length or content; others may be answered."""


class _RedirectedError(Exception):
    """A redirect to a different server, which would receive the rows, the answers and the key."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class ChatServer:
    """Connection to the judge.

    The openai client retries failed requests with backoff. A body that is not a chat completion is reported to it as a
    broken connection (`_require_completion`), so the same number of retries holds for all failures. neft adds a
    deadline for each attempt (`_DeadlineRequest`), a limit of bytes, the restriction to the given server, and hides
    secrets in replies and messages.
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
        long_enough = [text for text in secrets if text and len(text) >= _MIN_SECRET]
        self._secrets = sorted(long_enough, key=len, reverse=True)
        _silence_transport_logs()
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
        """Close the client; waiting retries send nothing more."""
        self._client.close()

    def ask(self, prompt: str) -> tuple[str, dict[str, int]] | Problem:
        """Return the reply to a prompt and its token counts, or the problem if all attempts failed."""
        from openai import APIConnectionError, APIStatusError

        try:
            reply, usage = _completion(self._send(prompt))
        except APIStatusError as error:
            return self._explain_status(error)
        except APIConnectionError as error:
            return self._failure(f"the judge at {self._address} failed", self._explain_connection_error(error))
        except _RedirectedError as error:
            return self._explain_redirect(error.target)
        return self._hide(reply), usage

    def _send(self, prompt: str) -> str:
        from openai import BadRequestError

        limit = self._limit
        try:
            return self._post(prompt, limit)
        except BadRequestError as error:
            if limit != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
        # OpenAI's reasoning models require this name, which other servers don't know.
        self._limit = "max_completion_tokens"
        return self._post(prompt, self._limit)

    def _post(self, prompt: str, limit: str) -> str:
        return self._client.chat.completions.with_raw_response.create(
            model=self._settings.model or "",
            messages=[{"role": "user", "content": prompt}],
            temperature=self._settings.temperature,
            extra_body={limit: self._settings.max_tokens},
        ).text

    def _explain_status(self, error: Any) -> Problem:
        """Turn an error status (openai.APIStatusError) into a problem with a hint."""
        status, judge = error.status_code, f"the judge at {self._address}"
        body = error.body if isinstance(error.body, dict) else {}
        messages = [body[name] for name in ("message", "detail") if isinstance(body.get(name), str)]
        quote = f"{status}: {messages[0] if messages else error.response.text}"
        if status in (401, 403):
            rejects = f"rejects the key in {KEY_VARIABLE}" if api_key() else f"needs a key in {KEY_VARIABLE}"
            return self._failure(f"{judge} {rejects}", quote, f"export {KEY_VARIABLE}=KEY, then ")
        if status == 404:
            no_model = f"{judge} has no model {self._settings.model}, or the URL is wrong"
            return self._failure(no_model, quote, "--judge-model NAME, --judge with a URL that ends in /v1; ")
        if status in QUESTION_STATUSES:
            problem = self._failure(f"{judge} rejects the question", quote, "fix the cause, then ")
            return RequestRejected(problem.message, problem.got, problem.hint)
        is_temporary = status in (408, 409, 429) or status >= 500
        return self._failure(f"{judge} failed", quote, "" if is_temporary else "fix the cause, then ")

    def _explain_redirect(self, target: str) -> Problem:
        """Build the problem of a redirect; the suggested address has no query, which may be a secret."""
        address = strip_credentials(target).removesuffix("/chat/completions")
        problem = self._failure(f"the judge at {self._address} redirects to a different server", address)
        hint = f"--judge {problem.got}    if you trust that server with the rows, the answers and the key"
        return Problem(problem.message, problem.got, hint)

    def _explain_connection_error(self, error: Exception) -> str:
        """Return the reason of a connection error (openai.APIConnectionError)."""
        from openai import APITimeoutError

        if isinstance(error, APITimeoutError):
            return f"no reply within {count_noun(self._settings.timeout, 'second')} (evaluation.judge.timeout)"
        return str(error.__cause__) or type(error.__cause__).__name__

    def _failure(self, message: str, quote: str, first: str = "") -> Problem:
        # Secrets are hidden before the quote is shortened, so that no part of a key remains.
        quoted = "".join(letter if letter.isprintable() else " " for letter in self._hide(quote))
        quoted = " ".join(quoted.split())
        quoted = f"{quoted[:_MAX_QUOTE]}…" if len(quoted) > _MAX_QUOTE else quoted
        return Problem(self._hide(message), quoted, f"{first}run the same command again: it resumes")

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")
        return _KEY_LIKE.sub("[hidden]", text)


def api_key() -> str:
    """Return the key in the environment, or an empty string."""
    return os.environ.get(KEY_VARIABLE, "").strip()


class _DeadlineRequest:
    """A request in its own thread, abandoned at a deadline.

    The timeout of a socket bounds each read, so a server that sends a byte now and then never exceeds it, and name
    resolution has no timeout at all.
    """

    def __init__(self) -> None:
        self._streams: list[Any] = []
        self._abandoned = threading.Event()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Record the connection that httpcore reports; stop an abandoned request.

        Raises:
            TimeoutError: The request is abandoned.
        """
        if hasattr(stream := info.get("return_value"), "get_extra_info"):
            self._streams.append(stream)
        if self._abandoned.is_set():
            for stream in self._streams:
                stream.close()
            raise TimeoutError

    def within(self, seconds: float, send: Callable[[], httpx2.Response]) -> httpx2.Response | None:
        """Return the response to `send` with its body; None if there is none in time."""
        outcome: list[httpx2.Response | BaseException] = []

        def run() -> None:
            try:
                outcome.append(send())
            except BaseException as error:  # raised again in the waiting thread
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
        """Shut down the connection, which wakes the thread from a blocking read."""
        self._abandoned.set()
        for stream in self._streams:
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _bounded_client(seconds: float, credentials: tuple[str, str] | None) -> httpx2.Client:
    """Create a client whose requests, redirects included, take at most `seconds` and a bounded amount of memory.

    It opens a connection for each request, because httpcore reports only new connections, and neft must be able to end
    them.
    """
    import httpx2
    from openai import DefaultHttpxClient

    class BoundedClient(DefaultHttpxClient):
        def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            bounded, send = _DeadlineRequest(), super().send
            request.extensions["trace"] = bounded.trace
            response = bounded.within(seconds, lambda: send(request, **options))
            if response is None:
                raise httpx2.ReadTimeout("the deadline passed", request=request)
            return response

    return BoundedClient(
        auth=credentials,
        event_hooks={"response": [_require_same_origin, _limit, _require_completion]},
        limits=httpx2.Limits(max_keepalive_connections=0),
    )


def _require_same_origin(response: httpx2.Response) -> None:
    """Accept a redirect only to the scheme, host and port of the request.

    Raises:
        _RedirectedError: It leads to a different server.
    """
    if not response.has_redirect_location:
        return
    origin = response.request.url
    target = origin.join(response.headers["location"])
    if (target.scheme, target.host, target.port) != (origin.scheme, origin.host, origin.port):
        raise _RedirectedError(str(target))


def _limit(response: httpx2.Response) -> None:
    """Stop reading a body at MAX_REPLY_BYTES, and reject compressed bodies.

    Raises:
        RemoteProtocolError: The body is compressed, although neft requested identity encoding.
    """
    import httpx2

    class Limited(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in self._stream:
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    message = f"the reply is longer than {MAX_REPLY_BYTES:,} bytes"
                    raise httpx2.RemoteProtocolError(message, request=response.request)
                yield chunk

        def close(self) -> None:
            self._stream.close()

    if response.headers.get("content-encoding", "identity").lower() != "identity":
        message = f"the reply is compressed ({response.headers['content-encoding']}), which neft did not request"
        raise httpx2.RemoteProtocolError(message, request=response.request)
    response.stream = Limited(response.stream)


def _require_completion(response: httpx2.Response) -> None:
    """Report a body that is not a chat completion as a broken connection, which the openai client retries."""
    import httpx2

    if response.is_success:
        response.read()
        try:
            _completion(response.text)
        except ValueError as error:
            raise httpx2.RemoteProtocolError(str(error), request=response.request) from None


def _completion(body: str) -> tuple[str, dict[str, int]]:
    """Parse a chat completion into its text and token counts; ValueError says why it can't be."""
    try:
        parsed = json.loads(body)
        [choice, *_] = parsed["choices"]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the body is not a chat completion: {body}") from None
    if not isinstance(text, str):
        more = "; it reached the token limit, so raise evaluation.judge.max_tokens" if reason == "length" else ""
        raise ValueError(f"the reply has no text (finish_reason {reason}){more}")
    counts = parsed.get("usage")
    counts = counts if isinstance(counts, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return text, {name: counts[name] for name in names if isinstance(counts.get(name), int)}


@contextmanager
def _without_openai_variables() -> Iterator[None]:
    """Hide OPENAI_* variables while the client is created: they redirect it, add headers, or enable logging."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _silence_transport_logs() -> None:
    """Keep requests, headers and addresses out of logs; permanently, since a request may outlive its call."""
    for name in ("openai", "httpx2", "httpcore2"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
