"""Datasets of examples and of token ids, as Arrow record batches.

Small datasets stay in memory; larger ones are written to a temporary file and memory-mapped, so memory use hardly grows
with the number of rows. A row becomes a Python object only while it is read. The temporary file has no name, so nothing
is left of it when the process ends, even after `kill -9`.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from copy import copy
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from neftcli.data.tokens import TokenRow
from neftcli.rows.example import Example, Turn
from neftcli.system.cache_folder import open_cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from neftcli.data.splits import Indices

MAX_BYTES_IN_MEMORY = 16 * 2**20
"""Size at which a dataset moves from memory to a file."""
SPILLED_ROWS = f"rows beyond {MAX_BYTES_IN_MEMORY >> 20} MiB"
BATCH_ROWS = 1024
"""Maximum number of rows in a record batch."""
BATCH_LENGTH = 2**20
"""Number of characters or tokens at which a record batch is closed early."""

Item = TypeVar("Item")


class RecordBatches:
    """Writer of Arrow record batches of one schema: append batches, read them as one table, close."""

    def __init__(self) -> None:
        self._pending: list[Any] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def append(self, batch: Any) -> None:
        """Add a batch.

        Raises:
            InputError: The disk is full.
        """
        self._bytes += batch.nbytes
        self._pending.append(batch)
        if self._writer is not None or self._bytes > MAX_BYTES_IN_MEMORY:
            with open_cache_folder(SPILLED_ROWS) as folder:
                self._spill(folder)

    def table(self) -> Any:
        """Return all batches as a `pyarrow.Table`, without a copy; nothing can be appended afterwards.

        Raises:
            InputError: The disk is full.
        """
        import pyarrow as arrow

        if self._writer is None:
            return arrow.Table.from_batches(self._pending)
        with open_cache_folder(SPILLED_ROWS):
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # a network disk reports only now that it is full
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return arrow.ipc.open_stream(arrow.py_buffer(mapped)).read_all()

    def close(self) -> None:
        """Close the file; its content exists as long as the table does."""
        if self._file is not None:
            with suppress(OSError):  # closing flushes, which fails on a full disk
                self._file.close()

    def _spill(self, folder: Path) -> None:
        import pyarrow as arrow

        if self._writer is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - see `close`
            self._writer = arrow.ipc.new_stream(self._file, self._pending[0].schema)
        while self._pending:
            self._writer.write_batch(self._pending.pop(0))


class ArrowDataset(Sequence[Item]):
    """Rows of a table, or a selection of them in any order; each is decoded when it is read. Not thread-safe.

    Args:
        table: A `pyarrow.Table`.
    """

    def __init__(self, table: Any) -> None:
        self._table, self._batches = table, table.to_batches()
        self._indices: range | Indices = range(table.num_rows)
        self._ends: list[int] = []
        for batch in self._batches:
            self._ends.append(batch.num_rows + (self._ends[-1] if self._ends else 0))
        self._begin = self._end = 0  # table rows of the batch that is open

    @classmethod
    def from_rows(cls, rows: Iterable[Item]) -> Self:
        """Store rows as they are generated.

        Raises:
            InputError: They don't fit into memory, and the disk is full.
        """
        pending: list[Item] = []
        size = 0
        with closing(RecordBatches()) as batches:
            for row in rows:
                pending.append(row)
                size += cls._size(row)
                if len(pending) == BATCH_ROWS or size >= BATCH_LENGTH:
                    batches.append(cls._encode(pending))
                    pending, size = [], 0
            batches.append(cls._encode(pending))
            return cls(batches.table())

    def table(self) -> Any:
        """Return the `pyarrow.Table` of these rows, or of the rows that they were selected from."""
        return self._table

    def select(self, indices: Sequence[int] | Indices) -> Self:
        """Return the rows at these indices, in this order, without copying them."""
        import numpy

        return self._view(self._table_indices()[numpy.asarray(indices, dtype=numpy.int64)])

    def _table_indices(self) -> Indices:
        """Return the index of each row in the table."""
        import numpy

        indices = self._indices
        return numpy.arange(indices.start, indices.stop, indices.step) if isinstance(indices, range) else indices

    def _view(self, indices: range | Indices) -> Self:
        view = copy(self)
        view._indices = indices
        return view

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Item | Self:
        """Return the row at an index, or the rows of a slice."""
        if isinstance(index, slice):
            return self._view(self._indices[index])
        return self._decode(self._seek(self._indices[index]))

    def __iter__(self) -> Iterator[Item]:
        return (self._decode(self._seek(index)) for index in self._indices)

    def _seek(self, index: int) -> int:
        """Open the batch that holds a row of the table, and return the row's index in the batch."""
        if not self._begin <= index < self._end:
            number = bisect_right(self._ends, index)
            self._end = self._ends[number]
            self._begin = self._end - self._batches[number].num_rows
            self._open(self._batches[number])
        return index - self._begin

    @staticmethod
    @abstractmethod
    def _size(row: Item) -> int:
        """Return the approximate size of a row, in characters or tokens."""

    @staticmethod
    @abstractmethod
    def _encode(rows: Sequence[Item]) -> Any:
        """Return rows as a record batch."""

    @abstractmethod
    def _open(self, batch: Any) -> None:
        """Prepare to decode rows of a batch."""

    @abstractmethod
    def _decode(self, row: int) -> Item:
        """Return a row of the open batch."""


class ExampleDataset(ArrowDataset[Example]):
    """Examples, each stored as the JSON text that its fingerprint is computed from."""

    def contents(self) -> Iterator[bytes]:
        """Yield each example as JSON, without its location."""
        for index in self._indices:
            row = self._seek(index)  # may open another batch
            yield self._contents[row].as_py()

    def contents_and_locations(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each example as JSON, with its location."""
        for index in self._indices:
            row = self._seek(index)
            yield self._contents[row].as_py(), self._locations[row].as_py()

    @staticmethod
    def _size(row: Example) -> int:
        turns = sum(len(turn.text()) + len(turn.reasoning) for turn in row.turns)
        return len(row.text) + len(row.tools) + turns

    @staticmethod
    def _encode(rows: Sequence[Example]) -> Any:
        import pyarrow as arrow

        contents = [json.dumps(_example_to_list(row)).encode() for row in rows]
        columns = [arrow.array(contents, arrow.large_binary()), _encode_locations(rows)]
        return arrow.record_batch(columns, names=["content", "location"])

    def _open(self, batch: Any) -> None:
        self._contents, self._locations = batch.columns

    def _decode(self, row: int) -> Example:
        turns, text, *others = json.loads(self._contents[row].as_py())
        location = self._locations[row].as_py().decode("utf-8", "surrogatepass")
        return Example(tuple(Turn(*turn) for turn in turns), text, location, *others)


class TokenDataset(ArrowDataset[TokenRow]):
    """Tokenised rows; the columns `input_ids` and `labels` are the ones that a trainer reads."""

    def lengths(self) -> Indices:
        """Return the number of tokens of each row."""
        import numpy
        from pyarrow import compute

        lengths = compute.list_value_length(self._table["input_ids"]).to_numpy()
        return numpy.asarray(lengths[self._table_indices()])

    def columns(self) -> Any:
        """Return `input_ids` and `labels` as a `pyarrow.Table`; copies only if rows were selected."""
        table = self._table.select(["input_ids", "labels"])
        all_rows = isinstance(self._indices, range) and self._indices == range(table.num_rows)
        return table if all_rows else table.take(self._table_indices())

    @staticmethod
    def _size(row: TokenRow) -> int:
        return len(row.input_ids)

    @staticmethod
    def _encode(rows: Sequence[TokenRow]) -> Any:
        import pyarrow as arrow

        tokens = arrow.list_(arrow.int32())
        columns = {
            "input_ids": arrow.array([row.input_ids for row in rows], tokens),
            "labels": arrow.array([row.labels for row in rows], tokens),
            "truncated": arrow.array([row.truncated for row in rows], arrow.bool_()),
            "ends_with_stop_token": arrow.array([row.ends_with_stop_token for row in rows], arrow.bool_()),
            "location": _encode_locations(rows),
            "remarks": arrow.array([list(row.remarks) for row in rows], arrow.list_(arrow.string())),
        }
        return arrow.record_batch(list(columns.values()), names=list(columns))

    def _open(self, batch: Any) -> None:
        ids, labels, *self._others = batch.columns
        self._bounds = ids.offsets.to_numpy()
        self._ids, self._labels = ids.values.to_numpy(), labels.values.to_numpy()

    def _decode(self, row: int) -> TokenRow:
        tokens = slice(self._bounds[row], self._bounds[row + 1])
        truncated, ends_with_stop_token, location, remarks = (column[row].as_py() for column in self._others)
        return TokenRow(
            self._ids[tokens].tolist(),
            self._labels[tokens].tolist(),
            truncated,
            ends_with_stop_token,
            location.decode("utf-8", "surrogatepass"),
            tuple(remarks),
        )


def _example_to_list(example: Example) -> list[Any]:
    """Return turns, text, tools and completion of an example as JSON values; trailing defaults are left out."""
    turns = []
    for turn in example.turns:
        required = [turn.role, turn.content, turn.context]
        optional = [turn.learn, turn.reasoning, turn.tool_calls, turn.name, turn.tool_call_id]
        turns.append(required + _strip_defaults(optional))
    return [turns, example.text, *_strip_defaults([example.tools, example.completion])]


def _strip_defaults(values: list[Any]) -> list[Any]:
    """Return the values up to the last one that is not a default (None, "" or 0; False is a value)."""
    while values and values[-1] is not False and not values[-1]:
        values = values[:-1]
    return values


def _encode_locations(rows: Sequence[Example | TokenRow]) -> Any:
    """Return the locations of rows as an Arrow array of bytes, since a file's name need not be UTF-8."""
    import pyarrow as arrow

    return arrow.array([row.location.encode("utf-8", "surrogatepass") for row in rows], arrow.large_binary())
