"""Memory that is made ready before it is needed.

The system clears a page when it is first written, or copies it where it is of a mapped file; a virtual machine may have
to find it first. That takes 0.3 to 3 s a GiB, for which the first update would wait. One processor is idle while
libraries are imported.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from mmap import PAGESIZE
from threading import Event, Thread

from neftcli.system.process import keep_freed_memory

MADV_POPULATE_WRITE = 23
PIECE = 256 * 2**20
"""Bytes that are asked for at once, to be touched and freed: fewer than those that glibc maps for themselves."""
STEP = 2**19
"""Bytes that are touched at once, while whoever maps memory waits: a millisecond."""


def touch_ahead(size: int, written: Sequence[tuple[int, int]] = ()) -> Callable[[], None]:
    """Touches memory in the background. Nothing is done where freed memory is not kept.

    Args:
        size: Bytes that will be asked for.
        written: Addresses and bytes of memory that is there and will be written, as of weights that are mapped.

    Returns:
        What ends it, be it done or not: beside an update it would be in the way.
    """
    if not keep_freed_memory():
        return lambda: None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Asked for by this thread, since glibc gives the others memory of their own.
    pieces = [piece for _ in range(size // PIECE) if (piece := libc.malloc(PIECE))]
    ended = Event()

    def touch(address: int, length: int) -> None:
        begin, end = -(-address // PAGESIZE) * PAGESIZE, (address + length) // PAGESIZE * PAGESIZE
        while begin < end and not ended.is_set():
            if libc.madvise(begin, min(STEP, end - begin), MADV_POPULATE_WRITE):
                return  # a system before Linux 5.14, or no memory is left
            begin += STEP

    def touch_all() -> None:
        for piece in pieces:
            touch(piece, PIECE)
            libc.free(piece)
        for address, length in written:
            touch(address, length)

    thread = Thread(target=touch_all, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end
