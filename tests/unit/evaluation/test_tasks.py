"""Benchmark tasks by lm-evaluation-harness.

Oracles: plain loops in float32, one text and one token at a time, for the log-likelihood of every choice, for greedy
answers and for a perplexity; the harness's own `simple_evaluate`; the same model without noise; and the same tasks in
batches of a different size.
"""

import json
import math
import random
import re
import textwrap
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from neftcli.data.chat import ChatFormat
from neftcli.data.dataset import ExampleDataset
from neftcli.errors import InputError
from neftcli.evaluation import measurement as measure_module
from neftcli.evaluation import tasks as tasks_module
from neftcli.evaluation.held_out import EvalRows
from neftcli.evaluation.measurement import ModelEvaluator
from neftcli.evaluation.tasks import TaskResult, check_tasks, describe_settings, run_tasks
from neftcli.events import RowsSource
from neftcli.models.chat_templates import CHATML
from neftcli.models.registry import ModelReference
from neftcli.neftune import neftune
from neftcli.recipe.schema import Data, Evaluation, Recipe, TaskSettings
from tests.tiny import FAMILIES, Family, save_tiny, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODELS = {family: tiny_model(family) for family in FAMILIES}
ROWS: list[dict[str, Any]] = [
    {"question": "Name a fruit.", "choices": ["apple", "iron"], "answer": 0},
    {"question": "Which of these is the largest number of them all?", "choices": ["3", "80", "7"], "answer": 1},
    {"question": "Snow is", "choices": ["white and cold", "w", "a black bird", "hot"], "answer": 0},
    {"question": "Q", "choices": ["yes", "no"], "answer": 1},
    {"question": "Spell cat backwards.", "choices": ["tac", "cta", "a long wrong answer"], "answer": 2},
]
FRUIT = """
    task: fruit
    dataset_path: json
    dataset_kwargs:
      data_files:
        test: rows.jsonl
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{question}}"
    doc_to_choice: "{{choices}}"
    doc_to_target: "{{answer}}"
"""
ACCURACY = """
    metric_list:
      - metric: acc
        aggregation: mean
        higher_is_better: true
"""
CHOICES = """
    process_results: !function counted.likelihood
    metric_list:
      - metric: choices
        aggregation: mean
        higher_is_better: false
"""
LIKELIHOOD = FRUIT + CHOICES
NUMBERED = f"""{LIKELIHOOD}
    process_docs: !function counted.numbered
    fewshot_split: test
    num_fewshot: 2
"""
WRITING = """
    task: writing
    dataset_path: json
    dataset_kwargs:
      data_files:
        test: rows.jsonl
    test_split: test
    output_type: generate_until
    doc_to_text: "{{question}}"
    doc_to_target: "{{answer}}"
    generation_kwargs:
      until: ["a"]
      max_gen_toks: 12
    process_results: !function counted.checksum
    metric_list:
      - metric: checksum
        aggregation: mean
        higher_is_better: true
"""
READING = """
    task: reading
    dataset_path: json
    dataset_kwargs:
      data_files:
        test: rows.jsonl
    test_split: test
    output_type: loglikelihood_rolling
    doc_to_text: ""
    doc_to_target: "{{question}}"
    metric_list:
      - metric: byte_perplexity
"""
FUNCTIONS = """
    import random, zlib
    def likelihood(doc, results):
        return {"choices": sum(value * 2 ** place for place, (value, _) in enumerate(results))}
    def checksum(doc, results):
        return {"checksum": zlib.crc32(results[0].encode())}
    def numbered(rows):
        print("numbering")
        return rows.map(lambda row: {"question": f"{row['question']} {random.random()}"})
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("NEFT_TRUST_TASK_CODE", "1")  # the functions here are the tests' own


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a task, its rows and its functions to a folder, and returns the task's path."""

    def write(content: str, rows: list[dict[str, Any]] = ROWS, folder: str = "tasks") -> str:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (place / "counted.py").write_text(textwrap.dedent(FUNCTIONS), encoding="utf-8")
        text = textwrap.dedent(content)
        name = re.search(r"^(?:task|group): (\w+)", text, re.MULTILINE)
        file = place / f"{name[1] if name else 'nameless'}.yaml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def task_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with the only tasks that the harness knows; reading its own takes seconds."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path / "known"
    folder.mkdir()
    known = lambda built_in: TaskManager(include_defaults=False, include_path=folder)  # noqa: E731
    monkeypatch.setattr(tasks_module, "task_manager", known)
    return folder


def choice_log_likelihoods(model: PreTrainedModel, row: dict[str, Any], autocast: Any = None) -> list[float]:
    """Return the log-likelihood of each choice of a row, token by token."""
    values = []
    for choice in row["choices"]:
        start = len(TOKENIZER(row["question"])["input_ids"])
        ids = TOKENIZER(f"{row['question']} {choice}")["input_ids"]
        with torch.no_grad(), autocast or nullcontext():
            logits = model.eval()(input_ids=torch.tensor([ids[:-1]])).logits[0]
        scores = logits.float().log_softmax(-1)
        values.append(sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids))))
    return values


def weighted_sum(values: list[float]) -> float:
    """Return the result of `likelihood` in the tasks' functions: a number that depends on each choice."""
    return sum(value * 2**place for place, value in enumerate(values))


# Values


@pytest.mark.parametrize("family", FAMILIES)
def test_run_tasks_log_likelihoods_of_a_plain_loop(family: Family, task_file: Callable[..., str]) -> None:
    """For every choice of every row, in the order of the rows; within float32 (1e-5)."""
    (result,) = run_tasks(MODELS[family], TOKENIZER, [task_file(LIKELIHOOD)], batch_size=3)
    expected = [weighted_sum(choice_log_likelihoods(MODELS[family], row)) for row in ROWS]
    assert result.per_example == pytest.approx(expected, rel=1e-5)
    assert result.value == pytest.approx(sum(expected) / len(ROWS), rel=1e-5)
    assert (result.task, result.metric, result.higher_is_better) == ("fruit", "choices", False)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_run_tasks_any_batch_size(batch_size: int, task_file: Callable[..., str]) -> None:
    file = task_file(LIKELIHOOD)
    (expected,) = run_tasks(MODELS["opt"], TOKENIZER, [file], 3)
    (result,) = run_tasks(MODELS["opt"], TOKENIZER, [file], batch_size)
    assert result.per_example == pytest.approx(expected.per_example, rel=1e-5)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [(["acc", "acc_norm"], "acc_norm"), (["acc_norm", "acc"], "acc_norm"), (["exact_match", "acc"], "acc")],
)
def test_run_tasks_main_metric(metrics: list[str], expected: str, task_file: Callable[..., str]) -> None:
    """acc_norm if there is one, else acc: hits of the likeliest choice, per character if normalised."""
    listed = "".join(
        f"      - metric: {metric}\n        aggregation: mean\n        higher_is_better: true\n" for metric in metrics
    )
    (result,) = run_tasks(MODELS["llama"], TOKENIZER, [task_file(f"{FRUIT}    metric_list:\n{listed}")], 4)
    assert result.metric == expected
    hits = []
    for row in ROWS:
        values = choice_log_likelihoods(MODELS["llama"], row)
        if expected == "acc_norm":
            values = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        hits.append(float(values.index(max(values)) == row["answer"]))
    assert result.per_example == tuple(hits)
    assert result.value == pytest.approx(sum(hits) / len(hits))
    assert result.higher_is_better
    assert 0 < result.value < 1


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_run_tasks_answers_of_a_greedy_loop(family: Family, task_file: Callable[..., str]) -> None:
    """Up to the stop text or twelve tokens, from prompts of several lengths in one batch."""
    expected = []
    for row in ROWS:
        ids = TOKENIZER(row["question"])["input_ids"]
        new: list[int] = []
        while len(new) < 12 and 2 not in new:
            with torch.no_grad():
                new.append(int(MODELS[family].eval()(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        text = TOKENIZER.decode(new, skip_special_tokens=True).split("a")[0]
        expected.append(float(zlib.crc32(text.encode())))
    (result,) = run_tasks(MODELS[family], TOKENIZER, [task_file(WRITING)], 5)
    assert result.per_example == tuple(expected)
    assert len(set(expected)) > 1


def test_run_tasks_metric_without_values_per_document(task_file: Callable[..., str]) -> None:
    """The perplexity per byte is exp(nats / bytes) over all rows; lower is better."""
    (result,) = run_tasks(MODELS["llama"], TOKENIZER, [task_file(READING)], 2)
    nats, size = 0.0, 0
    for row in ROWS:
        ids = TOKENIZER(row["question"])["input_ids"]
        with torch.no_grad():
            logits = MODELS["llama"].eval()(input_ids=torch.tensor([[1, *ids[:-1]]])).logits[0]
        nats -= float(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        size += len(row["question"].encode())
    assert result.value == pytest.approx(math.exp(nats / size), rel=1e-5)
    assert (result.metric, result.higher_is_better, result.per_example) == ("byte_perplexity", False, ())


def test_run_tasks_agrees_with_simple_evaluate(
    task_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random examples in the prompts, and random numbers drawn by the task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = Path(task_file(NUMBERED))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it asks pip and git for seconds
        patch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: None)
        harness = HFLM(tiny_model("llama"), tokenizer=tiny_tokenizer(), batch_size=4)
        manager = TaskManager(include_defaults=False)
        found = lm_eval.simple_evaluate(harness, tasks=[str(file)], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another cache")
    (result,) = run_tasks(MODELS["llama"], TOKENIZER, [str(file)], 4)
    assert result.value == found["results"]["fruit"]["choices,none"]
    assert result.per_example == tuple(sample["choices"] for sample in found["samples"]["fruit"])


EXAMPLES = f"""{LIKELIHOOD}
    fewshot_split: test
"""
SETTINGS = {
    "plain": TaskSettings(),
    "examples": TaskSettings(num_fewshot=2),
    "template": TaskSettings(apply_chat_template=True),
    "template, turns": TaskSettings(apply_chat_template=True, num_fewshot=2),
    "template, one turn": TaskSettings(apply_chat_template=True, num_fewshot=2, fewshot_as_multiturn=False),
    "instruction": TaskSettings(system_instruction="Answer well."),
    "template, instruction": TaskSettings(apply_chat_template=True, system_instruction="Answer well."),
    "limit": TaskSettings(limit=3.0),
    "share": TaskSettings(limit=0.3),
}


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("name", SETTINGS)
def test_run_tasks_settings_agree_with_simple_evaluate(
    name: str, task_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chat template, examples, turns, limit, instruction: values and documents are those of `simple_evaluate`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings, file = SETTINGS[name], Path(task_file(EXAMPLES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: None)
        found = lm_eval.simple_evaluate(
            HFLM(tiny_model("llama"), tokenizer=chat_tokenizer(), batch_size=4),
            tasks=[str(file)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            num_fewshot=settings.num_fewshot,
            limit=None if settings.limit is None else int(settings.limit) or settings.limit,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.multiturn(),
            system_instruction=settings.system_instruction,
        )
    assert found is not None
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another cache")
    (result,) = run_tasks(MODELS["llama"], chat_tokenizer(), [str(file)], 4, settings=settings)
    assert result.value == found["results"]["fruit"]["choices,none"]
    assert result.per_example == tuple(sample["choices"] for sample in found["samples"]["fruit"])
    assert len(result.per_example) == {"limit": 3, "share": 2}.get(name, len(ROWS))


def test_run_tasks_settings_change_values(task_file: Callable[..., str]) -> None:
    """No two settings give the same values, except for a limit, whose values are the first ones."""
    file = task_file(EXAMPLES)
    values = {
        name: run_tasks(MODELS["llama"], chat_tokenizer(), [file], 4, settings=settings)[0].per_example
        for name, settings in SETTINGS.items()
    }
    assert values["limit"] == pytest.approx(values["plain"][:3], rel=1e-5)
    assert values["share"] == pytest.approx(values["plain"][:2], rel=1e-5)
    assert len({found for name, found in values.items() if name not in ("limit", "share")}) == 7


def test_run_tasks_ignores_num_fewshot_for_zero_examples(task_file: Callable[..., str]) -> None:
    notices: list[Any] = []
    file = task_file(f"{EXAMPLES}    num_fewshot: 0\n")
    observer = SimpleNamespace(notify=notices.append)
    (result,) = run_tasks(MODELS["llama"], TOKENIZER, [file], 4, observer=observer, settings=SETTINGS["examples"])
    (plain,) = run_tasks(MODELS["llama"], TOKENIZER, [file], 4)
    assert result == plain
    assert [notice.message for notice in notices] == ["fruit: its file sets 0 examples; --num-fewshot is ignored"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (TaskSettings(fewshot_as_multiturn=True), "fewshot_as_multiturn needs the chat template"),
        (TaskSettings(limit=2.5), "limit must be a number of documents, or a share below 1"),
        (TaskSettings(apply_chat_template=True), "apply_chat_template needs a chat template, and this model has none"),
    ],
)
def test_run_tasks_invalid_settings(settings: TaskSettings, expected: str, task_file: Callable[..., str]) -> None:
    file = task_file(EXAMPLES)
    assert expected in message(lambda: run_tasks(MODELS["llama"], TOKENIZER, [file], 4, settings=settings))


def test_describe_settings() -> None:
    assert describe_settings(TaskSettings()) == ""
    assert describe_settings(SETTINGS["template, turns"]) == (
        "in the model's chat template; with 2 examples before each question, as separate turns"
    )
    assert describe_settings(SETTINGS["limit"]) == "on the first 3 documents of each task"
    assert describe_settings(SETTINGS["share"]) == "on the first 0.3 of the documents of each task"
    assert describe_settings(SETTINGS["instruction"]) == "with a system instruction"


def run_task(folder: Path, task: str, settings: TaskSettings, template: str = CHATML) -> TaskResult:
    """Return the result of a task by a model whose home is the folder, without rows and answers."""
    save_tiny(folder / "model", "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    target: Any = SimpleNamespace(
        home=folder,
        name="tiny",
        reference=ModelReference("tiny", "folder", str(folder / "model")),
        recipe=Recipe(),
        load_chat_format=lambda *_: ChatFormat(tokenizer),
        identity=lambda _: {},
    )
    rows = EvalRows(ExampleDataset.from_rows([]), Data(), "messages", RowsSource("rows.jsonl"), "rows")
    compute: Any = SimpleNamespace(autocast=nullcontext)
    observer = SimpleNamespace(notify=lambda event: None)
    evaluation = Evaluation(tasks=(task,), task_settings=settings)
    evaluator = ModelEvaluator(target, rows, evaluation, compute, 0, observer, answers=False, model=MODELS["llama"])
    [result] = evaluator.run().tasks
    return result


def test_model_evaluator_caches_tasks_by_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is run once for each settings, and once for each chat template if it is applied."""
    runs: list[TaskSettings] = []

    def run(*arguments: Any) -> list[TaskResult]:
        runs.append(arguments[-1])
        return [TaskResult("arc", "acc", float(len(runs)), True, (1.0, 0.0), "hash")]

    monkeypatch.setattr(measure_module, "run_tasks", run)

    def value(settings: TaskSettings, template: str = CHATML) -> float:
        return run_task(tmp_path, "arc", settings, template).value

    first = [value(settings) for settings in SETTINGS.values()]
    assert first == [float(number) for number in range(1, len(SETTINGS) + 1)]
    assert [value(settings) for settings in SETTINGS.values()] == first
    other_template = CHATML + "{# edited #}"
    assert value(SETTINGS["template"], other_template) == len(SETTINGS) + 1
    assert value(SETTINGS["plain"], other_template) == 1.0


def test_model_evaluator_runs_a_task_file_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited file must not get the results of the former one, even if only a file that it includes was edited."""
    values = iter((0.25, 0.75))
    monkeypatch.setattr(
        measure_module, "run_tasks", lambda *_arguments: [TaskResult("mine", "acc", next(values), True, (), "hash")]
    )
    file = tmp_path / "mine.yaml"
    for value in (0.25, 0.75):
        file.write_text(f"task: mine\nnum_fewshot: {value:.0f}\n")
        assert run_task(tmp_path, str(file), TaskSettings()).value == value
    assert list((tmp_path / "evaluation").glob("*.jsonl")) == []


def test_run_tasks_bfloat16(task_file: Callable[..., str]) -> None:
    """Logits are computed in the caller's autocast, their log-softmax in float32, as in a plain loop (1e-6)."""
    model = tiny_model("llama")
    file = task_file(LIKELIHOOD)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.logits.dtype))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    (plain,) = run_tasks(model, TOKENIZER, [file], 1)
    assert set(seen) == {torch.float32}
    seen.clear()
    (result,) = run_tasks(model, TOKENIZER, [file], 1, autocast)
    assert set(seen) == {torch.bfloat16}
    assert result.per_example != plain.per_example
    expected = [weighted_sum(choice_log_likelihoods(model, row, autocast)) for row in ROWS]
    assert result.per_example == pytest.approx(expected, rel=1e-6)


# Without noise, and without a trace


@pytest.mark.parametrize("training", [True, False])
def test_run_tasks_with_attached_noise(training: bool, task_file: Callable[..., str]) -> None:
    """Results are bit-identical, and the model returns to its mode."""
    model = MODELS["gemma"].train(training)
    files = [task_file(LIKELIHOOD), task_file(WRITING)]
    expected = run_tasks(model, TOKENIZER, files, 3)
    with neftune(model, alpha=50.0):
        assert run_tasks(model, TOKENIZER, files, 3) == expected
    assert {module.training for module in model.modules()} == {training}


def test_run_tasks_with_an_untrained_adapter(task_file: Callable[..., str]) -> None:
    """A PEFT model with new LoRA matrices, whose product is zero, has the base model's results."""
    files = [task_file(LIKELIHOOD), task_file(WRITING)]
    expected = run_tasks(MODELS["llama"], TOKENIZER, files, 3)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(tiny_model("llama"), settings)
    assert run_tasks(adapted, TOKENIZER, files, 3) == expected


def test_run_tasks_keeps_untied_weights(task_file: Callable[..., str]) -> None:
    """The harness ties weights if the configuration says so, but these are not tied in the loaded model."""
    model = tiny_model("opt")
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))
    before = {name: weight.clone() for name, weight in model.named_parameters(remove_duplicate=False)}
    (result,) = run_tasks(model, TOKENIZER, [task_file(LIKELIHOOD)], 3)
    expected = [weighted_sum(choice_log_likelihoods(model, row)) for row in ROWS]
    assert result.per_example == pytest.approx(expected, rel=1e-5)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "tie_weights" not in vars(model)


def test_run_tasks_restores_random_states_and_tokenizer(task_file: Callable[..., str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(99)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    run_tasks(MODELS["llama"], tokenizer, [task_file(NUMBERED), task_file(WRITING)], 2)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == states
    assert tokenizer.pad_token is None


def test_run_tasks_ignores_the_callers_seeds(
    task_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task draws the same random numbers for two models, whatever was drawn before."""
    file = task_file(NUMBERED)
    results = []
    for seed in (1, 2):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"cache {seed}")
        random.seed(seed)
        results += run_tasks(MODELS["llama"], TOKENIZER, [file], 2)
    assert results[0] == results[1]


def test_run_tasks_prints_nothing_on_stdout(task_file: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    """Output of a task goes to stderr, without the progress bars of the harness."""
    run_tasks(MODELS["llama"], TOKENIZER, [task_file(text) for text in (NUMBERED, WRITING, READING)], 2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "numbering" in captured.err
    assert "requests" not in captured.err
    assert "Tokenizing" not in captured.err


# Memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("content", [LIKELIHOOD, WRITING, READING])
def test_run_tasks_halves_the_batch_on_oom(content: str, error: Exception, task_file: Callable[..., str]) -> None:
    """Three texts are too many at once: the batch size of 16 becomes 2, and the values are the same."""
    model = tiny_model("llama")
    file = task_file(content)
    (expected,) = run_tasks(model, TOKENIZER, [file], 16)
    sizes = []

    def refuse(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))
        if sizes[-1] > 2:
            raise error

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    (result,) = run_tasks(model, TOKENIZER, [file], 16)
    assert result.value == pytest.approx(expected.value, rel=1e-5)
    assert result.per_example == pytest.approx(expected.per_example, rel=1e-5)
    assert max(sizes) > 2
    assert sizes[-1] <= 2


def test_run_tasks_oom_of_one_text(task_file: Callable[..., str]) -> None:
    """It fails, and so does any other error of the model."""
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes differ")):
        model = tiny_model("llama")
        model.register_forward_pre_hook(_raising(error))
        with pytest.raises(type(error), match=str(error)):
            run_tasks(model, TOKENIZER, [task_file(FRUIT)], 4)
        assert model.training


def _raising(error: Exception) -> Callable[..., None]:
    def hook(module: Any, args: Any) -> None:
        raise error

    return hook


# Tasks and documents


def test_run_tasks_no_tasks() -> None:
    check_tasks([])
    assert run_tasks(MODELS["llama"], TOKENIZER, [], 2) == []


def test_run_tasks_files_relative_to_the_task(
    task_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data files are relative to the task's file; files of the same name and earlier versions are not mixed up."""
    monkeypatch.chdir(tmp_path)
    first = Path(task_file(LIKELIHOOD, ROWS[:2], "first")).relative_to(tmp_path)
    second = Path(task_file(LIKELIHOOD, ROWS[2:], "second")).relative_to(tmp_path)
    (whole,) = run_tasks(MODELS["llama"], TOKENIZER, [task_file(LIKELIHOOD)], 4)

    def values(file: Path) -> tuple[float, ...]:
        (result,) = run_tasks(MODELS["llama"], TOKENIZER, [str(file)], 4)
        return result.per_example

    assert values(first) == pytest.approx(whole.per_example[:2], rel=1e-5)
    assert values(second) == pytest.approx(whole.per_example[2:], rel=1e-5)
    task_file(LIKELIHOOD, ROWS[3:], "first")
    assert values(first) == pytest.approx(whole.per_example[3:], rel=1e-5)
    assert Path.cwd() == tmp_path


def test_run_tasks_documents_hash(task_file: Callable[..., str]) -> None:
    """The hash is the same for any model, and differs if a row is missing, changed or moved."""
    file = task_file(LIKELIHOOD)
    (first,) = run_tasks(MODELS["llama"], TOKENIZER, [file], 4)
    (other_model,) = run_tasks(MODELS["opt"], TOKENIZER, [file], 4)
    assert first.documents == other_model.documents
    assert first.per_example != other_model.per_example
    changed = [{**ROWS[0], "answer": 1}, *ROWS[1:]]
    others = [
        run_tasks(MODELS["llama"], TOKENIZER, [task_file(LIKELIHOOD, rows, folder)], 4)[0].documents
        for folder, rows in {"fewer": ROWS[1:], "changed": changed, "turned": ROWS[::-1]}.items()
    ]
    assert len({first.documents, *others}) == 4


def test_run_tasks_order_and_repeats(task_file: Callable[..., str]) -> None:
    """Results are in the order of the names; a task named twice is run once."""
    fruit, writing = task_file(NUMBERED), task_file(WRITING)

    def run(*files: str) -> list[TaskResult]:
        return run_tasks(MODELS["llama"], TOKENIZER, files, 4)

    assert run(writing, fruit, writing) == run(writing) + run(fruit)


GROUP = """
    group: garden
    task:
      - fruit
      - herbs
"""
MEAN = """
    aggregate_metric_list:
      - metric: acc
        weight_by_size: {by_size}
"""


@pytest.fixture
def garden(task_index: Path, tmp_path: Path) -> Callable[[str], None]:
    """Write two known tasks with a tag and unequal numbers of rows, and a group of them."""
    for name, rows in (("fruit", ROWS[:2]), ("herbs", ROWS[2:])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        content = (FRUIT + ACCURACY).replace("rows.jsonl", str(file))
        content = content.replace("task: fruit", f"task: {name}\n    tag: plants")
        (task_index / f"{name}.yaml").write_text(textwrap.dedent(content), encoding="utf-8")

    def write(mean: str) -> None:
        (task_index / "garden.yaml").write_text(textwrap.dedent(GROUP + mean), encoding="utf-8")

    return write


def test_run_tasks_group_with_a_mean(garden: Callable[[str], None]) -> None:
    """The mean is over the documents of all its tasks; if tasks have equal weight, there are no values per document."""
    fruit, herbs = run_tasks(MODELS["llama"], TOKENIZER, ["fruit", "herbs"], 4)
    garden(MEAN.format(by_size="true"))
    (by_size,) = run_tasks(MODELS["llama"], TOKENIZER, ["garden"], 4)
    assert (by_size.task, by_size.metric) == ("garden", "acc")
    assert by_size.per_example == fruit.per_example + herbs.per_example
    assert by_size.value == pytest.approx(sum(by_size.per_example) / len(ROWS))
    garden(MEAN.format(by_size="false"))
    (by_task,) = run_tasks(MODELS["llama"], TOKENIZER, ["garden"], 4)
    assert by_task.value == pytest.approx((fruit.value + herbs.value) / 2)
    assert fruit.value != herbs.value
    assert by_task.per_example == ()
    assert by_task.documents == by_size.documents


def test_run_tasks_tag_or_group_without_a_mean(garden: Callable[[str], None]) -> None:
    expected = run_tasks(MODELS["llama"], TOKENIZER, ["fruit", "herbs"], 4)
    garden("")
    assert run_tasks(MODELS["llama"], TOKENIZER, ["garden"], 4) == expected
    assert run_tasks(MODELS["llama"], TOKENIZER, ["plants"], 4) == expected


def test_check_tasks_rejects_a_group_for_one_of_its_tasks(garden: Callable[[str], None], task_index: Path) -> None:
    garden(MEAN.format(by_size="true"))
    with (task_index / "herbs.yaml").open("a", encoding="utf-8") as file:
        file.write("unsafe_code: true\n")
    check_tasks(["fruit"])
    for name in ("herbs", "plants", "garden"):
        assert message(lambda name=name: check_tasks([name])).startswith(f"{name} runs code that the model writes")


@pytest.mark.parametrize("place", ["import", "compute"])
def test_run_tasks_ignores_metrics_in_the_current_folder(
    place: str, task_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness loads metrics by name, and `evaluate` would first run the code of a local folder of that name."""
    file, made = tmp_path / "rows.jsonl", tmp_path / "made"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    load = f"    try: evaluate.load('bleu')\n    except Exception: open({str(tmp_path / 'asked')!r}, 'w').close()\n"
    body = {
        "import": f"def ask():\n{load}ask()\ndef score(items): return 0.5\n",
        "compute": f"def score(items):\n{load}    return 0.5\n",
    }[place]
    (task_index / "own.py").write_text(f"import evaluate\n{body}", encoding="utf-8")
    content = (
        (FRUIT + ACCURACY)
        .replace("rows.jsonl", str(file))
        .replace("aggregation: mean", "aggregation: !function own.score")
    )
    (task_index / "fruit.yaml").write_text(textwrap.dedent(content), encoding="utf-8")
    (tmp_path / "bleu").mkdir()
    (tmp_path / "bleu" / "bleu.py").write_text(f"import os\nos.mkdir({str(made)!r})\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run_tasks(MODELS["llama"], TOKENIZER, ["fruit"], 4)
    assert (tmp_path / "asked").exists()
    assert not made.exists()
    assert Path.cwd() == tmp_path


# Errors


def message(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_check_tasks_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "find_spec", lambda name: None)
    assert message(lambda: check_tasks(["arc_easy", "mmlu"])) == (
        "evaluation.tasks needs lm-evaluation-harness, which is not installed\n"
        "  got      arc_easy, mmlu\n"
        "  hint     pip install 'neftcli[tasks]'"
    )


@pytest.mark.slow
def test_check_tasks_accepts_tasks_of_the_harness() -> None:
    """The harness reads its whole index."""
    try:
        check_tasks(["arc_easy", "mmlu", "ai2_arc", "truthfulqa_mc2"])
    finally:
        tasks_module.task_manager.cache_clear()


def test_check_tasks_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known names are accepted; all problems with others are reported together."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    own = Path(lm_eval.__file__).parent / "tasks"
    folders = [own / name for name in ("arc", "hellaswag", "humaneval", "mmmu", "mmlu/default")]
    manager = TaskManager(include_defaults=False, include_path=folders)
    monkeypatch.setattr(tasks_module, "task_manager", lambda built_in: manager)
    check_tasks(["arc_easy", "mmlu", "ai2_arc"])
    assert message(lambda: check_tasks(["arc_easy", "hela_swag", "humaneval", "mmmu_val", "qqqqqq"])) == (
        "evaluation.tasks: lm-evaluation-harness has no such task\n"
        "  got      hela_swag\n"
        "  did you mean hellaswag?\n"
        "  hint     lm-eval ls tasks\n"
        "humaneval runs code that the model writes, which neft does not support\n"
        "  hint     lm-eval ls tasks\n"
        "mmmu_val uses images or audio; neft evaluates text models\n"
        "  hint     lm-eval ls tasks\n"
        "evaluation.tasks: lm-evaluation-harness has no such task\n"
        "  got      qqqqqq\n"
        "  hint     lm-eval ls tasks"
    )
    assert message(lambda: run_tasks(MODELS["llama"], TOKENIZER, ["arc_easy"], 2)) == (
        "arc_easy: its data is neither on this machine nor reachable on the hub\n"
        "  got      Couldn't reach 'allenai/ai2_arc' on the Hub (OfflineModeIsEnabled)\n"
        "  hint     connect to the network, unset HF_HUB_OFFLINE, and run the command again"
    )


def test_check_tasks_invalid_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fruit.yaml").write_text("dataset_path: json\ntest_split: test\n", encoding="utf-8")
    Path("list.yaml").write_text("- fruit\n", encoding="utf-8")
    Path("broken.yaml").write_text("task: [fruit\n", encoding="utf-8")
    Path("group.yaml").write_text("group: garden\ntask: [fruit, herbs]\n", encoding="utf-8")
    Path("unsafe.yml").write_text("task: unsafe\nunsafe_code: true\n", encoding="utf-8")
    files = ["friut.yaml", "fruit.yaml", "list.yaml", "broken.yaml", "group.yaml", "unsafe.yml"]
    assert message(lambda: check_tasks(files)) == (
        "evaluation.tasks: no such task file\n"
        "  got      friut.yaml\n"
        "  did you mean fruit.yaml?\n"
        "  hint     ls .\n"
        "fruit.yaml: a task file must name its task\n"
        "  got      dataset_path, test_split\n"
        "  hint     task: my_task\n"
        "list.yaml: a task file must name its task\n"
        "  got      no settings\n"
        "  hint     task: my_task\n"
        "broken.yaml: a task file must be YAML\n"
        "  got      while parsing a flow sequence in \"broken.yaml\", line 1, column 7 expected ',' or ']', "
        "but got '<stream end>' in \"broken.yaml\", line 2, column 1\n"
        "  hint     lm-eval ls tasks\n"
        "group.yaml: a task file must contain one task, not a group\n"
        "  got      group, task\n"
        "  hint     name its tasks one by one\n"
        "unsafe.yml runs code that the model writes, which neft does not support\n"
        "  hint     lm-eval ls tasks"
    )


@pytest.mark.parametrize(
    ("replaced", "by", "expected"),
    [
        (
            "rows.jsonl",
            "raws.jsonl",
            "{file}: its data files are missing\n"
            "  got      Unable to find '{folder}/raws.jsonl'\n"
            "  hint     name files relative to the task's YAML file",
        ),
        (
            "output_type: multiple_choice",
            "output_type: choices",
            "{file} must be a task that lm-evaluation-harness can load\n"
            "  got      ValueError: Got invalid output_type 'choices', must be in "
            "'loglikelihood,multiple_choice,loglikelihood_rolling,generate_until'\n"
            "  hint     correct {file}",
        ),
        (
            "task: fruit",
            "task: fruit\n    process_docs: !function counted.absent",
            "{file} must be a task that lm-evaluation-harness can load\n"
            "  got      AttributeError: Module '{folder}/counted.py' has no function 'absent' (from YAML in {folder})\n"
            "  hint     correct {file}",
        ),
    ],
)
def test_run_tasks_that_cannot_be_loaded(replaced: str, by: str, expected: str, task_file: Callable[..., str]) -> None:
    """Nothing is evaluated before all tasks are loaded, and the model is unchanged."""
    model = tiny_model("llama")
    model.register_forward_pre_hook(_raising(AssertionError("evaluated")))
    file = task_file(FRUIT.replace(replaced, by))
    found = message(lambda: run_tasks(model, TOKENIZER, [task_file(WRITING), file], 2))
    assert found == expected.format(file=file, folder=Path(file).parent)
    assert model.training


def test_run_tasks_missing_package(task_file: Callable[..., str]) -> None:
    file = task_file(FRUIT)
    Path(file).with_name("counted.py").write_text("import no_such_package\n", encoding="utf-8")
    Path(file).write_text(f"{textwrap.dedent(FRUIT)}process_docs: !function counted.numbered\n", encoding="utf-8")
    assert message(lambda: run_tasks(MODELS["llama"], TOKENIZER, [file], 2)) == (
        f"{file} needs a Python package that is not installed\n"
        "  got      No module named 'no_such_package'\n"
        "  hint     pip install no_such_package"
    )
