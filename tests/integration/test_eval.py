"""`neft eval` on tiny runs through the command line's own `main`.

Oracles: the results of training itself, the same evaluation uninterrupted, answers and losses computed by transformers,
and the files.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neftcli.data.tokens import tokenize
from neftcli.evaluation.loss import mean_loss, row_losses
from neftcli.runs.directory import list_runs
from tests.conftest import Result, call_neft, events, quick_arguments
from tests.judge_server import hashed_verdict, judge_server, prefers_longer, status
from tests.tiny import tiny_model

pytestmark = pytest.mark.xdist_group("eval")  # one process, since its runs are trained once for each

Neft = Callable[..., Result]
ROLES = ("baseline", "base")
OPTIONS = ("--set", "evaluation.generation.max_new_tokens=8")


@pytest.fixture(scope="module")
def trained(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder `runs` with three runs of a tiny Llama: alpha 0, alpha 5, and alpha 5 with LoRA."""
    output = tmp_path_factory.mktemp("trained") / "runs"
    arguments = [*quick_arguments(tiny_folder("llama"), rows_file, output), "--set", "evaluation.samples=0"]
    arguments += ["--learning-rate", "5e-3"]
    for extra in (["--alpha", "0"], ["--alpha", "5"], ["--alpha", "5", "--lora", "--set", "name=lora"]):
        result = call_neft(*arguments, *extra)
        assert result.code == 0, result.err
    return output


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the runs that a test may change, in the current folder."""
    shutil.copytree(trained, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def report_of(result: Result) -> dict[str, Any]:
    """Return the report, the last event of `--json`."""
    assert result.code == 0, result.err
    return events(result.out)[-1]


def values(report: dict[str, Any], metric: str) -> list[float | None]:
    """Return a metric's values, that of the evaluated model first."""
    [row] = [row for row in report["metrics"] if row["metric"] == metric]
    return [None if value is None else value["value"] for value in row["values"]]


def comparison_of(report: dict[str, Any], metric: str, against: str) -> dict[str, Any]:
    [found] = [row for row in report["comparisons"] if (row["metric"], row["against"]) == (metric, against)]
    return found


def read_results(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "run.json").read_text())["results"]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-a5-s0", "lora-a5-s0"])
def test_eval_losses_are_those_of_training(neft: Neft, runs: Path, name: str) -> None:
    """Losses by the saved weights, and by the base model, are bit-identical to those of training."""
    report = report_of(neft("eval", runs / name, "--no-answers", "--json"))
    assert [model["role"] for model in report["models"]] == ["run", "base"]
    expected = read_results(runs / name)
    assert values(report, "held_out_loss") == [expected["held_out_loss"], expected["base_held_out_loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "parts/weights.safetensors"])
def test_eval_of_changed_weights_does_not_use_the_cache(neft: Neft, runs: Path, file: str) -> None:
    """Even if the weights are in a subfolder that only the index names. Oracle: a copy of the run without a cache."""
    run, copy = runs / "tiny-a5-s0", runs / "copy"
    weights, whole = run / "model" / file, run / "model" / "model.safetensors"
    if weights != whole:
        weights.parent.mkdir()
        weight_map = dict.fromkeys(load_file(whole), file)
        (run / "model" / f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        whole.rename(weights)

    def loss(folder: Path) -> float | None:
        return values(report_of(neft("eval", folder, "--no-answers", "--no-base", "--json")), "held_out_loss")[0]

    before = loss(run)
    assert loss(run) == before == read_results(run)["held_out_loss"]
    changed = load_file(weights)
    changed["lm_head.weight"] *= 1.5
    save_file(changed, weights, {"format": "pt"})
    after = loss(run)
    assert after != before
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    assert loss(copy) == after


def test_eval_report_of_run_baseline_and_base(neft: Neft, runs: Path) -> None:
    result = neft("eval", "tiny-a5-s0", "--baseline", "tiny-a0-s0", "--show", 2, "--json", *OPTIONS)
    report = report_of(result)
    assert [(model["role"], model["name"], model["alpha"]) for model in report["models"]] == [
        ("run", "tiny-a5-s0", 5.0),
        ("baseline", "tiny-a0-s0", 0.0),
        ("base", "llama", None),
    ]
    ours, theirs, _ = values(report, "held_out_loss")
    loss = comparison_of(report, "held_out_loss", "baseline")
    assert loss["difference"] == pytest.approx(ours - theirs, abs=1e-12)  # type: ignore[operator]
    assert loss["low"] <= loss["difference"] <= loss["high"]
    assert loss["p"] <= loss["p_adjusted"] <= 1
    assert loss["n"] == report["rows"] == 12
    words = {
        against: {one["verdict"] for one in report["comparisons"] if one["against"] == against} for against in ROLES
    }
    assert words["baseline"] <= {"lower", "higher", "not_significant"}
    assert words["base"] <= {"better", "worse", "lower", "higher", "not_significant"}
    assert comparison_of(report, "held_out_loss", "base")["verdict"] == "better"
    sweep = f"neft sweep-alpha --recipe {report['models'][0]['source']['location']}/recipe.yaml --alphas 0,5 --seeds 6"
    assert report["sweep_command"] == sweep
    assert "With one run each (seed 0) they don't hold for other seeds." in report["scope"]
    folder = Path(report["folder"])
    assert folder == Path("runs/tiny-a5-s0/evaluation/held-out-vs-tiny-a0-s0")
    written = json.loads((folder / "report.json").read_text())
    fields = {key: value for key, value in report.items() if key not in ("event", "schema_version")}
    assert {key: written[key] for key in fields} == fields
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    nats = sum(line["run"]["negative_log_likelihood"] for line in lines)
    assert nats / sum(line["run"]["loss_tokens"] for line in lines) == pytest.approx(ours)
    assert {len(one["answers"]) for one in report["shown"]} == {3}


@pytest.mark.slow
def test_eval_answers_are_those_of_the_saved_model(neft: Neft, runs: Path) -> None:
    """By transformers and peft alone, from the files of the run."""
    report = report_of(neft("eval", "lora-a5-s0", "--no-base", "--json", *OPTIONS))
    lines = [json.loads(line) for line in (Path(report["folder"]) / "examples.jsonl").read_text().splitlines()]
    adapter = json.loads((runs / "lora-a5-s0" / "model" / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(adapter["base_model_name_or_path"])
    model = PeftModel.from_pretrained(model, runs / "lora-a5-s0" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(runs / "lora-a5-s0" / "model")
    for line in lines:
        chat = [{"role": "user", "content": line["prompt"], "input": ""}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, repetition_penalty=1.2)
        answer = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert line["run"]["answer"] == answer.strip()


# Cache, and resuming


def read_cache(run: Path, kind: str) -> dict[int, str]:
    [file] = (run / "evaluation").glob(f"{kind}-*.jsonl")
    return {json.loads(line)["index"]: line for line in file.read_text().splitlines()}


@pytest.mark.slow
def test_eval_uses_the_cache(neft: Neft, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second evaluation loads no model and reports the same; neither does one with a baseline that was evaluated."""
    first = report_of(neft("eval", "tiny-a5-s0", "--json", *OPTIONS))
    report_of(neft("eval", "tiny-a0-s0", "--json", *OPTIONS))

    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("neftcli.evaluation.targets.EvalTarget.load", fail)
    again = report_of(neft("eval", "tiny-a5-s0", "--json", *OPTIONS))
    assert (again["metrics"], again["comparisons"]) == (first["metrics"], first["comparisons"])
    assert neft("eval", "tiny-a5-s0", "--baseline", "tiny-a0-s0", *OPTIONS).code == 0


@pytest.mark.slow
def test_eval_cache_key(neft: Neft, runs: Path) -> None:
    """Different settings, weights and rows have their own files in the cache."""
    for extra in ([], ["--set", "evaluation.generation.repetition_penalty=1"], ["--max-rows", "5"]):
        assert neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS, *extra).code == 0
    shutil.copytree(runs / "tiny-a0-s0" / "model", runs / "tiny-a5-s0" / "model", dirs_exist_ok=True)
    assert neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS).code == 0
    assert len(list((runs / "tiny-a5-s0" / "evaluation").glob("answers-*.jsonl"))) == 4


@pytest.mark.slow
def test_eval_resumes_after_a_truncated_line(neft: Neft, runs: Path) -> None:
    """After some answers and a truncated line, the missing answers are the same as before."""
    assert neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS).code == 0
    [file] = (runs / "tiny-a5-s0" / "evaluation").glob("answers-*.jsonl")
    whole = read_cache(runs / "tiny-a5-s0", "answers")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])
    assert neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS).code == 0
    assert read_cache(runs / "tiny-a5-s0", "answers") == whole


@pytest.mark.slow
def test_eval_damaged_files_of_an_evaluation(neft: Neft, runs: Path) -> None:
    """An answer without a prompt does not count, and a question file that is not text is another question."""
    result = neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS)
    assert result.code == 0
    [file] = (runs / "tiny-a5-s0" / "evaluation").glob("answers-*.jsonl")
    complete = read_cache(runs / "tiny-a5-s0", "answers")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + json.dumps({**json.loads(lines[-1]), "index": 99_999}) + "\n")
    [question] = (runs / "tiny-a5-s0" / "evaluation").glob("*/.question")
    question.write_bytes(b"\xff\xfe")
    result = neft("eval", "tiny-a5-s0", "--no-base", *OPTIONS)
    assert result.code == 0, result.err
    read = read_cache(runs / "tiny-a5-s0", "answers")
    assert {index: read[index] for index in complete} == complete
    assert question.read_bytes() == b"\xff\xfe"


def start_and_signal(runs: Path, sign: signal.Signals) -> subprocess.Popen[str]:
    """Start an evaluation, one prompt at a time, and send a signal after its first answers."""
    command = [sys.executable, "-m", "neftcli", "eval", "tiny-a5-s0", "--no-base"]
    command += ["--set", "evaluation.generation.max_new_tokens=64", "--set", "evaluation.generation.batch_size=1"]
    process = subprocess.Popen(command, cwd=runs.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in (runs / "tiny-a5-s0" / "evaluation").glob("answers-*.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sign)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_eval_resumes_after_a_signal(neft: Neft, runs: Path, sign: signal.Signals) -> None:
    process = start_and_signal(runs, sign)
    _, output = process.communicate(timeout=60)
    if sign != signal.SIGKILL:
        assert process.returncode == 75
        assert "stopped; results so far are kept" in output
        assert "the same command resumes" in output
    before = read_cache(runs / "tiny-a5-s0", "answers")
    assert 0 < len(before) < 12
    arguments = ["--no-base", "--set", "evaluation.generation.max_new_tokens=64"]
    assert neft("eval", "tiny-a5-s0", *arguments, "--set", "evaluation.generation.batch_size=1").code == 0
    after = read_cache(runs / "tiny-a5-s0", "answers")
    assert after.items() >= before.items()
    shutil.rmtree(runs / "tiny-a5-s0" / "evaluation")
    assert neft("eval", "tiny-a5-s0", *arguments).code == 0
    assert read_cache(runs / "tiny-a5-s0", "answers") == after


# Rows


@pytest.mark.slow
def test_eval_skips_training_rows(neft: Neft, runs: Path, rows_file: Path) -> None:
    """Of the file that a run was trained on only held-out rows are left, even if the run is only the baseline."""
    for command in (["tiny-a5-s0"], [str(rows_file.parent / "m"), "--baseline", "tiny-a5-s0"]):
        if not Path(command[0]).name.startswith("tiny"):
            shutil.copytree(runs / "tiny-a0-s0" / "model", rows_file.parent / "m", dirs_exist_ok=True)
        stream = events(neft("eval", *command, "--dataset", rows_file, "--no-answers", "--json").out)
        [rows] = [event for event in stream if event["event"] == "evaluation.data_ready"]
        assert (rows["rows_read"], rows["rows"], rows["trained_on"]) == (60, 12, 48)


@pytest.mark.slow
def test_eval_skips_training_prompts_in_longer_conversations(neft: Neft, runs: Path, rows_file: Path) -> None:
    """Longer conversations that begin with a training prompt are skipped."""
    requests = [json.loads(line) for line in rows_file.read_text().splitlines()]
    longer = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
                {"role": "user", "content": "And why?"},
                {"role": "assistant", "content": "So."},
            ]
        }
        for row in requests
    ]
    Path("longer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in longer))
    stream = events(neft("eval", "tiny-a5-s0", "--dataset", "longer.jsonl", "--no-answers", "--json").out)
    [rows] = [event for event in stream if event["event"] == "evaluation.data_ready"]
    assert (rows["rows_read"], rows["rows"], rows["trained_on"]) == (60, 12, 48)


@pytest.mark.slow
def test_eval_repeated_rows_count_once(neft: Neft, runs: Path) -> None:
    line = json.dumps({"prompt": "Name a river.", "completion": "Seine."}) + "\n"
    Path("twice.jsonl").write_text(line * 3)
    stream = events(neft("eval", "tiny-a5-s0", "--dataset", "twice.jsonl", "--no-answers", "--no-base", "--json").out)
    [rows] = [event for event in stream if event["event"] == "evaluation.data_ready"]
    assert (rows["rows"], rows["repeated"]) == (1, 2)


@pytest.mark.slow
def test_eval_notice_if_training_data_changed(neft: Neft, quick: list[str], rows_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    shutil.copy(rows_file, data)
    assert neft(*quick, "--dataset", data).code == 0
    data.write_text(data.read_text().replace("Apple", "Pear"))
    (tmp_path / "new.jsonl").write_text(json.dumps({"prompt": "Name a river.", "completion": "Seine."}) + "\n")
    arguments = ["--dataset", tmp_path / "new.jsonl", "--no-answers", "--no-base"]
    result = neft("eval", tmp_path / "runs" / "tiny-a5-s0", *arguments)
    assert "note: the rows that tiny-a5-s0 was trained on are not known (its data has changed)" in result.out


@pytest.mark.slow
def test_eval_rejects_a_changed_base_model(neft: Neft, runs: Path, tiny_folder: Callable[..., Path]) -> None:
    """An adapter on different weights would be a model that was never trained."""
    folder = runs.parent / "elsewhere"
    shutil.copytree(tiny_folder("llama"), folder)
    recipe = (runs / "lora-a5-s0" / "recipe.yaml").read_text().replace(str(tiny_folder("llama")), str(folder))
    (runs / "lora-a5-s0" / "recipe.yaml").write_text(recipe)
    assert neft("eval", "lora-a5-s0", "--no-answers").code == 0
    tiny_model("llama", seed=1).save_pretrained(folder)
    result = neft("eval", "lora-a5-s0", "--no-answers")
    assert result.code == 2
    assert "is not the model that the run was" in result.err


@pytest.mark.slow
def test_eval_rejects_answers_longer_than_the_context(neft: Neft, runs: Path) -> None:
    result = neft("eval", "tiny-a5-s0", "--set", "evaluation.generation.max_new_tokens=1024")
    assert result.code == 2
    assert "evaluation.generation.max_new_tokens must leave positions for a prompt; this model has 1024" in result.err


@pytest.mark.slow
def test_eval_report_folder_for_each_question(neft: Neft, runs: Path) -> None:
    folders = [
        report_of(neft("eval", "tiny-a5-s0", "--no-answers", "--json", *extra))["folder"]
        for extra in ([], ["--max-rows", 5], [], ["--no-base"])
    ]
    assert folders == [f"runs/tiny-a5-s0/evaluation/held-out{end}" for end in ("", "-2", "", "-3")]


@pytest.mark.slow
def test_eval_rejects_changed_data(neft: Neft, quick: list[str], rows_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    shutil.copy(rows_file, data)
    run = tmp_path / "runs" / "tiny-a5-s0"
    assert neft(*quick, "--dataset", data).code == 0
    data.write_text(data.read_text().replace("Apple", "Pear"))
    result = neft("eval", run)
    assert result.code == 2
    assert result.err == (
        f"{data}: the data has changed since tiny-a5-s0 was trained, so neft can't know which rows were held out\n"
        "  got      a data_sha256 that differs from run.json's\n"
        "  hint     neft eval ... --dataset FILE    with rows that no model here was trained on\n"
        "1 error; nothing was started.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a river."},
        {"instruction": "Name a river.", "input": "in France"},
        {"instruction": "Name a river.", "output": ""},
        {"messages": [{"role": "user", "content": "Name a river."}]},
    ],
)
def test_eval_questions_without_answers(neft: Neft, runs: Path, row: dict[str, Any]) -> None:
    """They are answered, without a loss and ROUGE."""
    Path("questions.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row).replace("river", "lake") + "\n")
    report = report_of(neft("eval", "tiny-a5-s0", "--dataset", "questions.jsonl", "--json", *OPTIONS))
    metrics = {one["metric"] for one in report["metrics"]}
    assert "answer_tokens" in metrics
    assert not metrics & {"held_out_loss", "perplexity", "rouge_l", "exact_match"}


@pytest.mark.slow
def test_eval_any_model(neft: Neft, runs: Path, rows_file: Path, tiny_folder: Callable[..., Path]) -> None:
    """Its loss is that of its rows, computed by transformers."""
    report = report_of(neft("eval", tiny_folder("opt"), "--dataset", rows_file, "--no-answers", "--json"))
    assert [model["role"] for model in report["models"]] == ["model"]
    assert report["comparisons"] == []
    from neftcli.data.chat import ChatFormat
    from neftcli.data.mixture import read_eval_examples
    from neftcli.models.chat_templates import set_chat_template
    from neftcli.recipe.schema import Data

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("opt"))
    set_chat_template(tokenizer, None)
    rows = list(tokenize(ChatFormat(tokenizer), read_eval_examples(Data(source=str(rows_file))).examples, 1024))
    expected = mean_loss(row_losses(AutoModelForCausalLM.from_pretrained(tiny_folder("opt")), rows, 7))
    assert values(report, "held_out_loss")[0] == pytest.approx(expected, rel=1e-2)  # bfloat16 if it is fast


@pytest.mark.slow
def test_eval_losses_of_different_tokens_are_not_compared(
    neft: Neft, runs: Path, rows_file: Path, tiny_folder: Callable[..., Path]
) -> None:
    """A different chat template gives different tokens of the same rows."""
    other = runs.parent / "other"
    shutil.copytree(tiny_folder("llama"), other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    tokenizer.save_pretrained(other)
    report = report_of(neft("eval", "tiny-a5-s0", "--baseline", other, "--no-base", "--json", *OPTIONS))
    assert "held_out_loss" not in {one["metric"] for one in report["comparisons"]}
    assert "answer_tokens" in {one["metric"] for one in report["comparisons"]}
    assert "other has different tokens for these rows, so its loss is not compared." in report["remarks"]


@pytest.mark.slow
def test_eval_reports_differences_between_two_runs(neft: Neft, runs: Path) -> None:
    """The runs differ in noise, the seed, nothing or more; a sweep is offered if it can decide."""

    def of(run: str, *extra: str) -> dict[str, Any]:
        return report_of(neft("eval", run, "--no-answers", "--json", *extra))

    alone = of("tiny-a5-s0")
    assert any("--baseline RUN compares two runs" in remark for remark in alone["remarks"])
    assert alone["sweep_command"].endswith("runs/tiny-a5-s0/recipe.yaml --alphas 0,5 --seeds 6")
    assert of("tiny-a0-s0")["sweep_command"] is None
    noise = of("tiny-a0-s0", "--baseline", "tiny-a5-s0")
    assert [remark for remark in noise["remarks"] if "runs" in remark] == []
    assert noise["sweep_command"] == alone["sweep_command"], "the recipe of the run whose noise is on"
    more = of("lora-a5-s0", "--baseline", "tiny-a0-s0")
    assert "The two runs differ in more than noise and seed: adapter.type (lora and none)." in more["remarks"]
    assert more["sweep_command"] is None
    shutil.copytree(runs / "tiny-a5-s0", runs / "copy")
    same = of("tiny-a5-s0", "--baseline", "copy")
    assert "Both runs have the same recipe: a difference shows what training twice changes." in same["conclusion"]
    assert [remark for remark in same["remarks"] if "recipe" in remark] == []
    assert {one["difference"] for one in same["comparisons"] if one["against"] == "baseline"} == {0.0}
    recipe = runs / "copy" / "recipe.yaml"
    recipe.write_text(re.sub(r"(?m)^  seed: 0$", "  seed: 1", recipe.read_text()))
    shutil.copytree(runs / "tiny-a0-s0" / "model", runs / "copy" / "model", dirs_exist_ok=True)
    seeds = of("tiny-a5-s0", "--baseline", "copy")
    sentence = "Only training.seed differs (0 and 1): a difference shows what the seed changes."
    assert seeds["conclusion"].count(sentence) == 1
    assert [remark for remark in seeds["remarks"] if "seed" in remark] == []
    assert seeds["sweep_command"] is None
    assert "(seeds 0 and 1)" in seeds["scope"]
    plain = neft("eval", "tiny-a5-s0", "--baseline", "copy", "--no-answers").out
    assert plain.count("training.seed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", ["tiny-a5-s0", "lora-a5-s0"])
def test_eval_baseline_is_the_base_model(neft: Neft, runs: Path, tiny_folder: Callable[[str], Path], run: str) -> None:
    result = neft("eval", run, "--baseline", tiny_folder("llama"), "--no-answers", "--json")
    report = report_of(result)
    assert [model["role"] for model in report["models"]] == ["run", "base"]
    keys = [(one["metric"], one["against"]) for one in report["comparisons"]]
    assert len(keys) == len(set(keys)) == len({metric for metric, _ in keys})
    [notice] = [one["message"] for one in events(result.out) if "once" in one.get("message", "")]
    assert notice == f"{tiny_folder('llama')} is the base model of this run: the table shows it once, as base"
    alone = report_of(neft("eval", run, "--no-answers", "--json"))
    assert alone["comparisons"] == report["comparisons"]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["runs/tiny-a5-s0", "./runs/../runs/tiny-a5-s0/", "link", "runs/tiny-a5-s0/model"])
def test_eval_rejects_a_comparison_with_itself(neft: Neft, runs: Path, other: str) -> None:
    Path("link").symlink_to(runs / "tiny-a5-s0")
    result = neft("eval", "tiny-a5-s0", "--baseline", other)
    assert result.code == 2
    lines = result.err.splitlines()
    assert lines[0] == "this run is compared with itself"
    assert lines[2].startswith("  hint     --baseline runs/tiny-a0-s0, or leave out --baseline")
    assert not (runs / "tiny-a5-s0" / "evaluation").exists()


@pytest.mark.slow
def test_eval_rows_of_one_prompt_count_once(neft: Neft, runs: Path) -> None:
    """Fourteen rows of seven prompts in different spellings, then of two prompts."""
    for prompts, n in ((7, 7), (2, 2)):
        rows = [
            {"prompt": f"{word} {number % prompts}", "completion": f"River {number}."}
            for number in range(7)
            for word in ("Name river", "name RIVER!")
        ]
        Path("grouped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = report_of(neft("eval", "tiny-a5-s0", "--dataset", "grouped.jsonl", "--no-answers", "--json"))
        loss = comparison_of(report, "held_out_loss", "base")
        assert loss["n"] == n < report["rows"]
        assert (loss["p"] is None) == (report["scope"] == "") == (n < 6)
        assert report["conclusion"][0].startswith(
            "Nothing is tested: 2 prompts are too few, a test needs 6." if n < 6 else "Against base llama: "
        )
        assert n < 6 or "prompts like the 7 distinct prompts of these" in report["scope"]


# Exports and output


@pytest.mark.slow
def test_eval_exports_for_alpaca_eval(neft: Neft, runs: Path) -> None:
    report = report_of(neft("eval", "tiny-a5-s0", "--export", "alpaca-eval", "--no-base", "--json", *OPTIONS))
    folder = Path(report["folder"])
    outputs = json.loads((folder / "model_outputs.json").read_text())
    lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert [(one["instruction"], one["output"]) for one in outputs] == [
        (line["prompt"], line["run"]["answer"]) for line in lines
    ]
    assert {one["generator"] for one in outputs} == {"tiny-a5-s0"}


@pytest.mark.slow
def test_eval_plain_lines_without_control_characters(neft: Neft, runs: Path) -> None:
    """An untrained byte model generates control characters; none reaches the terminal."""
    result = neft("eval", "tiny-a5-s0", "--show", 12, *OPTIONS)
    assert result.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.out)
    assert "held_out_loss compared with base: difference=" in result.out
    lines = result.out.splitlines()
    assert sum(line.startswith("prompt: ") for line in lines) == 12
    quiet = neft("eval", "tiny-a5-s0", "--quiet", *OPTIONS).out
    assert quiet.startswith("this run: tiny-a5-s0")


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_eval_judge_is_asked_once(neft: Neft, runs: Path) -> None:
    """With a judge that prefers longer answers the win rate is known; a second evaluation asks nothing."""
    with judge_server(prefers_longer) as server:
        arguments = ["tiny-a5-s0", "--baseline", "tiny-a0-s0", "--no-base", "--judge", server.url, "--judge-model", "m"]
        report = report_of(neft("eval", *arguments, "--json", *OPTIONS))
        requests = len(server.requests)
        again = report_of(neft("eval", *arguments, "--json", *OPTIONS))
        assert len(server.requests) == requests
    assert again["comparisons"] == report["comparisons"]
    lines = [json.loads(line) for line in (Path(report["folder"]) / "examples.jsonl").read_text().splitlines()]
    lengths = [(len(line["run"]["answer"]), len(line["baseline"]["answer"])) for line in lines]
    expected = [0.5 if ours == theirs else float(ours > theirs) for ours, theirs in lengths]
    assert [line["judge"]["score"] for line in lines] == expected
    assert values(report, "win_rate")[0] == pytest.approx(sum(expected) / len(expected))
    assert comparison_of(report, "win_rate", "baseline")["n"] == 12
    assert requests == 2 * len(
        {
            (line["run"]["answer"], line["baseline"]["answer"], line["prompt"])
            for line in lines
            if line["run"]["answer"] != line["baseline"]["answer"]
        }
    )


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_eval_unreadable_pairs_bound_the_win_rate(neft: Neft, runs: Path) -> None:
    """The judge's reply is sometimes no verdict; the bounds count those pairs as lost and as won."""
    with judge_server(hashed_verdict) as server:
        arguments = ["tiny-a5-s0", "--judge", server.url, "--judge-model", "m", "--json", *OPTIONS]
        report = report_of(neft("eval", *arguments))
    lines = [json.loads(line) for line in (Path(report["folder"]) / "examples.jsonl").read_text().splitlines()]
    scores = [line["judge"]["score"] for line in lines]
    won, missing = sum(score for score in scores if score is not None), scores.count(None)
    assert 0 < missing < 12
    assert report["win_rate_bounds"] == [won / 12, (won + missing) / 12]
    assert any(remark.startswith(f"{missing} of 12 pairs had no readable verdict") for remark in report["remarks"])
    lengths = [len(line["run"]["answer"]) - len(line["base"]["answer"]) for line in lines]
    assert [line["judge"]["length_difference"] for line in lines] == lengths


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_eval_unreachable_judge(neft: Neft, runs: Path) -> None:
    with judge_server() as server:
        address = server.url
    result = neft("eval", "tiny-a5-s0", "--judge", address, "--judge-model", "m")
    assert result.code == 2
    assert f"evaluation.judge.base_url: no connection to {address}" in result.err
    assert not (runs / "tiny-a5-s0" / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_eval_keeps_results_if_the_judge_fails(neft: Neft, runs: Path) -> None:
    with judge_server() as server:
        server.always = status(401)
        result = neft("eval", "tiny-a5-s0", "--judge", server.url, "--judge-model", "m", *OPTIONS)
    assert result.code == 1
    assert "held_out_loss: run=" in result.out  # results so far are reported
    assert "needs a key in OPENAI_API_KEY" in result.err
    assert "run the same command again: it resumes" in result.err
    assert len(read_cache(runs / "tiny-a5-s0", "answers")) == 12


@pytest.mark.slow
def test_eval_benchmark_tasks(neft: Neft, runs: Path) -> None:
    rows = [{"question": f"{n} or {n + 1}?", "choices": ["a", "b"], "answer": n % 2} for n in range(10)]
    data = Path("letters.jsonl").resolve()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("letters.yaml").write_text(
        f"task: letters\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n"
    )
    report = report_of(neft("eval", "tiny-a5-s0", "--tasks", "letters.yaml", "--no-answers", "--json"))
    assert all(0 <= value <= 1 for value in values(report, "letters/acc"))  # type: ignore[operator]
    assert comparison_of(report, "letters/acc", "base")["n"] == 10


# Wrong input


@pytest.mark.slow
def test_eval_misspelt_run(neft: Neft, runs: Path) -> None:
    result = neft("eval", "tiny-a5-s1")
    assert result.code == 2
    assert result.err == (
        "no such run or model\n"
        "  got      tiny-a5-s1\n"
        "  did you mean tiny-a5-s0?\n"
        f"  hint     in runs/: {list_runs()}; `neft models` lists model names\n"
        "1 error; nothing was started.\n"
    )


@pytest.mark.slow
def test_eval_rejects_a_run_without_a_model(neft: Neft, runs: Path) -> None:
    shutil.rmtree(runs / "tiny-a5-s0" / "model")
    result = neft("eval", "tiny-a5-s0")
    assert (result.code, result.err.splitlines()[0]) == (2, "runs/tiny-a5-s0: this run has no model")
    (runs / "tiny-a0-s0" / "run.json").write_text("{")
    result = neft("eval", "tiny-a0-s0")
    assert (result.code, result.err.splitlines()[0]) == (
        2,
        "runs/tiny-a0-s0/run.json: this is not a valid record of a run",
    )


@pytest.mark.slow
def test_eval_rejects_an_incomplete_run(neft: Neft, runs: Path) -> None:
    (runs / "tiny-a5-s0" / "run.json").unlink()
    assert "runs/tiny-a5-s0: run.json is missing" in neft("eval", "tiny-a5-s0").err
    (runs / "tiny-a0-s0" / "recipe.yaml").unlink()
    assert "runs/tiny-a0-s0: this run has no recipe.yaml" in neft("eval", "tiny-a0-s0").err
    assert "no such run or model" in neft("eval", "runs/tiny-a7-s0").err


@pytest.mark.slow
def test_eval_failed_start_leaves_no_folder(neft: Neft, runs: Path) -> None:
    """A hub model that can't be loaded leaves nothing that looks like a run."""
    assert neft("eval", "opt-125m", "--no-answers").code == 2
    assert not (runs / "opt-125m").exists()


@pytest.mark.slow
def test_eval_failed_start_keeps_an_earlier_report(neft: Neft, runs: Path) -> None:
    """If the run's model was damaged since, the same command fails, and the old report stays."""
    report = (
        Path(report_of(neft("eval", "tiny-a5-s0", "--no-base", "--no-answers", "--json"))["folder"]) / "report.json"
    )
    before = report.read_bytes()
    (runs / "tiny-a5-s0" / "model" / "tokenizer.json").write_text("{")
    (runs / "tiny-a5-s0" / "model" / "config.json").unlink()
    assert neft("eval", "tiny-a5-s0", "--no-base", "--no-answers").code == 2
    assert report.read_bytes() == before


@pytest.mark.slow
def test_eval_nothing_to_measure(neft: Neft, runs: Path) -> None:
    Path("questions.jsonl").write_text('{"prompt": "Name a river."}\n')
    result = neft("eval", "tiny-a5-s0", "--dataset", "questions.jsonl", "--no-answers")
    assert result.code == 2
    assert "there is nothing to measure" in result.err


@pytest.mark.slow
def test_eval_notice_of_a_prompt_that_fills_the_length(neft: Neft, runs: Path) -> None:
    rows = [{"prompt": "a" * 600, "completion": "b"}, {"prompt": "a", "completion": "b"}]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = neft("eval", "tiny-a5-s0", "--dataset", "long.jsonl", "--no-answers", "--no-base", "--max-length", "300")
    assert "note: tiny-a5-s0: 1 row has no loss: its prompt alone fills data.max_length" in result.out
    assert "n=1" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--export", "csv"], "--export writes one format"),
        (["--no-answers", "--show", "3"], "--show needs answers"),
        (["--set", "training.seed=3"], "--set training.seed: this command does not use this option"),
        (["--set", "evaluation.samples=3"], "--set evaluation.samples: this command does not use this option"),
        (["--chat-template", "chatml"], "--chat-template: a run is used as it was trained"),
        (["--judge", "http://[::1/v1", "--judge-model", "m"], "must be an http:// or https:// URL"),
        (["--judge", "https://h/v1?api-key=secret", "--judge-model", "m"], "must not contain a user, password or key"),
        (["--set", "data.max_length=64"], "data.max_length needs --dataset"),
        (["--judge", "http://127.0.0.1:1/v1"], "judge"),
        (
            ["--judge", "http://me:secret@127.0.0.1:1/v1", "--judge-model", "m"],
            "must not contain a user, password or key",
        ),
        (["--dataset", "missing.jsonl"], "no such file or folder\n  got      missing.jsonl"),
        (["--set", "evaluation.generation.max_new_token=3"], "is not an option"),
        (["--set", "evalution.tasks=[a]"], "evalution.tasks is not an option"),
        (["--baseline", "x" * 300], "no such run or model"),
    ],
)
def test_eval_rejects_invalid_arguments(neft: Neft, runs: Path, arguments: list[str], message: str) -> None:
    result = neft("eval", "tiny-a5-s0", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "secret" not in result.err
    assert "nothing was started" in result.err
    assert not (runs / "tiny-a5-s0" / "evaluation").exists()
