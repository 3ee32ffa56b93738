"""The two kinds of rows that are kept: examples as they were read, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from neftcli.data.formats import Example, Turn
from neftcli.data.record_batches import Rows
from neftcli.data.tokens import IGNORED, TokenRow

if TYPE_CHECKING:
    from neftcli.data.splits import Places


class ExampleRows(Rows[Example]):
    """Examples, each as the JSON text that its fingerprint is made of."""

    def contents(self) -> Iterator[bytes]:
        """Everything of each example but its place, as JSON."""
        for place in self._places:
            row = self._looked_up(place)  # which may open another batch
            yield self._contents[row].as_py()

    def contents_and_places(self) -> Iterator[tuple[bytes, bytes]]:
        """The content and the place of each example."""
        for place in self._places:
            row = self._looked_up(place)
            yield self._contents[row].as_py(), self._where[row].as_py()

    @staticmethod
    def _size(row: Example) -> int:
        turns = sum(len(turn.text()) + len(turn.reasoning) for turn in row.turns)
        return len(row.text) + len(row.tools) + turns

    @staticmethod
    def _encoded(rows: Sequence[Example]) -> Any:
        import pyarrow as arrow

        contents = [json.dumps(_example_as_lists(row)).encode() for row in rows]
        columns = [
            arrow.array(contents, arrow.large_binary()),
            _places_as_bytes(rows),
        ]
        return arrow.record_batch(columns, names=["content", "where"])

    def _open(self, batch: Any) -> None:
        self._contents, self._where = batch.columns

    def _decoded(self, row: int) -> Example:
        turns, text, *others = json.loads(self._contents[row].as_py())
        where = self._where[row].as_py().decode("utf-8", "surrogatepass")
        return Example(tuple(Turn(*turn) for turn in turns), text, where, *others)


class TokenRows(Rows[TokenRow]):
    """Tokenised rows, in the columns that a trainer reads.

    Nothing predicts a row's first token, so it carries no loss there; the label that it had stands in a column beside.
    """

    def lengths(self) -> Places:
        """Tokens of each row."""
        import numpy
        from pyarrow import compute

        lengths = compute.list_value_length(self._table["input_ids"]).to_numpy()
        return numpy.asarray(lengths[self._numbers()])

    def columns(self) -> Any:
        """`input_ids` and `labels` as a `pyarrow.Table`, without a copy where these are all rows of their table."""
        table = self._table.select(["input_ids", "labels"])
        whole = isinstance(self._places, range) and self._places == range(table.num_rows)
        return table if whole else table.take(self._numbers())

    @staticmethod
    def _size(row: TokenRow) -> int:
        return len(row.input_ids)

    @staticmethod
    def _encoded(rows: Sequence[TokenRow]) -> Any:
        import pyarrow as arrow

        tokens = arrow.list_(arrow.int32())
        columns = {
            "input_ids": arrow.array([row.input_ids for row in rows], tokens),
            "labels": arrow.array([[IGNORED, *row.labels[1:]] for row in rows], tokens),
            "first": arrow.array([row.labels[0] for row in rows], arrow.int32()),
            "cut": arrow.array([row.cut for row in rows], arrow.bool_()),
            "stops": arrow.array([row.stops for row in rows], arrow.bool_()),
            "where": _places_as_bytes(rows),
            "remarks": arrow.array([list(row.remarks) for row in rows], arrow.list_(arrow.string())),
        }
        return arrow.record_batch(list(columns.values()), names=list(columns))

    def _open(self, batch: Any) -> None:
        ids, labels, *self._others = batch.columns
        self._bounds = ids.offsets.to_numpy()
        self._ids, self._labels = ids.values.to_numpy(), labels.values.to_numpy()

    def _decoded(self, row: int) -> TokenRow:
        part = slice(self._bounds[row], self._bounds[row + 1])
        first, cut, stops, where, remarks = (column[row].as_py() for column in self._others)
        labels = [first, *self._labels[part][1:].tolist()]
        return TokenRow(
            self._ids[part].tolist(), labels, cut, stops, where.decode("utf-8", "surrogatepass"), tuple(remarks)
        )


def _example_as_lists(example: Example) -> list[Any]:
    """Turns and text, tools and completion of an example.

    Defaults at the end are left out, so that examples without tool calls, marks and reasoning
    keep the fingerprints that they had before these were read.
    """
    turns = [
        _without_defaults(
            [turn.role, turn.content, turn.context],
            [turn.learn, turn.reasoning, turn.tool_calls, turn.name, turn.tool_call_id],
        )
        for turn in example.turns
    ]
    return _without_defaults([turns, example.text], [example.tools, example.completion])


def _without_defaults(values: list[Any], others: list[Any]) -> list[Any]:
    """The values and the others, up to the last other that is no default (None, "" or 0; False is a mark)."""
    while others and others[-1] is not False and not others[-1]:
        others = others[:-1]
    return values + others


def _places_as_bytes(rows: Sequence[Example | TokenRow]) -> Any:
    """Where rows stand, as an Arrow array; a file's name need not be UTF-8."""
    import pyarrow as arrow

    return arrow.array([row.where.encode("utf-8", "surrogatepass") for row in rows], arrow.large_binary())
