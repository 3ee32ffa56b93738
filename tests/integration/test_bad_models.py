"""Models and chat templates that can't be used, through the real command line.

Oracles: the whole message of each case, in __snapshots__/test_bad_models.ambr; an unchanged folder; and remote code and
pickles that would leave a mark if they ran.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.bad_input import Case, Content, Neft, rejection

ROWS = "".join(f'{{"prompt": "question {number}", "completion": "answer"}}\n' for number in range(20))
TINY: dict[str, Path] = {}  # what the fixture below fills in: the folder that the cases copy
Edit = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    TINY["llama"] = tiny_folder("llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def name(given: str, *more: str, **files: Content) -> Case:
    """Return a run with this model name; `__` in a file's name is a dot."""
    named = {file.replace("__", "."): content for file, content in files.items()}
    arguments = ("train", "--model", given, "--dataset", "rows.jsonl", *more)
    return Case(arguments, {"rows.jsonl": ROWS, **named})


def folder(*without: str, **edits: Edit | bytes) -> Case:
    """Return a run with a copy of a tiny Llama, with some files removed or edited."""

    def write(path: Path) -> None:
        shutil.copytree(TINY["llama"], path)
        for file in without:
            (path / file).unlink()
        for key, edit in edits.items():
            file = path / key.replace("__", ".")
            file.write_bytes(edit(file.read_bytes()) if callable(edit) else edit)

    return name("model", model=write)


def fields(**changed: Any) -> Edit:
    """Return an edit that changes fields of a JSON file."""
    return lambda content: json.dumps(json.loads(content) | changed).encode()


def pickled(path: Path) -> None:
    """Write a model whose weights are a pickle that would create a file."""
    shutil.copytree(TINY["llama"], path)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(Vhacked\nVw\ntR.")


def dry_run(case: Case) -> Case:
    return Case((*case.arguments, "--dry-run"), case.files)


def template(content: Content) -> Case:
    case = folder()
    return Case((*case.arguments, "--chat-template", "t.jinja"), {**case.files, "t.jinja": content})


EVIL = b"open('hacked', 'w')\n"
OWN_CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
INDEX = b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

NF4 = {"bnb_4bit_quant_type": "nf4"}
ADAPTER = Case(
    ("train", "--model", "model", "--dataset", "rows.jsonl"), {**folder().files, "model/adapter_config.json": "{}"}
)

MODELS = {
    "an alias misspelt": name("opt-350"),
    "no alias": name("zzzz"),
    "an empty name": name(""),
    "a name with a NUL": name("a\0b"),
    "a name that acts on a terminal": name("\x1b[2J"),
    "a name in no encoding": name("a\udcff"),
    "a name too long": name("a" * 300),
    "the home of nobody": name("~0/model"),
    "an address": name("https://hub.invalid/facebook/opt-350m"),
    "a revision in the name": name("facebook/opt-350m@main"),
    "no hub id": name("my models/llama"),
    "a folder that is not there": name("./lost"),
    "a folder misspelt": name("./modls/llama", **{"models/llama/config.json": "{}"}),
    "a file": name("rows.jsonl"),
    "an empty folder": name("model", model=None),
    "a folder of other things": name("model", **{"model/a.txt": "", "model/b.py": ""}),
    "a revision of a folder": name("model", "--revision", "main", model=None),
    "an adapter": name("model", **{"model/adapter_config.json": "{}"}),
    "a model and an adapter": ADAPTER,
    "an encoder-decoder": folder(config__json=fields(model_type="t5", architectures=["T5ForConditionalGeneration"])),
    "a classifier": folder(config__json=fields(architectures=["LlamaForSequenceClassification"])),
    "weights of GPTQ": folder(config__json=fields(quantization_config={"quant_method": "gptq", "bits": 4})),
    "weights in 4 bits": folder(
        config__json=fields(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True} | NF4)
    ),
    "a .gguf that is not there": name("lost.gguf"),
    "a .gguf that is none": name("x.gguf", x__gguf="no gguf"),
    "an empty .gguf": name("x.gguf", x__gguf=""),
    "a .gguf of its first letters": name("x.gguf", x__gguf=b"GGUF"),
    "a .gguf of nothing": name("x.gguf", x__gguf=b"GGUF\3\0\0\0" + bytes(16)),
    "no config.json": folder("config.json"),
    "a config.json that is no JSON": folder(config__json=b"{'model_type': 'llama'}"),
    "a config.json that is a list": folder(config__json=b"[]"),
    "a config.json of nothing": folder(config__json=b"{}"),
    "a config.json in UTF-16": folder(config__json=lambda content: content.decode().encode("utf-16")),
    "an unknown architecture": folder(config__json=fields(model_type="\x1b[2Jzzz")),
    "a size that is a text": folder(config__json=fields(hidden_size="big")),
    "no heads": folder(config__json=fields(num_attention_heads=0)),
    "a size that the weights have not": folder(config__json=fields(hidden_size=32)),
    "more layers than weights": folder(config__json=fields(num_hidden_layers=3)),
    "too few positions": folder(config__json=fields(max_position_embeddings=16)),
    "no weights": folder("model.safetensors"),
    "pickled weights": name("model", model=pickled),
    "no weights in a dry run": dry_run(folder("model.safetensors")),
    "pickled weights in a dry run": dry_run(name("model", model=pickled)),
    "an index of weights that are not there in a dry run": dry_run(
        folder("model.safetensors", **{"model.safetensors.index__json": INDEX})
    ),
    "corrupt weights": folder(model__safetensors=b"garbage" * 100),
    "empty weights": folder(model__safetensors=b""),
    "truncated weights": folder(model__safetensors=lambda content: content[:-1000]),
    "a pointer for weights": folder(model__safetensors=POINTER),
    "an index of weights that are not there": folder("model.safetensors", **{"model.safetensors.index__json": INDEX}),
    "an index that is no JSON": folder("model.safetensors", **{"model.safetensors.index__json": b"{"}),
    "no tokenizer": folder("tokenizer.json", "tokenizer_config.json"),
    "a tokenizer that is no JSON": folder(tokenizer__json=b"no JSON"),
    "a tokenizer of nothing": folder(tokenizer__json=b"{}"),
    "a tokenizer_config that is no JSON": folder(tokenizer_config__json=b"{"),
    "a tokenizer without an end": folder(tokenizer_config__json=fields(eos_token=None)),
    "a model with code": folder(config__json=fields(auto_map=OWN_CODE, model_type="evil"), evil__py=EVIL),
    "a tokenizer with code": folder(
        tokenizer_config__json=fields(auto_map={"AutoTokenizer": ["evil.Own", None]}, tokenizer_class="Own"),
        evil__py=EVIL,
    ),
    "an unknown template": name("model", "--chat-template", "chatlm", model=lambda path: folder().files["model"](path)),
    "a template that is not there": Case(
        (*folder().arguments, "--chat-template", "t_x.jinja"),
        {**folder().files, "t_x.json": "{}", "t_xx.txt": "", "t_upper.jinja": ""},
    ),
    "a template that is no Jinja": template("{% for message in messages %}"),
    "a template that is no text": template(b"\xff"),
    "a template that is a folder": template(None),
    "a template that goes wrong": template("{{ messages[0].turn.text }}"),
    "a template without end": template("{% for i in range(10 ** 9) %}x{% endfor %}"),
    "a template that breaks out": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template without answers": template("{{ messages[0].content }}"),
}


@pytest.mark.parametrize("case", MODELS)
def test_train_rejects_a_model(neft: Neft, snapshot: SnapshotAssertion, case: str) -> None:
    assert rejection(neft, MODELS[case]) == snapshot
    assert not Path("hacked").exists()


def test_train_suggests_a_folder_similar_to_a_hub_id(neft: Neft) -> None:
    """The hub is tried first, because a folder can have an owner's name."""
    Path("models/llama").mkdir(parents=True)
    Path("rows.jsonl").write_text(ROWS)
    result = neft("train", "--model", "models/llma", "--dataset", "rows.jsonl")
    assert result.code == 2
    assert "\n  did you mean models/llama?\n" in result.err


def test_data_inspect_uses_alpaca_without_a_chat_template(neft: Neft) -> None:
    Path("rows.jsonl").write_text(ROWS)
    result = neft("data", "inspect", "--model", TINY["llama"], "--dataset", "rows.jsonl", "--rows", "1")
    assert result.code == 0
    assert "data: chat template alpaca\n" in result.out


@pytest.mark.parametrize("architectures", [5, "LlamaForCausalLM", [5]])
def test_train_names_of_architectures_that_are_no_list(
    neft: Neft, tiny_folder: Callable[[str], Path], tmp_path: Path, architectures: object
) -> None:
    """They decide nothing; the model type does."""
    model = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    result = neft("train", "--model", model, "--dataset", tmp_path / "rows.jsonl", "--dry-run", "--quiet")
    assert (result.code, result.err) == (0, "")
