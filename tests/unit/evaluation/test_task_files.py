"""Files that determine the results of a task file: included files, data files and Python modules."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from neftcli.errors import InputError
from neftcli.evaluation.task_files import is_task_file, list_named_files, task_file_sha256
from neftcli.evaluation.tasks import check_tasks


def write_task(folder: Path) -> Path:
    """Write a task that includes a file of another folder, which includes a third, with data and a module."""
    (folder / "shared").mkdir()
    (folder / "task.yaml").write_text(
        "task: fruit\ninclude: shared/common\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: rows.jsonl}}\nprocess_docs: !function own.docs\n"
    )
    (folder / "shared" / "common").write_text("include: [metrics.yaml, ../task.yaml]\ndoc_to_text: '{{ question }}'\n")
    (folder / "shared" / "metrics.yaml").write_text("metric_list: [{metric: acc}]\n")
    (folder / "rows.jsonl").write_text('{"question": "Name a fruit."}\n')
    (folder / "own.py").write_text("def docs(rows): return rows\n")
    (folder / "other.yaml").write_text("task: other\n")
    return folder / "task.yaml"


def test_list_named_files(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    names = {str(file.relative_to(tmp_path.resolve())) for file in list_named_files(task)}
    assert names == {"task.yaml", "shared/common", "shared/metrics.yaml", "rows.jsonl", "own.py"}


@pytest.mark.parametrize("name", ["task.yaml", "shared/common", "shared/metrics.yaml", "rows.jsonl", "own.py"])
def test_task_file_sha256_changes_with_each_named_file(name: str, tmp_path: Path) -> None:
    task = str(write_task(tmp_path))
    before = task_file_sha256(task)
    with (tmp_path / name).open("a") as file:
        file.write("# changed\n")
    after = task_file_sha256(task)
    (tmp_path / "other.yaml").write_text("task: changed\n")
    assert before != after == task_file_sha256(task)


def test_task_file_sha256_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_task(tmp_path / name)
    assert task_file_sha256(str(tmp_path / "first" / "task.yaml")) == task_file_sha256(f"{tmp_path}/second/task.yaml")


def test_task_file_sha256_of_missing_and_broken_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: [")
    missing = task_file_sha256(str(tmp_path / "missing.yaml"))
    assert task_file_sha256(str(broken)) != missing == task_file_sha256("~no-such-user/task.yaml")


def test_check_tasks_paths_that_no_file_system_allows() -> None:
    """Such a path is a missing file, not an error of Python."""
    names = ["~no-such-user/task.yaml", f"{'a' * 300}.yaml"]
    assert all(map(is_task_file, names))
    with pytest.raises(Exception, match="no such task file") as raised:
        check_tasks(names)
    assert [problem.got for problem in raised.value.problems] == names  # type: ignore[attr-defined]


def test_check_tasks_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a binary file and a file without read permission are named as what they are."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\x7fELF\0\0\0")
    (tmp_path / "latin.yaml").write_bytes("task: \xe9".encode("latin-1"))
    closed = tmp_path / "closed.yaml"
    closed.write_text("task: mine")
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:  # root may read every file
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    files = [str(tmp_path / f"{name}.yaml") for name in ("folder", "binary", "latin", "closed")]
    with pytest.raises(InputError) as raised:
        check_tasks(files)
    folder, binary, latin, unreadable = raised.value.problems
    assert (folder.message, folder.got) == ("evaluation.tasks: a task is a YAML file, and this is a folder", files[0])
    assert (binary.message, binary.got) == (f"{files[1]}: a task file must be YAML text", "binary data")
    assert latin.message == f"{files[2]}: a task file must be YAML"
    assert (unreadable.message, unreadable.got) == (f"{files[3]}: this task file can't be read", "Permission denied")
    assert unreadable.hint == f"chmod +r {closed}"
