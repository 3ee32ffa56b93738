"""Hostile files, names and answers, and leaks of secrets, through the command line's own `main`.

Oracles: a folder that only hostile code would create (a test shows that each such file creates it if nothing stops it),
canaries as keys and tokens, the server that receives them, and Unicode's categories of characters.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from neftcli.recipe.schema import Recipe
from neftcli.runs.checkpoints import MANIFEST, CheckpointFolder
from neftcli.runs.directory import remove_incomplete_runs
from neftcli.sweep.cell_runs import CellRuns
from tests.conftest import Result, call_neft, quick_arguments
from tests.judge_server import echoes_the_key, judge_server, prefers_longer

SHORT = ("--set", "evaluation.generation.max_new_tokens=4", "--no-base")


class Makes:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def pickled(folder: Path) -> bytes:
    """Return a file in torch's format that creates `folder` when it is unpickled."""
    stream = io.BytesIO()
    torch.save(Makes(folder), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def trained(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder `runs` with three runs of a tiny Llama: alpha 0, alpha 5, and alpha 5 with LoRA."""
    output = tmp_path_factory.mktemp("trained") / "runs"
    arguments = [*quick_arguments(tiny_folder("llama"), rows_file, output), "--learning-rate", "5e-3"]
    for extra in (["--alpha", "0"], ["--alpha", "5"], ["--lora", "--set", "name=lora"]):
        result = call_neft(*arguments, *extra)
        assert result.code == 0, result.err
    return output


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the runs that a test may change, in a new folder."""
    shutil.copytree(trained, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Path]:
    """Return the folder that hostile files would create; check at the end that it does not exist."""
    folder = tmp_path / "made"
    yield folder
    assert not folder.exists()


# Pickles


def test_pickles_of_these_tests_run(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickled(tmp_path / "made"))
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "made").is_dir()
    (tmp_path / "made").rmdir()
    pickle.loads(pickle.dumps(Makes(tmp_path / "made")))  # noqa: S301 - that is the point
    assert (tmp_path / "made").is_dir()


OF_A_MANIFEST = ("format", "step", "files", "manifest_sha256")
IN_A_RUN = (
    *("model/training_args.bin", "model/pytorch_model.bin", "model/adapter_model.bin", "model/tokenizer.pkl"),
    *("checkpoints/step-2/optimizer.pt", "checkpoints/step-2/scheduler.pt", "checkpoints/step-2/rng_state.pth"),
    *("checkpoints/checkpoint-2/training_args.bin", "checkpoints/checkpoint-2/pytorch_model.bin", "train.pkl"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-a5-s0", "lora-a5-s0"])
def test_pickles_in_a_run(name: str, runs: Path, made: Path) -> None:
    """The run is evaluated and resumed as if they did not exist."""
    before = call_neft("eval", runs / name, "--no-answers", "--no-base", "--quiet")
    shutil.rmtree(runs / name / "evaluation")
    for file in IN_A_RUN:
        (runs / name / file).parent.mkdir(parents=True, exist_ok=True)
        (runs / name / file).write_bytes(pickled(made))
    after = call_neft("eval", runs / name, "--no-answers", "--no-base", "--quiet")
    assert (before.code, after.code) == (0, 0)
    measured = [[line for line in result.out.splitlines() if "held_out_loss" in line] for result in (before, after)]
    assert len(measured[0]) > 0
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_pickles_in_the_cache(runs: Path, made: Path) -> None:
    """In results of an evaluation, the judge's replies and a sweep's cells: measured again, or reported."""
    run = runs / "tiny-a5-s0"
    assert call_neft("eval", run, "--no-base", *SHORT).code == 0
    kept = [*(run / "evaluation").glob("*.jsonl")]
    assert {file.name.partition("-")[0] for file in kept} == {"losses", "answers"}
    for file in kept:
        file.write_bytes(pickled(made))
    assert call_neft("eval", run, "--no-base", *SHORT).code == 0
    sweep = runs / "run-sweep"
    for file in (
        "recipe.yaml",
        "cells/a/run.json",
        "cells/a/evaluation/cell.json",
        "cells/b/recipe.yaml",
        "sweep.json",
    ):
        (sweep / file).parent.mkdir(parents=True, exist_ok=True)
        (sweep / file).write_bytes(pickled(made))
    assert call_neft("sweep-alpha", sweep).code == 2
    assert CellRuns(sweep / "cells").finished("key") is None
    assert CellRuns(sweep / "cells").find_resume_state("key", Recipe()) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_pickles_in_a_checkpoint_with_a_new_manifest(
    name: str,
    tiny_folder: Callable[[str], Path],
    rows_file: Path,
    tmp_path: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A valid manifest is no reason to trust a checkpoint: anybody who can write its files can write the manifest."""
    publish = CheckpointFolder.publish

    def publish_and_stop(checkpoints: CheckpointFolder, step: int, facts: Mapping[str, Any]) -> None:
        publish(checkpoints, step, facts)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFolder, "publish", publish_and_stop)
        stopped = call_neft(*quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs"), "--save-steps", "2")
    [checkpoint] = (tmp_path / "runs").glob("*/checkpoints/checkpoint-2")
    assert stopped.code == 75, stopped.err
    assert not (checkpoint / "training_args.bin").exists()
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickled(made))
    facts = json.loads((checkpoint / MANIFEST).read_text())
    publish(CheckpointFolder(checkpoint.parent, 2), 2, {key: facts[key] for key in facts if key not in OF_A_MANIFEST})
    resumed = call_neft("train", "--resume", checkpoint.parents[1])
    assert "resuming after step 2" in resumed.out
    assert resumed.code == 1


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".pkl", ".pt", ".npy"])
def test_pickles_as_rows(ending: str, tmp_path: Path, made: Path) -> None:
    file = tmp_path / f"rows{ending}"
    file.write_bytes(pickle.dumps(Makes(made)))
    result = call_neft("train", "--dataset", file, "--output-dir", tmp_path / "runs")
    assert (result.code, (tmp_path / "runs").exists()) == (2, False), result.err


@pytest.mark.slow
def test_runs_contain_no_pickles(runs: Path) -> None:
    """No training_args.bin, which contains tokens, and nothing else that torch or pickle wrote."""
    left = [file.name for file in runs.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert left == []


# Code


def bring_code(model: Path, made: Path) -> None:
    """Give a model its own classes, in a file that creates a folder when it is imported."""
    (model / "own.py").write_text(
        f"import os\nos.makedirs({str(made)!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig): model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM): config_class = Own\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, "model_type": "own"}
    (model / "config.json").write_text(json.dumps(config))


@pytest.fixture
def with_code(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a model with its own code."""
    model = shutil.copytree(tiny_folder("llama"), tmp_path / "with-code")
    bring_code(model, tmp_path / "code-ran")
    return model


@pytest.mark.slow
def test_remote_code_runs_on_request_and_is_recorded(with_code: Path, rows_file: Path, tmp_path: Path) -> None:
    arguments = [*quick_arguments(with_code, rows_file, tmp_path / "runs"), "--set", "evaluation.samples=0"]
    refused = call_neft(*arguments)
    assert refused.code == 2
    assert "--trust-remote-code" in refused.err.splitlines()[2]
    assert not (tmp_path / "code-ran").exists()
    assert not any((tmp_path / "runs").glob("*"))
    assert call_neft(*arguments, "--trust-remote-code").code == 0
    assert (tmp_path / "code-ran").is_dir()
    [record] = (tmp_path / "runs").glob("*/run.json")
    assert json.loads(record.read_text())["trust_remote_code"] is True


@pytest.mark.slow
def test_remote_code_absent_is_recorded(runs: Path) -> None:
    records = [json.loads(file.read_text()) for file in runs.glob("*/run.json")]
    assert [record["trust_remote_code"] for record in records] == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run", "baseline"])
def test_remote_code_of_somebody_elses_run(place: str, runs: Path, tmp_path: Path) -> None:
    """Even if the run's recipe allows it: only the command line decides."""
    theirs = runs / "tiny-a5-s0"
    bring_code(theirs / "model", tmp_path / "code-ran")
    recipe = (theirs / "recipe.yaml").read_text()
    assert "trust_remote_code: false" in recipe
    (theirs / "recipe.yaml").write_text(recipe.replace("trust_remote_code: false", "trust_remote_code: true"))
    both = [theirs] if place == "run" else [runs / "tiny-a0-s0", "--baseline", theirs]
    refused = call_neft("eval", *both, "--no-answers", "--no-base")
    assert refused.code == 2
    assert "needs its own Python code, which neft doesn't run by default" in refused.err
    assert not (tmp_path / "code-ran").exists()
    asked = call_neft("eval", *both, "--no-answers", "--no-base", "--trust-remote-code")
    assert asked.code == 0, asked.err
    assert (tmp_path / "code-ran").is_dir()


@pytest.mark.parametrize("revision", [(), ("--revision", "main"), ("--revision", "0123abc")])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_remote_code_of_the_hub_needs_a_commit(
    command: str, revision: tuple[str, ...], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = ["--model", "owner/name"] if command == "train" else ["owner/name"]
    result = call_neft(command, *subject, "--dataset", rows_file, "--trust-remote-code", *revision)
    assert result.code == 2
    assert result.err.splitlines() == [
        "model.revision: code of owner/name runs only at a full commit id, which nobody can change",
        f"  got      {revision[1] if revision else 'no revision'}",
        "  hint     read the code at a commit, then: --trust-remote-code --revision COMMIT (all 40 characters)",
        "1 error; nothing was started.",
    ]
    assert not any((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("whose", ["a file's", "the model's own"])
def test_chat_template_is_sandboxed(
    whose: str, tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path, made: Path
) -> None:
    template = f"{{{{ cycler.__init__.__globals__.os.mkdir('{made}') }}}}"
    model = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    file = model / "chat_template.jinja" if whose == "the model's own" else tmp_path / "own.jinja"
    file.write_text(template)
    typed = ["--chat-template", file] if whose == "a file's" else []
    result = call_neft(*quick_arguments(model, rows_file, tmp_path / "runs"), *typed)
    assert result.code == 2
    assert "access to attribute '__init__' of 'type' object is unsafe" in result.err


@pytest.mark.slow
def test_task_file_code_is_rejected(runs: Path, tmp_path: Path, made: Path) -> None:
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(made)!r})\ndef docs(rows): return rows\n")
    (tmp_path / "task.yaml").write_text("task: own\nprocess_docs: !function own.docs\n")
    result = call_neft("eval", runs / "tiny-a5-s0", "--tasks", tmp_path / "task.yaml", "--no-answers")
    assert result.code == 2
    assert "NEFT_TRUST_TASK_CODE=1" in result.err
    assert not (runs / "tiny-a5-s0" / "evaluation").exists()


# Secrets

CANARIES = {
    "HF_TOKEN": "hf_canaryOfTheHub0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryOfTheHubOfOld0123456789",
    "OPENAI_API_KEY": "canary-of-the-judge-0123456789",
    "WANDB_API_KEY": "canaryOfWandb0123456789abcdef0123456789",
    "AWS_SECRET_ACCESS_KEY": "canaryOfAws0123456789",
}


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set keys and tokens in the environment; return the texts that no output and no file may contain."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return [*CANARIES.values(), "canary", "Canary"]


def everything_below(folder: Path) -> str:
    """Return the bytes of all files, and their names."""
    return "\n".join(str(file) + file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())


def leaked(secrets: list[str], results: list[Result], folder: Path) -> list[str]:
    everywhere = "".join(result.out + result.err for result in results) + everything_below(folder)
    return [secret for secret in secrets if secret in everywhere]


def test_secrets_search_finds_them(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("x canary-a y")
    assert leaked(["canary-a", "b"], [Result(0, "", "b")], tmp_path) == ["canary-a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("--json",), ("--debug",)])
def test_secrets_of_training(
    extra: tuple[str, ...], canaries: list[str], tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """A finished run, one whose loss becomes NaN, and one of a model that the hub is asked for."""
    arguments = quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")
    results = [
        call_neft(*arguments, *extra),
        call_neft(*arguments, "--learning-rate", "1e30", *extra),
        call_neft(*quick_arguments(Path("owner/name"), rows_file, tmp_path / "runs"), *extra),
    ]
    assert [result.code for result in results] == [0, 1, 2]
    assert leaked(canaries, results, tmp_path) == []


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("extra", [(), ("--json",), ("--debug",)])
def test_secrets_of_an_evaluation(extra: tuple[str, ...], canaries: list[str], runs: Path) -> None:
    """A judge that answers, one that rejects and echoes the key, and one whose address contains a password."""
    judged = ["eval", "tiny-a5-s0", "--baseline", "tiny-a0-s0", *SHORT, *extra, "--judge-model", "m", "--judge"]
    with judge_server(prefers_longer) as server:
        server.always = echoes_the_key
        refused = call_neft(*judged, server.url)
        server.always = None
        answered = call_neft(*judged, server.url)
        sent = {request.headers["authorization"] for request in server.requests}
        password = call_neft(*judged, server.url.replace("//", "//somebody:canaryPassword@"))
        query = call_neft(*judged, f"{server.url}?key=canaryQuery")
    assert sent == {f"Bearer {CANARIES['OPENAI_API_KEY']}"}
    assert (refused.code, answered.code) == (1, 0), answered.err
    assert "rejects the key in OPENAI_API_KEY" in refused.err
    if "--debug" in extra:
        assert all("Traceback" in result.err for result in (refused, password, query))
    assert leaked(canaries, [refused, answered, password, query], runs.parent) == []


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_secrets_of_a_sweep(
    canaries: list[str], tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """Its recipe, cells, worker log, judge replies and verdict."""
    arguments = quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")[1:]
    arguments += ["--alphas", "0,5", "--seeds", "1", "--metric", "win_rate_length_controlled", "--judge-model", "m"]
    arguments += ["--set", "training.learning_rate=5e-3", "--set", "evaluation.samples=0"]
    with judge_server(prefers_longer) as server:
        server.always = echoes_the_key
        refused = call_neft("sweep-alpha", *arguments, "--judge", server.url)
        server.always = None
        answered = call_neft("sweep-alpha", *arguments, "--judge", server.url, "--json")
        password = server.url.replace("//", "//somebody:canaryPassword@")
        typed = call_neft("sweep-alpha", *arguments, "--judge", password, "--debug")
        assert {request.headers["authorization"] for request in server.requests} == {
            f"Bearer {CANARIES['OPENAI_API_KEY']}"
        }
    assert (refused.code, answered.code, typed.code) == (1, 0, 2), answered.err
    files = {file.name for file in (tmp_path / "runs").rglob("*")}
    assert {"recipe.yaml", "run.json", "train.log", "workers.log", "verdicts.jsonl", "verdict.md"} <= files
    assert "training_args.bin" not in files
    assert leaked(canaries, [refused, answered, typed], tmp_path) == []


# Names


def acting(text: str) -> set[str]:
    """Return the characters of an output that could control a terminal, except line breaks."""
    acts = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {letter for letter in text if letter != "\n" and unicodedata.category(letter) in acts}


def test_file_names_are_sanitised_for_the_terminal(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """Names of rows, a model, a template and a task, in messages and in errors."""
    name = "\x1b]0;title\x07\x1b[31m\x9b1m\u202egnp [red] :smile: |![](x)<img src=x>"
    model = shutil.copytree(tiny_folder("llama"), tmp_path / name)
    rows = shutil.copy(rows_file, tmp_path / f"{name}.jsonl")
    template = tmp_path / f"{name}.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    good = call_neft(*quick_arguments(model, rows, tmp_path / "runs"), "--chat-template", template)
    assert good.code == 0, good.err
    arguments = quick_arguments(model, rows, tmp_path / "runs")
    [run] = (tmp_path / "runs").iterdir()
    bad = [
        call_neft(*arguments, "--chat-template", f"{name}absent"),
        call_neft(*arguments, "--dataset", f"{name}absent.jsonl"),
        call_neft(*arguments, "--recipe", f"{name}absent.yaml"),
        call_neft(*arguments, "--set", f"{name}=1"),
        call_neft("eval", f"{name}absent"),
        call_neft("eval", run, "--tasks", json.dumps(f"{name}absent.yaml")),
    ]
    assert [result.code for result in bad] == [2] * len(bad)
    assert acting("".join(result.out + result.err for result in (good, *bad))) == set()
    assert "[red] :smile:" in good.out
    assert ["[red] :smile:" in result.err for result in bad] == [True] * len(bad)
    card = (run / "model" / "README.md").read_text()
    assert acting(card) == set()
    assert f"`{tmp_path}/" in card


# Files


@pytest.mark.slow
def test_files_follow_the_umask(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert call_neft(*quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")).code == 0
    finally:
        os.umask(before)
    open_ones = [file.name for file in (tmp_path / "runs").rglob("*") if stat.S_IMODE(file.stat().st_mode) & 0o077]
    assert open_ones == []


@pytest.mark.slow
def test_files_are_not_writable_by_all(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> None:
    """Including files of the libraries, of checkpoints and of an evaluation, whatever the umask."""
    before = os.umask(0)
    try:
        assert call_neft(*quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")).code == 0
        os.umask(0)
        assert call_neft("eval", tmp_path / "runs" / "tiny-a5-s0", *SHORT).code == 0
    finally:
        os.umask(before)
    written = list((tmp_path / "runs").rglob("*"))
    assert any(path.name == "report.json" for path in written)
    assert [path for path in written if path.stat().st_mode & 0o002] == []


@pytest.mark.slow
def test_eval_failed_start_removes_only_its_own_files(
    runs: Path, tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps files of others, and files that a link leads to."""
    run, outside = runs / "tiny-a5-s0", tmp_path / "outside"
    for folder in (run / "evaluation" / "held-out", outside / "held-out"):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    too_long = ("eval", run, "--no-base", "--set", "evaluation.generation.max_new_tokens=5000")
    assert call_neft(*too_long).code == 2
    assert (run / "evaluation" / "held-out" / "notes.txt").read_text() == "mine"
    shutil.rmtree(run / "evaluation")
    for link in (run / "evaluation", runs / "tiny-a0-s0" / "evaluation" / "held-out"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside if link.name == "evaluation" else outside / "held-out")
        assert call_neft("eval", link.parents[link.name == "held-out"], *too_long[2:]).code == 2
        assert [file.name for file in outside.rglob("*") if file.is_file()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("kind", ["losses", "answers", "log", "verdicts"])
def test_links_as_cache_files(kind: str, runs: Path, tmp_path: Path) -> None:
    """Files that are appended to would lose an unfinished last line, and be continued."""
    run, mine = runs / "tiny-a5-s0", tmp_path / "mine.txt"
    with judge_server(prefers_longer) as server:
        judged = ("--baseline", "tiny-a0-s0", "--judge", server.url, "--judge-model", "m")
        assert call_neft("eval", run, *judged, *SHORT).code == 0
        [file] = {
            "log": run.glob("evaluation/*/eval.log"),
            "verdicts": runs.glob("judge/verdicts.jsonl"),
        }.get(kind, run.glob(f"evaluation/{kind}-*.jsonl"))
        mine.write_text("mine, without an end")
        file.unlink()
        file.symlink_to(mine)
        result = call_neft("eval", run, *judged, *SHORT)
    assert (result.code, mine.read_text()) == (2, "mine, without an end")
    assert f"{file.relative_to(tmp_path)}: neft does not write through links" in result.err


@pytest.mark.slow
def test_links_among_cells_are_not_followed(tmp_path: Path) -> None:
    cells, outside = tmp_path / "cells", tmp_path / "outside"
    for name, record in (("unborn", None), ("unfinished", {"recipe_sha256": "k", "status": "running"})):
        (outside / name).mkdir(parents=True)
        (outside / name / "notes.txt").write_text("mine")
        if record:
            (outside / name / "run.json").write_text(json.dumps(record))
        cells.mkdir(exist_ok=True)
        (cells / name).symlink_to(outside / name)
    for clear in (lambda: remove_incomplete_runs(cells), lambda: CellRuns(cells).find_resume_state("k", Recipe())):
        with suppress(OSError):  # shutil refuses a link
            clear()
    assert len(list(outside.rglob("notes.txt"))) == 2
