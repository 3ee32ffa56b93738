"""Links in a folder from elsewhere: neft never writes through them.

Oracles: a folder outside, which must not change; the list of all files and folders that real commands write below a
run and a sweep, except temporary ones, by the states of `tests/states.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from neftcli.system.files import TEMPORARY, remove
from tests.conftest import Result
from tests.judge_server import judge_server, prefers_longer
from tests.recorded_commands import EVAL_OPTIONS, RUN, describe_run, fork_workers, path_names, train_command
from tests.states import contents, neft_in, states_of

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
Neft = Callable[..., Result]
LINKS = ("../outside/mine.txt", "../outside/folder", "../outside/nothing")
"""To a file, to a folder, and to a missing path."""
LINKS_OF_NEFT = ("runs/tiny-sweep/best", "runs/tiny-sweep/.best")
SOME_PATHS = 8
"""Number of paths of a command that are tested without --exhaustive."""


@dataclass
class Written:
    """Files that commands have written.

    Attributes:
        folder: The current folder of the commands.
        resumed: The same folder with a run that was killed.
        run, evaluation, sweep: All paths that ever existed of a run, of its evaluation and judge, and of a sweep.
        command: The command of the sweep.
    """

    folder: Path
    resumed: Path
    run: list[str]
    evaluation: list[str]
    sweep: list[str]
    command: list[str]


@pytest.fixture(scope="module")
def written(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Run a training, its evaluation with a judge, and a sweep, and record the states before all file operations."""
    root = tmp_path_factory.mktemp("written")
    folder = root / "whole"
    folder.mkdir()
    train = train_command(tiny_folder("llama"), rows_file)
    sweep = ["sweep-alpha", *train[1:], "--alphas", "0,5", "--seeds", "1", "--metric", "held_out_loss"]
    with pytest.MonkeyPatch.context() as patch, judge_server(prefers_longer) as server:
        patch.setenv("NO_COLOR", "1")
        for command, states in ((train, "run"), (eval_by(server.url), "evaluation"), (sweep, "sweep")):
            code, output = neft_in(folder, *command, states=root / states, setup=fork_workers)
            assert code == 0, output
    resumed = next(state for state in states_of(root / "run") if describe_run(state) == "a run with a checkpoint")
    return Written(
        folder,
        resumed,
        paths_of_states(root / "run", f"{RUN}/"),
        [path for path in paths_of_states(root / "evaluation", "runs/") if "/evaluation" in path or "/judge" in path],
        [path for path in paths_of_states(root / "sweep", "runs/tiny-sweep/") if path not in LINKS_OF_NEFT],
        sweep,
    )


def eval_by(address: str) -> list[str]:
    return ["eval", str(RUN), "--judge", address, "--judge-model", "m", *EVAL_OPTIONS]


def paths_of_states(states: Path, beginning: str) -> list[str]:
    """Return the paths of all states, except temporary ones."""
    found = {name for folder in states.glob("*/folder") for name in path_names(folder) if name.startswith(beginning)}
    return sorted(name for name in found if not any(map(TEMPORARY.fullmatch, Path(name).parts)))


def choose_links(paths: list[str], max_paths: int) -> list[tuple[str, str]]:
    """Return paths with a link for each; if all paths are tested, each path with each link."""
    if max_paths >= len(paths):
        return [(path, link) for path in paths for link in LINKS]
    indices = [number * (len(paths) - 1) // (max_paths - 1) for number in range(max_paths)]
    return [(paths[index], LINKS[number % len(LINKS)]) for number, index in enumerate(indices)]


def require_rejected(neft: Neft, original: Path, path: str, link: str, command: list[str], root: Path) -> None:
    """Run a command with a path replaced by a link; the error must name the path, and nothing may change."""
    copy, outside = root / "place", root / "outside"
    for folder in (copy, outside):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, copy, symlinks=True)
    (outside / "folder").mkdir(parents=True)
    for file in ("mine.txt", "folder/mine.txt"):
        (outside / file).write_text("mine, without an end")
    remove(copy / path)
    (copy / path).parent.mkdir(parents=True, exist_ok=True)
    (copy / path).symlink_to(os.path.relpath(root / "place" / link, (copy / path).parent))
    before = contents(copy), path_names(copy), contents(outside), path_names(outside)
    os.chdir(copy)
    result = neft(*command)
    assert result.code == 2, (path, link, result)
    assert f"{path}: neft does not write through links" in result.err, (path, link, result.err)
    assert f"rm {path}    removes the link" in result.err
    assert (contents(copy), path_names(copy), contents(outside), path_names(outside)) == before, (path, link)


@pytest.fixture
def max_paths(request: pytest.FixtureRequest) -> int:
    return sys.maxsize if request.config.getoption("exhaustive") else SOME_PATHS


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_resume_links_of_a_run(max_paths: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.run), "paths of a run")
    assert {f"{RUN}/{name}" for name in (".lock", "run.json", "model.partial", "checkpoints", "train.log")} < {
        *written.run
    }
    for path, link in choose_links(written.run, max_paths):
        require_rejected(neft, written.resumed, path, link, ["train", "--resume", str(RUN)], tmp_path)


@pytest.mark.slow
def test_eval_links_of_a_run(max_paths: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.evaluation), "paths of an evaluation")
    assert {f"{RUN}/evaluation", "runs/judge", "runs/judge/verdicts.jsonl"} < {*written.evaluation}
    with judge_server(prefers_longer) as server:
        for path, link in choose_links(written.evaluation, max_paths):
            require_rejected(neft, written.folder, path, link, eval_by(server.url), tmp_path)


@pytest.mark.slow
def test_sweep_alpha_links_of_a_sweep(max_paths: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.sweep), "paths of a sweep")
    assert {f"runs/tiny-sweep/{name}" for name in ("cells", "plots", "sweep.json", "workers.log")} < {*written.sweep}
    for path, link in choose_links(written.sweep, max_paths):
        require_rejected(neft, written.folder, path, link, written.command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl", "train.log"])
def test_resume_pipe_in_the_run(file: str, neft: Neft, written: Written, tmp_path: Path) -> None:
    """Opening a pipe would wait forever."""
    shutil.copytree(written.resumed, tmp_path / "place")
    os.chdir(tmp_path / "place")
    path = RUN / file
    path.unlink()
    os.mkfifo(path)
    result = neft("train", "--resume", RUN)
    assert result.code == 2
    if file != "run.json":
        assert f"{path}: neft writes only to files and folders" in result.err


@pytest.mark.slow
def test_eval_model_is_a_link(neft: Neft, written: Written, tmp_path: Path) -> None:
    """A model's folder may be a link, for example to another disk, since it is only read."""
    shutil.copytree(written.folder, tmp_path / "place", symlinks=True)
    os.chdir(tmp_path / "place")
    (RUN / "model").rename(tmp_path / "elsewhere")
    (RUN / "model").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    result = neft("eval", RUN, "--no-base", *EVAL_OPTIONS)
    assert result.code == 0, result.err
    assert contents(tmp_path / "elsewhere") == before
