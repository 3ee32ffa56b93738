"""Checks of Python, the packages and the environment variables."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.errors import first_line
from neftcli.events import Checked, CheckId, CheckLevel
from neftcli.system.environment import require_valid_variables
from neftcli.version import VERSION

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "neftcli"
MAIN_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes")
"""Packages whose versions are shown."""
DEVELOPMENT = ("dev", "docs")
"""Extras that only developers of neft need."""
QLORA = "QLoRA and 8-bit optimisers need it; other training works"


def check_neft(output_folder: Path) -> Iterator[Checked]:
    """Report neft's version and folder."""
    folder = Path(__file__).parents[1]
    yield Checked(CheckId.NEFT, CheckLevel.OK, f"{VERSION}, {folder}")


def check_python(output_folder: Path) -> Iterator[Checked]:
    """Report Python's version and environment."""
    text = f"{platform.python_version()}, {sys.prefix}, {platform.system()} {platform.machine()}"
    yield Checked(CheckId.PYTHON, CheckLevel.OK, text)


def check_packages(output_folder: Path) -> Iterator[Checked]:
    """Compare the installed versions with those that neft needs."""
    versions = []
    for name in MAIN_PACKAGES:
        if found := installed_version(name):
            versions.append(f"{name} {found}")
    requirements = [requirement for requirement in _requirements() if _applies(requirement)]
    wrong = [requirement for requirement in requirements if not _is_met(requirement)]
    for requirement in wrong:
        yield Checked(CheckId.PACKAGES, CheckLevel.PROBLEM, _explain(requirement), _install(requirement))
    if not requirements:
        text = "neft runs without being installed, so the versions of its packages are not compared"
        yield Checked(CheckId.PACKAGES, CheckLevel.WARNING, text, "pip install -e .")
    others = len({requirement.name for requirement in requirements} - set(MAIN_PACKAGES))
    if not wrong:
        yield Checked(CheckId.PACKAGES, CheckLevel.OK, f"{', '.join(versions)}, and {others} others")


def check_extras(output_folder: Path) -> Iterator[Checked]:
    """Report the optional packages, by the extra that they belong to."""
    extras = [name for name in _extra_names() if name not in DEVELOPMENT]
    present, missing = [], []
    for extra in extras:
        for requirement in _requirements():
            if not _applies(requirement) and _applies(requirement, extra):
                if found := installed_version(requirement.name):
                    present.append(f"{requirement.name} {found} ({extra})")
                    if not _is_met(requirement):
                        yield Checked(CheckId.EXTRAS, CheckLevel.WARNING, _explain(requirement), _install(requirement))
                else:
                    missing.append((requirement, extra))
    text = ", ".join(present) or "none installed"
    if missing:
        text += "; not installed: " + ", ".join(f"{requirement.name} ({extra})" for requirement, extra in missing)
    if extras:
        yield Checked(CheckId.EXTRAS, CheckLevel.OK, text)


def check_variables(output_folder: Path) -> Iterator[Checked]:
    """Check the environment variables that libraries read as numbers."""
    require_valid_variables()
    yield from ()


def check_torch(output_folder: Path) -> Iterator[Checked]:
    """Import torch and multiply two matrices."""
    try:
        import torch

        product = float((torch.ones(2, 2) @ torch.ones(2, 2)).sum())
    except Exception as error:
        requirement = next((found for found in _requirements() if found.name == "torch"), None)
        install = "torch" if requirement is None else shlex.quote(f"torch{requirement.specifier}")
        text = f"it can't be imported: {first_line(error)}"
        yield Checked(CheckId.TORCH, CheckLevel.PROBLEM, text, f"pip install --force-reinstall {install}")
        return
    build = "CPU build"
    if torch.version.cuda:
        build = f"build for CUDA {torch.version.cuda}"
    elif torch.version.hip:
        build = f"build for ROCm {torch.version.hip}"
    level = CheckLevel.OK if product == 8.0 else CheckLevel.PROBLEM
    text = "works" if product == 8.0 else f"it computes a wrong product: {product:g} instead of 8"
    yield Checked(CheckId.TORCH, level, f"{torch.__version__}, {build}, {text}")


def check_bitsandbytes(output_folder: Path) -> Iterator[Checked]:
    """Import bitsandbytes, which fails if its library for the GPU is missing."""
    version = installed_version("bitsandbytes")
    if not version:  # not required on this system, or reported with the packages
        return
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:
        text = f"{version} can't be imported: {first_line(error)}; {QLORA}"
        yield Checked(CheckId.BITSANDBYTES, CheckLevel.WARNING, text, "pip install --upgrade bitsandbytes")


def installed_version(name: str) -> str:
    """Return the installed version of a package; empty if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _requirements() -> list[Requirement]:
    """Return neft's requirements, those of its extras included; none if neft is not installed as a package."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []


def _extra_names() -> list[str]:
    try:
        return metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str = "") -> bool:
    """Return whether a requirement applies on this system, of an extra or without one."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement) -> bool:
    version = installed_version(requirement.name)
    return bool(version) and requirement.specifier.contains(version, prereleases=True)


def _explain(requirement: Requirement) -> str:
    version = installed_version(requirement.name)
    if not version:
        return f"{requirement.name} is not installed"
    return f"{requirement.name} {version} is installed, and neft needs {requirement.specifier}"


def _install(requirement: Requirement) -> str:
    return f"pip install {shlex.quote(f'{requirement.name}{requirement.specifier}')}"
