"""The model card of a run: base model, settings, provenance, usage, and measurements with their limits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.evaluation.number_format import table_number
from neftcli.metrics.registry import comparative_word, label, superlative
from neftcli.runs.markdown import escape_markdown, quote_markdown
from neftcli.training.resume import describe_changes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from neftcli.events import RunFinished
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe

RECIPE_SENTENCE = "The full recipe is in `recipe.yaml`, next to this folder."


def model_card(
    recipe: Recipe,
    reference: ModelReference,
    record: dict[str, Any],
    finished: RunFinished,
    *,
    chat: bool,
    notes: Sequence[str] = (),
) -> str:
    """Write the text of `model/README.md`.

    Args:
        recipe: The resolved recipe.
        reference: The base model.
        record: The run's record.
        finished: The results.
        chat: The rows are conversations, not plain text.
        notes: Notes on using the model.
    """
    lines = [*_front_matter(recipe, reference), ""]
    lines += [f"# {recipe.run_name()}", ""]
    model = f"{quote_markdown(reference.name)} ({quote_markdown(reference.describe_source())})"
    lines += [f"{model}, fine-tuned ({recipe.method().describe()}) on {quote_markdown(recipe.data.source_name())}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(recipe, record)), ""]
    lines += _usage(recipe, reference, chat=chat)
    for note in notes:
        lines += ["", f"Note: {escape_markdown(note)}."]
    lines += [
        "",
        "| loss (nats per token), without noise | before | after |",
        "|---|---|---|",
        f"| held-out rows | {_loss(finished.base_held_out_loss)} | {_loss(finished.held_out_loss)} |",
        f"| training rows (probe) | {_loss(finished.base_train_loss)} | {_loss(finished.train_loss)} |",
        *_answer_metrics(finished),
        "",
        "A lower loss here does not show that NEFTune helped: compare with the same recipe and seed at alpha 0, and "
        "read the answers.",
        "",
        RECIPE_SENTENCE,
        "",
    ]
    return "\n".join(lines)


def selection_note(record: Mapping[str, Any]) -> str:
    """Return a note on the step whose weights the model has; empty if it is the last step of the recipe."""
    selected = record.get("selected")
    if not selected:
        return ""
    last, total = selected["last_step"], selected["total_steps"]
    early = f" of {total}, at which training stopped early" if last < total else ""
    if selected["keep"] != "best":
        return f"these are the weights after step {last}{early}" if early else ""
    metric = selected["metric"]
    better = f"it is {comparative_word(metric)} than on new rows"
    return (
        f"these are the weights after step {selected['step']}, which had the {superlative(metric)}; the last step was "
        f"{last}{early}. This {label(metric)} selected the weights, so {better}"
    )


def _front_matter(recipe: Recipe, reference: ModelReference) -> list[str]:
    """Return the YAML at the top of the card, which the hub reads."""
    lines = ["---", "library_name: " + ("transformers" if recipe.adapter.type == "none" else "peft")]
    hub_id = reference.location if reference.kind == "hub" else None
    if reference.alias:
        hub_id = reference.alias.hub_id
    if hub_id:
        lines.append(f"base_model: {json.dumps(hub_id)}")
    return [*lines, "tags: [neftune, sft]", "---"]


def _facts(recipe: Recipe, record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of the table about settings and provenance."""
    noise = recipe.neftune
    alpha = "none (alpha 0)"
    if noise.alpha:
        alpha = f"alpha {noise.alpha:g}, {noise.noise}, L = {noise.length}, {noise.schedule}"
    facts = [
        ("NEFTune noise", alpha),
        ("noise / embedding at layer 0", f"{record['noise_to_embedding']:.3g}"),
        ("learning rate, seed", f"{recipe.learning_rate():g}, {recipe.training.seed}"),
    ]
    if recipe.model.new_tokens:
        facts.append(("new tokens", quote_markdown(", ".join(recipe.model.new_tokens), in_table=True)))
    if recipe.quantization.type != "none":
        facts.append(
            ("base weights", f"{recipe.quantization.type} in training; the code of this card loads them as they are")
        )
    if recipe.training.freeze:
        facts.append(("frozen layers", quote_markdown(", ".join(recipe.training.freeze), in_table=True)))
    for name, digest in record["weights_sha256"].items():
        facts.append((quote_markdown(name, in_table=True), f"sha256 {digest}"))
    facts += [
        ("base model", record["model_fingerprint"]),
        ("data", f"sha256 {record['data_sha256']}"),
        ("recipe", f"sha256 {record['recipe_sha256']}"),
    ]
    for resumed in record["resumed"]:
        for change in describe_changes(resumed):
            facts.append(("mixed", quote_markdown(change, in_table=True)))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    facts += [("trained on", f"{record['device']}, {record['precision']}"), ("versions", versions)]
    return facts


def _usage(recipe: Recipe, reference: ModelReference, *, chat: bool) -> list[str]:
    """Write the lines of Python that load the model from the card's folder and generate an answer."""
    trust = ", trust_remote_code=True" if recipe.model.trust_remote_code else ""
    adapter = recipe.adapter.type != "none"
    classes = ["AutoModelForCausalLM", "AutoTokenizer", *(["GenerationConfig"] if adapter else [])]
    lines = [f"from transformers import {', '.join(classes)}", "", 'folder = "."  # where this card is']
    if adapter:
        lines.insert(0, "from peft import PeftModel")
        lines += base_model_lines(reference, trust)
    else:
        lines.append(f"model = AutoModelForCausalLM.from_pretrained(folder{trust})")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})")
    if adapter and recipe.model.new_tokens:
        lines.append("tokens = max(model.get_input_embeddings().num_embeddings, len(tokenizer))  # with the new ones")
        lines.append("model.resize_token_embeddings(tokens)")
    if adapter:
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    if chat:
        lines += [
            'turns = [{"role": "user", "content": "What is a glacier?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines.append('inputs = tokenizer("Once upon a time", return_tensors="pt")')
    settings = ""
    if adapter:  # a full model loads them by itself
        lines.append("ends = GenerationConfig.from_pretrained(folder)  # the tokens that end an answer")
        settings = "generation_config=ends, "
    lines += [
        f"answer = model.generate(**inputs, {settings}max_new_tokens=200)[0, inputs.input_ids.shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(lines))), default=0))
    return [f"{fence}python", *lines, fence]


def base_model_lines(reference: ModelReference, trust: str) -> list[str]:
    """Write the lines of Python that load an adapter's base model."""
    if reference.kind != "gguf":
        revision = f", revision={json.dumps(reference.revision)}" if reference.revision else ""
        return [
            f"base = {json.dumps(reference.portable_name())}",
            f"model = AutoModelForCausalLM.from_pretrained(base{revision}{trust})",
        ]
    file = Path(reference.location).absolute()
    on_the_hub = f"  # on the hub, not rounded: {reference.alias.hub_id}" if reference.alias else ""
    return [
        f"base, file = {json.dumps(str(file.parent))}, {json.dumps(file.name)}{on_the_hub}",
        'model = AutoModelForCausalLM.from_pretrained(base, gguf_file=file, dtype="float32")',
    ]


def _answer_metrics(finished: RunFinished) -> list[str]:
    """Return the table of the metrics of answers; nothing if none were measured."""
    if not finished.answer_metrics:
        return []
    lines = ["", "| answers to held-out prompts, without noise | before | after |", "|---|---|---|"]
    for metric, after in finished.answer_metrics.items():
        values = [table_number(metric, value) for value in (finished.base_answer_metrics.get(metric), after)]
        lines.append(f"| {label(metric)} | {' | '.join(values)} |")
    return lines


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
