"""Settings that a process takes before the libraries are imported.

Oracle: glibc's and the OpenMP library's own answers, and the environment that a user has set.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

from neftcli.system import libraries


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes these settings")
def test_glibc_takes_the_settings() -> None:
    assert libraries.keep_freed_memory()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="torch brings GNU's OpenMP there")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, str(libraries.SPIN_COUNT)), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_waiting_threads_spin_for_a_moment_unless_the_user_says_otherwise(given: dict[str, str], spins: str) -> None:
    code = "from neftcli.system.libraries import prepare_libraries; prepare_libraries(); import torch"
    without = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    settings_of_openmp = subprocess.run(
        [sys.executable, "-c", code],
        env={**without, "OMP_DISPLAY_ENV": "VERBOSE", **given},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert re.search(rf"GOMP_SPINCOUNT = '{spins}'", settings_of_openmp), settings_of_openmp


def test_prepare_process_leaves_the_umask() -> None:
    """It belongs to the program that calls neft; only the command restricts its own."""
    code = "import os; from neftcli.system.libraries import prepare_libraries; os.umask(0); prepare_libraries()"
    subprocess.run([sys.executable, "-c", f"{code}; assert os.umask(0) == 0"], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes these settings")
def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not libraries.keep_freed_memory()
