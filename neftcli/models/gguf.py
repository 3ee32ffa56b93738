"""Convert a .gguf file to a safetensors folder in the user's cache, once.

Reading a .gguf takes transformers many times longer than reading safetensors (it parses the file's metadata for the
configuration, the tokenizer and the weights anew), so the result is kept under the file's own hash. A cache entry is
written beside its place and renamed, so that two processes and a crash are safe, and is checked by size and hash.
"""

from __future__ import annotations

import json
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from neftcli.errors import ModelError, Problem
from neftcli.system.cache_folder import cache_folder, open_cache_folder
from neftcli.system.files import file_sha256, read_json_object, remove, require_no_link

MANIFEST = "neft-manifest.json"
FORM = 2
"""Version of what a conversion writes; older entries are converted again."""
LOCK = ".lock"
"""Suffix of an entry's lock, which stays."""
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>")
"""Tokens at which llama.cpp ends an answer whatever a file's metadata say."""
REFETCH_GGUF = "fetch the file again, or the model's folder with safetensors"


def is_gguf_converted(file: Path) -> bool:
    """Return whether the cache already holds this file's conversion (not verified)."""
    return read_json_object(_place(file_sha256(file)) / MANIFEST).get("form") == FORM


def convert_gguf(file: Path) -> Path:
    """The folder that holds `file` as safetensors, converting it where it isn't in the cache.

    Raises:
        ModelError: The file is no .gguf that transformers reads, or the `gguf` package is missing.
        InputError: The cache can't be written.
    """
    digest = file_sha256(file)
    place = _place(digest)
    if _verifies(place, digest):  # even if the cache is read-only
        return place
    with open_cache_folder(f"{file.name} as safetensors"):
        for path in (place, place.with_suffix(LOCK)):
            require_no_link(path)
        place.parent.mkdir(exist_ok=True)
        _convert_to(place, file, digest)
    return place


def _convert_to(place: Path, file: Path, digest: str) -> None:
    """Make `place` if it is missing or damaged; one process at a time."""
    from filelock import FileLock

    with FileLock(place.with_suffix(LOCK)):
        _clear_unfinished(place)
        if _verifies(place, digest):
            return
        remove(place)
        scratch = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
        try:
            _convert(file, scratch)
            (scratch / MANIFEST).write_text(json.dumps(_described(scratch, digest), indent=1), encoding="utf-8")
            scratch.rename(place)
        finally:
            remove(scratch)


def unfinished_conversions(models: Path) -> list[Path]:
    """List the folders of conversions that are at work or were killed."""
    return sorted(path for path in models.glob("*.*") if path.suffix != LOCK)


def _clear_unfinished(place: Path) -> None:
    """Remove what killed conversions left: of `place`, whose lock is held, and of entries that nobody is making."""
    from filelock import FileLock, Timeout

    for scratch in unfinished_conversions(place.parent):
        if scratch.stem == place.name:
            remove(scratch)
            continue
        with suppress(OSError, Timeout), FileLock(place.with_name(f"{scratch.stem}{LOCK}"), timeout=0):
            remove(scratch)


def _place(digest: str) -> Path:
    return cache_folder() / "models" / digest[:32]


def _described(place: Path, digest: str) -> dict[str, Any]:
    """Compute the manifest of a folder's files, of which the source has the hash `digest`."""
    files = sorted(item for item in place.iterdir() if item.name != MANIFEST)
    sizes = {item.name: [item.stat().st_size, file_sha256(item)] for item in files}
    return {"form": FORM, "source": digest, "files": sizes}


def _verifies(place: Path, digest: str) -> bool:
    """Return whether an entry holds the very files that its manifest describes."""
    manifest = read_json_object(place / MANIFEST)
    if manifest.get("form") != FORM:
        return False
    try:
        return manifest == _described(place, digest)
    except OSError:  # a folder among the files, or one that can't be read
        return False


def stop_tokens(file: Path) -> set[int]:
    """The tokens that a .gguf file's metadata name as ends of a text, a turn or a message."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    found = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return {int(field.contents()) for field in found if field is not None}


def _convert(file: Path, target: Path) -> None:
    with file.open("rb") as opened:
        letters = opened.read(4)
    if letters != b"GGUF":
        raise ModelError(
            Problem(f"{file}: this is not a .gguf file", "it does not begin with the letters GGUF", REFETCH_GGUF)
        )
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
        said = str(error).splitlines() or [type(error).__name__]
        raise ModelError(Problem(f"{file}: transformers can't read this .gguf", said[0], REFETCH_GGUF)) from error
    # The weights are plain numbers now; with the mark of quantisation on them save_pretrained refuses.
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = file.stem
    from neftcli.models.settings_files import convert_to_transformers_4, write_generation_config

    try:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        convert_to_transformers_4(target)
        stops = stop_tokens(file) | {
            number for text, number in tokenizer.get_added_vocab().items() if text in END_OF_TURN
        }
        write_generation_config(target, {}, model.config.to_dict(), stops, tokenizer.pad_token_id)
    except SafetensorError as error:  # its words for a full disk
        raise OSError(str(error)) from error
