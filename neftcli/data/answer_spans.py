"""Positions of a conversation's turns and answers in its rendering."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from neftcli.data.chat import FIRST_MARK, ChatFormat, Span
from neftcli.data.tokenizer import THINK_END
from neftcli.errors import DataError, ModelError, Problem
from neftcli.models.chat_templates import OTHER_TEMPLATE

if TYPE_CHECKING:
    from neftcli.rows.example import Example

EMPTY_THINKING = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass(frozen=True, slots=True)
class _MarkPositions:
    """Marks in a rendering.

    Attributes:
        unique: Number of a mark to its position, for the marks that occur once.
        present: Numbers of all marks in the rendering.
        reliable: The marks change nothing else in the rendering.
    """

    unique: dict[int, int]
    present: frozenset[int]
    reliable: bool


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """Bounds of an assistant turn in a rendered conversation.

    Attributes:
        turn: Index of the turn.
        start: First character that generation writes.
        end: Character after the answer and its stop token.
        learned: The answer carries loss.
    """

    turn: int
    start: int
    end: int
    learned: bool


class Marks:
    """Positions of the turns of a conversation in its rendering.

    The conversation is rendered once more with a private-use character on each side of every content, when a position
    is first needed. No position is known if that changes anything else in the rendering.

    Args:
        chat: The format that renders it.
        example: The conversation.
        text: Its rendering.
        turns: Number of turns that were rendered; None for all.
    """

    def __init__(self, chat: ChatFormat, example: Example, text: str, turns: int | None = None) -> None:
        self._chat, self._example, self._text, self._turns = chat, example, text, turns

    @cached_property
    def _marks(self) -> _MarkPositions:
        try:
            marked = self._chat.render_marked(self._example, self._turns, self._turns is not None)
        except DataError:  # the template examines the contents, and rejects marked ones
            return _MarkPositions({}, frozenset(), reliable=False)
        any_mark = f"[{chr(FIRST_MARK)}-{chr(FIRST_MARK + 2 * len(self._example.turns))}]"
        positions: dict[int, set[int]] = {}
        for marks_before, mark in enumerate(re.finditer(any_mark, marked)):
            positions.setdefault(ord(mark[0]) - FIRST_MARK, set()).add(mark.start() - marks_before)
        reliable = re.sub(any_mark, "", marked) == self._text
        unique = {}
        for number, number_positions in positions.items():
            if reliable and len(number_positions) == 1:
                unique[number] = min(number_positions)
        return _MarkPositions(unique, frozenset(positions), reliable)

    @cached_property
    def starts(self) -> dict[int, int]:
        """Index of a turn to the first character of its content."""
        return {number // 2: position for number, position in self._marks.unique.items() if number % 2 == 0}

    @cached_property
    def ends(self) -> dict[int, int]:
        """Index of a turn to the character after its content."""
        return {number // 2: position for number, position in self._marks.unique.items() if number % 2}

    @cached_property
    def missing(self) -> set[int]:
        """Indices of turns whose content is not rendered."""
        marks = self._marks
        if not marks.reliable:
            return set()
        indices = range(len(self._example.turns[: self._turns]))
        return {index for index in indices if marks.present.isdisjoint((2 * index, 2 * index + 1))}

    @property
    def ends_if_known(self) -> dict[int, int]:
        """The ends, if the marks have been rendered already; else empty."""
        return self.ends if "_marks" in self.__dict__ else {}


class AnswerLocator:
    """Finds the answers of a conversation in its rendering.

    Args:
        chat: The format that renders it.
        example: The conversation.
        text: Its rendering.
        marks: Positions of the turns in the rendering.
    """

    def __init__(self, chat: ChatFormat, example: Example, text: str, marks: Marks) -> None:
        self._chat, self._example, self._text, self._marks = chat, example, text, marks

    def locate(self, index: int, prompt: str, block: Span | None, begin: int) -> Span:
        """Return the first character of an answer and the one after its stop token.

        Args:
            index: Index of the answer's turn.
            prompt: The turns before it, rendered as a prompt to answer.
            block: Its generation block, if the template marks them.
            begin: End of the answer before it.

        Raises:
            ModelError: The start of the answer can't be located.
        """
        text = self._text
        shared = shared_prefix(prompt, text)
        content = self._visible_content(index)
        if block is not None:
            limit = block[1]
            start = shared if block[0] <= shared <= block[1] else block[0]
        elif shared == len(prompt):
            start = shared
            limit = self._end_of_turn(index, start, content)
        else:
            start = shared
            # The prompt may end in more than the answer begins with, as with templates that open with <think>.
            if shared < self._end_of_question(index, begin):
                start = self._locate_after_header(index, prompt, begin, content)
            limit = self._start_of_next_turn(index, start, content)
        content_end = start
        if content and (position := text.find(content, start, limit)) >= 0:
            content_end = position + len(content)
        marked_end = self._marks.ends_if_known.get(index, -1)
        if start <= marked_end <= limit:
            content_end = marked_end
        if self._chat.reasoning == "drop" and (empty := EMPTY_THINKING.match(text, start)):
            start = empty.end()  # which a template writes instead of the reasoning
        return start, self._end_of_stop_token(start, content_end, limit, in_block=block is not None)

    def _end_of_stop_token(self, start: int, content_end: int, limit: int, *, in_block: bool) -> int:
        """Return the end of the first stop token after an answer's content; without one, that of the answer's text."""
        text, stop_tokens = self._text, self._chat.stop_tokens
        positions = [text.find(stop_token, content_end, limit) for stop_token in stop_tokens]
        positions = [position for position in positions if position >= 0]
        if positions:
            stop = min(positions)
        elif in_block and text.startswith(stop_tokens, limit):
            stop = limit  # the block is closed before the stop token
        else:
            return start + len(text[start:limit].rstrip())
        return stop + next(len(stop_token) for stop_token in stop_tokens if text.startswith(stop_token, stop))

    def _visible_content(self, index: int) -> str:
        """Return the rendered part of an answer: all of its content, or what follows the reasoning."""
        content = self._chat.content(self._example.turns[index])
        return content if content in self._text else content.rpartition(THINK_END)[2].strip()

    def _question(self, index: int) -> str:
        """Return the content of the turn before an answer, as it is rendered."""
        return self._chat.special_tokens.escape(self._example.turns[index - 1].content) if index else ""

    def _end_of_question(self, index: int, begin: int) -> int:
        """Return the character after the question; the end of the text if it is not found."""
        question = self._question(index)
        position = self._text.find(question, begin)
        end = position + len(question) if position >= 0 else len(self._text)
        return self._marks.ends.get(index - 1, end)

    def _end_of_turn(self, index: int, start: int, content: str) -> int:
        """Return the end of an answer's turn, or the latest that it can be."""
        if index + 1 == len(self._example.turns):
            return len(self._text)
        through_answer = self._chat.render_turns(self._example, index + 1)
        if self._text.startswith(through_answer):
            return len(through_answer)
        return self._start_of_next_turn(index, start, content)

    def _start_of_next_turn(self, index: int, start: int, content: str) -> int:
        """Return the latest start of the next turn, if the template renders turns depending on later ones."""
        if index + 1 in self._marks.starts:
            return self._marks.starts[index + 1]
        content_end = self._text.find(content, start) + len(content) if content else start
        if index + 1 < len(self._example.turns):
            next_content = self._chat.special_tokens.escape(self._example.turns[index + 1].content)
            position = self._text.find(next_content, content_end)
            if position >= 0:
                return position
        return len(self._text)

    def _locate_after_header(self, index: int, prompt: str, begin: int, content: str) -> int:
        """Return the start of an answer if the template renders earlier turns depending on later ones.

        Raises:
            ModelError: The text between question and answer can't be located.
        """
        text, marks = self._text, self._marks
        question = self._question(index)
        header = prompt[prompt.rfind(question) + len(question) :] if question and question in prompt else ""
        position = text.find(header, text.find(question, begin)) if header else -1
        if index - 1 in marks.ends:
            prompt_marks = Marks(self._chat, self._example, prompt, index)
            header = prompt[prompt_marks.ends.get(index - 1, len(prompt) - len(header)) :]
            position = text.find(header, marks.ends[index - 1]) if header else -1
        if position < 0 or (content and text.find(content, position) < 0):
            raise ModelError(
                Problem(
                    "model.chat_template: this chat template renders earlier turns depending on later ones, and "
                    "the start of an answer can't be located",
                    self._example.location,
                    f"{OTHER_TEMPLATE}, or --set data.loss_on=tokens",
                )
            )
        return position + len(header)


def assign_blocks(blocks: list[Span], answers: int) -> list[Span]:
    """Return one generation block for each answer; empty if they can't be assigned."""
    if len(blocks) == answers:
        return blocks
    merged: list[Span] = []
    for start, end in blocks:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged if len(merged) == answers else []


def shared_prefix(prompt: str, text: str) -> int:
    """Return the length of the prefix that prompt and text share, up to the end of a whole tag or line.

    A prompt may end in more than training renders, such as `<think>`; a letter that both share there by chance does not
    count.
    """
    if text.startswith(prompt):
        return len(prompt)
    # The length of what both begin with: halved and not letter by letter, since long conversations have many answers.
    shared = bisect_left(range(len(prompt)), True, key=lambda length: not text.startswith(prompt[: length + 1]))
    return max(text.rfind(mark, 0, shared) for mark in ">\n") + 1
