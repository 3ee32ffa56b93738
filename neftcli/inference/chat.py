"""`neft chat`: conversations with a run or model, and with a second one beside it."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import OUT_OF_MEMORY, InputError, NeftError, Problem, first_line
from neftcli.events import (
    AnswerFinished,
    AnswerStarted,
    AnswerText,
    ChatModel,
    ChatStarted,
    Notice,
    Observer,
    Phase,
    PhaseId,
    StopReason,
)
from neftcli.inference.conversation import LOCATION, Conversation, append_rows
from neftcli.inference.reasoning import add_opening_marker
from neftcli.inference.setup import (
    TEXT,
    check_targets,
    is_plain_text,
    require_original_weights,
    resolve_answering_target,
    resolve_second_model,
)
from neftcli.inference.text_stream import ReasoningSplitter, TextStream
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.data.chat import ChatFormat
    from neftcli.evaluation.generation import Answer
    from neftcli.evaluation.targets import EvalTarget
    from neftcli.recipe.schema import Generation
    from neftcli.recipe.yaml_file import Layer
    from neftcli.system.device import ComputeConfig


@dataclass(frozen=True)
class ChatRequest:
    """Arguments of `neft chat`.

    Attributes:
        target: A run or a model.
        against: A second run or model that answers as well, "base" for the run's base model; None for none.
        overrides: Recipe options from the command line.
        seed: Seed of sampling; None for the run's.
    """

    target: str
    against: str | None = None
    overrides: tuple[Layer, ...] = ()
    seed: int | None = None


@dataclass
class LoadedModel:
    """A loaded model with its side of the conversation.

    Attributes:
        target: The run or model.
        chat: Its tokenizer with its chat template.
        model: The model; a run with an adapter shares it with its base model.
        uses_adapter: The adapter is switched on.
        vocabulary: Number of tokens that it has embeddings for; None if unknown.
        conversation: The turns so far.
    """

    target: EvalTarget
    chat: ChatFormat
    model: Any
    uses_adapter: bool
    vocabulary: int | None
    conversation: Conversation

    def adapter_mode(self) -> AbstractContextManager[object]:
        """Return the context of its forward passes: without the adapter for the base model of a run."""
        context: AbstractContextManager[object] = nullcontext() if self.uses_adapter else self.model.disable_adapter()
        return context


@contextmanager
def open_chat(request: ChatRequest, observer: Observer) -> Iterator[Chat]:
    """Resolve and load the models of a chat; within the block, messages of the libraries are discarded.

    Raises:
        InputError: A model or a setting can't be used.
    """
    prepare_libraries()
    main = resolve_answering_target(request.target, request.overrides)
    targets = [main]
    if request.against is not None:
        targets.append(resolve_second_model(request.against, main, request.overrides))
    check_targets(targets, observer)
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    with capture_library_output(Path(os.devnull)):
        yield _load_chat(request, targets, observer)


def _load_chat(request: ChatRequest, targets: Sequence[EvalTarget], observer: Observer) -> Chat:
    main = targets[0]
    compute = main.compute_config()
    generation = main.recipe.evaluation.generation
    models = []
    for target in targets:
        is_text = is_plain_text(main if target.role == "base" else target)
        models.append(_prepare_model(target, generation, compute, observer, plain_text=is_text))
    with _explain_errors("a smaller model, one model at a time, or a machine with more memory"):
        for loaded in models:
            if loaded.target.role == "base" and main.has_adapter():
                loaded.model, loaded.uses_adapter = models[0].model, False
                continue
            observer.notify(Phase(PhaseId.LOADING_MODEL, loaded.target.name))
            loaded.model = loaded.target.load(compute)
    seed = main.recipe.training.seed if request.seed is None else request.seed
    return Chat(models, generation, compute, seed, observer)


def _prepare_model(
    target: EvalTarget, generation: Generation, compute: ComputeConfig, observer: Observer, *, plain_text: bool
) -> LoadedModel:
    """Load everything of a model but its weights."""
    from neftcli.models.limits import embedding_size, max_prompt_length
    from neftcli.models.loading import load_config
    from neftcli.models.new_tokens import extended_size

    observer.notify(Phase(PhaseId.LOADING_TOKENIZER, target.name))
    chat = target.load_chat_format(TEXT if plain_text else "messages", observer)
    require_original_weights(target, compute)
    config = load_config(target.reference, target.recipe.model.trust_remote_code)
    limit = max_prompt_length(config, generation.max_new_tokens)
    conversation = Conversation(chat, plain_text, limit)
    system = target.recipe.data.system_prompt
    if system and not plain_text:
        conversation.validate_system(system)
        conversation.system = system
    vocabulary = extended_size(embedding_size(config), chat.tokenizer, target.recipe)
    return LoadedModel(target, chat, None, True, vocabulary, conversation)


class Chat:
    """A chat with one model or two, which answer the same questions one after the other.

    Args:
        models: The models, the main one first.
        generation: Settings of their answers.
        compute: Device and precision.
        seed: Seed of sampled answers; `retry` adds 1 to it each time.
        observer: Receives the answers while they are generated.

    Attributes:
        is_answering: An answer is being generated.
        is_stopping: The answer will end with the next token.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        generation: Generation,
        compute: ComputeConfig,
        seed: int,
        observer: Observer,
    ) -> None:
        self.models, self.observer = models, observer
        self.is_answering = self.is_stopping = False
        self._generation, self._compute, self._seed = generation, compute, seed
        self._question = ""
        self._retries = 0
        self._exchanges_before: list[int] = []
        self._answers: list[AnswerFinished] = []
        self._incomplete: set[tuple[str, str]] = set()

    def describe(self) -> ChatStarted:
        """Return the models and settings."""
        from neftcli.models.limits import max_sequence_length
        from neftcli.models.loading import load_config

        described = []
        for loaded in self.models:
            target, conversation = loaded.target, loaded.conversation
            template = "" if conversation.plain_text else loaded.chat.template or ChatModel.SAVED
            context = max_sequence_length(load_config(target.reference, target.recipe.model.trust_remote_code))
            model = ChatModel(target.column(), template, conversation.plain_text, conversation.system, context)
            described.append(model)
        generation = self._generation
        return ChatStarted(
            tuple(described),
            generation.max_new_tokens,
            generation.repetition_penalty,
            generation.do_sample,
            generation.temperature,
            generation.top_p,
            self._seed,
        )

    def ask(self, question: str) -> list[AnswerFinished]:
        """Let every model answer a question.

        Raises:
            InputError: The question is too long, or a chat template rejects the conversation; no model has answered.
            NeftError: A model ran out of memory.
        """
        self._retries = 0
        return self._ask(question)

    def retry(self) -> list[AnswerFinished]:
        """Let every model answer the last question again; sampled answers use a different seed.

        Raises:
            InputError: There is no question yet.
        """
        if not self._question:
            raise InputError(Problem("there is no question to answer again"))
        for loaded, exchanges in zip(self.models, self._exchanges_before, strict=True):
            loaded.conversation.truncate(exchanges)
        self._retries += 1
        before, answers = self._answers, self._ask(self._question)
        if not self._generation.do_sample and [a.answer for a in answers] == [a.answer for a in before]:
            hint = "neft chat ... --temperature 0.7 samples"
            self.observer.notify(Notice(f"the same answer: decoding is greedy ({hint})"))
        return answers

    def reset(self) -> None:
        """Forget the turns, but not the system turn."""
        self._question = ""
        for loaded in self.models:
            loaded.conversation.clear()

    def set_system(self, text: str) -> None:
        """Set the system turn of the conversation; an empty text removes it.

        Raises:
            InputError: A model continues plain text, or its template renders no system turn.
        """
        for loaded in self.models:
            if loaded.conversation.plain_text:
                message = f"{loaded.target.name} continues plain text, which has no system turn"
                raise InputError(Problem(message))
            if text:
                loaded.conversation.validate_system(text)
        for loaded in self.models:
            loaded.conversation.system = text

    def save(self, name: str) -> tuple[Path, int]:
        """Append the main model's conversation to a .jsonl file that `neft train` reads.

        Returns:
            The file, and the number of its answers that were stopped or are truncated.

        Raises:
            InputError: There is nothing to save, or the file can't be written.
        """
        exchanges = self.models[0].conversation.exchanges
        rows = self.models[0].conversation.rows()
        if not rows:
            raise InputError(Problem("there is no answer to save yet"))
        return append_rows(name, rows), sum(exchange in self._incomplete for exchange in exchanges)

    def stop(self) -> None:
        """End the answer that is being generated after its next token; what was written is kept."""
        self.is_stopping = True

    def _ask(self, question: str) -> list[AnswerFinished]:
        prompts = []
        for loaded in self.models:
            conversation, before = loaded.conversation, loaded.conversation.dropped
            prompts.append(conversation.tokenize(question))
            self._require_embeddings(loaded, prompts[-1])
            if conversation.dropped > before:
                turns = count_noun(2 * conversation.dropped, "oldest turn is", "oldest turns are")
                limit = f"the conversation exceeds the context of {loaded.target.name}"
                self.observer.notify(Notice(f"{limit}: its {turns} left out from now on"))
        self._question = question
        self._exchanges_before = [len(loaded.conversation.exchanges) for loaded in self.models]
        self._answers = [self._answer(index, prompt) for index, prompt in enumerate(prompts)]
        return self._answers

    def _require_embeddings(self, loaded: LoadedModel, prompt: list[int]) -> None:
        from neftcli.models.limits import require_embeddings

        require_embeddings([(LOCATION, prompt)], loaded.chat.tokenizer, loaded.vocabulary)

    def _answer(self, index: int, prompt: list[int]) -> AnswerFinished:
        """Generate the answer of one model, and add it to its conversation."""
        loaded, question = self.models[index], self._question
        conversation, name = loaded.conversation, loaded.target.name
        begins_with_reasoning = conversation.begins_with_reasoning(question)
        started = time.perf_counter()
        self.observer.notify(AnswerStarted(index, name, question))
        receiver = _Receiver(loaded.chat, begins_with_reasoning, lambda: self.is_stopping, self._notify_text(index))
        self.is_answering, self.is_stopping = True, False
        try:
            answer = self._generate(loaded, prompt, receiver)
        finally:
            was_stopped, self.is_answering, self.is_stopping = receiver.was_stopped, False, False
        receiver.finish(answer.text)
        stop = StopReason.STOP_TOKEN
        if was_stopped:
            stop = StopReason.INTERRUPTED
        elif answer.truncated:
            stop = StopReason.MAX_NEW_TOKENS
        kept = answer.text
        if conversation.plain_text:
            kept = receiver.continuation(prompt)
        elif begins_with_reasoning:
            kept = add_opening_marker(kept)
        conversation.add(question, kept)
        if stop != StopReason.STOP_TOKEN:
            self._incomplete.add((question, kept))
        finished = AnswerFinished(
            index,
            name,
            question,
            answer.text,
            stop,
            answer.tokens,
            len(prompt),
            2 * conversation.dropped,
            time.perf_counter() - started,
        )
        self.observer.notify(finished)
        return finished

    def _generate(self, loaded: LoadedModel, prompt: list[int], receiver: _Receiver) -> Answer:
        from neftcli.evaluation.generation import stream_answer

        autocast, seed = self._compute.autocast(), self._seed + self._retries
        with (
            _explain_errors("/reset begins a shorter conversation; --max-new-tokens limits the answers"),
            loaded.adapter_mode(),
        ):
            return stream_answer(
                loaded.model, loaded.chat, prompt, self._generation, receiver.receive, autocast, seed=seed
            )

    def _notify_text(self, index: int) -> Callable[[str, bool], None]:
        return lambda text, reasoning: self.observer.notify(AnswerText(index, text, reasoning))


class _Receiver:
    """Turns the tokens of an answer into text, passes it on, and ends the answer if a stop is requested."""

    def __init__(
        self,
        chat: ChatFormat,
        begins_with_reasoning: bool,
        is_stopping: Callable[[], bool],
        show: Callable[[str, bool], None],
    ) -> None:
        self._chat, self._is_stopping, self._show = chat, is_stopping, show
        self._stream = TextStream(chat.tokenizer)
        self._splitter = ReasoningSplitter(inside=begins_with_reasoning)
        self._tokens: list[int] = []
        self.was_stopped = False

    def receive(self, token: int) -> None:
        """Take the next token.

        Raises:
            AnswerStopped: A stop is requested.
        """
        from neftcli.evaluation.generation import AnswerStopped

        self._tokens.append(token)
        for text, reasoning in self._splitter.add(self._stream.add(token)):
            self._show(text, reasoning)
        if self._is_stopping():
            self.was_stopped = True
            raise AnswerStopped

    def finish(self, text: str) -> None:
        """Pass on the rest of the answer's text."""
        for part, reasoning in (*self._splitter.add(self._stream.finish(text)), *self._splitter.finish()):
            self._show(part, reasoning)

    def continuation(self, prompt: list[int]) -> str:
        """Return the text that the tokens add to a prompt, with the white space between."""
        decode = self._chat.tokenizer.decode
        before = str(decode(prompt, skip_special_tokens=True))
        return str(decode([*prompt, *self._tokens], skip_special_tokens=True))[len(before) :].rstrip()


@contextmanager
def _explain_errors(hint: str) -> Iterator[None]:
    """Turn OOM within the block into an error with this hint."""
    try:
        yield
    except NeftError:
        raise
    except Exception as error:
        from neftcli.system.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        got = first_line(error)
    else:
        return
    gc.collect()  # the frames of the error held tensors
    raise NeftError(Problem("out of memory", got, hint, code=OUT_OF_MEMORY))
