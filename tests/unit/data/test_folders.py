"""Folders, addresses and text files as sources of rows.

Oracles: the rows that `datasets` wrote with `save_to_disk` and `to_parquet`, `datasets`' own choice of splits for the
same names, and the same folder in fsspec's memory and behind a loopback server.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from neftcli.data.folders import NOT_DATA, SPLIT_WORDS, group_by_split
from neftcli.data.sources import open_source
from neftcli.errors import DataError, InputError

TRAIN = [{"instruction": f"Double {number}.", "output": str(2 * number)} for number in range(10)]
TEST = [{"instruction": f"Halve {2 * number}.", "output": str(number)} for number in range(4)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))


def values(source: str, split: str = "train", **more: Any) -> list[dict[str, Any]]:
    return [row.values for row in open_source(source, split, **more).rows]


def error_message(source: str, split: str = "train", **more: Any) -> str:
    with pytest.raises(DataError) as raised:
        values(source, split, **more)
    return str(raised.value)


def dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def saved_dict(path: str = "saved") -> None:
    from datasets import DatasetDict

    DatasetDict(train=dataset(TRAIN), test=dataset(TEST)).save_to_disk(path)


def write(files: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            dataset(rows).to_parquet(name)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_split_words_are_those_of_datasets() -> None:
    from datasets.data_files import FILES_TO_IGNORE, SPLIT_KEYWORDS

    assert {str(split): tuple(words) for split, words in SPLIT_KEYWORDS.items()} == SPLIT_WORDS
    assert set(NOT_DATA) == {name for name in FILES_TO_IGNORE if name.endswith(".json")}


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "test.jsonl"],
        ["data/train.csv", "data/valid.csv", "data/eval.csv"],
        ["my-train-0.jsonl", "my-dev-0.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        ["data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"],
        ["trains.jsonl", "latest.jsonl"],
        ["a.jsonl", "b.jsonl"],
    ],
)
def test_group_by_split_agrees_with_datasets(names: list[str]) -> None:
    from datasets.data_files import get_data_patterns

    write(dict.fromkeys(names, TEST))
    expected = {}
    for split, patterns in get_data_patterns(".").items():
        found = {str(Path(path).relative_to(Path.cwd())) for glob in patterns for path in resolve_pattern_or_none(glob)}
        expected[split] = sorted(found)
    splits = {split or "train": sorted(files) for split, files in group_by_split(names).items()}
    assert splits == expected


def resolve_pattern_or_none(glob: str) -> list[str]:
    from datasets.data_files import resolve_pattern

    try:
        return list(resolve_pattern(glob, "."))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("name", ["train_test.jsonl", "TEST train.jsonl", "eval-train.jsonl"])
def test_group_by_split_never_takes_test_files_for_train(name: str) -> None:
    assert group_by_split(["train.jsonl", name]) == {"train": ["train.jsonl"], "test": [name]}


# save_to_disk


def test_open_source_save_to_disk_folder() -> None:
    dataset(TRAIN).save_to_disk("saved", num_shards=3)
    rows = list(open_source("saved").rows)
    assert [row.values for row in rows] == TRAIN
    assert rows[0].location == "saved/data-00000-of-00003.arrow, row 1"
    assert values("file://" + str(Path("saved").absolute())) == TRAIN


def test_open_source_save_to_disk_dictionary() -> None:
    saved_dict()
    assert values("saved") == TRAIN
    assert values("saved", "test") == TEST
    assert open_source("saved").left_out == ("test",)
    assert error_message("saved", "tset") == (
        "data.split: saved has no such split\n"
        "  got      tset\n"
        "  did you mean test?\n"
        "  hint     --set data.split=test    its splits are train, test"
    )


def test_open_source_decodes_json_values_of_datasets() -> None:
    from datasets import Dataset

    tools = [[{"name": "add", "parameters": {"a": 1}}, {"name": "now", "strict": True}]]
    mixed = Dataset.from_dict({"prompt": ["q"], "tools": tools}, on_mixed_types="use_json")
    mixed.save_to_disk("saved")
    mixed.to_parquet("rows.parquet")
    assert values("saved") == values("rows.parquet") == [{"prompt": "q", "tools": tools[0]}]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no arrow file": (lambda path: (path / "train/data-00000-of-00001.arrow").unlink(), "missing: train/data-00000"),
    "no state.json": (lambda path: (path / "train/state.json").unlink(), "train/state.json is missing"),
    "state.json that is none": (
        lambda path: (path / "train/state.json").write_text("{"),
        "train/state.json is not a JSON object",
    ),
    "state.json without files": (lambda path: (path / "train/state.json").write_text("{}"), "names no data file"),
    "no splits": (lambda path: (path / "dataset_dict.json").write_text("{}"), "dataset_dict.json names no splits"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_open_source_save_to_disk_damaged(damage: str) -> None:
    saved_dict()
    edit, got = DAMAGE[damage]
    edit(Path("saved"))
    lines = error_message("saved").splitlines()
    assert lines[0] == "saved: this folder of save_to_disk is damaged"
    assert got in lines[1]


def test_open_source_truncated_arrow_file() -> None:
    """A file truncated anywhere, even between two batches, is rejected and never read as a shorter one."""
    import pyarrow

    table = pyarrow.Table.from_pylist(TRAIN)
    with pyarrow.OSFile("rows.arrow", "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert values("rows.arrow") == TRAIN
    content = Path("rows.arrow").read_bytes()
    for end in (0, 5, 100, len(content) // 2, len(content) - 8, len(content) - 1):
        Path("rows.arrow").write_bytes(content[:end])
        first = "the file is empty" if not end else "this can't be read as an Arrow file"
        assert error_message("rows.arrow").splitlines()[0] == f"rows.arrow: {first}"


# Snapshots and folders of files


def test_open_source_snapshot() -> None:
    write({"s/data/train-00000-of-00001.parquet": TRAIN, "s/data/test-00000-of-00001.parquet": TEST})
    Path("s/README.md").write_text("---\nconfigs: []\n---\n", encoding="utf-8")
    Path("s/dataset_infos.json").write_text("{}", encoding="utf-8")
    for folder, inside in (("s", "data/"), ("s/data", "")):
        source = open_source(folder)
        assert (source.split, source.left_out) == ("train", (f"test ({inside}test-00000-of-00001.parquet)",))
        assert [row.values for row in source.rows] == TRAIN
        assert values(folder, "test") == TEST


README = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: data/learn*
  - split: test
    path: [data/ask.jsonl]
- config_name: other
  data_files: more/*.jsonl
---
"""


def test_open_source_configs_of_a_readme() -> None:
    """The README decides the splits, whatever the files are called."""
    write({"s/data/learn-1.jsonl": TRAIN[:5], "s/data/learn-2.jsonl": TRAIN[5:], "s/data/ask.jsonl": TEST})
    write({"s/more/a.jsonl": TEST})
    Path("s/README.md").write_text(README, encoding="utf-8")
    assert values("s") == TRAIN
    assert values("s", "test") == values("s", config="other") == TEST
    assert open_source("s").left_out == ("test (data/ask.jsonl)", "more/a.jsonl (no split in the name)")
    assert "it has main, other" in error_message("s", config="mian")
    Path("s/data/ask.jsonl").unlink()
    assert error_message("s", "test").splitlines()[:2] == [
        "s: the files of the split test are missing",
        "  got      no file matches data/ask.jsonl",
    ]


def test_open_source_folder_with_unnamed_files_beside_test() -> None:
    write({"d/rows.jsonl": TRAIN, "d/rows-test.jsonl": TEST})
    assert values("d") == TRAIN
    assert open_source("d").left_out == ("test (rows-test.jsonl)",)
    write({"d/train.jsonl": TRAIN[:3]})
    assert values("d") == TRAIN[:3]


def test_open_source_folder_with_test_files_only() -> None:
    write({"d/test.jsonl": TEST})
    assert error_message("d").splitlines()[2] == "  hint     --set data.split=test    its splits are test"


def test_open_source_folder_of_several_sets() -> None:
    write({"d/en/a.jsonl": TRAIN, "d/fr/a.jsonl": TEST})
    assert error_message("d") == (
        "d: the data files are in several subfolders, which may be different data sets\n"
        "  got      en, fr\n"
        "  hint     --dataset d/en, or several by data.sources"
    )


def test_open_source_folder_prefers_rows_to_notes() -> None:
    write({"d/rows.jsonl": TRAIN})
    Path("d/notes.txt").write_text("Not a row.", encoding="utf-8")
    assert values("d") == TRAIN
    assert open_source("d").left_out == ("text (notes.txt)",)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_open_source_folder_without_splits(split: str) -> None:
    write({"d/a.jsonl": TRAIN})
    assert error_message("d", split).splitlines()[0] == (
        "data.split: d has no splits: no file or folder in it is named after one"
    )
    assert error_message("d", config="en").splitlines()[0].startswith("data.config: d has no configurations")


# Text


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("paragraph", [("One\n two", 2), ("Three", 6)]),
        ("line", [("One", 2), (" two", 3), ("Three", 6)]),
        ("document", [("One\n two\n\n \nThree", 2)]),
    ],
)
@pytest.mark.parametrize("name", ["notes.txt", "notes.txt.gz"])
def test_open_source_text_file(name: str, sample_by: str, expected: list[tuple[str, int]]) -> None:
    content = "\ufeff\nOne\n two\n\n \nThree\n".encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = open_source(name, sample_by=sample_by)
    assert source.running_text
    assert [(row.values, row.location) for row in source.rows] == [
        ({"text": text}, f"{name}, line {line}") for text, line in expected
    ]


def test_open_source_text_file_without_text() -> None:
    Path("notes.txt").write_text("\n \n", encoding="utf-8")
    assert error_message("notes.txt").splitlines()[0] == "notes.txt: the file has no rows"


# One object in a .json file


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "function", "function": {}}]},
        {"prompt": "q", "completion": "a"},
        {"dialog": [{"role": "user", "content": "q"}]},
    ],
)
def test_open_source_json_of_one_row(row: dict[str, Any]) -> None:
    Path("row.json").write_text(json.dumps(row), encoding="utf-8")
    assert values("row.json") == [row]


@pytest.mark.parametrize("wrapper", [{"data": TEST}, {"version": 1, "data": TEST, "authors": ["x"]}])
def test_open_source_json_of_a_wrapped_list(wrapper: dict[str, Any]) -> None:
    Path("rows.json").write_text(json.dumps(wrapper), encoding="utf-8")
    assert values("rows.json") == TEST


# Addresses


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A loopback server of the current folder, without range requests."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.enable_socket
def test_open_source_http(server: str) -> None:
    write({"rows.jsonl": TRAIN, "rows.parquet": TRAIN})
    Path("rows.csv.gz").write_bytes(
        gzip.compress(
            b"instruction,output\n" + b"".join(f"{row['instruction']},{row['output']}\n".encode() for row in TRAIN)
        )
    )
    for name in ("rows.jsonl", "rows.parquet", "rows.csv.gz", "rows.jsonl?download=true"):
        assert values(f"{server}/{name}") == TRAIN
    assert next(open_source(f"{server}/rows.jsonl").rows).location == f"{server}/rows.jsonl, line 1"
    assert error_message(f"{server}/lost.jsonl").splitlines()[0] == (
        f"{server}/lost.jsonl: no such file or folder at this URL"
    )
    assert "unknown file extension" in error_message(f"{server}/rows")
    assert not list(Path("cache").iterdir())


@pytest.mark.enable_socket
def test_max_download_bytes(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote file above the limit is rejected, with the variable that raises the limit."""
    Path("large.jsonl").write_text('{"text": "a"}\n' * 1000)
    monkeypatch.setenv("NEFT_MAX_DOWNLOAD_GIB", "0.00001")
    first, got, hint = error_message(f"{server}/large.jsonl").splitlines()
    assert first == f"{server}/large.jsonl: a remote file may have at most 1e-05 GiB"
    assert got == "  got      1.3e-05 GiB or more"
    assert hint == "  hint     NEFT_MAX_DOWNLOAD_GIB=2.6e-05 allows more; or download the file, then --dataset FILE"
    monkeypatch.setenv("NEFT_MAX_DOWNLOAD_GIB", "0.000026")
    assert len(values(f"{server}/large.jsonl")) == 1000


@pytest.mark.enable_socket
@pytest.mark.parametrize("value", ["many", "0", "-1", "nan", "inf"])
def test_max_download_bytes_not_a_number(server: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The variable must be a number above 0."""
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setenv("NEFT_MAX_DOWNLOAD_GIB", value)
    with pytest.raises(InputError, match="NEFT_MAX_DOWNLOAD_GIB must be a number of GiB, above 0"):
        values(f"{server}/rows.jsonl")


@pytest.mark.enable_socket
def test_open_source_http_without_a_server() -> None:
    lines = error_message("http://127.0.0.1:9/rows.jsonl").splitlines()
    assert lines[0] == "http://127.0.0.1:9/rows.jsonl: this URL can't be read"
    assert "127.0.0.1:9" in lines[1]


def test_open_source_fsspec_folder() -> None:
    """A remote folder is read like a local one: written by save_to_disk, a snapshot, or plain files."""
    import fsspec

    memory = fsspec.filesystem("memory")
    saved_dict("saved")
    write({"s/data/train-00000-of-00001.parquet": TRAIN, "s/data/test-00000-of-00001.parquet": TEST})
    Path("train").symlink_to("/")  # a local link, which must not affect a remote folder
    for folder in ("saved", "s"):
        memory.put(str(Path(folder).absolute()), f"/bucket/{folder}", recursive=True)
        assert values(f"memory://bucket/{folder}") == TRAIN
        assert values(f"memory://bucket/{folder}", "test") == TEST
    assert next(open_source("memory://bucket/saved").rows).location == (
        "memory://bucket/saved/train/data-00000-of-00001.arrow, row 1"
    )
    assert "no such file or folder at this URL" in error_message("memory://bucket/nothing")
    memory.pipe("/bucket/named/state.json", json.dumps({"_data_files": [{"filename": "../s/rows.arrow"}]}).encode())
    assert "got      ../s/rows.arrow" in error_message("memory://bucket/named")
    memory.rm("/bucket", recursive=True)


ADDRESSES = {
    "https://[::1/rows.jsonl": ("data.source: this is not an address", "Invalid IPv6 URL"),
    "s3://bucket/rows.jsonl": ("data.source: s3:// needs the package s3fs, which is not installed", "pip install s3fs"),
    "gs://bucket/rows": ("data.source: gs:// needs the package gcsfs, which is not installed", "pip install gcsfs"),
    "foo://rows.jsonl": ("data.source: unknown scheme foo://", "s3://, gs://, hf://, https://, file://"),
    "https://huggingface.co/datasets/owner/name": (
        "data.source: use the id of a hub data set, not its page",
        "--dataset owner/name",
    ),
    "huggingface.co/datasets/owner/name/tree/main": (
        "data.source: use the id of a hub data set, not its page",
        "--dataset owner/name",
    ),
    "https://huggingface.co/datasets/owner/name/blob/main/data/a.jsonl": (
        "data.source: use the id of a hub data set, not its page",
        "--dataset hf://datasets/owner/name/data/a.jsonl",
    ),
    "hf://datasets/owner/name": ("data.source: use the id of a hub data set, not its page", "--dataset owner/name"),
    "https://me:secret@host/rows.jsonl": (
        "data.source: a URL must not contain a password or key, because the run's recipe would store it",
        "download the file, then --dataset FILE",
    ),
    "https://host/rows.jsonl?X-Amz-Signature=secret": (
        "data.source: a URL must not contain a password or key, because the run's recipe would store it",
        "download the file, then --dataset FILE",
    ),
}


@pytest.mark.parametrize("source", ADDRESSES)
def test_open_source_rejects_an_address(source: str) -> None:
    lines = error_message(source).splitlines()
    assert (lines[0], lines[-1]) == (ADDRESSES[source][0], f"  hint     {ADDRESSES[source][1]}")
    assert "secret" not in "".join(lines)


# The hub


@pytest.mark.parametrize("streaming", [False, True])
def test_open_source_hub(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    """`load_dataset` gets the recipe's options; its rows come in order, over several batches."""
    import datasets

    rows = [{"text": str(number)} for number in range(2500)]
    asked = []

    def load(*arguments: Any, **named: Any) -> Any:
        asked.append((arguments, named))
        return dataset(rows).to_iterable_dataset() if named["streaming"] else dataset(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("owner/name", "test", "en", streaming=streaming)
    read = list(source.rows)
    assert [row.values for row in read] == rows
    assert read[-1].location == "owner/name test, row 2500"
    assert asked == [(("owner/name", "en"), {"split": "test", "streaming": streaming})]


def test_open_source_hub_offline_reads_the_cached_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "s"))
    Path("s").mkdir()
    assert "can't be downloaded from the hub" in error_message("owner/name")
    write({"s/data/train.jsonl": TRAIN, "s/data/test.jsonl": TEST})
    assert values("owner/name") == TRAIN


@pytest.mark.parametrize(
    ("sample_by", "rows"),
    [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"]), ("document", ["a\nb\n\nc"])],
)
def test_open_source_hub_offline_text_by_sample_by(
    sample_by: str, rows: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "s"))
    Path("s").mkdir()
    Path("s/train.txt").write_text("a\nb\n\nc\n")
    source = open_source("owner/name", sample_by=sample_by)
    assert [row.values["text"].strip("\n") for row in source.rows] == rows
    assert source.running_text


def test_open_source_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """A dangling link among a folder's files is named, with its target."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").symlink_to("nowhere.jsonl")
    message = error_message("rows")
    assert message.startswith("rows/a.jsonl: the file can't be read")
    assert "it is a link to nowhere.jsonl" in message


def test_open_source_rejects_files_outside_of_its_folder(tmp_path: Path) -> None:
    """The files that save_to_disk names must be inside the folder."""
    saved_dict("other")
    saved_dict()
    state = Path("saved/train/state.json")
    content = json.loads(state.read_text())
    [file] = content["_data_files"]
    must = ": a data set may only name files in its own folder\n  got      "
    state.write_text(json.dumps({**content, "_data_files": [{"filename": f"../../other/train/{file['filename']}"}]}))
    assert f"saved{must}train/../../other/train/{file['filename']}" in error_message("saved")
    absolute = str(tmp_path / "other" / "train" / file["filename"])
    state.write_text(json.dumps({**content, "_data_files": [{"filename": absolute}]}))
    assert f"saved/train{must}{absolute}" in error_message("saved/train")
    Path("saved/dataset_dict.json").write_text(json.dumps({"splits": ["../other/train"]}))
    assert f"saved{must}../other/train/state.json" in error_message("saved", "../other/train")


def test_open_source_follows_links_of_a_folder(tmp_path: Path) -> None:
    """git-annex and DVC store the rows elsewhere."""
    write({"mine/train.jsonl": TRAIN, "elsewhere/rows": TEST})
    Path("mine/test.jsonl").symlink_to(tmp_path / "elsewhere" / "rows")
    assert values("mine", "test") == TEST
    saved_dict()
    Path("saved/train").rename("elsewhere/train")
    Path("saved/train").symlink_to("../elsewhere/train")
    assert values("saved") == TRAIN
