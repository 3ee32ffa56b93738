"""Settings that a process takes before the libraries are imported.

Oracle: glibc's own answer, and the environment that a user has set.
"""

from __future__ import annotations

import os
import platform

import pytest

from neftcli.machine import process


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes these settings")
def test_glibc_takes_the_settings() -> None:
    assert process.keep_freed_memory()


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    process.prepare_process()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
