"""Pairwise judging: a model behind an OpenAI-compatible server decides which of two answers is better.

Each pair is asked in both orders, because judges favour a position (Wang et al., arXiv 2305.17926); a verdict that
changes with the order is a tie, as in MT-Bench (Zheng et al., arXiv 2306.05685). Every reply is written to a file as it
arrives, so nothing is paid for twice. The key comes from OPENAI_API_KEY and is in no file and no message.
"""

from __future__ import annotations

import errno
import json
import os
import re
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from neftcli.errors import InputError, NeftError, Problem, panics_as_errors
from neftcli.evaluation.cache import read_complete_lines
from neftcli.evaluation.chat_server import (
    KEY_VARIABLE,
    ChatServer,
    RequestRejected,
    api_key,
    is_valid_address,
    strip_credentials,
)
from neftcli.runs.schemas import parse_json
from neftcli.system.files import open_without_links, require_no_link
from neftcli.system.paths import expand_home

if TYPE_CHECKING:
    from neftcli.recipe.schema import Judge

JudgeVerdict = Literal["answer", "opponent", "tie", "unparsed"]

BUILT_IN_PROMPT = Path(__file__).with_name("judge_prompt.txt")
REQUIRED, OPTIONAL = ("instruction", "answer_a", "answer_b"), ("reference",)

_KEY = "evaluation.judge"
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_AROUND_A_VERDICT = string.whitespace + "\u00a0\u3000\"'`“”‘’„«»*()[]{}<>"
PENDING_SECONDS = 2.0  # seconds to wait for pending replies, which are paid for, after a question has failed


class JudgeError(NeftError):
    """The judge failed; its replies so far are kept."""

    code = "judge"


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to one instruction.

    Attributes:
        instruction: The instruction.
        answer: The answer that is scored.
        opponent: The answer that it is compared with.
        reference: Reference answer, for prompts that use one; may be empty.
    """

    instruction: str
    answer: str
    opponent: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """The judge's result for a pair.

    Attributes:
        score: 1 if the answer won in both orders, 0 if it lost in both, 0.5 for a tie or if the orders disagree; None
            if a verdict could not be read.
        verdicts: With the answer first, and with the opponent first.
    """

    score: float | None
    verdicts: tuple[JudgeVerdict, JudgeVerdict]


def judge_pairs(
    pairs: Sequence[AnswerPair], settings: Judge, cache: Path, advance: Callable[[int, int], None]
) -> list[JudgedPair]:
    """Return the judge's verdicts on the pairs, in order; pairs of identical answers are ties without a question.

    Args:
        pairs: The pairs.
        settings: The recipe's `evaluation.judge`.
        cache: A .jsonl file of replies; a question that it contains is not asked again.
        advance: Called with the number of answered questions and of all questions, at first and after each reply.

    Raises:
        InputError: The settings can't be used, or the cache is a link.
        JudgeError: A question failed; the replies so far are in the cache.
    """
    _require_judge(settings)
    template = string.Template(_prompt_text(settings))
    prompts = [() if pair.answer.strip() == pair.opponent.strip() else _both_orders(template, pair) for pair in pairs]
    questions = {_key(prompt, settings): prompt for both in prompts for prompt in both}
    replies = _Replies(cache, settings)
    _ask_all(questions, settings, replies, advance)
    verdicts = [[replies.texts.get(_key(prompt, settings), "") for prompt in both] for both in prompts]
    return [_judged(*both) if both else JudgedPair(0.5, ("tie", "tie")) for both in verdicts]


def find_length_matched(pairs: Sequence[AnswerPair], tolerance: float = 1.25) -> list[bool]:
    """Return for each pair whether its answers have about the same length.

    Args:
        pairs: The pairs.
        tolerance: Maximum ratio of the longer answer's characters to the shorter's.
    """
    lengths = [sorted((len(pair.answer), len(pair.opponent))) for pair in pairs]
    return [short == long or (short > 0 and long / short <= tolerance) for short, long in lengths]


def parse_verdict(reply: str) -> Literal["A", "B", "TIE"] | None:
    """Parse the verdict of a reply; None if it has none in the requested form.

    The form is A, B or TIE alone, or a last line `Verdict: A` after reasons. Thoughts in a leading `<think>` block are
    dropped; case, and quotes, asterisks, brackets and a full stop around a verdict are ignored.
    """
    stated = _bare(_THOUGHTS.sub("", reply))
    last = _bare(stated.splitlines()[-1]) if stated else ""
    label, colon, rest = last.partition(":")
    if colon and label.casefold() == "verdict":
        stated = _bare(rest)
    verdicts: dict[str, Literal["A", "B", "TIE"]] = {"a": "A", "b": "B", "tie": "TIE"}
    return verdicts.get(stated.casefold())


def check_judge(settings: Judge) -> None:
    """Check the settings before a model is loaded; settings without a judge pass.

    Raises:
        InputError: The openai package is missing, the judge is incomplete, the address is not http(s), the key can't be
            sent, or the prompt can't be used; all problems together.
    """
    if settings.base_url or settings.model or settings.prompt:
        _require_judge(settings)


def _require_judge(settings: Judge) -> None:
    problems = [*_server_problems(settings), *_prompt_problems(settings)]
    if find_spec("openai") is None:
        needs = f"{_KEY}: the judge needs the openai package"
        problems.append(Problem(needs, "it is not installed", "pip install 'neftcli[judge]'"))
    if problems:
        raise InputError(*problems)


def _server_problems(settings: Judge) -> Iterator[Problem]:
    example = "--judge http://127.0.0.1:8000/v1"
    if settings.base_url is None:
        yield Problem(f"{_KEY}.base_url: a judge needs a server", "no address", example)
    elif not is_valid_address(settings.base_url):
        message = f"{_KEY}.base_url must be an http:// or https:// URL without ? and #"
        yield Problem(message, strip_credentials(settings.base_url), example)
    if settings.model is None:
        message = f"{_KEY}.model: the judge needs a model name"
        yield Problem(message, "no name", "--judge-model NAME")
    if not re.fullmatch(r"[!-~]*", api_key()):
        message = f"{KEY_VARIABLE} must consist of printable ASCII characters without spaces"
        yield Problem(message, "other characters (not shown)", f"export {KEY_VARIABLE}=KEY")


def _prompt_problems(settings: Judge) -> Iterator[Problem]:
    try:
        template = string.Template(_prompt_text(settings))
    except InputError as error:
        yield from error.problems
        return
    where = f"{_KEY}.prompt, {settings.prompt}"
    known = ", ".join(f"${name}" for name in (*REQUIRED, *OPTIONAL))
    if not template.is_valid():
        yield Problem(f"{where}: $ must start a placeholder", "a $ without a placeholder", "$$ for a dollar sign")
    placeholders = template.get_identifiers()
    if missing := [f"${name}" for name in REQUIRED if name not in placeholders]:
        yield Problem(f"{where}: placeholders are missing", ", ".join(missing), f"a prompt with {known}")
    if unknown := [f"${name}" for name in placeholders if name not in REQUIRED + OPTIONAL]:
        yield Problem(f"{where}: unknown placeholder", ", ".join(unknown), f"only {known}")


def _prompt_text(settings: Judge) -> str:
    file = BUILT_IN_PROMPT if settings.prompt is None else expand_home(settings.prompt)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        message, got = f"{_KEY}.prompt, {file}: a prompt must be UTF-8 text", f"byte {error.start} is invalid"
    except OSError as error:
        message, got = f"{_KEY}.prompt: {file} can't be read", error.strerror or str(error)
    raise InputError(Problem(message, got, "--judge-prompt FILE"))


def _both_orders(template: string.Template, pair: AnswerPair) -> tuple[str, str]:
    """Return the prompts with the answer first and with the opponent first."""
    answer, opponent = pair.answer.strip(), pair.opponent.strip()
    return _fill(template, pair, answer, opponent), _fill(template, pair, opponent, answer)


def _fill(template: string.Template, pair: AnswerPair, first: str, second: str) -> str:
    prompt = template.substitute(
        instruction=pair.instruction, answer_a=first, answer_b=second, reference=pair.reference
    )
    return prompt.encode("utf-8", "replace").decode("utf-8")  # JSON files can contain lone surrogates, UTF-8 can't


def _key(prompt: str, settings: Judge) -> str:
    """Return the SHA-256 of everything that determines a reply, in hexadecimal."""
    server = strip_credentials(settings.base_url or "")
    parts = [server, settings.model, prompt, settings.max_tokens, float(settings.temperature)]
    return sha256(json.dumps(parts).encode("ascii")).hexdigest()


def _bare(text: str) -> str:
    return text.strip(_AROUND_A_VERDICT).removesuffix(".").strip(_AROUND_A_VERDICT)


def _judged(answer_first: str, opponent_first: str) -> JudgedPair:
    """Return the result of a pair from the replies in both orders."""
    a_is_answer: dict[str | None, JudgeVerdict] = {"A": "answer", "B": "opponent", "TIE": "tie", None: "unparsed"}
    a_is_opponent: dict[str | None, JudgeVerdict] = a_is_answer | {"A": "opponent", "B": "answer"}
    verdicts = a_is_answer[parse_verdict(answer_first)], a_is_opponent[parse_verdict(opponent_first)]
    if "unparsed" in verdicts:
        return JudgedPair(None, verdicts)
    if verdicts == ("answer", "answer"):
        return JudgedPair(1.0, verdicts)
    if verdicts == ("opponent", "opponent"):
        return JudgedPair(0.0, verdicts)
    return JudgedPair(0.5, verdicts)


class ReplyLine(TypedDict):
    """A line of the cache, as far as it is read again."""

    key: str
    reply: str


class _Replies:
    """A .jsonl file of replies, appended from any thread as they arrive."""

    def __init__(self, file: Path, settings: Judge) -> None:
        self.file = file
        self.texts: dict[str, str] = {}
        self._judge = {"server": strip_credentials(settings.base_url or ""), "model": settings.model}
        self._lock = threading.Lock()
        require_no_link(file)
        self._read()

    def _read(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            lines = read_complete_lines(self.file)
        except OSError as error:
            problem = f"{self.file}: the judge's replies can't be read"
            moved = f"mv {quote(str(self.file))} {quote(f'{self.file}.old')}"
            hint = f"fix its permissions, or {moved}    to ask the judge again"
            raise JudgeError(Problem(problem, error.strerror or str(error), hint)) from None
        for line in lines:
            with suppress(ValueError):  # a damaged line: its question is asked again
                entry = parse_json(line, ReplyLine)
                self.texts[entry["key"]] = entry["reply"]

    def add(self, key: str, reply: str, usage: dict[str, int]) -> None:
        """Append a reply with the token counts of the server."""
        line = json.dumps({"key": key, **self._judge, "reply": reply, "usage": usage}) + "\n"
        with self._lock:
            # Opened for each reply, so that one that arrives after Ctrl-C, which is paid for, can still be written.
            with open_without_links(self.file, "ab") as file:
                start = file.tell()
                try:
                    file.write(line.encode("ascii"))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:  # a full disk: remove the incomplete line, to which the next reply would be appended
                    os.ftruncate(file.fileno(), start)
                    raise
            self.texts[key] = reply


def _ask_all(
    questions: dict[str, str], settings: Judge, replies: _Replies, advance: Callable[[int, int], None]
) -> None:
    """Ask the questions without a reply, several at once; stop at the first that fails.

    A question that the server rejects while it answers others stays without a reply, and is asked again next time.
    """
    unanswered = [item for item in questions.items() if item[0] not in replies.texts]
    done = len(questions) - len(unanswered)
    if questions:
        advance(done, len(questions))
    if not unanswered:
        return
    from multiprocessing import TimeoutError as NoReply
    from multiprocessing.pool import ThreadPool  # unlike concurrent.futures, does not wait for its threads at exit

    server = ChatServer(settings)
    failed = threading.Event()

    def ask(question: tuple[str, str]) -> Problem | bool:
        if failed.is_set():
            return False
        with panics_as_errors():  # a panic would end the thread, and the pool would wait for its result
            answered = server.ask(question[1])
        if isinstance(answered, Problem):
            if not isinstance(answered, RequestRejected):
                failed.set()
            return answered
        replies.add(question[0], *answered)
        return True

    failure, refused = None, None
    with ThreadPool(min(settings.concurrency, len(unanswered))) as pool, closing(server):
        outcomes = pool.imap_unordered(ask, unanswered)
        with suppress(StopIteration, NoReply):
            while True:
                outcome = outcomes.next(None if failure is None else PENDING_SECONDS)
                if isinstance(outcome, RequestRejected):
                    refused = outcome
                    done += 1
                    advance(done, len(questions))
                elif isinstance(outcome, Problem):
                    failure = failure or outcome
                elif outcome:
                    done += 1
                    advance(done, len(questions))
    if not any(key in replies.texts for key in questions):
        failure = failure or refused  # all are rejected, so the cause is not the question
    if failure is not None:
        answered_count = sum(key in replies.texts for key in questions)
        verb = "is" if answered_count == 1 else "are"
        answered = f"{answered_count} of {len(questions)} questions {verb} answered and kept in {replies.file}"
        raise JudgeError(Problem(f"{failure.message}; {answered}", failure.got, failure.hint))
