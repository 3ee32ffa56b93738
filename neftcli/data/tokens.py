"""Examples as the model sees them: token ids, and the labels of those that carry loss.

Training must see what generation sees: generation starts after the tokens of the prompt alone, so no token may span
the end of the prompt and the start of the answer. Rows in which the tokenizer would make such a token (`:(` in
"### Response:(a)") are tokenised in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from neftcli.data.chat import UNLIKE_PROMPT, ChatFormat, LossOn, Rendering
from neftcli.data.formats import Example
from neftcli.data.panics import is_tokenizers, tokenizer_named
from neftcli.errors import panics_as_errors

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
        stops: Its last token with loss is a stop token, so that the model learns to end.
        where: Where the row stands.
        remarks: Remarks on how it was rendered and tokenised.
    """

    input_ids: list[int]
    labels: list[int]
    cut: bool
    stops: bool
    where: str
    remarks: tuple[str, ...] = ()

    def loss_tokens(self) -> int:
        """Tokens that carry loss; the first token of a row never does, since nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def render_prompt(chat: ChatFormat, example: Example) -> str:
    """The text that generation starts from: everything before the last answer, or a plain text's first words."""
    if example.turns:
        return chat.quoting.unquoted(chat.prompt(example))
    begins = _beginning(chat)
    return begins + prompt_and_reference(example)[0].removeprefix(begins)


def prompt_token_ids(chat: ChatFormat, example: Example) -> list[int]:
    """The tokens that generation starts from."""
    with tokenizer_named(chat.tokenizer, example.where):
        if not example.turns:
            return _plain_prefix_and_ids(chat, prompt_and_reference(example)[0])
        return _in_pieces(chat, chat.prompt(example), [])[0]


def prompt_and_reference(example: Example) -> tuple[str, str]:
    """What is asked and what the data answers; of a plain text its first words and the rest."""
    if example.turns:
        return example.prompt(), example.answer()
    words = example.text.split(" ")
    cut = min(TEXT_PROMPT_WORDS, (len(words) + 1) // 2)
    return " ".join(words[:cut]), " ".join(words[cut:])


def tokenize(
    chat: ChatFormat, examples: Sequence[Example], max_length: int, loss_on: LossOn = "auto"
) -> Iterator[TokenRow]:
    """Tokenises examples, in order.

    A token carries loss if it begins inside a learned answer or is the stop token after it. Plain text carries loss
    throughout and gets one stop token.

    Args:
        chat: The tokenizer with its chat template.
        examples: All conversations, or all plain texts.
        max_length: Longest row in tokens; longer rows are truncated.
        loss_on: The recipe's `data.loss_on`.

    Raises:
        DataError: The chat template can't render a conversation, or leaves a part of it out.
        ModelError: The start of an answer in the rendering can't be located.
    """
    for start in range(0, len(examples), BATCH):
        batch = list(examples[start : start + BATCH])
        tokenised = _tokenised(chat, batch, loss_on)
        for example, (ids, labels, remarks) in zip(batch, tokenised, strict=True):
            kept = labels[:max_length]
            learned = [label for label in kept if label != IGNORED]
            stops = bool(learned) and learned[-1] in chat.stops
            yield TokenRow(ids[:max_length], kept, len(ids) > max_length, stops, example.where, remarks)


Tokenised = tuple[list[int], list[int], tuple[str, ...]]


def _tokenised(chat: ChatFormat, batch: Sequence[Example], loss_on: LossOn) -> list[Tokenised]:
    """A batch of rows; of a tokenizer that fails the row is found one by one."""
    function = _conversations if batch[0].turns else _plain_texts
    try:
        with panics_as_errors():
            return list(function(chat, batch, loss_on))
    except Exception as error:
        if not is_tokenizers(error):
            raise
        for example in batch:
            with tokenizer_named(chat.tokenizer, example.where):
                list(function(chat, [example], loss_on))
        raise


def _plain_texts(chat: ChatFormat, batch: Sequence[Example], _: LossOn) -> Iterator[Tokenised]:
    eos = str(chat.tokenizer.eos_token)
    for example in batch:
        ids = _plain_prefix_and_ids(chat, example.text.removesuffix(eos) + eos)
        yield ids, [IGNORED] * len(chat.prefix) + ids[len(chat.prefix) :], ()


def _plain_prefix_and_ids(chat: ChatFormat, text: str) -> list[int]:
    """The tokenizer's prefix of every text and the text, as token ids; no EOS token is appended."""
    ids: list[int] = chat.tokenizer(text.removeprefix(_beginning(chat)), add_special_tokens=False)["input_ids"]
    return [*chat.prefix, *ids]


def _beginning(chat: ChatFormat) -> str:
    return "".join(str(token) for token in chat.tokenizer.convert_ids_to_tokens(chat.prefix))


def _conversations(chat: ChatFormat, batch: Sequence[Example], loss_on: LossOn) -> Iterator[Tokenised]:
    renderings = [chat.rendering(example, loss_on) for example in batch]
    texts = [r.text[: r.answers[-1].end] if loss_on == "tokens" else r.text for r in renderings]
    encoded = chat.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    prompts = chat.tokenizer(
        [text[: r.answers[-1].start] for text, r in zip(texts, renderings, strict=True)], add_special_tokens=False
    )
    for rendering, text, ids, offsets, prompt in zip(
        renderings, texts, encoded["input_ids"], encoded["offset_mapping"], prompts["input_ids"], strict=True
    ):
        remarks = rendering.remarks
        if _splits_at_answers(chat, rendering, text, offsets) and ids[: len(prompt)] == prompt:
            labels = _labels(ids, offsets, rendering)
        else:
            ids, labels = _in_pieces(chat, text, [(a.start, a.end, a.learned) for a in rendering.answers])
            alone = _in_pieces(chat, text[: rendering.answers[-1].start], [])[0]
            if alone != ids[: len(alone)] and UNLIKE_PROMPT not in remarks:
                remarks = (*remarks, UNLIKE_PROMPT)
        yield ids, list(ids) if loss_on == "tokens" else labels, remarks


def _splits_at_answers(chat: ChatFormat, rendering: Rendering, text: str, offsets: Sequence[tuple[int, int]]) -> bool:
    """Return whether a token starts with each answer, and the data contains no special token."""
    begins = {begin for begin, end in offsets if end > begin}
    # A space before the answer may be in its first token, whatever the offsets say: some tokenizers trim them.
    split = all(answer.start in begins and text[answer.start - 1 : answer.start] != " " for answer in rendering.answers)
    return split and not any(quotes for _, quotes in chat.quoting.pieces(text))


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], rendering: Rendering) -> list[int]:
    labels = [IGNORED] * len(ids)
    position = 0
    for answer in rendering.answers:
        while position < len(ids) and offsets[position][0] < answer.start:
            position += 1
        while position < len(ids) and offsets[position][0] < answer.end:
            if answer.learned and offsets[position][1] > offsets[position][0]:
                labels[position] = ids[position]
            position += 1
    return labels


def _in_pieces(chat: ChatFormat, text: str, spans: Sequence[tuple[int, int, bool]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a text that is split where each span begins and ends, and at special tokens of the data.

    Args:
        chat: The tokenizer.
        text: As `ChatFormat` rendered it.
        spans: Begin, end, and whether it carries loss; in order.
    """
    learned = {(begin, end) for begin, end, learns in spans if learns}
    bounds = sorted({0, len(text), *(bound for begin, end, _ in spans for bound in (begin, end))})
    ids: list[int] = []
    labels: list[int] = []
    for part in pairwise(bounds):
        for piece, quotes in chat.quoting.pieces(text[slice(*part)]):
            new = chat.continuation.encode(piece, ids, as_characters=quotes)
            ids += new
            labels += new if part in learned else [IGNORED] * len(new)
    return ids, labels
