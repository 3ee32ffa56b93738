"""The model card of a repository on the hub: the run's card, with its results as metadata and its comparisons."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import InputError, Problem, first_line
from neftcli.runs.catalog import stored_verdicts
from neftcli.runs.markdown import escape_markdown, quote_markdown
from neftcli.system.paths import exists
from neftcli.training.model_card import RECIPE_SENTENCE, base_model_lines

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

    from neftcli.evaluation.targets import EvalTarget
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.directory import RunDirectory


def hub_card(file: Path, run: RunDirectory, target: EvalTarget, repository: str) -> ModelCard:
    """Return the card for a repository.

    Args:
        file: The card of the run's model, or of the merged model.
        run: The run.
        target: The same with its recipe and its base model.
        repository: The repository, as owner/name.

    Raises:
        InputError: There is no card, or its metadata is not YAML.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        text = file.read_text(encoding="utf-8").replace(RECIPE_SENTENCE, "The full recipe is in `recipe.yaml`.")
        text = _load_base_from_hub(text, target.reference)
        card = ModelCard(text, ignore_metadata_errors=False)
        card.data.model_name = repository.rpartition("/")[2]
        card.data.eval_results = _eval_results(run, target.recipe)
        card.data.pipeline_tag = "text-generation"
    except FileNotFoundError:
        hint = f"neft train --resume {shlex.quote(str(run.path))}    finishes the run"
        raise InputError(Problem(f"{run.path}: the model has no model card", str(file), hint)) from None
    except (OSError, ValueError, TypeError, YAMLError) as error:
        hint = "restore the file, whose metadata is between the first two lines of ---"
        raise InputError(Problem(f"{file}: the model card can't be read", first_line(error), hint)) from None
    if comparisons := _comparisons(run):
        card.text = f"{card.text.rstrip()}\n\n{comparisons}\n"
    return card


def _load_base_from_hub(text: str, reference: ModelReference) -> str:
    """Replace the lines of Python that load a .gguf file of this machine by those that load its original on the hub."""
    if reference.kind != "gguf" or reference.alias is None:
        return text
    original = replace(reference, kind="hub", location=reference.alias.hub_id, revision=None)
    here, on_the_hub = ("\n".join(base_model_lines(base, "")) for base in (reference, original))
    return text.replace(here, on_the_hub)


def _eval_results(run: RunDirectory, recipe: Recipe) -> list[EvalResult]:
    """Return the held-out losses as metadata; empty if no row was held out."""
    from huggingface_hub import EvalResult

    results = run.record().get("results")
    loss = None if results is None else results.get("held_out_loss")
    if loss is None:
        return []
    sources = [_public_name(source.source) for source in recipe.data.all_sources()]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=sources[0],
            dataset_name=" + ".join(sources),
            dataset_split="held-out rows",
            metric_type="loss",
            metric_name="held-out loss (nats per token)",
            metric_value=round(loss, 6),
        )
    ]


def _public_name(source: str) -> str:
    """Return a source's hub id, or the name of a local file or folder without the path."""
    is_local = source.startswith(("/", ".", "~")) or exists(Path(source))
    return Path(source).name if is_local else source


def _comparisons(run: RunDirectory) -> str:
    """Return the conclusions of the comparisons with baselines as Markdown; empty if there are none."""
    newest = {verdict.baseline: verdict for verdict in reversed(stored_verdicts(run.path))}
    paragraphs = [
        f"Compared with {quote_markdown(verdict.baseline)} by `neft eval`: "
        + escape_markdown(" ".join(verdict.conclusion))
        for verdict in newest.values()
    ]
    return "\n\n".join(paragraphs)
