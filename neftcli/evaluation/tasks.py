"""Benchmark tasks by lm-evaluation-harness: whether a tuned model still can what it could before.

One result a task, with the value of every document, so that two models are compared document by document. Prompts are
the harness's own, with a chat template, examples and a limit if they are set, and its random seeds are those
of its command line, so values agree with it.
"""

from __future__ import annotations

import copy
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from neftcli.errors import InputError, Problem
from neftcli.evaluation.adaptive_batches import oom_notice
from neftcli.evaluation.task_code import TRUST, code_in_task, sandboxed_templates
from neftcli.events import Notice, Observer
from neftcli.neftune.evaluation_mode import evaluation_mode
from neftcli.recipe.schema import TaskSettings
from neftcli.system.device import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")

MAIN_METRICS = ("acc_norm", "acc")  # the first that a task has; else its own first
LIST_TASKS = "lm-eval ls tasks"
FEWSHOT_SEED = 1234  # the harness's own
PLAIN = TaskSettings()


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A model's result in one task.

    Attributes:
        task: Name of the task or group.
        metric: Its main metric, such as "acc_norm".
        value: The metric over all documents.
        higher_is_better: Whether a higher value is a better one.
        per_example: Value of each document, in their order; `value` is their mean. Empty where the metric is no mean
            of values of single documents, as a perplexity or an F1 is.
        documents: SHA-256 over the documents' hashes. Only results of the same documents may be paired.
    """

    task: str
    metric: str
    value: float
    higher_is_better: bool
    per_example: tuple[float, ...]
    documents: str


def check_tasks(tasks: Sequence[str], settings: TaskSettings = PLAIN) -> None:
    """Finds out before a model is loaded what stands in the way of `tasks`; their data isn't looked for yet.

    Args:
        tasks: Names of tasks, groups or tags that lm-evaluation-harness knows, or paths of YAML files of one task each.
        settings: The recipe's `evaluation.task_settings`.

    Raises:
        InputError: The harness isn't installed, a name is not known, a file is missing, holds no task or would run
            Python code of its own, or a task would run code that the model writes or show it images or sounds.
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
    problems += [
        problem for task in tasks if (problem := _file_problem(task) if _is_file(task) else _name_problem(task))
    ]
    if problems:
        raise InputError(*problems)


def _settings_problems(settings: TaskSettings) -> Iterator[Problem]:
    """Problems of settings that the harness would reject or misread."""
    if settings.fewshot_as_multiturn and not settings.apply_chat_template:
        needs = "evaluation.task_settings.fewshot_as_multiturn needs the chat template"
        yield Problem(needs, "apply_chat_template false", "--apply-chat-template")
    if settings.limit is not None and settings.limit >= 1 and not settings.limit.is_integer():
        said = "evaluation.task_settings.limit must be a number of documents, or a share below 1"
        yield Problem(said, f"{settings.limit:g}", f"--limit {math.ceil(settings.limit)}")


def describe_settings(settings: TaskSettings) -> str:
    """The settings that differ from the harness's defaults, in words; "" if none does."""
    parts = []
    if settings.apply_chat_template:
        parts.append("in the model's chat template")
    if settings.num_fewshot is not None:
        turns = ", as separate turns" if settings.num_fewshot and settings.multiturn() else ""
        parts.append(f"with {settings.num_fewshot} examples before each question{turns}")
    if settings.limit is not None:
        whole = settings.limit >= 1
        share = f"{settings.limit:g} documents" if whole else f"{settings.limit:.3g} of the documents"
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
    settings: TaskSettings = PLAIN,
) -> list[TaskResult]:
    """The results of `model`, in the order of `tasks`.

    A group with a mean of its own (mmlu) gives one result; a tag, or a group without, one for each of its tasks.

    Args:
        model: In any mode and on any device; it is evaluated in eval mode, where no noise is added, and put back.
        tokenizer: Its tokenizer, with a chat template if `settings` asks for it.
        tasks: As in `check_tasks`. Files that a YAML file names (data_files, include, !function) are looked for in
            its own folder.
        batch_size: Texts computed at once; fewer where memory is short.
        autocast: Arithmetic of the forward pass; as loaded if None. Log-likelihoods are summed in float32 anyway.
        observer: Receives notices if the batch size is halved, or if a task fixes its own number of examples.
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
    # What tasks print would get among the results on stdout.
    with evaluation_mode(model), redirect_stdout(sys.stderr), _own_weights(model), sandboxed_templates():
        harness_model = _harness_model(model, tokenizer, batch_size, autocast)
        harness_model.observer = observer
        # All are loaded before the first is evaluated, which may take hours. Each is seeded, so that its result does
        # not depend on the tasks before it.
        loaded = {}
        for task in dict.fromkeys(tasks):
            with _seeded():
                loaded[task] = _loaded(task)
        for task, harness_tasks in loaded.items():
            with _seeded(), nullcontext() if _is_file(task) else _empty_folder():
                results += _evaluated(harness_model, harness_tasks, settings, observer)
    return results


def _is_file(task: str) -> bool:
    return Path(task).suffix in (".yaml", ".yml")


def _file_problem(task: str) -> Problem | None:
    """What is wrong with a task file, as far as can be seen without its data."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(task).expanduser()
    if not path.is_file():
        near = get_close_matches(path.name, [other.name for other in path.parent.glob("*.y*ml")], n=1)
        nearest = str(path.with_name(near[0])) if near else ""
        return Problem("evaluation.tasks: there is no file of this name", task, f"ls {path.parent}", nearest)
    try:
        content = YAML(typ="rt").load(path)  # the one kind of reading that lets the harness's !function pass
    except (YAMLError, UnicodeDecodeError) as error:
        return Problem(f"{task}: a task file must be YAML", " ".join(str(error).split()), LIST_TASKS)
    keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no settings"
    if "group" in keys.split(", "):
        return Problem(f"{task}: a task file must be of one task and not of a group", keys, "name its tasks one by one")
    if not {"task", "include"} & set(keys.split(", ")):
        return Problem(f"{task}: a task file must name its task", keys, "task: my_task")
    if os.environ.get(TRUST) != "1" and (code := code_in_task(path)):
        return Problem(
            f"{task}: Python code that a task file brings does not run unasked",
            code,
            f"read the code; if you trust it: {TRUST}=1 neft ...",
        )
    return _unfit(task, content)


def _name_problem(task: str) -> Problem | None:
    """What is wrong with a name, and the nearest that the harness knows."""
    index = _manager(True).task_index
    if task not in index:
        nearest = ", ".join(get_close_matches(task, index, n=3))
        return Problem("evaluation.tasks: lm-evaluation-harness has no task of this name", task, LIST_TASKS, nearest)
    return next((problem for config in _configurations(task, index) if (problem := _unfit(task, config))), None)


def _configurations(name: str, index: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of a task, or of all tasks of a group or tag."""
    if name not in index:
        return
    settings = index[name].cfg or {}
    members = settings["task"] if isinstance(settings.get("task"), list) else ()
    for member in (*members, *(() if settings else sorted(index[name].tags))):
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(inner, str):
            yield from _configurations(inner, index)
    yield settings


def _unfit(task: str, settings: Mapping[str, Any]) -> Problem | None:
    """Why a task can't be run here, whatever the model."""
    if settings.get("unsafe_code"):
        return Problem(f"{task} runs code that the model writes, which neft does not do", hint=LIST_TASKS)
    if settings.get("doc_to_image") or settings.get("doc_to_audio"):
        return Problem(f"{task} shows images or sounds, and neft tunes models of text", hint=LIST_TASKS)
    return None


@contextmanager
def _empty_folder() -> Iterator[None]:
    """Makes an empty folder the current one.

    Tasks of the harness load metrics and data sets by name. A folder of that name in the current one would take
    their place, and the code of such a metric would run.
    """
    with tempfile.TemporaryDirectory(prefix="neft-") as folder, chdir(folder):
        yield


@cache
def _manager(built_in: bool) -> Any:
    """The harness's index of tasks. It reads 14,000 files for its own, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=built_in)


def _loaded(task: str) -> Any:
    """The harness's task with its data."""
    try:
        if not _is_file(task):
            with _empty_folder():
                return _manager(True).load([task])
        file = Path(task).expanduser().resolve()
        with chdir(file.parent):
            return _manager(False).load([str(file)])
    except Exception as error:  # a task's own code and the hub may raise anything
        raise InputError(_loading_problem(task, error)) from error


def _loading_problem(task: str, error: Exception) -> Problem:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return Problem(f"{task} needs a Python package that is not installed", reason, f"pip install {error.name}")
    if "gated" in reason:
        return Problem(f"{task}: its data must be opened to you", reason, "hf auth login")
    if isinstance(error, FileNotFoundError):
        hint = "name files relative to the task's YAML file" if _is_file(task) else LIST_TASKS
        return Problem(f"{task}: its data must be there", reason, hint)
    if isinstance(error, OSError):
        hint = "connect to the network, unset HF_HUB_OFFLINE, and repeat the command"
        return Problem(f"{task}: its data must be on this machine or within reach on the hub", reason, hint)
    hint = f"correct {task}" if _is_file(task) else LIST_TASKS
    return Problem(
        f"{task} must be a task that lm-evaluation-harness can load", f"{type(error).__name__}: {reason}", hint
    )


def _evaluated(harness_model: Any, loaded: Any, settings: TaskSettings, observer: Observer | None) -> list[TaskResult]:
    """The results of one task, or of what a group or tag holds."""
    from lm_eval import evaluate

    for name, part in loaded["tasks"].items():
        own = part.get_config("num_fewshot")
        if own is None or (settings.num_fewshot is not None and own != 0):
            part.set_config("num_fewshot", settings.num_fewshot or 0)
        elif own == 0 and settings.num_fewshot and observer is not None:  # the harness's rule
            observer.notify(Notice(f"{name}: its file sets 0 examples; --num-fewshot is ignored"))
        part.set_fewshot_seed(FEWSHOT_SEED)
    limit = settings.limit
    found = evaluate(
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
        if name not in inner and _main_metric(found["results"][name]):
            results.append(_result(name, parts, found))
            covered.update(parts)
    return results + [_result(name, [name], found) for name in loaded["tasks"] if name not in covered]


def _main_metric(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Metric and filter of the main one among "acc,none", "acc_stderr,none" and so on."""
    names = [tuple(key.split(",", 1)) for key, value in values.items() if "," in key and isinstance(value, Real)]
    metrics = [(metric, chosen) for metric, chosen in names if not metric.endswith("_stderr")]
    preferred = (pair for wanted in MAIN_METRICS for pair in metrics if pair[0] == wanted)
    return next(preferred, metrics[0] if metrics else None)


def _result(name: str, parts: Sequence[str], found: Mapping[str, Any]) -> TaskResult:
    """The result of a task, or of a group with its tasks."""
    main = _main_metric(found["results"][name])
    if main is None:
        raise InputError(Problem(f"{name}: a task must have a metric that is one number", hint=LIST_TASKS))
    metric, chosen = main
    value = float(found["results"][name][f"{metric},{chosen}"])
    samples = [sample for part in parts for sample in found["samples"][part] if sample["filter"] == chosen]
    values = [sample.get(metric) for sample in samples]
    per_example = tuple(float(each) for each in values if isinstance(each, Real))
    is_their_mean = len(per_example) == len(values) > 0 and math.isclose(fmean(per_example), value, abs_tol=1e-9)
    return TaskResult(
        task=name,
        metric=metric,
        value=value,
        higher_is_better=found["higher_is_better"][name].get(metric) is not False,
        per_example=per_example if is_their_mean else (),
        documents=sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest(),
    )


def _harness_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    autocast: AbstractContextManager[object] | None,
) -> Any:
    """The model as the harness calls it."""
    import torch

    device = model.device.type
    # The harness opens an autocast of its own, which would switch the caller's off.
    with autocast or nullcontext():
        type_now = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return _harness_model_class()(
        pretrained=model,
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),  # it may give it a pad token
        batch_size=batch_size,
        mixed_precision_dtype=type_now,
        softmax_dtype=torch.float32,
    )


@cache
def _harness_model_class() -> Any:
    from lm_eval.models.huggingface import HFLM

    class QuietWithinMemory(HFLM):
        """Without progress bars, and with half the batch where there is not the memory for the whole.

        Requests come longest first, so it is nearly always the first batch that fails, and little is computed again.
        """

        observer: Observer | None = None

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:
            compute = super()._loglikelihood_tokens
            return self._within_memory(lambda: compute(requests, disable_tqdm=True, override_bs=override_bs))

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            compute = super().generate_until
            return self._within_memory(lambda: compute(requests, disable_tqdm=True))

        def _within_memory(self, compute: Callable[[], T]) -> T:
            while True:
                try:
                    return compute()
                except (RuntimeError, MemoryError) as error:
                    if self.batch_size_per_gpu == 1 or not is_out_of_memory(error):
                        raise
                # Behind the handler, whose error would keep the batch's tensors alive.
                whole = self.batch_size_per_gpu
                self.batch_size_per_gpu //= 2
                if self.observer is not None:
                    self.observer.notify(oom_notice(whole, self.batch_size_per_gpu))

    return QuietWithinMemory


@contextmanager
def _own_weights(model: torch.nn.Module) -> Iterator[None]:
    """Keeps the harness from tying the weights of `model`, which would undo an output layer that is tuned apart."""
    vars(model)["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


@contextmanager
def _seeded() -> Iterator[None]:
    """The harness's seeds for Python, NumPy and torch within the block; the caller's random states come back."""
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
