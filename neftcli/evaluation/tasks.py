"""Benchmark tasks by lm-evaluation-harness, which show whether a tuned model keeps its abilities.

Each task gives one result with the value of every document, so two models are compared document by document. Prompts
and random seeds are the harness's own, so values agree with its command line; chat template, few-shot examples and a
limit can be set.
"""

from __future__ import annotations

import copy
import math
import os
import random
import shlex
import sys
import tempfile
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from numbers import Real
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from neftcli.errors import InputError, Problem, describe_error, first_line
from neftcli.evaluation.adaptive_batches import oom_notice
from neftcli.evaluation.task_code import TRUST_VARIABLE, code_in_task, sandboxed_templates
from neftcli.evaluation.task_files import TASK_FILE_ENDINGS, is_task_file
from neftcli.events import Notice, Observer
from neftcli.neftune.evaluation_mode import evaluation_mode
from neftcli.recipe.schema import TaskSettings
from neftcli.system.device import is_out_of_memory
from neftcli.system.paths import closest_path, expand_home, is_file, is_folder
from neftcli.wording import count_noun

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

MAIN_METRICS = ("acc_norm", "acc")  # the first of these that a task has, or else its own first metric
LIST_TASKS = "lm-eval ls tasks"
FEWSHOT_SEED = 1234  # the harness's own
DEFAULT_SETTINGS = TaskSettings()


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Result of a model in one task.

    Attributes:
        task: Name of the task or group.
        metric: Its main metric, such as "acc_norm".
        value: The metric over all documents.
        higher_is_better: True if a higher value is better.
        per_example: Value of each document, in order; `value` is their mean. Empty if the metric is not a mean over
            documents, e.g. a perplexity or an F1.
        documents: SHA-256 over the documents' hashes. Only results of the same documents may be paired.
    """

    task: str
    metric: str
    value: float
    higher_is_better: bool
    per_example: tuple[float, ...]
    documents: str


def check_tasks(tasks: Sequence[str], settings: TaskSettings = DEFAULT_SETTINGS) -> None:
    """Check tasks before a model is loaded, except for their data.

    Args:
        tasks: Names of tasks, groups or tags of lm-evaluation-harness, or paths of YAML files with one task each.
        settings: The recipe's `evaluation.task_settings`.

    Raises:
        InputError: The harness isn't installed, a name is unknown, a file is missing, contains no task or would run
            Python code, or a task would run code that the model writes or use images or audio.
    """
    if not tasks:
        return
    if find_spec("lm_eval") is None:
        raise InputError(
            Problem(
                "evaluation.tasks needs lm-evaluation-harness, which is not installed",
                ", ".join(tasks),
                "pip install 'neftcli[tasks]'",
            )
        )
    problems = list(_settings_problems(settings))
    for task in tasks:
        problem = _check_task_file(task) if is_task_file(task) else _check_task_name(task)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise InputError(*problems)


def _settings_problems(settings: TaskSettings) -> Iterator[Problem]:
    """Yield problems of settings that the harness would reject or misread."""
    if settings.fewshot_as_multiturn and not settings.apply_chat_template:
        message = "evaluation.task_settings.fewshot_as_multiturn needs the chat template"
        yield Problem(message, "apply_chat_template false", "--apply-chat-template")
    if settings.limit is not None and settings.limit >= 1 and not settings.limit.is_integer():
        message = "evaluation.task_settings.limit must be a number of documents, or a share below 1"
        yield Problem(message, f"{settings.limit:g}", f"--limit {math.ceil(settings.limit)}")


def describe_settings(settings: TaskSettings) -> str:
    """Describe the settings that differ from the harness's defaults; an empty string if none does."""
    parts = []
    if settings.apply_chat_template:
        parts.append("in the model's chat template")
    if settings.num_fewshot is not None:
        turns = ", as separate turns" if settings.num_fewshot and settings.multiturn() else ""
        parts.append(f"with {count_noun(settings.num_fewshot, 'example')} before each question{turns}")
    if settings.limit is not None:
        whole = settings.limit >= 1
        share = count_noun(settings.limit, "document") if whole else f"{settings.limit:.3g} of the documents"
        parts.append(f"on the first {share} of each task")
    if settings.system_instruction is not None:
        parts.append("with a system instruction")
    return "; ".join(parts)


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    batch_size: int,
    autocast: AbstractContextManager[object] | None = None,
    observer: Observer | None = None,
    settings: TaskSettings = DEFAULT_SETTINGS,
) -> list[TaskResult]:
    """Run the tasks, and return their results in order.

    A group with a mean of its own (mmlu) gives one result; a tag, or a group without a mean, one for each of its tasks.

    Args:
        model: In any mode and on any device; it is evaluated in eval mode without noise, and its mode is restored.
        tokenizer: Its tokenizer, with a chat template if `settings` needs one.
        tasks: As in `check_tasks`. Files that a YAML file names (data_files, include, !function) are relative to its
            folder.
        batch_size: Texts per batch; halved on OOM.
        autocast: Precision of the forward pass; as loaded if None. Log-likelihoods are summed in float32 in any case.
        observer: Receives notices if the batch size is halved, or if a task fixes its number of few-shot examples.
        settings: The recipe's `evaluation.task_settings`.

    Raises:
        InputError: As in `check_tasks`, a task's data can't be reached or used, or there is no chat template.
    """
    check_tasks(tasks, settings)
    if not tasks:
        return []
    if settings.apply_chat_template and not tokenizer.chat_template:
        no_template = "evaluation.task_settings.apply_chat_template needs a chat template, and this model has none"
        raise InputError(Problem(no_template, ", ".join(tasks), "leave --apply-chat-template out"))
    results: list[TaskResult] = []
    # Tasks may print, and stdout is for results.
    with evaluation_mode(model), redirect_stdout(sys.stderr), _untied_weights(model), sandboxed_templates():
        harness_model = _wrap_model(model, tokenizer, batch_size, autocast)
        harness_model.observer = observer
        # All tasks are loaded before the first one runs, which may take hours. Each is seeded, so that its result
        # does not depend on earlier tasks.
        loaded = {}
        for task in dict.fromkeys(tasks):
            with _harness_seeds():
                loaded[task] = _load_task(task)
        for task, harness_tasks in loaded.items():
            with _harness_seeds(), nullcontext() if is_task_file(task) else _empty_folder():
                results += _evaluate_task(harness_model, harness_tasks, settings, observer)
    return results


def _check_task_file(task: str) -> Problem | None:
    """Return the problem of a task file, as far as it shows without the data."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = expand_home(task)
    if is_folder(path):
        hint = f"ls {shlex.quote(str(path))}    then name one of its files"
        return Problem("evaluation.tasks: a task is a YAML file, and this is a folder", task, hint)
    if not is_file(path):
        nearest = closest_path(path, endings=TASK_FILE_ENDINGS)
        hint = f"ls {shlex.quote(str(path.parent))}"
        return Problem("evaluation.tasks: no such task file", task, hint, nearest)
    try:
        text = path.read_bytes()
    except OSError as error:
        got = error.strerror or str(error)
        return Problem(f"{task}: this task file can't be read", got, f"chmod +r {shlex.quote(str(path))}")
    if b"\0" in text and not text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return Problem(f"{task}: a task file must be YAML text", "binary data", LIST_TASKS)
    try:
        content = YAML(typ="rt").load(path)  # names it in errors; the only loader that accepts the harness's !function
    except (YAMLError, UnicodeDecodeError) as error:
        return Problem(f"{task}: a task file must be YAML", " ".join(str(error).split()), LIST_TASKS)
    if not isinstance(content, Mapping):
        return Problem(f"{task}: a task file must name its task", "no settings", "task: my_task")
    keys = ", ".join(map(str, content))
    if "group" in content:
        return Problem(f"{task}: a task file must contain one task, not a group", keys, "name its tasks one by one")
    if "task" not in content and "include" not in content:
        return Problem(f"{task}: a task file must name its task", keys, "task: my_task")
    if os.environ.get(TRUST_VARIABLE) != "1" and (code := code_in_task(path)):
        return Problem(
            f"{task}: neft does not run Python code of a task file unless you allow it",
            code,
            f"read the code; if you trust it: {TRUST_VARIABLE}=1 neft ...",
        )
    return _check_supported(task, content)


def _check_task_name(task: str) -> Problem | None:
    """Return the problem of a name, with the closest names that the harness knows."""
    index = task_manager(True).task_index
    if task not in index:
        nearest = ", ".join(get_close_matches(task, index, n=3))
        return Problem("evaluation.tasks: lm-evaluation-harness has no such task", task, LIST_TASKS, nearest)
    for configuration in _configurations(task, index):
        problem = _check_supported(task, configuration)
        if problem is not None:
            return problem
    return None


def _configurations(name: str, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of a task, or of all tasks of a group or tag."""
    if name not in index:
        return
    settings = index[name].cfg or {}
    members = settings["task"] if isinstance(settings.get("task"), list) else ()
    for member in (*members, *(() if settings else sorted(index[name].tags))):
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str):
            yield from _configurations(inner, index)
    yield settings


def _check_supported(task: str, settings: Mapping[str, Any]) -> Problem | None:
    """Return the reason why neft can't run a task with any model."""
    if settings.get("unsafe_code"):
        return Problem(f"{task} runs code that the model writes, which neft does not support", hint=LIST_TASKS)
    if settings.get("doc_to_image") or settings.get("doc_to_audio"):
        return Problem(f"{task} uses images or audio; neft evaluates text models", hint=LIST_TASKS)
    return None


@contextmanager
def _empty_folder() -> Iterator[None]:
    """Change to an empty folder.

    Tasks of the harness load metrics and datasets by name. A folder with that name in the current folder would take
    precedence, and the code of such a metric would run.
    """
    with tempfile.TemporaryDirectory(prefix="neft-") as folder, chdir(folder):
        yield


@cache
def task_manager(built_in: bool) -> Any:
    """Return the harness's index of tasks; its own has 14,000 files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=built_in)


def _load_task(task: str) -> Any:
    """Load a task of the harness with its data."""
    try:
        if not is_task_file(task):
            with _empty_folder():
                return task_manager(True).load([task])
        file = expand_home(task).resolve()
        with chdir(file.parent):
            return task_manager(False).load([str(file)])
    except Exception as error:  # code of a task and the hub may raise anything
        raise InputError(_loading_problem(task, error)) from error


def _loading_problem(task: str, error: Exception) -> Problem:
    reason = first_line(error)
    if isinstance(error, ModuleNotFoundError):
        return Problem(f"{task} needs a Python package that is not installed", reason, f"pip install {error.name}")
    if "gated" in reason:
        return Problem(f"{task}: its data is gated", reason, "hf auth login")
    if isinstance(error, FileNotFoundError):
        hint = "name files relative to the task's YAML file" if is_task_file(task) else LIST_TASKS
        return Problem(f"{task}: its data files are missing", reason, hint)
    if isinstance(error, PermissionError | IsADirectoryError):
        hint = "name readable files in the task's YAML file" if is_task_file(task) else LIST_TASKS
        return Problem(f"{task}: a file that it needs can't be read", reason, hint)
    if isinstance(error, OSError):
        hint = "connect to the network, unset HF_HUB_OFFLINE, and run the command again"
        return Problem(f"{task}: its data is neither on this machine nor reachable on the hub", reason, hint)
    hint = f"correct {task}" if is_task_file(task) else LIST_TASKS
    return Problem(f"{task} must be a task that lm-evaluation-harness can load", describe_error(error), hint)


def _evaluate_task(
    harness_model: Any, loaded: Any, settings: TaskSettings, observer: Observer | None
) -> list[TaskResult]:
    """Return the results of one task, or of the tasks of a group or tag."""
    from lm_eval import evaluate

    for name, part in loaded["tasks"].items():
        own = part.get_config("num_fewshot")
        if own is None or (settings.num_fewshot is not None and own != 0):
            part.set_config("num_fewshot", settings.num_fewshot or 0)
        elif own == 0 and settings.num_fewshot and observer is not None:  # as in the harness
            observer.notify(Notice(f"{name}: its file sets 0 examples; --num-fewshot is ignored"))
        part.set_fewshot_seed(FEWSHOT_SEED)
    limit = settings.limit
    output = evaluate(
        harness_model,
        loaded,
        limit=int(limit) if limit is not None and limit >= 1 else limit,
        bootstrap_iters=0,
        system_instruction=settings.system_instruction,
        apply_chat_template=settings.apply_chat_template,
        fewshot_as_multiturn=settings.multiturn(),
    )
    parts_of = {name: [part.task_name for part in group.get_all_tasks()] for name, group in loaded["groups"].items()}
    inner = {child for children in loaded["group_map"].values() for child in children}
    results, covered = [], set()
    for name, parts in parts_of.items():
        if name not in inner and _find_main_metric(output["results"][name]):
            results.append(_build_result(name, parts, output))
            covered.update(parts)
    return results + [_build_result(name, [name], output) for name in loaded["tasks"] if name not in covered]


def _find_main_metric(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return metric and filter of the main metric among "acc,none", "acc_stderr,none" and so on."""
    metrics = []
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, Real) and not metric.endswith("_stderr"):
            metrics.append((metric, filter_name))
    for main in MAIN_METRICS:
        for pair in metrics:
            if pair[0] == main:
                return pair
    return metrics[0] if metrics else None


def _build_result(name: str, parts: Sequence[str], output: Mapping[str, Any]) -> TaskResult:
    """Build the result of a task, or of a group from its tasks."""
    main = _find_main_metric(output["results"][name])
    if main is None:
        raise InputError(Problem(f"{name}: a task must have a metric that is one number", hint=LIST_TASKS))
    metric, filter_name = main
    value = float(output["results"][name][f"{metric},{filter_name}"])
    samples = [sample for part in parts for sample in output["samples"][part] if sample["filter"] == filter_name]
    per_example = tuple(float(sample[metric]) for sample in samples if isinstance(sample.get(metric), Real))
    is_complete = len(per_example) == len(samples) > 0
    is_their_mean = is_complete and math.isclose(fmean(per_example), value, abs_tol=1e-9)
    return TaskResult(
        task=name,
        metric=metric,
        value=value,
        higher_is_better=output["higher_is_better"][name].get(metric) is not False,
        per_example=per_example if is_their_mean else (),
        documents=sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest(),
    )


def _wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    autocast: AbstractContextManager[object] | None,
) -> Any:
    """Wrap the model for the harness."""
    import torch

    device = model.device.type
    # The harness opens its own autocast, which would disable the caller's.
    with autocast or nullcontext():
        type_now = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _harness_model_class()(
        pretrained=model,
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),  # the harness may add a pad token
        batch_size=batch_size,
        mixed_precision_dtype=type_now,
        softmax_dtype=torch.float32,
    )


@cache
def _harness_model_class() -> Any:
    from lm_eval.models.huggingface import HFLM

    class QuietAdaptiveModel(HFLM):
        """Without progress bars, and with a batch size that is halved on OOM.

        Requests are sorted by length, the longest first, so usually the first batch fails and little is repeated.
        """

        observer: Observer | None = None

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:
            compute = super()._loglikelihood_tokens
            return self._with_halved_batches(lambda: compute(requests, disable_tqdm=True, override_bs=override_bs))

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            compute = super().generate_until
            return self._with_halved_batches(lambda: compute(requests, disable_tqdm=True))

        def _with_halved_batches(self, compute: Callable[[], T]) -> T:
            while True:
                try:
                    return compute()
                except (RuntimeError, MemoryError) as error:
                    if self.batch_size_per_gpu == 1 or not is_out_of_memory(error):
                        raise
                # After the handler, whose error would keep the batch's tensors alive.
                size = self.batch_size_per_gpu
                self.batch_size_per_gpu //= 2
                if self.observer is not None:
                    self.observer.notify(oom_notice(size, self.batch_size_per_gpu))

    return QuietAdaptiveModel


@contextmanager
def _untied_weights(model: torch.nn.Module) -> Iterator[None]:
    """Keep the harness from tying the weights of `model`, which would undo a separately tuned output layer."""
    vars(model)["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


@contextmanager
def _harness_seeds() -> Iterator[None]:
    """Use the harness's seeds for Python, NumPy and torch within the block, and restore the random states after it."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(0)
        np.random.seed(1234)
        torch.manual_seed(1234)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
