"""Ollama's Go templates, derived from Jinja templates.

Oracle: transformers' own rendering, against a reader of the few parts of Go's template language that neft writes.
"""

from __future__ import annotations

import re

import pytest

from neftcli.events import Event, Notice
from neftcli.export.ollama import build_modelfile, derive_turn_template
from neftcli.models.chat_templates import NAMED_TEMPLATES
from tests.tiny import tiny_tokenizer

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SMOLLM_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first and system %}"
    "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}{{ message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BRACES = "{% for message in messages %}{{ '{{' + message['role'] + '}} ' + message['content'] + '\n' }}{% endfor %}"
CONVERSATIONS = [
    [("user", "Hello")],
    [("user", "Hello"), ("assistant", "Good day."), ("user", "Why?")],
    [("system", "Be brief."), ("user", "Hello {{ x }}"), ("assistant", "A\nB"), ("user", "C")],
]


def render_go(template: str, messages: list[tuple[str, str]]) -> str:
    """Render a template of the form that neft writes: a range over messages with a chain of `if eq .Role`."""
    shape = re.fullmatch(
        r"(.*?)\{\{ range \.Messages \}\}\{\{ (.*?)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL
    )
    assert shape is not None, template
    branches = {}
    for branch in shape[2].split("{{ else "):
        found = re.fullmatch(r'if eq \.Role "(\w+)" \}\}(.*)\{\{ \.Content \}\}(.*)', branch, re.DOTALL)
        assert found is not None, branch
        branches[found[1]] = (literal(found[2]), literal(found[3]))
    turns = [f"{branches[role][0]}{content}{branches[role][1]}" for role, content in messages]
    return literal(shape[1]) + "".join(turns) + literal(shape[3])


def literal(text: str) -> str:
    """Return literal text of a template; actions in it are only escaped braces."""
    assert "{{" not in text.replace('{{ "{{" }}', "")
    return text.replace('{{ "{{" }}', "{{")


@pytest.mark.parametrize(
    ("name", "template", "default", "has_system"),
    [
        *((name, template, None, True) for name, template in NAMED_TEMPLATES.items()),
        ("llama-3", LLAMA_3, None, True),
        ("smollm2", SMOLLM_2, "You are SmolLM.", True),
        ("gemma", GEMMA, None, False),
        ("braces", BRACES, None, True),
    ],
)
def test_derive_turn_template(name: str, template: str, default: str | None, has_system: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    derived = derive_turn_template(tokenizer)
    assert derived is not None, name
    assert derived.default_system == default
    go = derived.to_go(derived.start)
    for messages in CONVERSATIONS[: None if has_system else -1]:
        conversation = [{"role": role, "content": content} for role, content in messages]
        expected = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        with_default = messages
        if default is not None and messages[0][0] != "system":
            with_default = [("system", default), *messages]  # Ollama takes it from the Modelfile's SYSTEM
        assert render_go(go, with_default) == expected


@pytest.mark.parametrize("template", [LLAMA_2, "{{ messages | length }}", "{{ messages[0]['content'] }}"])
def test_derive_turn_template_of_dependent_turns_is_none(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert derive_turn_template(tokenizer) is None


class Notices:
    """Collects the messages of notices."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def notify(self, event: Event) -> None:
        """Keep the message of a notice."""
        if isinstance(event, Notice):
            self.messages.append(event.message)


@pytest.mark.parametrize(("prompt", "is_written"), [("Be brief.", True), ('Say """ often.', False)])
def test_build_modelfile_system_prompt(prompt: str, is_written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a Modelfile can't hold is left out with a notice."""
    monkeypatch.setattr("neftcli.export.ollama.list_stop_tokens", lambda *_: [2])
    tokenizer, notices = tiny_tokenizer(), Notices()
    tokenizer.chat_template = NAMED_TEMPLATES["chatml"]
    text = build_modelfile(tokenizer, None, "model.gguf", prompt, notices)  # type: ignore[arg-type]
    assert (f'SYSTEM """{prompt}"""' in text.splitlines()) == is_written
    assert [message for message in notices.messages if "system prompt" in message] == (
        [] if is_written else ['a Modelfile can\'t hold a system prompt that contains """, so it has none']
    )
    assert 'PARAMETER stop "</s>"' in text.splitlines()
