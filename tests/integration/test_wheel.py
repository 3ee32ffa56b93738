"""The wheel carries recipes and built-in data, and trains away from the checkout.

Oracle: a process that can see the installed wheel and not the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_wheel_trains_two_steps(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert {Path(name).name for name in names if name.startswith("neftcli/recipes/")} == shipped
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "neftcli", "train", "--model", tiny_folder("llama"), "--max-steps", "2"),
            *("--max-rows", "12", "--held-out-rows", "4", "--samples", "1"),
            *("--set", "evaluation.generation.max_new_tokens=4"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import neftcli; print(neftcli.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(target))
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
