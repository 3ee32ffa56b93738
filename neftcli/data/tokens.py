"""Tokenised rows: token ids, and the labels of the tokens that carry loss.

Training must see the same tokens as generation. Generation starts after the tokens of the prompt alone, so no token may
contain both the end of the prompt and the start of the answer. Rows in which the tokenizer would merge across that
boundary (`:(` in "### Response:(a)") are tokenised in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from neftcli.data.chat import ChatFormat
from neftcli.data.rendering import PROMPT_DIFFERS, LossOn, Rendering, render_conversation
from neftcli.data.tokenizer import is_tokenizer_error, tokenizer_errors
from neftcli.errors import panics_as_errors
from neftcli.rows.example import Example

IGNORE_INDEX = -100
"""Label of a token without loss."""
TOKENIZER_ROWS = 512
TEXT_PROMPT_WORDS = 32
"""Maximum number of a plain text's words that generation starts from."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenised example.

    Attributes:
        input_ids: Token ids, without padding.
        labels: The token id where a token carries loss, IGNORE_INDEX elsewhere; as long as `input_ids`. The first is
            always IGNORE_INDEX, since nothing predicts the first token.
        truncated: The row was longer than data.max_length.
        ends_with_stop_token: The last token with loss is a stop token, so the model learns to stop.
        location: File and line of the row.
        remarks: Remarks on how it was rendered and tokenised.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    ends_with_stop_token: bool
    location: str
    remarks: tuple[str, ...] = ()

    def loss_tokens(self) -> int:
        """Return the number of tokens that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


def render_prompt(chat: ChatFormat, example: Example) -> str:
    """Return the text that generation starts from: all before the last answer, or a plain text's first words."""
    if example.turns:
        return chat.special_tokens.unescape(chat.render_prompt(example))
    prefix = _prefix_text(chat)
    return prefix + split_prompt_and_reference(example)[0].removeprefix(prefix)


def tokenize_prompt(chat: ChatFormat, example: Example) -> list[int]:
    """Return the token ids that generation starts from.

    Raises:
        DataError: The tokenizer fails.
    """
    with tokenizer_errors(chat.tokenizer, example.location):
        if not example.turns:
            return _encode_with_prefix(chat, split_prompt_and_reference(example)[0])
        return _tokenize_pieces(chat, chat.render_prompt(example), [])[0]


def tokenize_beginning(chat: ChatFormat, text: str, location: str) -> list[int]:
    """Return the token ids of a plain text that generation continues.

    Raises:
        DataError: The tokenizer fails.
    """
    with tokenizer_errors(chat.tokenizer, location):
        return _encode_with_prefix(chat, text)


def split_prompt_and_reference(example: Example) -> tuple[str, str]:
    """Return prompt and reference answer; of a plain text its first words and the rest."""
    if example.turns:
        return example.prompt(), example.answer()
    words = example.text.split(" ")
    length = min(TEXT_PROMPT_WORDS, (len(words) + 1) // 2)
    return " ".join(words[:length]), " ".join(words[length:])


def instruction(example: Example) -> str:
    """Return the instruction as text for a judge, a leaderboard or a person; several turns with their roles."""
    return example.transcript() if example.turns else split_prompt_and_reference(example)[0]


def tokenize(
    chat: ChatFormat, examples: Sequence[Example], max_length: int, loss_on: LossOn = "auto"
) -> Iterator[TokenRow]:
    """Tokenise examples, in order.

    A token carries loss if it begins inside a learned answer or is the stop token after it. Plain text gets one stop
    token, and every token but the first carries loss.

    Args:
        chat: The tokenizer with its chat template.
        examples: Conversations or plain texts, not both.
        max_length: Maximum tokens of a row; longer rows are truncated.
        loss_on: The recipe's `data.loss_on`.

    Raises:
        DataError: The chat template rejects a conversation or leaves a part of it out, or the tokenizer fails.
        ModelError: An answer can't be located in the rendering.
    """
    for start in range(0, len(examples), TOKENIZER_ROWS):
        batch = list(examples[start : start + TOKENIZER_ROWS])
        for example, (ids, labels, remarks) in zip(batch, _tokenize_batch(chat, batch, loss_on), strict=True):
            labels = [IGNORE_INDEX, *labels[1:max_length]]
            learned = [label for label in labels if label != IGNORE_INDEX]
            ends_with_stop_token = bool(learned) and learned[-1] in chat.stop_token_ids
            truncated = len(ids) > max_length
            yield TokenRow(ids[:max_length], labels, truncated, ends_with_stop_token, example.location, remarks)


TokenizedText = tuple[list[int], list[int], tuple[str, ...]]
"""Token ids, labels and remarks."""


def _tokenize_batch(chat: ChatFormat, batch: Sequence[Example], loss_on: LossOn) -> list[TokenizedText]:
    """Tokenise a batch; if the tokenizer fails, tokenise the rows one by one to find the location."""
    function = _tokenize_conversations if batch[0].turns else _tokenize_texts
    try:
        with panics_as_errors():
            return list(function(chat, batch, loss_on))
    except Exception as error:
        if not is_tokenizer_error(error):
            raise
        for example in batch:
            with tokenizer_errors(chat.tokenizer, example.location):
                list(function(chat, [example], loss_on))
        raise


def _tokenize_texts(chat: ChatFormat, batch: Sequence[Example], _: LossOn) -> Iterator[TokenizedText]:
    eos = str(chat.tokenizer.eos_token)
    for example in batch:
        ids = _encode_with_prefix(chat, example.text.removesuffix(eos) + eos)
        yield ids, [IGNORE_INDEX] * len(chat.prefix) + ids[len(chat.prefix) :], ()


def _encode_with_prefix(chat: ChatFormat, text: str) -> list[int]:
    """Return the tokenizer's prefix and the token ids of the text, without EOS."""
    ids: list[int] = chat.tokenizer(text.removeprefix(_prefix_text(chat)), add_special_tokens=False)["input_ids"]
    return [*chat.prefix, *ids]


def _prefix_text(chat: ChatFormat) -> str:
    return "".join(str(token) for token in chat.tokenizer.convert_ids_to_tokens(chat.prefix))


def _tokenize_conversations(chat: ChatFormat, batch: Sequence[Example], loss_on: LossOn) -> Iterator[TokenizedText]:
    renderings = [render_conversation(chat, example, loss_on) for example in batch]
    texts = []
    prompts = []
    for rendering in renderings:
        last = rendering.answers[-1]
        texts.append(rendering.text[: last.end] if loss_on == "tokens" else rendering.text)
        prompts.append(texts[-1][: last.start])
    encoded = chat.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    encoded_prompts = chat.tokenizer(prompts, add_special_tokens=False)
    for rendering, text, ids, offsets, prompt in zip(
        renderings, texts, encoded["input_ids"], encoded["offset_mapping"], encoded_prompts["input_ids"], strict=True
    ):
        remarks = rendering.remarks
        if _has_token_at_each_answer(chat, rendering, text, offsets) and ids[: len(prompt)] == prompt:
            labels = _label_answers(ids, offsets, rendering)
        else:
            spans = [(answer.start, answer.end, answer.learned) for answer in rendering.answers]
            ids, labels = _tokenize_pieces(chat, text, spans)
            prompt = _tokenize_pieces(chat, text[: rendering.answers[-1].start], [])[0]
            if prompt != ids[: len(prompt)] and PROMPT_DIFFERS not in remarks:
                remarks = (*remarks, PROMPT_DIFFERS)
        yield ids, list(ids) if loss_on == "tokens" else labels, remarks


def _has_token_at_each_answer(
    chat: ChatFormat, rendering: Rendering, text: str, offsets: Sequence[tuple[int, int]]
) -> bool:
    """Return whether a token starts with each answer, and the data contains no special token."""
    token_starts = {begin for begin, end in offsets if end > begin}
    for answer in rendering.answers:
        # A space before the answer may be part of its first token even if the offsets deny it: some tokenizers trim it.
        if answer.start not in token_starts or text[answer.start - 1 : answer.start] == " ":
            return False
    return not any(is_special for _, is_special in chat.special_tokens.split(text))


def _label_answers(ids: Sequence[int], offsets: Sequence[tuple[int, int]], rendering: Rendering) -> list[int]:
    labels = [IGNORE_INDEX] * len(ids)
    position = 0
    for answer in rendering.answers:
        while position < len(ids) and offsets[position][0] < answer.start:
            position += 1
        while position < len(ids) and offsets[position][0] < answer.end:
            if answer.learned and offsets[position][1] > offsets[position][0]:
                labels[position] = ids[position]
            position += 1
    return labels


def _tokenize_pieces(
    chat: ChatFormat, text: str, spans: Sequence[tuple[int, int, bool]]
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a text that is split at each span's bounds and at special tokens of the data.

    Args:
        chat: The tokenizer.
        text: A text rendered by `ChatFormat`.
        spans: First character, character after the last, and whether it carries loss; in order.
    """
    learned = {(begin, end) for begin, end, learns in spans if learns}
    bounds = sorted({0, len(text), *(bound for begin, end, _ in spans for bound in (begin, end))})
    ids: list[int] = []
    labels: list[int] = []
    for begin, end in pairwise(bounds):
        for piece, is_special in chat.special_tokens.split(text[begin:end]):
            new = chat.continuation.encode(piece, ids, as_characters=is_special)
            ids += new
            labels += new if (begin, end) in learned else [IGNORE_INDEX] * len(new)
    return ids, labels
