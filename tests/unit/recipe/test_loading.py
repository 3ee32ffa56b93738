"""Laying settings over one another, and what is said when they are wrong.

Oracles: the YAML 1.2 core schema for values, the written message for every kind of mistake, and two laws that
hypothesis tries to break: what is written loads back equal, and nothing but RecipeError leaves the loader.
"""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neftcli.errors import RecipeError
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import (
    load_recipe,
    parse_assignment,
    recipe_differences,
    recipe_fingerprint,
    resolve_recipe,
    to_yaml,
)
from neftcli.recipe.schema import Adapter, Evaluation, Neftune, Option, Quantization, Recipe, Training
from neftcli.recipe.yaml_file import Layer, Setting

SHOW = "  hint     neft recipes show quickstart --all    to see every option with its default"
LIST = "  hint     neft recipes    to list the shipped recipes"
SHOW_RECIPE = "  hint     neft recipes show quickstart    to see a recipe"

# tmp_path and chdir are shared by the examples of one property; each example writes the file anew.
quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str, name: str = "r.yaml") -> Recipe:
    """The recipe of a file with this text, with `--set` overrides laid over it."""
    Path(name).write_text(text, encoding="utf-8")
    return load_recipe(name, [parse_assignment(override) for override in overrides])


def message(text: str, *overrides: str) -> str:
    """Return the problems of a recipe file with this text."""
    with pytest.raises(RecipeError) as raised:
        load(text, *overrides)
    return str(raised.value)


def said_of_set(text: str) -> str:
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment(text)])
    return str(raised.value)


# Precedence


def test_load_recipe_precedence() -> None:
    """Four keys, each set in one layer more than the one before, so that every layer wins once."""
    Path("parent.yaml").write_text(
        "data: {max_length: 100, max_rows: 100}\nneftune: {alpha: 1}\ntraining: {seed: 1}\n", encoding="utf-8"
    )
    child = "extends: parent.yaml\ndata: {max_rows: 200}\nneftune: {alpha: 2}\ntraining: {seed: 2}\n"
    recipe = load(child, "neftune.alpha=3", "training.seed=3", "training.seed=4")
    assert recipe.data.held_out_rows == Recipe().data.held_out_rows
    assert recipe.data.max_length == 100
    assert recipe.data.max_rows == 200
    assert recipe.neftune.alpha == 3
    assert recipe.training.seed == 4


def test_extends_grandparents_relative_to_the_file() -> None:
    Path("shared").mkdir()
    Path("shared/grandparent.yaml").write_text("training: {seed: 7, weight_decay: 0.5}\n", encoding="utf-8")
    Path("shared/parent.yaml").write_text("extends: ./grandparent.yaml\ntraining: {seed: 8}\n", encoding="utf-8")
    recipe = load("extends: shared/parent.yaml\n")
    assert (recipe.training.seed, recipe.training.weight_decay) == (8, 0.5)


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands ~ neither in `--output-dir=~/runs` nor in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("training: {seed: 7}\noutput_dir: ~/runs\n", encoding="utf-8")
    recipe = load("extends: ~/base.yaml\n")
    assert (recipe.training.seed, recipe.output_folder()) == (7, tmp_path / "runs")


def test_extends_shipped_recipe() -> None:
    recipe = load("extends: quickstart\nname: mine\n")
    assert recipe == replace(load_recipe("quickstart"), name="mine")


def test_load_recipe_null_unsets() -> None:
    assert load("data: {max_rows: 5}\n", "data.max_rows=null").data.max_rows is None


def test_load_recipe_mapping_replaced_or_extended() -> None:
    assert load("data:\n  columns: {output: a}\n", "data.columns={input: b}").data.columns == {"input": "b"}
    assert load("data:\n  columns: {output: a}\n", "data.columns.input=b").data.columns == {"output": "a", "input": "b"}


def test_load_recipe_entry_after_empty_mapping() -> None:
    """The entry's key is older than the emptying, its value is newer."""
    Path("parent.yaml").write_text("data:\n  columns: {output: old}\n", encoding="utf-8")
    child = "extends: parent.yaml\ndata:\n  columns: {}\n"
    assert load(child, "data.columns.output=new").data.columns == {"output": "new"}


def test_load_recipe_dotted_keys_equal_blocks() -> None:
    assert load("neftune.alpha: 7\n") == load("neftune:\n  alpha: 7\n")


def test_load_recipe_empty_file() -> None:
    assert load("") == load("# nothing but words\n") == load("---\n") == replace(Recipe(), name="r")


@pytest.mark.parametrize(
    ("file", "name"),
    [("mine.yaml", "mine"), ("my recipe.v2.yml", "my-recipe.v2"), (".yaml.yaml", "yaml"), ("数据.yaml", "run")],
)
def test_load_recipe_without_a_name_is_named_after_its_file(file: str, name: str) -> None:
    """Not if a recipe that it extends, or an option, has a name."""
    assert load("neftune: {alpha: 7}\n", name=file).name == name
    assert load("extends: quickstart\n", name=file).name == "quickstart"
    assert load("neftune: {alpha: 7}\n", "name=typed", name=file).name == "typed"


def test_recipe_fingerprint_ignores_options_without_effect_on_weights() -> None:
    """Name, words, folder, evaluation and sweep."""
    assert recipe_fingerprint(load("name: a\nabout: b\noutput_dir: c\n")) == recipe_fingerprint(Recipe())
    assert recipe_fingerprint(load("evaluation: {every: 1, samples: 0}\nsweep: {seeds: 6}\n")) == recipe_fingerprint(
        Recipe()
    )
    assert recipe_fingerprint(load("neftune: {alpha: 6}\n")) != recipe_fingerprint(Recipe())


# Values, by the rules of YAML 1.2


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("2e-5", 2e-5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("0o17", 15),
        ("0b101", 5),
        ("007", 7),
        ("+.inf", float("inf")),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("-_", "-_"),
        ("._", "._"),
        ("[a, b]", ("a", "b")),
        ("[1, [x, null]]", (1, ("x", None))),
        ("{a: b}", {"a": "b"}),
        ("{a: {b: 2e-5}}", {"a": {"b": 2e-5}}),
        ("a=b", "a=b"),
    ],
)
def test_parse_assignment_value(typed: str, expected: Any) -> None:
    (setting,) = parse_assignment(f"some.key={typed}").values()
    assert setting == Setting(expected, "--set some.key", f"some.key={typed}")
    assert type(setting.value) is type(expected)


def test_read_layer_byte_order_mark() -> None:
    Path("r.yaml").write_bytes(b"\xef\xbb\xbfname: marked\n")
    assert load_recipe("r.yaml").name == "marked"


# Messages: each is the whole text


def test_resolve_recipe_unknown_key() -> None:
    assert message("training:\n  learning_rte: 1e-4\n") == (
        "r.yaml, line 2: training.learning_rte is not an option\n"
        "  got      learning_rte: 1e-4\n"
        "  did you mean training.learning_rate?\n"
        f"{SHOW}"
    )


def test_resolve_recipe_unknown_key_of_set() -> None:
    assert message("", "lora_alfa=1") == (
        "--set lora_alfa: lora_alfa is not an option\n"
        "  got      lora_alfa=1\n"
        f"  did you mean adapter.lora_alpha?\n{SHOW}"
    )


def test_resolve_recipe_scalar_for_section() -> None:
    assert message("neftune: 5\n") == (
        "r.yaml, line 1: neftune is a section, not an option\n"
        "  got      neftune: 5\n"
        "  hint     neftune: {...}    its options are alpha, noise, length, schedule"
    )


@pytest.mark.parametrize(
    ("section", "line", "must"),
    [
        ("training", "per_device_train_batch_size: eight", "a whole number, above 0, at most 1,000,000,000"),
        ("training", "per_device_train_batch_size: 2.5", "a whole number, above 0, at most 1,000,000,000"),
        ("training", "learning_rate: '5e-5'", "a finite number, above 0"),
        ("training", "gradient_checkpointing: no", "true or false"),
        ("training", "seed: 4294967296", "a whole number, 0 or more, below 4,294,967,296"),
        ("training", "warmup_ratio: 1.5", "a finite number, 0 or more, at most 1"),
        (
            "training",
            "lr_scheduler_type: cosin",
            "one of cosine, linear, constant, constant_with_warmup, polynomial, inverse_sqrt, cosine_with_min_lr, "
            "warmup_stable_decay",
        ),
        ("data", "max_length: 7", "a whole number, 8 or more, at most 1,000,000,000"),
        ("data", "source:", "non-empty text"),
        ("model", "name: 350", "non-empty text"),
        ("neftune", "alpha: -5", "a finite number, 0 or more"),
        ("neftune", "alpha: .nan", "a finite number, 0 or more"),
        ("neftune", "alpha: .inf", "a finite number, 0 or more"),
        ("neftune", "alpha: 1e999", "a finite number, 0 or more"),
        ("adapter", "target_modules: [q_proj, 5]", "all-linear or a list, each non-empty text"),
        ("adapter", "modules_to_save: embed_tokens", "a list, each non-empty text"),
    ],
)
def test_resolve_recipe_invalid_value(section: str, line: str, must: str) -> None:
    key = line.partition(":")[0]
    violated, received, *others = message(f"{section}:\n  {line}\n").splitlines()
    assert violated == f"r.yaml, line 2: {section}.{key} must be {must}"
    assert received == f"  got      {line}"
    remedy = others[-1].removeprefix("  hint     ").partition("    ")[0]
    if remedy == "leave it out":
        assert "    without it: " in others[-1]
    else:  # what is proposed is what can be typed
        assert load(f"{section}:\n  {remedy}\n")


def test_resolve_recipe_invalid_entries_with_lines() -> None:
    assert message("data:\n  columns:\n    input: context\n    output: 5\n    prompt: [a]\n") == (
        "r.yaml, line 4: data.columns must be a mapping of names to names\n"
        "  got      output: 5\n"
        "  hint     columns: {}    the default\n"
        "r.yaml, line 5: data.columns must be a mapping of names to names\n"
        "  got      prompt: [a]\n"
        "  hint     columns: {}    the default"
    )


def test_resolve_recipe_reports_all_errors() -> None:
    text = "model:\n  nam: x\nneftune:\n  alpha: .nan\ntraining:\n  optim: sgd\n"
    assert message(text, "data.max_length=many", "lora=true") == (
        "r.yaml, line 2: model.nam is not an option\n"
        "  got      nam: x\n"
        "  did you mean model.name?\n"
        f"{SHOW}\n"
        "--set lora: lora is not an option\n"
        "  got      lora=true\n"
        f"{SHOW}\n"
        "--set data.max_length: data.max_length must be a whole number, 8 or more, at most 1,000,000,000\n"
        "  got      data.max_length=many\n"
        "  hint     --set data.max_length=1024    the default\n"
        "r.yaml, line 4: neftune.alpha must be a finite number, 0 or more\n"
        "  got      alpha: .nan\n"
        "  hint     alpha: 5    the default\n"
        "r.yaml, line 6: training.optim must be one of "
        "adamw_torch_fused, adamw_torch, adamw_8bit, paged_adamw_32bit, paged_adamw_8bit, "
        "adafactor, lion_32bit, lion_8bit, paged_lion_32bit, paged_lion_8bit\n"
        "  got      optim: sgd\n"
        "  hint     optim: adamw_torch_fused    the default"
    )


def test_resolve_recipe_error_names_effective_layer() -> None:
    assert message("neftune: {alpha: -1}\n", "neftune.alpha=-2").startswith("--set neftune.alpha: ")


def test_resolve_recipe_suggests_the_value_of_the_recipe() -> None:
    """It is what applies without the option; the default only if it is the same, or if no file has a valid value."""
    recipe = "training: {num_train_epochs: 1}\nneftune: {alpha: 5}\ndata: {max_length: 1}\n"
    said = message(recipe, "training.num_train_epochs=0", "neftune.alpha=-1", "data.max_length=2")
    assert {line for line in said.splitlines() if "hint" in line} == {
        "  hint     --set training.num_train_epochs=1    as in r.yaml",
        "  hint     --set neftune.alpha=5    the default",
        "  hint     --set data.max_length=1024    the default",
    }
    child = "extends: quickstart\ntraining: {num_train_epochs: 0}\n"
    assert message(child).endswith("  hint     num_train_epochs: 1    as in quickstart.yaml")


def test_read_layer_duplicate_key() -> None:
    assert message("neftune:\n  alpha: 5\n  noise: gaussian\n  alpha: 10\n") == (
        "r.yaml, line 4: duplicate key neftune.alpha, first in line 2\n"
        "  got      alpha: 10\n"
        "  hint     keep one of the two lines"
    )


def test_read_layer_duplicate_section() -> None:
    assert message("neftune:\n  alpha: 5\nname: a\nneftune:\n  noise: gaussian\n") == (
        "r.yaml, line 4: duplicate key neftune, first in line 1\n"
        "  got      neftune:\n"
        "  hint     keep one of the two lines"
    )


def test_read_layer_duplicate_dotted_key() -> None:
    assert message("neftune:\n  alpha: 5\nneftune.alpha: 6\n").startswith(
        "r.yaml, line 3: duplicate key neftune.alpha, first in line 2\n"
    )


def test_read_value_duplicate_key() -> None:
    assert said_of_set("data.columns={input: a, input: b}") == (
        "--set data.columns: duplicate key input\n  hint     keep one of the two"
    )


def test_read_layer_not_yaml() -> None:
    assert message("name: a\nneftune: [1, 2\n") == (
        "r.yaml, line 3: this is not YAML: while parsing a flow sequence, "
        "expected ',' or ']', but got '<stream end>' (column 1)\n"
        "  got      the end of the file\n"
        "  hint     close the bracket that opens in line 2"
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "adapter:\n  target_modules: [q_proj\n  type: lora\n",
            "close the bracket that opens in line 2, or separate its entries with commas",
        ),
        (
            "model: {name: x\ndata: {source: a}\n",
            "close the bracket that opens in line 1, or separate its entries with commas",
        ),
        ('name: "a\ndata: {source: a}\n', "close the quote that opens in line 1"),
        ("data: {columns: {a: [b}}\n", "close the open bracket, or separate its entries with commas"),
    ],
)
def test_read_layer_open_bracket_or_quote(text: str, hint: str) -> None:
    assert message(text).splitlines()[-1] == f"  hint     {hint}"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("[1,2", "close the open bracket"),
        ("{a: [b}", "close the open bracket, or separate its entries with commas"),
        ("['a", "close the open quote"),
    ],
)
def test_read_value_open_bracket_or_quote(value: str, hint: str) -> None:
    assert said_of_set(f"data.columns={value}").splitlines()[-1] == f"  hint     {hint}"


def test_read_layer_tab() -> None:
    assert message("neftune:\n\talpha: 5\n") == (
        "r.yaml, line 2: this is not YAML: while scanning for the next token, "
        "found character '\\t' that cannot start any token (column 1)\n"
        "  got      alpha: 5\n"
        "  hint     replace the tab with spaces"
    )


def test_read_layer_two_documents() -> None:
    assert message("name: a\n---\nname: b\n") == (
        "r.yaml, line 2: this is not YAML: expected a single document in the stream, "
        "but found another document (column 1)\n"
        "  got      ---\n"
        "  hint     a single recipe per file: remove the line with ---"
    )


def test_read_layer_forbidden_character() -> None:
    assert message("name: \x01\n") == (
        "r.yaml, line 1: this is not YAML: this character is not allowed\n"
        "  got      U+0001\n"
        "  hint     remove it, or write it as an escape in double quotes"
    )


def test_parse_assignment_not_yaml() -> None:
    assert said_of_set("adapter.modules_to_save=[a") == (
        "--set adapter.modules_to_save, line 1: this is not YAML: while parsing a flow sequence, "
        "expected ',' or ']', but got '<stream end>' (column 3)\n"
        "  got      [a\n"
        "  hint     close the open bracket"
    )


@pytest.mark.parametrize("text", ["alpha", "=5", ""])
def test_parse_assignment_incomplete(text: str) -> None:
    received = f"  got      {text}\n" if text else ""
    assert said_of_set(text) == (f"--set takes key=value\n{received}  hint     --set training.learning_rate=1e-4")


@pytest.mark.parametrize(
    ("text", "line", "tag"),
    [
        ("name: a\nabout: !!python/object/apply:os.system ['touch hacked']\n", 2, "!!python/object/apply:os.system"),
        ("name: !!python/object/apply:os.system 'touch hacked'\n", 1, "!!python/object/apply:os.system"),
        ("name: a\nmodel: !!python/object:os.Path {name: a}\n", 2, "!!python/object:os.Path"),
        ("!!python/object:os.Path\nname: a\n", 1, "!!python/object:os.Path"),
        ("!!python/name:os.system '': a\n", 1, "!!python/name:os.system"),
        ("name: !mine a\n", 1, "!mine"),
        ("data:\n  columns: !!set {input, output}\n", 2, "!!set"),
    ],
)
def test_read_layer_rejects_tags(text: str, line: int, tag: str) -> None:
    assert (
        message(text)
        == f"r.yaml, line {line}: YAML tags are not supported\n  got      {tag}\n  hint     write the plain value"
    )
    assert not Path("hacked").exists()


def test_read_layer_rejects_anchors_and_aliases() -> None:
    assert message("name: &n a\nabout: *n\n") == (
        "r.yaml, line 1: YAML anchors and aliases are not supported\n"
        "  got      &n\n"
        "  hint     write the values out\n"
        "r.yaml, line 2: YAML anchors and aliases are not supported\n"
        "  got      &n\n"
        "  hint     write the values out"
    )


@pytest.mark.parametrize(
    "text", ["model: &m {name: a}\n", "&r\nname: a\n", "&k name: a\n", "name: &n [*n]\n", "name: &n a\nabout: &n b\n"]
)
def test_read_layer_rejects_anchors_anywhere(text: str) -> None:
    assert message(text).startswith("r.yaml, line 1: YAML anchors and aliases are not supported\n  got      &")


@pytest.mark.parametrize(
    ("text", "received", "remedy"),
    [
        ("<<: {name: a}\n", "<<", "write the values out"),
        ("? [a]\n: b\n", "a list or a mapping", "neft recipes show quickstart    to see a recipe"),
        (": b\n", "nothing", "neft recipes show quickstart    to see a recipe"),
    ],
)
def test_read_layer_key_is_not_a_word(text: str, received: str, remedy: str) -> None:
    said = f"r.yaml, line 1: a key must be a plain word\n  got      {received}\n  hint     {remedy}"
    assert message(text) == said


@pytest.mark.parametrize(("text", "line", "received"), [("- a\n- b\n", 1, "- a"), ("# no\n\n5\n", 3, "5")])
def test_read_layer_not_a_mapping(text: str, line: int, received: str) -> None:
    assert message(text) == (
        f"r.yaml, line {line}: a recipe must be a mapping of keys to values\n  got      {received}\n{SHOW_RECIPE}"
    )


def test_read_layer_nested_too_deep() -> None:
    assert message(f"name: {'[' * 2000}\n") == (
        f"r.yaml, line 1: blocks are nested more than 20 levels deep\n  got      name: {'[' * 54}\n{SHOW_RECIPE}"
    )


def test_read_layer_surrogate() -> None:
    assert message('name: "\\ud800"\n') == (
        "r.yaml, line 1: text contains an unpaired surrogate\n"
        "  got      '\\ud800'\n"
        "  hint     write the character itself"
    )


def test_read_layer_utf_16() -> None:
    Path("r.yaml").write_bytes("name: a\n".encode("utf-16"))
    with pytest.raises(RecipeError) as raised:
        load_recipe("r.yaml")
    assert str(raised.value) == (
        "r.yaml: a recipe must be UTF-8 text\n  got      UTF-16\n  hint     save the file as UTF-8"
    )


def said_of(name: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(name)
    return str(raised.value)


def test_find_recipe_missing_file() -> None:
    assert said_of("lost.yaml") == f"--recipe: no such recipe file\n  got      lost.yaml\n{LIST}"


def test_find_recipe_folder() -> None:
    Path("folder.yaml").mkdir()
    assert said_of("folder.yaml").startswith("--recipe: a recipe is a file, and this is a folder\n")


def test_find_recipe_unknown_name() -> None:
    assert said_of("quikstart") == (
        f"--recipe: no such recipe\n  got      quikstart\n  did you mean quickstart?\n{LIST}"
    )


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".yaml"])
def test_find_recipe_name_too_long(name: str) -> None:
    assert said_of(name).startswith("--recipe: no such recipe")


def test_extends_cycle() -> None:
    """Each turn spells the path anew, so only the place it leads to tells that it is the same file."""
    Path("here").mkdir()
    Path("here/a.yaml").write_text("extends: ../here/b.yaml\n", encoding="utf-8")
    Path("here/b.yaml").write_text("extends: ../here/a.yaml\n", encoding="utf-8")
    assert said_of("here/a.yaml") == (
        "here/../here/../here/a.yaml: a recipe can't extend itself\n"
        "  got      a.yaml -> b.yaml -> a.yaml\n"
        "  hint     remove one of the `extends`"
    )


def test_extends_itself() -> None:
    assert message("extends: r.yaml\n") == (
        "r.yaml: a recipe can't extend itself\n  got      r.yaml -> r.yaml\n  hint     remove one of the `extends`"
    )


def test_extends_a_missing_recipe() -> None:
    assert message("name: a\nextends: quickstrat\n") == (
        f"r.yaml, line 2: no such recipe\n  got      quickstrat\n  did you mean quickstart?\n{LIST}"
    )
    assert message("extends: lost/r.yaml\n") == (f"r.yaml, line 1: no such recipe file\n  got      lost/r.yaml\n{LIST}")


def test_extends_not_a_name() -> None:
    assert message("extends: [quickstart]\n") == (
        "r.yaml, line 1: extends must name a recipe\n  got      extends: [quickstart]\n  hint     extends: quickstart"
    )


def test_resolve_recipe_qlora_without_adapter() -> None:
    assert message("quantization:\n  type: nf4\n") == (
        "r.yaml, line 2: quantization.type nf4 needs an adapter: quantised weights can't be trained\n"
        "  got      adapter.type none\n"
        "  hint     --lora, or adapter.type: lora"
    )


def test_resolve_recipe_eight_bit_weights_have_no_constants_to_quantise() -> None:
    int8 = [parse_assignment("adapter.type=lora"), parse_assignment("quantization.type=int8")]
    assert resolve_recipe(int8).method().describe() == "LoRA r16 on int8"
    with pytest.raises(RecipeError, match=r"double_quantization needs quantization\.type nf4"):
        resolve_recipe([*int8, parse_assignment("quantization.double_quantization=false")])
    with pytest.raises(RecipeError, match=r"adapter\.use_dora and quantization\.type int8 can't be combined"):
        resolve_recipe([*int8, parse_assignment("adapter.use_dora=true")])


def test_resolve_recipe_modules_to_save_without_adapter() -> None:
    assert message("adapter:\n  modules_to_save: [embed_tokens]\n") == (
        "r.yaml, line 2: adapter.modules_to_save needs adapter.type lora\n"
        "  got      adapter.type none\n"
        "  hint     --lora"
    )


def test_resolve_recipe_rejects_pissa_on_other_weights() -> None:
    """With 4-bit weights or DoRA the saved adapter would not be the trained one; both are reported."""
    assert message(
        "quantization:\n  type: nf4\nadapter:\n  type: lora\n  use_dora: true\n  init_lora_weights: pissa\n"
    ) == (
        "r.yaml, line 6: adapter.init_lora_weights pissa and quantization.type nf4 can't be combined: the saved "
        "adapter would not fit the quantised base model\n"
        "  got      quantization.type nf4\n"
        "  hint     --set quantization.type=none\n"
        "r.yaml, line 6: adapter.init_lora_weights pissa and adapter.use_dora can't be combined: the saved adapter "
        "would not fit the norms of the original weights\n"
        "  got      adapter.use_dora true\n"
        "  hint     --set adapter.use_dora=false"
    )


def test_resolve_recipe_rejects_a_new_token_twice() -> None:
    assert message("model:\n  new_tokens: ['<a>', '<b>', '<a>']\n") == (
        "r.yaml, line 2: model.new_tokens names a token twice\n"
        "  got      <a>, <b>, <a>\n"
        "  hint     name each token once"
    )


def test_resolve_recipe_iterations_of_pissa_need_it() -> None:
    with pytest.raises(
        RecipeError, match=r"--set adapter\.pissa_niter: adapter\.pissa_niter needs adapter\.init_lora_weights"
    ):
        resolve_recipe([parse_assignment("adapter.type=lora"), parse_assignment("adapter.pissa_niter=4")])


def test_resolve_recipe_rejects_frozen_layers_with_an_adapter() -> None:
    assert message("adapter:\n  type: lora\ntraining:\n  freeze: [embed_tokens, layers.0]\n") == (
        "r.yaml, line 4: training.freeze and adapter.type lora can't be combined\n"
        "  got      embed_tokens, layers.0\n"
        "  hint     --set training.freeze=[]    an adapter freezes all of the model's weights"
    )


# Lists of mappings


def sources_problem(value: str) -> str:
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment(f"data.sources={value}")])
    return "\n".join(
        problem.message.partition("data.sources, ")[2] or problem.message for problem in raised.value.problems
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[{source: a, wieght: 2}]", "entry 1: wieght is not a key of an entry"),
        ("[{source: a}, {weight: 1}]", "entry 2 has no source"),
        ("[{source: a, weight: 0}]", "entry 1: weight must be a finite number, above 0"),
        ("[{source: a, weight: -1}]", "entry 1: weight must be a finite number, above 0"),
        ("[{source: a, weight: .inf}]", "entry 1: weight must be a finite number, above 0"),
        ("[{source: a, max_rows: 1.5}]", "entry 1: max_rows must be a whole number, above 0, at most 1,000,000,000"),
        ("[{source: null}]", "entry 1: source must be non-empty text"),
        ("[{source: a, columns: [b]}]", "entry 1: columns must be a mapping of names to names"),
    ],
)
def test_resolve_recipe_invalid_sources(value: str, said: str) -> None:
    assert sources_problem(value) == said


def test_resolve_recipe_sources_suggest_keys_and_choices() -> None:
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment("data.sources=[{source: a, wieght: 2}, {source: b, format: alpca}]")])
    assert [problem.did_you_mean for problem in raised.value.problems] == ["weight", "alpaca"]


def test_resolve_recipe_source_and_sources() -> None:
    """Of a file and the command line the latter decides; in one place they are refused."""
    several, single = "data.sources=[{source: a.jsonl}]", "data.source=b.jsonl"
    Path("one.yaml").write_text("data: {source: b.jsonl}\n", encoding="utf-8")
    Path("many.yaml").write_text("data: {sources: [{source: a.jsonl}]}\n", encoding="utf-8")
    assert load_recipe("one.yaml", [parse_assignment(several)]).data.source_name() == "a.jsonl"
    assert load_recipe("many.yaml", [parse_assignment(single)]).data.source_name() == "b.jsonl"
    for layers in (
        [parse_assignment(several), parse_assignment(single)],
        [parse_assignment("data.source=builtin"), parse_assignment(several)],
    ):
        with pytest.raises(RecipeError, match="can't be combined"):
            resolve_recipe(layers)
    Path("both.yaml").write_text("data: {source: b.jsonl, sources: [{source: a.jsonl}]}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="can't be combined"):
        load_recipe("both.yaml")


def test_recipe_differences_sources() -> None:
    recipes = [
        resolve_recipe([parse_assignment(f"data.sources=[{{source: a, weight: {weight}}}]")]) for weight in (1, 2)
    ]
    expected = ([{"source": "a", "weight": 1.0}], [{"source": "a", "weight": 2.0}])
    assert recipe_differences(*recipes) == {"data.sources": expected}


# Laws


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Texts that YAML would read as something else if they were written without quotes.
TRICKY = st.sampled_from(
    ["no", "true", "null", "~", "2e-5", "0x1", "0b1", "1_0", "=", "<<", "- a", "a: b", "#", "a\n b"]
)
COLUMN = st.text(string.ascii_letters + "_", min_size=1, max_size=8)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Valid values of an option, from its type and bounds alone."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bounded(
            annotation.__origin__, [item for item in annotation.__metadata__ if not isinstance(item, Option)]
        )
    if annotation is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(COLUMN, TEXT | TRICKY, max_size=3)
    if arguments:
        return st.one_of(*map(values_of, arguments))
    if is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        return st.builds(annotation, **{item.name: values_of(hints[item.name]) for item in fields(annotation)})
    plain = {int: st.integers(), float: st.floats(allow_nan=False), bool: st.booleans(), str: TEXT | TRICKY}
    return plain[annotation]


def bounded(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Values of `annotation` within `bounds`, which annotated-types defines as plain comparisons."""
    if get_origin(annotation) is Annotated:
        bounds = bounds + list(annotation.__metadata__)
        annotation = annotation.__origin__
    if annotation not in (int, float):
        allowed = values_of(annotation)
        return allowed.filter(bool) if any(isinstance(bound, MinLen) for bound in bounds) else allowed
    low = max([bound.ge for bound in bounds if isinstance(bound, Ge)] + [b.gt for b in bounds if isinstance(b, Gt)])
    high = [bound.le for bound in bounds if isinstance(bound, Le)] + [b.lt for b in bounds if isinstance(b, Lt)]
    if annotation is int:
        allowed = st.integers(low, min(high, default=10**12))
    else:
        allowed = st.floats(low, min(high, default=None), allow_nan=False, allow_infinity=False)
    return allowed.filter(lambda value: all(holds(bound, value) for bound in bounds))


def holds(bound: Any, value: Any) -> bool:
    match bound:
        case Ge(ge=limit):
            return bool(value >= limit)
        case Gt(gt=limit):
            return bool(value > limit)
        case Le(le=limit):
            return bool(value <= limit)
        case Lt(lt=limit):
            return bool(value < limit)
    raise AssertionError(f"the schema has a bound that this test doesn't know: {bound}")


def section(schema: type) -> st.SearchStrategy[Any]:
    """Instances of a section of the schema, sections below it included."""
    hints = get_type_hints(schema, include_extras=True)
    inner = {item.name: getattr(hints[item.name], "__origin__", None) for item in fields(schema)}
    return st.builds(
        schema,
        **{name: section(type_) if is_dataclass(type_) else values_of(hints[name]) for name, type_ in inner.items()},
    )


def without_contradictions(recipe: Recipe) -> Recipe:
    judge = recipe.evaluation.judge
    plain = replace(judge, base_url=judge.base_url and re.sub("[@?#]", "a", judge.base_url))
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, judge=plain))
    if recipe.data.sources:
        recipe = replace(recipe, data=replace(recipe.data, source="builtin"))
    recipe = replace(recipe, training=replace(recipe.training, keep="last", patience=None))
    new_tokens = tuple(dict.fromkeys(recipe.model.new_tokens))
    recipe = replace(recipe, model=replace(recipe.model, new_tokens=new_tokens))
    recipe = replace(recipe, adapter=replace(recipe.adapter, init_lora_weights="default", use_dora=False))
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, during=()))
    if recipe.adapter.type == "lora":
        return replace(recipe, training=replace(recipe.training, freeze=()))
    return replace(recipe, adapter=replace(recipe.adapter, modules_to_save=()), quantization=Quantization())


RECIPES = section(Recipe).map(without_contradictions)


@quietly
@given(recipe=RECIPES)
@example(recipe=Recipe(adapter=Adapter(type="lora", target_modules=())))
@example(recipe=Recipe(name="\ufeff\u2028\x85\0 ", about=" \t#\r\n"))
@example(recipe=Recipe(training=Training(keep="best", patience=2, report_to=("wandb", "mlflow"))))
@example(
    recipe=Recipe(evaluation=Evaluation(during=("rouge_l",)), training=Training(patience=2, best_metric="rouge_l"))
)
@example(recipe=Recipe(name="a\x85b", about="a\u2028 b\u2029"))
def test_to_yaml_round_trip(recipe: Recipe) -> None:
    again = load(to_yaml(recipe))
    assert again == recipe
    assert recipe_fingerprint(again) == recipe_fingerprint(recipe)


def layer_of(recipe: Recipe) -> Layer:
    """All of a recipe's options as the settings of one layer."""
    values = {key.path: reduce(getattr, key.path.split("."), recipe) for key in keys()}
    values["data.sources"] = tuple(map(asdict, values["data.sources"]))
    return {path: Setting(value, "", "") for path, value in values.items()}


# These can't contradict others.
FREE = [
    key.path
    for key in keys()
    if not key.path.startswith(("adapter.", "quantization.", "data.source", "evaluation.during"))
    and key.path not in ("training.keep", "training.patience", "training.best_metric", "training.freeze")
]


@quietly
@given(weak=RECIPES, strong=RECIPES, chosen=st.sets(st.sampled_from(FREE)))
def test_resolve_recipe_layers_merge_by_key(weak: Recipe, strong: Recipe, chosen: set[str]) -> None:
    override = {path: setting for path, setting in layer_of(strong).items() if path in chosen}
    expected = layer_of(weak) | override
    assert layer_of(resolve_recipe([layer_of(weak), override])) == expected


def loads_or_says_why(load_it: Callable[[], Recipe]) -> None:
    try:
        recipe = load_it()
    except RecipeError as error:
        problems = error.problems
    else:
        assert isinstance(recipe, Recipe)
        return
    assert problems
    assert all(problem.message for problem in problems)


def bytes_load_or_say_why(content: bytes) -> None:
    Path("r.yaml").write_bytes(content)
    loads_or_says_why(lambda: load_recipe("r.yaml"))


@quietly
@given(text=st.text())
@example(text="\xa0")
@example(text="?")
@example(text="seed: 0x" + "f" * 5000)
@example(text="training.seed: " + "9" * 5000)
@example(text="training.warmup_ratio: 1" + "0" * 500 + ".0")
@example(text="extends: " + "a" * 5000)
@example(text='extends: "a\\0/b"')
@example(text="%YAML 1.1\n---\nmodel.trust_remote_code: yes\ntraining.seed: 1:30\n")
def test_load_recipe_any_text(text: str) -> None:
    bytes_load_or_say_why(text.encode("utf-8"))


@quietly
@given(content=st.binary())
def test_load_recipe_any_bytes(content: bytes) -> None:
    bytes_load_or_say_why(content)


# Pieces of YAML in any order come closer to recipes than letters in any order.
PIECES = [key.path for key in keys()] + [part for key in keys() for part in key.path.split(".")]
PIECES += [
    ": ",
    ":\n  ",
    "\n",
    "\n  ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "!!int ",
    "!x ",
    "'",
    '"',
    "|\n ",
    "? ",
]
PIECES += [
    "5",
    "-1",
    "2e-5",
    ".nan",
    ".inf",
    "-.inf",
    "true",
    "null",
    "text",
    "extends",
    "r.yaml",
    "quickstart",
    "<<",
    "#",
]


@quietly
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
def test_load_recipe_any_yaml(pieces: list[str]) -> None:
    bytes_load_or_say_why("".join(pieces).encode("utf-8"))


@quietly
@given(text=st.text())
def test_parse_assignment_any_text(text: str) -> None:
    loads_or_says_why(lambda: resolve_recipe([parse_assignment(text)]))


@pytest.mark.parametrize("alpha", [0.0, 5.0, 2.5, 1e6, 1e30, 1e-7])
def test_run_name_any_alpha_is_valid(alpha: float) -> None:
    from neftcli.runs.directory import require_valid_name

    require_valid_name(Recipe(name="x", neftune=Neftune(alpha=alpha)).run_name())


def test_recipe_fingerprint_of_trackers_and_selection() -> None:
    """Trackers change no weights; the number of evaluations does, if they select the weights."""

    def fingerprint(*assignments: str) -> str:
        return recipe_fingerprint(resolve_recipe([parse_assignment(text) for text in assignments]))

    plain, best = fingerprint(), fingerprint("training.keep=best")
    assert fingerprint("training.report_to=[tensorboard]") == plain
    assert fingerprint("evaluation.every=0.1") == plain
    assert fingerprint("training.patience=2") not in (plain, best)
    assert fingerprint("training.keep=best", "evaluation.every=0.1") != best != plain
    recipes = [resolve_recipe([parse_assignment(f"evaluation.every={every}")]) for every in (0.25, 0.1)]
    assert recipe_differences(*recipes) == {}
    selecting = [replace(recipe, training=replace(recipe.training, keep="best")) for recipe in recipes]
    assert recipe_differences(*selecting) == {"evaluation.every": (0.25, 0.1)}


def test_recipe_fingerprint_of_metrics_of_answers() -> None:
    """They change the weights only if one of them selects them; then their rows and their generation do as well."""

    def recipe(*assignments: str) -> Recipe:
        during = "evaluation.during=[rouge_l,exact_match]"
        return resolve_recipe([parse_assignment(text) for text in (during, *assignments)])

    rows = ("evaluation.during_rows=4", "evaluation.generation.max_new_tokens=9")
    assert recipe_fingerprint(recipe(*rows)) == recipe_fingerprint(resolve_recipe([]))
    by_loss = "training.keep=best"
    assert recipe_fingerprint(recipe(by_loss, *rows)) == recipe_fingerprint(resolve_recipe([parse_assignment(by_loss)]))
    by_rouge, by_match = [(by_loss, f"training.best_metric={metric}") for metric in ("rouge_l", "exact_match")]
    assert recipe_differences(recipe(*by_rouge), recipe(*by_match)) == {
        "training.best_metric": ("rouge_l", "exact_match")
    }
    assert set(recipe_differences(recipe(*by_rouge), recipe(*by_rouge, *rows))) == {
        "evaluation.during_rows",
        "evaluation.generation.max_new_tokens",
    }
    different = [recipe(*by_rouge), recipe(*by_match), recipe(*by_rouge, *rows), recipe(by_loss), recipe()]
    assert len(set(map(recipe_fingerprint, different))) == len(different)


@pytest.mark.parametrize("path", [key.path for key in keys() if key.type_name.split("|")[0] == "INTEGER"])
def test_resolve_recipe_whole_numbers_beyond_those_of_the_libraries(path: str) -> None:
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment(f"{path}=9223372036854775808")])
    assert f"{path} must be" in raised.value.problems[0].message


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_resolve_recipe_divisors_of_logits(name: str) -> None:
    """Logits divided by less are infinite in float32."""
    with pytest.raises(RecipeError, match=rf"{name} must be a finite number, 0.01 or more, at most 100"):
        resolve_recipe([parse_assignment(f"evaluation.generation.{name}=1e-300")])


def test_resolve_recipe_share_between_evaluations_too_small() -> None:
    """A share so small that its inverse is infinite can't be counted in evaluations."""
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment("evaluation.every=1e-309"), parse_assignment("training.keep=best")])
    [problem] = raised.value.problems
    assert "evaluation.every" in problem.message
    assert "0.0001 or more" in problem.message + problem.hint
    resolve_recipe([parse_assignment("evaluation.every=0.0001"), parse_assignment("training.keep=best")])


@pytest.mark.parametrize(
    ("assignments", "message", "hint"),
    [
        (
            ["training.keep=best", "data.held_out_rows=0"],
            "training.keep best needs a held-out split",
            "--held-out-rows 200",
        ),
        (
            ["training.patience=2", "data.held_out_rows=0"],
            "training.patience needs a held-out split",
            "--held-out-rows 200",
        ),
        (
            ["training.keep=best", "evaluation.every=1"],
            "training.keep best needs evaluations during training",
            "--set evaluation.every=0.1",
        ),
        (["training.patience=3"], "training.patience never stops the training", "--set evaluation.every=0.12"),
        (
            ["training.keep=best", "training.best_metric=rouge_l", "evaluation.during=[bleu]"],
            "--set training.best_metric: training.best_metric rouge_l is not measured during training",
            "--during bleu,rouge_l",
        ),
        (["training.best_metric=rouge_l"], "needs training.keep best or training.patience", "--keep best"),
        (
            ["training.patience=1", "training.best_metric=bleu"],
            "must be one of held_out_loss, exact_match, rouge_l",
            "--set training.best_metric=held_out_loss    the default",
        ),
        (
            ["evaluation.during=[rouge_l]", "data.held_out_rows=0"],
            "evaluation.during needs a held-out split",
            "--held-out-rows 200",
        ),
        (["evaluation.during_rows=3"], "evaluation.during_rows needs evaluation.during", "--during rouge_l"),
    ],
)
def test_resolve_recipe_selection_without_evaluations(assignments: list[str], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as raised:
        resolve_recipe([parse_assignment(text) for text in assignments])
    [problem] = raised.value.problems
    assert message in problem.message
    assert problem.hint == hint
