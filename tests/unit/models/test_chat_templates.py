"""Named chat templates.

Oracles: whole conversations written out by hand, as Stanford Alpaca and ChatML have them.
"""

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from neftcli.errors import ModelError
from neftcli.models.chat_templates import (
    ALPACA,
    CHATML,
    NAMED_TEMPLATES,
    OWN_TEMPLATE,
    set_chat_template,
    validate_chat_template,
)
from tests.tiny import tiny_tokenizer

BELOW = "Below is an instruction that describes a task"
WRITE = "Write a response that appropriately completes the request."
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?", "input": "2"},
    {"role": "assistant", "content": "'2'"},
]


def rendered(template: str, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, template)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def writes_bos() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def test_alpaca_template_is_verbatim() -> None:
    """System turn, both prompts, answers with their stop token, and a blank line between two exchanges."""
    assert rendered("alpaca", CHAT) == (
        "Be brief.\n\n"
        f"{BELOW}. {WRITE}\n\n### Instruction:\none?\n\n### Response:1</s>\n\n"
        f"{BELOW}, paired with an input that provides further context. {WRITE}\n\n"
        "### Instruction:\ntwo?\n\n### Input:\n2\n\n### Response:'2'</s>"
    )


def test_alpaca_template_empty_input() -> None:
    """An empty or missing input gives the paper's prompt without an input."""
    expected = f"{BELOW}. {WRITE}\n\n### Instruction:\nq\n\n### Response:"
    for extra in ({}, {"input": ""}):
        assert rendered("alpaca", [{"role": "user", "content": "q", **extra}], True) == expected


def test_chatml_template_ends_every_turn() -> None:
    """Answers end with the model's stop token, other turns with ChatML's; the prompt begins the answer."""
    begun = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered("chatml", CHAT[:2], True) == begun
    assert rendered("chatml", CHAT[:3]) == f"{begun}1</s>\n"


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_named_templates_are_prefixes_of_longer_chats(name: str) -> None:
    """A chat begins with the prompt of each of its parts, so that answers can be located."""
    whole = rendered(name, CHAT)
    for length in (2, 4):
        assert whole.startswith(rendered(name, CHAT[:length], True) + CHAT[length]["content"] + "</s>")


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_set_chat_template_writes_one_bos_token(name: str) -> None:
    """A chat is tokenised without special tokens, so the template writes the BOS token."""
    tokenizer = writes_bos()
    set_chat_template(tokenizer, name)
    with_bos = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert with_bos == "<s>" + rendered(name, CHAT)


def test_set_chat_template_keeps_the_models_own() -> None:
    """Unless a different one is named."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert set_chat_template(tokenizer, None) == OWN_TEMPLATE
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert set_chat_template(tokenizer, "chatml") == "chatml"
    assert tokenizer.chat_template == CHATML


def test_set_chat_template_default_is_alpaca() -> None:
    """The paper's template, which is reported."""
    tokenizer = tiny_tokenizer()
    assert set_chat_template(tokenizer, None) == "alpaca"
    assert tokenizer.chat_template == ALPACA


def test_set_chat_template_from_a_file(tmp_path: Path) -> None:
    """The file's text is unchanged, even if the tokenizer writes a BOS token."""
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}é{{ m.content }}{% endfor %}", encoding="utf-8")
    tokenizer = writes_bos()
    assert set_chat_template(tokenizer, str(file)) == "own.jinja"
    assert tokenizer.apply_chat_template(CHAT[1:3], tokenize=False) == "éone?é1"


def test_set_chat_template_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jinja").write_text("{{ messages }}", encoding="utf-8")
    tokenizer = tiny_tokenizer()
    validate_chat_template("~/own.jinja")
    assert set_chat_template(tokenizer, "~/own.jinja") == "own.jinja"
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("own", [None, "{{ messages[0].content }}"])
def test_set_chat_template_rejects_an_unknown_name(own: str | None) -> None:
    """A misspelt name is rejected, and the tokenizer keeps its template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = own
    with pytest.raises(ModelError) as raised:
        set_chat_template(tokenizer, "alpacca")
    assert str(raised.value) == (
        "model.chat_template: neither a named template nor a file\n"
        "  got      alpacca\n"
        "  did you mean alpaca?\n"
        "  hint     one of alpaca, chatml"
    )
    assert tokenizer.chat_template == own
