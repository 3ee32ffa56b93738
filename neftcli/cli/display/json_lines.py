"""Events as JSON, one object per line, for programs."""

from __future__ import annotations

import json
from typing import TextIO

from neftcli.cli.display.text import escape_json, is_unicode, write_to_stream
from neftcli.events import Event, to_dict
from neftcli.runs.directory import replace_non_finite


class JsonLines:
    """Write each event as `{"event": "training.step", "schema_version": 1, ...}`; NaN and infinity become null."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def notify(self, event: Event) -> None:
        """Write a line."""
        text = json.dumps(
            replace_non_finite(to_dict(event)), ensure_ascii=not is_unicode(self._stream), allow_nan=False
        )
        write_to_stream(self._stream, escape_json(text) + "\n")
