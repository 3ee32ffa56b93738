"""Flags made from the schema, through typer itself, and help pages.

Oracles: the schema, the shipped recipes, and the options that typer knows.
"""

from __future__ import annotations

import re
from functools import reduce
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from neftcli.cli.main import app
from neftcli.cli.options import SET_BY_RECIPES, read_flag_value, recipe_of, with_overrides
from neftcli.errors import RecipeError
from neftcli.recipe import catalog
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import load_recipe, parse_assignment
from neftcli.recipe.yaml_file import Layer


@pytest.mark.parametrize(
    "typed",
    [
        ["--metric", "held_out_loss,token_accuracy", "--alphas", "0,5,10"],
        ["--metric", "held_out_loss", "--metric", "token_accuracy", "--alphas", "0", "--alphas", "5,10"],
        ["--metric", "[held_out_loss, token_accuracy]", "--alphas", "[0, 5, 10]"],
    ],
)
def test_list_flags_take_commas_and_repetition(typed: list[str]) -> None:
    taken: list[list[Layer]] = []
    app = typer.Typer()

    @app.command()
    @with_overrides("sweep-alpha", ())
    def command(layers: list[Layer]) -> None:
        taken.append(layers)

    assert CliRunner().invoke(app, typed).exit_code == 0
    [[layer]] = taken
    assert list(layer["sweep.metrics"].value) == ["held_out_loss", "token_accuracy"]
    assert list(layer["sweep.alphas"].value) == [0, 5, 10]


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["model.name=Qwen/Qwen2.5-0.5B"], "Qwen2.5-0.5B"),
        (["model.name=models/tiny.gguf", "data.source=data/rows.jsonl.gz"], "tiny-rows"),
        (["data.source=data/"], "data"),
        (["data.source=my rows.v2.csv"], "my-rows"),
        (["data.source=.hidden"], "hidden"),
        (["data.source=数据.jsonl"], "run"),
    ],
)
def test_recipe_of_named_after_model_and_data(sets: list[str], name: str) -> None:
    assert recipe_of([parse_assignment(text) for text in sets], None).name == name


def test_set_by_recipes_names_the_options_that_recipes_set() -> None:
    flagged = [key for key in keys() if key.option.flag]
    differing = set()
    for name in catalog.list_recipes():
        recipe = load_recipe(name)
        differing |= {key.path for key in flagged if reduce(getattr, key.path.split("."), recipe) != key.default}
    assert set(SET_BY_RECIPES) == differing


def test_flags_of_sampling_imply_sampling() -> None:
    """Only those commands that do nothing but answer have them."""
    taken: list[list[Layer]] = []
    app = typer.Typer()

    @app.command()
    @with_overrides("chat", ())
    def command(layers: list[Layer]) -> None:
        taken.append(layers)

    for typed in (["--temperature", "0.7"], ["--top-p", "0.9"], ["--sample"], ["--max-new-tokens", "9"]):
        assert CliRunner().invoke(app, typed).exit_code == 0
    sampled = [recipe_of(layers, None).evaluation.generation.do_sample for layers in taken]
    assert sampled == [True, True, True, False]
    assert "--temperature" not in help_of("train") + help_of("eval")


def help_of(*command: str) -> str:
    """The help page of a command."""
    return CliRunner().invoke(app, [*command, "--help"], prog_name="neft", terminal_width=110).output


def test_help_shows_defaults_and_choices() -> None:
    page = " ".join(help_of("train").split())
    for part in (
        "--batch-size INTEGER Rows per device and forward pass [default: the recipe's]",
        "--held-out-rows INTEGER Number of held-out rows to evaluate on [default: 200]",
        "--revision TEXT Branch, tag or commit of a hub model [default: the main branch]",
        "--format FORMAT Row format: auto, messages, sharegpt, prompt_completion, alpaca, text",
    ):
        assert part in page, part
    assert "--max-length INTEGER Maximum length of a row in tokens [default: the run's]" in " ".join(
        help_of("eval").split()
    )


@pytest.mark.parametrize(
    "command",
    [("train",), ("eval",), ("sweep-alpha",), ("chat",), ("answer",), ("data", "inspect"), ("recipes", "show")],
)
def test_help_has_one_style(command: tuple[str, ...]) -> None:
    """No types in angle brackets and no ranges; every option has help; examples are at the end."""
    page = help_of(*command)
    assert page.startswith(f"Usage: neft {' '.join(command)}")
    assert not re.search(r"<[a-z ]+>|x>=", page)
    group: Any = typer.main.get_command(app)
    for name in command:
        group = group.commands[name]
    for parameter in group.params:
        assert parameter.help, parameter.name
        assert f"{parameter.opts[0]} " in page or parameter.param_type_name == "argument"
    assert "Examples:" in page or command[0] == "recipes"


def test_help_of_data_inspect_has_no_flags_of_training() -> None:
    page = help_of("data", "inspect")
    assert "--max-length" in page
    assert not any(flag in page for flag in ("--learning-rate", "--alpha", "--lora", "--epochs", "--samples", "--seed"))


@pytest.mark.parametrize("typed", ["0,,5", ",5", "5,"])
def test_read_flag_value_rejects_an_empty_entry(typed: str) -> None:
    [key] = [key for key in keys() if key.path == "sweep.alphas"]
    with pytest.raises(RecipeError, match="an entry between the commas is empty") as raised:
        read_flag_value(key, typed, "--alphas")
    assert raised.value.problems[0].hint == f"--alphas {','.join(filter(None, typed.split(',')))}"
