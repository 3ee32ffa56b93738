"""Ollama's Modelfile over a .gguf file: chat template, system prompt and stop tokens.

Ollama renders conversations with Go's text/template, not with the Jinja template in the file. neft derives the Go
template from the Jinja template by rendering marked conversations, and writes it only if it renders several
conversations exactly as the Jinja template does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neftcli.events import Notice, Observer
from neftcli.export.gguf_file import list_stop_tokens
from neftcli.export.gguf_vocabulary import adds_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.runs.directory import RunDirectory

MODELFILE = "Modelfile"
QUOTES = '"""'
Messages = Sequence[tuple[str, str]]
"""Roles and contents of a conversation."""
_SYSTEM, _ASK, _ANSWER, _ASK_2, _ANSWER_2 = "SYSTEMqz", "FIRSTqz", "REPLYqz", "SECONDqz", "LASTqz"
_MARKED: Messages = (
    ("system", _SYSTEM),
    ("user", _ASK),
    ("assistant", _ANSWER),
    ("user", _ASK_2),
    ("assistant", _ANSWER_2),
)
_PLAIN: Sequence[Messages] = (
    (("user", "What is 2 + 2?"), ("assistant", "It is\n4."), ("user", "And {{ 3 }}?")),
    (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
)
NO_SYSTEM = "the chat template has no system turns, so Ollama leaves system prompts out"
NO_QUOTES = f"a Modelfile can't hold a system prompt that contains {QUOTES}, so it has none"
NO_TEMPLATE = (
    "the chat template can't be written in Ollama's template language, so the Modelfile has none; Ollama recognises "
    "well-known templates in the .gguf file: check with `ollama show NAME --template`"
)


@dataclass(frozen=True)
class TurnTemplate:
    """A chat template that renders each turn by itself.

    Attributes:
        start: Text before the first turn, for example the BOS token.
        turns: Texts before and after the content, for each role.
        generation_prompt: Text after the last turn, before the answer.
        default_system: System prompt of conversations without one; None if there is none.
    """

    start: str
    turns: dict[str, tuple[str, str]]
    generation_prompt: str
    default_system: str | None

    def render(self, messages: Messages) -> str:
        """Render a conversation with the generation prompt."""
        if self.default_system is not None and messages[0][0] != "system":
            messages = [("system", self.default_system), *messages]
        parts = [f"{self.turns[role][0]}{content}{self.turns[role][1]}" for role, content in messages]
        return self.start + "".join(parts) + self.generation_prompt

    def to_go(self, start: str) -> str:
        """Return the template in Go's language.

        Args:
            start: Text before the first turn.
        """
        branches = []
        for role, (before, after) in self.turns.items():
            branches.append(f'if eq .Role "{role}" }}}}{_escape_go(before)}{{{{ .Content }}}}{_escape_go(after)}')
        chain = "{{ else ".join(branches)
        body = f"{{{{ range .Messages }}}}{{{{ {chain}{{{{ end }}}}{{{{ end }}}}"
        return f"{_escape_go(start)}{body}{_escape_go(self.generation_prompt)}"


def derive_turn_template(tokenizer: PreTrainedTokenizerBase) -> TurnTemplate | None:
    """Derive the texts around each turn from a tokenizer's chat template; None if turns depend on each other."""
    from jinja2 import TemplateError

    def render(messages: Messages, *, prompt: bool) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))

    conversations = [_MARKED[1:2], _MARKED[1:4], *_PLAIN]
    try:
        try:
            render(_MARKED[:2], prompt=True)
        except TemplateError:  # such as Gemma's: no system turns
            has_system = False
        else:
            has_system = True
            conversations += [_MARKED[:2], _MARKED[:4], *(((_MARKED[0]), *messages) for messages in _PLAIN)]
        template = _derive(render, str(tokenizer.bos_token or ""), has_system=has_system)
        if template is None:
            return None
        same = all(template.render(messages) == render(messages, prompt=True) for messages in conversations)
    except TemplateError:
        return None
    return template if same else None


def _derive(render: Any, bos: str, *, has_system: bool) -> TurnTemplate | None:
    """Split rendered conversations at their marks; None unless each turn is rendered by itself."""
    turns = _MARKED[1:]
    whole = _split(render(turns, prompt=False), turns)
    asked = _split(render(turns[:1], prompt=False), turns[:1])
    prompted = _split(render(turns[:1], prompt=True), turns[:1])
    if whole is None or asked is None or prompted is None:
        return None
    first, user_to_assistant, assistant_to_user, _, conversation_end = whole
    start = bos if bos and first.startswith(bos) else ""
    user_end = asked[1]
    # After an answer there may be a separator that the last answer lacks.
    user_begins = [assistant_to_user.removeprefix(conversation_end), first.removeprefix(start)]
    user_begin = next((text for text in user_begins if text and first.endswith(text)), None)
    if user_begin is None or not assistant_to_user.endswith(user_begin):
        return None
    if not user_to_assistant.startswith(user_end) or not prompted[1].startswith(user_end):
        return None
    roles = {
        "user": (user_begin, user_end),
        "assistant": (user_to_assistant.removeprefix(user_end), assistant_to_user.removesuffix(user_begin)),
    }
    prompt = prompted[1].removeprefix(user_end)
    default = first.removesuffix(user_begin).removeprefix(start)
    if not has_system:
        return None if default else TurnTemplate(start, roles, prompt, None)
    with_system = _split(render(_MARKED[:2], prompt=False), _MARKED[:2])
    if with_system is None or not with_system[1].endswith(user_begin):
        return None
    system = with_system[0].removeprefix(start), with_system[1].removesuffix(user_begin)
    if default and not (default.startswith(system[0]) and default.endswith(system[1])):
        return None
    default_system = default.removeprefix(system[0]).removesuffix(system[1]) if default else None
    return TurnTemplate(start, {"system": system, **roles}, prompt, default_system)


def _split(text: str, messages: Messages) -> list[str] | None:
    """Split a text at the contents of messages, which must occur once each and in order; None otherwise."""
    parts = []
    for _, mark in messages:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        parts.append(before)
    return [*parts, text]


def _escape_go(text: str) -> str:
    """Escape literal text for a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def build_modelfile(
    tokenizer: PreTrainedTokenizerBase, run: RunDirectory, gguf: str, system_prompt: str | None, observer: Observer
) -> str:
    """Return the text of a Modelfile.

    Args:
        tokenizer: The run's tokenizer, with its chat template.
        run: The run.
        gguf: Name of the .gguf file, in the same folder.
        system_prompt: System prompt of the run's recipe, or None.
        observer: Receives notices.
    """
    lines = [f"FROM ./{gguf}"]
    template: str | None = "{{ .Prompt }}"
    if tokenizer.chat_template:
        turns = derive_turn_template(tokenizer)
        template = None
        if turns is not None:
            template = turns.to_go("" if adds_bos(tokenizer) else turns.start)
            system_prompt = system_prompt or turns.default_system
            if "system" not in turns.turns:
                observer.notify(Notice(NO_SYSTEM))
    if template is None or QUOTES in template:
        observer.notify(Notice(NO_TEMPLATE))
    else:
        lines.append(f"TEMPLATE {QUOTES}{template}{QUOTES}")
    if system_prompt and QUOTES in system_prompt:
        observer.notify(Notice(NO_QUOTES))
    elif system_prompt:
        lines.append(f"SYSTEM {QUOTES}{system_prompt}{QUOTES}")
    for token in list_stop_tokens(tokenizer, run):
        text = tokenizer.convert_ids_to_tokens(token)
        lines.append(f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
