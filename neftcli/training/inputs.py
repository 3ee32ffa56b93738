"""Inputs of a run: resolve the model's name, read and tokenise the rows, and check that they fit together."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from neftcli.data.chat import ChatFormat, load_chat_format
from neftcli.data.mixture import ExampleSplits, read_examples, require_local_sources
from neftcli.data.prepare import PreparedData, data_fingerprint, prepare
from neftcli.data.sources import HUB_ALIASES, is_hub_id
from neftcli.data.tokens import split_prompt_and_reference
from neftcli.errors import Checks, DataError, Problem
from neftcli.events import Notice, Observer, Phase, PhaseId
from neftcli.events.data import BUILTIN
from neftcli.metrics.registry import METRICS_BY_ID
from neftcli.models.chat_templates import NAMED_TEMPLATES, validate_chat_template
from neftcli.models.gguf import is_gguf_converted
from neftcli.models.limits import load_embedding_size, max_prompt_length, require_embeddings, require_positions
from neftcli.models.loading import require_pinned_code
from neftcli.models.new_tokens import extended_size, new_token_ids
from neftcli.models.registry import ALIASES, ModelReference, resolve_model
from neftcli.models.validate import validate_model, validate_weight_files
from neftcli.recipe.loading import list_path_values
from neftcli.recipe.schema import Data
from neftcli.runs.directory import RunDirectory, require_valid_name
from neftcli.system.cache_folder import open_cache_folder
from neftcli.system.hub import notify_if_unreachable
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.system.paths import exists, expand_home
from neftcli.training.progress import ReadingProgress, TokenisingProgress
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neftcli.recipe.schema import Recipe


class _Reference(NamedTuple):
    """A reference answer, measured as an answer to find out which metrics have a value."""

    text: str


def read_inputs(recipe: Recipe, observer: Observer, *, weights: bool = True) -> tuple[ModelReference, ExampleSplits]:
    """Resolve the model's name, read the rows, and check the model's `config.json`.

    Bad data is rejected before torch is imported.

    Args:
        recipe: The resolved recipe.
        observer: Receives the progress.
        weights: Check the weight files as well, since they will be loaded.

    Raises:
        InputError: The model or the rows can't be used.
    """
    checks = Checks()
    with checks:
        reference = resolve_model(recipe.model.name, recipe.model.revision)
    with checks:
        require_valid_name(recipe.run_name())
    with checks:
        validate_chat_template(recipe.model.chat_template)
    with checks:
        require_local_sources(recipe.data)
    checks.raise_errors()
    require_pinned_code(reference, recipe.model.trust_remote_code)
    if reference.kind == "gguf" and not is_gguf_converted(Path(reference.location)):
        with open_cache_folder(f"{Path(reference.location).name} as safetensors"):
            pass  # converted later; a folder that can't be written is an error before rows are read
    if reference.kind == "hub" or any(map(is_hub_id, recipe.data.named_sources())):
        notify_if_unreachable(observer)
    observer.notify(Phase(PhaseId.READING_DATA))
    examples = read_examples(recipe.data, ReadingProgress(observer))
    validate_model(reference, recipe, trains=True)
    if weights:
        validate_weight_files(reference)
    wanted, held_out = recipe.data.held_out_rows, len(examples.held_out)
    is_default = wanted == Data.held_out_rows  # which may be more than there are
    if held_out < wanted and not is_default and examples.is_random_split:
        rows = count_noun(held_out, "row is held out", "rows are held out")
        limits = "at most a fifth of the rows, and rows with the same prompt stay together"
        observer.notify(Notice(f"{rows}, not {wanted}: {limits}"))
    return reference, examples


def require_unchanged_rows(recipe: Recipe, runs: Sequence[Path], observer: Observer) -> None:
    """Check that runs were trained on the rows that the recipe's sources have now.

    Args:
        recipe: The resolved recipe.
        runs: Folders of the runs.
        observer: Receives the progress.

    Raises:
        DataError: The rows have changed, so a new run can't be compared with these.
    """
    prepare_libraries()
    if any(map(is_hub_id, recipe.data.named_sources())):
        notify_if_unreachable(observer)
    observer.notify(Phase(PhaseId.READING_DATA))
    examples = read_examples(recipe.data, ReadingProgress(observer))
    now = data_fingerprint(examples.train, examples.held_out)
    problems = []
    for folder in runs:
        before = RunDirectory(folder).record().get("data_sha256")
        if before != now:
            source = recipe.data.source_name()
            message = f"{source}: the rows have changed since {folder} was trained; both runs need the same"
            received = f"data_sha256 {now[:20]} ({folder.name}: {str(before)[:20]})"
            problems.append(Problem(message, received, "--name NAME    trains both runs in new folders"))
    if problems:
        raise DataError(*problems)


def prepare_inputs(
    recipe: Recipe, observer: Observer, *, weights: bool = True
) -> tuple[PreparedData, ChatFormat, list[str]]:
    """Read and tokenise the rows of a recipe that is not trained.

    For `weights` see `read_inputs`; for the result and the errors see `tokenize_inputs`.
    """
    prepare_libraries()
    reference, examples = read_inputs(recipe, observer, weights=weights)
    with tempfile.TemporaryDirectory() as folder, capture_library_output(Path(folder) / "log"):
        return tokenize_inputs(recipe, reference, examples, observer)


def tokenize_inputs(
    recipe: Recipe, reference: ModelReference, examples: ExampleSplits, observer: Observer, *, answers: bool = False
) -> tuple[PreparedData, ChatFormat, list[str]]:
    """Load the tokenizer, tokenise the rows, and check that rows and answers fit the model.

    Args:
        recipe: The resolved recipe.
        reference: Its model.
        examples: The examples of its rows.
        observer: Receives the progress.
        answers: Answers to held-out prompts are generated, regardless of evaluation.samples.

    Returns:
        The rows, the tokenizer with its chat template, and notices about it.

    Raises:
        InputError: The tokenizer or the template can't be used, no token would carry loss, evaluations during training
            need held-out rows or reference answers that are not there, or the model has too few positions for a row or
            an answer.
    """
    chat, notices = load_chat_format(recipe, reference, examples.row_format, observer)
    prepared = prepare(examples, recipe.data, chat, TokenisingProgress(observer))
    _require_selection_rows(recipe, prepared)
    _require_room(recipe, reference, prepared, answers=answers)
    vocabulary = load_embedding_size(reference, recipe.model.trust_remote_code)
    _require_embedded_rows(prepared, chat, extended_size(vocabulary, chat.tokenizer, recipe))
    if unused := _find_unused_tokens(recipe, prepared, chat):
        notices.append(f"model.new_tokens: not in any training row: {', '.join(unused)}")
    return prepared, chat, notices


def _find_unused_tokens(recipe: Recipe, prepared: PreparedData, chat: ChatFormat) -> list[str]:
    """Return the new tokens that occur in no training row."""
    ids = dict(zip(new_token_ids(chat.tokenizer, recipe), recipe.model.new_tokens, strict=True))
    rows = iter(prepared.train)
    while ids and (row := next(rows, None)) is not None:
        for token in ids.keys() & row.input_ids:
            del ids[token]
    return list(ids.values())


def report_data(prepared: PreparedData, notices: list[str], observer: Observer) -> None:
    """Notify the observer of the counts of the rows, and of notices about the tokenizer."""
    observer.notify(prepared.counts)
    for notice in notices:
        observer.notify(Notice(notice))


def local_paths(recipe: Recipe) -> list[str]:
    """Return the values of a recipe that are paths of existing files or folders, relative to the current folder."""
    names = {BUILTIN, *HUB_ALIASES, *ALIASES, *NAMED_TEMPLATES}  # they take precedence over a folder of the same name
    return [value for value in list_path_values(recipe) if value not in names and exists(expand_home(value))]


def _require_selection_rows(recipe: Recipe, prepared: PreparedData) -> None:
    """Check that there are held-out rows if evaluations during training select the weights, end it, or need answers.

    Raises:
        DataError: There is none: too few rows, or none with loss within data.max_length; or a metric of
            evaluation.during has no value for any of them.
    """
    selects, during = recipe.training.selects_weights(), recipe.evaluation.during
    if (selects or during) and not prepared.held_out:
        option = "training.keep best" if recipe.training.keep == "best" else "training.patience"
        option = option if selects else "evaluation.during"
        message = f"{recipe.data.source_name()}: {option} needs held-out rows, and no row could be held out"
        received = (
            f"{count_noun(len(prepared.train), 'row')} for training, data.held_out_rows {recipe.data.held_out_rows}"
        )
        raise DataError(Problem(message, received, "--held-out FILE    with rows to evaluate on"))
    if not during:
        return
    from neftcli.metrics.answer_means import mean_answer_metrics  # imports regex

    examples = prepared.held_out_examples[: recipe.evaluation.during_rows]
    references = [_Reference(split_prompt_and_reference(example)[1]) for example in examples]
    needed = [metric for metric in dict.fromkeys(during) if METRICS_BY_ID[metric].needs_reference]
    values = mean_answer_metrics(needed, references, [reference.text for reference in references])
    for metric in needed:
        if values[metric] is None:
            prompts = count_noun(len(references), "held-out prompt")
            others = ",".join(other for other in during if other != metric)
            hint = f"--during {others}" if others else "leave it out"
            message = f"evaluation.during: {metric} has no value for any of the first {prompts}"
            why = "no reference answer" if metric != "exact_match" else "no reference answer of at most five words"
            raise DataError(Problem(message, why, f"{hint}, or --set evaluation.during_rows=N with more prompts"))


def _require_room(recipe: Recipe, reference: ModelReference, prepared: PreparedData, *, answers: bool) -> None:
    """Check that the model has positions for the rows, and for the answers that are generated.

    Raises:
        ModelError: It has too few, or its configuration can't be read.
    """
    from neftcli.models.loading import load_config

    config = load_config(reference, recipe.model.trust_remote_code)
    require_positions(config, max(prepared.counts.train.longest, prepared.counts.held_out.longest))
    if prepared.held_out and (answers or recipe.evaluation.samples or recipe.evaluation.during):
        max_prompt_length(config, recipe.evaluation.generation.max_new_tokens)


def _require_embedded_rows(prepared: PreparedData, chat: ChatFormat, vocabulary: int | None) -> None:
    """Check that the model has an embedding for every token that it is trained or measured on.

    Raises:
        ModelError: A row holds a token beyond the model's vocabulary.
    """
    for rows in (prepared.train, prepared.held_out):
        require_embeddings(((row.location, row.input_ids) for row in rows), chat.tokenizer, vocabulary)
