"""`neft chat`: talk to a run or a model, and to a second one beside it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from neftcli.cli.arguments import RunOrModelArgument
from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, panel
from neftcli.cli.options import with_overrides
from neftcli.errors import InputError, Interrupted, NeftError, Problem
from neftcli.recipe.keys import keys
from neftcli.system.distributed import require_single_process
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.cli.display.chat import ChatScreen
    from neftcli.events import Observer
    from neftcli.inference.chat import Chat

CHAT_FLAGS = (
    *("model.revision", "model.chat_template", "model.trust_remote_code", "data.format"),
    *(key.path for key in keys() if key.option.flag and "chat" in key.option.commands),
)
"""Options with a flag in `neft chat` and `neft answer`."""
COMMANDS = {
    "/system": "/system TEXT   set the system turn; without TEXT remove it",
    "/retry": "/retry         answer the last question again; sampled answers use a different seed",
    "/save": "/save FILE     append the conversation to a .jsonl file that `neft train` reads",
    "/reset": "/reset         begin a new conversation with the same system turn",
    "/help": "/help          show this list",
    "/exit": "/exit          leave; Ctrl-D does the same",
}
"""Command to its line of /help."""
MORE_HELP = (
    "Ctrl-C         stop an answer and keep what was written; twice: leave",
    "A line that ends in \\ continues on the next one. // at the beginning sends a line that begins with /.",
)


@with_overrides("chat", CHAT_FLAGS, "the run's")
def chat(
    overrides: list[dict[str, Any]],
    target: RunOrModelArgument,
    against: Annotated[
        str | None,
        panel(
            "Comparison",
            "--against",
            metavar="base|RUN",
            help="Let a second run or model answer as well; base: the run's base model",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        panel("Evaluation", "--seed", metavar="INTEGER", help="Seed of sampling  [default: the run's]", min=0),
    ] = None,
    json_lines: JsonOption = False,
) -> None:
    """Talk to a run or a model.

    Answers appear as they are written, without noise. /help lists the commands. Off a terminal, each line of standard
    input is a question, and the answers are written to standard output.
    """
    require_single_process("neft chat")
    if sys.stdin is None:
        hint = f"echo QUESTION | neft chat {shlex.quote(target)}"
        raise InputError(Problem("standard input is closed, so there is no question", hint=hint))
    from neftcli.inference.chat import ChatRequest, open_chat

    request = ChatRequest(target, against, tuple(overrides), seed)
    with _end_at_sigterm(), ExitStack() as stack:
        if sys.stdin.isatty() and sys.stdout.isatty() and not json_lines:
            from neftcli.cli.display.chat import ChatScreen

            with choose_display(json_lines=False, quiet=False) as display:
                session = stack.enter_context(open_chat(request, display))
            session.observer = screen = ChatScreen()
            screen.notify(session.describe())
            screen.console.print()
            _talk(session, screen)
        else:
            session = stack.enter_context(open_chat(request, _pipe_display(json_lines=json_lines)))
            session.observer.notify(session.describe())
            _answer_lines(session)


def _pipe_display(*, json_lines: bool) -> Observer:
    """Return the display for pipes: events as JSON, or answers on stdout and notices on stderr."""
    from neftcli.cli.display.chat import PlainAnswers
    from neftcli.cli.display.json_lines import JsonLines
    from neftcli.system.environment import report_dropped

    display: Observer = JsonLines(sys.stdout) if json_lines else PlainAnswers(sys.stdout, sys.stderr)
    report_dropped(display)
    return display


class _Terminated(KeyboardInterrupt):
    """SIGTERM. Libraries that catch `Exception` don't catch it."""


@contextmanager
def _end_at_sigterm() -> Iterator[None]:
    """Leave the terminal as it was when the process is asked to end.

    Raises:
        Interrupted: At SIGTERM.
    """

    def end(_number: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        raise Interrupted(Problem("stopped by SIGTERM")) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# Off a terminal


def _answer_lines(session: Chat) -> None:
    """Answer each line of standard input.

    Raises:
        InputError: The first question is not UTF-8, or too long for the model.
        NeftError: A later one is.
        Interrupted: Ctrl-C.
    """
    if sys.stdin.isatty():
        sys.stderr.write("each line is a question; Ctrl-D ends\n")
    answered = 0
    try:
        for number, line in enumerate(sys.stdin.buffer, 1):
            question = _decode(line, number).strip()
            if question:
                session.ask(question)
                answered += 1
    except InputError as error:
        if not answered:
            raise
        raise NeftError(*error.problems) from None
    except _Terminated:
        raise
    except KeyboardInterrupt:
        raise Interrupted(Problem("stopped by Ctrl-C")) from None


def _decode(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        message = f"standard input, line {number}: questions must be UTF-8"
        raise InputError(Problem(message, got, "iconv -t utf-8")) from None


# On a terminal


class _LeaveNow(KeyboardInterrupt):
    """The second Ctrl-C during an answer."""


def _talk(session: Chat, screen: ChatScreen) -> None:
    """Read questions and commands until the user leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` line editing and a history
    try:
        with _ctrl_c_stops_answers(session):
            _take_turns(session, screen)
    except _Terminated:
        raise
    except KeyboardInterrupt:  # while nothing is read or answered, as in the middle of a hint
        screen.close()


def _take_turns(session: Chat, screen: ChatScreen) -> None:
    asked_to_leave = False
    while True:
        try:
            text = _read_turn().strip()
            asked_to_leave = False
            if text == "/exit":
                return
            with _silent_keys():
                if text.startswith("/") and not text.startswith("//"):
                    _run_command(session, screen, text)
                elif text:
                    session.ask(text.removeprefix("/") if text.startswith("//") else text)
        except EOFError:
            screen.console.print()
            return
        except KeyboardInterrupt as interrupt:
            screen.close()
            screen.console.print()
            if isinstance(interrupt, _Terminated):
                raise
            if asked_to_leave or isinstance(interrupt, _LeaveNow):
                return
            asked_to_leave = True
            screen.console.print("Ctrl-C again leaves, and so does Ctrl-D", style="dim")
        except NeftError as error:
            screen.close()
            _print_error(screen, error)


def _read_turn() -> str:
    """Read a question or command; a line that ends in a backslash continues on the next one.

    Raises:
        InputError: It is not UTF-8.
    """
    lines: list[str] = []
    prompt = "> "
    while True:
        try:
            line = input(prompt)
        except UnicodeDecodeError:
            raise InputError(Problem("questions must be UTF-8", hint="use a terminal with a UTF-8 locale")) from None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
        prompt = ". "


@contextmanager
def _ctrl_c_stops_answers(session: Chat) -> Iterator[None]:
    """Let the first Ctrl-C during an answer stop that answer, and the second one leave.

    Raises:
        KeyboardInterrupt: Ctrl-C at other times.
    """

    def handle(_number: int, _frame: object) -> None:
        if not session.is_answering:
            raise KeyboardInterrupt
        if session.is_stopping:
            raise _LeaveNow
        session.stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Keep what is typed during an answer, such as ^C, off the screen."""
    import termios

    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    silent = [*before]
    silent[3] &= ~(termios.ECHO | termios.ECHOCTL)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _run_command(session: Chat, screen: ChatScreen, text: str) -> None:
    """Run a command other than /exit.

    Raises:
        InputError: There is no such command, or it can't be done.
    """
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    done = ""
    if name == "/help":
        done = "\n".join([*COMMANDS.values(), *MORE_HELP])
    elif name == "/system":
        session.set_system(argument)
        done = "system turn set" if argument else "system turn removed"
    elif name == "/retry":
        session.retry()
    elif name == "/reset":
        session.reset()
        done = "new conversation"
    elif name == "/save":
        done = _save(session, argument)
    else:
        nearest = "".join(get_close_matches(name, COMMANDS, n=1))
        raise InputError(Problem("there is no such command", name, "/help    lists the commands", nearest))
    if done:
        screen.console.print(done, style="dim", highlight=False, markup=False)
        screen.console.print()


def _save(session: Chat, name: str) -> str:
    if not name:
        raise InputError(Problem("/save needs the name of a file", hint="/save chats.jsonl"))
    with suppress(ValueError):  # an apostrophe in the name
        name = shlex.split(name)[0]
    path, incomplete = session.save(name)
    done = f"appended to {path}"
    if incomplete:
        answers = count_noun(incomplete, "answer in it has", "answers in it have")
        done += f"; {answers} no stop token: complete or remove them before training"
    return done


def _print_error(screen: ChatScreen, error: NeftError) -> None:
    from neftcli.cli.display.text import sanitize

    for problem in error.problems:
        first, *details = problem.lines()
        screen.console.print(sanitize(first), style="red", highlight=False, markup=False)
        for line in details:
            screen.console.print(sanitize(line), highlight=False, markup=False)
    screen.console.print()
