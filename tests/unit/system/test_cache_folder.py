"""Location of the cache folder, and errors of writing to it."""

import subprocess
from pathlib import Path

import pytest

from neftcli.errors import InputError
from neftcli.system.cache_folder import cache_folder, open_cache_folder
from tests.conftest import file_system


def test_cache_folder_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NEFT_CACHE, else XDG_CACHE_HOME/neft, else ~/.cache/neft; an empty variable counts as unset."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("NEFT_CACHE", "/own")
    assert cache_folder() == Path("/own")
    for unset in (lambda name: monkeypatch.setenv(name, ""), monkeypatch.delenv):
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        unset("NEFT_CACHE")
        assert cache_folder() == Path("/xdg/neft")
        unset("XDG_CACHE_HOME")
        assert cache_folder() == tmp_path / "home/.cache/neft"


def test_open_cache_folder_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a read-only one, and a file instead of the folder."""
    small = tmp_path / "small"
    monkeypatch.setenv("NEFT_CACHE", str(small / "cache"))
    with file_system(small, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        for option, reason in (
            ("rw", "No space left on device (0 KiB free)"),
            ("ro", "Read-only file system (0 KiB free"),
        ):
            subprocess.run(["mount", "-o", f"remount,{option}", str(small)], check=True)
            with pytest.raises(InputError) as raised, open_cache_folder("a model") as cache:
                (cache / "model").write_bytes(bytes(100_000))
            assert str(raised.value).startswith(
                f"{cache_folder()}: a model can't be written there\n  got      {reason}"
            )
            assert "  hint     NEFT_CACHE=FOLDER before the command" in str(raised.value)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="got      it is not a folder"), open_cache_folder("a model"):
        pass
