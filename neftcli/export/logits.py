"""Compare the logits of a written model with those of the run, on a few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neftcli.errors import Problem
from neftcli.events import LogitComparison
from neftcli.export.output import ExportError
from neftcli.runs.directory import SAMPLES
from neftcli.runs.schemas import SampleLine, read_jsonl

if TYPE_CHECKING:
    import torch

    from neftcli.runs.directory import RunDirectory

MAX_COMPARED_ROWS = 4
MAX_TOKENS = 64
"""Tokens of a compared row; the logits of 64 tokens of a vocabulary of 256,000 take 66 MB."""
TEXTS = (
    "A glacier is a mass of ice that moves slowly down a valley. It forms where more snow falls than melts.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(12.5))  # 490.87",
)
"""Rows to compare if the run has fewer samples."""
TOLERANCES = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "f32": 1e-4, "f16": 0.02, "bf16": 0.1, "q8_0": 0.2}
"""Largest accepted difference between two logits, as a share of the largest logit, by the type of the written weights.

float32 differs only by the order of sums. The others round each weight: float16 by at most 2^-11 of its size, bfloat16
by 2^-8, q8_0 by 1/254 of the largest of 32 weights. A wrong or missing tensor gives differences of about 1.
"""


class ComparisonError(ExportError):
    """The logits of a written model differ from the run's by more than the tolerance."""

    code = "comparison"


@dataclass(frozen=True)
class RunLogits:
    """Logits of a run on a few rows.

    Attributes:
        rows: Token ids of each row.
        logits: Float32 logits of each row, of shape (tokens, vocabulary).
    """

    rows: list[list[int]]
    logits: list[torch.Tensor]


def compute_run_logits(model: Any, tokenizer: Any, run: RunDirectory) -> RunLogits:
    """Compute a run's logits on its own samples, or on built-in texts."""
    texts = [*_read_samples(run), *TEXTS][:MAX_COMPARED_ROWS]
    vocabulary = model.config.get_text_config().vocab_size
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:MAX_TOKENS]
        rows.append([token for token in ids if token < vocabulary])
    return RunLogits(rows, [_compute_logits(model, row) for row in rows])


def compare_logits(model: Any, expected: RunLogits, dtype: str, subject: str) -> LogitComparison:
    """Compare a written model with the run.

    Args:
        model: The model as loaded from its file or folder.
        expected: The run's logits.
        dtype: Type of the written weights, a key of TOLERANCES.
        subject: File or folder of the model, for the message.

    Raises:
        ComparisonError: They differ by more than the tolerance, or are not finite.
    """
    difference = largest = 0.0
    same = tokens = 0
    finite = True
    for row, logits in zip(expected.rows, expected.logits, strict=True):
        ours = _compute_logits(model, row)
        finite = finite and bool(ours.isfinite().all())
        difference = max(difference, float((ours - logits).abs().max()))
        largest = max(largest, float(logits.abs().max()))
        same += int((ours.argmax(-1) == logits.argmax(-1)).sum())
        tokens += len(row)
    tolerance = TOLERANCES[dtype] * largest
    if not finite or not difference <= tolerance:
        got = f"{difference:.3g}, more than {tolerance:.3g} ({TOLERANCES[dtype]:g} of the largest logit, {largest:.3g})"
        raise ComparisonError(
            Problem(
                f"{subject}: its logits differ from the run's, so it was removed",
                got if finite else "weights that are not finite in this type",
                "report it with --debug" if dtype in ("float32", "f32") else "the same command in float32 (f32)",
            )
        )
    return LogitComparison(len(expected.rows), tokens, difference, largest, tolerance, same)


def _compute_logits(model: Any, row: list[int]) -> torch.Tensor:
    """Compute the float32 logits of a row, of shape (tokens, vocabulary), on the CPU."""
    import torch

    model.eval()
    ids = torch.tensor([row], device=next(model.parameters()).device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def _read_samples(run: RunDirectory) -> list[str]:
    """Read prompts with the tuned model's answers; none if the file is missing, without damaged lines."""
    samples = (sample for _, sample in read_jsonl(run.path / SAMPLES, SampleLine))
    texts = [f"{sample['prompt']}\n{sample['tuned']}" for sample in samples if sample is not None]
    return [text for text in texts if text.strip()]
