"""Recipes and flags that can't be used, through the real command line.

Oracles: the whole message of each, in __snapshots__/test_bad_recipes.ambr; an unchanged folder; and YAML tricks that
would leave a mark if they ran.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.bad_input import Case, Content, Neft, rejection, require_harmless
from tests.conftest import neft_process

ROWS = "".join(f'{{"prompt": "question {number}", "completion": "answer"}}\n' for number in range(20))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(content: Content, *more: str, **files: Content) -> Case:
    """Return a run with a recipe of this content; a valid recipe ends at a missing data file."""
    named = {name.replace("__", "/"): text for name, text in files.items()}
    arguments = ("train", "--recipe", "r.yaml", "--dataset", "lost.jsonl", *more)
    return Case(arguments, {"r.yaml": content, **named})


BOMB = "a: &a [x, x, x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}, *{old}]\n" for old, new in ("ab", "bc", "cd"))

RECIPES = {
    "a key twice": recipe("neftune:\n  alpha: 5\n  alpha: 10\n"),
    "a section twice": recipe("neftune:\n  alpha: 5\nname: a\nneftune:\n  noise: gaussian\n"),
    "wrong types": recipe(
        "neftune:\n  alpha: five\ntraining:\n  seed: 1.5\n  learning_rate: '2e-5'\n  max_steps: [3]\n"
    ),
    "no is text": recipe("training:\n  gradient_checkpointing: no\n"),
    "yes under YAML 1.1": recipe("%YAML 1.1\n---\nmodel:\n  trust_remote_code: yes\n"),
    "unknown keys": recipe("trainig:\n  learning_rate: 2e-5\nnonsense: 5\n"),
    "names of other tools": recipe("neftune_noise_alpha: 5\nmax_seq_length: 512\nload_in_4bit: true\n"),
    "a key that acts on a terminal": recipe('"\\e[2J\\u202eneftune": 5\n'),
    "a section as a number": recipe("neftune: 5\n"),
    "a section as nothing": recipe("neftune:\n"),
    "a list at the top": recipe("- neftune\n- alpha\n"),
    "a word at the top": recipe("hello\n"),
    "a bomb of anchors": recipe(BOMB),
    "an anchor in itself": recipe("data: &d\n  columns: *d\n"),
    "a tag of Python": recipe("about: !!python/object/apply:os.system ['touch hacked']\n"),
    "a tag on a mapping": recipe("model: !!python/object:os.Path {name: a}\n"),
    "a merge key": recipe("neftune:\n  <<: {alpha: 5}\n"),
    "a tab": recipe("neftune:\n\talpha: 5\n"),
    "two documents": recipe("name: a\n---\nname: b\n"),
    "an open bracket": recipe("name: a\nadapter:\n  target_modules: [q_proj\n"),
    "a colon in a text": recipe("about: NEFTune: with noise\n"),
    "lists in lists": recipe("name: " + "[" * 2000),
    "a number of thousands of digits": recipe("training:\n  seed: " + "9" * 5000 + "\n"),
    "a NUL character": recipe("name: a\nabout: b\0c\n"),
    "bytes": recipe(bytes(range(256))),
    "UTF-16": recipe("name: a\n".encode("utf-16")),
    "Latin-1": recipe("name: a\nabout: Größe\n".encode("latin-1")),
    "half a character": recipe('name: "\\ud800"\n'),
    "columns as a list": recipe("data:\n  columns: [a, b]\n"),
    "it extends itself": recipe("extends: r.yaml\n"),
    "it extends what is not there": recipe("extends: my/recpie.yaml\n", **{"my__recipe.yaml": ""}),
    "it extends a list": recipe("extends: [quickstart]\n"),
    "contradictions": recipe(
        "quantization:\n  type: nf4\nevaluation:\n  judge:\n    base_url: http://me:key@host/v1\n"
    ),
    "no such file": Case(("train", "--recipe", "my/recpie.yaml"), {"my/recipe.yaml": ""}),
    "no such file in no such folder": Case(("train", "--recipe", "myy/recpie.yaml"), {"my/recipe.yaml": ""}),
    "no such name": Case(("train", "--recipe", "quikstart")),
    "a file that is no .yaml": Case(("train", "--recipe", "recipe.json"), {"recipe.json": "{}"}),
    "a folder": Case(("train", "--recipe", "r.yaml"), {"r.yaml": None}),
    "a name of a recipe with a NUL": Case(("train", "--recipe", "a\0.yaml")),
    "a copy over a file": Case(("recipes", "copy", "quickstart", "mine.yaml"), {"mine.yaml": "name: mine\n"}),
    "a copy to nowhere": Case(("recipes", "copy", "quickstart", "no/such/mine.yaml")),
    "a copy of what is not there": Case(("recipes", "copy", "no/secret.yaml", "mine.yaml")),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_invalid(neft: Neft, snapshot: SnapshotAssertion, name: str) -> None:
    assert rejection(neft, RECIPES[name]) == snapshot
    assert not Path("hacked").exists()


def train(*arguments: str, **files: Content) -> Case:
    return Case(("train", "--dataset", "rows.jsonl", *arguments), {"rows.jsonl": ROWS, **files})


def sweep(*arguments: str) -> Case:
    return Case(("sweep-alpha", "--dataset", "rows.jsonl", *arguments), {"rows.jsonl": ROWS})


def evaluation(*arguments: str, **files: Content) -> Case:
    named = {name.replace("__", "/"): text for name, text in files.items()}
    return Case(("eval", *arguments), {"rows.jsonl": ROWS, **named})


RECORD = '{"status": "finished", "recipe_sha256": "x"}'
FLAGS = {
    **{
        f"alpha {value or 'of nothing'}": train("--alpha", value)
        for value in ("-5", "nan", ".nan", "inf", "-.inf", "1e999", "five", "true", "[5]", "5,10", "")
    },
    "every bad flag at once": train(
        "--alpha", "x", "--seed", "-1", "--epochs", "0", "--batch-size", "1.5", "--max-length", "4", "--set", "a=b"
    ),
    "a --set without a value": train("--set", "neftune.alpha"),
    "a --set of a section": train("--set", "neftune={alpha: 5}"),
    "a --set that is no YAML": train("--set", "data.columns={instruction: "),
    "a --set with a tag": train("--set", "name=!!python/name:os.system"),
    "a name with ../": train("--name", "../escaped"),
    "a name with a slash": train("--name", "a/b"),
    "a name that acts on a terminal": train("--name", "\x1b[2J"),
    "a name that is too long": train("--name", "x" * 80),
    "a name in no encoding": train("--name", "a\udcff"),
    "an output folder that is a file": train("--output-dir", "rows.jsonl"),
    "4 bits without an adapter": train("--qlora", "--set", "adapter.type=none"),
    "an option of LoRA without it": train("--lora-r", "8"),
    "a temperature without sampling": train("--set", "evaluation.generation.temperature=0.5"),
    "a layout that is none": train("--format", "sharegtp"),
    "an option that an evaluation does not read": evaluation("smollm2-135m", "--set", "neftune.alpha=5"),
    "no run and no model": evaluation("no-such-run"),
    "a run with a NUL": evaluation("a\0b"),
    "a run in no encoding": evaluation("a\udcff"),
    "a run of a name too long": evaluation("runs/" + "a" * 300),
    "a run that is misspelt": evaluation("runs/tiny-a5-so", **{"runs__tiny-a5-s0__note": ""}),
    "a folder that is no run": evaluation("runs/x", runs__x__notes=""),
    "a file that is no run": evaluation("rows.jsonl"),
    "a run.json that is no JSON": evaluation("runs/x", **{"runs__x__run.json": "{"}),
    "a run.json that is a list": evaluation("runs/x", **{"runs__x__run.json": "[]"}),
    "a run.json of bytes": evaluation("runs/x", **{"runs__x__run.json": b"\xff\xfe\0"}),
    "a run without a recipe": evaluation("x", **{"runs__x__run.json": RECORD}),
    "a run without a model": evaluation("x", **{"runs__x__run.json": RECORD, "runs__x__recipe.yaml": "name: x\n"}),
    "a run with a broken recipe": evaluation(
        "x",
        **{"runs__x__run.json": RECORD, "runs__x__recipe.yaml": "name: [\n", "runs__x__model__model.safetensors": b""},
    ),
    "a baseline that is none": evaluation("smollm2-135m", "--baseline", "nope"),
    "a format that nothing exports": evaluation("smollm2-135m", "--export", "csv"),
    "answers that are wanted and not": evaluation("smollm2-135m", "--show", "3", "--no-answers"),
    "a judge with nothing to compare": evaluation(
        "smollm2-135m", "--judge", "http://127.0.0.1:1", "--judge-model", "x"
    ),
    "a judge that is no address": evaluation("smollm2-135m", "--baseline", "opt-125m", "--judge", "not an address"),
    "alphas with text": sweep("--alphas", "0,five"),
    "alphas with infinity": sweep("--alphas", "0,inf"),
    "no alphas": sweep("--alphas", ","),
    "alphas of an empty string": sweep("--alphas", ""),
    "alphas with spaces": sweep("--alphas", "0 5 10"),
    "alphas in an open bracket": sweep("--alphas", "[0, 5"),
    "a grid without values": sweep("--grid", "training.learning_rate"),
    "a grid without a key": sweep("--grid", "=1,2"),
    "a grid of no option": sweep("--grid", "trainig.learning_rate=1e-4,2e-4"),
    "a grid of wrong values": sweep("--grid", "neftune.noise=uniform,gausian"),
    "a grid with a value twice": sweep("--grid", "training.learning_rate=1e-4,1e-4"),
    "a grid with an axis twice": sweep("--grid", "training.weight_decay=0,1", "--grid", "training.weight_decay=2"),
    "a grid of alphas": sweep("--grid", "neftune.alpha=1,2"),
    "a grid in an open bracket": sweep("--grid", "adapter.target_modules=[a,b"),
    "seeds that are no number": sweep("--seeds", "x"),
    "a metric that is none": sweep("--metric", "held_out_los"),
    "a metric without a judge": sweep("--metric", "win_rate_length_controlled"),
    "an engine that is none": sweep("--engine", "rya"),
    "an address without its engine": sweep("--ray-address", "auto"),
    "too few rows for a sweep": sweep(),
    "a sweep with ../ in its name": sweep("--name", "../escaped"),
    "a sweep's name too long for its cells": sweep("--name", "x" * 58, "--grid", "training.weight_decay=0,1"),
    "a delta that is no amount": sweep("--delta", "%"),
    "a delta of more than all": sweep("--delta", "200%"),
    "a delta below 0": sweep("--delta", "-1"),
    "a delta of 5 for a share": sweep("--delta", "5", "--metric", "token_accuracy"),
    "a pilot that is none": sweep("--dry-run", "--pilot", "nowhere"),
    "a sweep that is none": Case(("sweep-alpha", "runs/none")),
    "a folder that is no sweep": Case(("sweep-alpha", "runs/x"), {"runs/x/notes": ""}),
    "a sweep with a broken recipe": Case(
        ("sweep-alpha", "runs/x"), {"runs/x/recipe.yaml": "name: [", "runs/x/cells": None}
    ),
    "a recipe without its option": Case(("train", "quickstart")),
    "a recipe file without its option": Case(("train", "own.yaml")),
    "rows without their option": Case(("data", "inspect", "rows.jsonl"), {"rows.jsonl": ROWS}),
    "two alphas apart": sweep("--alphas", "0", "5"),
    "an alpha that is a command": Case(
        ("train", "--recipe", "r.yaml"), {"r.yaml": 'neftune: {alpha: "5,$(touch pwned)"}\n'}
    ),
    "a copy that no recipe could be": Case(("recipes", "copy", "quickstart", "own")),
    "a copy into no folder": Case(("recipes", "copy", "quickstart", "no dir;x/y.yaml")),
    "alphas apart": sweep("--alphas", "0", "5", "10"),
    "alpha 0 alone": sweep("--alphas", "0"),
    "alpha 0 twice": sweep("--alphas", "0,0"),
    "alpha 0 alone, dry": sweep("--alphas", "0", "--dry-run"),
    "alpha 0 with a grid of the noise": sweep("--alphas", "0", "--grid", "neftune.noise=uniform,gaussian"),
    "seeds one by one": sweep("--seeds", "0,1,2"),
    "an alpha for a sweep": sweep("--alpha", "5"),
    "another tool's option": train("--lr", "1e-4"),
    "an option misspelt": train("--learning-rat", "1e-4"),
    "an option like none": train("--zzz"),
    "an option without its value": Case(("train", "--alpha")),
    "a switch with a value": train("--quiet=1"),
    "another tool's command": Case(("resume", "runs/x")),
    "a command misspelt": Case(("swep",)),
    "a command below another misspelt": Case(("recipes", "shw")),
    "nothing to evaluate": Case(("eval",)),
    "answers to show in words": evaluation("smollm2-135m", "--show", "five"),
    "no rows to show": Case(("data", "inspect", "--rows", "0")),
    "plain lines and JSON": train("--json", "--quiet"),
    "a run to go on with that is misspelt": Case(
        ("train", "--resume", "tiny-a5-so"), {"runs/tiny-a5-s0/run.json": RECORD}
    ),
    "a checkpoint to go on with": Case(
        ("train", "--resume", "runs/x/checkpoints/checkpoint-2"),
        {"runs/x/run.json": RECORD, "runs/x/checkpoints/checkpoint-2/manifest.json": "{}"},
    ),
    "a run to go on with that is nowhere": Case(("train", "--resume", "x")),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flag_invalid(neft: Neft, snapshot: SnapshotAssertion, name: str) -> None:
    assert rejection(neft, FLAGS[name]) == snapshot
    assert not Path("../escaped-a5-s0").exists()
    assert not Path("../escaped-sweep").exists()


def test_recipe_file_does_not_hide_shipped_recipe(neft: Neft) -> None:
    Path("quickstart").write_text("notes\n")
    assert neft("recipes", "show", "quickstart").code == 0
    Path("base").mkdir()
    Path("base/b.yaml").mkdir()
    Path("sub/base").mkdir(parents=True)
    Path("sub/base/b.yaml").write_text("name: x\n")
    Path("sub/c.yaml").write_text("extends: base/b.yaml\n")
    assert neft("recipes", "show", "sub/c.yaml").code == 0


def test_alphas_in_brackets(neft: Neft) -> None:
    """A YAML list is a list, on the command line as in a file."""
    Path("rows.jsonl").write_text("\n".join(f'{{"prompt": "q{n}", "completion": "a"}}' for n in range(100)))
    both = [
        neft("sweep-alpha", "--dataset", "rows.jsonl", "--alphas", alphas, "--seeds", "x")
        for alphas in ("[0, 5]", "0,5")
    ]
    assert both[0] == both[1]
    assert "alphas" not in both[0].err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--recipe", "r.yaml"),
        ("train", "--alpha", "five", "--name", "a\udcff"),
        ("train", "--dataset", "rows\udcff\x1b[2J.jsonl"),
        ("eval", "runs/x"),
        ("sweep-alpha", "--name", "../escaped", "--dataset", "rows.jsonl"),
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_neft_process_rejects_the_same_way(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Also if the command line has bytes that are not text, as a shell may pass them."""
    (tmp_path / "r.yaml").write_text("about: !!python/object/apply:os.system ['touch hacked']\n")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "run.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    result = neft_process(*arguments, cwd=tmp_path)
    assert result.code == 2
    assert result.err.endswith("nothing was started.\n")
    require_harmless(result)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ("train", "--model", "./no-model", "--dataset", "no-rows.jsonl", "--chat-template", "no-template"),
            ("this folder doesn't exist", "no such file or folder", "neither a named template nor a file"),
        ),
        (
            ("eval", "runs/no-run", "--baseline", "runs/no-baseline", "--dataset", "no-rows.jsonl"),
            ("no such run or model", "--baseline: no such run or model", "no such file or folder"),
        ),
        (
            ("answer", "runs/no-run", "--dataset", "no-rows.jsonl", "--out", "no-folder/answers.jsonl"),
            ("no such run or model", "no such file or folder", "--out: the folder does not exist"),
        ),
        (
            ("merge", "runs/no-run", "--out", ".", "--dtype", "int3"),
            ("no such run or model", "--out: . is not empty", "--dtype must be a type of weights"),
        ),
        (
            ("export", "runs/no-run", "--to", "onnx", "--quantize", "q2", "--out", "rows.jsonl"),
            ("no such run or model", "--to must be an export target", "--quantize must be a type"),
        ),
        (("push", "runs/no-run", "name"), ("no such run or model", "the owner is missing")),
    ],
    ids=lambda arguments: arguments[0],
)
def test_command_reports_everything_that_is_missing_at_once(
    neft: Neft, arguments: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    Path("rows.jsonl").write_text(ROWS)
    Path("runs").mkdir()
    result = neft(*arguments)
    assert result.code == 2
    assert f"{len(messages)} errors; nothing was started." in result.err
    assert [message for message in messages if message not in result.err] == []
