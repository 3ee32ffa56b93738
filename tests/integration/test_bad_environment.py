"""Invalid environment variables, and those that have no effect, through the real command line.

Oracles: exit code 2 and the name of the invalid variable; exit code 0 if a local folder does not need the variable; the
hash of the weights if the arithmetic must not change; never a traceback, a token, or a message that blames neft.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neftcli.errors import INTERNAL_MESSAGE
from tests.conftest import Result, neft_process, quick_arguments

HUB = ("train", "--model", "owner/model")
SECRET = "hf_secretsecret"  # noqa: S105 - it is what must not be shown
ONLINE = {"HF_HUB_OFFLINE": "0"}
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "an endpoint without a scheme": (ONLINE | {"HF_ENDPOINT": "mirror.example"}, "HF_ENDPOINT"),
    "an endpoint's port": (ONLINE | {"HF_ENDPOINT": "https://mirror.example:port"}, "HF_ENDPOINT"),
    "half an address": ({"HF_ENDPOINT": "http://[::1"}, "HF_ENDPOINT"),
    "a token of two lines": (ONLINE | {"HF_TOKEN": f"{SECRET}\n{SECRET}"}, "HF_TOKEN"),
    "a token in other letters": (ONLINE | {"HF_TOKEN": f"{SECRET}é"}, "HF_TOKEN"),
    "a proxy of no kind": (ONLINE | {"ALL_PROXY": "socks4://127.0.0.1:9"}, "ALL_PROXY"),
    "a proxy's port": (ONLINE | {"https_proxy": "http://127.0.0.1:nine"}, "https_proxy"),
    "a cache that is a file": (ONLINE | {"HF_HOME": __file__}, "HF_HOME"),
    "threads that are no number": ({"OMP_NUM_THREADS": "abc"}, "OMP_NUM_THREADS"),
    "no threads": ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS"),
    "a size that is no number": ({"HF_DATASETS_IN_MEMORY_MAX_SIZE": "lots"}, "HF_DATASETS_IN_MEMORY_MAX_SIZE"),
    "a launcher's half": ({"WORLD_SIZE": "2"}, "WORLD_SIZE"),
}
HARMLESS = {
    "COLUMNS": "abc",
    "LANG": "xx_YY.nonsense",
    "TMPDIR": "/nonexistent",
    "MPLBACKEND": "nonsense",
    "TORCH_LOGS": "nonsense",
    "TOKENIZERS_PARALLELISM": "maybe",
    "TRANSFORMERS_VERBOSITY": "loud",
    "HF_DATASETS_OFFLINE": "maybe",
    "HF_HOME": __file__,
    "NEFT_CACHE": __file__,
    "HF_ENDPOINT": "mirror.example",
    "HF_TOKEN": f"{SECRET} a",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "http_proxy": "http://[::1",
    "CUDA_VISIBLE_DEVICES": "abc",
    "RANK": "x",
}
"""All at once: a local folder needs none of these."""


def require_no_traceback(result: Result) -> None:
    """Check what holds for every exit, except the exit code."""
    shown = result.out + result.err
    assert INTERNAL_MESSAGE not in shown
    assert "Traceback" not in shown
    assert SECRET not in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_train_names_an_invalid_variable(name: str, rows_file: Path, tmp_path: Path) -> None:
    given, variable = REFUSED[name]
    result = neft_process(*HUB, "--dataset", rows_file, cwd=tmp_path, **given)
    require_no_traceback(result)
    assert result.code == 2
    assert variable in result.err


@pytest.mark.slow
@pytest.mark.parametrize("source", ["model", "data"])
def test_train_socks_proxy_without_its_package(source: str, quick: list[str], tmp_path: Path) -> None:
    arguments = ["--model", "owner/model"] if source == "model" else ["--dataset", "owner/rows"]
    result = neft_process(*quick, *arguments, cwd=tmp_path, **ONLINE, ALL_PROXY="socks5://127.0.0.1:9")
    require_no_traceback(result)
    assert result.code == 2
    assert "ALL_PROXY=socks5://127.0.0.1:9" in " ".join(result.err.split())


@pytest.mark.slow
def test_train_is_bit_identical_in_any_environment(quick: list[str], tmp_path: Path) -> None:
    variables = {
        **HARMLESS,
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "LOCAL_RANK": "-1",
        "PMI_SIZE": "2",
    }
    plain = neft_process(*quick, cwd=tmp_path)
    other = neft_process(*quick, cwd=tmp_path, **variables)
    for result in (plain, other):
        require_no_traceback(result)
        assert result.code == 0, result.err
    records = [json.loads((tmp_path / "runs" / run / "run.json").read_text()) for run in ("tiny-a5-s0", "tiny-a5-s0-2")]
    assert records[0]["weights_sha256"] == records[1]["weights_sha256"]
    assert [record["precision"] for record in records] == ["fp32", "fp32"]
    assert all(
        f"{name} was dropped from the environment" in other.out for name in variables if name.startswith("ACCELERATE_")
    )
    assert SECRET not in json.dumps(records)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_data_inspect_terminal_encodings(encoding: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Every byte is valid in the encoding, and other characters are escaped."""
    rows = [{"prompt": f"Größe {number}? 你好", "completion": "Köln · 🙂"} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["data", "inspect", "--model", str(tiny_folder("llama")), "--dataset", "rows.jsonl"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "neftcli", *arguments, *more]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.decode(encoding)
        if more:
            inspected = [json.loads(line) for line in shown.splitlines()]
            texts = "".join(span["text"] for event in inspected for span in event.get("spans", ()))
            assert "Größe" in texts
        else:
            assert ("\\xf6" if encoding == "ascii" else "ö") in shown


@pytest.mark.slow
def test_train_user_without_a_home(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    """A command that needs the cache says so; a local folder trains, and no folder called ~ is created."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can become somebody without a home")
    place = Path("/tmp") / f"neft-no-home-{os.getpid()}"  # noqa: S108 - pytest's own folders are closed to others
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    try:
        shutil.copytree(tiny_folder("llama"), place / "tiny")
        shutil.copy(rows_file, place / "rows.jsonl")
        (place / "tiny" / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        become = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        without = {name: value for name, value in os.environ.items() if name not in ("HOME", "NEFT_CACHE")}
        program = [*become, sys.executable, "-m", "neftcli"]

        def run(*arguments: str) -> Result:
            done = subprocess.run(
                [*program, *arguments], capture_output=True, text=True, cwd=place, env=without, check=False
            )
            return Result(done.returncode, done.stdout, done.stderr)

        if run("--version").code:
            pytest.skip("this Python is closed to others")
        refused = run("models", "smollm2-135m")
        require_no_traceback(refused)
        if refused.code:  # the package that carries the model is installed
            assert refused.code == 2
            assert "NEFT_CACHE=FOLDER" in refused.err
        trained = run(*quick_arguments(Path("tiny"), Path("rows.jsonl"), Path("runs")), "--quiet")
        require_no_traceback(trained)
        assert trained.code == 0, trained.err
        assert not (place / "~").exists()
        (place / "closed").mkdir(mode=0o700)
        shutil.copytree(place / "tiny", place / "closed" / "tiny")
        for option, name in (("--model", "closed/tiny"), ("--dataset", "closed/rows.jsonl")):
            refused = run("train", "--model", "tiny", "--dataset", "rows.jsonl", option, name)
            assert refused.code == 2
            assert f"no permission to open {place}/closed\n  got      {name}" in refused.err
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            file = place / "tiny" / name
            mode = file.stat().st_mode
            file.chmod(0)
            refused = run("train", "--model", "tiny", "--dataset", "rows.jsonl", "--quiet")
            file.chmod(mode)
            assert refused.code == 2, refused.err
            assert name in refused.err
            assert "ermission" in refused.err
            assert INTERNAL_MESSAGE not in refused.err
    finally:
        shutil.rmtree(place)


def test_messages_never_blame_neft_for_bad_input() -> None:
    """The messages for bad input are snapshots of other tests."""
    snapshots = list((Path(__file__).parent / "__snapshots__").glob("test_bad_*.ambr"))
    assert len(snapshots) >= 3
    assert not any(INTERNAL_MESSAGE in snapshot.read_text(encoding="utf-8") for snapshot in snapshots)
