"""Events about a run that is merged, exported or pushed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class LogitComparison:
    """Logits of a written model, compared with those of the run on the same tokens, both computed in float32.

    Attributes:
        rows: Rows of text.
        tokens: Tokens in all rows.
        difference: The largest absolute difference between two logits.
        largest: The largest absolute logit of the run.
        tolerance: The largest difference that is accepted; a larger one is an error.
        same_token: Tokens after which both models predict the same most likely token.
    """

    rows: int
    tokens: int
    difference: float
    largest: float
    tolerance: float
    same_token: int


@dataclass(frozen=True, slots=True)
class MergeFinished:
    """A run was written as a model of its own, without an adapter.

    Attributes:
        run: Folder of the run.
        folder: Folder of the model.
        base: Name of the base model.
        method: How the run was trained: full, lora, lora_int8 or qlora.
        dtype: Type of the weights: float32, bfloat16 or float16.
        size: Bytes of all files.
        untied: Embedding and output layer shared a matrix, and have one each now.
        comparison: Logits of the folder's model, compared with the run's.
        seconds: Wall time.
    """

    id: ClassVar[str] = "merge.finished"

    run: str
    folder: str
    base: str
    method: str
    dtype: str
    size: int
    untied: bool
    comparison: LogitComparison
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportFinished:
    """A run was exported for another program.

    Attributes:
        run: Folder of the run.
        target: Id of the export target: gguf or ollama.
        path: The file or folder.
        quantization: Type of the matrices: f32, f16, bf16 or q8_0.
        size: Bytes of all files.
        comparison: Logits of the exported model, as transformers loads it, compared with the run's.
        command: Command that uses the export.
        seconds: Wall time.
    """

    id: ClassVar[str] = "export.finished"

    run: str
    target: str
    path: str
    quantization: str
    size: int
    comparison: LogitComparison
    command: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file of a repository on the hub.

    Attributes:
        path: Its path in the repository.
        size: Its bytes.
    """

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class PushPlanned:
    """What `neft push` will upload.

    Attributes:
        run: Folder of the run.
        repository: The repository, as owner/name.
        url: Its address.
        private: It will be private; of an existing repository, nothing changes.
        merged: The adapter is merged first; then the list lacks the weights, which do not exist yet.
        files: The files.
        metadata: YAML at the top of the model card, with base model, data and results.
    """

    id: ClassVar[str] = "push.planned"

    run: str
    repository: str
    url: str
    private: bool
    merged: bool
    files: tuple[PushedFile, ...]
    metadata: str


@dataclass(frozen=True, slots=True)
class PushFinished:
    """A run's model is on the hub.

    Attributes:
        run: Folder of the run.
        repository: The repository, as owner/name.
        url: Its address.
        commit: SHA of the commit.
        merged: The adapter was merged first.
        files: Number of files.
        size: Bytes of all files.
        seconds: Wall time.
    """

    id: ClassVar[str] = "push.finished"

    run: str
    repository: str
    url: str
    commit: str
    merged: bool
    files: int
    size: int
    seconds: float
