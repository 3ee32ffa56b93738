"""JSON files that are checked when they are read.

Oracle: the json module on the same text.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neftcli.runs.schemas import MeasuredCell, MetricsLine, Record, parse_json, read_jsonl

RECORD = {"status": "finished", "started": "now", "seed": 3, "recipe_sha256": "abc", "neftune": {"b": 1, "a": [None]}}


def test_parse_json_returns_the_file_unchanged() -> None:
    """A record that is written back after a rejected resumption must have the same bytes."""
    text = json.dumps(RECORD)
    assert json.dumps(parse_json(text, Record)) == text


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        (json.dumps({**RECORD, "status": "happy"}), "status: Input should be 'running', 'finished', 'failed', "),
        (json.dumps({"status": "finished"}), "recipe_sha256: Field required"),
        ("[" * 20_000, "Invalid JSON: recursion limit exceeded"),
        ("", "Invalid JSON: EOF"),
        ("null", "Input should be an object"),
    ],
)
def test_parse_json_names_the_wrong_key(text: str, expected_message: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected_message}"):
        parse_json(text, Record)


@pytest.mark.parametrize("better", ["lower", "higher", "none"])
def test_parse_json_keeps_unknown_keys_of_metrics(better: str) -> None:
    metric = {"direction": better, "values": [1, 0.5, None], "weights": None, "of": "documents"}
    cell = {"settings": "s", "prompts": [], "references": [], "answers": [], "metrics": {"m": metric}}
    assert parse_json(json.dumps(cell), MeasuredCell) == cell


def test_read_jsonl_invalid_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"event": "x", "step": 1}\n[]\n\xff\n{"event": "x", "step": 10e40}\n{"event": "x"')
    assert [row for _, row in read_jsonl(file, MetricsLine)] == [{"event": "x", "step": 1}, None, None, None, None]
    assert list(read_jsonl(tmp_path / "missing.jsonl", MetricsLine)) == []
