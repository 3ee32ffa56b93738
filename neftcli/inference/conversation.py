"""A conversation with a model: its turns, the tokens of the next prompt, and the rows that it is saved as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import render_prompt, tokenize_beginning, tokenize_prompt
from neftcli.errors import InputError, Problem
from neftcli.inference.reasoning import begins_with_reasoning
from neftcli.rows.example import Example, Turn
from neftcli.runs.directory import format_json_line
from neftcli.system.files import open_without_links, require_no_link
from neftcli.system.paths import expand_home
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat

LOCATION = "this conversation"
ENDING = ".jsonl"


@dataclass
class Conversation:
    """The turns so far, and how they become a prompt.

    If the conversation exceeds the model's context, the oldest questions are left out with their answers, and stay left
    out; the system turn is kept.

    Attributes:
        chat: The tokenizer with its chat template.
        plain_text: Each question is the beginning of a text of its own; there is no template and no history.
        max_prompt_length: Maximum tokens of a prompt; None if there is no limit.
        system: The system turn; empty if there is none.
        exchanges: Questions and answers.
        dropped: Number of the oldest exchanges that the prompt leaves out.
    """

    chat: ChatFormat
    plain_text: bool
    max_prompt_length: int | None
    system: str = ""
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0

    def tokenize(self, question: str) -> list[int]:
        """Return the prompt of the next answer; leave out more of the oldest exchanges if it is too long.

        Raises:
            InputError: The question alone is too long, or the template rejects the conversation.
        """
        if self.plain_text:
            ids = tokenize_beginning(self.chat, question, LOCATION)
            self._require_room(ids)
            return ids
        for dropped in range(self.dropped, len(self.exchanges) + 1):
            ids = tokenize_prompt(self.chat, self._example(question, dropped))
            if self.max_prompt_length is None or len(ids) <= self.max_prompt_length:
                self.dropped = dropped
                break
        self._require_room(ids)
        return ids

    def _require_room(self, ids: Sequence[int]) -> None:
        if self.max_prompt_length is not None and len(ids) > self.max_prompt_length:
            raise InputError(
                Problem(
                    "the question is too long for the model's context",
                    f"{count_noun(len(ids), 'token')}, and the answer leaves room for {self.max_prompt_length}",
                    "shorten it, or leave it more room with a smaller --max-new-tokens",
                )
            )

    def begins_with_reasoning(self, question: str) -> bool:
        """Return whether the prompt ends with <think>, so that the answer begins with reasoning."""
        if self.plain_text:
            return False
        return begins_with_reasoning(self.chat, self._example(question, self.dropped))

    def validate_system(self, system: str) -> None:
        """Check that the template renders a system turn.

        Raises:
            DataError: It doesn't.
        """
        render_prompt(self.chat, Example((Turn("system", system), Turn("user", "Hi")), "", LOCATION))

    def add(self, question: str, answer: str) -> None:
        """Add a question and its answer; one without text stays out of prompts and rows."""
        self.exchanges.append((question, answer))

    def truncate(self, exchanges: int) -> None:
        """Keep this number of the oldest exchanges."""
        del self.exchanges[exchanges:]
        self.dropped = min(self.dropped, exchanges)

    def clear(self) -> None:
        """Begin again, with the same system turn."""
        self.exchanges.clear()
        self.dropped = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the conversation as rows that `neft train` reads: one with messages, or plain texts."""
        answered = [(question, answer) for question, answer in self.exchanges if answer]
        if self.plain_text or not answered:
            return [{"text": question + answer} for question, answer in answered]
        turns = self._turns(self.exchanges)
        return [{"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}]

    def _example(self, question: str, dropped: int) -> Example:
        turns = (*self._turns(self.exchanges[dropped:]), Turn("user", question))
        return Example(turns, "", LOCATION)

    def _turns(self, exchanges: Sequence[tuple[str, str]]) -> list[Turn]:
        turns = [Turn("system", self.system)] if self.system else []
        for question, answer in exchanges:
            if answer:
                turns += [Turn("user", question), Turn("assistant", answer)]
        return turns


def append_rows(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Append rows to a .jsonl file, which is created if it is missing, and return its path.

    Raises:
        InputError: The file has another ending, is a link, can't be written or holds something else.
    """
    path = expand_home(name)
    if path.suffix != ENDING:
        message = f"the file's name must end in {ENDING}, by which `neft train` reads it"
        raise InputError(Problem(message, name, f"/save {name}{ENDING}"))
    require_no_link(path)
    try:
        before = path.read_bytes() if path.exists() else b""
        column = next(iter(rows[0]))
        if before.strip() and not _has_column(before.lstrip().partition(b"\n")[0], column):
            raise InputError(
                Problem(f"{path}: this file has other rows", f"no {column} in its first row", "/save NEW.jsonl")
            )
        with open_without_links(path, "a") as file:
            file.write("\n" if before and not before.endswith(b"\n") else "")
            file.write("".join(map(format_json_line, rows)))
    except OSError as error:
        raise InputError(Problem(f"{path} can't be written", error.strerror or str(error))) from None
    return path


def _has_column(line: bytes, column: str) -> bool:
    try:
        return column in json.loads(line)
    except (ValueError, TypeError):
        return False
