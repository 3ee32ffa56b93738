"""Answers to prompts, generated in batches and without noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from neftcli.data.tokens import stop_tokens
from neftcli.evaluation.mode import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.schema import Generation


class RepetitionPenalty:
    """The repetition penalty over prompt and answer, but not on pads and stop tokens.

    A chat template writes the stop token behind every turn of the prompt; penalised for that, answers would run on.
    The prompts that the paper's authors generated from hold none, so this is their setting for chat models, too.
    """

    def __init__(self, penalty: float, pads: torch.Tensor, stops: set[int]) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self._penalise = RepetitionPenaltyLogitsProcessor(penalty, pads)
        self._stops = sorted(stops)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (rows, vocabulary) of the next token, penalised."""
        unpenalised = scores[:, self._stops].clone()
        penalised: torch.Tensor = self._penalise(input_ids, scores)
        penalised[:, self._stops] = unpenalised
        return penalised


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    generation: Generation,
    autocast: AbstractContextManager[object] | None = None,
    longest_prompt: int | None = None,
) -> list[str]:
    """The answer to each prompt, without its stop token.

    Args:
        model: In any mode; it generates in eval mode and is put back as it was.
        tokenizer: Its tokenizer.
        prompts: Rendered by the chat template up to where the answer begins.
        generation: The recipe's settings.
        autocast: Arithmetic of the forward pass; as loaded if None.
        longest_prompt: Tokens of the longest prompt; of longer ones the end is kept. As long as they are if None.
    """
    if not prompts:
        return []
    from transformers import GenerationConfig, LogitsProcessorList

    stops = stop_tokens(tokenizer)
    sampling = {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=generation.max_new_tokens,
        repetition_penalty=1.0,
        do_sample=generation.do_sample,
        eos_token_id=sorted(stops),
        pad_token_id=tokenizer.pad_token_id,
        **(sampling if generation.do_sample else {}),
    )
    ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    kept = {"input_ids": [row[-longest_prompt:] if longest_prompt else row for row in ids]}
    encoded = tokenizer.pad(kept, padding_side="left", return_tensors="pt").to(model.device)
    pads = (encoded["attention_mask"] == 0).sum(1)
    penalty = RepetitionPenalty(float(generation.repetition_penalty), pads, stops)
    with evaluation_mode(model), autocast or nullcontext():
        tokens = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            generation_config=settings,
            logits_processor=LogitsProcessorList([penalty]),
        )
    new: list[list[int]] = tokens[:, encoded["input_ids"].shape[1] :].tolist()
    # Not every tokenizer marks its stop tokens as special, so they are cut off and not left to the decoder.
    answers = [list(takewhile(lambda token: token not in stops, row)) for row in new]
    return [str(text).strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
