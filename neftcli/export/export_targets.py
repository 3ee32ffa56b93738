"""The registry of export targets: programs and formats that `neft export` writes for.

To add one, add an entry to `EXPORT_TARGETS`. `--to`, its help, its error message and the output's default name use it,
and a test looks for its row in docs/export.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.system.files import atomic_write

if TYPE_CHECKING:
    from neftcli.events import Observer
    from neftcli.export.tuned_model import TunedModel
    from neftcli.runs.directory import RunDirectory

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0")
"""Types of the matrices in a .gguf file."""


@dataclass(frozen=True)
class ExportRequest:
    """What a target writes.

    Attributes:
        run: The run.
        tuned: Its model in memory.
        system_prompt: The recipe's system prompt, or None.
        quantization: Type of the matrices.
        path: File or folder to write to; a folder exists.
        observer: Receives the events.
    """

    run: RunDirectory
    tuned: TunedModel
    system_prompt: str | None
    quantization: str
    path: Path
    observer: Observer


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """A program or format.

    Attributes:
        id: Its name in `--to`.
        content: What is written, for the docs.
        folder: The output is a folder, not a file.
        output: Name of the output; `{run}` is the run's name, `{type}` the quantization.
        gguf: The .gguf file in the output folder; empty if the output is that file.
        write: Writes the output.
        command: Command that uses it; `{path}` is the output, `{name}` a name for the model.
    """

    id: str
    content: str
    folder: bool
    output: str
    gguf: str
    write: Callable[[ExportRequest], None]
    command: str


def _write_gguf(request: ExportRequest) -> None:
    from neftcli.export.gguf_file import write_gguf

    write_gguf(request.tuned, request.run, request.quantization, request.path, request.observer)


def _write_ollama(request: ExportRequest) -> None:
    from neftcli.export.gguf_file import write_gguf
    from neftcli.export.ollama import MODELFILE, build_modelfile

    write_gguf(request.tuned, request.run, request.quantization, request.path / GGUF_NAME, request.observer)
    text = build_modelfile(request.tuned.tokenizer, request.run, GGUF_NAME, request.system_prompt, request.observer)
    atomic_write(request.path / MODELFILE, text)


GGUF_NAME = "model.gguf"
EXPORT_TARGETS: dict[str, ExportTarget] = {
    target.id: target
    for target in (
        ExportTarget(
            "gguf",
            "a .gguf file for llama.cpp and programs built on it",
            folder=False,
            output="{run}-{type}.gguf",
            gguf="",
            write=_write_gguf,
            command="llama-cli -m {path}",
        ),
        ExportTarget(
            "ollama",
            "a folder with a .gguf file and a Modelfile: template, system prompt and stop tokens",
            folder=True,
            output="{run}-ollama",
            gguf=GGUF_NAME,
            write=_write_ollama,
            command="ollama create {name} -f {path}/Modelfile && ollama run {name}",
        ),
    )
}
"""Id to export target."""
