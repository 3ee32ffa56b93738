"""Results stored on disk line by line.

Oracle: the json module on the file itself, truncated anywhere.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neftcli.errors import InputError
from neftcli.evaluation.cache import ResultCache, lock_results, read_complete_lines
from neftcli.evaluation.generation import Answer

RESULTS = {place: Answer(f"answer\n{place} ☃", place, truncated=False) for place in range(5)}


def test_result_cache_finds_added_results(tmp_path: Path) -> None:
    store = ResultCache(tmp_path, "answers", Answer, {"a": 1})
    store.add(RESULTS)
    again = ResultCache(tmp_path, "answers", Answer, {"a": 1})
    assert again.results == RESULTS
    assert len(store.path.read_text(encoding="utf-8").splitlines()) == 5


def test_result_cache_keeps_the_first_result(tmp_path: Path) -> None:
    store = ResultCache(tmp_path, "answers", Answer, {})
    store.add({0: Answer("first", 1, truncated=False)})
    store.add({0: Answer("second", 1, truncated=False), 1: Answer("other", 1, truncated=True)})
    cache = ResultCache(tmp_path, "answers", Answer, {})
    assert [answer.text for answer in cache.results.values()] == ["first", "other"]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_result_cache_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Including line breaks that JSON doesn't escape, such as U+2028."""
    folder = tmp_path_factory.mktemp("store")
    ResultCache(folder, "answers", Answer, {}).add(
        {place: Answer(text, 1, truncated=False) for place, text in enumerate([*texts, "a\u2028b\x85c"])}
    )
    found = ResultCache(folder, "answers", Answer, {}).results
    assert [found[place].text for place in range(len(texts) + 1)] == [*texts, "a\u2028b\x85c"]


def test_result_cache_skips_a_damaged_line(tmp_path: Path) -> None:
    store = ResultCache(tmp_path, "answers", Answer, {})
    store.add(RESULTS)
    lines = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(b"".join([lines[0], b"\x00\xff{]\n", b"[]\n", b'{"index": 1, "text": 3}\n', *lines[2:]]))
    assert sorted(ResultCache(tmp_path, "answers", Answer, {}).results) == [0, 2, 3, 4]


def test_result_cache_file_for_each_key(tmp_path: Path) -> None:
    keys = [{"a": 1}, {"a": 2}, {"a": 1, "b": None}, {"b": 1}]
    paths = {ResultCache(tmp_path, kind, Answer, key).path for kind in ("answers", "losses") for key in keys}
    assert len(paths) == 8
    assert (
        ResultCache(tmp_path, "answers", Answer, {"a": 1, "b": 2}).path
        == ResultCache(tmp_path, "answers", Answer, {"b": 2, "a": 1}).path
    )


@settings(deadline=None, max_examples=30)
@given(removed=st.integers(0, 200))
def test_result_cache_truncated_file(tmp_path_factory: pytest.TempPathFactory, removed: int) -> None:
    """A file truncated anywhere, even within a character of several bytes, keeps its complete lines."""
    folder = tmp_path_factory.mktemp("store")
    store = ResultCache(folder, "answers", Answer, {})
    store.add(RESULTS)
    content = store.path.read_bytes()
    truncated = content[: max(0, len(content) - removed)]
    store.path.write_bytes(truncated)
    again = ResultCache(folder, "answers", Answer, {})
    assert sorted(again.results) == list(range(truncated.count(b"\n")))
    again.add(RESULTS)
    assert store.path.read_bytes() == content
    assert [json.loads(line)["index"] for line in store.path.read_text(encoding="utf-8").splitlines()] == [*range(5)]


def test_read_complete_lines_missing_file(tmp_path: Path) -> None:
    assert read_complete_lines(tmp_path / "none.jsonl") == []


def test_lock_results_two_evaluations_take_turns(tmp_path: Path) -> None:
    order: list[str] = []
    notices: list[str] = []

    def second() -> None:
        with lock_results(tmp_path, SimpleNamespace(notify=lambda event: notices.append(event.message))):
            order.append("second")

    with lock_results(tmp_path, SimpleNamespace(notify=lambda _: None)):
        thread = threading.Thread(target=second)
        thread.start()
        while not notices:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert notices == [f"another evaluation is using {tmp_path}; waiting for it"]


def test_lock_results_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"), lock_results(tmp_path / "file" / "x", SimpleNamespace()):
        pass
