"""The files of a folder that hold the rows of a split.

A folder may be what `save_to_disk` wrote, a snapshot of a hub data set, or plain data files. Splits are found as
`datasets` finds them: by the README's `configs`, by shards (`NAME-00000-of-00002`), by folder names, then by file names
(`train`, `validation`, `test` and their synonyms as whole words). Files of different splits are never mixed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any

from neftcli.data.remote import download, filesystem_errors, read_text
from neftcli.errors import DataError, Problem, first_line
from neftcli.rows.data_file import DataFile
from neftcli.rows.readers import FILE_READERS, file_ending
from neftcli.system.files import escapes_folder

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words of a file's or folder's name that name a split: `datasets.data_files.SPLIT_KEYWORDS`."""
BETWEEN_WORDS = re.compile("[-._ 0-9]+")
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that have the ending of a data file but hold no rows: `datasets.data_files.FILES_TO_IGNORE`."""
NO_SPLIT = ""
MAX_FILES_SHOWN = 5


@dataclass(frozen=True)
class DataFolder:
    """A folder of data files, local or remote.

    Attributes:
        name: Its name in messages.
        fs: Its fsspec file system.
        root: Its path there.
        local: The folder is on this machine.
    """

    name: str
    fs: Any
    root: str
    local: bool

    def file_names(self, depth: int | None = None) -> list[str]:
        """Return the sorted relative paths of its data files, `depth` levels deep, without hidden ones."""
        names = []
        with filesystem_errors(self.name):
            paths = self.fs.find(self.root, maxdepth=depth)
        for path in paths:
            name = str(PurePosixPath(path).relative_to(self.root))
            hidden = any(part.startswith((".", "__")) for part in name.split("/"))
            if not hidden and file_ending(name) and PurePosixPath(name).name not in NOT_DATA:
                names.append(name)
        return sorted(names)

    def require_inside(self, name: str) -> None:
        """Reject a name that leads out of the folder; links in the folder are followed.

        Raises:
            DataError: The name is absolute or contains `..`.
        """
        if escapes_folder(name):
            message = f"{self.name}: a data set may only name files in its own folder"
            hint = "copy the files into the folder, and use relative names without .."
            raise DataError(Problem(message, name, hint))

    def text(self, name: str) -> str | None:
        """Return the content of a small file; None if it does not exist."""
        return read_text(self.fs, f"{self.root}/{name}", f"{self.name}/{name}") if self.has_file(name) else None

    def has_file(self, name: str) -> bool:
        """Return whether the folder has a file of this name, which must not lead out of it."""
        self.require_inside(name)
        with filesystem_errors(self.name):
            return bool(self.fs.isfile(f"{self.root}/{name}"))

    @contextmanager
    def file(self, name: str) -> Iterator[DataFile]:
        """Open a file of the folder; a remote file is downloaded."""
        shown = f"{self.name.rstrip('/')}/{name}"
        self.require_inside(name)
        if self.local:
            yield DataFile(Path(self.name) / name, str(Path(self.name) / name))
            return
        with download(self.fs, f"{self.root}/{name}", shown) as file:
            yield file


@dataclass(frozen=True)
class SplitFiles:
    """The files of a folder that hold a split.

    Attributes:
        names: Their relative paths, in reading order.
        split: The split; empty if the folder has none.
        left_out: Split to the data files that are not read.
    """

    names: tuple[str, ...]
    split: str = NO_SPLIT
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_split_files(folder: DataFolder, split: str, config: str | None, option: str) -> SplitFiles:
    """Return the files of a folder that hold a split.

    Args:
        folder: The folder.
        split: Name of the split; "train" also stands for a folder without splits.
        config: Name of a configuration in the README's `configs`; None for the default.
        option: The key that names the split, for messages.

    Raises:
        DataError: The folder has no data files, no such split, or several data sets.
    """
    chosen = _find_saved(folder, split, option)
    if chosen is None:
        chosen = _find_by_readme(folder, split, config, option)
    elif config is not None:
        raise _unknown_config(folder, config, ())
    if chosen is not None:
        return chosen
    if config is not None:
        raise _unknown_config(folder, config, ())
    names = folder.file_names(depth=1) or folder.file_names()
    if any(file_ending(name) != ".txt" for name in names):  # such as notes about the rows
        texts = tuple(name for name in names if file_ending(name) == ".txt")
        names = [name for name in names if name not in texts]
    else:
        texts = ()
    if not names:
        message = f"{folder.name}: this folder has no data files"
        raise DataError(Problem(message, _list_folder(folder), f"one of {', '.join(FILE_READERS)}"))
    chosen = _select_split(group_by_split(names), split, folder, option)
    _require_one_data_set(chosen, folder)
    return SplitFiles(chosen.names, chosen.split, {**chosen.left_out, **({"text": texts} if texts else {})})


def group_by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Group files by the split in their names; files without one are under NO_SPLIT.

    A file whose name has a word for test or validation never belongs to train.
    """
    names = list(names)
    shards = {name: shard[1] for name in names if (shard := SHARD.fullmatch(PurePosixPath(name).name))}
    shard_names = set(shards.values())
    if len(shards) == len(names) and (len(shard_names) > 1 or any(map(_find_split_word, shard_names))):
        by_split = shards
    else:
        by_split = {name: _find_split_word(*PurePosixPath(name).parent.parts) for name in names}
        if not any(by_split.values()):
            by_split = {name: _find_split_word(PurePosixPath(name).name) for name in names}
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(by_split[name], []).append(name)
    return splits


def _find_split_word(*parts: str) -> str:
    """Return the split that a word of these names stands for; empty if there is none."""
    words = {word for part in parts for word in BETWEEN_WORDS.split(part.lower())}
    named = [split for split, synonyms in SPLIT_WORDS.items() if not words.isdisjoint(synonyms)]
    return named[-1] if named else NO_SPLIT


def _select_split(splits: Mapping[str, list[str]], split: str, folder: DataFolder, option: str) -> SplitFiles:
    """Return the files of one split.

    Raises:
        DataError: There is no such split.
    """
    named = [*(name for name in SPLIT_WORDS if name in splits), *(name for name in splits if name not in SPLIT_WORDS)]
    named = [name for name in named if name != NO_SPLIT]
    asked = split if split in splits else _find_split_word(split) or split
    if asked not in splits and asked == "train" and NO_SPLIT in splits:
        asked = NO_SPLIT  # as rows.jsonl in a folder with test.jsonl
    if asked not in splits or (asked == NO_SPLIT and split != "train"):
        if not named:
            raise DataError(
                Problem(
                    f"{option}: {folder.name} has no splits: no file or folder in it is named after one",
                    split,
                    "leave it out; to evaluate on a separate file: --held-out FILE",
                )
            )
        key = option if "," not in option else "split"
        near = "".join(get_close_matches(split, named, n=1))
        hint = f"--set {quote(f'{key}={near or named[0]}')}    its splits are {', '.join(named)}"
        raise DataError(Problem(f"{option}: {folder.name} has no such split", split, hint, near))
    left_out = {name: tuple(files) for name, files in splits.items() if name != asked}
    shown = asked if asked != NO_SPLIT or not named else "train"
    return SplitFiles(tuple(sorted(splits[asked])), shown, left_out)


def _require_one_data_set(chosen: SplitFiles, folder: DataFolder) -> None:
    """Reject files of several subfolders that are not splits: they may be different data sets.

    Raises:
        DataError: The files are in several subfolders.
    """
    tops = {name.partition("/")[0] for name in chosen.names if "/" in name}
    if len(tops) < 2 or all(_find_split_word(top) for top in tops):
        return
    several = sorted(tops)
    message = f"{folder.name}: the data files are in several subfolders, which may be different data sets"
    first = quote(f"{folder.name.rstrip('/')}/{several[0]}")
    raise DataError(Problem(message, _list_names(several), f"--dataset {first}, or several by data.sources"))


def _find_saved(folder: DataFolder, split: str, option: str) -> SplitFiles | None:
    """Return the files of a folder that `save_to_disk` wrote; None if it is a different folder."""
    content = folder.text("dataset_dict.json")
    if content is not None:
        splits = _parse_json(content, folder, "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise _damaged_folder(folder, "dataset_dict.json names no splits")
        chosen = _select_split({name: [name] for name in splits}, split, folder, option)
        asked = chosen.names[0]
        return SplitFiles(_find_arrow_files(folder, f"{asked}/"), asked, {name: () for name in splits if name != asked})
    content = folder.text("state.json")
    if content is None or "_data_files" not in content:
        return None
    own = _parse_json(content, folder, "state.json").get("_split") or "train"
    _select_split({str(own): []} if split != "train" else {"train": []}, split, folder, option)
    return SplitFiles(_find_arrow_files(folder, ""))


def _find_arrow_files(folder: DataFolder, inside: str) -> tuple[str, ...]:
    """Return the Arrow files that a state.json names.

    Raises:
        DataError: It is missing, names no files, or names missing files.
    """
    content = folder.text(f"{inside}state.json")
    if content is None:
        raise _damaged_folder(folder, f"{inside}state.json is missing")
    listed = _parse_json(content, folder, f"{inside}state.json").get("_data_files")
    try:
        names = tuple(f"{inside}{item['filename']}" for item in listed or ())
    except (TypeError, KeyError):
        names = ()
    if not names:
        raise _damaged_folder(folder, f"{inside}state.json names no data file")
    missing = [name for name in names if not folder.has_file(name)]
    if missing:
        raise _damaged_folder(folder, f"missing: {_list_names(missing)}")
    return names


def _parse_json(content: str, folder: DataFolder, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _damaged_folder(folder, f"{name} is not a JSON object")
    return value


def _damaged_folder(folder: DataFolder, got: str) -> DataError:
    message = f"{folder.name}: this folder of save_to_disk is damaged"
    return DataError(Problem(message, got, "copy the whole folder again, or write it again with save_to_disk"))


def _find_by_readme(folder: DataFolder, split: str, config: str | None, option: str) -> SplitFiles | None:
    """Return the files of a split by the README's `configs`, as on the hub; None if it has none."""
    readme = folder.text("README.md")
    if readme is None or not readme.startswith("---") or "configs:" not in readme:
        return None
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard(readme, ignore_metadata_errors=True).data)
        default = configs.get_default_config_name()
        given = {name: content["data_files"] for name, content in configs.items() if "data_files" in content}
        patterns = {name: sanitize_patterns(files) for name, files in given.items()}
    except Exception as error:  # YAML, card and patterns each raise their own
        got = first_line(error)
        hint = "correct the configs in the README, or name a file: --dataset FOLDER/FILE"
        raise DataError(Problem(f"{folder.name}/README.md: its configs can't be read", got, hint)) from None
    if not patterns:
        return None
    asked = config or default or (next(iter(patterns)) if len(patterns) == 1 else None)
    if asked not in patterns:
        raise _unknown_config(folder, config, tuple(patterns))
    names = folder.file_names()
    splits = {name: _match_names(globs, names) for name, globs in patterns[asked].items()}
    known = {file for files in splits.values() for file in files}
    chosen = _select_split(splits, split, folder, option)
    if not chosen.names:
        globs = ", ".join(patterns[asked][chosen.split])
        message = f"{folder.name}: the files of the split {chosen.split} are missing"
        raise DataError(Problem(message, f"no file matches {globs}", "download the whole folder again"))
    others = tuple(name for name in names if name not in known)
    return SplitFiles(chosen.names, chosen.split, {**chosen.left_out, **({NO_SPLIT: others} if others else {})})


def _match_names(globs: Iterable[str], names: Iterable[str]) -> list[str]:
    from fsspec.utils import glob_translate

    expressions = [re.compile(glob_translate(glob.removeprefix("./"))) for glob in globs]
    return [name for name in names if any(expression.match(name) for expression in expressions)]


def _unknown_config(folder: DataFolder, config: str | None, known: tuple[str, ...]) -> DataError:
    if not known:
        message = f"data.config: {folder.name} has no configurations; the README.md of a hub data set defines them"
        return DataError(Problem(message, config or "", "leave it out"))
    near = "".join(get_close_matches(config or "", known, n=1))
    message = f"data.config: {folder.name} has several configurations"
    if config:
        message = f"data.config: {folder.name} has no such configuration"
    hint = f"--set {quote(f'data.config={near or known[0]}')}    it has {', '.join(known)}"
    return DataError(Problem(message, config or "none", hint, near))


def _list_folder(folder: DataFolder) -> str:
    with filesystem_errors(folder.name):
        names = sorted(PurePosixPath(path).name for path in folder.fs.ls(folder.root, detail=False))
    return ", ".join(names[:MAX_FILES_SHOWN]) or "nothing"


def _list_names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MAX_FILES_SHOWN]) + (", ..." if len(names) > MAX_FILES_SHOWN else "")


def describe_skipped_files(left_out: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Describe data files that are not read: "test (test-00000-of-00001.parquet)"."""
    descriptions = []
    for split, names in left_out.items():
        if split == NO_SPLIT:
            descriptions.append(f"{_list_names(names)} (no split in the name)")
        else:
            descriptions.append(f"{split} ({_list_names(names)})" if names else split)
    return descriptions
