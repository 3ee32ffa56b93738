"""Any content of a recipe file, of `--set` or of a flag makes a recipe, or is rejected with a hint.

Oracles: two laws that hypothesis tries to break. Only RecipeError leaves the loader, and each of its problems says what
was violated; and a recipe with one byte changed loads to another recipe, to the same one, or not at all, and never
leaves anything in the folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neftcli.cli.options import read_flag_value
from neftcli.errors import Problem, RecipeError
from neftcli.recipe import catalog
from neftcli.recipe.keys import Key, keys
from neftcli.recipe.loading import load_recipe, parse_assignment, resolve_recipe
from neftcli.recipe.schema import Recipe
from neftcli.recipe.yaml_file import Setting
from neftcli.sweep.plan import plan_cells

# tmp_path and chdir are shared by the examples of one property; each example writes the file anew.
quietly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHIPPED = {name: (catalog.recipes_folder() / f"{name}.yaml").read_bytes() for name in catalog.list_recipes()}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def makes_a_recipe_or_says_why(make: Callable[[], Any]) -> None:
    problems: tuple[Problem, ...] = ()
    made = None
    try:
        made = make()
    except RecipeError as error:
        problems = error.problems
    assert bool(problems) != bool(made)
    assert all(problem.message for problem in problems)


@quietly
@given(name=st.sampled_from(sorted(SHIPPED)), place=st.integers(0, 5000), byte=st.integers(0, 255))
def test_load_recipe_one_byte_changed(name: str, place: int, byte: int) -> None:
    content = bytearray(SHIPPED[name])
    content[place % len(content)] = byte
    Path("r.yaml").write_bytes(content)
    makes_a_recipe_or_says_why(lambda: load_recipe("r.yaml"))
    assert [item.name for item in Path().iterdir()] == ["r.yaml"]


@quietly
@given(name=st.sampled_from(sorted(SHIPPED)), start=st.integers(0, 5000), length=st.integers(1, 200))
def test_load_recipe_piece_missing(name: str, start: int, length: int) -> None:
    content = SHIPPED[name]
    start %= len(content)
    Path("r.yaml").write_bytes(content[:start] + content[start + length :])
    makes_a_recipe_or_says_why(lambda: load_recipe("r.yaml"))


FLAGGED = [key for key in keys() if key.option.flag and key.option.switch is None]
# What a shell hands over: any characters but NUL, and bytes that are no UTF-8 as halves of characters.
TYPED = st.text(st.characters(exclude_characters="\0"), max_size=30) | st.just("a\udcff") | st.just("[")


@quietly
@given(key=st.sampled_from(FLAGGED), typed=TYPED)
@example(key=FLAGGED[0], typed="a\udcff")
@example(key=next(key for key in FLAGGED if key.path == "sweep.alphas"), typed="[0, 5")
def test_resolve_recipe_any_flag_value(key: Key, typed: str) -> None:
    def make() -> Recipe:
        flag = str(key.option.flag)
        return resolve_recipe([{key.path: Setting(read_flag_value(key, typed, flag), flag, f"{flag} {typed}")}])

    makes_a_recipe_or_says_why(make)


VALUES = st.sampled_from(["5", "-1", "nan", ".inf", "2e-5", "no", "true", "null", "five", "[1, 2]", "{a: b}", "[", "'"])


@quietly
@given(key=st.sampled_from([key.path for key in keys()]), value=VALUES | TYPED)
def test_resolve_recipe_any_set_value(key: str, value: str) -> None:
    makes_a_recipe_or_says_why(lambda: resolve_recipe([parse_assignment(f"{key}={value}")]))


@quietly
@given(
    texts=st.lists(
        st.builds("{}={}".format, st.sampled_from([key.path for key in keys()]), VALUES | TYPED) | TYPED,
        min_size=1,
        max_size=3,
    )
)
@example(texts=["training.learning_rate=1e-4,"])
@example(texts=["=1,2"])
@example(texts=["adapter.target_modules=[a,b],[c"])
def test_plan_cells_any_grid(texts: list[str]) -> None:
    """A grid gives cells without a value that is missing, or is refused."""

    def make() -> Any:
        layers = [{"sweep.grid": Setting(tuple(texts), "--grid", ", ".join(texts))}]
        return plan_cells(resolve_recipe(layers), layers)

    makes_a_recipe_or_says_why(make)


@quietly
@given(name=st.text(max_size=300))
@example(name="a\0b.yaml")
@example(name="x/" * 2000)
@example(name="\ud800/r.yaml")
def test_find_recipe_any_name(name: str) -> None:
    makes_a_recipe_or_says_why(lambda: load_recipe(name))
