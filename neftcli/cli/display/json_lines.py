"""Events as JSON, one object a line, for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import IO, Any

from neftcli.events import Event


class JsonLines:
    """Writes each event as `{"event": "StepLogged", ...}`; NaN and infinity, which JSON lacks, as null."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def notify(self, event: Event) -> None:
        """Writes one line."""
        line = {"event": type(event).__name__, **_finite(asdict(event))}
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
