"""Sources of rows: the built-in set, a file, a folder, an address, or a data set of the hub.

`readers.py` reads files, `folders.py` finds the files of a split, `remote.py` downloads files of other machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from neftcli.data.folders import DataFolder, SplitFiles, describe_skipped_files, find_split_files
from neftcli.data.remote import download, is_remote, open_filesystem, strip_file_scheme, validate_address
from neftcli.errors import DataError, Problem, first_line
from neftcli.events.data import BUILTIN
from neftcli.rows.data_file import DataFile
from neftcli.rows.readers import Row, file_ending, is_running_text, read_file, require_known_ending, table_rows
from neftcli.system.hub import add_hub_settings
from neftcli.system.paths import closest_path, exists, expand_home, unsearchable_parent

BUILTIN_SPLITS = ("train", "held_out")
HUB_ALIASES = {"imdb": "stanfordnlp/imdb", "alpaca": "tatsu-lab/alpaca", "open-platypus": "garage-bAInd/Open-Platypus"}
HUB_BATCH_SIZE = 1000
SOURCE_KINDS = f"use a file, a folder, a hub id (owner/name), or {BUILTIN}"


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source.

    Attributes:
        rows: The rows, read one at a time.
        split: Their split; empty if the source has no splits.
        left_out: Data files of the source that are not read, for messages.
        running_text: Some rows are parts of a running text, chosen by data.sample_by.
        files: The files of a local folder that are read, as they are named in the locations of rows.
    """

    rows: Iterator[Row]
    split: str = ""
    left_out: tuple[str, ...] = ()
    running_text: bool = False
    files: tuple[str, ...] = ()


def is_hub_id(source: str) -> bool:
    """Return whether a source is the id of a hub data set, and not a local file."""
    if "://" in source:
        return False
    looks_like_a_path = source.startswith((".", "/", "~")) or source.endswith("/") or file_ending(source)
    return source in HUB_ALIASES or (source.count("/") == 1 and not looks_like_a_path and not exists(Path(source)))


def is_local_path(source: str) -> bool:
    """Return whether a source is a file or folder of this machine, existing or not."""
    return source != BUILTIN and not is_remote(source) and not is_hub_id(source)


def read_rows(source: str, split: str = "train", config: str | None = None) -> Iterator[Row]:
    """Yield the rows of a source, in order."""
    yield from open_source(source, split, config).rows


def open_source(
    source: str,
    split: str = "train",
    config: str | None = None,
    *,
    sample_by: str = "paragraph",
    streaming: bool = False,
    option: str = "data.split",
) -> SourceRows:
    """Open a source, without reading a row.

    Args:
        source: "builtin", a file, a folder, an address (s3://, hf://, https:// and others), or a hub id.
        split: "train" or "held_out" of the built-in set; a split of a folder or a hub data set.
        config: Configuration of a hub data set or of its snapshot.
        sample_by: The rows of a text file: "paragraph", "line" or "document".
        streaming: Read a hub data set over the network, without a copy in the cache.
        option: The key that names the split, for messages.

    Raises:
        DataError: The source is missing, or has no such split. Its rows raise it if one can't be read.
    """
    if source == BUILTIN:
        if split not in BUILTIN_SPLITS:
            message = f"{option}: the built-in data has no such split"
            raise DataError(Problem(message, split, " or ".join(BUILTIN_SPLITS)))
        file = DataFile(Path(__file__).parent / "builtin" / f"{split}.jsonl", f"built-in {split}")
        return SourceRows(read_file(file), split)
    validate_address(source)
    if is_hub_id(source):
        return _open_hub(HUB_ALIASES.get(source, source), split, config, sample_by, streaming, option)
    source = strip_file_scheme(source)
    require_local_source(source)
    if is_remote(source):
        return _open_remote(source, split, config, sample_by, option)
    return _open_local(expand_home(source), split, config, sample_by, option)


def require_local_source(source: str) -> None:
    """Check that a source on this machine is an existing file or folder; other sources are not checked.

    Raises:
        DataError: It is missing, or a pipe.
    """
    if not is_local_path(source):
        return
    path = expand_home(strip_file_scheme(source))
    if str(path) == "-" or (exists(path) and (path.is_fifo() or path.is_char_device())):
        hint = "save the rows to a file, then --dataset FILE (neft reads them more than once)"
        raise DataError(Problem("data: rows can't be read from a pipe", str(path), hint))
    if not exists(path):
        if (closed := unsearchable_parent(path)) is not None:
            message = f"data: no permission to open {closed}"
            raise DataError(Problem(message, str(path), "chmod +x on that folder"))
        near = closest_path(path, [BUILTIN, *HUB_ALIASES])
        raise DataError(Problem("data: no such file or folder", str(path), SOURCE_KINDS, near))


def _open_local(path: Path, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    if path.is_dir():
        from fsspec.implementations.local import LocalFileSystem

        folder = DataFolder(str(path), LocalFileSystem(), str(path.absolute()), local=True)
        return _open_folder(folder, split, config, sample_by, option)
    require_known_ending(path, str(path))
    _require_no_split(str(path), split, config, option)
    file = DataFile(path, str(path))
    return SourceRows(read_file(file, sample_by), running_text=is_running_text(path))


def _open_remote(url: str, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    name = Path(urlsplit(url).path)
    if file_ending(name):
        fs, path = open_filesystem(url)
        _require_no_split(url, split, config, option)
        rows = _read_opened(download(fs, path, url), sample_by)
        return SourceRows(rows, running_text=is_running_text(name))
    if url.startswith(("http://", "https://")):
        require_known_ending(Path(name.name), url)
    fs, path = open_filesystem(url)
    return _open_folder(DataFolder(url, fs, path.rstrip("/"), local=False), split, config, sample_by, option)


def _open_folder(folder: DataFolder, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    chosen = find_split_files(folder, split, config, option)
    running_text = any(is_running_text(name) for name in chosen.names)
    files = tuple(f"{folder.name.rstrip('/')}/{name}" for name in chosen.names) if folder.local else ()
    rows = _read_files(folder, chosen, sample_by)
    return SourceRows(rows, chosen.split, tuple(describe_skipped_files(chosen.left_out)), running_text, files)


def _read_files(folder: DataFolder, chosen: SplitFiles, sample_by: str) -> Iterator[Row]:
    for name in chosen.names:
        yield from _read_opened(folder.file(name), sample_by)


def _read_opened(opened: AbstractContextManager[DataFile], sample_by: str) -> Iterator[Row]:
    with opened as file:
        yield from read_file(file, sample_by)


def _require_no_split(name: str, split: str, config: str | None, option: str) -> None:
    """Reject a split or configuration of a single file.

    Raises:
        DataError: One was given.
    """
    if split != "train":
        hint = "leave it out; to evaluate on a separate file: --held-out FILE"
        raise DataError(Problem(f"{option}: {name} is a file, which has no splits", split, hint))
    if config is not None:
        raise DataError(Problem(f"data.config: {name} is a file, which has no configurations", config, "leave it out"))


def _open_hub(hub_id: str, split: str, config: str | None, sample_by: str, streaming: bool, option: str) -> SourceRows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        rows = load_dataset(hub_id, config, split=split, streaming=streaming)
    except (ConnectionError, DatasetsError, OSError, RuntimeError, HTTPError) as error:
        if snapshot := _find_snapshot(hub_id):
            return _open_folder(snapshot, split, config, sample_by, option)
        raise _unreachable(hub_id, error) from None
    except ValueError as error:  # a split or configuration that the data set doesn't have
        message = f"data.source: {hub_id} can't be read with this split and configuration"
        raise DataError(Problem(message, first_line(error))) from None
    return SourceRows(_read_hub_rows(rows, hub_id, split), split)


def _read_hub_rows(rows: Any, hub_id: str, split: str) -> Iterator[Row]:
    """Yield the rows of a `Dataset` or an `IterableDataset` as Arrow has them: images and audio are not decoded."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    batches = rows.with_format("arrow").iter(batch_size=HUB_BATCH_SIZE)
    try:
        yield from table_rows(batches, f"{hub_id} {split}")
    except (ConnectionError, DatasetsError, OSError, RuntimeError, HTTPError) as error:
        raise _unreachable(hub_id, error) from None
    except ValueError as error:  # a damaged file of the data set
        message = f"data.source: {hub_id} can't be read to its end"
        raise DataError(Problem(message, first_line(error))) from None


def _find_snapshot(hub_id: str) -> DataFolder | None:
    """Return the data set's folder in the hub's cache (`hf download --repo-type dataset`); None if it has no data."""
    from fsspec.implementations.local import LocalFileSystem
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(hub_id, repo_type="dataset", local_files_only=True)
    except (OSError, ValueError):
        return None
    folder = DataFolder(path, LocalFileSystem(), path, local=True)
    return folder if folder.file_names() else None


def _unreachable(hub_id: str, error: Exception) -> DataError:
    return DataError(
        Problem(
            f"data.source: the data set {hub_id} can't be downloaded from the hub, and is not in the local cache",
            add_hub_settings(first_line(error)),
            "connect once (`hf auth login` for a private data set), or download it elsewhere: "
            f"hf download {hub_id} --repo-type dataset --local-dir FOLDER; then --dataset FOLDER",
            closest_path(Path(hub_id)) if Path(hub_id).parent.is_dir() else "",
        )
    )
