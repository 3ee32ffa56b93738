"""Names that lead out of a folder.

Oracle: the file system's own resolution of paths.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.system.listed_names import escapes_folder


@pytest.mark.parametrize("name", ["own.txt", "sub", "sub/not-there.txt", "./own.txt", "..own.txt", "a..b"])
def test_leads_out_of_no_folder(name: str) -> None:
    assert not escapes_folder(name)


@pytest.mark.parametrize("name", ["../other.txt", "/etc/passwd", "sub/../../other.txt", "sub\\..\\..\\x", "..", "a\0b"])
def test_leads_out_by_name(name: str) -> None:
    assert escapes_folder(name)


@given(name=st.lists(st.sampled_from(["..", ".", "sub", "own.txt", ""]), min_size=1, max_size=6).map("/".join))
def test_leads_out_agrees_with_the_file_system(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is let through resolves to a place inside."""
    folder = tmp_path_factory.getbasetemp() / "agrees"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    if not escapes_folder(name):
        assert (folder / name).resolve().is_relative_to(folder.resolve())
