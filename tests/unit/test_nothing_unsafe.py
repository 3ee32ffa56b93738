"""Unsafe calls in the source, and lower bounds of dependencies.

Oracles: Python's syntax tree of every source file, and `pyproject.toml` as `tomllib` and `packaging` read it.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "neftcli").rglob("*.py"))
UNPICKLES = ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")
RUNS_TEXT = ("eval", "exec", "compile", "__import__")
READS_OBJECTS = ("torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load")
SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")


def called(node: ast.Call) -> str:
    """The dotted name of what a call calls, as it is written."""
    return ast.unparse(node.func)


def faults(text: str) -> Iterator[str]:
    """Return the calls in a source file that could run text or data as code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] in UNPICKLES for alias in node.names):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        # An exception's name may be imported, to say what another library refused.
        from_them = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLES
        if from_them and any(not alias.name.endswith("Error") for alias in node.names):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        name = called(node)
        unsafe = name in (*RUNS_TEXT, *SHELLS)
        unsafe |= name in READS_OBJECTS and given.get("weights_only") != "True"
        unsafe |= given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False"
        unsafe |= given.get("weights_only", "True") != "True"
        if unsafe:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_source_has_no_unsafe_call(file: Path) -> None:
    assert list(faults(file.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "load(file, weights_only=wanted)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_faults_finds_unsafe_calls(text: str) -> None:
    assert len(list(faults(text))) == 1


def test_faults_accepts_safe_calls() -> None:
    safe = (
        "torch.load(f, weights_only=True)\nmodel.eval()\nsubprocess.run(['ls'])\nfrom pickle import UnpicklingError\n"
    )
    assert list(faults(safe)) == []


@pytest.mark.parametrize(
    ("package", "safe", "unsafe"),
    [
        ("torch", "2.6", "2.5.1"),  # CVE-2025-32434: before, weights_only=True could run code
        ("transformers", "5.23", "4.57"),  # before 5, more of its own paths unpickled
    ],
)
def test_dependency_floors_exclude_unsafe_versions(package: str, safe: str, unsafe: str) -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {one.name: one.specifier for one in map(Requirement, content["project"]["dependencies"])}
    assert safe in wanted[package]
    assert unsafe not in wanted[package]


def test_durations_use_no_wall_clock() -> None:
    """It can jump; only the ages of files and runs, which follow it too, are measured by it."""
    users = {
        str(file.relative_to(ROOT / "neftcli"))
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and called(node) in ("time.time", "datetime.now", "datetime.datetime.now")
    }
    ages = {"system/files.py", "sweep/engines/transfer.py", "data/token_cache.py", "cli/display/run_rows.py"}
    assert users <= {*ages, "runs/record.py"}
