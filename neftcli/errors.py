"""Exceptions of neft, and their exit codes.

NeftError                     1   base class
├── InputError                2   the input is invalid; nothing was started
│   ├── RecipeError               a recipe file, --set or a flag
│   ├── DataError                 a data file, row or column
│   ├── ModelError                a model's name, files, tokenizer or template
│   └── RunLockedError            another process is training the run
├── NeftuneError              1   noise would be attached twice, or lengths are unknown
├── TrainingError             1   training started and failed
│   ├── NonFiniteLossError        the loss became NaN or infinite
│   └── ProcessLostError          another training process ended
├── LibraryPanic              1   compiled code of a library panicked
├── Preempted                75   stopped by a signal and saved; can be resumed
└── Interrupted             130   stopped at once, by a second signal or if nothing can be saved

Every error has up to four parts: the message, what neft got, the likeliest correct name, and a hint to type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import ClassVar

USAGE = "usage"
"""Code of a command line that can't be parsed."""
DISK_FULL = "disk_full"
PERMISSION = "permission"
OUT_OF_MEMORY = "out_of_memory"
INTERNAL = "internal"
"""Code of an unexpected exception."""
INTERNAL_MESSAGE = "this is a bug in neft or in a library, not a mistake of yours"


@dataclass(frozen=True, slots=True)
class Problem:
    """A single error for the user, in parts.

    Attributes:
        message: Location and violated rule ("recipe.yaml, line 7: neftune.alpha must be 0 or more").
        got: The value that neft received, or an empty string.
        hint: The text to type next, or an empty string.
        did_you_mean: The valid name most similar to the received one, or an empty string.
        code: Stable id of the kind of error, for programs; if not given, that of the exception's class.
    """

    message: str
    got: str = ""
    hint: str = ""
    did_you_mean: str = ""
    code: str = ""

    def details(self) -> list[tuple[str, str]]:
        """Return the parts after the message, each as a label padded to its column and a text."""
        details = []
        if self.got:
            details.append(("  got      ", self.got))
        if self.did_you_mean:
            details.append(("  did you mean ", f"{self.did_you_mean}?"))
        if self.hint:
            details.append(("  hint     ", self.hint))
        return details

    def lines(self) -> list[str]:
        """Return the message and its details as lines of text."""
        return [self.message, *(label + text for label, text in self.details())]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type if it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the type of an error, and the first line of its message if it has one: "ValueError: no rows"."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


class NeftError(Exception):
    """Base class of neft's exceptions, with one or several problems.

    Attributes:
        exit_code: Exit code of a command that ends with it.
        code: Code of its problems that have none of their own.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(self._with_code(Problem(p) if isinstance(p, str) else p) for p in problems)
        super().__init__("\n".join(line for problem in self.problems for line in problem.lines()))

    def _with_code(self, problem: Problem) -> Problem:
        return problem if problem.code else replace(problem, code=self.code)


class InputError(NeftError):
    """The input is invalid; nothing was started."""

    exit_code = 2
    code = "input"


class Checks:
    """Collects the errors of several checks, so that all of them are reported at once.

    checks = Checks()
    with checks:
        require_model(name)
    with checks:
        require_file(path)
    checks.raise_errors()
    """

    def __init__(self) -> None:
        self._errors: list[InputError] = []

    def __enter__(self) -> Checks:
        """Begin a check."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Collect the error of a check; other exceptions propagate."""
        if isinstance(error, InputError):
            self._errors.append(error)
            return True
        return False

    def raise_errors(self) -> None:
        """Raise what was collected.

        Raises:
            InputError: A check failed; the error of the check if it was the only one.
        """
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise InputError(*(problem for error in self._errors for problem in error.problems))


class RecipeError(InputError):
    """A recipe file, a `--set` or a flag is invalid."""

    code = "recipe"


class DataError(InputError):
    """A data file, row or column is invalid."""

    code = "data"


class ModelError(InputError):
    """A model's name, files, tokenizer or template is invalid."""

    code = "model"


class RunLockedError(InputError):
    """Another process is training the run."""

    code = "run_locked"


class NeftuneError(NeftError):
    """Noise would be attached twice, or the lengths of a batch are unknown."""

    code = "neftune"


class TrainingError(NeftError):
    """Training started and failed."""

    code = "training"


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""

    code = "non_finite_loss"


class ProcessLostError(TrainingError):
    """Another training process ended."""

    code = "process_lost"


class LibraryPanic(NeftError):  # noqa: N818 - Rust's word
    """Compiled code of a library panicked; the same input would panic again."""

    code = "library"


class Preempted(NeftError):  # noqa: N818 - a request, not an error
    """Stopped by the first signal, and saved; can be resumed."""

    exit_code = 75
    code = "preempted"


class Interrupted(NeftError):  # noqa: N818
    """Stopped at once, without saving."""

    exit_code = 130
    code = "interrupted"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Convert panics of compiled code to LibraryPanic.

    Libraries in Rust (tokenizers, safetensors) raise pyo3's PanicException, which is not an `Exception`.

    Raises:
        LibraryPanic: Code in the block panicked.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        problem = Problem("the compiled code of a library failed", describe_error(error), "report it with --debug")
        raise LibraryPanic(problem) from error
