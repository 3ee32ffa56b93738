"""Schema of a recipe: each option is defined here, once.

An option's YAML key, type, bounds, default, help text and flag are in one `Annotated` field. The command line
(`cli/options.py`), validation (`loading.py`), `neft recipes show --all` and the reference page read them through
`keys.py`. Options that name an entry of a registry take their values from it. The classes are plain frozen dataclasses,
so that `neft train --help` needs no pydantic; `loading.py` does the validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt, MinLen

from neftcli.events import Method
from neftcli.metrics.registry import ANSWER_METRICS, BEST_METRICS, SWEEP_METRICS
from neftcli.rows.formats import ROW_FORMATS
from neftcli.system.paths import expand_home
from neftcli.trackers.registry import TRACKERS


@dataclass(frozen=True, slots=True)
class Option:
    """Help and command-line flag of an option.

    Attributes:
        help: A few words without a full stop, for `--help`.
        flag: The command-line flag; None if only recipes and `--set` reach the option.
        details: Sentences after `help` in the reference and in `neft recipes show --all`.
        unset: The value that applies if the option has none, in words.
        switch: The value that a flag without an argument sets (`--lora` sets `adapter.type` to "lora").
        flag_help: Help of a flag that differs from the option's own.
        implies: Settings that the flag adds, as (dotted key, value).
        commands: The only commands that have the flag; empty if each command that takes a recipe has it.
    """

    help: str
    flag: str | None = None
    details: str = ""
    unset: str = ""
    switch: str | bool | None = None
    flag_help: str = ""
    implies: tuple[tuple[str, str | bool], ...] = ()
    commands: tuple[str, ...] = ()


NonNegative = Annotated[float, Ge(0), Lt(float("inf"))]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
Fraction = Annotated[float, Ge(0), Le(1)]
MAX_COUNT = 1_000_000_000
"""Limit of whole numbers: those of the libraries end at 2^63, some at 2^31."""
MIN_SHARE = 0.0001
"""Smallest share of a run between two evaluations."""
Count = Annotated[int, Gt(0), Le(MAX_COUNT)]
CountOrZero = Annotated[int, Ge(0), Le(MAX_COUNT)]
Name = Annotated[str, MinLen(1)]
ANSWERING = ("chat", "answer")
"""Commands whose only work is to generate answers; they have flags for the settings of generation."""
SAMPLE = ("evaluation.generation.do_sample", True)
if TYPE_CHECKING:
    SweepMetric: TypeAlias = str
    AnswerMetric: TypeAlias = str
    BestMetric: TypeAlias = str
    RowFormatId: TypeAlias = str
    TrackerId: TypeAlias = str
else:  # the entries of the registries; type checkers can't read them
    SweepMetric = Literal[SWEEP_METRICS]
    AnswerMetric = Literal[ANSWER_METRICS]
    BestMetric = Literal[BEST_METRICS]
    RowFormatId = Literal[("auto", *ROW_FORMATS)]
    TrackerId = Literal[tuple(TRACKERS)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model to tune."""

    name: Annotated[
        Name,
        Option("Alias, hub id, folder or .gguf file of the model", "--model", "`neft models` lists the aliases."),
    ] = "smollm2-135m"
    revision: Annotated[
        Name | None, Option("Branch, tag or commit of a hub model", "--revision", unset="the main branch")
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option(
            "Type of the loaded weights",
            details="auto: float32 for full fine-tuning, bfloat16 for adapters on a GPU.",
        ),
    ] = "auto"
    chat_template: Annotated[
        Name | None,
        Option(
            "Chat template: alpaca, chatml or a Jinja file",
            "--chat-template",
            unset="the model's own, or alpaca if it has none",
        ),
    ] = None
    new_tokens: Annotated[
        tuple[Name, ...],
        Option(
            "Tokens to add to the tokenizer, e.g. ['<tool>', '</tool>']",
            details="Their embeddings start from the mean of all others and are trained, also beside an adapter.",
            unset="none",
        ),
    ] = ()
    trust_remote_code: Annotated[
        bool, Option("Run Python code that comes with the model", "--trust-remote-code", switch=True)
    ] = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Entry of data.sources; it takes omitted keys from `data`.

    Attributes:
        source: As data.source.
        weight: Share of the mixture; 1 if another entry has a weight; without weights sources are concatenated.
        max_rows: Number of its rows to use, chosen by split_seed.
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
    format: RowFormatId | None = None
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """Training rows, and how they are tokenised."""

    source: Annotated[
        Name,
        Option(
            "Rows to train on: a file, folder, URL, hub id or builtin",
            "--dataset",
            "Files: json, jsonl, csv, tsv, parquet, arrow or txt, also .gz. URLs: s3://, gs://, hf://, https://.",
        ),
    ] = "builtin"
    sources: Annotated[
        tuple[Source, ...],
        Option(
            "Several sources instead of one",
            details="Each is {source, weight, max_rows, config, split, format, columns}. Sources with weights are "
            "interleaved by them; without weights they are concatenated.",
        ),
    ] = ()
    stopping_strategy: Annotated[
        Literal["first_exhausted", "all_exhausted"],
        Option(
            "When to stop interleaving sources",
            details="first_exhausted: once the first is used up; the other rows are left out and counted. "
            "all_exhausted: once all are; rows of the smaller ones repeat.",
        ),
    ] = "first_exhausted"
    config: Annotated[Name | None, Option("Configuration (subset) of a hub data set", unset="its only one")] = None
    split: Annotated[Name, Option("Split of a folder or hub data set to train on")] = "train"
    streaming: Annotated[
        bool, Option("Read hub data sets over the network in each run instead of keeping a copy in the cache")
    ] = False
    sample_by: Annotated[
        Literal["paragraph", "line", "document"],
        Option("Row of a .txt file: a paragraph (blank lines between), a line, or the whole file"),
    ] = "paragraph"
    format: Annotated[
        RowFormatId, Option("Row format", "--format", "auto: detected from the columns, and reported.")
    ] = "auto"
    columns: Annotated[
        Mapping[str, str],
        Option("Mapping of standard column names to those in your rows, e.g. {instruction: question}"),
    ] = field(default_factory=dict)
    system_prompt: Annotated[
        str | None, Option("System turn for conversations that have none", unset="no system turn")
    ] = None
    max_rows: Annotated[
        Count | None,
        Option(
            "Number of rows to use, including held-out rows",
            "--max-rows",
            "split_seed chooses them.",
            unset="all rows",
        ),
    ] = None
    max_length: Annotated[
        Annotated[int, Ge(8), Le(MAX_COUNT)],
        Option("Maximum length of a row in tokens", "--max-length", "Longer rows are truncated and counted."),
    ] = 1024
    loss_on: Annotated[
        Literal["auto", "all", "last", "completion", "tokens"],
        Option(
            "Part of a row that carries loss",
            details="all answers, the last answer, the completion of a prompt/completion pair, or every token "
            "(tokens). auto: the completion of pairs, all answers of conversations, every token of plain text. Loss "
            "marks in the data (weight, train, loss) override it.",
        ),
    ] = "auto"
    reasoning: Annotated[
        Literal["learn", "drop"],
        Option("Learn or drop the reasoning in answers (reasoning_content, thinking)"),
    ] = "learn"
    held_out_rows: Annotated[
        CountOrZero,
        Option(
            "Number of held-out rows to evaluate on",
            "--held-out-rows",
            "At most a fifth of the data, or rows of held_out_source if that is set. 0: none.",
        ),
    ] = 200
    held_out_source: Annotated[
        Name | None,
        Option(
            "Rows to evaluate on: a file, folder or hub id", "--held-out", unset="a held-out split of the training data"
        ),
    ] = None
    held_out_split: Annotated[
        Name | None,
        Option("Split of the folder or hub data set to evaluate on", unset="train"),
    ] = None
    split_seed: Annotated[
        Annotated[int, Ge(0), Lt(2**32)],
        Option(
            "Seed of the held-out split", details="Independent of training.seed, so that runs can be compared by row."
        ),
    ] = 0

    def all_sources(self) -> tuple[Source, ...]:
        """Return the training sources."""
        return self.sources or (Source(source=self.source),)

    def named_sources(self) -> tuple[str, ...]:
        """Return the names of all sources, the held-out source last."""
        names = [source.source for source in self.all_sources()]
        if self.held_out_source:
            names.append(self.held_out_source)
        return tuple(names)

    def source_name(self) -> str:
        """Return the training sources as text: "rows.jsonl", or "a.jsonl + b.jsonl"."""
        return " + ".join(source.source for source in self.all_sources())


@dataclass(frozen=True, kw_only=True)
class Neftune:
    """NEFTune's noise: x + alpha / sqrt(L d) * u."""

    alpha: Annotated[
        NonNegative,
        Option("NEFTune's noise scale; 0 trains without noise", "--alpha", "The paper used 5, 10 and 15."),
    ] = 5.0
    noise: Annotated[
        Literal["uniform", "gaussian", "symmetric"],
        Option(
            "Distribution of the noise",
            details="uniform: as in the paper. gaussian: of the same variance. symmetric: SymNoise, at twice the cost "
            "of a step.",
        ),
    ] = "uniform"
    length: Annotated[
        Literal["tokens", "padded"],
        Option(
            "Length L in the noise's scale",
            details="tokens: the document's own tokens. padded: the batch's width, as Hugging Face scales.",
        ),
    ] = "tokens"
    schedule: Annotated[
        Literal["constant", "linear_warmup", "linear_decay"],
        Option(
            "Schedule of alpha over training",
            details="linear_warmup: from 0 to alpha. linear_decay: from alpha to 0.",
        ),
    ] = "constant"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA adapter, or full fine-tuning."""

    type: Annotated[
        Literal["none", "lora"],
        Option(
            "Weights to train: all of them (none) or a LoRA adapter",
            "--lora",
            switch="lora",
            flag_help="Train a LoRA adapter instead of all weights",
        ),
    ] = "none"
    r: Annotated[
        Count,
        Option("Rank of the LoRA adapter", "--lora-r", "A higher rank has more parameters and needs more memory."),
    ] = 16
    lora_alpha: Annotated[
        Positive,
        Option("LoRA's scale is lora_alpha / r; not NEFTune's alpha", "--lora-alpha"),
    ] = 32.0
    lora_dropout: Annotated[Annotated[float, Ge(0), Lt(1)], Option("Dropout of the adapter's input")] = 0.0
    use_rslora: Annotated[
        bool, Option("Scale by lora_alpha / sqrt(r) instead of lora_alpha / r (rsLoRA)", details="For high ranks.")
    ] = False
    use_dora: Annotated[
        bool,
        Option(
            "Also train the magnitude of each layer's output weights (DoRA)",
            details="Slower: each layer computes the norms of its adapted weights.",
        ),
    ] = False
    init_lora_weights: Annotated[
        Literal["default", "pissa"],
        Option(
            "Weights that the adapter starts from",
            details="default: zero, so that it starts as the base model. pissa: the largest singular values of each "
            "weight; the saved adapter has twice the rank.",
        ),
    ] = "default"
    pissa_niter: Annotated[
        Count | None,
        Option(
            "Iterations of a fast, approximate SVD for pissa, e.g. 4; the exact one takes minutes for large models",
            unset="the exact SVD",
        ),
    ] = None
    loraplus_lr_ratio: Annotated[
        Annotated[float, Ge(1), Lt(float("inf"))] | None,
        Option(
            "Learning rate of the B matrices as a multiple of training.learning_rate (LoRA+), e.g. 16",
            details="Also of the other trained vectors, such as DoRA's magnitudes.",
            unset="the same rate for all",
        ),
    ] = None
    target_modules: Annotated[
        Literal["all-linear"] | tuple[Name, ...], Option("Layers that get an adapter: a list of names, or all-linear")
    ] = "all-linear"
    modules_to_save: Annotated[
        tuple[Name, ...], Option("Layers to train in full in addition to the adapter, e.g. [embed_tokens]")
    ] = ()

    def uses_pissa(self) -> bool:
        """Return whether the adapter starts from the largest singular values of the weights."""
        return self.type == "lora" and self.init_lora_weights == "pissa"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Quantised base weights under an adapter: 4 bits (QLoRA) or 8."""

    type: Annotated[
        Literal["none", "nf4", "int8"],
        Option(
            "Quantisation of the frozen base weights",
            "--qlora",
            "nf4: 4 bits. int8: 8 bits, whose inputs are rounded too (LLM.int8). Both need an adapter.",
            switch="nf4",
            flag_help="Train a LoRA adapter on 4-bit base weights (QLoRA)",
            implies=(("adapter.type", "lora"),),
        ),
    ] = "none"
    double_quantization: Annotated[
        bool, Option("Quantise the constants of nf4 as well", details="Saves 0.4 bits per weight.")
    ] = True


@dataclass(frozen=True, kw_only=True)
class Training:
    """Optimiser, batches and precision."""

    num_train_epochs: Annotated[
        Annotated[float, Gt(0), Le(100_000)], Option("Passes over the training rows", "--epochs")
    ] = 3.0
    max_steps: Annotated[
        Count | None, Option("Number of steps, instead of a number of epochs", "--max-steps", unset="num_train_epochs")
    ] = None
    per_device_train_batch_size: Annotated[
        Count, Option("Rows per device and forward pass", "--batch-size", "More rows need more memory.")
    ] = 8
    gradient_accumulation_steps: Annotated[Count, Option("Batches whose gradients are added up for one step")] = 1
    processes: Annotated[
        Count,
        Option(
            "Number of training processes",
            "--processes",
            "Data parallel: each process has its own batches, and its own GPU if there are GPUs.",
        ),
    ] = 1
    learning_rate: Annotated[
        Positive | None,
        Option("Peak learning rate", "--learning-rate", unset="5e-5 for full fine-tuning, 2e-4 with LoRA"),
    ] = None
    lr_scheduler_type: Annotated[
        Literal[
            "cosine",
            "linear",
            "constant",
            "constant_with_warmup",
            "polynomial",
            "inverse_sqrt",
            "cosine_with_min_lr",
            "warmup_stable_decay",
        ],
        Option(
            "Schedule of the learning rate",
            details="cosine_with_min_lr and warmup_stable_decay end at min_lr_ratio. warmup_stable_decay falls over "
            "the last tenth of the steps.",
        ),
    ] = "cosine"
    min_lr_ratio: Annotated[
        Fraction,
        Option(
            "Last learning rate as a share of the peak",
            details="Of cosine_with_min_lr and warmup_stable_decay; the other schedules have an end of their own.",
        ),
    ] = 0.1
    warmup_ratio: Annotated[Fraction, Option("Share of the steps in which the learning rate rises")] = 0.03
    weight_decay: Annotated[NonNegative, Option("Weight decay of the optimiser")] = 0.0
    max_grad_norm: Annotated[Positive, Option("Norm at which gradients are clipped")] = 1.0
    optim: Annotated[
        Literal[
            "adamw_torch_fused",
            "adamw_torch",
            "adamw_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "adafactor",
            "lion_32bit",
            "lion_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
        ],
        Option(
            "Optimiser",
            details="8-bit and paged optimisers save GPU memory; on CPUs none is paged. adafactor keeps sums of rows "
            "and columns instead of moments. Lion needs a learning rate of a third to a tenth of AdamW's.",
        ),
    ] = "adamw_torch_fused"
    freeze: Annotated[
        tuple[Name, ...],
        Option(
            "Layers to freeze in full fine-tuning, e.g. [embed_tokens, layers.0]",
            details="Names as in adapter.target_modules: the last parts of a layer's path.",
            unset="none",
        ),
    ] = ()
    batching: Annotated[
        Literal["auto", "padded", "bucketed", "padding_free", "packed"],
        Option(
            "How rows form a batch",
            details="padded: rows padded to the longest. bucketed: the same with rows of similar length, in a "
            "different order. padding_free: the same rows concatenated. packed: several documents per row of "
            "max_length. auto: padding_free if the model isolates packed documents (measured), else padded.",
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("Precision of the matrix products", details="auto: bfloat16 if the hardware supports it."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool,
        Option(
            "Recompute activations to save memory",
            "--gradient-checkpointing",
            "A step takes about a third more time.",
            switch=True,
        ),
    ] = False
    torch_compile: Annotated[bool, Option("Compile the model first; worth it for long runs on a GPU")] = False
    fused_layers: Annotated[
        bool,
        Option(
            "Use neft's fused kernels for attention, LoRA and, on CPUs, the loss",
            details="false: the libraries' own layers.",
        ),
    ] = True
    deterministic: Annotated[
        bool,
        Option("Use deterministic operations on GPUs", details="false: slightly faster, not bit-identical."),
    ] = True
    logging_steps: Annotated[
        Count | None, Option("Steps between log rows", unset="chosen for about 20 rows in a run")
    ] = None
    keep: Annotated[
        Literal["last", "best"],
        Option(
            "Weights that become the run's model",
            "--keep",
            "last: those after the last step. best: those with the best value of best_metric, by default the lowest "
            "held-out loss, of all evaluations during training; evaluation.every sets how many there are.",
        ),
    ] = "last"
    patience: Annotated[
        Count | None,
        Option(
            "Stop after this many evaluations without a better value of best_metric",
            "--patience",
            "Usually with keep: best.",
            unset="train to the end",
        ),
    ] = None
    best_metric: Annotated[
        BestMetric,
        Option(
            "Metric that keep: best and patience compare",
            "--best-metric",
            "The lowest held-out loss, the highest exact match or ROUGE-L; metrics of answers must be in "
            "evaluation.during.",
        ),
    ] = "held_out_loss"
    report_to: Annotated[
        tuple[TrackerId, ...],
        Option(
            "Experiment trackers to report to",
            "--report-to",
            "They don't change the weights.",
            unset="none",
        ),
    ] = ()
    seed: Annotated[
        Annotated[int, Ge(0), Lt(2**32)], Option("Seed of data order, dropout, adapter and noise", "--seed")
    ] = 0

    def selects_weights(self) -> bool:
        """Return whether evaluations during training determine the weights of the run's model."""
        return self.keep == "best" or self.patience is not None


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Checkpoints that a stopped run resumes from."""

    save_steps: Annotated[
        Count | None,
        Option(
            "Steps between checkpoints",
            "--save-steps",
            "Applies in addition to save_minutes.",
            unset="save_minutes alone",
        ),
    ] = None
    save_minutes: Annotated[
        Positive | None,
        Option("Minutes between checkpoints", details="null: no checkpoints by time."),
    ] = 15.0
    save_total_limit: Annotated[
        Count, Option("Number of checkpoints to keep", details="The oldest is removed after a newer one is complete.")
    ] = 2


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generation of answers."""

    max_new_tokens: Annotated[
        Count, Option("Maximum length of an answer in tokens", "--max-new-tokens", commands=ANSWERING)
    ] = 256
    repetition_penalty: Annotated[
        Annotated[float, Ge(0.01), Le(100)],
        Option("Repetition penalty; 1 is none, the authors used 1.2", "--repetition-penalty", commands=ANSWERING),
    ] = 1.2
    do_sample: Annotated[
        bool, Option("Sample instead of greedy decoding", "--sample", switch=True, commands=ANSWERING)
    ] = False
    temperature: Annotated[
        Annotated[float, Ge(0.01), Le(100)],
        Option(
            "Temperature of sampling",
            "--temperature",
            flag_help="Sample with this temperature",
            implies=(SAMPLE,),
            commands=ANSWERING,
        ),
    ] = 1.0
    top_p: Annotated[
        Annotated[float, Gt(0), Le(1)],
        Option(
            "Share of probability to sample from (top-p, nucleus sampling)",
            "--top-p",
            flag_help="Sample from this share of probability (top-p, nucleus sampling)",
            implies=(SAMPLE,),
            commands=ANSWERING,
        ),
    ] = 1.0
    batch_size: Annotated[Count, Option("Prompts per batch", details="On OOM the batch size is halved.")] = 32


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Model behind an OpenAI-compatible server that compares answers."""

    base_url: Annotated[
        Name | None,
        Option(
            "URL of the judge's server, e.g. http://127.0.0.1:8000/v1", "--judge", unset="no judge", commands=("eval",)
        ),
    ] = None
    model: Annotated[
        Name | None,
        Option("Name of the judge's model on the server", "--judge-model", commands=("eval",)),
    ] = None
    prompt: Annotated[
        Name | None,
        Option("Text file with the judge's prompt", "--judge-prompt", unset="the built-in prompt", commands=("eval",)),
    ] = None
    max_tokens: Annotated[
        Count, Option("Maximum length of a reply in tokens", details="Raise it if your prompt asks for reasons first.")
    ] = 16
    temperature: Annotated[NonNegative, Option("Temperature of the judge")] = 0.0
    concurrency: Annotated[Count, Option("Number of concurrent requests")] = 4
    timeout: Annotated[Positive, Option("Timeout of each request in seconds")] = 60.0
    max_retries: Annotated[CountOrZero, Option("Retries of a failed request, with backoff")] = 5


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of lm-evaluation-harness, with its defaults."""

    apply_chat_template: Annotated[
        bool,
        Option(
            "Apply the model's chat template to the prompts", "--apply-chat-template", switch=True, commands=("eval",)
        ),
    ] = False
    num_fewshot: Annotated[
        CountOrZero | None,
        Option(
            "Examples in front of each question",
            "--num-fewshot",
            unset="the number that each task sets",
            commands=("eval",),
        ),
    ] = None
    limit: Annotated[
        Positive | None,
        Option(
            "Number of documents per task, or a share below 1; the first ones",
            "--limit",
            unset="all documents",
            commands=("eval",),
        ),
    ] = None
    system_instruction: Annotated[
        Name | None,
        Option("Text in front of each prompt; a system turn if the chat template is applied", unset="no such text"),
    ] = None
    fewshot_as_multiturn: Annotated[
        bool | None, Option("Present examples as separate turns", unset="as apply_chat_template")
    ] = None

    def multiturn(self) -> bool:
        """Return whether examples are separate turns."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measurements of training and of `neft eval`, always without noise."""

    every: Annotated[
        Annotated[float, Ge(MIN_SHARE), Le(1)], Option("Share of the run between evaluations; 0.25 gives four")
    ] = 0.25
    probe_rows: Annotated[CountOrZero, Option("Training rows whose loss is measured without noise")] = 32
    samples: Annotated[CountOrZero, Option("Held-out prompts to answer before and after training", "--samples")] = 3
    during: Annotated[
        tuple[AnswerMetric, ...],
        Option(
            "Metrics of answers to measure at each evaluation during training, e.g. rouge_l,exact_match",
            "--during",
            "The model answers the first held-out prompts, greedily, before training and at each evaluation.",
            unset="none",
        ),
    ] = ()
    during_rows: Annotated[Count, Option("Held-out prompts to answer for evaluation.during")] = 16
    per_device_eval_batch_size: Annotated[
        Count, Option("Rows per batch when measuring loss", details="On OOM the batch size is halved.")
    ] = 16
    generation: Annotated[Generation, Option("Generation of answers")] = field(default_factory=Generation)
    judge: Annotated[Judge, Option("Model that compares answers")] = field(default_factory=Judge)
    tasks: Annotated[
        tuple[Name, ...],
        Option("Tasks of lm-evaluation-harness: names or YAML files", "--tasks", commands=("eval",)),
    ] = ()
    task_settings: Annotated[TaskSettings, Option("Settings of the tasks")] = field(default_factory=TaskSettings)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Grid of `neft sweep-alpha`, and the metrics that compare its arms."""

    alphas: Annotated[
        Annotated[tuple[NonNegative, ...], MinLen(1)],
        Option(
            "NEFTune alphas to compare",
            "--alphas",
            "0, the baseline, is always included.",
            commands=("sweep-alpha",),
        ),
    ] = (0.0, 5.0, 10.0, 15.0)
    seeds: Annotated[
        Count,
        Option(
            "Number of training seeds per arm",
            "--seeds",
            "training.seed and the integers that follow it.",
            commands=("sweep-alpha",),
        ),
    ] = 3
    grid: Annotated[
        tuple[Name, ...],
        Option("Other options to sweep, each as KEY=VALUE,VALUE, e.g. training.learning_rate=1e-5,5e-5"),
    ] = ()
    metrics: Annotated[
        Annotated[tuple[SweepMetric, ...], MinLen(1)],
        Option(
            "Metrics to compare; the first one chooses the best alpha",
            "--metric",
            "All are tested, with one correction for multiple comparisons.",
            commands=("sweep-alpha",),
        ),
    ] = ("held_out_loss",)
    answers: Annotated[
        bool, Option("Generate answers in each cell to measure their length and repetition; takes time")
    ] = True
    delta: Annotated[
        float | Name,
        Option(
            "Smallest effect of interest in the first metric, e.g. 0.005 or 1%",
            "--delta",
            "A number in the metric's unit, or a share of the baseline's gain over the base model. auto: 1% for "
            "held-out loss, 0.05 for a win rate.",
            commands=("sweep-alpha",),
        ),
    ] = "auto"
    early_stopping: Annotated[
        Literal["auto", "always", "never"],
        Option(
            "Stop early for success or futility, and drop arms",
            "--early-stopping",
            "From the third seed. auto: with 6 seeds or more.",
            commands=("sweep-alpha",),
        ),
    ] = "auto"
    retries: Annotated[CountOrZero, Option("Restarts of a cell whose worker died")] = 2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run, except the hardware."""

    name: Annotated[
        str,
        Option(
            "Prefix of the name of the run or sweep",
            "--name",
            "Alpha and seed are appended. A recipe file without a name is named after the file.",
        ),
    ] = "run"
    about: Annotated[str, Option("One line for `neft recipes`")] = ""
    output_dir: Annotated[Name, Option("Folder to create the run or sweep in", "--output-dir")] = "runs"
    model: Annotated[Model, Option("Model to tune")] = field(default_factory=Model)
    data: Annotated[Data, Option("Training rows")] = field(default_factory=Data)
    neftune: Annotated[Neftune, Option("Noise")] = field(default_factory=Neftune)
    adapter: Annotated[Adapter, Option("LoRA adapter, or full fine-tuning")] = field(default_factory=Adapter)
    quantization: Annotated[Quantization, Option("Quantised base weights")] = field(default_factory=Quantization)
    training: Annotated[Training, Option("Optimiser, batches and precision")] = field(default_factory=Training)
    checkpoints: Annotated[Checkpoints, Option("Checkpoints to resume from")] = field(default_factory=Checkpoints)
    evaluation: Annotated[Evaluation, Option("Measurements without noise")] = field(default_factory=Evaluation)
    sweep: Annotated[Sweep, Option("Grid of alphas")] = field(default_factory=Sweep)

    def learning_rate(self) -> float:
        """Return the effective learning rate: the recipe's, or 5e-5 for full fine-tuning and 2e-4 with an adapter."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        return 5e-5 if self.adapter.type == "none" else 2e-4

    def method(self) -> Method:
        """Return the training method."""
        if self.adapter.type == "none":
            return Method("full")
        return Method({"nf4": "qlora", "int8": "lora_int8"}.get(self.quantization.type, "lora"), self.adapter.r)

    def names_layers(self) -> bool:
        """Return whether options name layers or tokens that the model may not have, or can't train."""
        adapter = self.adapter
        named = adapter.target_modules != "all-linear" or adapter.modules_to_save or adapter.uses_pissa()
        return bool(self.training.freeze or self.model.new_tokens or (adapter.type == "lora" and named))

    def output_folder(self) -> Path:
        """Return the path of output_dir, with ~ expanded: shells leave it in --output-dir=~/runs."""
        return expand_home(self.output_dir)

    def run_name(self) -> str:
        """Return the name of the run's folder: the recipe's name, alpha and seed."""
        alpha = f"{self.neftune.alpha:g}".replace("+", "")  # 1e+06: names have no plus sign
        return f"{self.name}-a{alpha}-s{self.training.seed}"
