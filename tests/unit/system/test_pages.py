"""Memory that is touched ahead. Oracle: the system's count of page faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from neftcli.system import pages

PAGES = 3 * pages.PIECE // pages.PAGESIZE
BEGIN = f"""
import ctypes, mmap, resource, sys, threading
from neftcli.system.pages import touch_ahead
from neftcli.system.process import keep_freed_memory

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def wait(): [thread.join() for thread in threading.enumerate() if thread is not threading.main_thread()]

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = {3 * pages.PIECE}
"""
KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or KERNEL < (5, 14),
    reason="only glibc keeps freed memory if told, and Linux touches it since 5.14",
)


def faults_of(code: str, *arguments: str) -> int:
    """What `code` prints."""
    done = subprocess.run([sys.executable, "-c", BEGIN + code, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_glibc
@pytest.mark.parametrize(("share", "least", "most"), [(0, PAGES * 0.9, PAGES * 1.1), (1, 0, PAGES * 0.1)])
def test_memory_that_was_touched_has_no_faults_later(share: int, least: float, most: float) -> None:
    code = """
touch_ahead(size * int(sys.argv[1])); wait()
before = faults()
ctypes.memset(ctypes.c_void_p(libc.malloc(size - 2**20)), 1, size - 2**20)
print(faults() - before)
"""
    assert least <= faults_of(code, str(share)) <= most


@needs_glibc
@pytest.mark.parametrize(("share", "least", "most"), [(0, 900, 1100), (1, 0, 100)])
def test_mapped_memory_is_copied_before_it_is_written_and_stays_as_it_is(
    share: int, least: int, most: int, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 16 * 1000)
    code = """
with open(sys.argv[2], "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
sum(weights[::4096])  # it has been read
address = ctypes.addressof(ctypes.c_char.from_buffer(weights))
touch_ahead(0, [(address, len(weights) * int(sys.argv[1]))]); wait()
assert weights[:] == bytes(range(256)) * 16 * 1000
before = faults()
ctypes.memset(address, 1, len(weights))
print(faults() - before)
"""
    assert least <= faults_of(code, str(share), str(tmp_path / "weights")) <= most


@needs_glibc
@pytest.mark.parametrize(("last", "least", "most"), [("wait()", PAGES * 0.9, PAGES * 1.1), ("end()", 0, PAGES * 0.5)])
def test_it_ends_when_it_is_told_to(last: str, least: float, most: float) -> None:
    assert least <= faults_of(f"before = faults(); end = touch_ahead(size); {last}; print(faults() - before)") <= most


def test_a_user_who_wants_freed_memory_given_back_has_nothing_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setattr(pages, "Thread", None)
    pages.touch_ahead(2**30)()
