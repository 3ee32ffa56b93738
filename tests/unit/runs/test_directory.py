"""The run directory.

Oracles: the names that the design allows, the numbers 2, 3, 4... each given once however many ask at the same time,
and a file that is either the old one or the new one.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neftcli.errors import InputError, RunLockedError
from neftcli.runs import directory
from neftcli.runs.directory import (
    NAME,
    ReadOnlyRunDirectory,
    RunDirectory,
    find_run,
    list_runs,
    list_sweeps,
    remove_incomplete_runs,
)
from neftcli.system.files import STALE_AFTER, atomic_write
from tests.conftest import keep_nfs_files, new_run

root_writes_anywhere = pytest.mark.skipif(os.geteuid() == 0, reason="root can write to a read-only folder")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(name: str, parent: str = "runs") -> str:
    with pytest.raises(InputError) as raised:
        new_run(Path(parent), name)
    return str(raised.value)


def names(folder: str | Path = ".") -> list[str]:
    return sorted(item.name for item in Path(folder).iterdir())


# Lists


def test_list_runs_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their statuses if the records are valid; other folders, and names that no run has, are left out."""
    assert list_runs() == list_sweeps() == ""
    for index, name in enumerate(("old-a5-s0", "new-a5-s0", "damaged", "bad name", "\x1b[31m")):
        record = Path("runs") / name / "run.json"
        record.parent.mkdir(parents=True)
        record.write_text("{" if name == "damaged" else json.dumps({"status": "preempted", "recipe_sha256": "0" * 64}))
        os.utime(record, (index, index))
    Path("runs/empty").mkdir()
    assert list_runs() == "damaged, new-a5-s0 (preempted), old-a5-s0 (preempted)"
    monkeypatch.setattr(directory, "MAX_LISTED", 1)
    assert list_runs() == "damaged, and 2 more"


def test_list_sweeps_are_no_runs() -> None:
    Path("runs/mine-sweep/cells").mkdir(parents=True)
    Path("runs/other/cells").mkdir(parents=True)
    Path("runs/mine-sweep/recipe.yaml").touch()
    assert (list_sweeps(), list_runs()) == ("mine-sweep", "")


# Names


@pytest.mark.parametrize("name", ["run", "a", "run-a5-s0", "1.5_x", "_", "x.", "x" * 64])
def test_require_valid_name_accepts(name: str) -> None:
    """The folder is made with that name, below parents that are made as well."""
    found = new_run(Path("some/runs"), name)
    assert found.path == Path("some/runs") / name
    assert names("some/runs") == [name]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("", "my-run"),
        (".", "my-run"),
        ("..", "my-run"),
        ("...", "my-run"),
        ("../x", "x"),
        ("a/b", "a-b"),
        ("/etc", "etc"),
        ("a b\tc", "a-b-c"),
        ("größe", "gr-e"),
        ("a\0b", "a-b"),
        ("run\n", "run"),
        ("x" * 65, "x" * 40),
    ],
)
def test_require_valid_name_suggests_a_valid_name(name: str, remedy: str) -> None:
    """No name leaves the parent folder; the one to type instead is allowed."""
    received = f"\n  got      {name}" if name else ""
    assert message(name) == (
        "name: a run's name has at most 64 letters, digits, dots, underscores and hyphens, no dot or hyphen first"
        f"{received}\n  hint     --name {remedy}"
    )
    assert NAME.fullmatch(remedy)
    assert names() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=70))
def test_create_name_never_leaves_the_parent(name: str) -> None:
    """Whatever is typed: one new folder in the parent, or a message and nothing at all."""
    parent = Path("parent")
    parent.mkdir(exist_ok=True)
    before = names(parent)
    try:
        found = new_run(parent, name)
    except InputError:
        assert names(parent) == before
    else:
        assert found.path.parent == parent
        assert found.path.is_dir()
        assert len(names(parent)) == len(before) + 1
    assert names() == ["parent"]


# Numbers


def test_assign_name_taken() -> None:
    """No run overwrites another, nor takes a file's place."""
    made = [new_run(Path("runs"), "run").path.name for _ in range(3)]
    Path("runs/run-4").touch()
    made.append(new_run(Path("runs"), "run").path.name)
    assert made == ["run", "run-2", "run-3", "run-5"]


@pytest.mark.parametrize("status", ["preempted", "finished", None])
def test_stopped_namesake(status: str | None) -> None:
    """A run that was stopped and whose name a new run would have had."""
    first = new_run(Path("runs"), "run")
    if status is not None:
        first.write_json("run.json", {"status": status, "recipe_sha256": ""})
    second = new_run(Path("runs"), "run")
    assert second.stopped_namesake(Path("runs"), "run") == (first.path if status == "preempted" else None)
    assert first.stopped_namesake(Path("runs"), "run") is None


def test_assign_name_fills_gap() -> None:
    """The lowest free number is taken; the folders that were there keep their files."""
    first = new_run(Path("runs"), "run")
    first.write_text("run.json", "{}")
    Path("runs/run-3").mkdir()
    assert new_run(Path("runs"), "run").path.name == "run-2"
    assert names(first.path) == ["run.json"]


def test_assign_name_concurrent() -> None:
    """Sixteen threads that start together: sixteen names, none twice, no number left out."""
    together = threading.Barrier(16)

    def create(_: int) -> str:
        together.wait(timeout=60)
        run = RunDirectory.create(Path("some/runs"), "run")
        run.write_text("recipe.yaml", "name: run\n")  # a rename would replace an empty folder of that name
        run.assign_name(Path("some/runs"), "run")
        return run.path.name

    with ThreadPoolExecutor(16) as pool:
        made = sorted(pool.map(create, range(16)))
    assert made == sorted(["run", *(f"run-{number}" for number in range(2, 17))])
    assert names("some/runs") == made


# Before it has its name


def create_unnamed(name: str = "run") -> RunDirectory:
    run = RunDirectory.create(Path("runs"), name)
    run.write_text("run.json", "{}")
    return run


def make_stale(folder: Path) -> None:
    then = time.time() - STALE_AFTER - 60
    os.utime(folder, (then, then))


def test_create_is_hidden_until_named() -> None:
    """Nobody takes it for a run before, and it settles with all that is in it, held or not."""
    run = create_unnamed()
    assert run.path.name.startswith(".run.")
    assert find_run("run") is None
    with run.lock():
        run.assign_name(Path("runs"), "run")
        with pytest.raises(RunLockedError, match="another process is training this run"), RunDirectory(run.path).lock():
            pass
    assert run.path == Path("runs/run")
    assert names("runs") == ["run"]
    assert names(run.path) == ["run.json"]


def test_create_removes_stale_unnamed_runs() -> None:
    """Only what is old, and what nobody holds: another process may be about to give it its name."""
    left, young, at_work = create_unnamed(), create_unnamed("other"), create_unnamed()
    make_stale(left.path)
    with at_work.lock():
        make_stale(at_work.path)
        third = create_unnamed()
        assert sorted(Path("runs").iterdir()) == sorted([young.path, at_work.path, third.path])
    third.remove()
    assert sorted(Path("runs").iterdir()) == sorted([young.path, at_work.path])


def test_create_keeps_files_of_others() -> None:
    """Other names (such as dates), targets of links, and folders with other files are kept."""
    Path("mine").mkdir()
    theirs = [".hidden", ".backup.20250101", ".run.neft-0123abcd", ".run.neft-89abcdef", ".run.neft-00000000"]
    for name in (*theirs[:2], theirs[3]):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "thesis.tex").touch()
    Path("runs", theirs[2]).symlink_to(Path("mine").absolute())
    Path("runs", theirs[4], "run.json").mkdir(parents=True)
    for name in theirs:
        make_stale(Path("runs", name))
    run = create_unnamed()
    assert names("runs") == sorted([*theirs, run.path.name])
    assert Path("mine").is_dir()


def test_create_removes_unnamed_run_with_all_its_files() -> None:
    left = create_unnamed()
    for name in (".lock", "recipe.yaml", "train.log", ".run.json.neft-0123abcd", ".recipe.yaml.neft-89abcdef"):
        (left.path / name).touch()
    make_stale(left.path)
    assert create_unnamed("other").path.is_dir()
    assert not left.path.exists()


def test_remove_incomplete_runs_keeps_what_may_be_the_users() -> None:
    """Leftovers go, whatever their age; locked folders, links and folders with other files stay."""
    unnamed, locked = create_unnamed(), create_unnamed()
    for name in ("empty", "recipe-only", "notes", "named", "damaged"):
        Path("runs", name).mkdir()
    Path("runs", "recipe-only", "recipe.yaml").touch()
    Path("runs", "notes", "thesis.tex").touch()
    Path("runs", "named", "run.json").write_text("{}")
    Path("runs", "damaged", "checkpoints").mkdir()
    Path("runs", ".backup.20250101").mkdir()
    Path("runs", ".backup.20250101", "thesis.tex").touch()
    Path("mine").mkdir()
    Path("runs", "link").symlink_to(Path("mine").absolute())
    with locked.lock():
        remove_incomplete_runs(Path("runs"))
        assert locked.path.is_dir()
    assert not unnamed.path.exists()
    assert names("runs") == sorted([locked.path.name, "notes", "named", "damaged", ".backup.20250101", "link"])
    assert Path("mine").is_dir()


def test_remove_before_naming() -> None:
    """A command that fails leaves neither the hidden folder nor the parents that it made."""
    create_unnamed().remove()
    assert names() == []


def test_lock_rejects_links() -> None:
    run = new_run(Path("runs"), "run")
    (run.path / "checkpoints").symlink_to("/tmp")  # noqa: S108 - nothing is written there
    with pytest.raises(InputError, match="checkpoints: neft does not write through links"), run.lock():
        pass
    assert names(run.path) == ["checkpoints"]


def test_lock_removes_stale_files() -> None:
    run = new_run(Path("runs"), "run")
    for name in (".run.json.neft-0123abcd", ".recipe.yaml.neft-89abcdef"):
        (run.path / name).touch()
    make_stale(run.path / ".run.json.neft-0123abcd")
    with run.lock():
        assert names(run.path) == [".lock", ".recipe.yaml.neft-89abcdef"]


def test_clean_up_finished_removes_checkpoints() -> None:
    run = new_run(Path("runs"), "run")
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    with run.lock():
        RunDirectory(run.path).clean_up_finished()  # another process is at work in it
        assert run.checkpoints.is_dir()
    run.clean_up_finished()
    assert names(run.path) == []


def test_replace_model_with_open_files_on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its model nor its checkpoints stop it: what stays of them is out of the way."""
    run = new_run(Path("runs"), "run")
    for folder in (run.model, run.checkpoints, run.path / "model.partial"):
        folder.mkdir()
        (folder / ".nfs0123").touch()
        (folder / "weights").touch()
    keep_nfs_files(monkeypatch)
    with run.replace_model() as partial:
        (partial / "new").touch()
    assert names(run.model) == ["new"]
    assert not run.remove_checkpoints()
    run.clean_up_finished()
    assert names(run.checkpoints) == [".nfs0123"]
    (run.model / ".nfs4567").touch()
    run.clear_results()
    assert not run.model.exists()


# Parents that can't be written


@root_writes_anywhere
def test_create_read_only_parent() -> None:
    """The folder is named, with what the system says."""
    Path("runs").mkdir(mode=0o500)
    assert message("run") == (
        "output_dir: runs can't be written\n  got      Permission denied\n  hint     --output-dir FOLDER"
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_create_reports_system_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that can't be made, for root as well: a read-only disk, or a full one."""
    Path("runs").mkdir()

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert message("run") == (
        f"output_dir: runs can't be written\n  got      {os.strerror(code)}\n  hint     --output-dir FOLDER"
    )


def test_create_parent_is_a_file() -> None:
    """A file in the folder's place, and above it."""
    Path("runs").touch()
    assert message("run") == (
        "output_dir: runs can't be written\n  got      runs is a file\n  hint     --output-dir FOLDER"
    )
    first, second, _ = message("run", "runs/deeper").splitlines()
    assert first == "output_dir: runs/deeper can't be written"
    assert second == f"  got      {Path.cwd()}/runs is a file"


@pytest.mark.parametrize("parent", ["runs", "runs/deeper"])
def test_create_parent_is_a_broken_link(parent: str) -> None:
    """The disk that a link leads to is not mounted; the command must end with an error."""
    Path("runs").symlink_to("no/such/disk")
    first, second, third = message("run", parent).splitlines()
    assert first == f"output_dir: {parent} can't be written"
    assert second.endswith("runs is a link to no/such/disk, which does not exist")
    assert third == "  hint     --output-dir FOLDER"


# Files


def test_run_directory_paths() -> None:
    """As docs and tests of other modules name them."""
    run = RunDirectory(Path("runs/run"))
    assert (run.model, run.checkpoints) == (Path("runs/run/model"), Path("runs/run/checkpoints"))
    assert run.log == Path("runs/run/train.log")


def test_write_text_overwrites() -> None:
    """UTF-8, as it was given, readable by others, and nothing beside it."""
    run = new_run(Path("runs"), "run")
    run.write_text("recipe.yaml", "old and longer\n")
    run.write_text("recipe.yaml", "größe: 🦜\n")
    assert (run.path / "recipe.yaml").read_bytes() == "größe: 🦜\n".encode()
    assert (run.path / "recipe.yaml").stat().st_mode & 0o777 == 0o644
    assert names(run.path) == ["recipe.yaml"]


def test_write_json_round_trip() -> None:
    """The content that is read equals the content that was written, and is legible in the file."""
    run = new_run(Path("runs"), "run")
    content = {"name": "größe", "losses": [1.5, None], "neftune": {"alpha": 5.0}}
    run.write_json("run.json", content)
    assert json.loads((run.path / "run.json").read_bytes()) == content
    text = (run.path / "run.json").read_text(encoding="utf-8")
    assert '"name": "größe",\n' in text
    assert text.endswith("}\n")


def test_append_line() -> None:
    """One object a line, in order, in UTF-8; a line break inside a text breaks no line."""
    run = new_run(Path("runs"), "run")
    rows = [{"step": 1, "loss": 2.5}, {"text": "two\nlines\u2028größe"}]
    for row in rows:
        run.append_line("metrics.jsonl", row)
    lines = (run.path / "metrics.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == b""


# Whole or not at all


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("place", "function"), [("os", "fsync"), ("Path", "replace")])
@pytest.mark.parametrize(("fail", "raised"), [(full_disk, OSError), (interrupt, KeyboardInterrupt)])
def test_atomic_write_failure_keeps_old_file(
    place: str, function: str, fail: Callable[..., None], raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or Ctrl-C at any step: the old content, and no temporary file."""
    file = Path("run.json")
    atomic_write(file, "old")
    with monkeypatch.context() as broken:
        broken.setattr(getattr(directory, place), function, fail)
        with pytest.raises(raised):
            atomic_write(file, "new")
    assert file.read_text(encoding="utf-8") == "old"
    assert names() == ["run.json"]
    atomic_write(file, "new")
    assert file.read_text(encoding="utf-8") == "new"


def test_atomic_write_unencodable_text_keeps_old_file() -> None:
    """It fails in the first step, before anything reached the disk."""
    file = Path("run.json")
    atomic_write(file, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(file, "new \ud83e")
    assert file.read_text(encoding="utf-8") == "old"
    assert names() == ["run.json"]


def test_atomic_write_syncs_before_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, synchronised, then renamed: a crash in between leaves the old file."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(number: int) -> None:
        (temporary,) = (name for name in names() if name != "run.json")
        assert Path(temporary).read_text(encoding="utf-8") == "new"
        steps.append("fsync")
        fsync(number)

    def rename(source: str, target: Path) -> None:
        assert Path(source).parent.resolve() == target.parent.resolve()
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(directory.os, "fsync", sync)
    monkeypatch.setattr(directory.os, "replace", rename)
    atomic_write(Path("run.json"), "new")
    assert steps == ["fsync", "replace"]
    assert names() == ["run.json"]


def test_atomic_write_concurrent_reader() -> None:
    """While one thread writes again and again, another never reads half of it."""
    file = Path("run.json")
    texts = {letter * 50_000 for letter in "ab"}
    atomic_write(file, "a" * 50_000)
    done = threading.Event()
    seen = set()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            for text in sorted(texts):
                atomic_write(file, text)
    finally:
        done.set()
        reader.join(timeout=60)
    assert seen
    assert seen <= texts


# A process that does not lead


def test_read_only_run_directory_changes_nothing() -> None:
    led = ReadOnlyRunDirectory(new_run(Path("runs"), "run").path)
    (led.path / "metrics.jsonl").write_text('{"event": "training.step", "step": 9}\n')
    (led.path / "run.json").write_text("{}\n")
    led.model.mkdir()
    led.checkpoints.mkdir()
    before = {file: file.read_bytes() for file in led.path.iterdir() if file.is_file()}
    with led.lock():
        led.write_json("run.json", {"status": "running"})
        led.write_text("recipe.yaml", "name: other\n")
        led.append_line("metrics.jsonl", {"event": "training.step"})
        led.rewind(1, 1)
        led.clear_results()
        led.remove_checkpoints()
        led.remove()
    assert json.loads((led.path / "run.json").read_bytes()) == {}
    assert {file: file.read_bytes() for file in led.path.iterdir() if file.is_file()} == before
    assert names(led.path) == ["checkpoints", "metrics.jsonl", "model", "run.json"]
