"""Conversations rendered for training, with the bounds of each answer.

The bounds of each answer are read from the first of these that exists:
1. the `{% generation %}` blocks of TRL's training template, if TRL has one for the model's chat template;
2. the `{% generation %}` blocks of the model's own template;
3. the conversation rendered up to each answer, and the answer's text in the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from neftcli.data.answer_spans import AnswerLocator, AnswerSpan, Marks, assign_blocks
from neftcli.data.chat import ChatFormat
from neftcli.data.rendering_checks import (
    describe_left_out,
    find_reasoning_left_out,
    require_answer_in_block,
    require_rendered,
)
from neftcli.rows.example import Example

LossOn = Literal["auto", "all", "last", "completion", "tokens"]
PROMPT_DIFFERS = "the text before the last answer differs from the prompt that generation starts from"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation, rendered for training.

    Attributes:
        text: The text; special tokens in the data are escaped (`SpecialTokenEscaper`).
        answers: The assistant turns, in order.
        remarks: Remarks on how the template renders earlier turns.
    """

    text: str
    answers: tuple[AnswerSpan, ...]
    remarks: tuple[str, ...] = ()


def render_conversation(chat: ChatFormat, example: Example, loss_on: LossOn = "auto") -> Rendering:
    """Render a conversation for training.

    Args:
        chat: The tokenizer with its chat template.
        example: A conversation.
        loss_on: The recipe's `data.loss_on`.

    Raises:
        DataError: The template rejects this conversation, or leaves a part of it out.
        ModelError: The start of an answer can't be located, or a generation block does not enclose its answer.
    """
    text, blocks = chat.render_all(example)
    marks = Marks(chat, example, text)
    left_out = require_rendered(chat, text, example, marks)
    locator = AnswerLocator(chat, example, text, marks)
    indices = [index for index, turn in enumerate(example.turns) if turn.role == "assistant"]
    blocks = assign_blocks(blocks, len(indices))
    answers: list[AnswerSpan] = []
    for number, index in enumerate(indices):
        begin = answers[-1].end if answers else 0
        prompt = chat.render_turns(example, index, add_generation_prompt=True)
        start, end = locator.locate(index, prompt, blocks[number] if blocks else None, begin)
        answers.append(AnswerSpan(index, start, end, _is_learned(example, index, indices, loss_on)))
        if blocks:
            require_answer_in_block(chat, text, example, answers[-1], marks)
    last = answers[-1]
    if not text[last.end :].strip() and not text[: last.end].endswith(chat.stop_tokens):
        text = text[: last.end] + chat.ending
        answers[-1] = AnswerSpan(last.turn, last.start, len(text), last.learned)
    if chat.has_training_template:
        prompt = chat.render_prompt(example)
    remarks = describe_left_out(left_out) + find_reasoning_left_out(chat, text, example, answers, left_out)
    if last.turn == len(example.turns) - 1 and prompt != text[: last.start]:
        remarks.append(PROMPT_DIFFERS)
    return Rendering(text, tuple(answers), tuple(remarks))


def _is_learned(example: Example, index: int, answer_indices: Sequence[int], loss_on: LossOn) -> bool:
    """Return whether an answer carries loss: as the data marks it, else as the recipe says."""
    marked = example.turns[index].learn
    if marked is not None:
        return marked
    if loss_on == "last":
        return index == answer_indices[-1]
    return loss_on not in ("auto", "completion") or index >= example.completion
