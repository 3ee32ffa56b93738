"""Files that determine a model's outputs.

Oracles: which bytes transformers reads (weights that change the loss change the hash), and the written messages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neftcli.errors import ModelError
from neftcli.models.loading import load_model, load_tokenizer
from neftcli.models.model_files import WEIGHTS_INDEX, list_code_files, model_sha256, weight_files
from neftcli.models.registry import ModelReference
from neftcli.models.validate import validate_weight_files


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny model."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "outer" / "model")


def move_weights(folder: Path, name: str, by: str) -> Path:
    """Move a model's weights to a file that its index or its config.json names."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    if by == "index":
        weight_map = dict.fromkeys(load_file(weights), name)
        (folder / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        weights.rename(file)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
        shutil.copy(weights, file)
    return file


def logits(folder: Path) -> Any:
    with torch.no_grad():
        return load_model(ModelReference("m", "folder", str(folder)), torch.float32)(torch.tensor([[1, 2, 3]])).logits


@pytest.mark.parametrize("by", ["index", "config"])
@pytest.mark.parametrize("name", ["part.safetensors", "sub/w.safetensors"])
def test_model_sha256_covers_the_weights_that_are_read(name: str, by: str, folder: Path) -> None:
    file = move_weights(folder, name, by)
    assert weight_files(folder) == {name}
    before, computed = model_sha256(folder), logits(folder)
    weights = load_file(file)
    weights["lm_head.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    assert not torch.equal(logits(folder), computed)
    assert model_sha256(folder) != before


@pytest.mark.parametrize("by", ["index", "config"])
@pytest.mark.parametrize("kind", ["above", "absolute"])
def test_require_inside_rejects_weights_outside(kind: str, by: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outer" / "outside.safetensors"
    name = {"above": "../outside.safetensors", "absolute": str(outside)}[kind]
    move_weights(folder, name, by)
    reference = ModelReference("m", "folder", str(folder))
    for read in (lambda: validate_weight_files(reference), lambda: load_model(reference, torch.float32)):
        with pytest.raises(ModelError) as caught:
            read()
        assert str(caught.value).splitlines() == [
            "model.name: the index and config.json of m must name files in its own folder",
            f"  got      {name}, in {folder}",
            "  hint     copy the file into the folder and correct its name: relative, without ..",
        ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_model_sha256_follows_links(name: str, folder: Path, tmp_path: Path) -> None:
    """The content of linked files is read and hashed."""
    before, computed = model_sha256(folder), logits(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    reference = ModelReference("m", "folder", str(folder))
    validate_weight_files(reference)
    load_tokenizer(reference)
    assert torch.equal(logits(folder), computed)
    assert model_sha256(folder) == before
    if name == "model.safetensors":
        weights = load_file(tmp_path / "elsewhere")
        weights["lm_head.weight"] += 1
        save_file(weights, tmp_path / "elsewhere", {"format": "pt"})
        assert model_sha256(folder) != before


def test_model_sha256_of_a_hub_snapshot(folder: Path, tmp_path: Path) -> None:
    """Its files are links to blobs, possibly on a different disk; the hash equals that of a folder without links."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    (repository / "blobs").symlink_to(tmp_path / "scratch")
    for place, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, repository / "blobs" / str(place))
        (snapshot / file.name).symlink_to(f"../../blobs/{place}")
    validate_weight_files(ModelReference("m", "folder", str(snapshot)))
    assert model_sha256(snapshot) == model_sha256(folder)
    assert torch.equal(logits(snapshot), logits(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_model_sha256_covers_the_code_that_is_named(file: str, folder: Path) -> None:
    """And .py files in the same folder, which it may import; but no others, for example of a virtual environment."""
    for name in ("code/own.py", "code/beside.py", "custom_generate/generate.py", "venv/lib/other.py", "convert.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    mapped = {"AutoConfig": "code/own.Own", "AutoTokenizer": ["code/own.Slow", None], "AutoModel": "/etc/x.Y"}
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, "auto_map": mapped}))
    assert list_code_files(folder) == {"code/own.py", "code/beside.py", "custom_generate/generate.py"}
    before = model_sha256(folder)
    for name in ("venv/lib/other.py", "convert.py"):
        (folder / name).write_text("pass")
    assert model_sha256(folder) == before
    for name in sorted(list_code_files(folder)):
        (folder / name).write_text("pass")
        assert model_sha256(folder) != before
        before = model_sha256(folder)


@pytest.mark.parametrize(
    "mapped", [None, 1, "own.Own", [1, [], None], {"AutoConfig": {"a": []}}, {"AutoConfig": "own"}]
)
def test_list_code_files_of_damaged_settings(mapped: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": mapped}))
    assert list_code_files(folder) == set()
    (folder / "config.json").write_text("[" * 100_000)
    assert list_code_files(folder) == set()
