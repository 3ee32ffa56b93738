"""Commands in a folder of modules named like all of Python's and all installed packages'.

Oracle: each hostile module leaves a mark when it is imported. They are in the current folder, in a model's folder and
in a run's; tests show that the modules leave marks if nothing excludes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copytree

import pytest

from tests.conftest import quick_arguments

SCRIPT = "import sys\nfrom neftcli.cli.main import command\nif __name__ == '__main__':\n    sys.exit(command())\n"
"""The script that pip writes for the command `neft`."""
OF_PYTHON_ITSELF = {
    *("importlib", "contextlib", "warnings", "types", "threading", "runpy", "collections", "functools", "operator"),
    *("keyword", "reprlib", "_weakrefset", "pkgutil", "zipimport"),
}
"""Modules that `python -m` imports from the current folder before any code of the module that it runs."""
TASK = """
task: fruit
dataset_path: json
dataset_kwargs: {data_files: {test: fruit.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


class Hostile:
    """A folder with hostile modules, in which commands run."""

    def __init__(self, root: Path, model: Path) -> None:
        self.folder, self.marks, self.script = root / "folder", root / "marks", root / "bin" / "neft"
        for folder in (self.folder, self.marks, self.script.parent):
            folder.mkdir()
        self.script.write_text(SCRIPT)
        self.model = copytree(model, root / "model")
        self.spoil(self.folder)
        self.spoil(self.model)
        (self.folder / "fruit.yaml").write_text(TASK)
        (self.folder / "fruit.jsonl").write_text('{"question": "x"}\n{"question": "y"}\n')

    def spoil(self, folder: Path) -> None:
        """Put the modules into a folder."""
        names = {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize"}
        for name in names - {"neftcli"}:
            if name.isidentifier():
                mark = str(self.marks / name)
                (folder / f"{name}.py").write_text(f"open({mark!r}, 'w').write({str(folder)!r})\n")

    def neft(self, *arguments: object, program: tuple[str, ...] = ()) -> str:
        """Run a command that succeeds and imports no hostile module; return its stdout."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, *(program or (str(self.script),)), *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert self.imported() == []
        assert done.returncode == 0, done.stderr
        return done.stdout

    def imported(self) -> list[str]:
        """Return the hostile modules that were imported."""
        return sorted(mark.name for mark in self.marks.iterdir())


@pytest.fixture(scope="module")
def hostile(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"), tiny_folder("llama"))


@pytest.fixture(scope="module")
def quick(hostile: Hostile, rows_file: Path) -> list[str]:
    return quick_arguments(hostile.model, rows_file, Path("runs"))


@pytest.mark.slow
def test_hostile_modules_leave_marks(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    hostile = Hostile(tmp_path, tiny_folder("llama"))
    subprocess.run([sys.executable, "-c", "import socket, torch, yaml"], cwd=hostile.folder, check=True)
    assert hostile.imported() == ["socket", "torch", "yaml"]


@pytest.mark.slow
def test_quick_commands_import_nothing_hostile(hostile: Hostile, rows_file: Path) -> None:
    assert "smollm2" in hostile.neft("models")
    assert "quickstart" in hostile.neft("recipes")
    hostile.neft("data", "inspect", "--dataset", rows_file)


@pytest.mark.slow
def test_train_and_eval_import_nothing_hostile(hostile: Hostile, quick: list[str]) -> None:
    """Two processes train; then the run's own folders are hostile, too."""
    hostile.neft(*quick, "--processes", "2")
    [run] = (hostile.folder / "runs").iterdir()
    hostile.spoil(run)
    hostile.spoil(run / "model")
    output = hostile.neft("eval", run.name, "--tasks", "fruit.yaml", "--json")
    assert any("fruit" in json.dumps(json.loads(line)) for line in output.splitlines())


@pytest.mark.slow
def test_sweep_alpha_dry_run_imports_nothing_hostile(hostile: Hostile, quick: list[str]) -> None:
    """A dry run imports what a sweep does, with multiprocessing's resource tracker."""
    hostile.neft("sweep-alpha", *quick[1:], "--alphas", "0,5", "--seeds", "1", "--dry-run")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_sweep_alpha_imports_nothing_hostile(engine: str, hostile: Hostile, quick: list[str]) -> None:
    sweep = ("sweep-alpha", *quick[1:], "--alphas", "0,5", "--seeds", "1", "--set", f"name={engine}")
    hostile.neft(*sweep, "--engine", engine)


@pytest.mark.parametrize("is_quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_python_m_imports_nothing_hostile(
    is_quick: bool, tiny_folder: Callable[[str], Path], tmp_path: Path, rows_file: Path
) -> None:
    """Except for what Python itself imports before it runs the module."""
    hostile = Hostile(tmp_path, tiny_folder("llama"))
    for name in OF_PYTHON_ITSELF:
        (hostile.folder / f"{name}.py").unlink(missing_ok=True)
    dry_run = [*quick_arguments(hostile.model, rows_file, Path("runs")), "--dry-run"]
    hostile.neft(*(["--version"] if is_quick else dry_run), program=("-m", "neftcli"))
