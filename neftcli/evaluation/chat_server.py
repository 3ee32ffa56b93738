"""An OpenAI-compatible server: asked through the `openai` client, again where that may help, its secrets hidden."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from neftcli.errors import InputError, Problem
from neftcli.machine.network import unreachable

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


def without_credentials(base_url: str) -> str:
    """A server's address as it may be shown and stored: no user name, no password, no closing slash."""
    if address := _ADDRESS.fullmatch(base_url):
        scheme, host, port, path = address.groups("")
        return f"{scheme.lower()}://{host.lower()}{port}{path}".rstrip("/")
    # Not an address, so a password may stand anywhere before the last @, and a key behind ? or #.
    return re.split(r"[?#]", re.sub(r"^(https?://)?.*@", r"\1", base_url, flags=re.DOTALL))[0]


def is_address(base_url: str) -> bool:
    """Whether it is an http(s) address without a query, with a port that there can be."""
    try:
        return _ADDRESS.fullmatch(base_url) is not None and urlsplit(base_url).port != 0
    except ValueError:  # a port above 65535, or brackets around what is no IPv6 address
        return False


def require_reachable(settings: Judge) -> None:
    """Tries a connection, so that a server that is not there is told of before hours of work.

    Raises:
        InputError: There is none, or a proxy's address can't be used.
    """
    reason = unreachable(urlsplit(settings.base_url or ""))
    if reason:
        shown = without_credentials(settings.base_url or "")
        raise InputError(
            Problem(
                f"evaluation.judge.base_url: no connection to {shown}",
                reason,
                "start the server, or put the address right: --judge http://127.0.0.1:8000/v1",
            )
        )


class Refused(Problem):
    """What a server refuses of one question alone, such as its length or its content; others may be answered."""


class ChatServer:
    """The connection to the judge; it asks, asks again where that may help, and hides secrets in what comes back.

    Waiting and asking again is the openai client's work. A body that is no chat completion looks to it like a broken
    connection (`_refuse_nonsense`), so that one count and one backoff hold for all failures.
    """

    def __init__(self, settings: Judge) -> None:
        base_url = settings.base_url or ""
        self._settings = settings
        self._address = without_credentials(base_url)
        self._limit = "max_tokens"
        parts, key = urlsplit(base_url), api_key()
        credentials = (unquote(parts.username or ""), unquote(parts.password or ""))
        basic = base64.b64encode(":".join(credentials).encode()).decode()
        secrets = {key, parts.username, parts.password, *credentials, basic}
        self._secrets = sorted((text for text in secrets if text and len(text) >= _SHORTEST_SECRET), key=len)[::-1]
        _silence_transport()
        with _without_openai_variables():
            from openai import DefaultHttpxClient, OpenAI

            self._client = OpenAI(
                api_key=key or "none",
                base_url=self._address,
                timeout=settings.timeout,
                max_retries=settings.max_retries,
                http_client=DefaultHttpxClient(
                    auth=credentials if any(credentials) else None, event_hooks={"response": [_refuse_nonsense]}
                ),
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
            return Refused(problem.violated, problem.received, problem.remedy)
        passes = status in (408, 409, 429) or status >= 500
        return self._failure(f"{judge} failed", said, "" if passes else "put right what it says, then ")

    def _broken(self, error: Exception) -> str:
        """What broke a connection (openai.APIConnectionError)."""
        from openai import APITimeoutError

        if isinstance(error, APITimeoutError):
            return f"no reply within {self._settings.timeout:g} seconds (evaluation.judge.timeout)"
        return str(error.__cause__) or type(error.__cause__).__name__

    def _failure(self, violated: str, said: str, first: str = "") -> Problem:
        # Hidden before it is cut, so that no half of a key is left.
        quoted = "".join(letter if letter.isprintable() else " " for letter in self._hide(said))
        quoted = " ".join(quoted.split())
        quoted = f"{quoted[:_LONGEST_QUOTE]}…" if len(quoted) > _LONGEST_QUOTE else quoted
        return Problem(self._hide(violated), quoted, f"{first}the same command again: it goes on from there")

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")
        return _KEY_LIKE.sub("[hidden]", text)


def api_key() -> str:
    """The key of the environment, or an empty string."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def _refuse_nonsense(response: httpx2.Response) -> None:
    """Treats a body that is no chat completion as a broken connection, which the openai client tries again."""
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
    except (ValueError, LookupError, TypeError, AttributeError):
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
    """Hides OPENAI_* while the client is made: they redirect it, add headers to it, or make it log."""
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
