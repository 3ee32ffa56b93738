"""The registry of exports.

Oracle: the table of files in docs/evaluation.md.
"""

from pathlib import Path

import pytest

from neftcli.evaluation.exports import EXPORTS

DOCS = Path(__file__).parents[3] / "docs/evaluation.md"


def test_exports_ids_and_files() -> None:
    """The key of an entry is its id; no two write the same file."""
    assert [export.id for export in EXPORTS.values()] == list(EXPORTS)
    assert len({export.file for export in EXPORTS.values()}) == len(EXPORTS)


@pytest.mark.parametrize("export_id", EXPORTS)
def test_exports_are_documented(export_id: str) -> None:
    """Each entry has its row, with the same content."""
    export = EXPORTS[export_id]
    row = f"| `ROWS-vs-BASELINE/{export.file}` | with `--export {export.id}`: {export.content} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()
