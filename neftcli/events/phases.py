"""Phases: parts of the work that take long enough for a person to wait for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class PhaseId(StrEnum):
    """Stable ids of phases; their display texts are in `neftcli.cli.display.format`."""

    LOADING_LIBRARIES = "loading_libraries"
    READING_DATA = "reading_data"
    CONVERTING_GGUF = "converting_gguf"
    LOADING_TOKENIZER = "loading_tokenizer"
    TOKENIZING = "tokenizing"
    LOADING_MODEL = "loading_model"
    EVALUATING_BASE = "evaluating_base"
    GENERATING_BASE_SAMPLES = "generating_base_samples"
    PREPARING_TRAINER = "preparing_trainer"
    EVALUATING = "evaluating"
    GENERATING_SAMPLES = "generating_samples"
    SAVING_CHECKPOINT = "saving_checkpoint"
    SAVING_MODEL = "saving_model"
    COMPUTING_LOSSES = "computing_losses"
    GENERATING_ANSWERS = "generating_answers"
    RUNNING_TASK = "running_task"
    JUDGING = "judging"
    TIMING_MODEL = "timing_model"
    CHECKING = "checking"
    COMPUTING_LOGITS = "computing_logits"
    MERGING_LAYERS = "merging_layers"
    SAVING_MERGED = "saving_merged"
    WRITING_GGUF = "writing_gguf"
    COMPARING_LOGITS = "comparing_logits"
    HASHING_FILES = "hashing_files"
    UPLOADING = "uploading"


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase begins, or has counted more rows.

    Attributes:
        phase: The phase's id.
        subject: The model, task or cell that the phase is about; empty if there is only one.
        count: Rows or answers so far; None if they are not counted.
    """

    id: ClassVar[str] = "phase"

    phase: PhaseId
    subject: str = ""
    count: int | None = None


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """Progress within a phase.

    Attributes:
        phase: The phase's id.
        done: Items done.
        total: Items in all.
        elapsed: Seconds since the phase began.
        remaining: Estimated seconds left.
        unit: Unit of `done` and `total`: rows, answers, verdicts, layers, weights or bytes.
        rate: Speed, in `rate_unit` per second; 0 if it is not known yet.
        rate_unit: Unit of `rate`: rows, tokens, verdicts, layers, weights or bytes.
        subject: The model, task or cell that the phase is about; empty if there is only one.
    """

    id: ClassVar[str] = "phase.progress"

    phase: PhaseId
    done: int
    total: int
    elapsed: float
    remaining: float
    unit: str
    rate: float
    rate_unit: str
    subject: str = ""
