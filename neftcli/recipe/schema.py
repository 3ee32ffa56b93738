"""The schema of a recipe: the one place where an option is defined.

Its YAML key, type, bounds, default, help text and command-line flag all stand in one `Annotated` line; the command
line (`cli/options.py`), the checks (`loading.py`) and `neft recipes show --all` read them from here. The classes are
plain frozen dataclasses so that `neft train --help` needs no pydantic; pydantic validates them in `loading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen


@dataclass(frozen=True, slots=True)
class Option:
    """What a person reads about an option, and how it is typed.

    Attributes:
        help: One sentence on what it does and what a larger value costs.
        flag: The command-line flag, or None where only the recipe and `--set` reach it.
        switch: The value that the flag sets when it takes none (`--lora` sets `adapter.type` to "lora").
        implies: What the switch sets beside it, as (dotted key, value).
        only: The one command whose flag it is; where it is empty, all that take a recipe have it.
    """

    help: str
    flag: str | None = None
    switch: str | bool | None = None
    implies: tuple[tuple[str, str], ...] = ()
    only: str = ""


NonNegative = Annotated[float, Ge(0), Lt(float("inf"))]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Gt(0)]
Name = Annotated[str, MinLen(1)]
Criterion = Literal["held_out_loss", "token_accuracy", "exact_match", "rouge_l", "win_rate_length_controlled", "tasks"]
"""Metrics by which a sweep can decide: those of the registry in evaluation/metrics.py with a `sweep_direction`."""
RowFormat = Literal["auto", "text", "prompt_completion", "alpaca", "messages", "sharegpt"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model is tuned."""

    name: Annotated[Name, Option("An alias (see `neft models`), a hub id, a folder or a .gguf file.", "--model")] = (
        "smollm2-135m"
    )
    revision: Annotated[Name | None, Option("Branch, tag or commit of a hub model.", "--revision")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("Type of the loaded weights; auto: float32 for full tuning, bfloat16 for adapters on a GPU."),
    ] = "auto"
    chat_template: Annotated[
        Name | None,
        Option(
            "alpaca, chatml, or a Jinja file; without it the model's own, or alpaca where it has none.",
            "--chat-template",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, Option("Run Python code that comes with the model.", "--trust-remote-code", switch=True)
    ] = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """An entry of data.sources; keys that it leaves out are taken from `data`.

    Attributes:
        source: As data.source.
        weight: Its share of the mixture; 1 if another entry has one; without any weight sources are concatenated.
        max_rows: Use only this many of its rows, chosen by split_seed.
        config: As data.config.
        split: As data.split.
        format: As data.format.
        columns: As data.columns.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: Name
    weight: Positive | None = None
    max_rows: Count | None = None
    config: Name | None = None
    split: Name | None = None
    format: RowFormat | None = None
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which rows are learned, and how they become tokens."""

    source: Annotated[
        Name,
        Option(
            "builtin, a json, jsonl, csv, tsv, parquet, arrow or txt file, also .gz, a folder, an address (s3://, "
            "hf://, https://), or a hub id.",
            "--dataset",
        ),
    ] = "builtin"
    sources: Annotated[
        tuple[Source, ...],
        Option(
            "Several sources instead of one, each {source, weight, max_rows, config, split, format, columns}: "
            "interleaved by their weights, or concatenated if none has one."
        ),
    ] = ()
    stopping_strategy: Annotated[
        Literal["first_exhausted", "all_exhausted"],
        Option(
            "When weighted sources stop: once the first is used up (the rest is left out and counted), or once all are "
            "(rows of the smaller ones repeat)."
        ),
    ] = "first_exhausted"
    config: Annotated[Name | None, Option("Configuration (subset) of a hub data set.")] = None
    split: Annotated[Name, Option("Split of a folder or a hub data set to train on.")] = "train"
    streaming: Annotated[
        bool, Option("Read hub data sets over the network each time instead of keeping a copy in the cache.")
    ] = False
    sample_by: Annotated[
        Literal["paragraph", "line", "document"],
        Option("What a row of a .txt file is: a paragraph (blank lines between), a line, or the whole file."),
    ] = "paragraph"
    format: Annotated[
        RowFormat,
        Option("How a row is laid out; auto looks at the columns and says what it found.", "--format"),
    ] = "auto"
    columns: Annotated[
        Mapping[str, str], Option("Standard column name: the name it has in your rows, e.g. {instruction: question}.")
    ] = field(default_factory=dict)
    system_prompt: Annotated[str | None, Option("Put before every conversation that has no system turn.")] = None
    max_rows: Annotated[
        Count | None,
        Option("Number of rows to use, held-out rows among them, chosen by split_seed.", "--max-rows"),
    ] = None
    max_length: Annotated[
        Annotated[int, Ge(8)], Option("Longest row in tokens; longer rows are cut and counted.", "--max-length")
    ] = 1024
    loss_on: Annotated[
        Literal["auto", "all", "last", "completion", "tokens"],
        Option(
            "What carries loss: all answers, the last one, the completion of a prompt/completion pair, or every token "
            "(tokens); auto: the completion of pairs, all answers of conversations, every token of plain text. Turns "
            "that the data marks (weight, train, loss) override it."
        ),
    ] = "auto"
    reasoning: Annotated[
        Literal["learn", "drop"],
        Option("Learn the reasoning in answers (reasoning_content, thinking), or drop it."),
    ] = "learn"
    held_out_rows: Annotated[
        Annotated[int, Ge(0)],
        Option(
            "Rows kept for evaluation, at most a fifth of the data, or taken of --held-out; 0 is none.",
            "--held-out-rows",
        ),
    ] = 200
    held_out_source: Annotated[
        Name | None, Option("File, folder or hub id to evaluate on, in place of rows kept back.", "--held-out")
    ] = None
    held_out_split: Annotated[Name | None, Option("Split of the folder or hub data set to evaluate on.")] = None
    split_seed: Annotated[
        Annotated[int, Ge(0), Lt(2**32)],
        Option("Chooses which rows are held out; the same for every training seed, so that runs can be compared."),
    ] = 0

    def all_sources(self) -> tuple[Source, ...]:
        """The training sources, one or several."""
        return self.sources or (Source(source=self.source),)

    def named_sources(self) -> tuple[str, ...]:
        """The names of all sources, the held-out one last."""
        return (*(source.source for source in self.all_sources()), *filter(None, [self.held_out_source]))

    def source_name(self) -> str:
        """All training sources in a line: "rows.jsonl", or "a.jsonl + b.jsonl"."""
        return " + ".join(source.source for source in self.all_sources())


@dataclass(frozen=True, kw_only=True)
class Neftune:
    """The noise of NEFTune: x + alpha / sqrt(L d) * u."""

    alpha: Annotated[
        NonNegative, Option("NEFTune's noise alpha (the paper used 5, 10, 15); 0 is no noise at all.", "--alpha")
    ] = 5.0
    noise: Annotated[
        Literal["uniform", "gaussian", "symmetric"],
        Option("uniform (the paper), gaussian of equal variance, or symmetric (SymNoise: twice the work a step)."),
    ] = "uniform"
    length: Annotated[
        Literal["tokens", "padded"],
        Option("L: each document's real tokens, or the padded width, which reproduces Hugging Face's scaling."),
    ] = "tokens"
    schedule: Annotated[
        Literal["constant", "linear_warmup", "linear_decay"],
        Option("How alpha moves over training: constant, from 0 up to alpha, or from alpha down to 0."),
    ] = "constant"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Full fine-tuning, or LoRA."""

    type: Annotated[
        Literal["none", "lora"],
        Option("none tunes all weights; lora trains small matrices beside frozen ones.", "--lora", switch="lora"),
    ] = "none"
    r: Annotated[Count, Option("LoRA's rank; higher learns more and costs memory.", "--lora-r")] = 16
    lora_alpha: Annotated[Positive, Option("LoRA's scale is lora_alpha / r. Not NEFTune's alpha.", "--lora-alpha")] = (
        32.0
    )
    lora_dropout: Annotated[Annotated[float, Ge(0), Lt(1)], Option("Dropout before LoRA's matrices.")] = 0.0
    target_modules: Annotated[
        Literal["all-linear"] | tuple[Name, ...], Option("Layers that get an adapter, or all-linear.")
    ] = "all-linear"
    modules_to_save: Annotated[
        tuple[Name, ...], Option("Layers trained in full beside the adapter, e.g. [embed_tokens].")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Four-bit weights under an adapter (QLoRA)."""

    type: Annotated[
        Literal["none", "nf4"],
        Option(
            "nf4 stores the frozen weights in 4 bits, under an adapter.",
            "--qlora",
            switch="nf4",
            implies=(("adapter.type", "lora"),),
        ),
    ] = "none"
    double_quantization: Annotated[bool, Option("Quantise the quantisation constants too (0.4 bits less).")] = True


@dataclass(frozen=True, kw_only=True)
class Training:
    """The optimiser's work."""

    num_train_epochs: Annotated[
        Annotated[float, Gt(0), Le(100_000)], Option("Passes over the training rows.", "--epochs")
    ] = 3.0
    max_steps: Annotated[Count | None, Option("Number of steps, in place of num_train_epochs.", "--max-steps")] = None
    per_device_train_batch_size: Annotated[
        Count, Option("Rows computed at once on a device; more needs memory.", "--batch-size")
    ] = 8
    gradient_accumulation_steps: Annotated[Count, Option("Batches added up before an update.")] = 1
    processes: Annotated[
        Count, Option("Processes that train together, each with batches of its own, a GPU each.", "--processes")
    ] = 1
    learning_rate: Annotated[
        Positive | None, Option("Without a value: 5e-5 for full tuning, 2e-4 with LoRA.", "--learning-rate")
    ] = None
    lr_scheduler_type: Annotated[
        Literal["cosine", "linear", "constant", "constant_with_warmup"], Option("Shape of the learning rate over time.")
    ] = "cosine"
    warmup_ratio: Annotated[Fraction, Option("Share of the updates over which the learning rate rises.")] = 0.03
    weight_decay: Annotated[NonNegative, Option("Decay of the weights in AdamW.")] = 0.0
    max_grad_norm: Annotated[Positive, Option("Gradients longer than this are shortened to it.")] = 1.0
    optim: Annotated[
        Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"],
        Option("The optimiser; 8-bit and paged ones save GPU memory."),
    ] = "adamw_torch_fused"
    batching: Annotated[
        Literal["auto", "padded", "bucketed", "padding_free", "packed"],
        Option(
            "padded rows, padded beside rows of like length (bucketed: fewer pads, another order), the same rows end "
            "to end (padding_free), or several documents packed up to max_length; auto: end to end where the model "
            "keeps documents apart (measured), padded elsewhere."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("Arithmetic of the matrix products; auto: bfloat16 where the hardware multiplies it."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, Option("Recompute activations: less memory, about a third more time.", "--gradient-checkpointing", True)
    ] = False
    torch_compile: Annotated[bool, Option("Compile the model first; pays on long GPU runs.")] = False
    fused_layers: Annotated[
        bool, Option("Train attention, LoRA and, on CPUs, the head in fewer passes; false: by the libraries' layers.")
    ] = True
    deterministic: Annotated[bool, Option("On GPUs: the same seed, the same bits; false is a little faster.")] = True
    logging_steps: Annotated[Count | None, Option("Updates between log rows; without one about 20 rows.")] = None
    seed: Annotated[
        Annotated[int, Ge(0), Lt(2**32)], Option("Seed of data order, dropout, adapters and noise.", "--seed")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What is kept while a run trains, so that it can be gone on with."""

    save_steps: Annotated[
        Count | None, Option("Updates between two checkpoints; beside save_minutes.", "--save-steps")
    ] = None
    save_minutes: Annotated[Positive | None, Option("Minutes between two checkpoints; null for none by the clock.")] = (
        15.0
    )
    save_total_limit: Annotated[
        Count, Option("Checkpoints that are kept; an older one goes when a newer one is whole.")
    ] = 2


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are generated."""

    max_new_tokens: Annotated[Count, Option("Longest answer in tokens.")] = 256
    repetition_penalty: Annotated[Positive, Option("1 is none; the authors used 1.2.")] = 1.2
    do_sample: Annotated[bool, Option("Sample in place of taking the likeliest token.")] = False
    temperature: Annotated[Positive, Option("Temperature when sampling.")] = 1.0
    top_p: Annotated[Annotated[float, Gt(0), Le(1)], Option("Nucleus when sampling.")] = 1.0
    batch_size: Annotated[Count, Option("Prompts answered at once; fewer where memory is short.")] = 32


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who decides which of two answers is better: a model behind an OpenAI-compatible server."""

    base_url: Annotated[
        Name | None,
        Option("The server's address, e.g. http://127.0.0.1:8000/v1.", "--judge", only="eval"),
    ] = None
    model: Annotated[Name | None, Option("The judge's name on that server.", "--judge-model", only="eval")] = None
    prompt: Annotated[
        Name | None,
        Option("A text file to ask with, in place of the built-in one.", "--judge-prompt", only="eval"),
    ] = None
    max_tokens: Annotated[Count, Option("Longest reply; more where your prompt asks for reasons first.")] = 16
    temperature: Annotated[NonNegative, Option("The judge's temperature.")] = 0.0
    concurrency: Annotated[Count, Option("Questions under way at once.")] = 4
    timeout: Annotated[
        Positive, Option("Seconds that each attempt to get a reply may take; waits between attempts not counted.")
    ] = 60.0
    max_retries: Annotated[Annotated[int, Ge(0)], Option("Times a failed question is asked again, ever later.")] = 5


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of lm-evaluation-harness, with its own defaults."""

    apply_chat_template: Annotated[
        bool,
        Option("Put the tasks' prompts into the model's chat template.", "--apply-chat-template", True, only="eval"),
    ] = False
    num_fewshot: Annotated[
        Annotated[int, Ge(0)] | None,
        Option("Examples before each question; without a value as each task says.", "--num-fewshot", only="eval"),
    ] = None
    limit: Annotated[
        Positive | None,
        Option("Use only the first documents of each task: their number, or a share below 1.", "--limit", only="eval"),
    ] = None
    system_instruction: Annotated[
        Name | None, Option("Text before each prompt; a system turn with the chat template.")
    ] = None
    fewshot_as_multiturn: Annotated[
        bool | None,
        Option("Examples as separate turns; without a value as apply_chat_template says."),
    ] = None

    def multiturn(self) -> bool:
        """Return whether examples are separate turns."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, while training and by `neft eval`, always without noise."""

    every: Annotated[
        Annotated[float, Gt(0), Le(1)], Option("Share of the run between two evaluations; 0.25 gives four.")
    ] = 0.25
    probe_rows: Annotated[Annotated[int, Ge(0)], Option("Training rows whose loss is measured with the noise off.")] = (
        32
    )
    samples: Annotated[
        Annotated[int, Ge(0)], Option("Held-out prompts answered before and after training.", "--samples")
    ] = 3
    per_device_eval_batch_size: Annotated[
        Count, Option("Rows whose loss is computed at once; fewer where memory is short.")
    ] = 16
    generation: Annotated[Generation, Option("How answers are generated.")] = field(default_factory=Generation)
    judge: Annotated[Judge, Option("Who compares answers.")] = field(default_factory=Judge)
    tasks: Annotated[
        tuple[Name, ...],
        Option("Tasks of lm-evaluation-harness, names or YAML files.", "--tasks", only="eval"),
    ] = ()
    task_settings: Annotated[TaskSettings, Option("Settings of the tasks.")] = field(default_factory=TaskSettings)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which cells `neft sweep-alpha` trains, and what decides between them."""

    alphas: Annotated[
        Annotated[tuple[NonNegative, ...], MinLen(1)],
        Option("NEFTune alphas to compare; 0, the baseline, is always among them.", "--alphas", only="sweep-alpha"),
    ] = (0.0, 5.0, 10.0, 15.0)
    seeds: Annotated[
        Count, Option("Training seeds of each arm: training.seed and the ones after it.", "--seeds", only="sweep-alpha")
    ] = 3
    grid: Annotated[
        tuple[Name, ...],
        Option("Other options to sweep, each as KEY=VALUE,VALUE, e.g. training.learning_rate=1e-5,5e-5."),
    ] = ()
    metrics: Annotated[
        Annotated[tuple[Criterion, ...], MinLen(1)],
        Option("What decides: the first chooses; all are tested, corrected together.", "--metric", only="sweep-alpha"),
    ] = ("held_out_loss",)
    answers: Annotated[bool, Option("Generate answers in each cell, for their lengths and repetition; costs time.")] = (
        True
    )
    delta: Annotated[
        float | Name,
        Option(
            "Smallest effect of interest in the first metric: a number in its unit (0.005), or a share of what alpha 0 "
            "gained over the base model (1%). auto: 1% for held-out loss, 0.05 for a win rate.",
            "--delta",
            only="sweep-alpha",
        ),
    ] = "auto"
    early_stopping: Annotated[
        Literal["auto", "always", "never"],
        Option(
            "Stop for success or futility, and drop arms, from the third seed on; auto: with 6 seeds or more.",
            "--early-stopping",
            only="sweep-alpha",
        ),
    ] = "auto"
    retries: Annotated[Annotated[int, Ge(0)], Option("Times a cell is tried again after its worker died.")] = 2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines a run, apart from the machine."""

    name: Annotated[str, Option("The run's name starts with it.", "--name")] = "run"
    about: Annotated[str, Option("One line for `neft recipes`.")] = ""
    output_dir: Annotated[Name, Option("Folder in which the run's own folder is made.", "--output-dir")] = "runs"
    model: Annotated[Model, Option("Which model is tuned.")] = field(default_factory=Model)
    data: Annotated[Data, Option("Which rows are learned.")] = field(default_factory=Data)
    neftune: Annotated[Neftune, Option("The noise.")] = field(default_factory=Neftune)
    adapter: Annotated[Adapter, Option("Full fine-tuning, or LoRA.")] = field(default_factory=Adapter)
    quantization: Annotated[Quantization, Option("Four-bit weights.")] = field(default_factory=Quantization)
    training: Annotated[Training, Option("The optimiser's work.")] = field(default_factory=Training)
    checkpoints: Annotated[Checkpoints, Option("What a stopped run goes on from.")] = field(default_factory=Checkpoints)
    evaluation: Annotated[Evaluation, Option("Measurements while training.")] = field(default_factory=Evaluation)
    sweep: Annotated[Sweep, Option("A grid of alphas.")] = field(default_factory=Sweep)

    def learning_rate(self) -> float:
        """The learning rate in force: the recipe's, or 5e-5 for full tuning and 2e-4 with an adapter."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        return 5e-5 if self.adapter.type == "none" else 2e-4

    def method(self) -> str:
        """The way of tuning in the field's words: full, LoRA or QLoRA."""
        if self.adapter.type == "none":
            return "full"
        return f"{'LoRA' if self.quantization.type == 'none' else 'QLoRA'} r{self.adapter.r}"

    def run_name(self) -> str:
        """Name of the run's folder: the recipe's name, alpha and seed."""
        alpha = f"{self.neftune.alpha:g}".replace("+", "")  # 1e+06: a name holds no plus
        return f"{self.name}-a{alpha}-s{self.training.seed}"


@dataclass(frozen=True, slots=True)
class Key:
    """One option of the schema, as the command line and the documentation need it."""

    path: str
    option: Option
    type: Any
    default: Any


@cache
def keys(schema: type = Recipe, prefix: str = "") -> tuple[Key, ...]:
    """All options below `schema`, depth first, with their dotted paths."""
    hints = get_type_hints(schema, include_extras=True)
    instance = schema()
    found: list[Key] = []
    for item in fields(schema):
        annotation = hints[item.name]
        option = next(extra for extra in annotation.__metadata__ if isinstance(extra, Option))
        inner, path = annotation.__origin__, f"{prefix}{item.name}"
        if is_dataclass(inner) and isinstance(inner, type):
            found += keys(inner, f"{path}.")
        else:
            found.append(Key(path, option, annotation, getattr(instance, item.name)))
    return tuple(found)


def type_name(annotation: Any) -> str:
    """A type as a person would say it: NUMBER, INTEGER, TEXT, or its choices with bars between."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_name(annotation.__origin__)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if origin is tuple:
        return "LIST"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "MAPPING"
    if get_args(annotation):  # a union; "or nothing" goes without saying
        names = [type_name(choice) for choice in get_args(annotation) if choice is not type(None)]
        return "|".join(dict.fromkeys(names))
    return {int: "INTEGER", float: "NUMBER", bool: "true|false", str: "TEXT"}.get(annotation, str(annotation))
