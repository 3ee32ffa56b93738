"""Flags made from the schema, through typer itself."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from neftcli.cli.options import with_overrides
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
