"""`neft merge` and `neft export` through the command line, on tiny runs.

Oracles: the adapter on its base model, loaded with peft; transformers' readers of folders and .gguf files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from neftcli.models.loading import load_adapter
from tests.conftest import Result, call_neft, events, quick_arguments
from tests.tiny import save_tiny

SLOW_FAMILIES = ("opt", "gemma", "granite")
TEXTS = ("Name a fruit.", "Which day follows Monday? Tuesday.")


@pytest.fixture(scope="module")
def train_run(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that trains a tiny run once for each set of arguments, and returns its folder."""
    root = tmp_path_factory.mktemp("merge")
    trained: dict[tuple[object, ...], Path] = {}
    numbers = count()

    def train(*arguments: str, family: str = "llama") -> Path:
        key = (family, *arguments)
        if key not in trained:
            output = root / f"runs-{next(numbers)}"
            quick = quick_arguments(tiny_folder(family), rows_file, output)
            result = call_neft(*quick, "--learning-rate", "1e-2", *arguments)
            assert result.code == 0, result.err
            trained[key] = next(output.iterdir())
        return trained[key]

    return train


def tuned_logits(run: Path, base: Path | None) -> list[torch.Tensor]:
    """Logits of the run's adapter on its base, or of its model."""
    model = AutoModelForCausalLM.from_pretrained(base or run / "model", dtype=torch.float32)
    return logits(load_adapter(model, run / "model") if base else model, run / "model")


def logits(model: Any, tokenizer: Path) -> list[torch.Tensor]:
    encode = AutoTokenizer.from_pretrained(tokenizer)
    with torch.inference_mode():
        return [model.eval()(**encode(text, return_tensors="pt")).logits[0] for text in TEXTS]


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((ours - theirs).abs().max()) for ours, theirs in zip(one, other, strict=True))


def merged(run: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Merge a run and return the last event."""
    result = call_neft("merge", run, "--out", folder, "--json", *arguments)
    assert result.code == 0, result.err
    return events(result.out)[-1]


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)])
def test_merge_equals_the_adapter(
    train_run: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    run = train_run("--lora", family=family)
    event = merged(run, tmp_path / "out")
    assert event["event"] == "merge.finished"
    assert event["comparison"]["difference"] < 1e-5
    assert event["comparison"]["same_token"] == event["comparison"]["tokens"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = tuned_logits(run, tiny_folder(family))
    base = AutoModelForCausalLM.from_pretrained(tiny_folder(family), dtype=torch.float32)
    assert largest_difference(logits(model, tmp_path / "out"), expected) < 1e-5
    assert largest_difference(logits(base, run / "model"), expected) > 1e-2  # training has changed the model


@pytest.mark.slow
def test_merge_and_eval_of_pissa_are_the_trained_model(
    train_run: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The saved adapter fits the original base model, also after best weights were loaded again."""
    pissa = ("--set", "adapter.init_lora_weights=pissa", "--set", "adapter.use_rslora=true")
    run = train_run("--lora", "--lora-r", "4", *pissa, "--keep", "best")
    results = json.loads((run / "run.json").read_text())["results"]
    measured = events(call_neft("eval", run, "--json").out)[-1]["metrics"][0]
    assert measured["metric"] == "held_out_loss"
    tuned, base = (value["value"] for value in measured["values"])
    assert tuned == pytest.approx(results["held_out_loss"], abs=1e-6)
    assert base == pytest.approx(results["base_held_out_loss"], abs=1e-6)
    assert base - tuned > 1e-3
    assert merged(run, tmp_path / "out")["comparison"]["difference"] < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = tuned_logits(run, tiny_folder("llama"))
    assert largest_difference(logits(model, tmp_path / "out"), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50
def test_merge_of_int8_is_the_adapter_on_dequantised_weights(
    train_run: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each weight is within half a step of the original (1/127 of its row's maximum), after rounding to float16."""
    run = train_run("--lora", "--set", "quantization.type=int8", "--learning-rate", "1e-9")
    event = merged(run, tmp_path / "out")
    assert event["comparison"]["difference"] < 1e-5
    assert event["method"] == "lora_int8"
    base = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).state_dict()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert base.keys() == written.keys()
    for name, weight in base.items():
        if not name.endswith("proj.weight"):
            assert torch.equal(written[name], weight), name
            continue
        steps = (written[name] - weight.half()).abs() / (weight.abs().amax(-1, keepdim=True) / 127)
        assert 0.45 < float(steps.max()) < 0.55, name


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--lora",)], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_merge_and_eval_of_new_tokens_are_the_trained_model(
    neft: Callable[..., Result], rows_file: Path, tmp_path: Path, tied: bool, extra: tuple[str, ...]
) -> None:
    """Neft, peft and transformers load the same model with resized embeddings; the base model is measured with them."""
    save_tiny(tmp_path / "base", "llama", vocab_size=247, tie_word_embeddings=tied)
    quick = quick_arguments(tmp_path / "base", rows_file, tmp_path / "runs")
    assert neft(*quick, *extra, "--learning-rate", "1e-2", "--set", "model.new_tokens=['Name', '<tool>']").code == 0
    run = tmp_path / "runs" / "tiny-a5-s0"
    results = json.loads((run / "run.json").read_text())["results"]
    measured = events(neft("eval", run, "--json").out)[-1]["metrics"][0]
    tuned, base = (value["value"] for value in measured["values"])
    assert tuned == pytest.approx(results["held_out_loss"], abs=1e-6)
    assert base == pytest.approx(results["base_held_out_loss"], abs=1e-6)
    folder = run / "model"
    if extra:
        folder = tmp_path / "out"
        assert merged(run, folder)["comparison"]["difference"] < 1e-5
        loaded = AutoPeftModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert largest_difference(logits(plain, folder), logits(loaded, run / "model")) < 1e-5
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Name")["input_ids"][-1] == 247
    assert model.config.vocab_size == len(tokenizer) == len(model.get_input_embeddings().weight) == 249
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    weight = model.get_input_embeddings().weight
    assert (weight[247] - weight[:247].mean(0)).abs().max() > 1e-3, "trained; <tool> is in no row"


def test_merge_copies_tokenizer_template_and_stop_tokens(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run("--lora")
    merged(run, tmp_path / "out")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", run / "model"))
    assert ours.chat_template == theirs.chat_template
    assert ours.get_vocab() == theirs.get_vocab()
    stops = [GenerationConfig.from_pretrained(folder).eos_token_id for folder in (tmp_path / "out", run / "model")]
    assert stops[0] == stops[1]
    manifest = json.loads((tmp_path / "out" / "neft-manifest.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert manifest["base"]["fingerprint"] == record["model_fingerprint"]
    on_disk = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert {name: size for name, (size, _) in manifest["files"].items()} == {
        name: size for name, size in on_disk.items() if name not in ("neft-manifest.json", "README.md")
    }
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert run.name in card
    assert "merged in float32" in card
    assert not any(file.name.startswith("adapter") for file in (tmp_path / "out").iterdir())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize(
    "layers",
    [
        ["--set", "adapter.target_modules=[embed_tokens,q_proj]"],
        ["--set", "adapter.modules_to_save=[embed_tokens]"],
        ["--set", "adapter.modules_to_save=[lm_head]"],
    ],
    ids=["low-rank embedding", "trained embedding", "trained output layer"],
)
def test_merge_unties_matrices(
    train_run: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path, layers: list[str]
) -> None:
    run = train_run("--lora", *layers, family="gemma")
    event = merged(run, tmp_path / "out")
    assert event["untied"]
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert largest_difference(logits(model, tmp_path / "out"), tuned_logits(run, tiny_folder("gemma"))) < 1e-5


def test_merge_qlora_into_the_dequantised_base(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run("--qlora")
    assert "| base weights | nf4 in training" in (run / "model" / "README.md").read_text(encoding="utf-8")
    event = merged(run, tmp_path / "out", "--dtype", "float32")
    assert event["method"] == "qlora"
    assert event["comparison"]["difference"] < 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "dequantised" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merge_states_the_cost_of_rounding(train_run: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    run = train_run("--lora")
    comparison = merged(run, tmp_path / "out", "--dtype", dtype)["comparison"]
    assert 1e-6 < comparison["difference"] < comparison["tolerance"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == getattr(torch, dtype)


def test_eval_of_a_merged_model_says_whose_rows_it_uses(
    train_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run("--lora")
    monkeypatch.chdir(tmp_path)  # the evaluation is written to runs/
    merged(run, tmp_path / "out")
    options = ("--max-rows", "2", "--set", "evaluation.generation.max_new_tokens=2")
    result = call_neft("eval", tmp_path / "out", *options)
    assert result.code == 0, result.err
    assert f"these are the built-in rows, not those of {run.name}" in result.out
    assert f"`neft eval {run.name}`" in result.out


@pytest.mark.parametrize("command", ["eval", "merge"])
def test_command_rejects_an_adapter_with_another_rank(
    train_run: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    run = Path(shutil.copytree(train_run("--lora"), tmp_path / "tiny-a5-s0"))
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    (run / "model" / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    result = call_neft(command, run, *(["--out", tmp_path / "out"] if command == "merge" else ["--no-answers"]))
    assert result.code == 2, result.err
    assert "adapter_config.json and adapter_model.safetensors do not fit together" in result.err
    assert "size mismatch for" in result.err


@pytest.mark.parametrize("command", ["eval", "merge"])
def test_command_rejects_a_tokenizer_without_the_new_tokens(
    train_run: Callable[..., Path], tiny_folder: Callable[[str], Path], tmp_path: Path, command: str
) -> None:
    run = Path(shutil.copytree(train_run("--lora", "--set", "model.new_tokens=['<tool>']"), tmp_path / "tiny-a5-s0"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder("llama") / name, run / "model")
    result = call_neft(command, run, *(["--out", tmp_path / "out"] if command == "merge" else ["--no-answers"]))
    assert result.code == 2, result.err
    assert "the tokenizer lacks tokens of model.new_tokens" in result.err
    assert "<tool>" in result.err


def test_merge_without_adapter(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run()
    result = call_neft("merge", run, "--out", tmp_path / "out")
    assert result.code == 2
    assert "has no adapter" in result.err
    assert not (tmp_path / "out").exists()
    merged(run, tmp_path / "out", "--dtype", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert largest_difference(logits(model.float(), tmp_path / "out"), tuned_logits(run, None)) < 0.05


def bad_merges(run: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    return {
        "taken folder": ([run, "--out", tmp_path / "full"], "is not empty"),
        "file": ([run, "--out", tmp_path / "file"], "exists already"),
        "link": ([run, "--out", tmp_path / "link"], "does not write through links"),
        "below a file": ([run, "--out", tmp_path / "file" / "out"], "can't be written"),
        "type": ([run, "--out", tmp_path / "out", "--dtype", "int8"], "--dtype must be a type of weights"),
        "no run": (["nothing-here", "--out", tmp_path / "out"], "no such run"),
        "model": (["smollm2-135m", "--out", tmp_path / "out"], "takes a run"),
    }


@pytest.mark.parametrize("case", ["taken folder", "file", "link", "below a file", "type", "no run", "model"])
def test_merge_rejects_bad_input(train_run: Callable[..., Path], tmp_path: Path, case: str) -> None:
    run = train_run("--lora")
    arguments, message = bad_merges(run, tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    result = call_neft("merge", *arguments)
    assert result.code == 2
    assert message in result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_merge_that_differs_leaves_nothing(
    train_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run("--lora")
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *_, **__: None)
    result = call_neft("merge", run, "--out", tmp_path / "new" / "out")
    assert result.code == 1
    assert "its logits differ from the run's" in result.err
    assert list(tmp_path.iterdir()) == []


def test_merge_rejects_a_changed_base(train_run: Callable[..., Path], tmp_path: Path, rows_file: Path) -> None:
    from tests.tiny import save_tiny

    save_tiny(tmp_path / "base", "llama")
    assert call_neft(*quick_arguments(tmp_path / "base", rows_file, tmp_path / "runs"), "--lora").code == 0
    save_tiny(tmp_path / "base", "llama", seed=1)
    result = call_neft("merge", tmp_path / "runs" / "tiny-a5-s0", "--out", tmp_path / "out")
    assert result.code == 2
    assert "its weights have changed" in result.err
    assert not (tmp_path / "out").exists()


def exported(run: Path, path: Path, *arguments: str) -> tuple[dict[str, Any], Result]:
    result = call_neft("export", run, "--out", path, "--json", *arguments)
    assert result.code == 0, result.err
    return events(result.out)[-1], result


@pytest.mark.parametrize(("quantization", "least", "most"), [("f32", 0, 1e-5), ("f16", 0, 1e-2), ("q8_0", 1e-6, 0.05)])
def test_export_gguf_is_the_run(
    train_run: Callable[..., Path],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    quantization: str,
    least: float,
    most: float,
) -> None:
    run = train_run("--lora")
    event, _ = exported(run, tmp_path / "x.gguf", "--to", "gguf", "--quantize", quantization)
    assert least <= event["comparison"]["difference"] <= most
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    expected = tuned_logits(run, tiny_folder("llama"))
    assert largest_difference(logits(model, run / "model"), expected) <= most
    ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    theirs = AutoTokenizer.from_pretrained(run / "model")
    assert ours.chat_template == theirs.chat_template
    for text in (*TEXTS, "naïve 1234 🙂\n\n  x"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_export_gguf_evaluates_like_the_run(
    train_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and greedy answers of the file and of the run, by `neft eval`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))
    run = train_run("--lora")
    exported(run, tmp_path / "x.gguf", "--to", "gguf", "--quantize", "f32")
    rows = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "three", "four")]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ["--dataset", tmp_path / "new.jsonl", "--set", "evaluation.generation.max_new_tokens=8", "--json"]
    reports = {}
    for name in (run, tmp_path / "x.gguf"):
        result = call_neft("eval", name, *settings, "--no-base", "--show", "4")
        assert result.code == 0, result.err
        reports[name] = events(result.out)[-1]
    ours, theirs = reports[tmp_path / "x.gguf"], reports[run]
    assert {shown["prompt"]: shown["answers"][0] for shown in ours["shown"]} == {
        shown["prompt"]: shown["answers"][0] for shown in theirs["shown"]
    }
    values = [{row["metric"]: row["values"][0]["value"] for row in report["metrics"]} for report in (ours, theirs)]
    assert values[0]["held_out_loss"] == pytest.approx(values[1]["held_out_loss"], abs=1e-5)


def test_export_ollama(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run("--lora", "--set", "model.chat_template=chatml", "--set", "data.system_prompt=Be kind.")
    event, _ = exported(run, tmp_path / "out", "--to", "ollama")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    assert 'SYSTEM """Be kind."""' in text
    assert "PARAMETER stop " in text
    assert event["command"].startswith(f"ollama create {run.name} -f ")


def test_export_rejects_bad_input(train_run: Callable[..., Path], tmp_path: Path) -> None:
    run = train_run("--lora")
    result = call_neft("export", run, "--to", "onnx", "--quantize", "q2", "--out", tmp_path / "x")
    assert result.code == 2
    assert "--to must be an export target" in result.err
    assert "--quantize must be a type" in result.err
    result = call_neft("export", train_run("--lora", family="opt"), "--to", "gguf", "--out", tmp_path / "x.gguf")
    assert result.code == 2
    assert "can't write models of the type opt" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_merge_stopped_leaves_nothing(train_run: Callable[..., Path], tmp_path: Path, number: int) -> None:
    run = train_run("--lora")
    command = [sys.executable, "-m", "neftcli", "merge", str(run), "--out", str(tmp_path / "out"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("phase") == "computing_logits":
                process.send_signal(number)
                break
        process.stdout.read()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["merge"], ["export", "--to", "gguf"], ["export", "--to", "ollama"]])
def test_output_with_a_name_that_is_too_long(
    train_run: Callable[..., Path], tmp_path: Path, command: list[str]
) -> None:
    """Rejected before anything is loaded: 250 letters are a name, but the temporary name beside it is too long."""
    result = call_neft(command[0], train_run("--lora"), *command[1:], "--out", tmp_path / ("c" * 250))
    assert result.code == 2
    assert "File name too long" in result.err
    assert "loading" not in result.out
    assert list(tmp_path.iterdir()) == []
