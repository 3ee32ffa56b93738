"""Run all checks, in the order in which they are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from neftcli.doctor import connections, hardware, software, storage
from neftcli.errors import InputError, describe_error
from neftcli.events import Checked, CheckId, CheckLevel, Diagnosis, Observer, Phase, PhaseId

Check = Callable[[Path], Iterator[Checked]]
CHECKS: dict[CheckId, Check] = {
    CheckId.NEFT: software.check_neft,
    CheckId.PYTHON: software.check_python,
    CheckId.PACKAGES: software.check_packages,
    CheckId.EXTRAS: software.check_extras,
    CheckId.VARIABLES: software.check_variables,
    CheckId.TORCH: software.check_torch,
    CheckId.BITSANDBYTES: software.check_bitsandbytes,
    CheckId.CPU: hardware.check_cpu,
    CheckId.THREADS: hardware.check_threads,
    CheckId.GPU: hardware.check_gpu,
    CheckId.MEMORY: hardware.check_memory,
    CheckId.PROXY: connections.check_proxies,
    CheckId.HUB: connections.check_hub,
    CheckId.TOKEN: connections.check_token,
    CheckId.MODEL: storage.check_model,
    CheckId.HUB_CACHE: storage.check_hub_cache,
    CheckId.DATASETS_CACHE: storage.check_datasets_cache,
    CheckId.CONVERTED_MODELS: storage.check_converted_models,
    CheckId.TOKENISED_ROWS: storage.check_tokenised_rows,
    CheckId.OUTPUT: storage.check_output,
    CheckId.LOCKS: storage.check_locks,
    CheckId.DISK: storage.check_disk,
    CheckId.TEMPORARY_FILES: storage.check_temporary_files,
}
"""The checks by their id; each yields one result or several, or none if it does not apply."""


def diagnose(output_folder: Path, observer: Observer) -> Diagnosis:
    """Run all checks and report each result.

    Args:
        output_folder: Folder for runs.
        observer: Receives the results.
    """
    results: list[Checked] = []
    for check_id, check in CHECKS.items():
        observer.notify(Phase(PhaseId.CHECKING, check_id.value))
        for result in _run(check_id, check, output_folder):
            results.append(result)
            observer.notify(result)
    levels = [result.level for result in results]
    diagnosis = Diagnosis(len(results), levels.count(CheckLevel.WARNING), levels.count(CheckLevel.PROBLEM))
    observer.notify(diagnosis)
    return diagnosis


def _run(check_id: CheckId, check: Check, output_folder: Path) -> Iterator[Checked]:
    """Yield the results of a check; its errors are results, too."""
    try:
        yield from check(output_folder)
    except InputError as error:  # training would end with the same message
        for problem in error.problems:
            got = f" ({problem.got})" if problem.got else ""
            yield Checked(check_id, CheckLevel.PROBLEM, f"{problem.message}{got}", problem.hint)
    except Exception as error:
        yield Checked(check_id, CheckLevel.WARNING, f"this check failed: {describe_error(error)}")
