"""Notes on rows, collected while they are read and shown before training."""

from __future__ import annotations

from typing import Any

from neftcli.events import Occurrences


class RowCounts(dict[str, Occurrences]):
    """Name to the number of rows that hold it, each row counted once, and the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, str] = {}

    def add(self, name: str, where: str) -> None:
        """Count the row at `where`; calls for the same row follow each other."""
        if self._last.get(name) == where:
            return
        self._last[name] = where
        before = self.get(name, Occurrences(0, where))
        self[name] = Occurrences(before.rows + 1, before.first)


class Notes:
    """Notes on the rows of one or several sources.

    Attributes:
        unread: Columns, and turn keys ("turn key emotion"), that hold a value and are not read.
        shortened: Parts of conversations that are left out.
        remarks: Remarks on what a conversation holds.
    """

    def __init__(self) -> None:
        self.unread = RowCounts()
        self.shortened = RowCounts()
        self.remarks = RowCounts()


def has_value(value: Any) -> bool:
    """Return whether a value counts as given: null, an empty text, list or object counts as missing."""
    return value is not None and (bool(value) or not isinstance(value, (str, list, dict)))


def shown(value: Any) -> str:
    """A value in a message: its type and its beginning."""
    if value is None:
        return "null"
    if value == "":
        return "an empty text"
    return f"{type(value).__name__}: {' '.join(str(value)[:60].splitlines())}"
