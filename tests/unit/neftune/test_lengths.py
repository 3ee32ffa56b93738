"""Lengths of documents, against a plain Python loop.

Oracle: the documents themselves. A test begins with the rows of a batch as lists of document lengths, builds the batch
(padded left or right, or packed; with a mask, position ids or cumulative lengths), and records the length of each
token's document; 0 for a pad. Nothing is derived from the batch.
"""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.neftune import document_lengths
from neftcli.neftune.lengths import padded_lengths

Rows = list[list[int]]
Side = str

some_documents = st.lists(st.integers(1, 12), min_size=1, max_size=5)
some_rows = st.lists(some_documents, min_size=1, max_size=5)
sides = st.sampled_from(["left", "right"])


@dataclass
class Batch:
    """The inputs of a model for one batch, and the expected length of each token."""

    mask: list[list[int]] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)
    expected: list[list[int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, time)."""
        return len(self.mask), len(self.mask[0])

    def check(self, lengths: torch.Tensor) -> None:
        """Assert that `lengths` are those of the documents."""
        assert lengths.dtype == torch.int64
        assert lengths.tolist() == self.expected


def build_batch(rows: Rows, side: Side, pad_position: int = 0) -> Batch:
    """Pack the documents of each row, and pad to the longest row."""
    batch = Batch()
    time = max(sum(row) for row in rows)
    for row in rows:
        pads = time - sum(row)
        mask, positions, expected = [], [], []
        for length in row:
            for position in range(length):
                mask.append(1)
                positions.append(position)
                expected.append(length)
        before, after = (pads, 0) if side == "left" else (0, pads)
        batch.mask.append([0] * before + mask + [0] * after)
        batch.positions.append([pad_position] * before + positions + [pad_position] * after)
        batch.expected.append([0] * before + expected + [0] * after)
    return batch


def cumulative(documents: list[int]) -> torch.Tensor:
    """Cumulative lengths in the format of attention kernels: int32, from 0."""
    boundaries = [0]
    for length in documents:
        boundaries.append(boundaries[-1] + length)
    return torch.tensor(boundaries, dtype=torch.int32)


@settings(deadline=None)
@given(documents=st.lists(st.integers(1, 20), min_size=1, max_size=6), side=sides, dtype=st.sampled_from("bifh"))
def test_document_lengths_padded_rows(documents: list[int], side: Side, dtype: str) -> None:
    batch = build_batch([[length] for length in documents], side)
    types = {"b": torch.bool, "i": torch.int64, "f": torch.float32, "h": torch.bfloat16}
    batch.check(document_lengths(batch.shape, torch.tensor(batch.mask).to(types[dtype])))


@settings(deadline=None)
@given(count=st.integers(1, 5), length=st.integers(1, 20))
def test_document_lengths_no_mask(count: int, length: int) -> None:
    assert document_lengths((count, length)).tolist() == [[length] * length] * count


@settings(deadline=None)
@given(documents=some_documents)
def test_document_lengths_restarting_positions(documents: list[int]) -> None:
    batch = build_batch([documents], "right")
    batch.check(document_lengths(batch.shape, None, torch.tensor(batch.positions)))


@settings(deadline=None)
@given(documents=some_documents)
def test_document_lengths_mask_of_ones_and_restarting_positions(documents: list[int]) -> None:
    batch = build_batch([documents], "right")
    batch.check(document_lengths(batch.shape, torch.ones(batch.shape), torch.tensor(batch.positions)))


@settings(deadline=None)
@given(rows=some_rows, side=sides, pad_position=st.sampled_from([0, 1, -1]))
def test_document_lengths_packed_rows_with_mask_and_positions(rows: Rows, side: Side, pad_position: int) -> None:
    # Pads have position 0 (trl), 1 (generate()) or -1.
    batch = build_batch(rows, side, pad_position)
    batch.check(document_lengths(batch.shape, torch.tensor(batch.mask), torch.tensor(batch.positions)))


@settings(deadline=None)
@given(rows=some_rows, side=sides)
def test_document_lengths_positions_that_continue_over_pads(rows: Rows, side: Side) -> None:
    rows = [row[:1] for row in rows]
    batch = build_batch(rows, side)
    positions = torch.arange(batch.shape[1])[None]  # (1, time) for all rows, the default of models
    batch.check(document_lengths(batch.shape, torch.tensor(batch.mask), positions))


@settings(deadline=None)
@given(documents=some_documents, trailing=st.integers(0, 6), with_mask=st.booleans(), with_positions=st.booleans())
def test_document_lengths_cumulative_lengths_with_trailing_pads(
    documents: list[int], trailing: int, with_mask: bool, with_positions: bool
) -> None:
    batch = build_batch([documents], "right")
    mask = torch.tensor([batch.mask[0] + [0] * trailing])
    positions = torch.tensor([batch.positions[0] + [0] * trailing])
    lengths = document_lengths(
        (1, mask.shape[1]),
        mask if with_mask else None,
        positions if with_positions else None,
        cumulative(documents),
    )
    assert lengths.tolist() == [batch.expected[0] + [0] * trailing]


@settings(deadline=None)
@given(rows=some_rows, data=st.data())
def test_document_lengths_cumulative_lengths_over_several_rows(rows: Rows, data: st.DataObject) -> None:
    # Boundaries count over the flattened batch, so each row starts one more document.
    time = max(sum(row) for row in rows)
    rows = [[*row, *([time - sum(row)] if sum(row) < time else [])] for row in rows]
    batch = build_batch(rows, "right")
    boundaries = cumulative([length for row in rows for length in row])
    batch.check(document_lengths(batch.shape, None, None, boundaries))


@settings(deadline=None)
@given(documents=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=5))
def test_document_lengths_pads_between_packed_documents(documents: list[tuple[int, int]]) -> None:
    """Documents padded to a multiple and then packed, as sequence parallelism requires."""
    mask, positions, expected = [], [], []
    for length, pads in documents:
        mask += [1] * length + [0] * pads
        positions += [*range(length + pads)]
        expected += [length] * length + [0] * pads
    lengths = document_lengths((1, len(mask)), torch.tensor([mask]), torch.tensor([positions]))
    assert lengths.tolist() == [expected]


def test_document_lengths_document_that_starts_on_a_pad() -> None:
    # Boundaries of the padded documents, the second of which is padded on the left.
    lengths = document_lengths((1, 6), torch.tensor([[1, 1, 1, 0, 1, 1]]), None, torch.tensor([0, 3, 6]))
    assert lengths.tolist() == [[3, 3, 3, 0, 2, 2]]


def test_document_lengths_documents_of_one_token() -> None:
    assert document_lengths((1, 4), None, torch.zeros(1, 4, dtype=torch.int64)).tolist() == [[1, 1, 1, 1]]


def test_document_lengths_row_of_pads_only() -> None:
    mask = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
    assert document_lengths((4, 3), mask).tolist() == [[0, 0, 0], [2, 2, 0], [0, 0, 0], [0, 2, 2]]


@pytest.mark.parametrize("length", [257, 300, 513, 1_025])
def test_document_lengths_beyond_bfloat16_are_exact(length: int) -> None:
    mask = torch.zeros(2, 2 * length + 1, dtype=torch.bfloat16)
    mask[0, :length] = 1
    mask[1, -length - 2 :] = 1
    lengths = document_lengths(tuple(mask.shape), mask)
    assert lengths.unique().tolist() == [0, length, length + 2]


def test_document_lengths_leaves_its_inputs_unchanged() -> None:
    batch = build_batch([[3, 2], [4]], "left")
    mask, positions = torch.tensor(batch.mask), torch.tensor(batch.positions)
    boundaries = cumulative([3, 2, 4])
    document_lengths(batch.shape, mask, positions)
    document_lengths((1, 9), None, None, boundaries)
    assert (mask.tolist(), positions.tolist()) == (batch.mask, batch.positions)
    assert boundaries.tolist() == [0, 3, 5, 9]


@settings(deadline=None)
@given(rows=some_rows, side=sides)
def test_padded_lengths(rows: Rows, side: Side) -> None:
    batch = build_batch(rows, side)
    lengths = padded_lengths(torch.tensor(batch.expected))
    width = batch.shape[1]
    assert lengths.tolist() == [[width if length else 0 for length in row] for row in batch.expected]
