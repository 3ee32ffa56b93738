"""The registry of export targets.

Oracle: the table in docs/export.md.
"""

from pathlib import Path

import pytest

from neftcli.export.export import BYTES_PER_WEIGHT
from neftcli.export.export_targets import EXPORT_TARGETS, QUANTIZATIONS, ExportTarget
from neftcli.export.logits import TOLERANCES
from neftcli.export.merge import DTYPE_BYTES

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.mark.parametrize("target", EXPORT_TARGETS.values(), ids=EXPORT_TARGETS)
def test_export_target_is_documented(target: ExportTarget) -> None:
    name = target.output.format(run="RUN", type="TYPE")
    assert f"| `{target.id}` | {target.content} | `{name}` |" in PAGE.read_text(encoding="utf-8")


def test_types_have_tolerances_and_sizes() -> None:
    assert set(TOLERANCES) == {*DTYPE_BYTES, *QUANTIZATIONS}
    assert set(BYTES_PER_WEIGHT) == set(QUANTIZATIONS)
