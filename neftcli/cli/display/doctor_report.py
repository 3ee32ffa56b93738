"""Checks of `neft doctor` as lines, for a terminal and for pipes."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from neftcli import events
from neftcli.events import CheckId, CheckLevel
from neftcli.system.files import format_bytes
from neftcli.wording import count_noun

LABELS: Mapping[CheckId, str] = {
    CheckId.NEFT: "neft",
    CheckId.PYTHON: "Python",
    CheckId.PACKAGES: "packages",
    CheckId.EXTRAS: "extras",
    CheckId.TORCH: "torch",
    CheckId.BITSANDBYTES: "bitsandbytes",
    CheckId.CPU: "CPU",
    CheckId.THREADS: "threads",
    CheckId.GPU: "GPU",
    CheckId.MEMORY: "memory",
    CheckId.VARIABLES: "variables",
    CheckId.HUB: "hub",
    CheckId.TOKEN: "hub token",
    CheckId.PROXY: "proxies",
    CheckId.HUB_CACHE: "hub cache",
    CheckId.DATASETS_CACHE: "datasets cache",
    CheckId.CONVERTED_MODELS: "converted models",
    CheckId.TOKENISED_ROWS: "tokenised rows",
    CheckId.OUTPUT: "output folder",
    CheckId.LOCKS: "file locks",
    CheckId.DISK: "disk space",
    CheckId.TEMPORARY_FILES: "temporary files",
    CheckId.MODEL: "bundled model",
}
"""Display texts of the checks."""
LEVEL_STYLES = {CheckLevel.OK: "green", CheckLevel.WARNING: "yellow", CheckLevel.PROBLEM: "bold red"}
LEVEL_WORDS = {CheckLevel.OK: "ok", CheckLevel.WARNING: "warning", CheckLevel.PROBLEM: "problem"}
LABEL_WIDTH = max(map(len, LABELS.values()))
MARK_WIDTH = max(map(len, LEVEL_WORDS.values()))


def checking(event: events.Phase) -> str:
    """Return the text of the phase of a check: "checking: hub cache"."""
    return f"checking: {LABELS[CheckId(event.subject)]}"


def check(event: events.Checked) -> RenderableType:
    """Render a check: level, label, result, and below it the command that fixes it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=MARK_WIDTH + 1, no_wrap=True)
    grid.add_column(width=LABEL_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    text = Text(event.text)
    if event.hint:
        text.append(f"\n{event.hint}", style="bold")
    grid.add_row(Text(f" {LEVEL_WORDS[event.level]}", style=LEVEL_STYLES[event.level]), Text(LABELS[event.check]), text)
    return grid


def check_lines(event: events.Checked) -> list[str]:
    """Return a check as lines."""
    hint = [f"  hint: {event.hint}"] if event.hint else []
    return [f"{LEVEL_WORDS[event.level]}: {LABELS[event.check]}: {event.text}", *hint]


def diagnosis(event: events.Diagnosis) -> RenderableType:
    """Render the last line of `neft doctor`."""
    level = CheckLevel.PROBLEM if event.problems else CheckLevel.WARNING if event.warnings else CheckLevel.OK
    return Text(f"\n {summary(event)}", style=LEVEL_STYLES[level])


def summary(event: events.Diagnosis) -> str:
    """Count the warnings and the problems."""
    warnings = count_noun(event.warnings, "warning")
    if event.problems:
        would = "would stop training"
        return f"{count_noun(event.problems, 'problem')} {would}, {warnings}"
    return f"nothing would stop training, {warnings}"


def cleared_lines(event: events.CacheCleared) -> list[str]:
    """Return what was removed from the cache, and what was kept."""
    lines = [f"{format_bytes(event.freed_bytes)} freed in {event.folder}"]
    if event.in_use:
        lines.append(f"kept, because a process is writing them: {', '.join(event.in_use)}")
    return lines
