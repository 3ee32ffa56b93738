"""Where the cache is, by what the environment says."""

from pathlib import Path

import pytest

from neftcli.machine.cache import cache_folder


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NEFT_CACHE, else XDG_CACHE_HOME/neft, else ~/.cache/neft; an empty variable is as good as none."""
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
