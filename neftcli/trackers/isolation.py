"""Keep what trackers print and what their errors say away from neft's output: stdout is the display's, or JSON."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from neftcli.errors import first_line
from neftcli.system.network import redact_password

SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$")
"""Names of environment variables whose values appear in no message."""
SHORTEST_SECRET = 6
HIDDEN = "***"


def redact(text: str) -> str:
    """Return a text without the values of secret environment variables and without passwords in URLs."""
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    return " ".join(redact_password(word) for word in text.split(" "))


def describe_failure(error: Exception) -> str:
    """Return the type of a tracker's error and the first line of its message, without secrets."""
    return redact(f"{type(error).__name__}: {first_line(error)}")


@contextmanager
def without_output() -> Iterator[None]:
    """Drop what trackers print within the block."""
    dropped = io.StringIO()
    with redirect_stdout(dropped), redirect_stderr(dropped):
        yield
