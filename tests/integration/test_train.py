"""`neft train` on tiny models through the command line's own `main`.

Oracles: the files that a run must have, transformers and peft loading them, and runs compared with each other.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from neftcli.data import dataset
from neftcli.errors import INTERNAL_MESSAGE
from neftcli.recipe.loading import load_recipe
from neftcli.runs.checkpoints import CheckpointFolder
from tests.conftest import Result, events, keep_nfs_files, neft_process, quick_arguments
from tests.tiny import tiny_tokenizer

Neft = Callable[..., Result]


def weights_hash(run: Path) -> str:
    """Return the SHA-256 of a run's weights."""
    [file] = (run / "model").glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


def test_train_files_of_a_run(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    result = neft(*quick)
    assert result.code == 0, result.err
    run = tmp_path / "runs" / "tiny-a5-s0"
    assert {file.name for file in run.iterdir()} >= {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "samples.jsonl",
        "model",
    }
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["neftune"] == {"alpha": 5.0, "noise": "uniform", "length": "tokens", "schedule": "constant"}
    assert len(record["data_sha256"]) == 64
    assert record["model_fingerprint"].startswith("sha256 ")
    assert record["results"]["held_out_loss"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "training.step"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["event"] == "training.evaluated"] == [0, 2, 4]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert set(samples[0]) == {"prompt", "reference", "base", "tuned"}
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    assert "NEFTune noise | alpha 5" in (run / "model" / "README.md").read_text()


def test_train_metrics_of_answers(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    """Before training and at each evaluation, in all outputs; answers are counted by hand."""
    result = neft(*quick, "--during", "answer_characters,rouge_l", "--set", "evaluation.during_rows=2", "--json")
    assert result.code == 0, result.err
    written = events(result.out)
    metrics = [event["answer_metrics"] for event in written if event["event"] == "training.evaluated"]
    [finished] = [event for event in written if event["event"] == "training.finished"]
    assert [list(values) for values in metrics] == [["answer_characters", "rouge_l"]] * 3
    for when, values in (("base", metrics[0]), ("tuned", metrics[-1])):
        lengths = [len(sample[when]) for sample in finished["samples"]]
        assert values["answer_characters"] == sum(lengths) / 2
    run = tmp_path / "runs" / "tiny-a5-s0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["answer_metrics"] for line in lines if line["event"] == "training.evaluated"] == metrics
    results = json.loads((run / "run.json").read_text())["results"]
    for record in (finished, results):
        assert (record["base_answer_metrics"], record["answer_metrics"]) == (metrics[0], metrics[-1])
    assert "| ROUGE-L | 0.000 | 0.000 |" in (run / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-3)])
@pytest.mark.parametrize("method", [[], ["--lora"]], ids=["full", "LoRA"])
def test_train_fused_layers_equal_those_of_the_libraries(
    method: list[str], precision: str, tolerance: float, neft: Neft, quick: list[str], tmp_path: Path
) -> None:
    """Losses and gradient norms of each step are equal within rounding; the weights' bits differ."""
    quick = [*quick, *method, "--set", f"training.precision={precision}", "--learning-rate", "5e-3"]
    quick += ["--set", "training.max_steps=12", "--set", "evaluation.samples=0"]
    curves, weights = [], []
    for fused in ("true", "false"):
        run = tmp_path / fused / "tiny-a5-s0"
        assert neft(*quick, "--output-dir", tmp_path / fused, "--set", f"training.fused_layers={fused}").code == 0
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        curves.append([(line["loss"], line["grad_norm"]) for line in lines if line["event"] == "training.step"])
        weights.append(weights_hash(run))
    (first, _), (last, _) = curves[0][0], curves[0][-1]
    assert last < first - 50 * tolerance
    for (loss, norm), (plain_loss, plain_norm) in zip(*curves, strict=True):
        assert loss == pytest.approx(plain_loss, rel=tolerance)
        assert norm == pytest.approx(plain_norm, rel=20 * tolerance)
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_train_writes_no_pickles(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    assert neft(*quick).code == 0
    endings = {file.suffix for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    assert not endings & {".bin", ".pt", ".pth", ".pkl", ".pickle"}


def test_train_saved_recipe_is_bit_identical(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    assert neft(*quick).code == 0
    first = tmp_path / "runs" / "tiny-a5-s0"
    assert neft("train", "--recipe", first / "recipe.yaml").code == 0
    second = tmp_path / "runs" / "tiny-a5-s0-2"
    assert weights_hash(first) == weights_hash(second)
    assert load_recipe(str(first / "recipe.yaml")) == load_recipe(str(second / "recipe.yaml"))


@pytest.mark.slow
def test_train_alpha_and_seed_change_the_weights(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    for extra in ([], ["--alpha", "0"], ["--seed", "1"]):
        assert neft(*quick, *extra).code == 0
    hashes = {weights_hash(run) for run in (tmp_path / "runs").iterdir()}
    assert {run.name for run in (tmp_path / "runs").iterdir()} == {"tiny-a5-s0", "tiny-a0-s0", "tiny-a5-s1"}
    assert len(hashes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_train_rows_in_a_file_equal_rows_in_memory(
    neft: Neft, quick: list[str], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: str
) -> None:
    """Weights and records are bit-identical; if the file can't be written, nothing is started."""
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "BATCH_ROWS", 7)
    arguments = [*quick, "--set", f"training.batching={batching}"]
    assert neft(*arguments).code == 0
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(dataset, "MAX_BYTES_IN_MEMORY", 0)
    assert neft(*arguments).code == 0
    assert list((tmp_path / "cache").iterdir()) == []
    memory, file = (tmp_path / "runs" / name for name in ("tiny-a5-s0", "tiny-a5-s0-2"))
    assert weights_hash(memory) == weights_hash(file)
    records = [json.loads((run / "run.json").read_text()) for run in (memory, file)]
    assert len({(record["data_sha256"], record["tokens_sha256"]) for record in records}) == 1
    monkeypatch.setenv("NEFT_CACHE", str(rows_file))
    done = neft(*arguments)
    assert done.code == 2
    assert f"{rows_file}: rows beyond 16 MiB can't be written there\n  got      it is not a folder" in done.err
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma", "granite", "opt"])
def test_train_padding_free_equals_padded(
    neft: Neft, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, family: str
) -> None:
    """With the same rows and noise the weights are equal up to the order of float32 sums."""
    arguments = quick_arguments(tiny_folder(family), rows_file, tmp_path / "runs")
    for batching in ("padded", "padding_free"):
        done = neft(*arguments, "--set", f"training.batching={batching}", "--set", f"name={batching}")
        assert done.code == 0, done.err
    padded = load_file(next((tmp_path / "runs" / "padded-a5-s0" / "model").glob("*.safetensors")))
    free = load_file(next((tmp_path / "runs" / "padding_free-a5-s0" / "model").glob("*.safetensors")))
    # Gradients that are nothing but rounding become whole steps under AdamW (padding rows of the positions, keys'
    # biases); they are as large as the learning rate and no larger, and the mean is far below.
    worst = max(float((padded[name] - free[name]).abs().max()) for name in padded)
    mean = sum(float((padded[name] - free[name]).abs().sum()) for name in padded) / sum(
        tensor.numel() for tensor in padded.values()
    )
    assert worst < 4 * 2 * 5e-5
    assert mean < 2e-7


@pytest.mark.slow
def test_train_notice_of_fewer_held_out_rows(neft: Neft, quick: list[str], rows_file: Path) -> None:
    rows = len(rows_file.read_text().splitlines())
    done = neft(*quick, "--held-out-rows", "9999", "--dry-run")
    assert done.code == 0, done.err
    assert f"{rows // 5} rows are held out, not 9999" in " ".join(done.out.split())
    assert "are held out, not" not in neft(*quick, "--held-out-rows", "2", "--dry-run").out
    few = neft(*quick, "--held-out-rows", "2", "--set", "data.max_rows=8", "--dry-run")
    assert "1 row is held out, not 2" in " ".join(few.out.split())


@pytest.mark.slow
def test_train_model_that_does_not_isolate_documents(neft: Neft, rows_file: Path, tmp_path: Path) -> None:
    """Bloom computes positions from its attention mask, so documents of a row can't be isolated."""
    config = BloomConfig(vocab_size=256, hidden_size=64, n_layer=2, n_head=2, pad_token_id=0, eos_token_id=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tiny_tokenizer().save_pretrained(tmp_path / "bloom")
    arguments = quick_arguments(tmp_path / "bloom", rows_file, tmp_path / "runs")
    notice = "BloomForCausalLM does not isolate packed documents, so rows are padded"
    for batching, batching_used in (("auto", "padded"), ("bucketed", "bucketed")):
        done = neft(*arguments, "--set", f"training.batching={batching}", "--set", f"name={batching}")
        assert done.code == 0, done.err
        assert (notice in done.out) == (batching == "auto")
        record = json.loads((tmp_path / "runs" / f"{batching}-a5-s0" / "run.json").read_text())
        assert record["batching"] == batching_used
    first, second = (weights_hash(tmp_path / "runs" / f"{name}-a5-s0") for name in ("auto", "bucketed"))
    assert first != second
    rejected = neft(*arguments, "--set", "training.batching=packed", "--max-length", "400")
    assert rejected.code == 1
    assert "--set training.batching=padded" in rejected.err


@pytest.mark.slow
def test_train_model_without_attention(neft: Neft, rows_file: Path, tmp_path: Path) -> None:
    """A state-space model trains: no estimate or preparation may need attention heads."""
    config = MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    arguments = [*quick_arguments(tmp_path / "mamba", rows_file, tmp_path / "runs"), "--max-steps", "2"]
    arguments += ["--set", "training.precision=bfloat16", "--set", "evaluation.samples=0"]
    assert neft(*arguments, "--dry-run").code == 0
    done = neft(*arguments)
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ["--set", "training.batching=packed", "--max-length", "400"],
        ["--set", "neftune.noise=symmetric"],
        ["--set", "neftune.noise=gaussian", "--set", "neftune.schedule=linear_decay"],
        ["--set", "neftune.length=padded"],
        ["--gradient-checkpointing", "--set", "training.gradient_accumulation_steps=2"],
        ["--lora", "--lora-r", "4"],
        ["--lora", "--set", "adapter.modules_to_save=[embed_tokens]"],
        ["--qlora", "--lora-r", "4"],
        ["--set", "training.precision=bfloat16"],
    ],
    ids=lambda extra: " ".join(extra),
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50
def test_train_each_method_finishes_and_loads_again(
    neft: Neft, quick: list[str], tmp_path: Path, tiny_folder: Callable[[str], Path], extra: list[str]
) -> None:
    result = neft(*quick, *extra, "--json")
    assert result.code == 0, result.err
    finished = events(result.out)[-1]
    assert finished["event"] == "training.finished"
    run = tmp_path / "runs" / "tiny-a5-s0"
    if "lora" in extra[0]:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
        assert sum(p.numel() for p in PeftModel.from_pretrained(base, run / "model").parameters()) > 0
        adapter = load_file(run / "model" / "adapter_model.safetensors")
        assert any(float(tensor.abs().max()) > 0 for name, tensor in adapter.items() if "lora_B" in name)
    else:
        AutoModelForCausalLM.from_pretrained(run / "model")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor", "adamw_8bit"])
def test_train_loraplus_with_ratio_1_is_lora(neft: Neft, quick: list[str], tmp_path: Path, optim: str) -> None:
    """Bit for bit; with another ratio the first step, whose gradient of A is 0, moves B that many times as far."""
    lora = ["--lora", "--lora-r", "4", "--set", f"training.optim={optim}", "--set", "training.weight_decay=0.1"]
    step = [*lora, "--set", "training.max_steps=1", "--set", "adapter.target_modules=[q_proj, embed_tokens]"]
    hashes, largest = [], []
    for ratio in ("null", "1"):
        assert neft(*quick, *lora, "--set", f"adapter.loraplus_lr_ratio={ratio}").code == 0
        hashes.append(weights_hash(sorted((tmp_path / "runs").iterdir())[-1]))
    assert hashes[0] == hashes[1]
    for ratio in ("1", "16"):
        output = tmp_path / ratio
        assert neft(*quick, *step, "--set", f"adapter.loraplus_lr_ratio={ratio}", "--output-dir", output).code == 0
        weights = load_file(output / "tiny-a5-s0" / "model" / "adapter_model.safetensors")
        largest.append(max(float(weight.abs().max()) for name, weight in weights.items() if "lora_B" in name))
    assert largest[1] == pytest.approx(16 * largest[0], rel=1e-3)


@pytest.mark.slow
def test_train_frozen_layers_stay_as_they_were(
    neft: Neft, quick: list[str], tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """Also if activations are recomputed although the first layers' inputs need no gradient."""
    freeze = ["--set", "training.freeze=[embed_tokens, layers.0]", "--set", "training.weight_decay=0.1"]
    tuned = []
    for extra in ([], ["--gradient-checkpointing"]):
        result = neft(*quick, *freeze, *extra, "--json")
        assert result.code == 0, result.err
        run = Path(events(result.out)[-1]["run"])
        tuned.append(load_file(run / "model" / "model.safetensors"))
    [ready] = [event for event in events(result.out) if event["event"] == "model.ready"]
    base = load_file(tiny_folder("llama") / "model.safetensors")
    unchanged = {name for name, weight in base.items() if torch.equal(weight, tuned[0][name])}
    assert unchanged == {name for name in base if name.startswith(("model.embed_tokens", "model.layers.0."))}
    assert ready["trainable"] == sum(weight.numel() for name, weight in base.items() if name not in unchanged)
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in base)
    assert "| frozen layers | `embed_tokens, layers.0` |" in (run / "model" / "README.md").read_text()
    rejected = neft(*quick, "--set", "training.freeze=[layer.0]", "--dry-run")
    assert (rejected.code, rejected.err.splitlines()[0]) == (2, "training.freeze: the model has no such layer")


@pytest.mark.slow
def test_train_loss_that_is_not_finite(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    result = neft(*quick, "--learning-rate", "1e30", "--set", "training.warmup_ratio=0")
    assert result.code == 1
    assert re.search(r"the loss became (nan|inf) in step \d", result.err)
    assert "--learning-rate 1e+29" in result.err
    assert json.loads((tmp_path / "runs" / "tiny-a5-s0" / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "runs" / "tiny-a5-s0" / "model").exists()


@pytest.mark.slow
def test_train_last_step_that_ruins_the_weights(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    extra = ["--learning-rate", "1e38", "--set", "training.warmup_ratio=0", "--set", "training.max_steps=1"]
    result = neft(*quick, *extra)
    assert result.code == 1
    assert "became nan in step 1" in result.err
    record = json.loads((tmp_path / "runs" / "tiny-a5-s0" / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["status"] == "failed"


@pytest.mark.slow
def test_train_saves_the_model_before_answers_fail(
    neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neftcli.evaluation import generation

    answered = []

    def answer(*arguments: object) -> list[generation.Answer]:
        answered.append(arguments)
        if len(answered) == 2:
            raise MemoryError("no memory for answers")
        return [generation.Answer("", 0, False)] * 2

    monkeypatch.setattr(generation, "generate_answers", answer)
    result = neft(*quick)
    assert result.code == 1
    model = tmp_path / "runs" / "tiny-a5-s0" / "model"
    assert f"out of memory; the tuned model is in {model}" in result.err
    AutoModelForCausalLM.from_pretrained(model)


@pytest.mark.slow
def test_train_finishes_if_checkpoints_cannot_be_removed(
    neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a file that another process has open can't be removed."""
    publish = CheckpointFolder.publish

    def publish_and_open(checkpoints: CheckpointFolder, step: int, facts: Mapping[str, Any]) -> None:
        publish(checkpoints, step, facts)
        (checkpoints.path(step) / ".nfs0123").touch()

    monkeypatch.setattr(CheckpointFolder, "publish", publish_and_open)
    keep_nfs_files(monkeypatch)
    result = neft(*quick, "--save-steps", 2)
    assert result.code == 0, result.err
    shown = result.out + result.err
    assert "tiny-a5-s0/checkpoints can't be removed; it is not needed any more" in " ".join(shown.split())
    run = tmp_path / "runs" / "tiny-a5-s0"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert {file.name for file in (run / "checkpoints").rglob("*") if file.is_file()} == {".nfs0123"}
    result = neft("train", "--resume", run)
    assert result.code == 2
    assert "this run is finished" in result.err


@pytest.mark.slow
def test_train_saves_the_model_before_the_last_evaluation_fails(
    neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an OOM with a single row after the last step, the trained model is kept."""
    from neftcli.evaluation import loss

    measured = []

    def scarce(*arguments: object) -> list[loss.RowLoss]:
        measured.append(arguments)
        if len(measured) > 4:  # two sides before training and two halfway
            raise MemoryError
        return [loss.RowLoss("", 1.0, 1, 0)]

    monkeypatch.setattr(loss, "row_losses", scarce)
    result = neft(*quick, "--set", "evaluation.samples=0")
    assert result.code == 1
    assert "out of memory; the tuned model is in" in result.err
    assert "got      MemoryError" in result.err
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "tiny-a5-s0" / "model")


def test_train_rejects_rows_longer_than_the_context(
    neft: Neft, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps({"text": "ab " * 500}) + "\n" for _ in range(3)))
    arguments = quick_arguments(tiny_folder("opt"), file, tmp_path / "runs")
    result = neft(*arguments, "--max-length", "4096", "--held-out-rows", "0")
    assert result.code == 2
    assert (
        "the model's context has 1024 tokens\n  got      a row of 1501 tokens\n  hint     --max-length 1024"
        in result.err
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("extra", "needed"),
    [
        (["--lora-r", "4"], "--lora-r: adapter.r needs adapter.type lora"),
        (["--set", "evaluation.generation.top_p=0.5"], "evaluation.generation.top_p needs do_sample: true"),
        (["--set", "quantization.double_quantization=false"], "needs quantization.type nf4"),
    ],
)
def test_train_rejects_an_option_without_effect(neft: Neft, quick: list[str], extra: list[str], needed: str) -> None:
    result = neft(*quick, *extra)
    assert result.code == 2
    assert needed in result.err


def test_train_lora_has_its_own_learning_rate(neft: Neft, quick: list[str]) -> None:
    for extra, expected in ((["--lora"], 2e-4), ([], 5e-5)):
        all_events = events(neft(*quick, *extra, "--set", "training.warmup_ratio=0", "--json").out)
        assert max(e["learning_rate"] for e in all_events if e["event"] == "training.step") == pytest.approx(expected)


def test_train_rejects_held_out_rows_of_a_different_kind(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    file = tmp_path / "held.jsonl"
    file.write_text('{"text": "plain text"}\n')
    result = neft(*quick, "--held-out", file)
    assert result.code == 2
    assert f"{file}: held-out rows and training rows must both be plain text or conversations" in result.err


def test_train_dry_run_plans_an_unreachable_model(neft: Neft, rows_file: Path) -> None:
    result = neft("train", "--model", "llama-2-7b", "--dataset", rows_file, "--qlora", "--dry-run", "--json")
    assert result.code == 2
    assert "can't be reached" in result.err
    plan, error = events(result.out)[-2:]
    assert (error["event"], error["exit_code"]) == ("error", 2)
    assert (plan["event"], plan["parameters"], plan["total_steps"]) == ("training.plan", 6_738_415_616, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sent_signal"),
    [
        ([], signal.SIGINT),
        ([], signal.SIGTERM),
        ([], signal.SIGUSR1),
        (["--requeue-signal", "USR2"], signal.SIGUSR2),
    ],
)
def test_train_stops_after_the_step_on_a_signal(
    options: list[str], sent_signal: signal.Signals, quick: list[str], tmp_path: Path
) -> None:
    quick = [*quick, *options]
    command = [sys.executable, "-m", "neftcli", *quick, "--set", "training.max_steps=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "tiny-a5-s0"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or "training.step" not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent_signal)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.search(rf"^stopped; {run}/checkpoints/checkpoint-(\d+) is saved, after step \1$", err, re.M)
    assert f"hint     neft train --resume {run}" in err
    assert "Traceback" not in err
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"


@pytest.mark.slow
def test_train_further_signal_keeps_the_exit_code(quick: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neftcli", *quick, "--set", "training.max_steps=100000", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None  # noqa: PT018
    next(line for line in process.stdout if "training.step" in line)
    process.send_signal(signal.SIGTERM)
    next(line for line in process.stderr if line.startswith("stopped; "))
    for sent_signal in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process.send_signal(sent_signal)
    process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.slow
def test_train_library_output_goes_to_the_log(quick: list[str], tmp_path: Path) -> None:
    result = neft_process(*quick, "--lora")
    assert result.err == ""
    assert "\x1b" not in result.out
    log = (tmp_path / "runs" / "tiny-a5-s0" / "train.log").read_text()
    assert "is_gradient_checkpointing" in log  # transformers warns of what peft 0.21 reads


@pytest.mark.slow
def test_train_plain_lines(neft: Neft, quick: list[str]) -> None:
    out = neft(*quick).out
    assert re.search(r"^data: .*rows\.jsonl \(prompt/completion\) · 60 rows: 48 for training, 12 held out$", out, re.M)
    assert re.search(r"^noise: NEFTune alpha 5 · uniform · noise/embedding \d+\.\d{3} at layer 0$", out, re.M)
    assert re.search(r"^step=4 of=4 epoch=0\.\d+ loss=\d\.\d+ .*tokens_per_second=\d+ .*eta=\d+s$", out, re.M)
    assert re.search(r"^held_out_loss: base=\d\.\d+ tuned=\d\.\d+ difference=[+-]\d", out, re.M)


@pytest.mark.slow
def test_train_quiet(neft: Neft, quick: list[str]) -> None:
    lines = neft(*quick, "--quiet").out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["finished", "held_out_loss"]


def test_train_dry_run(neft: Neft, quick: list[str], tmp_path: Path) -> None:
    result = neft(*quick, "--dry-run", "--json")
    assert result.code == 0, result.err
    [resolved] = [event["recipe"] for event in events(result.out) if event["event"] == "recipe.resolved"]
    assert "learning_rate: 5e-05\n" in resolved, "the value that applies, instead of null"
    plan = events(result.out)[-1]
    assert plan["event"] == "training.plan"
    assert plan["total_steps"] == 4
    assert plan["total_bytes"] == pytest.approx(
        sum(plan[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "activations", "libraries")), abs=4
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_train_dry_run_number_of_steps(neft: Neft, quick: list[str]) -> None:
    """Oracle: the steps that the trainer itself counts, without a maximum."""
    free = [part for part in quick if part != "training.max_steps=4"]
    index = next(i for i, part in enumerate(free) if part == "--set" and free[i + 1] == "--set")
    del free[index]
    arguments = [*free, "--epochs", "1.5", "--set", "training.gradient_accumulation_steps=4", "--batch-size", "3"]
    for batching in ("padded", "packed"):
        extra = ["--set", f"training.batching={batching}", "--max-length", "400"]
        planned = events(neft(*arguments, *extra, "--dry-run", "--json").out)[-1]["total_steps"]
        all_events = events(neft(*arguments, *extra, "--json").out)
        assert [e["step"] for e in all_events if e["event"] == "training.progress"][-1] == planned
        assert next(e["total_steps"] for e in all_events if e["event"] == "training.started") == planned


def test_train_without_options_is_the_quickstart(neft: Neft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from neftcli.training import dry_run

    seen = []
    monkeypatch.setattr(dry_run, "plan_run", lambda recipe, observer: seen.append(recipe))
    assert neft("train", "--dry-run").code == 0
    assert neft("train", "--dry-run", "--model", "opt-350m", "--alpha", "5").code == 0
    assert seen[0] == load_recipe("quickstart")
    assert (seen[1].name, seen[1].model.name, seen[1].data.source) == ("opt-350m", "opt-350m", "builtin")
    assert seen[1].adapter.type == "none"


@pytest.mark.slow
def test_neftune_with_a_trainer_of_transformers(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The README's Python example."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from neftcli.neftune import neftune

    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8]] * 8, "labels": [[5, 6, 7, 8]] * 8})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    before = model.get_input_embeddings().weight.detach().clone()
    with neftune(model, alpha=5.0):
        trainer.train()
    assert not torch.equal(before, model.get_input_embeddings().weight)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.slow
def test_train_model_without_deterministic_operations(
    neft: Neft, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU rejects an operation without a deterministic implementation; here one that no device has."""
    from neftcli.system import device
    from neftcli.training import trainer

    real = trainer.NeftTrainer.compute_loss

    def with_put(*given: object, **named: object) -> torch.Tensor:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))
        return real(*given, **named)

    monkeypatch.setattr(trainer, "deterministic_operations", lambda _: device.deterministic_operations("cuda"))
    monkeypatch.setattr(trainer.NeftTrainer, "compute_loss", with_put)
    rejected = neft(*quick)
    assert rejected.code == 1
    message = "an operation of the model has no deterministic implementation on this GPU; no step was saved"
    assert message in rejected.err
    assert "got put_ does not have a deterministic implementation" in " ".join(rejected.err.split())
    assert "the same command with --set training.deterministic=false" in rejected.err
    resumed = ["train", "--resume", tmp_path / "runs" / "tiny-a5-s0", "--set", "training.deterministic=false"]
    assert neft(*resumed).code == 2
    assert neft(*resumed, "--accept-changes").code == 0
    assert neft(*quick, "--set", "training.deterministic=false").code == 0


@pytest.mark.slow
def test_train_cublas_setting_that_is_not_deterministic(
    neft: Neft, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error quotes torch, with a hint about CUBLAS_WORKSPACE_CONFIG."""
    from neftcli.training.trainer import NeftTrainer

    def refuse(*given: object, **named: object) -> torch.Tensor:
        raise RuntimeError("Deterministic behavior was enabled, but CuBLAS needs CUBLAS_WORKSPACE_CONFIG=:4096:8")

    monkeypatch.setattr(NeftTrainer, "compute_loss", refuse)
    rejected = neft(*quick)
    assert rejected.code == 1
    message = "matrix products on this GPU are not deterministic with this setting; no step was saved"
    assert message in rejected.err
    assert "got      Deterministic behavior was enabled, but CuBLAS needs" in rejected.err
    assert "unset CUBLAS_WORKSPACE_CONFIG" in rejected.err
    assert INTERNAL_MESSAGE not in rejected.err


def test_train_new_tokens_keep_the_bias_of_the_output_layer(neft: Neft, rows_file: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "phi")
    tiny_tokenizer().save_pretrained(tmp_path / "phi")
    quick = quick_arguments(tmp_path / "phi", rows_file, tmp_path / "runs")
    result = neft(*quick, "--set", "model.new_tokens=['<tool>']")
    assert result.code == 0, result.err
    [weights] = (tmp_path / "runs").glob("*/model/model.safetensors")
    assert load_file(weights)["lm_head.bias"].abs().max() > 0
