"""Tokenised examples: which tokens there are, and which of them carry loss.

Oracles: prompt and answer tokenised by hand, piece by piece. The tiny tokenizer has one token for each byte, so the
tokens of a text are those of its pieces end to end, and each piece was written down with whether it carries loss. The
pieces come from formatting strings in Python, not from the templates. The Alpaca prompts are copied from the words of
stanford_alpaca's `train.py`, which the paper's code formats its data with.
"""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from neftcli.data.chat import ChatFormat
from neftcli.data.rendering import PROMPT_DIFFERS
from neftcli.data.tokens import IGNORE_INDEX, TokenRow, render_prompt, tokenize, tokenize_prompt
from neftcli.errors import DataError
from neftcli.models.chat_templates import set_chat_template
from neftcli.rows.example import Example, Turn
from tests.tiny import SPECIAL_TOKENS, tiny_tokenizer

EOS = "</s>"
BOS = "<s>"
Pieces = list[tuple[str, bool]]

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
# ChatML as chat models ship it: the stop token is <|im_end|> in every turn, and is not the end-of-text token.
OWN_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No stop token anywhere, as old templates of base models have it.
WITHOUT_STOP = (
    "{% for message in messages %}"
    "{{ ('Q: ' if message.role == 'user' else 'A: ') + message.content + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)
# Keeps the last answer only, as templates do that strip the thinking of earlier turns.
FORGETFUL = (
    "{% for message in messages %}"
    "{{ '<' + message.role + '>' }}"
    "{{ message.content + eos_token if message.role == 'user' or loop.last else '' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
# Opens an answer with words that no written answer has, as templates of reasoning models do.
THINKING = (
    "{% for message in messages %}{{ '<' + message.role + '>' + message.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>' }}{% endif %}"
)


def conversation(*turns: tuple[str, str] | tuple[str, str, str], location: str = "rows.jsonl, line 1") -> Example:
    return Example(tuple(Turn(*turn) for turn in turns), "", location)


def plain(text: str) -> Example:
    return Example((), text, "rows.txt, line 1")


SINGLE = conversation(("user", "What?"), ("assistant", "That."))
MULTI = conversation(
    ("system", "Be brief."), ("user", "one?"), ("assistant", "1"), ("user", "two?\nplease"), ("assistant", "2\n\n2")
)


# Tokenizers, each with the pieces of a conversation in its template


def with_template(template: str | None, tokenizer: PreTrainedTokenizerFast | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer or tiny_tokenizer()
    set_chat_template(tokenizer, template)
    return tokenizer


def own_chatml() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken("<|im_start|>", special=True),
                AddedToken("<|im_end|>", special=True),
            ]
        }
    )
    tokenizer.chat_template = OWN_CHATML
    return tokenizer


def writes_bos(bos: str = BOS) -> PreTrainedTokenizerFast:
    """A tokenizer that begins every text with `bos`, as Llama's and OPT's do."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


def alpaca_pieces(example: Example) -> Pieces:
    pieces: Pieces = []
    for number, turn in enumerate(example.turns, 1):
        if turn.role == "system":
            pieces.append((f"{turn.content}\n\n", False))
        elif turn.role == "user" and turn.context:
            pieces.append((PROMPT_WITH_INPUT.format(instruction=turn.content, input=turn.context), False))
        elif turn.role == "user":
            pieces.append((PROMPT_WITHOUT_INPUT.format(instruction=turn.content), False))
        else:
            pieces.append((turn.content + EOS, True))
            pieces.append(("\n\n" if number < len(example.turns) else "", False))
    return pieces


def chatml_pieces(example: Example, stop: str = EOS) -> Pieces:
    pieces: Pieces = []
    for turn in example.turns:
        answer = turn.role == "assistant"
        content = f"{turn.content}\n\n{turn.context}" if turn.context else turn.content
        pieces.append((f"<|im_start|>{turn.role}\n", False))
        pieces.append((content + (stop if answer else "<|im_end|>"), answer))
        pieces.append(("\n", False))
    return pieces


def own_pieces(example: Example) -> Pieces:
    return chatml_pieces(example, "<|im_end|>")


def bos_pieces(example: Example) -> Pieces:
    return [(BOS, False), *alpaca_pieces(example)]


Setup = tuple[PreTrainedTokenizerFast, Callable[[Example], Pieces]]
SETUPS: dict[str, Setup] = {
    "alpaca": (with_template("alpaca"), alpaca_pieces),
    "chatml": (with_template("chatml"), chatml_pieces),
    "own chatml": (own_chatml(), own_pieces),
    "alpaca with bos": (with_template("alpaca", writes_bos()), bos_pieces),
}
setups = pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())


# By hand


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def by_hand(tokenizer: PreTrainedTokenizerFast, pieces: Pieces) -> tuple[list[int], list[int]]:
    """Token ids and labels of pieces of text, each tokenised by itself."""
    ids: list[int] = []
    labels: list[int] = []
    for text, loss in pieces:
        piece = ids_of(tokenizer, text)
        ids += piece
        labels += piece if loss else [IGNORE_INDEX] * len(piece)
    return ids, labels


def tokenize_one(
    tokenizer: PreTrainedTokenizerFast, example: Example, max_length: int = 10_000, completion_only: bool = True
) -> TokenRow:
    chat = ChatFormat(tokenizer, chats=bool(example.turns))
    (row,) = tokenize(chat, [example], max_length, "auto" if completion_only else "tokens")
    return row


def learned(tokenizer: PreTrainedTokenizerFast, row: TokenRow) -> str:
    return str(tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]))


# Conversations


@setups
@pytest.mark.parametrize(
    "example", [SINGLE, MULTI, conversation(("user", "Add", "2, 3"), ("assistant", "5"))], ids=["one", "many", "input"]
)
def test_tokenize_loss_on_answers_and_stop_tokens_only(setup: Setup, example: Example) -> None:
    """Tokens and labels are those of the pieces written by hand."""
    tokenizer, pieces = setup
    ids, labels = by_hand(tokenizer, pieces(example))
    assert tokenize_one(tokenizer, example) == TokenRow(
        ids, labels, truncated=False, ends_with_stop_token=True, location="rows.jsonl, line 1"
    )


def test_tokenize_learns_each_answer_once() -> None:
    """The same in plain text, in case the pieces are wrong."""
    assert learned(SETUPS["alpaca"][0], tokenize_one(SETUPS["alpaca"][0], MULTI)) == "1</s>2\n\n2</s>"
    assert learned(SETUPS["chatml"][0], tokenize_one(SETUPS["chatml"][0], MULTI)) == "1</s>2\n\n2</s>"
    assert (
        learned(SETUPS["own chatml"][0], tokenize_one(SETUPS["own chatml"][0], MULTI)) == "1<|im_end|>2\n\n2<|im_end|>"
    )


words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), max_size=12).map(str.strip)
answers = words.filter(bool)
pairs = st.lists(st.tuples(words, answers), min_size=1, max_size=3)


@settings(deadline=None)
@given(system=st.none() | answers, pairs=pairs, context=words)
@setups
def test_tokenize_labels_are_the_answers_of_any_conversation(
    setup: Setup, system: str | None, pairs: list[tuple[str, str]], context: str
) -> None:
    """For any conversation in any script the tokens are those by hand, and the labels decode to the answers."""
    tokenizer, pieces = setup
    turns = [Turn("system", system)] if system else []
    for question, answer in pairs:
        turns += [Turn("user", question, context), Turn("assistant", answer)]
    example = Example(tuple(turns), "", "")
    row = tokenize_one(tokenizer, example)
    assert (row.input_ids, row.labels) == by_hand(tokenizer, pieces(example))
    stop = "<|im_end|>" if pieces is own_pieces else EOS
    assert learned(tokenizer, row) == "".join(answer + stop for _, answer in pairs)


@setups
@pytest.mark.parametrize("example", [SINGLE, MULTI], ids=["one", "many"])
def test_tokenize_loss_on_all_tokens(setup: Setup, example: Example) -> None:
    """Every token up to the last stop token carries loss but the first."""
    tokenizer, pieces = setup
    ids = by_hand(tokenizer, pieces(example))[0]
    last = max(position for position, token in enumerate(ids) if token in ChatFormat(tokenizer).stop_token_ids) + 1
    row = tokenize_one(tokenizer, example, completion_only=False)
    assert row.input_ids == ids[:last]
    assert row.labels == [IGNORE_INDEX, *ids[1:last]]
    assert row.ends_with_stop_token


def test_tokenize_template_without_a_stop_token() -> None:
    """A model must learn to end, whatever its template: the last answer is followed by the end-of-text token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WITHOUT_STOP
    example = conversation(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    pieces: Pieces = [("Q: q\nA: ", False), ("a", True), ("\nQ: r\nA: ", False), (f"b{EOS}", True)]
    ids, labels = by_hand(tokenizer, pieces)
    assert tokenize_one(tokenizer, example) == TokenRow(
        ids, labels, truncated=False, ends_with_stop_token=True, location="rows.jsonl, line 1"
    )
    all_of_it = tokenize_one(tokenizer, example, completion_only=False)
    assert all_of_it.input_ids == ids
    assert all_of_it.labels == [IGNORE_INDEX, *ids[1:]]
    assert all_of_it.ends_with_stop_token


def test_tokenize_template_that_drops_earlier_answers() -> None:
    """A template that leaves an answer out is rejected, whichever tokens carry loss."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FORGETFUL
    example = conversation(("user", "one?"), ("assistant", "It is A."), ("user", "two?"), ("assistant", "It is B."))
    for completion_only in (True, False):
        with pytest.raises(DataError) as raised:
            tokenize_one(tokenizer, example, completion_only=completion_only)
        assert str(raised.value) == (
            "rows.jsonl, line 1, turn 2: the chat template does not render the answer\n"
            "  got      It is A.\n"
            "  hint     --chat-template chatml"
        )
    assert learned(tokenizer, tokenize_one(tokenizer, SINGLE)) == "That.</s>"


def test_tokenize_template_that_opens_answers_with_other_words() -> None:
    """The answer begins after the prefix that prompt and training share; the row has a remark about the difference."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKING
    row = tokenize_one(tokenizer, SINGLE)
    assert learned(tokenizer, row) == "That.</s>"
    assert row.remarks == (PROMPT_DIFFERS,)


def test_tokenize_template_that_rejects_a_conversation() -> None:
    """The message quotes the template and lists the roles."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ message.content }}{% endfor %}"
    )
    with pytest.raises(DataError) as raised:
        tokenize_one(tokenizer, MULTI)
    assert str(raised.value) == (
        f"{MULTI.location}: the chat template rejects this conversation: System role not supported\n"
        "  got      system, user, assistant, user, assistant\n"
        "  hint     --chat-template chatml"
    )


def test_tokenize_splits_where_generation_begins() -> None:
    """No merge crosses the boundary: the prompt's tokens are those of the prompt alone."""
    vocabulary = {**tiny_tokenizer().get_vocab(), ":T": 247}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "T")], unk_token="<unk>"))  # noqa: S106 - no password
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    tokenizer = with_template("alpaca", PreTrainedTokenizerFast(tokenizer_object=model, **SPECIAL_TOKENS))
    row = tokenize_one(tokenizer, SINGLE)
    prompt = tokenize_prompt(ChatFormat(tokenizer), SINGLE)
    assert 247 in tokenizer(tokenizer.decode(row.input_ids))["input_ids"]
    assert row.input_ids[: len(prompt)] == prompt
    assert learned(tokenizer, row) == "That.</s>"
    assert row.remarks == ()


def test_tokenize_learns_a_stop_token_that_is_the_pad_token() -> None:
    """Labels depend on the position, not on the token: a stop token is learned even if pad == eos."""
    tokenizer = with_template("alpaca")
    tokenizer.pad_token = tokenizer.eos_token
    row = tokenize_one(tokenizer, SINGLE)
    assert row.labels[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert row.ends_with_stop_token
    assert tokenize_one(tokenizer, plain("words"), completion_only=False).labels[-1] == tokenizer.eos_token_id


def test_chat_format_stop_token_ids() -> None:
    """The end-of-text token, and those that end a turn in a chat template, if the tokenizer has them."""
    assert ChatFormat(with_template("chatml")).stop_token_ids == {2}
    tokenizer = own_chatml()
    assert ChatFormat(tokenizer).stop_token_ids == {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert ChatFormat(tokenizer, chats=False).stop_token_ids == {2}
    # What the model's files name counts if it is an added token, as all stop tokens are.
    assert ChatFormat(tokenizer, [3, 50], chats=False).stop_token_ids == {2, 3}


def test_tokenize_rows_are_independent_and_in_order() -> None:
    """Rows of several batches are tokenised as each would be alone."""
    tokenizer = SETUPS["chatml"][0]
    examples = [
        conversation(("user", "q" * (number % 7)), ("assistant", str(number)), location=str(number))
        for number in range(1030)
    ]
    rows = list(tokenize(ChatFormat(tokenizer), examples, 10_000))
    assert [row.location for row in rows] == [example.location for example in examples]
    for number in (0, 511, 512, 1029):
        assert rows[number] == tokenize_one(tokenizer, examples[number])


def test_tokenize_no_examples() -> None:
    """A split without rows is not an error here."""
    assert list(tokenize(ChatFormat(tiny_tokenizer()), [], 100)) == []


# Plain text


@pytest.mark.parametrize("text", ["words", f"{BOS}words", f"words{EOS}", f"{BOS}words{EOS}"])
def test_tokenize_plain_text_has_one_bos_and_one_eos(text: str) -> None:
    """The row has one BOS and one EOS, even if the text was written with them."""
    tokenizer = writes_bos()
    words = ids_of(tokenizer, "words")
    row = tokenize_one(tokenizer, plain(text), completion_only=False)
    assert row == TokenRow(
        [1, *words, 2],
        [IGNORE_INDEX, *words, 2],
        truncated=False,
        ends_with_stop_token=True,
        location="rows.txt, line 1",
    )
    assert row.loss_tokens() == len(words) + 1


@pytest.mark.parametrize("text", ["words", f"{EOS}words", f"words{EOS}", f"{EOS}words{EOS}"])
def test_tokenize_plain_text_if_bos_is_eos(text: str) -> None:
    """OPT begins and ends a text with the same token."""
    tokenizer = writes_bos(EOS)
    words = ids_of(tokenizer, "words")
    row = tokenize_one(tokenizer, plain(text), completion_only=False)
    assert (row.input_ids, row.labels) == ([2, *words, 2], [IGNORE_INDEX, *words, 2])


def test_tokenize_plain_text_keeps_its_own_bos() -> None:
    """A text that was written with a BOS keeps it if the tokenizer writes none."""
    tokenizer = tiny_tokenizer()
    words = ids_of(tokenizer, "words")
    assert tokenize_one(tokenizer, plain("words"), completion_only=False).input_ids == [*words, 2]
    row = tokenize_one(tokenizer, plain(f"{BOS}words"), completion_only=False)
    assert row.input_ids == [1, *words, 2]
    assert row.labels == [IGNORE_INDEX, *words, 2]
    assert row.loss_tokens() == len(words) + 1


@pytest.mark.parametrize("name", ["alpaca", "chatml"])
def test_tokenize_conversation_has_one_bos(name: str) -> None:
    """The template writes it instead of the tokenizer."""
    row = tokenize_one(with_template(name, writes_bos()), MULTI)
    assert row.input_ids[0] == 1
    assert row.input_ids.count(1) == 1
    assert 1 not in tokenize_one(with_template(name), MULTI).input_ids


def test_chat_format_prefix() -> None:
    """The prefix is the BOS if the tokenizer writes one, else empty."""
    tokenizers = tiny_tokenizer(), writes_bos(), writes_bos(EOS)
    assert [ChatFormat(tokenizer, chats=False).prefix for tokenizer in tokenizers] == [[], [1], [2]]


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=30))
def test_tokenize_any_plain_text_comes_back(text: str) -> None:
    """All of a text is learned, with its end."""
    tokenizer = writes_bos()
    row = tokenize_one(tokenizer, plain(text), completion_only=False)
    assert tokenizer.decode(row.input_ids) == f"{BOS}{text}{EOS}"
    assert row.labels == [IGNORE_INDEX, *row.input_ids[1:]]


# Truncation


@setups
def test_tokenize_truncates_at_the_end(setup: Setup) -> None:
    """At every length the row has the first tokens and their labels, and the correct flags."""
    tokenizer, pieces = setup
    ids, labels = by_hand(tokenizer, pieces(MULTI))
    for length in range(8, len(ids) + 3):
        row = tokenize_one(tokenizer, MULTI, max_length=length)
        assert (row.input_ids, row.labels) == (ids[:length], labels[:length])
        assert row.truncated == (length < len(ids))
        last = [label for label in labels[:length] if label != IGNORE_INDEX][-1:]
        assert row.ends_with_stop_token == bool(last and last[0] in ChatFormat(tokenizer).stop_token_ids)
        assert row.loss_tokens() == sum(label != IGNORE_INDEX for label in labels[:length])


def test_tokenize_truncated_answer_does_not_stop() -> None:
    """One token short, only the stop token is missing."""
    tokenizer = SETUPS["alpaca"][0]
    whole = tokenize_one(tokenizer, SINGLE)
    length = len(whole.input_ids)
    assert (whole.truncated, whole.ends_with_stop_token) == (False, True)
    assert tokenize_one(tokenizer, SINGLE, max_length=length) == whole
    shorter = tokenize_one(tokenizer, SINGLE, max_length=length - 1)
    assert (shorter.truncated, shorter.ends_with_stop_token, learned(tokenizer, shorter)) == (True, False, "That.")


def test_tokenize_no_loss_if_the_whole_answer_is_truncated() -> None:
    """The question alone fills the row."""
    tokenizer = SETUPS["alpaca"][0]
    prompt = len(ids_of(tokenizer, PROMPT_WITHOUT_INPUT.format(instruction="What?")))
    row = tokenize_one(tokenizer, SINGLE, max_length=prompt)
    assert (row.loss_tokens(), row.truncated, row.ends_with_stop_token) == (0, True, False)
    assert tokenize_one(tokenizer, SINGLE, max_length=prompt + 1).loss_tokens() == 1


def test_tokenize_truncated_text_does_not_stop() -> None:
    """Neither does plain text."""
    row = tokenize_one(tiny_tokenizer(), plain("words"), max_length=5, completion_only=False)
    assert (row.loss_tokens(), row.truncated, row.ends_with_stop_token) == (4, True, False)


def test_token_row_loss_tokens_without_the_first() -> None:
    """Nothing predicts the first token."""
    assert TokenRow([5, 6, 7], [5, 6, 7], False, False, "").loss_tokens() == 2
    assert TokenRow([5], [5], False, False, "").loss_tokens() == 0


# Prompts


@pytest.mark.parametrize("context", ["", "2, 3, 5"])
def test_render_prompt_of_stanford_alpaca(context: str) -> None:
    """Stanford Alpaca's two prompts, word for word, and the answer directly after."""
    example = conversation(("user", "Add the numbers.", context), ("assistant", "10"))
    prompt = (PROMPT_WITH_INPUT if context else PROMPT_WITHOUT_INPUT).format(
        instruction="Add the numbers.", input=context
    )
    tokenizer = SETUPS["alpaca"][0]
    assert render_prompt(ChatFormat(tokenizer), example) == prompt
    assert tokenizer.decode(tokenize_one(tokenizer, example).input_ids) == f"{prompt}10</s>"


@setups
@pytest.mark.parametrize("example", [SINGLE, MULTI], ids=["one", "many"])
def test_tokenize_prompt_ends_where_the_last_answer_begins(setup: Setup, example: Example) -> None:
    """The prompt's tokens are a row's first tokens, up to its last answer."""
    tokenizer, pieces = setup
    expected = "".join(text for text, _ in pieces(example))
    chat = ChatFormat(tokenizer)
    prompt = render_prompt(chat, example)
    assert prompt == expected[: expected.rindex(example.answer())]
    ids = tokenize_prompt(chat, example)
    assert ids == ids_of(tokenizer, prompt)
    row = tokenize_one(tokenizer, example)
    assert row.input_ids[: len(ids)] == ids
    assert row.labels[len(ids)] != IGNORE_INDEX == row.labels[len(ids) - 1]


def test_render_prompt_of_plain_text() -> None:
    """Half of a short text, 32 words of a long one, after one BOS."""
    tokenizer = ChatFormat(writes_bos(), chats=False)
    assert render_prompt(tokenizer, plain("one two three four five")) == f"{BOS}one two three"
    assert render_prompt(tokenizer, plain(f"{BOS}one two three four")) == f"{BOS}one two"
    assert render_prompt(tokenizer, plain("word " * 100)) == BOS + " ".join(["word"] * 32)
    assert render_prompt(ChatFormat(tiny_tokenizer(), chats=False), plain("word")) == "word"


# Special tokens in the text


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (conversation(("user", f"what does {EOS} mean?"), ("assistant", "the end")), EOS),
        (conversation(("user", "how does a text end?"), ("assistant", f"with {EOS}")), EOS),
        (conversation(("user", "explain", f"see {BOS}"), ("assistant", "the beginning")), BOS),
        (plain("a <pad> here"), "<pad>"),
        (conversation(("user", "a < b > c"), ("assistant", "/s")), ""),
        (plain("words"), ""),
    ],
)
def test_find_special_token(example: Example, found: str) -> None:
    """A special token written in a question, an input, an answer or a text is found."""
    assert ChatFormat(tiny_tokenizer(), chats=False).special_tokens.find_special_token(example) == found


def test_find_special_token_of_the_chat_template() -> None:
    """A turn forged in the data would otherwise look real."""
    forged = conversation(("user", "hi<|im_end|>"), ("assistant", "a"))
    assert ChatFormat(own_chatml()).special_tokens.find_special_token(forged) == "<|im_end|>"
    assert ChatFormat(with_template("alpaca")).special_tokens.find_special_token(forged) == ""


@setups
def test_tokenize_special_tokens_in_the_data_are_ordinary_characters(setup: Setup) -> None:
    """A special token written in the data ends no turn: only the template's stop token does."""
    tokenizer, pieces = setup
    example = conversation(("user", f"what is {EOS}?"), ("assistant", f"a{EOS}b"))
    row, chat = tokenize_one(tokenizer, example), ChatFormat(tokenizer)
    special = [token for token in row.input_ids if token in tokenizer.all_special_ids]
    plainly = conversation(("user", "what is it?"), ("assistant", "ab"))
    assert special == [t for t in tokenize_one(tokenizer, plainly).input_ids if t in tokenizer.all_special_ids]
    assert tokenizer.decode(row.input_ids) == "".join(text for text, _ in pieces(example))
    assert learned(tokenizer, row) == "".join(text for text, loss in pieces(example) if loss)
    prompt = tokenize_prompt(chat, example)
    assert row.input_ids[: len(prompt)] == prompt


@setups
def test_tokenize_answer_that_ends_with_the_stop_token(setup: Setup) -> None:
    """Rows that were written with a stop token at the end have one, not two."""
    tokenizer, _ = setup
    stop = ChatFormat(tokenizer).stop_tokens[-1]
    written = conversation(("user", "q"), ("assistant", f"a{stop}"))
    assert tokenize_one(tokenizer, written) == tokenize_one(tokenizer, conversation(("user", "q"), ("assistant", "a")))


def test_tokenize_plain_text_with_special_tokens() -> None:
    """A text may have been rendered by a chat template already: its special tokens are tokens."""
    assert tokenize_one(tiny_tokenizer(), plain(f"a{EOS}b")).input_ids.count(2) == 2


def test_token_row_can_be_written_as_json() -> None:
    """Ids and labels are Python's own numbers, as `neft data inspect --json` needs them."""
    row = tokenize_one(SETUPS["alpaca"][0], SINGLE)
    assert json.loads(json.dumps([row.input_ids, row.labels])) == [row.input_ids, row.labels]


def test_pieces_have_tokens_of_both_kinds() -> None:
    """Check the oracle: each example has tokens with and without loss in each template."""
    for tokenizer, pieces in SETUPS.values():
        for example in (SINGLE, MULTI):
            labels = by_hand(tokenizer, pieces(example))[1]
            assert 0 < sum(label != IGNORE_INDEX for label in labels) < len(labels)
