"""Generation of answers to prompts without noise: in batches, or one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from neftcli.evaluation.adaptive_batches import iter_batches
from neftcli.neftune.evaluation_mode import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.chat import ChatFormat
    from neftcli.events import Observer
    from neftcli.recipe.schema import Generation


class RepetitionPenalty:
    """Repetition penalty over prompt and answer that leaves out pads and stop tokens.

    Chat templates write the stop token after every turn of the prompt; if it were penalised, answers would not end. The
    prompts of the paper's authors contain none, so this is their setting for chat models.
    """

    def __init__(self, penalty: float, pads: torch.Tensor, stops: Collection[int]) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self._penalise = RepetitionPenaltyLogitsProcessor(penalty, pads)
        self._stops = sorted(stops)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalised scores (rows, vocabulary) of the next token."""
        unpenalised = scores[:, self._stops].clone()
        penalised: torch.Tensor = self._penalise(input_ids, scores)
        penalised[:, self._stops] = unpenalised
        return penalised


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer.

    Attributes:
        text: Its text, without the stop token and surrounding white space.
        tokens: Number of its tokens, without the stop token.
        truncated: True if it ended at max_new_tokens, not at a stop token.
    """

    text: str
    tokens: int
    truncated: bool


class AnswerStopped(Exception):  # noqa: N818 - a request, not an error
    """Raised by a receiver of tokens to end the answer after this token."""


def generate_answers(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    autocast: AbstractContextManager[object] | None = None,
    max_prompt_length: int | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> list[Answer]:
    """Generate the answer to each prompt, in order; the arguments are those of `iter_answers`."""
    answers: dict[int, Answer] = {}
    for batch in iter_answers(
        model, chat, prompts, generation, autocast, max_prompt_length, seed=seed, observer=observer
    ):
        answers.update(batch)
    return [answers[index] for index in range(len(prompts))]


def iter_answers(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    autocast: AbstractContextManager[object] | None = None,
    max_prompt_length: int | None = None,
    *,
    known: Container[int] = (),
    seed: int = 0,
    observer: Observer | None = None,
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield indices of prompts with their answers, batch by batch, the longest prompts first.

    Prompts of similar length share a batch. Greedy answers don't depend on the batch, up to the order of floating-point
    sums; sampled answers depend on the seed and on the batch.

    Args:
        model: In any mode; it generates in eval mode, asserted to be without noise, and its mode is restored.
        chat: Its tokenizer and stop tokens.
        prompts: Token ids of each prompt, up to the start of the answer.
        generation: The recipe's settings; on OOM `batch_size` is halved.
        autocast: Precision of the forward pass; as loaded if None.
        max_prompt_length: Maximum tokens of a prompt; longer ones lose their beginning. No limit if None.
        known: Indices of prompts whose answers are known; a batch of known answers only is not computed.
        seed: Seed of sampling; the global random state is restored.
        observer: Receives a notice when the batch size is halved.

    Raises:
        NeftuneError: Noise is on.
    """
    if not prompts:
        return
    ids = [list(row[-max_prompt_length:] if max_prompt_length else row) for row in prompts]
    order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))

    def compute(chosen: Sequence[int]) -> Sequence[Answer | None]:
        if all(index in known for index in chosen):
            return [None] * len(chosen)
        with torch.random.fork_rng():
            torch.manual_seed(seed * len(ids) + chosen[0])
            return _batch_answers(model, chat, [ids[index] for index in chosen], generation, autocast)

    with evaluation_mode(model):
        for batch in iter_batches(order, generation.batch_size, compute, observer):
            yield [(index, answer) for index, answer in batch if answer is not None]


def stream_answer(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompt: Sequence[int],
    generation: Generation,
    receive: Callable[[int], None],
    autocast: AbstractContextManager[object] | None = None,
    *,
    seed: int = 0,
) -> Answer:
    """Generate the answer to one prompt and pass on its tokens as they come.

    The answer equals that of `generate_answers` to this prompt alone, token by token.

    Args:
        model: As for `iter_answers`.
        chat: Its tokenizer and stop tokens.
        prompt: Token ids up to the start of the answer.
        generation: The recipe's settings.
        receive: Called with each token of the answer, without the stop token; it may raise `AnswerStopped`.
        autocast: As for `iter_answers`.
        seed: Seed of sampling; the global random state is restored.

    Raises:
        NeftuneError: Noise is on.
    """
    streamer = _TokenStreamer(chat.stop_token_ids, receive)
    with evaluation_mode(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            (answer,) = _batch_answers(model, chat, [list(prompt)], generation, autocast, streamer)
        except AnswerStopped:
            text = chat.tokenizer.decode(streamer.tokens, skip_special_tokens=True)
            answer = Answer(str(text).strip(), len(streamer.tokens), truncated=False)
    return answer


class _TokenStreamer:
    """Passes the tokens of an answer on; transformers calls `put` with the prompt first, then with each new token."""

    def __init__(self, stops: Container[int], receive: Callable[[int], None]) -> None:
        self.tokens: list[int] = []
        self._stops, self._receive = stops, receive
        self._has_prompt = self._has_ended = False

    def put(self, value: torch.Tensor) -> None:
        if not self._has_prompt:
            self._has_prompt = True
            return
        for token in value.flatten().tolist():
            self._has_ended = self._has_ended or token in self._stops
            if not self._has_ended:
                self.tokens.append(token)
                self._receive(token)

    def end(self) -> None:
        """Do nothing; transformers calls this after the last token."""


@torch.no_grad()
def _batch_answers(
    model: PreTrainedModel,
    chat: ChatFormat,
    ids: list[list[int]],
    generation: Generation,
    autocast: AbstractContextManager[object] | None,
    streamer: Any = None,
) -> list[Answer]:
    from transformers import GenerationConfig, LogitsProcessorList

    tokenizer, stops = chat.tokenizer, chat.stop_token_ids
    sampling = {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        repetition_penalty=1.0,
        do_sample=generation.do_sample,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if generation.do_sample else {}),
    )
    encoded = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
    pads = (encoded["attention_mask"] == 0).sum(1)
    penalty = RepetitionPenalty(float(generation.repetition_penalty), pads, stops)
    with autocast or nullcontext(), _without_own_settings(model):
        tokens = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            generation_config=settings,
            logits_processor=LogitsProcessorList([penalty]),
            streamer=streamer,
        )
    new: list[list[int]] = tokens[:, encoded["input_ids"].shape[1] :].tolist()
    # Not every tokenizer marks its stop tokens as special, so the decoder may not remove them.
    answer_ids = [list(takewhile(lambda token: token not in stops, row)) for row in new]
    texts = tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
    return [
        Answer(str(text).strip(), len(answer), len(answer) == generation.max_new_tokens)
        for text, answer in zip(texts, answer_ids, strict=True)
    ]


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Remove a model's own generation settings, from which transformers fills in what ours leave unset."""
    from transformers import GenerationConfig

    wrapped = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter wraps it
    models = [model] if wrapped is model else [model, wrapped]
    own = [each.generation_config for each in models]
    try:
        for each in models:
            each.generation_config = GenerationConfig()
        yield
    finally:
        for each, settings in zip(models, own, strict=True):
            each.generation_config = settings
