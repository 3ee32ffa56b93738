"""Events as JSON, one object a line, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import IO

from neftcli.cli.display.pipe import write
from neftcli.cli.display.text import escaped
from neftcli.events import Event
from neftcli.runs.directory import finite


class JsonLines:
    """Writes each event as `{"event": "StepLogged", ...}`; NaN and infinity, which JSON lacks, as null."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def notify(self, event: Event) -> None:
        """Writes one line."""
        line = {"event": type(event).__name__, **finite(asdict(event))}
        write(self._stream, escaped(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n")
