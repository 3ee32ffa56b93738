"""Convert a .gguf file to a safetensors folder in the user's cache, once.

transformers reads a .gguf file many times more slowly than safetensors: it parses the metadata for the configuration,
the tokenizer and the weights separately. So the result is cached under the file's hash. A cache entry is written to a
temporary folder and renamed, which is safe for concurrent processes and crashes, and is verified by size and hash.
"""

from __future__ import annotations

import json
import struct
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from neftcli.errors import ModelError, Problem, first_line
from neftcli.models.model_files import MODEL_MANIFEST
from neftcli.models.registry import ModelReference
from neftcli.models.settings_files import convert_to_transformers_4, write_generation_config
from neftcli.system.cache_folder import cache_folder, open_cache_folder
from neftcli.system.files import count_bytes, file_sha256_once, read_json_object, remove, require_no_link
from neftcli.system.locks import hold_lock

FORMAT_VERSION = 2
"""Version of the converted files; entries of older versions are converted again."""
CONVERSION_LOCK = ".lock"
"""Suffix of an entry's lock file, which is never removed."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>")
"""Tokens at which llama.cpp always ends an answer, independently of a file's metadata."""
REFETCH_GGUF = "download the file again, or use the model's folder with safetensors"


def is_gguf_converted(file: Path) -> bool:
    """Return whether the cache has a conversion of this file; it is not verified."""
    try:
        digest = file_sha256_once(file)
    except OSError:  # not readable: reported when the model is loaded
        return False
    return read_json_object(_entry_folder(digest) / MODEL_MANIFEST).get("version") == FORMAT_VERSION


def is_gguf_locked(file: Path) -> bool:
    """Return whether another process is converting this file, so that `convert_gguf` would wait for it."""
    from filelock import Timeout

    try:
        lock = _entry_folder(file_sha256_once(file)).with_suffix(CONVERSION_LOCK)
    except OSError:  # not readable: reported when the model is loaded
        return False
    try:
        with hold_lock(lock) if lock.is_file() else nullcontext():
            return False
    except Timeout:
        return True


def convert_gguf(file: Path) -> Path:
    """Return the folder with `file` as safetensors; convert it unless it is cached.

    Raises:
        ModelError: transformers can't read the file, or the `gguf` package is missing.
        InputError: The cache can't be written.
    """
    digest = file_sha256_once(file)
    entry = _entry_folder(digest)
    if _verifies(entry, digest):  # even if the cache is read-only
        return entry
    with open_cache_folder(f"{file.name} as safetensors"):
        for path in (entry, entry.with_suffix(CONVERSION_LOCK)):
            require_no_link(path)
        entry.parent.mkdir(exist_ok=True)
        _convert_to(entry, file, digest)
    return entry


def _convert_to(entry: Path, file: Path, digest: str) -> None:
    """Write the cache entry if it is missing or damaged, one process at a time."""
    with hold_lock(entry.with_suffix(CONVERSION_LOCK), wait=True, other_folder="NEFT_CACHE=FOLDER"):
        _clear_unfinished(entry)
        if _verifies(entry, digest):
            return
        remove(entry)
        scratch = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
        try:
            write_safetensors(file, scratch)
            manifest = json.dumps(_build_manifest(scratch, digest), indent=1)
            (scratch / MODEL_MANIFEST).write_text(manifest, encoding="utf-8")
            scratch.rename(entry)
        finally:
            remove(scratch)


def unfinished_conversions(models: Path) -> list[Path]:
    """List the temporary folders of conversions that are running or were killed."""
    return sorted(path for path in models.glob("*.*") if path.suffix != CONVERSION_LOCK)


def converted_models() -> list[Path]:
    """List the folders of the cache with finished conversions."""
    folder = _models_folder()
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if "." not in path.name and path.is_dir())


def clear_conversions() -> tuple[int, list[Path]]:
    """Remove all conversions from the cache, and what killed ones have left.

    Returns:
        The freed bytes, and the entries that a process is writing, which stay.
    """
    from filelock import Timeout

    freed, in_use = 0, []
    for path in [*converted_models(), *unfinished_conversions(_models_folder())]:
        size = count_bytes(path)
        try:
            with hold_lock(path.with_name(f"{path.stem}{CONVERSION_LOCK}")):
                remove(path)
        except Timeout:
            in_use.append(path)
        else:
            freed += size
    return freed, in_use


def _clear_unfinished(entry: Path) -> None:
    """Remove the folders of killed conversions: of this entry, whose lock is held, and of unlocked entries."""
    from filelock import Timeout

    for scratch in unfinished_conversions(entry.parent):
        if scratch.stem == entry.name:
            remove(scratch)
            continue
        with suppress(OSError, Timeout), hold_lock(entry.with_name(f"{scratch.stem}{CONVERSION_LOCK}")):
            remove(scratch)


def _models_folder() -> Path:
    return cache_folder() / "models"


def _entry_folder(digest: str) -> Path:
    """Return the cache entry of a file with this SHA-256."""
    return _models_folder() / digest[:32]


def _build_manifest(entry: Path, digest: str) -> dict[str, Any]:
    """Compute the manifest of a folder: version, SHA-256 of the source, and size and SHA-256 of each file."""
    files = sorted(item for item in entry.iterdir() if item.name != MODEL_MANIFEST)
    sizes = {item.name: [item.stat().st_size, file_sha256_once(item)] for item in files}
    return {"version": FORMAT_VERSION, "source": digest, "files": sizes}


def _verifies(entry: Path, digest: str) -> bool:
    """Return whether an entry has exactly the files in its manifest."""
    manifest = read_json_object(entry / MODEL_MANIFEST)
    if manifest.get("version") != FORMAT_VERSION:
        return False
    try:
        return manifest == _build_manifest(entry, digest)
    except OSError:  # a folder among the files, or an unreadable file
        return False


def read_gguf_stop_tokens(file: Path) -> set[int]:
    """Read from a .gguf file's metadata the tokens that end a text, a turn or a message."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    tokens = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return {int(field.contents()) for field in tokens if field is not None}


def write_safetensors(file: Path, target: Path) -> None:
    """Write `file` as safetensors to the folder `target`, in a form that transformers 4 reads too.

    Raises:
        ModelError: transformers can't read the file, or the `gguf` package is missing.
    """
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise ModelError(Problem(f"{file}: not a .gguf file", "it doesn't begin with GGUF", REFETCH_GGUF))
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelError(
            Problem(f"{file}: reading .gguf needs the gguf package", "it is not installed", "pip install gguf")
        ) from None
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (OSError, ValueError, LookupError, NotImplementedError, struct.error) as error:
        message = f"{file}: transformers can't read this .gguf file"
        raise ModelError(Problem(message, first_line(error), REFETCH_GGUF)) from error
    # The weights are dequantised, but save_pretrained rejects a model that is marked as quantised.
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = file.stem
    try:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        convert_to_transformers_4(target)
        stop_ids = read_gguf_stop_tokens(file)
        stop_ids |= {token_id for token, token_id in tokenizer.get_added_vocab().items() if token in END_OF_TURN}
        write_generation_config(target, {}, model.config.to_dict(), stop_ids, tokenizer.pad_token_id)
    except SafetensorError as error:  # for example a full disk
        raise OSError(str(error)) from error


def pretrained_location(reference: ModelReference) -> str:
    """Return a model's hub id or folder for `from_pretrained`; a .gguf file is converted first."""
    return str(convert_gguf(Path(reference.location))) if reference.kind == "gguf" else reference.location


def settings_reference(reference: ModelReference) -> ModelReference:
    """Return the folder or repository with a model's settings; for a .gguf file that of its conversion."""
    if reference.kind != "gguf":
        return reference
    return ModelReference(reference.name, "folder", pretrained_location(reference), alias=reference.alias)
