"""The Python code in a model card, run as it is, in the card's folder.

Oracle: the weights and the answer of the model in memory, loaded by peft and transformers from the run's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Result, quick_arguments
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import save_tiny_gguf


def code_of(card: str) -> str:
    """Return the card's Python code."""
    found = re.search(r"^```python\n(.*?)^```$", card, re.S | re.M)
    assert found is not None
    return found[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", [[], ["--lora"]])
@pytest.mark.parametrize("layout", ["chat", "text"])
def test_model_card_code_loads_and_answers(
    method: list[str],
    layout: str,
    quick: list[str],
    neft: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*quick]
    if layout == "text":
        rows = tmp_path / "text.jsonl"
        rows.write_text("".join(f'{{"text": "line {number} of a text"}}\n' for number in range(40)))
        arguments[arguments.index("--dataset") + 1] = str(rows)
    done = neft(*arguments, *method)
    assert done.code == 0, done.err
    [folder] = (tmp_path / "runs").glob("*/model")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    code = code_of((folder / "README.md").read_text()).replace("max_new_tokens=200", "max_new_tokens=4")
    assert ("apply_chat_template" in code) == (layout == "chat")
    exec(code, names)  # noqa: S102 - it is what a reader of the card would type
    assert "Traceback" not in capsys.readouterr().out
    from safetensors.torch import load_file

    [file] = folder.glob("*.safetensors")
    saved, loaded = load_file(file), names["model"].state_dict()
    for name, weight in saved.items():
        here = name.replace(".weight", ".default.weight") if method else name
        torch.testing.assert_close(loaded[here].float(), weight.float(), rtol=0, atol=0)


TURNS = (
    "{% for message in messages %}{{ message['role'] + ':' + message['content'] + '<end_of_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora", "gguf lora"])
def test_model_card_code_stop_tokens(
    kind: str,
    neft: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tokenizer's EOS differs from the template's, as with Gemma and bases tuned with ChatML."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<end_of_turn>"]})
    tokenizer.chat_template = TURNS
    model = tiny_model("llama")
    if kind == "gguf lora":
        base = tmp_path / "tiny.gguf"
        save_tiny_gguf(base, model, tokenizer)
    else:
        base = tmp_path / "tiny"
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "What {number}?", "completion": "ok"}}\n' for number in range(20)))
    arguments = ["--model", base, "--dataset", rows, "--output-dir", tmp_path / "runs", "--held-out-rows", "2"]
    learns = ["--samples", "0", "--alpha", "0", "--learning-rate", "1e-2", "--max-steps", "40"]
    method = ["--lora"] if "lora" in kind else []
    done = neft("train", *arguments, *learns, *method, "--set", "training.precision=float32")
    assert done.code == 0, done.err
    [folder] = (tmp_path / "runs").glob("*/model")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, end]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code_of((folder / "README.md").read_text()), names)  # noqa: S102 - it is what a reader of the card would type
    assert names["answer"].tolist()[-1] == end
    assert len(names["answer"]) < 20
    assert capsys.readouterr().out.strip() == "ok"
    if kind == "gguf lora":  # and what peft finds by the adapter alone
        from peft import AutoPeftModelForCausalLM

        found = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            here, there = (model(input_ids=names["answer"][None]).logits for model in (names["model"].eval(), found))
        # AutoPeftModel adds rows for tokens of the tokenizer that the model has none for.
        torch.testing.assert_close(here, there[..., : here.shape[-1]], rtol=0, atol=0)


@pytest.mark.slow
def test_model_card_weights_hash(quick: list[str], neft: Callable[..., Result], tmp_path: Path) -> None:
    import hashlib
    import os

    mask = os.umask(0o022)
    try:
        assert neft(*quick).code == 0
    finally:
        os.umask(mask)
    [run] = (tmp_path / "runs").iterdir()
    [file] = (run / "model").glob("*.safetensors")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert json.loads((run / "run.json").read_text())["weights_sha256"] == {file.name: digest}
    assert f"| sha256 {digest} |" in (run / "model" / "README.md").read_text()
    assert {item.stat().st_mode & 0o777 for item in (run / "model").iterdir()} == {0o644}


@pytest.mark.slow
def test_model_card_code_resizes_the_embeddings_for_new_tokens(
    tiny_folder: Callable[[str], Path],
    rows_file: Path,
    neft: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of OPT, whose models have no attribute `vocab_size`."""
    quick = quick_arguments(tiny_folder("opt"), rows_file, tmp_path / "runs")
    assert neft(*quick, "--lora", "--set", "model.new_tokens=['Name']").code == 0
    [folder] = (tmp_path / "runs").glob("*/model")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    code = code_of((folder / "README.md").read_text()).replace("max_new_tokens=200", "max_new_tokens=4")
    exec(code, names)  # noqa: S102 - as above
    assert names["tokenizer"]("Name")["input_ids"][-1] < len(names["model"].get_input_embeddings().weight)
