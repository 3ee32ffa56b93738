"""Conversations: prompts, the model's context, and saved rows.

Oracles: `tokenize_prompt` for the turns written out, and `neft`'s own reader of rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neftcli.data.chat import ChatFormat
from neftcli.data.sources import read_rows
from neftcli.data.tokens import tokenize_prompt
from neftcli.errors import DataError, InputError
from neftcli.inference.conversation import Conversation, append_rows
from neftcli.models.chat_templates import set_chat_template
from neftcli.rows.example import Example, Turn
from neftcli.rows.formats import detect_format, to_example
from tests.tiny import tiny_tokenizer


def chat_format(template: str = "chatml") -> ChatFormat:
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, template)
    return ChatFormat(tokenizer)


def prompt_of(chat: ChatFormat, *turns: tuple[str, str]) -> list[int]:
    return tokenize_prompt(chat, Example(tuple(Turn(role, text) for role, text in turns), "", ""))


@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_conversation_prompt_has_system_turn_and_history(template: str) -> None:
    chat = chat_format(template)
    conversation = Conversation(chat, False, None, "Be brief.")
    conversation.add("Hi", "Hello.")
    conversation.add("", "")  # an answer without text is not part of a prompt
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    assert conversation.tokenize("Bye") == prompt_of(chat, *turns)


def test_conversation_special_tokens_in_a_question_are_text() -> None:
    """A typed stop token does not end the turn."""
    chat = chat_format()
    question = f"a{chat.tokenizer.eos_token}b"
    ids = Conversation(chat, False, None).tokenize(question)
    assert chat.tokenizer.eos_token_id not in ids
    assert question in chat.tokenizer.decode(ids)


def test_conversation_drops_the_oldest_turns_that_do_not_fit() -> None:
    """The system turn stays; what is dropped stays dropped; a question that is too long changes nothing."""
    chat = chat_format()
    system, last = ("system", "S"), ("user", "question 3")
    limit = len(prompt_of(chat, system, ("user", "question 2"), ("assistant", "answer 2"), last))
    conversation = Conversation(chat, False, limit, "S")
    for number in (1, 2):
        conversation.add(f"question {number}", f"answer {number}")
    with pytest.raises(InputError, match="too long for the model's context"):
        conversation.tokenize("x" * limit)
    assert conversation.dropped == 0
    expected = prompt_of(chat, system, ("user", "question 2"), ("assistant", "answer 2"), last)
    assert conversation.tokenize("question 3") == expected
    assert conversation.dropped == 1
    assert conversation.tokenize("q") == prompt_of(
        chat, system, ("user", "question 2"), ("assistant", "answer 2"), ("user", "q")
    )
    assert len(conversation.exchanges) == 2
    conversation.truncate(0)
    assert conversation.dropped == 0


def test_conversation_plain_text_has_no_history() -> None:
    tokenizer = tiny_tokenizer()
    conversation = Conversation(ChatFormat(tokenizer, chats=False), True, 10)
    conversation.add("Once", " upon a time")
    assert conversation.tokenize("The end") == tokenizer("The end")["input_ids"]
    assert conversation.rows() == [{"text": "Once upon a time"}]
    with pytest.raises(InputError, match="too long"):
        conversation.tokenize("x" * 11)


def test_conversation_validate_system() -> None:
    chat = chat_format()
    Conversation(chat, False, None).validate_system("Be brief.")
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="no system turn"):
        Conversation(ChatFormat(chat.tokenizer), False, None).validate_system("Be brief.")


@pytest.mark.parametrize(("ending", "begins"), [("<think>\n", True), ("", False)])
def test_conversation_begins_with_reasoning(ending: str, begins: bool) -> None:
    chat = chat_format()
    chat.tokenizer.chat_template += f"{{% if add_generation_prompt %}}{{{{ {ending!r} }}}}{{% endif %}}"
    assert Conversation(ChatFormat(chat.tokenizer), False, None).begins_with_reasoning("Hi") is begins


# Saved rows


def test_append_rows_are_read_by_neft(tmp_path: Path) -> None:
    """Twice into one file, the first time without a line break at its end."""
    conversation = Conversation(chat_format(), False, None, "Be \u2028 brief.")
    conversation.add("Hi", "Hello.")
    file = append_rows(str(tmp_path / "chats.jsonl"), conversation.rows())
    file.write_text(file.read_text().rstrip("\n"))
    conversation.add("Bye", "")
    append_rows(str(file), conversation.rows())
    rows = list(read_rows(str(file)))
    assert len(rows) == 2
    for row in rows:
        example = to_example(row, detect_format(row, {}))
        turns = (Turn("system", "Be \u2028 brief."), Turn("user", "Hi"), Turn("assistant", "Hello."))
        assert example.turns == turns


def test_append_rows_rejects_other_files(tmp_path: Path) -> None:
    rows = [{"messages": []}]
    with pytest.raises(InputError, match=r"must end in \.jsonl"):
        append_rows(str(tmp_path / "chat.txt"), rows)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(InputError, match="has other rows"):
        append_rows(str(tmp_path / "pairs.jsonl"), rows)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "new.jsonl")
    with pytest.raises(InputError, match="does not write through links"):
        append_rows(str(tmp_path / "link.jsonl"), rows)
    with pytest.raises(InputError, match="can't be written"):
        append_rows(str(tmp_path / "missing" / "x.jsonl"), rows)
    assert (tmp_path / "pairs.jsonl").read_text() == '{"prompt": "a", "completion": "b"}'
