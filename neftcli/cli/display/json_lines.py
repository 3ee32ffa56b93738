"""Events as JSON, one object a line, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TextIO

from neftcli.cli.display.encoding import holds_any_letter
from neftcli.cli.display.formatting import escaped
from neftcli.cli.display.output import write
from neftcli.events import Event
from neftcli.runs.directory import finite


class JsonLines:
    """Writes each event as `{"event": "StepLogged", ...}`; NaN and infinity, which JSON lacks, as null."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def notify(self, event: Event) -> None:
        """Writes one line."""
        line = {"event": type(event).__name__, **finite(asdict(event))}
        text = json.dumps(line, ensure_ascii=not holds_any_letter(self._stream), allow_nan=False)
        write(self._stream, escaped(text) + "\n")
