"""Rows as Arrow record batches: in memory while they are few, in a mapped temporary file when they are many.

A row is a Python object only while it is looked at, and the pages of a mapped file go when memory is short, so memory
nearly does not grow with the rows. The file has no name: nothing of it is left when the process ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from copy import copy
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from neftcli.system.cache import written_in_cache

if TYPE_CHECKING:
    from pathlib import Path

    from neftcli.data.splits import Places

MOST_IN_MEMORY = 16 * 2**20
"""Bytes of a `Batches` that are kept in memory; beyond, all of it goes to a file."""
KEPT = f"rows beyond {MOST_IN_MEMORY >> 20} MiB"
BATCH_ROWS = 1024
BATCH_SIZE = 2**20
"""Letters or tokens at which a batch ends before it has so many rows."""

Item = TypeVar("Item")


class Batches:
    """Arrow record batches of one schema: appended, read as one table, and then closed."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def append(self, batch: Any) -> None:
        """Adds a batch.

        Raises:
            InputError: The disk has no room for it.
        """
        self._bytes += batch.nbytes
        self._kept.append(batch)
        if self._writer is not None or self._bytes > MOST_IN_MEMORY:
            with written_in_cache(KEPT) as folder:
                self._spill(folder)

    def table(self) -> Any:
        """All batches as a `pyarrow.Table`, without a copy; the last call before `close`.

        Raises:
            InputError: The disk has no room for the last of them.
        """
        import pyarrow as arrow

        if self._writer is None:
            return arrow.Table.from_batches(self._kept)
        with written_in_cache(KEPT):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # a disk of the network says only now that it is full
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return arrow.ipc.open_stream(arrow.py_buffer(mapped)).read_all()

    def close(self) -> None:
        """Closes the file; it is there as long as its table is."""
        if self._file is not None:
            with suppress(OSError):  # on a full disk: it writes what is left
                self._file.close()

    def _spill(self, folder: Path) -> None:
        import pyarrow as arrow

        if self._writer is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see `close`
            self._writer = arrow.ipc.new_stream(self._file, self._kept[0].schema)
        while self._kept:
            self._writer.write_batch(self._kept.pop(0))


class Rows(Sequence[Item]):
    """Rows of a table, or some of them in an order of their own; each is made when it is looked at, by one thread.

    Args:
        table: A `pyarrow.Table`.
    """

    def __init__(self, table: Any) -> None:
        self._table, self._batches = table, table.to_batches()
        self._places: range | Places = range(table.num_rows)
        self._ends: list[int] = []
        for batch in self._batches:
            self._ends.append(batch.num_rows + (self._ends[-1] if self._ends else 0))
        self._begin = self._end = 0  # of the batch that was looked at last

    @classmethod
    def of(cls, rows: Iterable[Item]) -> Self:
        """Keeps rows as they come.

        Raises:
            InputError: They are too many for memory, and the disk has no room for them.
        """
        pending, size = [], 0
        with closing(Batches()) as batches:
            for row in rows:
                pending.append(row)
                size += cls._size(row)
                if len(pending) == BATCH_ROWS or size >= BATCH_SIZE:
                    batches.append(cls._encoded(pending))
                    pending, size = [], 0
            batches.append(cls._encoded(pending))
            return cls(batches.table())

    def table(self) -> Any:
        """The `pyarrow.Table` of these rows, or of the rows that they were selected from."""
        return self._table

    def select(self, places: Sequence[int] | Places) -> Self:
        """The rows at these places, in this order; no row is copied."""
        import numpy

        return self._view(self._numbers()[numpy.asarray(places, dtype=numpy.int64)])

    def _numbers(self) -> Places:
        """The rows' places in the table."""
        import numpy

        mine = self._places
        return numpy.arange(mine.start, mine.stop, mine.step) if isinstance(mine, range) else mine

    def _view(self, places: range | Places) -> Self:
        view = copy(self)
        view._places = places
        return view

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Item | Self:
        """The row at a place, or those of a slice."""
        if isinstance(index, slice):
            return self._view(self._places[index])
        return self._decoded(self._looked_up(self._places[index]))

    def __iter__(self) -> Iterator[Item]:
        return (self._decoded(self._looked_up(place)) for place in self._places)

    def _looked_up(self, place: int) -> int:
        """Opens the batch that holds the table's row `place`; where in the batch that is."""
        if not self._begin <= place < self._end:
            number = bisect_right(self._ends, place)
            self._end = self._ends[number]
            self._begin = self._end - self._batches[number].num_rows
            self._open(self._batches[number])
        return place - self._begin

    @staticmethod
    @abstractmethod
    def _size(row: Item) -> int:
        """About how large a row is."""

    @staticmethod
    @abstractmethod
    def _encoded(rows: Sequence[Item]) -> Any:
        """The record batch of rows."""

    @abstractmethod
    def _open(self, batch: Any) -> None:
        """Makes ready to read rows of a batch."""

    @abstractmethod
    def _decoded(self, row: int) -> Item:
        """A row of the batch that is open."""
