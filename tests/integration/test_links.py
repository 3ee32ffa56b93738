"""Links in a folder of somebody else: neft writes through none of them.

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
"""To a file, to a folder, and to nothing yet."""
OWN = ("runs/tiny-sweep/best", "runs/tiny-sweep/.best")
FEW = [pytest.param(8, id="some"), pytest.param(sys.maxsize, id="all", marks=pytest.mark.slow)]


@dataclass
class Written:
    """What commands have written.

    Attributes:
        folder: The current folder of the commands.
        resumed: The same with a run that was killed.
        run, evaluation, sweep: All paths that were ever there, of a run, of what is beside it after an evaluation, and
            of a sweep.
        command: That of the sweep.
    """

    folder: Path
    resumed: Path
    run: list[str]
    evaluation: list[str]
    sweep: list[str]
    command: list[str]


@pytest.fixture(scope="module")
def written(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run, its evaluation with a judge, and a sweep; each as it was before every file operation."""
    root = tmp_path_factory.mktemp("written")
    whole = root / "whole"
    whole.mkdir()
    train = train_command(tiny_folder("llama"), rows_file)
    sweep = ["sweep-alpha", *train[1:], "--alphas", "0,5", "--seeds", "1", "--metric", "held_out_loss"]
    with pytest.MonkeyPatch.context() as patch, judge_server(prefers_longer) as server:
        patch.setenv("NO_COLOR", "1")
        for command, states in ((train, "run"), (eval_by(server.url), "evaluation"), (sweep, "sweep")):
            code, said = neft_in(whole, *command, states=root / states, setup=fork_workers)
            assert code == 0, said
    resumed = next(state for state in states_of(root / "run") if describe_run(state) == "a run with a checkpoint")
    return Written(
        whole,
        resumed,
        ever(root / "run", f"{RUN}/"),
        [path for path in ever(root / "evaluation", "runs/") if "/evaluation" in path or "/judge" in path],
        [path for path in ever(root / "sweep", "runs/tiny-sweep/") if path not in OWN],
        sweep,
    )


def eval_by(address: str) -> list[str]:
    return ["eval", str(RUN), "--judge", address, "--judge-model", "m", *EVAL_OPTIONS]


def ever(states: Path, beginning: str) -> list[str]:
    """The paths of all states, temporary ones aside."""
    found = {name for folder in states.glob("*/folder") for name in path_names(folder) if name.startswith(beginning)}
    return sorted(name for name in found if not any(map(TEMPORARY.fullmatch, Path(name).parts)))


def spread(paths: list[str], most: int) -> list[tuple[str, str]]:
    """Paths with a link for each; where all are meant, each path with each link."""
    if most >= len(paths):
        return [(path, link) for path in paths for link in LINKS]
    places = [place * (len(paths) - 1) // (most - 1) for place in range(most)]
    return [(paths[place], LINKS[number % len(LINKS)]) for number, place in enumerate(places)]


def require_refused(neft: Neft, original: Path, path: str, link: str, command: list[str], root: Path) -> None:
    """Runs a command where one path is a link; it must name that, and leave all else as it is."""
    place, outside = root / "place", root / "outside"
    for folder in (place, outside):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, place, symlinks=True)
    (outside / "folder").mkdir(parents=True)
    for file in ("mine.txt", "folder/mine.txt"):
        (outside / file).write_text("mine, without an end")
    remove(place / path)
    (place / path).parent.mkdir(parents=True, exist_ok=True)
    (place / path).symlink_to(os.path.relpath(root / "place" / link, (place / path).parent))
    before = contents(place), path_names(place), contents(outside), path_names(outside)
    os.chdir(place)
    said = neft(*command)
    assert said.code == 2, (path, link, said)
    assert f"{path}: neft does not write through links" in said.err, (path, link, said.err)
    assert f"rm {path}    removes the link" in said.err
    assert (contents(place), path_names(place), contents(outside), path_names(outside)) == before, (path, link)


@pytest.fixture(autouse=True)
def _back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("most", FEW)
def test_resume_links_of_a_run(most: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.run), "paths of a run")
    assert {f"{RUN}/{name}" for name in (".lock", "run.json", "model.partial", "checkpoints", "train.log")} < {
        *written.run
    }
    for path, link in spread(written.run, most):
        require_refused(neft, written.resumed, path, link, ["train", "--resume", str(RUN)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("most", FEW)
def test_eval_links_of_a_run(most: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.evaluation), "paths of an evaluation")
    assert {f"{RUN}/evaluation", "runs/judge", "runs/judge/verdicts.jsonl"} < {*written.evaluation}
    with judge_server(prefers_longer) as server:
        for path, link in spread(written.evaluation, most):
            require_refused(neft, written.folder, path, link, eval_by(server.url), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("most", FEW)
def test_sweep_links_of_a_sweep(most: int, neft: Neft, written: Written, tmp_path: Path) -> None:
    print(len(written.sweep), "paths of a sweep")
    assert {f"runs/tiny-sweep/{name}" for name in ("cells", "plots", "sweep.json", "workers.log")} < {*written.sweep}
    for path, link in spread(written.sweep, most):
        require_refused(neft, written.folder, path, link, written.command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl", "train.log"])
def test_resume_pipe_in_the_run(file: str, neft: Neft, written: Written, tmp_path: Path) -> None:
    """A pipe would be waited for."""
    shutil.copytree(written.resumed, tmp_path / "place")
    os.chdir(tmp_path / "place")
    path = RUN / file
    path.unlink()
    os.mkfifo(path)
    said = neft("train", "--resume", RUN)
    assert said.code == 2
    if file != "run.json":
        assert f"{path}: neft writes only to files and folders" in said.err


@pytest.mark.slow
def test_eval_model_is_a_link(neft: Neft, written: Written, tmp_path: Path) -> None:
    """It is only read: a person may keep it on another disk."""
    shutil.copytree(written.folder, tmp_path / "place", symlinks=True)
    os.chdir(tmp_path / "place")
    (RUN / "model").rename(tmp_path / "elsewhere")
    (RUN / "model").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    said = neft("eval", RUN, "--no-base", *EVAL_OPTIONS)
    assert said.code == 0, said.err
    assert contents(tmp_path / "elsewhere") == before
