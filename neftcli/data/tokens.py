"""Examples as the model sees them: token ids, and the labels of those that carry loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neftcli.data.formats import Example
from neftcli.errors import DataError, ModelError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
BATCH = 512
TEXT_PROMPT_WORDS = 32


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenised example.

    Attributes:
        input_ids: Token ids, not padded.
        labels: The same ids where a token carries loss, -100 elsewhere; equally long.
        cut: It was longer than data.max_length.
        stops: Its last token is a stop token that carries loss, so that the model learns to end.
        where: Where the row stands.
    """

    input_ids: list[int]
    labels: list[int]
    cut: bool
    stops: bool
    where: str

    def loss_tokens(self) -> int:
        """Tokens that carry loss; the first token of a row never does, since nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The text that generation starts from: everything before the last answer, or a plain text's first words."""
    if not example.turns:
        begins = beginning(tokenizer)
        return begins + prompt_and_reference(example)[0].removeprefix(begins)
    asked = len(example.turns) - bool(example.answer())
    return _render(tokenizer, example, asked, add_generation_prompt=True)


def prompt_and_reference(example: Example) -> tuple[str, str]:
    """What is asked and what the data answers; of a plain text its first words and the rest."""
    if example.turns:
        return example.prompt(), example.answer()
    words = example.text.split(" ")
    cut = min(TEXT_PROMPT_WORDS, (len(words) + 1) // 2)
    return " ".join(words[:cut]), " ".join(words[cut:])


def tokenize(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, completion_only: bool
) -> Iterator[TokenRow]:
    """Tokenises examples, in order.

    Each conversation is rendered once by the chat template and tokenised once; a token carries loss if it begins
    inside an answer or is the stop token behind it. Plain text carries loss throughout and gets a stop token.

    Raises:
        ModelError: The chat template renders a conversation otherwise than by appending its turns.
    """
    for start in range(0, len(examples), BATCH):
        batch = list(examples[start : start + BATCH])
        conversations = bool(batch[0].turns)
        begins = "" if conversations else beginning(tokenizer)
        rendered = [_with_spans(tokenizer, example, completion_only, begins) for example in batch]
        encoded = tokenizer(
            [text for text, _ in rendered], add_special_tokens=not conversations, return_offsets_mapping=True
        )
        stops = stop_tokens(tokenizer)
        for example, (_, spans), ids, offsets in zip(
            batch, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            labels = _labels(ids, offsets, spans)
            kept, kept_labels = list(ids[:max_length]), labels[:max_length]
            learned = [label for label in kept_labels if label != IGNORED]
            yield TokenRow(
                kept, kept_labels, len(ids) > max_length, bool(learned) and learned[-1] in stops, example.where
            )


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the end-of-text token and the special tokens of chat templates."""
    ids = {tokenizer.eos_token_id}
    vocabulary: dict[str, int] = tokenizer.get_added_vocab()
    ids.update(i for text, i in vocabulary.items() if text in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"))
    return ids


def beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that this tokenizer puts before every text, as text; mostly a BOS token or nothing."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begins else ""


def special_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """A special token of this model that stands as plain text in the row (and would act as the token), or ""."""
    texts = [example.text, *(part for turn in example.turns for part in (turn.content, turn.context))]
    for token in tokenizer.all_special_tokens:
        if any(token in text for text in texts):
            return str(token)
    return ""


def _with_spans(
    tokenizer: PreTrainedTokenizerBase, example: Example, completion_only: bool, begins: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the parts of it, as character positions, that carry loss."""
    eos = str(tokenizer.eos_token)
    if not example.turns:
        text = example.text.removeprefix(begins).removesuffix(eos) + eos  # what it begins with the tokenizer writes
        return text, [(0, len(text))]
    text = _render(tokenizer, example)
    if not completion_only:
        text = text.rstrip() if _ends_with_stop(tokenizer, text.rstrip()) else text + eos
        return text, [(0, len(text))]
    spans = []
    for index, turn in enumerate(example.turns):
        if turn.role != "assistant":
            continue
        before = _render(tokenizer, example, index, add_generation_prompt=True)
        upto = text if index == len(example.turns) - 1 else _render(tokenizer, example, index + 1)
        if not (text.startswith(upto) and upto.startswith(before)):
            raise ModelError(
                Problem(
                    "model.chat_template: this chat template does not render a conversation by appending turns, so the "
                    "tokens of its answers can't be told",
                    example.where,
                    "--chat-template chatml, or --set data.loss_on=tokens",
                )
            )
        if not upto[len(before) :].strip():
            raise ModelError(
                Problem(
                    "model.chat_template: this chat template leaves an answer out, so there is nothing to learn",
                    example.where,
                    "--chat-template chatml",
                )
            )
        spans.append((len(before), _end_of_answer(tokenizer, upto, len(before))))
    if spans[-1][1] == len(text) and not _ends_with_stop(tokenizer, text):
        text += eos
        spans[-1] = (spans[-1][0], len(text))
    return text, spans


def _end_of_answer(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> int:
    """Behind the answer's stop token; a line break that the template writes after it is no part of the answer."""
    answer = text[start:]
    return start + len(answer.rstrip()) if _ends_with_stop(tokenizer, answer.rstrip()) else len(text)


def _ends_with_stop(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    stops = tuple(tokenizer.convert_ids_to_tokens(sorted(stop_tokens(tokenizer))))
    return text.endswith(stops)


def _render(
    tokenizer: PreTrainedTokenizerBase, example: Example, turns: int | None = None, add_generation_prompt: bool = False
) -> str:
    """The first `turns` turns of a conversation as text, all of them if None."""
    knows_input = "['input']" in str(tokenizer.chat_template)
    messages = []
    for turn in example.turns[:turns]:
        if turn.context and not knows_input:
            messages.append({"role": turn.role, "content": f"{turn.content}\n\n{turn.context}"})
        else:
            messages.append({"role": turn.role, "content": turn.content, "input": turn.context})
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateSyntaxError as error:
        raise ModelError(
            Problem(
                f"model.chat_template: this is no Jinja template: {error.message}",
                f"line {error.lineno}",
                "--chat-template chatml",
            )
        ) from None
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        roles = ", ".join(turn.role for turn in example.turns)
        raise DataError(
            Problem(
                f"{example.where}: the chat template refuses this conversation: {error}",
                roles,
                "--chat-template chatml",
            )
        ) from None


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    labels = [IGNORED] * len(ids)
    position = 0
    for start, end in spans:
        while position < len(ids) and offsets[position][0] < start:
            position += 1
        while position < len(ids) and offsets[position][0] < end:
            if offsets[position][1] > offsets[position][0]:  # tokens that the tokenizer adds have no place in the text
                labels[position] = ids[position]
            position += 1
    return labels
