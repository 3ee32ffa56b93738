"""The tree of errors, each with its exit code.

NeftError                     1   something failed
├── InputError                2   what was given can't be used; nothing was started
│   ├── RecipeError               a recipe file, --set or a flag
│   ├── DataError                 a data file, row or column
│   └── ModelError                a model's name, files, tokenizer or template
├── NeftuneError              1   noise would be attached twice, or lengths are unknown
├── TrainingError             1   training started and can't go on
│   ├── NonFiniteLossError        the loss became NaN or infinite
│   └── ProcessLostError          another of the processes that train together has ended
├── LibraryPanic              1   compiled code of a library panicked
├── Preempted                75   stopped behind an update by a signal; resumable
└── Interrupted             130   stopped at once, by a second signal or where nothing can be saved

Every message has three parts: what was violated, what was received, what to type next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the three parts that every message has.

    Attributes:
        violated: Where, and what must hold ("recipe.yaml, line 7: neftune.alpha must be 0 or more").
        received: What was found instead, or an empty string.
        remedy: What to type next, or an empty string.
        nearest: The valid name that is most like the one received, or an empty string.
    """

    violated: str
    received: str = ""
    remedy: str = ""
    nearest: str = ""

    def lines(self) -> list[str]:
        """The problem as lines of text, its parts aligned."""
        parts = (("received", self.received), ("nearest", self.nearest), ("try", self.remedy))
        return [self.violated, *(f"  {label:<9}{text}" for label, text in parts if text)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class NeftError(Exception):
    """Base class of what this tool raises on purpose; carries one problem or several."""

    exit_code = 1

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(Problem(p) if isinstance(p, str) else p for p in problems)
        super().__init__("\n".join(line for problem in self.problems for line in problem.lines()))


class InputError(NeftError):
    """What was given can't be used; nothing was started."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe file, a `--set` or a flag can't be used."""


class DataError(InputError):
    """A data file, row or column can't be used."""


class ModelError(InputError):
    """A model's name, files, tokenizer or template can't be used."""


class NeftuneError(NeftError):
    """Noise would be attached twice, or a batch does not tell its lengths."""


class TrainingError(NeftError):
    """Training started and can't go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class ProcessLostError(TrainingError):
    """Another of the processes that train together has ended."""


class LibraryPanic(NeftError):  # noqa: N818 - the word for it in Rust
    """Compiled code of a library panicked; the same input does so again."""


class Preempted(NeftError):  # noqa: N818 - it is somebody's wish, not an error
    """Stopped by the first signal; what was done is saved and can be gone on with."""

    exit_code = 75


class Interrupted(NeftError):  # noqa: N818
    """Stopped at once."""

    exit_code = 130


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises as a LibraryPanic what is neither an `Exception` nor a request to end.

    Rust's libraries (tokenizers, safetensors) raise pyo3's PanicException, which no `except Exception` catches.

    Raises:
        LibraryPanic: Something in the block raised such a thing.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise LibraryPanic(Problem("the compiled code of a library failed", said, "report it with --debug")) from error
