"""Task files of lm-evaluation-harness, and the local files that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from neftcli.system.files import file_sha256
from neftcli.system.paths import expand_home, is_file

TASK_FILE_ENDINGS = (".yaml", ".yml")
FUNCTION_TAG = "!function"


def is_task_file(task: str) -> bool:
    """Return whether a task is the path of a YAML file, not a name that the harness knows."""
    return Path(task).suffix in TASK_FILE_ENDINGS


def task_file_sha256(task: str) -> str:
    """Return the SHA-256 over a task file and the files that it names; files that can't be read are left out.

    Files that a task's Python code imports or opens are not known.
    """
    digest = sha256()
    for file in list_named_files(expand_home(task)):
        try:
            digest.update(file_sha256(file).encode())
        except OSError:  # not readable: the harness reports it
            continue
    return digest.hexdigest()


def list_named_files(task_file: Path) -> list[Path]:
    """List a task file, the files that it includes, and the data files and Python modules that all of these name."""
    import yaml

    files: list[Path] = []
    parsed: set[Path] = set()
    included = [_real_path(task_file)]
    while included:
        file = included.pop(0)
        if file in parsed or not is_file(file):
            continue
        parsed.add(file)
        files.append(file)
        try:
            root = yaml.compose(file.read_bytes(), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):  # the harness reports it
            continue
        for node in yaml_nodes(root):
            if isinstance(node, yaml.MappingNode):
                included += [_real_path(file.parent / name) for name in _include_values(node, yaml)]
            elif isinstance(node, yaml.ScalarNode):
                name = _module_file(node.value) if node.tag == FUNCTION_TAG else node.value
                # The harness loads a task in the task file's folder, so names of data files start there.
                files += filter(is_file, (_real_path(folder / name) for folder in (file.parent, task_file.parent)))
    return list(dict.fromkeys(files))


def _real_path(path: Path) -> Path:
    """Return a path without links and `..`, so that files that include each other are read once."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # no file system allows this name
        return path


def _include_values(mapping: Any, yaml: Any) -> list[str]:
    """Return the files that a mapping includes: a name or a list of names."""
    names = []
    for key, value in mapping.value:
        if key.value == "include":
            items = value.value if isinstance(value, yaml.SequenceNode) else [value]
            names += [item.value for item in items if isinstance(item, yaml.ScalarNode)]
    return names


def _module_file(function: str) -> str:
    """Return the file of a function such as `utils.process_docs`, relative to the task file's folder."""
    return f"{function.rpartition('.')[0].replace('.', '/')}.py"


def yaml_nodes(root: Any) -> Iterator[Any]:
    """Yield all nodes of a YAML graph once; anchors can make it cyclic."""
    import yaml

    queue, seen = [root], set()
    while queue:
        node = queue.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            queue += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            queue += node.value
