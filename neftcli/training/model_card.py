"""The model card of a run: what it is, how it was made, what was measured, and what that does not show."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.training.resume import describe_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neftcli.events import RunFinished
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe


def quote_markdown(text: str, *, in_table: bool = False) -> str:
    """Text that Markdown shows letter by letter: no image, link, tag, line or column of its own.

    Code between backticks, more of them than stand in a row within (CommonMark 0.31, 6.1); in a table a | gets a
    backslash, which tables take away again.
    """
    line = _one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line.replace('|', chr(92) + '|') if in_table else line}{space}{fence}"


def escape_markdown(text: str) -> str:
    """A sentence as Markdown shows it word by word: a backslash before all that would begin something (0.31, 2.4)."""
    return re.sub(r"([\\`*_\[\]<>&!|#~])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))


def model_card(
    recipe: Recipe,
    reference: ModelReference,
    record: dict[str, Any],
    finished: RunFinished,
    *,
    chat: bool,
    notes: Sequence[str] = (),
) -> str:
    """The text of `model/README.md`.

    Args:
        recipe: The resolved recipe.
        reference: The base model.
        record: The run's.
        finished: The results.
        chat: The model was tuned on conversations, not on plain text.
        notes: Notes on using the model.
    """
    hub_id = reference.alias.hub_id if reference.alias else reference.location if reference.kind == "hub" else None
    head = ["---", "library_name: " + ("transformers" if recipe.adapter.type == "none" else "peft")]
    head += [f"base_model: {json.dumps(hub_id)}"] if hub_id else []
    head += ["tags: [neftune, sft]", "---"]
    noise = recipe.neftune
    alpha = (
        f"alpha {noise.alpha:g}, {noise.noise}, L = {noise.length}, {noise.schedule}"
        if noise.alpha
        else "none (alpha 0)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    body = [
        "",
        f"# {recipe.run_name()}",
        "",
        f"{quote_markdown(reference.name)} ({quote_markdown(reference.describe_source())}), "
        f"fine-tuned ({recipe.method()}) on "
        f"{quote_markdown(recipe.data.source_name())}.",
        "",
        "| | |",
        "|---|---|",
        f"| NEFTune noise | {alpha} |",
        f"| noise / embedding at layer 0 | {record['noise_to_embedding']:.3g} |",
        f"| learning rate, seed | {recipe.learning_rate():g}, {recipe.training.seed} |",
        *(
            f"| {quote_markdown(name, in_table=True)} | sha256 {digest} |"
            for name, digest in record["weights_sha256"].items()
        ),
        f"| base model | {record['model_fingerprint']} |",
        f"| data | sha256 {record['data_sha256']} |",
        f"| recipe | sha256 {record['recipe_sha256']} |",
        *(
            f"| mixed | {quote_markdown(change, in_table=True)} |"
            for once in record["resumed"]
            for change in describe_changes(once)
        ),
        f"| trained on | {record['device']}, {record['precision']} |",
        f"| versions | {versions} |",
        "",
        *_usage(recipe, reference, chat=chat),
        *(line for note in notes for line in ("", f"Note: {escape_markdown(note)}.")),
        "",
        "| loss, nats a token, without noise | before | after |",
        "|---|---|---|",
        f"| held-out rows | {_loss(finished.base_held_out_loss)} | {_loss(finished.held_out_loss)} |",
        f"| training rows (probe) | {_loss(finished.base_train_loss)} | {_loss(finished.train_loss)} |",
        "",
        "A lower loss here does not show that NEFTune helped: that takes the same recipe with alpha 0 and the same "
        "seed, and a look at the answers.",
        "",
        "The whole recipe is in `recipe.yaml` beside this folder.",
        "",
    ]
    return "\n".join(head + body)


def _usage(recipe: Recipe, reference: ModelReference, *, chat: bool) -> list[str]:
    """Lines of Python that load the model from the card's folder and ask it something."""
    trust = ", trust_remote_code=True" if recipe.model.trust_remote_code else ""
    adapter = recipe.adapter.type != "none"
    classes = ["AutoModelForCausalLM", "AutoTokenizer", *(["GenerationConfig"] if adapter else [])]
    lines = [f"from transformers import {', '.join(classes)}", "", 'folder = "."  # where this card is']
    if adapter:
        lines.insert(0, "from peft import PeftModel")
        lines += [*_base_model(reference, trust), "model = PeftModel.from_pretrained(model, folder)"]
    else:
        lines.append(f"model = AutoModelForCausalLM.from_pretrained(folder{trust})")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})")
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
    if adapter:  # a full model's folder brings them along
        lines.append("ends = GenerationConfig.from_pretrained(folder)  # the tokens that end an answer")
        settings = "generation_config=ends, "
    lines += [
        f"answer = model.generate(**inputs, {settings}max_new_tokens=200)[0, inputs.input_ids.shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(lines))), default=0))
    return [f"{fence}python", *lines, fence]


def _base_model(reference: ModelReference, trust: str) -> list[str]:
    """Lines of Python that load the model that an adapter is on."""
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


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
