"""Hints must be commands that a shell can run on the file that the row is from."""

import pytest

from neftcli.data.jq_hints import jq


@pytest.mark.parametrize(
    ("location", "command"),
    [
        ("d/rows.jsonl, line 3", "jq -c .a < d/rows.jsonl > d/new-rows.jsonl"),
        (
            "https://host/d/rows.jsonl, line 3",
            "curl -L -o rows.jsonl https://host/d/rows.jsonl && jq -c .a < rows.jsonl > new-rows.jsonl",
        ),
        ("s3://bucket/d/rows.json.gz, row 3", "zcat rows.json.gz | jq 'map(.a)' | gzip > new-rows.json.gz"),
    ],
)
def test_jq_names_the_file_on_this_machine(location: str, command: str) -> None:
    """No slash of an address is lost, and a downloaded file is read by its name."""
    assert jq(location, ".a") == command


def test_jq_reads_an_arrow_file_as_a_table() -> None:
    """Not as a hub data set of that name."""
    assert 'load_dataset("arrow", data_files="d/data.arrow", split="train")' in jq("d/data.arrow, row 3", ".a")
