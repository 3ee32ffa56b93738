"""Events and their parts about `neft chat` and `neft answer`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from neftcli.events.evaluation import EvaluatedModel


class StopReason(StrEnum):
    """Reasons why an answer ended."""

    STOP_TOKEN = "stop_token"  # noqa: S105 - no password
    MAX_NEW_TOKENS = "max_new_tokens"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model of a chat.

    Attributes:
        model: The run or model.
        template: Id of its chat template: own, a named one or a file; saved if it comes with a run; empty for text.
        plain_text: It continues a plain text; there is no conversation.
        system: System turn that the conversation begins with; empty if there is none.
        context: Number of tokens that it has positions for; None if there is no limit.
    """

    SAVED: ClassVar[str] = "saved"
    """Id of a template that comes with a run."""

    model: EvaluatedModel
    template: str
    plain_text: bool
    system: str
    context: int | None


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """The models of a chat are loaded.

    Attributes:
        models: The models, in the order in which they answer.
        max_new_tokens: Maximum length of an answer in tokens.
        repetition_penalty: Repetition penalty; 1 is none.
        do_sample: Answers are sampled, not greedy.
        temperature: Temperature of sampling.
        top_p: Share of probability to sample from.
        seed: Seed of sampling.
    """

    id: ClassVar[str] = "chat.started"

    models: tuple[ChatModel, ...]
    max_new_tokens: int
    repetition_penalty: float
    do_sample: bool
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """A model begins to answer.

    Attributes:
        model: Index of the model.
        name: Its name.
        question: The question.
    """

    id: ClassVar[str] = "chat.answer_started"

    model: int
    name: str
    question: str


@dataclass(frozen=True, slots=True)
class AnswerText:
    """The next part of an answer, of whole characters.

    Attributes:
        model: Index of the model.
        text: The text.
        reasoning: It is reasoning, between <think> and </think>.
    """

    id: ClassVar[str] = "chat.text"

    model: int
    text: str
    reasoning: bool


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """An answer is complete, or was stopped.

    Attributes:
        model: Index of the model.
        name: Its name.
        question: The question.
        answer: The answer, without its stop token and surrounding white space.
        stop: Why it ended: stop_token, max_new_tokens or interrupted.
        tokens: Its tokens, without the stop token.
        prompt_tokens: Tokens of the conversation before it.
        dropped_turns: The oldest turns that were left out because the conversation exceeds the model's context.
        seconds: Wall time.
    """

    id: ClassVar[str] = "chat.answer"

    model: int
    name: str
    question: str
    answer: str
    stop: StopReason
    tokens: int
    prompt_tokens: int
    dropped_turns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswersWritten:
    """The answers to the rows of a data set are in a file.

    Attributes:
        model: The run or model.
        path: The file.
        rows: Rows, each with an answer.
        earlier: Answers that an earlier, stopped command had generated.
        truncated: Answers that ended at max_new_tokens.
        tokens: Tokens of all answers.
        seconds: Wall time of this command.
    """

    id: ClassVar[str] = "answers.written"

    model: EvaluatedModel
    path: str
    rows: int
    earlier: int
    truncated: int
    tokens: int
    seconds: float
