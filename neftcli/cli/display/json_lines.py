"""Events as JSON, one object a line, for programs."""

from __future__ import annotations

import json
from typing import TextIO

from neftcli.cli.display.encoding import holds_any_letter
from neftcli.cli.display.formatting import escaped
from neftcli.cli.display.output import write
from neftcli.events import Event, to_dict
from neftcli.runs.directory import finite


class JsonLines:
    """Write each event as `{"event": "training.step", "schema_version": 1, ...}`; NaN and infinity become null."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def notify(self, event: Event) -> None:
        """Writes one line."""
        text = json.dumps(finite(to_dict(event)), ensure_ascii=not holds_any_letter(self._stream), allow_nan=False)
        write(self._stream, escaped(text) + "\n")
