"""Turn the exceptions of libraries that load a model into a `ModelError` with a hint."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from neftcli.errors import LibraryPanic, ModelError, NeftError, Problem, panics_as_errors
from neftcli.models.model_files import REFETCH, find_damaged_file
from neftcli.models.registry import ALIASES, ModelReference
from neftcli.system.hub import add_hub_settings
from neftcli.system.paths import closest_path

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPOSSIBLE_SIZE = re.compile("negative dimension|Storage size calculation overflowed|Overflow when unpacking")
"""torch's messages for a tensor whose size is negative or exceeds 64 bits."""


@contextmanager
def translate_load_errors(reference: ModelReference) -> Iterator[None]:
    """Turn the libraries' exceptions within the block into a `ModelError` with a hint."""
    from huggingface_hub import errors as hub

    name = reference.name
    try:
        with panics_as_errors():
            yield
    except hub.GatedRepoError:
        raise _gated_error(reference) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
        raise ModelError(
            Problem(
                "model.name: the hub has no such model or revision, or it is private",
                reference.describe_source(),
                "neft models    lists the aliases; log in for a private model: hf auth login",
            )
        ) from None
    except OSError as error:
        raise _unreadable_error(reference, error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} needs its own Python code, which neft doesn't run by default",
                    "model.trust_remote_code: false",
                    "read the code; if you trust it: --trust-remote-code"
                    + (", with a commit as --revision" if reference.kind == "hub" else ""),
                )
            ) from None
        if "backend tokenizer" in str(error):
            raise ModelError(
                Problem(
                    f"model.name: {name} has no tokenizer",
                    "neither tokenizer.json nor files from which transformers can build it",
                    f"save the tokenizer in the same folder: {save_tokenizer_call(reference)}",
                )
            ) from error
        raise _unloadable_error(reference, error) from error
    except UnpicklingError as error:  # an index that names pickles; torch rejects them with weights_only
        raise pickled_weights_error(reference, "an index of safetensors that names files of other types") from error
    except ImportError as error:
        raise ModelError(
            Problem(f"model.name: {name} needs a package that is not installed", library_message(error))
        ) from error
    except (LibraryPanic, NotImplementedError) as error:  # in tokenizer.json or in weights; in adapter_config.json
        raise _unloadable_error(reference, error) from error
    except NeftError:
        raise
    except Exception as error:
        model_error = _damaged_file_error(reference, error)
        if model_error is None:
            raise
        raise model_error from error


def _damaged_file_error(reference: ModelReference, error: Exception) -> ModelError | None:
    """Return the error for damaged files; None if a library or the machine is the cause."""
    name = reference.name
    if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
        details = _find_damage(reference) or (str(error), REFETCH)
        return ModelError(Problem(f"model.name: a weight file of {name} is damaged", *details))
    if isinstance(error, RuntimeError | TypeError) and IMPOSSIBLE_SIZE.search(str(error)):
        message = f"model.name: config.json of {name} has sizes that no model can have"
        return ModelError(Problem(message, library_message(error), REFETCH))
    if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
        message = f"model.name: the weights of {name} don't have the shapes given in its config.json"
        return ModelError(Problem(message, "", REFETCH))
    # The libraries fail in many ways on unexpected files. A RuntimeError comes from the machine, except for the
    # RecursionError in files that are nested too deeply.
    from_machine = isinstance(error, RuntimeError | MemoryError) and not isinstance(error, RecursionError)
    if reference.kind == "folder" and not from_machine:
        return _unloadable_error(reference, error)
    return None


def _find_damage(reference: ModelReference) -> tuple[str, str] | None:
    """Find a damaged file in the model's folder, or in its snapshot in the hub's cache."""
    if reference.kind == "folder":
        return find_damaged_file(Path(reference.location))
    if reference.kind != "hub":
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(reference.location, "config.json", revision=reference.revision)
    return find_damaged_file(Path(config).parent) if isinstance(config, str) else None


def _unloadable_error(reference: ModelReference, error: Exception) -> ModelError:
    """Return the error for a model whose files the libraries can't load, for any reason."""
    message = f"model.name: {reference.name} can't be loaded"
    damage = find_damaged_file(Path(reference.location)) if reference.kind == "folder" else None
    if damage is not None:
        return ModelError(Problem(message, *damage))
    got = library_message(error)
    if not isinstance(error, ValueError):
        got = f"the libraries fail on its files: {got}"
        if type(error).__name__ not in got:
            got = f"{got} ({type(error).__name__})"
    return ModelError(Problem(message, got, f"{REFETCH}; or upgrade transformers: pip install -U transformers"))


def _unreadable_error(reference: ModelReference, error: OSError) -> ModelError:
    """Return the error for a model whose files can't be read or downloaded."""
    text, first = str(error), library_message(error)
    if "gated" in text.lower():
        return _gated_error(reference)
    if reference.kind == "hub" and "safetensors" not in text.split("and")[0]:
        return ModelError(
            Problem(
                f"model.name: {reference.describe_source()} can't be reached, and is not in the local cache",
                add_hub_settings(first),
                _offline_hint(reference),
                closest_path(Path(reference.location)) if Path(reference.location).parent.is_dir() else "",
            )
        )
    pickled = any(Path(reference.location).glob("*.bin")) if reference.kind == "folder" else "safetensors" in text
    if pickled:
        return pickled_weights_error(reference, first)
    damage = find_damaged_file(Path(reference.location)) if reference.kind == "folder" else None
    return ModelError(Problem(f"model.name: {reference.name} can't be read", *(damage or (first, REFETCH))))


def _offline_hint(reference: ModelReference) -> str:
    """Name what works without a network: this model, or a different one, from an installed package."""
    alias = reference.alias
    if alias is not None and alias.package:
        return "leave out --revision    the installed package has the model" if alias.packaged_file() else alias.install
    name, packaged = next((name, alias) for name, alias in ALIASES.items() if alias.package)
    install = "" if packaged.packaged_file() else f"{packaged.install}, then "
    return f"go online once, or use a local folder; without a network: {install}--model {name}"


def pickled_weights_error(reference: ModelReference, got: str) -> ModelError:
    """Return the error for a model without safetensors files."""
    return ModelError(
        Problem(
            f"model.name: {reference.name} has only pickled weights (.bin), which can run code; neft doesn't read them",
            got,
            "load the model in an environment that you trust, and save it again with save_pretrained",
        )
    )


def _gated_error(reference: ModelReference) -> ModelError:
    """Return the error for a model whose licence must be accepted on the hub."""
    return ModelError(
        Problem(
            f"model.name: {reference.location} is gated: accept its licence on the hub first",
            "no access with the current login",
            f"accept it on the page of {reference.location}, then: hf auth login",
        )
    )


def library_message(error: Exception) -> str:
    """Return the first line of an error's message, with the next one if it ends in a colon; its type if empty."""
    if isinstance(error, LibraryPanic):
        return error.problems[0].got
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]


def save_tokenizer_call(reference: ModelReference) -> str:
    """Return the Python call that saves a tokenizer in the model's folder."""
    folder = repr(reference.location) if reference.kind == "folder" else "folder"
    return f"tokenizer.save_pretrained({folder})"
