"""Writing to someone who may have gone."""

from __future__ import annotations

import os
import sys
from typing import IO


def write(stream: IO[str], text: str) -> None:
    """Write and flush; if the reader has gone (`neft train | head`), the rest is dropped and the work continues."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        if stream is sys.stdout:  # or the interpreter would complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
