"""Every shipped recipe: its form, and that its comments say what its keys do.

Oracles: the paper's tables for alphas and win rates (arXiv 2310.05914: tables 3, 5, 7, 8, 9 and figure 2), the authors'
script for batch, steps and learning rate, arithmetic for the memory, and the parent recipe for what a child changes.
"""

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from neftcli.models.registry import ALIASES
from neftcli.recipe import catalog
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import EXTENDS, load_recipe, recipe_fingerprint, to_yaml
from neftcli.recipe.schema import Recipe
from neftcli.recipe.yaml_file import read_layer

FOLDER = Path(__file__).parents[3] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
BASE = "llama-2-7b-alpaca"

# AlpacaEval win rate, plain and with NEFTune, and the alpha of the latter.
PAPER = {
    "llama-2-7b-alpaca": ("29.79", "64.69", 5),
    "llama-2-7b-evol-instruct": ("70.34", "79.60", 5),
    "llama-2-7b-sharegpt": ("68.74", "76.28", 10),
    "llama-2-7b-open-platypus": ("62.00", "70.61", 15),
    "llama-1-7b-alpaca": ("32.36", "61.99", 10),
    "opt-6.7b-alpaca": ("41.4", "48.7", 15),
    "llama-2-7b-chat-evol-instruct": ("74.44", "81.74", 5),
    "llama-2-7b-alpaca-qlora": ("26.71", "31.43", 5),
}
BATCH = re.compile(
    r"(?P<rows>\d+) rows? x (?P<gpus>\d+) GPUs? x (?P<accumulated>\d+) accumulated = (?P<batch>\d+) rows a step; "
    r"(?:(?P<steps>[\d,]+) steps = )?(?P<epochs>\d+) epochs?(?: of (?P<data>[\d,]+) rows)?"
)
NAMED = {"name", "about", EXTENDS}  # what a recipe says of itself
HEADLINE = {"neftune.alpha"}  # stated in a recipe that stands alone even where it is the default: it is the subject

every_recipe = pytest.mark.parametrize("name", NAMES)
paper_recipe = pytest.mark.parametrize("name", sorted(PAPER))
other_than_quickstart = pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart"])


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def header(name: str) -> str:
    """The comment at the top, without its number signs, as one line of text."""
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in comment)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def value(recipe: Recipe, path: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(getattr, path.split("."), recipe)


def test_list_recipes_equals_the_folder() -> None:
    assert sorted(catalog.list_recipes()) == NAMES
    assert catalog.list_recipes()[0] == "quickstart"
    assert set(NAMES) == {"quickstart", "opt-350m-imdb", *PAPER}


@every_recipe
def test_recipe_is_in_the_readmes_table(name: str) -> None:
    assert f"| {name} |" in (FOLDER.parent / "README.md").read_text(encoding="utf-8")


@every_recipe
def test_recipe_loads_under_its_file_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 0 < len(recipe.about) <= 90
    assert recipe.model.name in ALIASES


@every_recipe
def test_recipe_begins_with_its_command(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8").splitlines()[0] == f"# neft train --recipe {name}"


@every_recipe
def test_recipe_is_short(name: str) -> None:
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 120


@every_recipe
def test_recipe_comment_names_its_source(name: str) -> None:
    assert "paper" in header(name) or "Hugging Face" in header(name)


@other_than_quickstart
def test_recipe_comment_states_that_it_was_not_run(name: str) -> None:
    assert header(name).endswith("Not trained by this project; the tests check its form.")


@every_recipe
def test_recipe_to_yaml_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    written = tmp_path / "resolved.yaml"
    written.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(written)) == recipe


def test_recipes_are_distinct_runs() -> None:
    assert len({recipe_fingerprint(load_recipe(name)) for name in NAMES}) == len(NAMES)


@paper_recipe
def test_recipe_has_the_papers_figures_and_alpha(name: str) -> None:
    plain, tuned, alpha = PAPER[name]
    assert f"{plain} plain -> {tuned}" in header(name)
    assert f"with alpha {alpha}" in header(name)
    assert load_recipe(name).neftune.alpha == alpha


@other_than_quickstart
def test_recipe_comment_states_batch_and_steps(name: str) -> None:
    claim = BATCH.search(header(name))
    assert claim is not None
    training = load_recipe(name).training
    assert training.per_device_train_batch_size == number(claim["rows"])
    assert training.gradient_accumulation_steps == number(claim["accumulated"])
    assert number(claim["batch"]) == number(claim["rows"]) * number(claim["gpus"]) * number(claim["accumulated"])
    if claim["steps"]:
        assert training.max_steps == number(claim["steps"])
        assert training.max_steps == number(claim["data"]) * number(claim["epochs"]) // number(claim["batch"])
    else:
        assert training.max_steps is None
        assert training.num_train_epochs == number(claim["epochs"])


@other_than_quickstart
def test_recipe_memory_estimate_adds_up(name: str) -> None:
    claim = re.search(r"Memory \(estimate\): (.*?) = ([\d.]+) GB", header(name))
    assert claim is not None
    products = [float(billions) * float(size) for billions, size in re.findall(r"([\d.]+) B .*?x ([\d.]+)", claim[1])]
    assert sum(products) == pytest.approx(float(claim[2]), abs=0.5)


@every_recipe
def test_recipe_of_gated_model_explains_access(name: str) -> None:
    model = ALIASES[load_recipe(name).model.name]
    assert ("`hf auth login`" in header(name)) == model.gated
    assert (f"accept the licence on the page of {model.hub_id}" in header(name)) == model.gated


def test_base_recipe_has_the_authors_settings() -> None:
    """`train.py`'s defaults and the command in its README: steps are 52002 * 3 // 128, bf16 weights are `--hack`."""
    recipe = load_recipe(BASE)
    training = recipe.training
    assert (recipe.method().describe(), recipe.model.dtype, recipe.model.chat_template) == (
        "full",
        "bfloat16",
        "alpaca",
    )
    assert (recipe.data.source, recipe.data.format, recipe.data.max_length) == ("tatsu-lab/alpaca", "alpaca", 512)
    assert (recipe.learning_rate(), training.lr_scheduler_type, training.warmup_ratio) == (5e-5, "cosine", 0.03)
    assert (training.weight_decay, training.max_grad_norm, training.max_steps) == (0, 1, 52002 * 3 // 128)
    assert (training.batching, training.optim) == ("auto", "adamw_torch_fused")
    assert (recipe.neftune.noise, recipe.neftune.length, recipe.neftune.schedule) == ("uniform", "tokens", "constant")


def test_qlora_recipe_has_its_authors_settings() -> None:
    """`finetune_llama2_guanaco_7b.sh` in artidoro/qlora; one epoch is the NEFTune paper's."""
    recipe = load_recipe("llama-2-7b-alpaca-qlora")
    adapter, training = recipe.adapter, recipe.training
    assert (recipe.method().describe(), adapter.lora_alpha, adapter.lora_dropout) == ("QLoRA r64", 16, 0.1)
    assert (adapter.target_modules, recipe.quantization.double_quantization) == ("all-linear", True)
    assert (recipe.learning_rate(), training.lr_scheduler_type, training.max_grad_norm) == (2e-4, "constant", 0.3)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 16)
    assert (training.optim, training.weight_decay) == ("paged_adamw_32bit", 0)


def test_hugging_face_recipe_has_the_defaults_of_its_time() -> None:
    """`TrainingArguments` of transformers 4.35, which TRL 0.7's SFTTrainer used where none were given."""
    recipe = load_recipe("opt-350m-imdb")
    training = recipe.training
    assert (recipe.method().describe(), recipe.neftune.alpha, recipe.data.max_length) == ("full", 5, 512)
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (3, 8)
    assert (recipe.learning_rate(), training.lr_scheduler_type, training.warmup_ratio) == (5e-5, "linear", 0)
    assert (training.weight_decay, training.max_grad_norm) == (0, 1)


@paper_recipe
def test_recipes_extend_the_base(name: str) -> None:
    parent = read_layer(path_of(name)).get(EXTENDS)
    assert (parent.value if parent else None) == (None if name == BASE else BASE)


@other_than_quickstart
def test_recipe_keys_change_something(name: str) -> None:
    """No key repeats its parent's value, and where there is no parent, none but the headline repeats the schema's."""
    layer = read_layer(path_of(name))
    parent = load_recipe(layer[EXTENDS].value) if EXTENDS in layer else Recipe()
    recipe = load_recipe(name)
    exempt = NAMED if EXTENDS in layer else NAMED | HEADLINE
    restated = [path for path in layer.keys() - exempt if value(recipe, path) == value(parent, path)]
    assert restated == []


def test_keys_cover_every_option() -> None:
    """Guards `value`, on which the test above stands."""
    assert all(value(Recipe(), key.path) == key.default for key in keys())
