"""Answers, generated in batches.

Oracle: the model asked for one token at a time, one prompt at a time, without a cache, in float32; the repetition
penalty of CTRL (Keskar et al., arXiv 1909.05858) applied by hand to the tokens of the prompt and of the answer so far.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from neftcli.data.chat import ChatFormat
from neftcli.errors import NeftuneError
from neftcli.evaluation.generation import Answer, AnswerStopped, generate_answers, iter_answers, stream_answer
from neftcli.neftune import neftune
from neftcli.recipe.schema import Generation
from tests.tiny import FAMILIES, Family, tiny_model, tiny_tokenizer

PROMPTS = ["a", "What is the capital of France?", "zwölf"]
LENGTH = 12
GREEDY = Generation(max_new_tokens=LENGTH, repetition_penalty=1.0)
PENALISED = Generation(max_new_tokens=LENGTH, repetition_penalty=1.5)


def answers_to(model: Any, tokenizer: Any, prompts: list[str], *arguments: Any, **keywords: Any) -> list[Answer]:
    """Return the result of `generate_answers` for prompts as text."""
    return generate_answers(model, chat_of(tokenizer), ids_of(tokenizer, prompts), *arguments, **keywords)


def chat_of(tokenizer: PreTrainedTokenizerFast) -> ChatFormat:
    return ChatFormat(tokenizer, chats=tokenizer.chat_template is not None)


def ids_of(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[list[int]]:
    return [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]


def texts(*arguments: Any, **keywords: Any) -> list[str]:
    """Return the texts of `answers_to`."""
    return [answer.text for answer in answers_to(*arguments, **keywords)]


def model_of(family: Family) -> Any:
    """Return a tiny model with untied weights; with tied ones it repeats a single token for any prompt."""
    return tiny_model(family, tie_word_embeddings=False)


def continuation(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, generation: Generation) -> list[int]:
    """Return the likeliest tokens after a prompt, without the stop token that ends them."""
    model = model.eval()
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + generation.max_new_tokens:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1]
        for token in set(ids):
            factor = generation.repetition_penalty
            scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
        token = int(scores.argmax())
        if token in chat_of(tokenizer).stop_token_ids:
            break
        ids.append(token)
    return ids[start:]


def by_hand(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, generation: Generation) -> str:
    tokens = continuation(model, tokenizer, prompt, generation)
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def stopping_at(token: int, pads: bool) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a different end-of-text token, which may also be the pad token."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
    if pads:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("generation", [GREEDY, PENALISED], ids=["greedy", "penalised"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_answers_one_token_at_a_time(family: Family, generation: Generation) -> None:
    """Left padding, the cache and other rows change no answer, with or without the repetition penalty."""
    model, tokenizer = model_of(family), tiny_tokenizer()
    expected = [by_hand(model, tokenizer, prompt, generation) for prompt in PROMPTS]
    assert texts(model, tokenizer, PROMPTS, generation) == expected
    assert [texts(model, tokenizer, [prompt], generation)[0] for prompt in PROMPTS] == expected
    assert all(expected)


def test_generate_answers_repetition_penalty() -> None:
    """The penalty, which is part of the oracle above, has an effect."""
    model, tokenizer = tiny_model("opt"), tiny_tokenizer()
    greedy, penalised = (texts(model, tokenizer, PROMPTS, generation) for generation in (GREEDY, PENALISED))
    assert greedy != penalised


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_answers_does_not_penalise_padding(family: Family) -> None:
    """If the pad token is the stop token, a short prompt stops at the same token in a batch as alone."""
    model = model_of(family)
    first = continuation(model, tiny_tokenizer(), PROMPTS[0], PENALISED)[0]
    tokenizer = stopping_at(first, pads=True)
    assert tokenizer.eos_token not in "".join(PROMPTS)
    assert by_hand(model, tokenizer, PROMPTS[0], PENALISED) == ""
    answers = texts(model, tokenizer, PROMPTS, PENALISED)
    assert answers == [by_hand(model, tokenizer, prompt, PENALISED) for prompt in PROMPTS]


# Ends


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_answers_stop_token(family: Family) -> None:
    """An answer that ends early in a batch stays unchanged while the others continue."""
    model = model_of(family)
    tokens = continuation(model, tiny_tokenizer(), PROMPTS[1], PENALISED)
    stop = next(token for place, token in enumerate(tokens) if place > 2 and token not in tokens[:place])
    tokenizer = stopping_at(stop, pads=False)
    expected = tokenizer.decode(tokens[: tokens.index(stop)], skip_special_tokens=True).strip()
    answers = texts(model, tokenizer, PROMPTS, PENALISED)
    assert answers[1] == expected
    assert answers == [by_hand(model, tokenizer, prompt, PENALISED) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"])
def test_generate_answers_stop_tokens_of_chat_templates(name: str) -> None:
    """The answer of a model that writes x, y and then the stop token forever is xy."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [name]} if name != "</s>" else {})
    wanted = [*tokenizer("xy")["input_ids"], tokenizer.convert_tokens_to_ids(name)]
    start = len("prompt")

    def write(module: torch.nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        place = int(keywords["position_ids"][0, -1]) + 1 - start
        output.logits[:, -1, wanted[min(place, 2)]] += 1000
        return output

    with model.register_forward_hook(write, with_kwargs=True):
        assert texts(model, tokenizer, ["prompt"], GREEDY) == ["xy"]


@pytest.mark.parametrize("length", [1, 5])
def test_generate_answers_max_new_tokens(length: int) -> None:
    """max_new_tokens limits the answers; a token is one byte here."""
    model, tokenizer = tiny_model("opt"), tiny_tokenizer()
    generation = Generation(max_new_tokens=length, repetition_penalty=1.0)
    answers = texts(model, tokenizer, PROMPTS, generation)
    assert answers == [by_hand(model, tokenizer, prompt, generation) for prompt in PROMPTS]
    assert all(0 < len(answer) <= length for answer in answers)


def test_generate_answers_counts_tokens_and_truncation() -> None:
    """Only the answer that reaches its stop token is not truncated; counts are those of the plain loop."""
    model = model_of("llama")
    tokens = continuation(model, tiny_tokenizer(), PROMPTS[1], PENALISED)
    stop = next(token for place, token in enumerate(tokens) if place > 2 and token not in tokens[:place])
    tokenizer = stopping_at(stop, pads=False)
    answers = answers_to(model, tokenizer, PROMPTS, PENALISED)
    expected = [len(continuation(model, tokenizer, prompt, PENALISED)) for prompt in PROMPTS]
    assert [answer.tokens for answer in answers] == expected
    assert [answer.truncated for answer in answers] == [count == LENGTH for count in expected]
    assert {answer.truncated for answer in answers} == {True, False}


# Batches


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_iter_answers_longest_prompt_first(size: int) -> None:
    """Prompts of similar length are batched together, each once, for any batch size."""
    model, tokenizer = model_of("llama"), tiny_tokenizer()
    prompts = [*PROMPTS, "abc", "a long prompt, longer than all the others", "xyz"]
    expected = [by_hand(model, tokenizer, prompt, GREEDY) for prompt in prompts]
    batches = list(
        iter_answers(model, chat_of(tokenizer), ids_of(tokenizer, prompts), replace(GREEDY, batch_size=size))
    )
    places = [place for batch in batches for place, _ in batch]
    assert [len(prompts[place].encode()) for place in places] == sorted(
        (len(p.encode()) for p in prompts), reverse=True
    )
    assert {place: answer.text for batch in batches for place, answer in batch} == dict(enumerate(expected))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)


def test_iter_answers_skips_known_batches() -> None:
    """The other answers are unchanged, even sampled ones, so an interrupted evaluation can resume."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    warm = Generation(max_new_tokens=LENGTH, do_sample=True, batch_size=1)
    whole = answers_to(model, tokenizer, PROMPTS, warm, seed=3)
    rest = list(iter_answers(model, chat_of(tokenizer), ids_of(tokenizer, PROMPTS), warm, known={1}, seed=3))
    assert {place: answer for batch in rest for place, answer in batch} == {0: whole[0], 2: whole[2]}


def test_generate_answers_halves_the_batch_on_oom() -> None:
    """If at most two rows fit, one notice is given and the smaller size is kept."""
    model, tokenizer = model_of("llama"), tiny_tokenizer()
    prompts = [*PROMPTS, "abc", "xyz"]
    expected = [by_hand(model, tokenizer, prompt, GREEDY) for prompt in prompts]
    notices: list[Any] = []

    def scarce(module: torch.nn.Module, arguments: Any, keywords: Any) -> None:
        if keywords["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with model.register_forward_pre_hook(scarce, with_kwargs=True):
        answers = texts(model, tokenizer, prompts, GREEDY, observer=SimpleNamespace(notify=notices.append))
    assert answers == expected
    assert [notice.message for notice in notices] == ["out of memory with 5 rows per batch; batch size halved to 2"]


# Settings


def test_generate_answers_ignores_the_models_own_settings() -> None:
    """Many chat models ship with do_sample on; only the recipe's settings apply."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    expected = texts(model, tokenizer, PROMPTS, GREEDY)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, top_p=0.5, repetition_penalty=2.0)
    model.generation_config.max_new_tokens = 3
    model.generation_config.update(num_beams=3, no_repeat_ngram_size=1, suppress_tokens=[*range(5, 120)], min_p=0.5)
    own = model.generation_config
    for seed in range(3):
        torch.manual_seed(seed)
        assert texts(model, tokenizer, PROMPTS, GREEDY) == expected
    assert model.generation_config is own
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # which changes nothing before it is trained
    assert texts(adapted, tokenizer, PROMPTS, GREEDY) == expected
    assert model.generation_config is own


def test_generate_answers_sampling() -> None:
    """Answers depend on the seed; a temperature near 0 is greedy."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    warm = Generation(max_new_tokens=LENGTH, repetition_penalty=1.0, do_sample=True)
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(answers))  # the caller's random state is neither read nor moved
        before = torch.get_rng_state()
        answers.append(texts(model, tokenizer, PROMPTS, warm, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert answers[0] == answers[1] != answers[2]
    cold = Generation(max_new_tokens=LENGTH, repetition_penalty=1.0, do_sample=True, temperature=1e-4)
    assert texts(model, tokenizer, PROMPTS, cold) == texts(model, tokenizer, PROMPTS, GREEDY)


def test_generate_answers_adds_no_special_tokens() -> None:
    """The template already wrote the BOS; the tokenizer's padding side is unchanged."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    a, b, c = tokenizer("abc")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    seen: list[list[int]] = []

    def look(module: torch.nn.Module, arguments: Any, keywords: Any) -> None:
        seen.append(keywords["input_ids"].tolist())

    with model.register_forward_pre_hook(look, with_kwargs=True):
        texts(model, tokenizer, ["<s>ab", "c"], Generation(max_new_tokens=1))
    assert seen == [[[1, a, b], [0, 0, c]]]
    assert tokenizer.padding_side == "right"


# Noise, and state of the model


@pytest.mark.parametrize("training", [True, False])
def test_generate_answers_with_attached_noise(training: bool) -> None:
    """With NEFTune attached the answers are the same."""
    model, tokenizer = tiny_model("opt").train(training), tiny_tokenizer()
    expected = texts(model, tokenizer, PROMPTS, GREEDY)
    with neftune(model, alpha=200.0):
        assert texts(model, tokenizer, PROMPTS, GREEDY) == expected


@pytest.mark.parametrize("training", [True, False])
def test_generate_answers_restores_the_mode(training: bool) -> None:
    """The mode is restored, dropout is off meanwhile, and no gradient is kept."""
    model, tokenizer = tiny_model("opt", dropout=0.5).train(training), tiny_tokenizer()
    answers = texts(model, tokenizer, PROMPTS, GREEDY)
    assert {module.training for module in model.modules()} == {training}
    assert all(weight.grad is None for weight in model.parameters())
    assert answers == [by_hand(model, tokenizer, prompt, GREEDY) for prompt in PROMPTS]


@pytest.mark.parametrize("training", [True, False])
def test_generate_answers_restores_the_mode_after_a_failure(training: bool) -> None:
    """Even if generation fails."""
    model, tokenizer = tiny_model("llama").train(training), tiny_tokenizer()

    def fail(module: torch.nn.Module, arguments: tuple[object, ...]) -> None:
        assert not module.training
        raise RuntimeError("out of memory")

    with model.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="out of memory"):
        texts(model, tokenizer, PROMPTS, GREEDY)
    assert {module.training for module in model.modules()} == {training}


def test_generate_answers_autocast() -> None:
    """The autocast is used while generating and ends with it."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    seen: list[torch.dtype] = []

    def look(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> None:
        seen.append(output.dtype)

    with model.lm_head.register_forward_hook(look):
        texts(model, tokenizer, PROMPTS, GREEDY, torch.autocast("cpu", dtype=torch.bfloat16))
        texts(model, tokenizer, PROMPTS, GREEDY)
    assert seen[0] == torch.bfloat16
    assert seen[-1] == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_generate_answers_no_prompts() -> None:
    """The model is not called."""
    assert texts(tiny_model("llama"), tiny_tokenizer(), [], GREEDY) == []


# One token at a time


@pytest.mark.parametrize("generation", [PENALISED, replace(PENALISED, do_sample=True, temperature=2.0, top_p=0.9)])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_stream_answer_equals_generate_answers(family: Family, generation: Generation) -> None:
    """And its tokens are those of transformers' `generate`, without the stop token."""
    model, tokenizer = model_of(family), tiny_tokenizer()
    for prompt in PROMPTS:
        tokens: list[int] = []
        [ids] = ids_of(tokenizer, [prompt])
        answer = stream_answer(model, chat_of(tokenizer), ids, generation, tokens.append, seed=7)
        assert [answer] == answers_to(model, tokenizer, [prompt], generation, seed=7)
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer.text
        assert len(tokens) == answer.tokens
        if not generation.do_sample:
            assert tokens == continuation(model, tokenizer, prompt, generation)


def test_stream_answer_equals_transformers() -> None:
    model, tokenizer = model_of("llama").eval(), tiny_tokenizer()
    [ids] = ids_of(tokenizer, [PROMPTS[1]])
    tokens: list[int] = []
    answer = stream_answer(model, chat_of(tokenizer), ids, GREEDY, tokens.append)
    generated = model.generate(torch.tensor([ids]), max_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    assert tokens == [token for token in generated[0, len(ids) :].tolist() if token != tokenizer.eos_token_id]
    assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_stream_answer_does_not_pass_the_stop_token_on() -> None:
    model = model_of("llama")
    expected = continuation(model, tiny_tokenizer(), PROMPTS[1], PENALISED)
    stop = next(token for place, token in enumerate(expected) if place > 2 and token not in expected[:place])
    tokenizer, tokens = stopping_at(stop, pads=True), list[int]()
    [ids] = ids_of(tokenizer, [PROMPTS[1]])
    answer = stream_answer(model, chat_of(tokenizer), ids, PENALISED, tokens.append)
    assert tokens == expected[: expected.index(stop)]
    assert (answer.tokens, answer.truncated) == (len(tokens), False)


def test_stream_answer_stops_and_keeps_what_was_generated() -> None:
    model, tokenizer, tokens = model_of("opt").train(), tiny_tokenizer(), list[int]()
    [ids] = ids_of(tokenizer, [PROMPTS[1]])
    expected = continuation(model_of("opt"), tokenizer, PROMPTS[1], GREEDY)

    def receive(token: int) -> None:
        tokens.append(token)
        if len(tokens) == 3:
            raise AnswerStopped

    before = torch.get_rng_state()
    answer = stream_answer(model, chat_of(tokenizer), ids, GREEDY, receive)
    assert tokens == expected[:3]
    assert answer == Answer(tokenizer.decode(tokens, skip_special_tokens=True).strip(), 3, truncated=False)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_stream_answer_rejects_noise() -> None:
    """Noise of a hook that ignores the mode of the model."""
    model, tokenizer = model_of("llama"), tiny_tokenizer()
    [ids] = ids_of(tokenizer, [PROMPTS[0]])
    with (
        model.get_input_embeddings().register_forward_hook(lambda module, arguments, output: output + 1),
        pytest.raises(NeftuneError, match="without noise"),
    ):
        stream_answer(model, chat_of(tokenizer), ids, GREEDY, lambda token: None)
