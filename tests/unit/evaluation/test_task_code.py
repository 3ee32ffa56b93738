"""Task files that would run Python code: the code is found, and never runs.

Oracles: the harness itself, which runs the same files if nothing prevents it; and a folder that only their code
creates.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from neftcli.errors import InputError
from neftcli.evaluation.task_code import TRUST_VARIABLE, code_in_task, sandboxed_templates
from neftcli.evaluation.tasks import check_tasks, run_tasks
from tests.tiny import tiny_model, tiny_tokenizer

TASK = """\
task: fruit
dataset_path: json
dataset_kwargs:
  data_files: {test: rows.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""
TEMPLATE = "{{ cycler.__init__.__globals__.os.mkdir('MADE') }}{{question}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with rows and a Python file that creates the folder `made` when it is imported."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    rows = [{"question": f"{number}?", "choices": ["a", "b"], "answer": 0} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        f"import os\nos.mkdir({str(created_folder(tmp_path))!r})\ndef docs(rows): return rows\n"
    )
    return tmp_path


def created_folder(folder: Path) -> Path:
    return folder / "made"


def run(file: str) -> object:
    return run_tasks(tiny_model("llama"), tiny_tokenizer(), [file], 2)


CODE = {
    "a function": (TASK + "process_docs: !function own.docs\n", "!function own.docs in task.yaml, line 12"),
    "by another name": (f"%TAG !x! !func\n---\n{TASK}process_docs: !x!tion own.docs\n", "!function own.docs"),
    "in a list": (TASK + "filter_list:\n  - name: x\n    filter:\n      - function: !function own.docs\n", "own.docs"),
    "behind an anchor": (TASK + "a: &a !function own.docs\nprocess_docs: *a\n", "!function own.docs"),
    "of PyYAML": (TASK + "process_docs: !!python/name:os.mkdir ''\n", "tag:yaml.org,2002:python/name:os.mkdir"),
    "a fetched metric": (TASK + "  - metric: somebody/code\n", "metric somebody/code in task.yaml"),
    "a metric fetched on purpose": (TASK + "  - metric: bleu\n    hf_evaluate: true\n", "metric bleu in task.yaml"),
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("include", [False, True])
def test_check_tasks_rejects_code(kind: str, include: bool, folder: Path) -> None:
    content, found = CODE[kind]
    Path("task.yaml").write_text(content)
    Path("outer.yaml").write_text("include: task.yaml\ntask: outer\n")
    file = "outer.yaml" if include else "task.yaml"
    for call in (lambda: check_tasks([file]), lambda: run(file)):
        with pytest.raises(InputError) as raised:
            call()
        [problem] = raised.value.problems
        assert problem.message == f"{file}: neft does not run Python code of a task file unless you allow it"
        assert problem.got.startswith(found) or found in problem.got
        assert problem.hint == "read the code; if you trust it: NEFT_TRUST_TASK_CODE=1 neft ..."
    assert not created_folder(folder).exists()


def test_run_tasks_runs_code_if_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the code of the file above would have run without the check."""
    Path("task.yaml").write_text(CODE["a function"][0])
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    run("task.yaml")
    assert created_folder(folder).is_dir()


def test_code_in_task_without_code(folder: Path) -> None:
    """An include of itself, an anchor that contains itself and a file that isn't YAML neither hang nor fail."""
    Path("task.yaml").write_text(TASK)
    Path("own.yaml").write_text(f"include: [task.yaml, own.yaml, absent.yaml]\n{TASK}a: &a [*a]\n")
    Path("broken.yaml").write_bytes(b"\xff{")
    assert [code_in_task(Path(file)) for file in ("task.yaml", "own.yaml", "broken.yaml")] == ["", "", ""]


@pytest.mark.parametrize("trusted", ["", "1"])
def test_run_tasks_sandboxes_templates(trusted: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates can't reach Python, even if task files are trusted."""
    monkeypatch.setenv(TRUST_VARIABLE, trusted)
    Path("task.yaml").write_text(TASK.replace("{{question}}", TEMPLATE.replace("MADE", str(created_folder(folder)))))
    with pytest.raises(InputError, match="unsafe"):
        run("task.yaml")
    assert not created_folder(folder).exists()


def test_sandboxed_templates_restores_the_harness(folder: Path) -> None:
    """The sandbox has the harness's filters; outside of it the harness's own environment creates the folder."""
    from lm_eval import utils

    template = TEMPLATE.replace("MADE", str(created_folder(folder)))
    plain = utils.env
    with sandboxed_templates():
        assert utils.apply_template("{{ x | regex_replace('a', 'b') }}\n", {"x": "aa"}) == "bb\n"
    assert utils.env is plain
    utils.apply_template(template, {"question": "?"})
    assert created_folder(folder).is_dir()
