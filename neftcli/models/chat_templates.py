"""Chat templates: the named ones, the model's own, and the one to train with.

The named ones are for models that have none, or for reproducing the paper.

`alpaca` is the prompt of Stanford Alpaca, word for word: it is a data format, and models tuned with other words are
not comparable with the paper's. An Alpaca row's `input` travels as the key `input` of the user's message.
"""

from __future__ import annotations

import json
import re
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.system.paths import closest_path, exists

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{% if message['input'] %}"
    "{{ 'Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n' + message['content'] "
    "+ '\n\n### Input:\n' + message['input'] + '\n\n### Response:' }}"
    "{% else %}"
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n' + message['content'] "
    "+ '\n\n### Response:' }}"
    "{% endif %}"
    "{% else %}{{ message['content'] + eos_token }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '<|im_end|>' }}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

NAMED = {"alpaca": ALPACA, "chatml": CHATML}
ENDINGS = (".jinja", ".jinja2", ".j2")
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
DATE = date(2024, 7, 26)
"""Replaces the current date in templates that write it, so that the same rows are the same tokens every day."""


def validate_chat_template(wanted: str | None) -> None:
    """Check that a template of this name exists, or that its file can be read; no tokenizer is needed.

    Args:
        wanted: As for `set_chat_template`.

    Raises:
        ModelError: The name is unknown and there is no such file, or it is no UTF-8 text.
    """
    if wanted is not None and wanted not in NAMED:
        _read_template(Path(wanted))


def set_chat_template(tokenizer: Any, wanted: str | None) -> str:
    """Gives the tokenizer the template that was asked for, or alpaca where it has none.

    Args:
        tokenizer: Changed in place.
        wanted: "alpaca", "chatml", the path of a Jinja file, or None for the model's own.

    Returns:
        The template's name, for people.

    Raises:
        ModelError: The name is unknown and there is no such file.
    """
    if wanted is None and tokenizer.chat_template:
        return "the model's own chat template"
    name = wanted or "alpaca"
    if name in NAMED:
        # A template of a tokenizer that begins every text with a BOS token must write it itself.
        starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
        tokenizer.chat_template = ("{{ bos_token }}" if starts else "") + NAMED[name]
        return f"chat template {name}"
    file = Path(name)
    tokenizer.chat_template = _read_template(file)
    return f"chat template {file.name}"


def _read_template(file: Path) -> str:
    if not exists(file):
        raise ModelError(
            Problem(
                "model.chat_template: no template of this name, and no such file",
                str(file),
                f"one of {', '.join(NAMED)}",
                closest_path(file, NAMED, ENDINGS),
            )
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = f"model.chat_template: {file} is no UTF-8 text that can be read"
        raise ModelError(Problem(said, str(error), f"one of {', '.join(NAMED)}, or a Jinja file")) from None


def model_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, of several named ones the default; empty if it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return str(template or "")


@cache
def training_template(own: str) -> str:
    """TRL's training variant of a chat template: the same rendering of a last turn, with marked answers; or empty."""
    spec = find_spec("trl") if own else None
    for place in spec.submodule_search_locations or () if spec else ():
        for file in sorted((Path(place) / "chat_templates").glob("*_training.jinja")):
            original = file.with_name(file.name.replace("_training.jinja", ".jinja"))
            if original.is_file() and original.read_text(encoding="utf-8") == own:
                return file.read_text(encoding="utf-8")
    return ""


def fix_current_date(template: str) -> str:
    """The template with its calls for the current date replaced by a fixed date."""
    return DATE_CALL.sub(lambda call: json.dumps(DATE.strftime(call[2])), template)
