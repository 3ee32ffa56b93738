"""Chat templates: the named ones, the model's own, and its variant for training.

The named templates are for models without one, and for reproducing the paper. `alpaca` is the prompt of Stanford
Alpaca, verbatim: with a different wording, tuned models are not comparable with the paper's. The `input` of an Alpaca
row is the key `input` of the user's message.
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
from neftcli.system.paths import closest_path, exists, expand_home

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

NAMED_TEMPLATES = {"alpaca": ALPACA, "chatml": CHATML}
OTHER_TEMPLATE = "--chat-template chatml"
"""Hint for a conversation that the model's own template does not render."""
OWN_TEMPLATE = "own"
"""Id of the model's own template."""
ENDINGS = (".jinja", ".jinja2", ".j2")
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
TEMPLATE_DATE = date(2024, 7, 26)
"""Replaces the current date in templates, so that the same rows give the same tokens every day."""


def describe_template(template: str) -> str:
    """Return the name of a template for display, from the id that `set_chat_template` returns."""
    if template == OWN_TEMPLATE:
        return "the model's own chat template"
    return f"chat template {template}" if template else ""


def validate_chat_template(name: str | None) -> None:
    """Check that a named template exists or that a template's file can be read, without a tokenizer.

    Args:
        name: The argument of `set_chat_template`.

    Raises:
        ModelError: The name is unknown and there is no such file, or the file isn't UTF-8 text.
    """
    if name is not None and name not in NAMED_TEMPLATES:
        _read_template(expand_home(name))


def set_chat_template(tokenizer: Any, name: str | None) -> str:
    """Set the chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer; changed in place.
        name: "alpaca", "chatml", the path of a Jinja file, or None for the model's own template (alpaca if there is
            none).

    Returns:
        The template's id: "own", a name, or the name of the file.

    Raises:
        ModelError: The name is unknown and there is no such file.
    """
    if name is None and tokenizer.chat_template:
        return OWN_TEMPLATE
    name = name or "alpaca"
    if name in NAMED_TEMPLATES:
        # If the tokenizer begins every text with a BOS token, its template must write that token.
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + NAMED_TEMPLATES[name]
        return name
    file = expand_home(name)
    tokenizer.chat_template = _read_template(file)
    return file.name


def _read_template(file: Path) -> str:
    """Read a template's file.

    Raises:
        ModelError: There is no such file, or it isn't UTF-8 text.
    """
    if not exists(file):
        raise ModelError(
            Problem(
                "model.chat_template: neither a named template nor a file",
                str(file),
                f"one of {', '.join(NAMED_TEMPLATES)}",
                closest_path(file, NAMED_TEMPLATES, ENDINGS),
            )
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"model.chat_template: {file} can't be read as UTF-8 text"
        raise ModelError(
            Problem(message, str(error), f"one of {', '.join(NAMED_TEMPLATES)}, or a Jinja file")
        ) from None


def model_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template, the default one of several; empty if it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return str(template or "")


@cache
def training_template(own: str) -> str:
    """Return TRL's training variant of a chat template, with marked answers and the same last turn; empty if none."""
    spec = find_spec("trl") if own else None
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted((Path(folder) / "chat_templates").glob("*_training.jinja")):
            original = file.with_name(file.name.replace("_training.jinja", ".jinja"))
            if original.is_file() and original.read_text(encoding="utf-8") == own:
                return file.read_text(encoding="utf-8")
    return ""


def fix_current_date(template: str) -> str:
    """Replace the current date in a template by a fixed date."""
    return DATE_CALL.sub(lambda call: json.dumps(TEMPLATE_DATE.strftime(call[2])), template)
