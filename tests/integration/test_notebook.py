"""A notebook in a real kernel (slow): progress as a live table, the result as a value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CODE = """
import neftcli

settings = {{
    "model.name": {model!r}, "data.source": {rows!r}, "output_dir": {output!r}, "training.max_steps": 3,
    "training.logging_steps": 1, "evaluation.samples": 1, "evaluation.generation.max_new_tokens": 4,
}}
run = neftcli.train("quickstart", settings)
run.results.held_out_loss
"""


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore")  # those of Jupyter's packages
def test_train_in_a_notebook(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    code = CODE.format(model=str(tiny_folder("llama")), rows=str(rows_file), output=str(tmp_path))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    *shown, result = notebook.cells[0].outputs
    assert result.output_type == "execute_result"
    assert 5 < float(result.data["text/plain"]) < 6
    assert "application/vnd.jupyter.widget-view+json" in shown[0].data  # the table while it changes
    tables = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    [table] = [html for html in tables if "held-out" in html and "tokens/s" in html]
    assert [f"{step}/3" in table for step in range(4)] == [True] * 4
    assert not [output for output in shown if output.output_type == "stream"]
