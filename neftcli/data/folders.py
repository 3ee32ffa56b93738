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

from neftcli.data.data_file import DataFile
from neftcli.data.readers import ENDINGS, ending
from neftcli.data.remote import downloaded, read_text, reading
from neftcli.errors import DataError, Problem, first_line
from neftcli.system.files import escapes_folder

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words of a file's or folder's name that name a split: `datasets.data_files.SPLIT_KEYWORDS`."""
BETWEEN_WORDS = re.compile("[-._ 0-9]+")
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Data by their ending, and none: `datasets.data_files.FILES_TO_IGNORE`."""
NO_SPLIT = ""
MOST_NAMES = 5


@dataclass(frozen=True)
class Folder:
    """A folder of data files, local or remote.

    Attributes:
        name: Its name in messages.
        fs: Its fsspec file system.
        root: Its path there.
        local: It is on this machine.
    """

    name: str
    fs: Any
    root: str
    local: bool

    def names(self, depth: int | None = None) -> list[str]:
        """Relative paths of its data files in order, `depth` levels deep; hidden ones are skipped."""
        names = []
        with reading(self.name):
            paths = self.fs.find(self.root, maxdepth=depth)
        for path in paths:
            name = str(PurePosixPath(path).relative_to(self.root))
            hidden = any(part.startswith((".", "__")) for part in name.split("/"))
            if not hidden and ending(name) and PurePosixPath(name).name not in NO_DATA:
                names.append(name)
        return sorted(names)

    def require_inside(self, name: str) -> None:
        """Reject a name that leads out of the folder; links in the folder are followed.

        Raises:
            DataError: It is absolute or contains `..`.
        """
        if escapes_folder(name):
            message = f"{self.name}: a data set must name files in its own folder"
            hint = "copy the files into the folder, and correct the name: no / in front, no .."
            raise DataError(Problem(message, name, hint))

    def text(self, name: str) -> str | None:
        """The content of a small file; None if there is none of this name."""
        return read_text(self.fs, f"{self.root}/{name}", f"{self.name}/{name}") if self.holds(name) else None

    def holds(self, name: str) -> bool:
        """Return whether it holds a file of this name, which may not lead out of it."""
        self.require_inside(name)
        with reading(self.name):
            return bool(self.fs.isfile(f"{self.root}/{name}"))

    @contextmanager
    def file(self, name: str) -> Iterator[DataFile]:
        """One of its files."""
        shown = f"{self.name.rstrip('/')}/{name}"
        self.require_inside(name)
        if self.local:
            yield DataFile(Path(self.name) / name, str(Path(self.name) / name))
            return
        with downloaded(self.fs, f"{self.root}/{name}", shown) as file:
            yield file


@dataclass(frozen=True)
class Chosen:
    """The files of a folder that hold a split.

    Attributes:
        names: Their relative paths, in the order in which they are read.
        split: The split; empty if the folder has none.
        left_out: Data files that are not read, by their split.
    """

    names: tuple[str, ...]
    split: str = NO_SPLIT
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def choose_files(folder: Folder, split: str, config: str | None, option: str) -> Chosen:
    """The files that hold a split of a folder.

    Args:
        folder: The folder.
        split: The split's name; "train" also means a folder without splits.
        config: Which configuration of the README's `configs`; None for its default.
        option: The key that names the split, for messages.

    Raises:
        DataError: It holds no data file, no such split, or several data sets.
    """
    chosen = _saved(folder, split, option)
    if chosen is None:
        chosen = _by_readme(folder, split, config, option)
    elif config is not None:
        raise _no_config(folder, config, ())
    if chosen is not None:
        return chosen
    if config is not None:
        raise _no_config(folder, config, ())
    names = folder.names(depth=1) or folder.names()
    if any(ending(name) != ".txt" for name in names):  # such as notes about the rows
        texts = tuple(name for name in names if ending(name) == ".txt")
        names = [name for name in names if name not in texts]
    else:
        texts = ()
    if not names:
        message = f"{folder.name}: this folder holds no data file"
        raise DataError(Problem(message, _listing(folder), f"one of {', '.join(ENDINGS)}"))
    chosen = _of_split(splits_of(names), split, folder, option)
    _require_one_set(chosen, folder)
    return Chosen(chosen.names, chosen.split, {**chosen.left_out, **({"text": texts} if texts else {})})


def splits_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Split to the files that name it; those that name none are under the empty text.

    A file that names test or validation is never one of train, whatever else its name holds.
    """
    names = list(names)
    shards = {name: shard[1] for name in names if (shard := SHARD.fullmatch(PurePosixPath(name).name))}
    if len(shards) == len(names) and (len(set(shards.values())) > 1 or _word(next(iter(shards.values()), ""))):
        by_split = {name: shards[name] for name in names}
    else:
        by_folder = {name: _word(*PurePosixPath(name).parent.parts) for name in names}
        by_split = by_folder if any(by_folder.values()) else {name: _word(PurePosixPath(name).name) for name in names}
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(by_split[name], []).append(name)
    return splits


def _word(*parts: str) -> str:
    """The split that words of these names name; empty if none does."""
    words = {word for part in parts for word in BETWEEN_WORDS.split(part.lower())}
    named = [split for split, synonyms in SPLIT_WORDS.items() if not words.isdisjoint(synonyms)]
    return named[-1] if named else NO_SPLIT


def _of_split(splits: Mapping[str, list[str]], split: str, folder: Folder, option: str) -> Chosen:
    """The files of one split.

    Raises:
        DataError: There is no such split.
    """
    named = [*(name for name in SPLIT_WORDS if name in splits), *(name for name in splits if name not in SPLIT_WORDS)]
    named = [name for name in named if name != NO_SPLIT]
    asked = split if split in splits else _word(split) or split
    if asked not in splits and asked == "train" and NO_SPLIT in splits:
        asked = NO_SPLIT  # as rows.jsonl in a folder with test.jsonl
    if asked not in splits or (asked == NO_SPLIT and split != "train"):
        if not named:
            raise DataError(
                Problem(
                    f"{option}: {folder.name} has no splits, since no file or folder in it names one",
                    split,
                    "leave it out; rows to evaluate on can be a file of their own: --held-out FILE",
                )
            )
        key = option if "," not in option else "split"
        near = "".join(get_close_matches(split, named, n=1))
        hint = f"--set {quote(f'{key}={near or named[0]}')}    its splits are {', '.join(named)}"
        raise DataError(Problem(f"{option}: {folder.name} has no split of this name", split, hint, near))
    left_out = {name: tuple(files) for name, files in splits.items() if name != asked}
    shown = asked if asked != NO_SPLIT or not named else "train"
    return Chosen(tuple(sorted(splits[asked])), shown, left_out)


def _require_one_set(chosen: Chosen, folder: Folder) -> None:
    """Reject files of several subfolders that no split combines: they may be different data sets.

    Raises:
        DataError: Naming the subfolders.
    """
    tops = {name.partition("/")[0] for name in chosen.names if "/" in name}
    if len(tops) < 2 or all(_word(top) for top in tops):
        return
    several = sorted(tops)
    message = f"{folder.name}: the data files are in several subfolders, which may be different data sets"
    first = quote(f"{folder.name.rstrip('/')}/{several[0]}")
    raise DataError(Problem(message, _some(several), f"--dataset {first}, or several by data.sources"))


def _saved(folder: Folder, split: str, option: str) -> Chosen | None:
    """The files of a folder that `save_to_disk` wrote; None if it is none."""
    content = folder.text("dataset_dict.json")
    if content is not None:
        splits = _parsed(content, folder, "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
            raise _damaged(folder, "dataset_dict.json names no splits")
        chosen = _of_split({name: [name] for name in splits}, split, folder, option)
        asked = chosen.names[0]
        return Chosen(_arrow_files(folder, f"{asked}/"), asked, {name: () for name in splits if name != asked})
    content = folder.text("state.json")
    if content is None or "_data_files" not in content:
        return None
    own = _parsed(content, folder, "state.json").get("_split") or "train"
    _of_split({str(own): []} if split != "train" else {"train": []}, split, folder, option)
    return Chosen(_arrow_files(folder, ""))


def _arrow_files(folder: Folder, inside: str) -> tuple[str, ...]:
    """The Arrow files that a state.json names.

    Raises:
        DataError: It is missing, names none, or names files that are not there.
    """
    content = folder.text(f"{inside}state.json")
    if content is None:
        raise _damaged(folder, f"{inside}state.json is missing")
    listed = _parsed(content, folder, f"{inside}state.json").get("_data_files")
    try:
        names = tuple(f"{inside}{item['filename']}" for item in listed or ())
    except (TypeError, KeyError):
        names = ()
    if not names:
        raise _damaged(folder, f"{inside}state.json names no data file")
    missing = [name for name in names if not folder.holds(name)]
    if missing:
        raise _damaged(folder, f"missing: {_some(missing)}")
    return names


def _parsed(content: str, folder: Folder, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _damaged(folder, f"{name} is not JSON, or holds no object")
    return value


def _damaged(folder: Folder, got: str) -> DataError:
    message = f"{folder.name}: this folder of save_to_disk is damaged"
    return DataError(Problem(message, got, "copy the whole folder again, or write it again with save_to_disk"))


def _by_readme(folder: Folder, split: str, config: str | None, option: str) -> Chosen | None:
    """The files of a split by the `configs` of the README, as on the hub; None if it has none."""
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
        hint = "correct the README's configs, or name the files: --dataset FOLDER/FILE"
        raise DataError(Problem(f"{folder.name}/README.md: its configs can't be read", got, hint)) from None
    if not patterns:
        return None
    asked = config or default or (next(iter(patterns)) if len(patterns) == 1 else None)
    if asked not in patterns:
        raise _no_config(folder, config, tuple(patterns))
    names = folder.names()
    splits = {name: _matching(globs, names) for name, globs in patterns[asked].items()}
    known = {file for files in splits.values() for file in files}
    chosen = _of_split(splits, split, folder, option)
    if not chosen.names:
        globs = ", ".join(patterns[asked][chosen.split])
        message = f"{folder.name}: the files of the split {chosen.split} are not here"
        raise DataError(Problem(message, f"no file matches {globs}", "download the data set's folder again, whole"))
    others = tuple(name for name in names if name not in known)
    return Chosen(chosen.names, chosen.split, {**chosen.left_out, **({NO_SPLIT: others} if others else {})})


def _matching(globs: Iterable[str], names: Iterable[str]) -> list[str]:
    from fsspec.utils import glob_translate

    expressions = [re.compile(glob_translate(glob.removeprefix("./"))) for glob in globs]
    return [name for name in names if any(expression.match(name) for expression in expressions)]


def _no_config(folder: Folder, config: str | None, known: tuple[str, ...]) -> DataError:
    if not known:
        message = f"data.config: {folder.name} has no configurations; the README.md of a hub data set defines them"
        return DataError(Problem(message, config or "", "leave it out"))
    near = "".join(get_close_matches(config or "", known, n=1))
    message = f"data.config: {folder.name} has several configurations"
    if config:
        message = f"data.config: {folder.name} has no configuration of this name"
    hint = f"--set {quote(f'data.config={near or known[0]}')}    it has {', '.join(known)}"
    return DataError(Problem(message, config or "none", hint, near))


def _listing(folder: Folder) -> str:
    with reading(folder.name):
        names = sorted(PurePosixPath(path).name for path in folder.fs.ls(folder.root, detail=False))
    return ", ".join(names[:MOST_NAMES]) or "nothing"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def left_out_words(left_out: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Data files that are not read, for people: "test (test-00000-of-00001.parquet)"."""
    words = []
    for split, names in left_out.items():
        if split == NO_SPLIT:
            words.append(f"{_some(names)} (no split in the name)")
        else:
            words.append(f"{split} ({_some(names)})" if names else split)
    return words
