"""Conversations as text: rendered by a chat template, which names the tokens that end an answer.

Training uses TRL's training template, which renders earlier turns as they were answered. Prompts for generation use the
model's own template, as any other program that loads the model does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neftcli.data.tokenizer import THINK, THINK_END, ContinuationEncoder, SpecialTokenEscaper, tokenizer_errors
from neftcli.errors import DataError, ModelError, Problem
from neftcli.events import Notice, Observer, Phase, PhaseId
from neftcli.models.chat_templates import (
    OTHER_TEMPLATE,
    TEMPLATE_DATE,
    describe_template,
    fix_current_date,
    model_chat_template,
    training_template,
)
from neftcli.models.registry import ModelReference
from neftcli.rows.example import Example, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe

Form = Literal["text", "parts"]
Span = tuple[int, int]
"""The first character of a part of a text, and the character after it."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
QUESTION, ANSWER, ARGUMENT = "Questionmark", "Answermark", "Argumentmark"
"""Texts that occur in no template."""
WITH_TOOLS = "use a model whose chat template supports tools, or --chat-template FILE with such a template"
"""Hint if a template rejects or leaves out tools."""
FIRST_MARK = 0xF8000
"""First of the private-use characters around each turn's content by which it is found in a rendering."""
MAX_TEXT_SHOWN = 150
"""Maximum characters of a rendering in a message."""


class ChatFormat:
    """Tokenizer with its chat template and the tokens that end an answer.

    Args:
        tokenizer: The tokenizer; without a chat template it is for plain text only.
        declared_stops: Token ids that the model's generation_config.json or config.json names as `eos_token_id`.
        template: Id of the template, as `set_chat_template` returns it.
        reasoning: "learn" keeps the reasoning in answers, "drop" removes it.
        chats: The rows are conversations; otherwise the chat template is not used.

    Attributes:
        stop_token_ids: Ids of the tokens that end an answer: EOS, the declared ones, and those that the template writes
            after an answer.
        ending: Stop token of a last answer after which the template writes nothing.
        writes_date: The template writes the current date, which `TEMPLATE_DATE` replaces.

    Raises:
        ModelError: The template can't be compiled, or does not render questions or answers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        declared_stops: Iterable[int] = (),
        *,
        template: str = "",
        reasoning: Literal["learn", "drop"] = "learn",
        chats: bool = True,
    ) -> None:
        self.tokenizer, self.template, self.reasoning = tokenizer, template, reasoning
        own = model_chat_template(tokenizer) if chats else ""
        self.writes_date = fix_current_date(own) != own
        self._own = fix_current_date(own)
        self._training = fix_current_date(training_template(own) or own)
        self._added = {index: text for text, index in tokenizer.get_added_vocab().items()}
        self.special_tokens = SpecialTokenEscaper(tokenizer)
        self._forms: tuple[Form, Form] = ("text", "text")
        declared = {index for index in declared_stops if index in self._added}
        self.stop_token_ids = frozenset({int(tokenizer.eos_token_id)} | declared)
        self.ending = str(tokenizer.eos_token)
        if own:
            self._forms = self._find_forms()
            answer_stop = self._stop_after(_PROBE, ANSWER, 0)
            call_stop = self._stop_after(_CALL_PROBE, ARGUMENT, -1) if "tool_calls" in self._training else None
            self.stop_token_ids |= {stop for stop in (answer_stop, call_stop) if stop is not None}
            if answer_stop is not None:
                self.ending = self._added[answer_stop]

    # The tokenizer

    @cached_property
    def continuation(self) -> ContinuationEncoder:
        """The tokenizer for text that follows other text."""
        return ContinuationEncoder(self.tokenizer)

    @cached_property
    def prefix(self) -> list[int]:
        """Token ids that the tokenizer puts before every text: usually a BOS token or nothing."""
        bare: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("a")["input_ids"]
        return next((whole[:n] for n in range(len(whole)) if whole[n : n + len(bare)] == bare), [])

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The stop tokens as text."""
        return tuple(str(text) for text in self.tokenizer.convert_ids_to_tokens(sorted(self.stop_token_ids)))

    # Rendering

    def render_prompt(self, example: Example) -> str:
        """Return the text that generation starts from: all before the last answer, by the model's own template."""
        prompt_turns = len(example.turns) - bool(example.answer())
        return self._render(self._own, example, prompt_turns, add_generation_prompt=True)[0]

    def render_all(self, example: Example) -> tuple[str, list[Span]]:
        """Render a conversation for training; also return the template's generation blocks.

        Raises:
            DataError: The template rejects this conversation.
        """
        return self._render(self._training, example)

    def render_turns(self, example: Example, turns: int, *, add_generation_prompt: bool = False) -> str:
        """Render the first `turns` turns for training."""
        return self._render(self._training, example, turns, add_generation_prompt)[0]

    def render_marked(self, example: Example, turns: int | None, add_generation_prompt: bool) -> str:
        """Render the first `turns` turns for training, with a private-use character on each side of their contents."""
        return self._render(self._training, example, turns, add_generation_prompt, marked=True)[0]

    def content(self, turn: Turn) -> str:
        """Return a turn's content in the form that is passed to the template."""
        content = turn.content
        if turn.role == "assistant":
            while content.endswith(self.stop_tokens):  # the template writes the stop token
                content = content.removesuffix(next(t for t in self.stop_tokens if content.endswith(t))).rstrip()
            while self.reasoning == "drop" and content.startswith(THINK) and THINK_END in content:
                rest = content.partition(THINK_END)[2]
                content = (rest if THINK in rest else content.rpartition(THINK_END)[2]).strip()
        return self.special_tokens.escape(content)

    def _messages(
        self, turns: Sequence[Turn], *, arguments_as_text: bool = False, marked: bool = False
    ) -> list[dict[str, Any]]:
        """Return the turns as messages; if `marked`, with a private-use character on each side of every content."""
        knows_input = "['input']" in self._own
        messages = []
        for index, turn in enumerate(turns):
            content, context = self.content(turn), self.special_tokens.escape(turn.context)
            if context and not knows_input:
                content = f"{content}\n\n{context}"
            if marked and content:
                content = f"{chr(FIRST_MARK + 2 * index)}{content}{chr(FIRST_MARK + 2 * index + 1)}"
            form = self._forms[turn.role == "assistant"]
            message: dict[str, Any] = {"role": turn.role, "content": content if form == "text" else _parts(content)}
            if context and knows_input:
                message["input"] = context
            if turn.reasoning and self.reasoning == "learn":
                message["reasoning_content"] = self.special_tokens.escape(turn.reasoning)
            if turn.tool_calls:
                message["tool_calls"] = json.loads(self.special_tokens.escape(turn.tool_calls))
                for call in message["tool_calls"] if arguments_as_text else ():
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            if turn.name:
                message["name"] = self.special_tokens.escape(turn.name)
            if turn.tool_call_id:
                message["tool_call_id"] = self.special_tokens.escape(turn.tool_call_id)
            messages.append(message)
        return messages

    def _render(
        self,
        template: str,
        example: Example,
        turns: int | None = None,
        add_generation_prompt: bool = False,
        *,
        marked: bool = False,
    ) -> tuple[str, list[Span]]:
        """Render the first `turns` turns, or all of them if None; also return the template's generation blocks.

        Raises:
            DataError: The template rejects the conversation.
            ModelError: The template is not valid Jinja.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        chosen = example.turns[:turns]
        try:
            try:
                messages = self._messages(chosen, marked=marked)
                return self._rendered(template, messages, example.tools, add_generation_prompt)
            except TypeError:  # some templates want a call's arguments as text
                if not any(turn.tool_calls for turn in chosen):
                    raise
                messages = self._messages(chosen, arguments_as_text=True, marked=marked)
                return self._rendered(template, messages, example.tools, add_generation_prompt)
        except TemplateSyntaxError as error:
            raise ModelError(
                Problem(
                    f"model.chat_template: not a valid Jinja template: {error.message}",
                    f"line {error.lineno}",
                    OTHER_TEMPLATE,
                )
            ) from None
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            roles = ", ".join(turn.role for turn in example.turns)
            hint = WITH_TOOLS if "tool" in roles or example.tools else OTHER_TEMPLATE
            raise DataError(
                Problem(f"{example.location}: the chat template rejects this conversation: {error}", roles, hint)
            ) from None

    def _rendered(
        self, template: str, messages: list[dict[str, Any]], tools: str, add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), blocks = render_jinja_template(
            conversations=[messages],
            tools=json.loads(self.special_tokens.escape(tools)) if tools else None,
            chat_template=template,
            return_assistant_tokens_mask=GENERATION.search(template) is not None,
            add_generation_prompt=add_generation_prompt,
            **self.tokenizer.special_tokens_map,
        )
        return str(text), [(int(start), int(end)) for start, end in blocks[0]] if blocks else []

    # Properties of the template, determined once

    @cached_property
    def template_text(self) -> str:
        """Text that the template writes around a conversation; empty if it renders none."""
        longer = Example(
            (Turn("system", ARGUMENT), *_PROBE, Turn("user", ARGUMENT), Turn("assistant", ARGUMENT)), "", ""
        )
        for example in (longer, Example(_PROBE, "", "")):
            try:
                return self._render(self._training, example, add_generation_prompt=True)[0]
            except DataError:  # it has no system turn
                continue
        return ""

    @property
    def renders_reasoning(self) -> bool:
        """True if the template can render the reasoning of an answer."""
        return re.search("reasoning|thinking", self._training) is not None

    @property
    def has_training_template(self) -> bool:
        """True if training uses TRL's template instead of the model's own."""
        return self._training != self._own

    def _find_forms(self) -> tuple[Form, Form]:
        """Return the form of content that the template takes, text or a list of parts, in questions and in answers.

        Raises:
            ModelError: It renders neither.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        errors: list[str] = []
        renderings: list[str] = []
        forms: tuple[tuple[Form, Form], ...] = (
            ("text", "text"),
            ("parts", "parts"),
            ("parts", "text"),
            ("text", "parts"),
        )
        for self._forms in forms:
            messages = self._messages(_PROBE)
            try:
                text, _ = self._rendered(self._training, messages, "", False)
            except TemplateSyntaxError:
                self._render(self._training, Example(_PROBE, "", ""))  # raises the error with the line
            except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                errors.append(str(error))
            else:
                if "{'type'" in text:  # a list as text
                    continue
                if text.count(QUESTION) == text.count(ANSWER) == 1:
                    return self._forms
                renderings.append(text)
        closest = max(renderings, key=lambda text: (QUESTION in text) + (ANSWER in text), default="")
        name = describe_template(self.template) or "this chat template"
        raise ModelError(
            Problem(
                f"model.chat_template: {name} does not render a question and its answer",
                _describe_missing(closest) if renderings else "".join(errors[:1]),
                OTHER_TEMPLATE,
            )
        )

    def _stop_after(self, turns: tuple[Turn, ...], mark: str, which: int) -> int | None:
        """Return the stop token that the template writes after a text: the first (0) or last (-1) added token there."""
        for conversation in (turns, (*turns, Turn("user", QUESTION))):
            if added := self._added_after(conversation, mark):
                return added[which]
        return None

    def _added_after(self, turns: tuple[Turn, ...], mark: str) -> list[int]:
        """Return the added tokens after a text, up to the next question; of adjacent ones the last.

        Cohere's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>` is one ending, Phi's `<|end|>` and `<|endoftext|>`, with a line
        break between, are two.
        """
        from jinja2 import TemplateError

        messages = self._messages(turns)
        try:
            text, _ = self._rendered(self._training, messages, "", False)
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return []  # it renders no tool calls, or no second question
        if mark not in text:
            return []
        tail = text.rpartition(mark)[2].partition(QUESTION)[0]
        ids: list[int] = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        runs = [list(run) for is_added, run in groupby(ids, self._added.__contains__) if is_added]
        return [run[-1] for run in runs]


_PROBE = (Turn("user", QUESTION), Turn("assistant", ANSWER))
_CALL_PROBE = (
    Turn("user", QUESTION),
    Turn(
        "assistant",
        "",
        tool_calls=json.dumps(
            [{"type": "function", "id": "call_1", "function": {"name": "look_up", "arguments": {"key": ARGUMENT}}}]
        ),
    ),
)


def load_chat_format(
    recipe: Recipe, reference: ModelReference, row_format: str, observer: Observer
) -> tuple[ChatFormat, list[str]]:
    """Load the tokenizer with its chat template and stop tokens; also returns notices.

    Raises:
        ModelError: The model or the template can't be found or read.
    """
    from neftcli.models.chat_templates import set_chat_template
    from neftcli.models.gguf import is_gguf_converted, is_gguf_locked
    from neftcli.models.limits import load_embedding_size
    from neftcli.models.loading import load_tokenizer, read_stop_tokens
    from neftcli.models.new_tokens import add_tokens

    if reference.kind == "gguf" and not is_gguf_converted(Path(reference.location)):
        if is_gguf_locked(Path(reference.location)):
            observer.notify(Notice(f"another process is converting {reference.name}; waiting for it"))
        observer.notify(Phase(PhaseId.CONVERTING_GGUF))
    else:
        observer.notify(Phase(PhaseId.LOADING_TOKENIZER))
    trust = recipe.model.trust_remote_code
    tokenizer, notices = load_tokenizer(reference, trust, load_embedding_size(reference, trust))
    add_tokens(tokenizer, recipe.model.new_tokens)
    declared = read_stop_tokens(reference)
    with tokenizer_errors(tokenizer, "model.name"):
        template = "" if row_format == "text" else set_chat_template(tokenizer, recipe.model.chat_template)
        chat = build_chat_format(tokenizer, declared, recipe, row_format, template)
    if chat.writes_date:
        notices.append(f"the chat template writes the current date; every row has {TEMPLATE_DATE:%d %B %Y} instead")
    return chat, notices


def build_chat_format(
    tokenizer: PreTrainedTokenizerBase,
    declared_stops: Iterable[int],
    recipe: Recipe,
    row_format: str,
    template: str = "",
) -> ChatFormat:
    """Return the chat format of a recipe's rows with this tokenizer."""
    return ChatFormat(
        tokenizer, declared_stops, template=template, reasoning=recipe.data.reasoning, chats=row_format != "text"
    )


def _parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _describe_missing(text: str) -> str:
    """Describe which of a question and its answer a template leaves out or repeats, and its rendering."""
    turns = (("the question", QUESTION), ("the last answer", ANSWER))
    missing = [f"{turn} ({content})" for turn, content in turns if content not in text]
    repeated = [f"{turn} ({content})" for turn, content in turns if text.count(content) > 1]
    shown = " ".join(text.split())
    shown = shown if len(shown) <= MAX_TEXT_SHOWN else f"...{shown[-MAX_TEXT_SHOWN:]}"
    verb = "are" if len(missing or repeated) > 1 else "is"
    if missing:
        return f"{' and '.join(missing)} {verb} missing in: {shown}"
    return f"{' and '.join(repeated)} {verb} repeated in: {shown}"
