"""Sources of rows: the built-in set, a file, a folder, an address, or a data set of the hub.

Each source yields rows one at a time, each with its place; `readers.py` reads files, `folders.py`
chooses the files of a split, `remote.py` fetches what is on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from neftcli.data.data_file import DataFile
from neftcli.data.folders import Chosen, Folder, choose_files, left_out_words
from neftcli.data.readers import READERS, Row, ending, read_file, require_ending, table_rows
from neftcli.data.remote import downloaded, is_remote, open_filesystem, require_address, strip_file_scheme
from neftcli.errors import DataError, Problem, first_line
from neftcli.system.hub import add_hub_settings
from neftcli.system.paths import closest_path, exists, expand_home, unsearchable_parent

BUILTIN = "builtin"
BUILTIN_SPLITS = ("train", "held_out")
HUB_ALIASES = {"imdb": "stanfordnlp/imdb", "alpaca": "tatsu-lab/alpaca", "open-platypus": "garage-bAInd/Open-Platypus"}
HUB_BATCH = 1000
KINDS = f"a file, a folder, a hub id (owner/name), or {BUILTIN}"


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source.

    Attributes:
        rows: The rows, read as they are asked for.
        split: The split that they are of; empty if the source has none.
        left_out: Data files of the source that are not read, for messages.
        running_text: Some are parts of a running text, by data.sample_by.
        files: The files of a local folder that are read, by the names that the places of rows have.
    """

    rows: Iterator[Row]
    split: str = ""
    left_out: tuple[str, ...] = ()
    running_text: bool = False
    files: tuple[str, ...] = ()


def is_hub_id(source: str) -> bool:
    """Whether `source` names a hub data set and no local file."""
    if "://" in source:
        return False
    looks_like_a_path = source.startswith((".", "/", "~")) or source.endswith("/") or ending(source)
    return source in HUB_ALIASES or (source.count("/") == 1 and not looks_like_a_path and not exists(Path(source)))


def is_local_path(source: str) -> bool:
    """Return whether `source` names a file or folder of this machine, existing or not."""
    return source != BUILTIN and not is_remote(source) and not is_hub_id(source)


def read_rows(source: str, split: str = "train", config: str | None = None) -> Iterator[Row]:
    """The rows of a source, in order; `open_source` with its rows alone."""
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
    """Open a source; its rows are read as they are asked for.

    Args:
        source: "builtin", a file, a folder, an address (s3://, hf://, https:// and others), or a hub id.
        split: "train" or "held_out" of the built-in set; a split of a folder or a hub data set.
        config: Configuration of a hub data set or of its snapshot.
        sample_by: What a row of a text file is: paragraph, line or document.
        streaming: Read a hub data set over the network, without a copy in the cache.
        option: The key that names the split, for messages.

    Raises:
        DataError: The source is missing, or has no such split; its rows raise it if one can't be read.
    """
    if source == BUILTIN:
        if split not in BUILTIN_SPLITS:
            raise DataError(
                Problem(f"{option}: the built-in set has no split of this name", split, " or ".join(BUILTIN_SPLITS))
            )
        file = DataFile(Path(__file__).parent / "builtin" / f"{split}.jsonl", f"built-in {split}")
        return SourceRows(read_file(file), split)
    require_address(source)
    if is_hub_id(source):
        return _open_hub(HUB_ALIASES.get(source, source), split, config, streaming, option)
    source = strip_file_scheme(source)
    if is_remote(source):
        return _open_remote(source, split, config, sample_by, option)
    return _open_local(expand_home(source), split, config, sample_by, option)


def _open_local(path: Path, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    if str(path) == "-" or (exists(path) and (path.is_fifo() or path.is_char_device())):
        hint = "cat > rows.jsonl, then --dataset rows.jsonl: rows are read more than once"
        raise DataError(Problem("data: rows can't be read from a pipe", str(path), hint))
    if not exists(path):
        if (closed := unsearchable_parent(path)) is not None:
            raise DataError(Problem(f"data: this user may not enter {closed}", str(path), "chmod +x on that folder"))
        near = closest_path(path, [BUILTIN, *HUB_ALIASES])
        raise DataError(Problem("data: there is no file or folder of this name", str(path), KINDS, near))
    if path.is_dir():
        from fsspec.implementations.local import LocalFileSystem

        folder = Folder(str(path), LocalFileSystem(), str(path.absolute()), local=True)
        return _open_folder(folder, split, config, sample_by, option)
    require_ending(path, str(path))
    _require_no_split(str(path), split, config, option)
    file = DataFile(path, str(path))
    return SourceRows(read_file(file, sample_by), running_text=READERS[ending(path)].running_text)


def _open_remote(url: str, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    name = Path(urlsplit(url).path)
    if ending(name):
        fs, path = open_filesystem(url)
        _require_no_split(url, split, config, option)
        rows = _rows_of_file(downloaded(fs, path, url), sample_by)
        return SourceRows(rows, running_text=READERS[ending(name)].running_text)
    if url.startswith(("http://", "https://")):
        require_ending(Path(name.name), url)
    fs, path = open_filesystem(url)
    return _open_folder(Folder(url, fs, path.rstrip("/"), local=False), split, config, sample_by, option)


def _open_folder(folder: Folder, split: str, config: str | None, sample_by: str, option: str) -> SourceRows:
    chosen = choose_files(folder, split, config, option)
    running_text = any(READERS[ending(name)].running_text for name in chosen.names)
    rows = _rows_of_files(folder, chosen, sample_by)
    files = tuple(f"{folder.name.rstrip('/')}/{name}" for name in chosen.names) if folder.local else ()
    return SourceRows(rows, chosen.split, tuple(left_out_words(chosen.left_out)), running_text, files)


def _rows_of_files(folder: Folder, chosen: Chosen, sample_by: str) -> Iterator[Row]:
    for name in chosen.names:
        yield from _rows_of_file(folder.file(name), sample_by)


def _rows_of_file(opened: AbstractContextManager[DataFile], sample_by: str) -> Iterator[Row]:
    with opened as file:
        yield from read_file(file, sample_by)


def _require_no_split(name: str, split: str, config: str | None, option: str) -> None:
    """Reject a split or configuration of a single file.

    Raises:
        DataError: One was asked for.
    """
    hint = "leave it out; rows to evaluate on can be a file of their own: --held-out FILE"
    if split != "train":
        raise DataError(Problem(f"{option}: a file has no splits, and {name} is one", split, hint))
    if config is not None:
        raise DataError(
            Problem(f"data.config: a file has no configurations, and {name} is one", config, "leave it out")
        )


def _open_hub(hub_id: str, split: str, config: str | None, streaming: bool, option: str) -> SourceRows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        rows = load_dataset(hub_id, config, split=split, streaming=streaming)
    except (ConnectionError, DatasetsError, OSError, RuntimeError, HTTPError) as error:
        if snapshot := _snapshot(hub_id):
            return _open_folder(snapshot, split, config, "paragraph", option)
        raise _not_reached(hub_id, error) from None
    except ValueError as error:  # a split or configuration that the data set doesn't have
        got = first_line(error)
        raise DataError(Problem(f"data.source: {hub_id} can't be read as asked", got)) from None
    return SourceRows(_hub_rows(rows, hub_id, split), split)


def _hub_rows(rows: Any, hub_id: str, split: str) -> Iterator[Row]:
    """Rows of a `Dataset` or an `IterableDataset`, as Arrow has them: no image is decoded, and no sound."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    batches = rows.with_format("arrow").iter(batch_size=HUB_BATCH)
    try:
        yield from table_rows(batches, f"{hub_id} {split}")
    except (ConnectionError, DatasetsError, OSError, RuntimeError, HTTPError) as error:
        raise _not_reached(hub_id, error) from None
    except ValueError as error:  # a damaged file of the set
        got = first_line(error)
        raise DataError(Problem(f"data.source: {hub_id} can't be read to its end", got)) from None


def _snapshot(hub_id: str) -> Folder | None:
    """The data set's folder in the hub's cache (`hf download --repo-type dataset`); None if no data is there."""
    from fsspec.implementations.local import LocalFileSystem
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(hub_id, repo_type="dataset", local_files_only=True)
    except (OSError, ValueError):
        return None
    folder = Folder(path, LocalFileSystem(), path, local=True)
    return folder if folder.names() else None


def _not_reached(hub_id: str, error: Exception) -> DataError:
    return DataError(
        Problem(
            f"data.source: the data set {hub_id} can't be reached on the hub, and is not in the local cache",
            add_hub_settings(first_line(error)),
            "go online once (`hf auth login` for a private set), or where there is a network: "
            f"hf download {hub_id} --repo-type dataset --local-dir FOLDER; then --dataset FOLDER",
            closest_path(Path(hub_id)) if Path(hub_id).parent.is_dir() else "",
        )
    )
