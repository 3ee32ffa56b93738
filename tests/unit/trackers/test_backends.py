"""Reading wandb's files. Oracle: records written here in LevelDB's log format, in blocks of 32768 bytes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from neftcli.trackers.backends import read_wandb_records

BLOCK, HEADER = 2**15, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def write_records(records: list[bytes]) -> bytes:
    """Write records as LevelDB does, after wandb's header; checksums are left out, since nothing reads them."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, is_first = record, True
        while True:
            room = BLOCK - len(content) % BLOCK
            if room < HEADER:
                content += bytes(room)
                room = BLOCK
            part, rest = rest[: room - HEADER], rest[room - HEADER :]
            kind = (WHOLE if is_first else LAST) if not rest else (FIRST if is_first else MIDDLE)
            content += struct.pack("<IHB", 0, len(part), kind) + part
            is_first = False
            if not rest:
                break
    return bytes(content)


@given(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 100, 32740, 32747, 32748, 40000, 70000]))))
def test_read_wandb_records(sizes: list[tuple[int, int]]) -> None:
    records = [bytes([letter]) * size for letter, size in sizes]
    assert list(read_wandb_records(write_records(records))) == records


def test_read_wandb_records_of_a_killed_process() -> None:
    content = write_records([b"complete", b"incomplete"])
    assert list(read_wandb_records(content[:-3])) == [b"complete"]
    assert list(read_wandb_records(b"")) == []
