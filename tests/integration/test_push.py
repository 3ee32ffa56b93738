"""`neft push` through the command line, to a small hub on loopback.

Oracles: the bytes that the hub has, and huggingface_hub's reader of model cards.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from neftcli.errors import INTERNAL_MESSAGE
from tests.conftest import Result, call_neft, events, quick_arguments
from tests.hub_server import TOKEN, LoopbackHub, loopback_hub

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.xdist_group("push"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the hub's client
]
NAME = "me/my-model"


@pytest.fixture(scope="module")
def run(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tiny run with an adapter."""
    output = tmp_path_factory.mktemp("push")
    result = call_neft(*quick_arguments(tiny_folder("llama"), rows_file, output), "--lora")
    assert result.code == 0, result.err
    return next(output.iterdir())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Run a hub, as if the user had logged in."""
    with loopback_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its storage is another server
        without_waits = SimpleNamespace(time=time.time, monotonic=time.monotonic, sleep=lambda _: None)
        monkeypatch.setattr("huggingface_hub.utils._http.time", without_waits)
        yield server


def push(run: Path, *arguments: str) -> Result:
    return call_neft("push", run, NAME, *arguments)


def test_push_uploads_model_recipe_and_card(run: Path, hub: LoopbackHub) -> None:
    result = push(run, "--private", "--json")
    assert result.code == 0, result.err
    event = events(result.out)[-1]
    files = hub.repositories[NAME]
    model = {file.name: file.read_bytes() for file in (run / "model").iterdir()}
    assert {name: files[name] for name in model if name != "README.md"} == {
        name: content for name, content in model.items() if name != "README.md"
    }
    assert files["recipe.yaml"] == (run / "recipe.yaml").read_bytes()
    assert (event["event"], event["repository"], event["url"]) == ("push.finished", NAME, f"{hub.url}/{NAME}")
    assert event["files"] == len(files) - 1  # .gitattributes
    assert event["size"] == sum(map(len, files.values()))
    assert hub.private == {NAME}
    assert sum(request.startswith("POST /api/models/me/my-model/commit") for request in hub.requests) == 1
    card = ModelCard(files["README.md"].decode())
    [loss] = card.data.eval_results
    record = json.loads((run / "run.json").read_text())
    assert loss.metric_value == round(record["results"]["held_out_loss"], 6)
    assert (loss.metric_type, loss.dataset_name) == ("loss", "rows.jsonl")
    assert card.data.model_name == "my-model"
    assert "neftune" in card.data.tags
    assert "The full recipe is in `recipe.yaml`." in card.text
    assert TOKEN not in result.out + result.err


def test_push_an_existing_repository(run: Path, hub: LoopbackHub) -> None:
    """An empty one is used; one with files only with --update."""
    hub.repositories[NAME] = {".gitattributes": b""}
    assert push(run).code == 0
    before = dict(hub.repositories[NAME])
    refused = push(run)
    assert refused.code == 2
    assert f"{NAME}: the repository has files already" in refused.err
    assert f"neft push {run} {NAME} --update    adds a commit" in refused.err
    assert hub.repositories[NAME] == before
    assert push(run, "--update").code == 0
    public = push(run, "--update", "--private")
    assert public.code == 2
    assert f"{NAME}: --private, but the repository exists" in public.err


def test_push_merged_uploads_a_model_without_an_adapter(run: Path, hub: LoopbackHub) -> None:
    result = push(run, "--merged")
    assert result.code == 0, result.err
    names = hub.repositories[NAME].keys()
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yaml"}
    assert not [name for name in names if name.startswith("adapter")]
    assert [item.name for item in run.parent.iterdir()] == [run.name]  # the merged model is removed


def test_push_dry_run_uploads_nothing(run: Path, hub: LoopbackHub) -> None:
    result = push(run, "--dry-run")
    assert result.code == 0, result.err
    assert hub.requests == []
    assert f"{hub.url}/{NAME} (public)" in result.out
    assert "adapter_model.safetensors" in result.out
    assert "held-out loss (nats per token)" in result.out


@pytest.mark.parametrize(
    ("answers", "cut", "message"),
    [
        ({"create": 401}, (), "the hub rejects the token from HF_TOKEN; no repository was created"),
        ({"my-model": 401, "whoami-v2": 401}, (), "the hub rejects the token from HF_TOKEN; nothing was uploaded"),
        ({"my-model": 500}, (), f"{NAME}: the hub does not accept the request; nothing was uploaded"),
        ({"create": 403}, (), f"{NAME}: the token from HF_TOKEN can't write here; no repository was created"),
        ({"create": 500}, (), f"{NAME}: the hub does not accept the request; no repository was created"),
        ({"main": 500}, (), f"{NAME}: the hub does not accept the request; it has no new commit"),
        ({"batch": 500}, (), f"{NAME}: the hub does not accept the request; it has no new commit"),
        ({"validate-yaml": 400}, (), f"{NAME}: the hub does not accept the request; it has no new commit"),
        ({}, ("create",), f"{NAME}: the connection to the hub failed; no repository was created"),
        ({}, ("main",), f"{NAME}: the connection to the hub failed; it has no new commit"),
        ({}, ("batch",), f"{NAME}: the connection to the hub failed; it has no new commit"),
    ],
)
def test_push_explains_failures_and_continues(
    run: Path, hub: LoopbackHub, answers: dict[str, int], cut: tuple[str, ...], message: str
) -> None:
    hub.answers, hub.cut = answers, set(cut)
    result = push(run)
    assert result.code == 1
    assert message in result.err
    assert INTERNAL_MESSAGE not in result.err
    assert TOKEN not in result.err
    assert set(hub.repositories.get(NAME, {})) <= {".gitattributes"}
    hub.answers, hub.cut = {}, set()
    assert push(run).code == 0  # the same command, although the repository exists by now


def test_push_names_a_file_that_cant_be_read(run: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure on this machine is not one of the connection."""

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "adapter_model.safetensors")

    monkeypatch.setattr("huggingface_hub.CommitOperationAdd", fail)
    result = push(run)
    assert result.code == 1
    assert "adapter_model.safetensors: the file can't be read; it has no new commit" in result.err


@pytest.mark.parametrize("name", ["my-model", "/my-model", "me/", "me/a b", "me/you/my-model", "me/.git"])
def test_push_rejects_a_repository_name(run: Path, hub: LoopbackHub, name: str) -> None:
    result = call_neft("push", run, name)
    assert result.code == 2
    assert "a repository is owner/name: " in result.err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("https://huggingface.co/me/my-model/", "me/my-model"),
        ("../my-model", "YOUR_NAME/my-model"),
        ("my-model", "YOUR_NAME/my-model"),
        ("me/my model", "me/my-model"),
        ("https://huggingface.co/me/my-model.git", "me/my-model"),
        (f"me/{'m' * 97}", f"me/{'m' * 96}"),
        ("", "YOUR_NAME/{run}"),
    ],
)
def test_push_suggests_a_repository_name(run: Path, typed: str, hint: str) -> None:
    result = call_neft("push", run, typed, "--dry-run")
    assert f"hint     neft push {run} {hint.format(run=run.name)} --dry-run" in result.err


def test_push_needs_a_token_and_the_hub(
    run: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN")
    result = push(run)
    assert (result.code, hub.requests) == (2, [])
    assert "hf auth login, or HF_TOKEN=..." in result.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = push(run)
    assert (result.code, hub.requests) == (1, [])
    assert "the hub can't be reached; nothing was uploaded" in result.err


def test_push_of_a_local_base_says_so(run: Path, hub: LoopbackHub) -> None:
    result = push(run)
    assert "so others can't load it; --merged uploads a complete model" in result.err + result.out


def test_push_rejects_what_is_not_a_finished_run(run: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in (tmp_path, tmp_path / "missing", "smollm2-135m"):
        result = call_neft("push", name, NAME)
        assert result.code == 2, name
        assert INTERNAL_MESSAGE not in result.err
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_push_stopped_says_what_the_repository_has(run: Path, hub: LoopbackHub, number: int) -> None:
    hub.silent = {"batch"}
    command = [sys.executable, "-m", "neftcli", "push", str(run), NAME, "--json"]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while not any(request.endswith("/batch") for request in hub.requests):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{NAME}: stopped; it has no new commit" in err
    assert set(hub.repositories[NAME]) == {".gitattributes"}
