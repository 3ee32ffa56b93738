"""Answers whose reasoning begins in the prompt: some chat templates end a prompt with <think>."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neftcli.data.tokenizer import THINK
from neftcli.data.tokens import render_prompt

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.rows.example import Example


def begins_with_reasoning(chat: ChatFormat, example: Example) -> bool:
    """Return whether the prompt ends with <think>, so that the answer begins with reasoning; never in plain text."""
    return bool(example.turns) and render_prompt(chat, example).rstrip().endswith(THINK)


def add_opening_marker(answer: str) -> str:
    """Add the <think> of the prompt to an answer, as rows to train on have it; an empty answer stays empty."""
    return f"{THINK}\n{answer}" if answer else answer
