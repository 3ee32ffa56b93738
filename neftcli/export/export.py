"""`neft export`: write a run's tuned model for another program, after merging its adapter."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from neftcli.errors import Checks, InputError, Problem
from neftcli.events import ExportFinished, Phase, PhaseId
from neftcli.export.export_targets import EXPORT_TARGETS, QUANTIZATIONS, ExportRequest
from neftcli.export.logits import compare_logits
from neftcli.export.output import (
    explain_failures,
    hidden_output,
    require_new_output,
    require_output_space,
    total_size,
)
from neftcli.export.tuned_model import check_run, load_tuned_model, resolve_finished_run
from neftcli.models.settings_files import CONFIG, read_json
from neftcli.system.files import require_no_links
from neftcli.system.libraries import capture_library_output, prepare_libraries

if TYPE_CHECKING:
    from neftcli.events import Observer

DEFAULT_QUANTIZATION = "f16"
BYTES_PER_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}


def export_run(
    name: str,
    to: str,
    out: str | None,
    quantization: str | None,
    observer: Observer,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write the tuned model of a run for another program.

    Args:
        name: The run, as typed.
        to: Id of the export target.
        out: File or folder, as typed; None for the target's default.
        quantization: Type of the matrices; None for f16.
        observer: Receives the events.
        trust_remote_code: Run code that comes with the base model.

    Raises:
        InputError: The run, the target or the output can't be used; nothing was written.
        ExportError: The written model differs from the run, or the disk is full; nothing stays.
        Interrupted: It was stopped by a signal; nothing stays.
    """
    from neftcli.export.gguf_file import load_gguf, require_gguf_support
    from neftcli.models.gguf import settings_reference

    started = time.perf_counter()
    quantization = quantization or DEFAULT_QUANTIZATION
    checks = Checks()
    with checks:
        if to not in EXPORT_TARGETS:
            raise InputError(Problem("--to must be an export target", to, f"--to {' or '.join(EXPORT_TARGETS)}"))
    with checks:
        if quantization not in QUANTIZATIONS:
            hint = f"--quantize {' or '.join(QUANTIZATIONS)}"
            raise InputError(Problem("--quantize must be a type that neft can write", quantization, hint))
    with checks:
        target, run = resolve_finished_run(name, "neft export", observer, trust_remote_code=trust_remote_code)
    checks.raise_errors()
    kind = EXPORT_TARGETS[to]
    path = require_new_output(out or kind.output.format(run=run.path.name, type=quantization), folder=kind.folder)
    require_no_links(run.model)
    if target.reference.kind != "gguf":  # its config.json comes with the conversion, below
        require_gguf_support(read_json(target.reference, CONFIG))
    prepare_libraries()
    with explain_failures(path), TemporaryDirectory() as scratch, capture_library_output(Path(scratch) / "log"):
        parameters = check_run(target, observer)
        require_gguf_support(read_json(settings_reference(target.reference), CONFIG))
        require_output_space(path, int(parameters * BYTES_PER_WEIGHT[quantization]))
        tuned = load_tuned_model(target, run, observer)
        with hidden_output(path, folder=kind.folder) as hidden:
            system_prompt = target.recipe.data.system_prompt
            kind.write(ExportRequest(run, tuned, system_prompt, quantization, hidden, observer))
            observer.notify(Phase(PhaseId.COMPARING_LOGITS))
            config = tuned.model.config
            tuned.model.to("meta")  # frees its memory
            written = load_gguf(hidden / kind.gguf if kind.gguf else hidden, config)
            comparison = compare_logits(written, tuned.logits, quantization, str(path))
    shown = {"path": shlex.quote(str(path)), "name": shlex.quote(run.path.name.lower())}
    observer.notify(
        ExportFinished(
            run=str(run.path),
            target=to,
            path=str(path),
            quantization=quantization,
            size=total_size(path),
            comparison=comparison,
            command=kind.command.format(**shown),
            seconds=time.perf_counter() - started,
        )
    )
