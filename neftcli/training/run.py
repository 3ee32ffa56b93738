"""A run, from a recipe to a finished folder.

Bad data and bad names are refused before torch is imported and before a folder is made. Everything that a person may
want to know is told as an event and written to the run's own files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.formats import Example
from neftcli.data.prepare import Examples, Prepared, prepare, read_examples
from neftcli.data.sources import is_hub
from neftcli.data.tokens import render_prompt
from neftcli.errors import Interrupted, NeftError, Problem, TrainingError
from neftcli.events import (
    Evaluated,
    Event,
    ModelReady,
    NoiseMeasured,
    Notice,
    Observer,
    Phase,
    RunFinished,
    Sample,
    StepLogged,
    TrainingStarted,
)
from neftcli.models.hub import prefer_cache_if_unreachable
from neftcli.models.names import Reference, resolve
from neftcli.recipe.loading import to_yaml
from neftcli.runs.directory import RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.training.machine import prepare_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.neftune import Noise
    from neftcli.recipe.schema import Recipe
    from neftcli.training.machine import Machine


def train(recipe: Recipe, observer: Observer) -> RunFinished:
    """Fine-tunes by `recipe` and returns what came of it.

    Raises:
        InputError: The recipe names a model or data that can't be used; nothing was started.
        TrainingError: Training started and could not go on; the run's record says so.
        Interrupted: Ctrl-C.
    """
    begun = time.perf_counter()
    reference, examples = check_inputs(recipe, observer)
    directory = RunDirectory.create(Path(recipe.output_dir), recipe.run_name())
    directory.write_text("recipe.yaml", to_yaml(recipe))
    record = RunRecord(directory, recipe)
    prepare_process()
    with _recorded_end(record, directory), library_chatter(directory.log):
        run = _Run(recipe, reference, directory, record, observer)
        return run.do(examples, begun)


def check_inputs(recipe: Recipe, observer: Observer) -> tuple[Reference, Examples]:
    """Resolves the model's name and reads the data, without torch.

    Raises:
        InputError: Either can't be used.
    """
    reference = resolve(recipe.model.name, recipe.model.revision)
    sources = [source for source in (recipe.data.source, recipe.data.held_out_source) if source]
    if (reference.kind == "hub" or any(map(is_hub, sources))) and prefer_cache_if_unreachable():
        observer.notify(Notice("the hub can't be reached; only what is in the local cache can be used"))
    observer.notify(Phase("reading data"))
    return reference, read_examples(recipe.data, recipe.training.seed)


def load_tokenizer_of(
    recipe: Recipe, reference: Reference, layout: str, observer: Observer
) -> tuple[PreTrainedTokenizerBase, str, list[str]]:
    """The tokenizer with its chat template, the template's name, and notices.

    Raises:
        ModelError: The model or the template can't be found or read.
    """
    from neftcli.models.gguf import is_converted
    from neftcli.models.loading import load_tokenizer
    from neftcli.models.templates import set_template

    if reference.kind == "gguf" and not is_converted(Path(reference.location)):
        observer.notify(Phase("converting the .gguf, once (about half a minute for 135 M parameters)"))
    else:
        observer.notify(Phase("loading the tokenizer"))
    tokenizer, notices = load_tokenizer(reference, recipe.model.trust_remote_code)
    template = "" if layout == "text" else set_template(tokenizer, recipe.model.chat_template)
    return tokenizer, template, notices


class _Run:
    """The parts of one run, in the order in which they are done."""

    def __init__(
        self, recipe: Recipe, reference: Reference, directory: RunDirectory, record: RunRecord, observer: Observer
    ) -> None:
        self.recipe, self.reference, self.directory = recipe, reference, directory
        self.record, self.observer = record, observer

    def tell(self, event: Event) -> None:
        """Tells the observer, and keeps what is a measurement in `metrics.jsonl`."""
        if isinstance(event, StepLogged | Evaluated):
            self.directory.append_line("metrics.jsonl", {"event": type(event).__name__, **asdict(event)})
        self.observer.notify(event)

    notify = tell

    def do(self, examples: Examples, begun: float) -> RunFinished:
        """Does the run."""
        recipe = self.recipe
        self.tell(Phase("loading libraries"))
        from neftcli.training.machine import choose_machine

        machine = choose_machine(recipe)
        tokenizer, prepared = self._tokenize(examples)
        model = self._load(machine)
        base = self._evaluate(0, model, prepared, machine)
        chosen = prepared.held_out_examples[: recipe.evaluation.samples]
        before = self._answers("answering held-out prompts before training", model, tokenizer, chosen, machine)
        self.tell(base)
        tuned, last = self._train(model, tokenizer, prepared, machine)
        after = self._answers("answering the same prompts after training", tuned, tokenizer, chosen, machine)
        samples = tuple(
            Sample(example.prompt(), example.answer(), old, new)
            for example, old, new in zip(chosen, before, after, strict=True)
        )
        for sample in samples:
            self.directory.append_line("samples.jsonl", asdict(sample))
        finished = RunFinished(
            run=str(self.directory.path),
            seconds=time.perf_counter() - begun,
            base_held_out_loss=base.held_out_loss,
            held_out_loss=last.held_out_loss,
            base_train_loss=base.train_loss,
            train_loss=last.train_loss,
            samples=samples,
            alpha=recipe.neftune.alpha,
            recipe=recipe.name,
        )
        self._save(tuned, tokenizer, finished)
        self.tell(finished)
        return finished

    def _tokenize(self, examples: Examples) -> tuple[PreTrainedTokenizerBase, Prepared]:
        tokenizer, template, notices = load_tokenizer_of(self.recipe, self.reference, examples.layout, self)
        self.tell(Phase("tokenising"))
        prepared = prepare(examples, self.recipe.data, tokenizer, template)
        self.record.update(data_sha256=prepared.counts.fingerprint)
        self.tell(prepared.counts)
        for notice in notices:
            self.tell(Notice(notice))
        return tokenizer, prepared

    def _load(self, machine: Machine) -> PreTrainedModel:
        import torch

        from neftcli.models.loading import fingerprint, load_model

        self.tell(Phase("loading the model"))
        quantization = self.recipe.quantization
        model = load_model(
            self.reference,
            machine.weights,
            four_bit=quantization.type == "nf4",
            double_quantization=quantization.double_quantization,
            compute_dtype=torch.bfloat16 if machine.bfloat16 else torch.float32,
            trust_remote_code=self.recipe.model.trust_remote_code,
        )
        if quantization.type == "none":
            model.to(machine.device)
        self.record.update(
            model_fingerprint=fingerprint(self.reference, model),
            trust_remote_code=self.recipe.model.trust_remote_code,
            device=machine.name,
            precision=machine.precision(),
        )
        return model

    def _evaluate(self, step: int, model: Any, prepared: Prepared, machine: Machine) -> Evaluated:
        from neftcli.evaluation.loss import mean_loss, row_losses

        settings = self.recipe.evaluation
        if step == 0:
            self.tell(Phase("evaluating the model before training"))
        sides = [prepared.held_out, prepared.train[: settings.probe_rows]]
        losses = [
            mean_loss(row_losses(model, rows, settings.per_device_eval_batch_size, machine.autocast()))
            for rows in sides
        ]
        return Evaluated(step, losses[0], losses[1])

    def _answers(
        self, phase: str, model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[Example], machine: Machine
    ) -> list[str]:
        from neftcli.evaluation.generation import generate_answers

        if not examples:
            return []
        self.tell(Phase(phase))
        prompts = [render_prompt(tokenizer, example) for example in examples]
        return generate_answers(model, tokenizer, prompts, self.recipe.evaluation.generation, machine.autocast())

    def _train(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, machine: Machine
    ) -> tuple[Any, Evaluated]:
        self.tell(Phase("preparing the trainer"))
        from neftcli.neftune import neftune
        from neftcli.training.isolation import require_isolation
        from neftcli.training.trainer import build_trainer, updates
        from neftcli.training.watch import Watch

        recipe = self.recipe
        watch = Watch(
            self,
            lambda step: self._evaluate(step, trainer.model, prepared, machine),
            recipe.evaluation.every,
            machine.device,
        )
        trainer = build_trainer(recipe, machine, model, tokenizer, prepared.train, self.directory, watch)
        tuned = trainer.model
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        self.tell(
            ModelReady(
                name=recipe.model.name,
                source=self.reference.source(),
                method=recipe.method(),
                parameters=int(model.num_parameters()),
                trainable=trainable,
                precision=machine.precision(),
                device=machine.name,
            )
        )
        if recipe.training.batching != "padded":
            rows = [trainer.train_dataset[index] for index in range(min(2, len(trainer.train_dataset)))]
            require_isolation(tuned, trainer._prepare_inputs(trainer.data_collator(rows)), type(model).__name__)
        total_steps = updates(recipe, [len(row.input_ids) for row in prepared.train])
        settings = recipe.neftune
        with neftune(
            tuned,
            settings.alpha,
            noise=settings.noise,
            length=settings.length,
            schedule=settings.schedule,
            total_steps=total_steps,
            seed=recipe.training.seed,
        ) as noise:
            watch.noise = noise
            self._measure_noise(trainer, noise)
            self.tell(TrainingStarted(str(self.directory.path), total_steps, recipe.training.num_train_epochs))
            trainer.train()
        assert watch.evaluated is not None  # noqa: S101 - the last step always evaluates
        return tuned, watch.evaluated

    def _measure_noise(self, trainer: Any, noise: Noise) -> None:
        from neftcli.neftune import Strength, measure_strength

        settings = self.recipe.neftune
        strength = Strength(0.0, 1.0, 1.0, 0.0)
        if settings.alpha > 0:
            rows = [trainer.train_dataset[index] for index in range(min(8, len(trainer.train_dataset)))]
            batch = trainer._prepare_inputs(trainer.data_collator(rows))
            strength = measure_strength(trainer.model, batch, noise)
        self.record.update(noise_to_embedding=strength.ratio)
        self.tell(
            NoiseMeasured(
                settings.alpha,
                settings.noise,
                settings.length,
                settings.schedule,
                strength.ratio,
                strength.embedding_scale,
                strength.layer_gain,
            )
        )
        for warning in strength.warnings():
            self.tell(Notice(warning))

    def _save(self, model: Any, tokenizer: PreTrainedTokenizerBase, finished: RunFinished) -> None:
        from neftcli.training.card import model_card

        self.tell(Phase("saving the model"))
        target = self.directory.model
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        (target / "README.md").write_text(
            model_card(self.recipe, self.reference, self.record.fields, finished), "utf-8"
        )
        if self.directory.checkpoints.is_dir() and not any(self.directory.checkpoints.iterdir()):
            self.directory.checkpoints.rmdir()
        results = {key: value for key, value in asdict(finished).items() if key.endswith("loss") or key == "seconds"}
        self.record.end("finished", results=results)


@contextmanager
def _recorded_end(record: RunRecord, directory: RunDirectory) -> Iterator[None]:
    """Writes into the record how a run ended that did not finish."""
    try:
        yield
    except KeyboardInterrupt:
        record.end("interrupted")
        raise Interrupted(
            Problem(
                f"stopped by Ctrl-C; no model was saved, the measurements so far are in {directory.path}",
                remedy="the same command again, from the beginning",
            )
        ) from None
    except NeftError as error:
        record.end("failed", error=str(error))
        raise
    except Exception as error:
        record.end("failed", error=f"{type(error).__name__}: {error}")
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            raise TrainingError(
                Problem(
                    "there was not enough memory",
                    str(error).splitlines()[0],
                    "--batch-size with half the rows, --gradient-checkpointing, --lora or --qlora",
                )
            ) from error
        raise


@contextmanager
def library_chatter(log: Path) -> Iterator[None]:
    """Sends what the libraries log and warn of to `log`, and switches their progress bars off."""
    import logging
    import os

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    quieted = _quiet_libraries()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        for logger, handlers, propagate in quieted:
            logger.handlers, logger.propagate = handlers, propagate


def _quiet_libraries() -> list[Any]:
    """Takes the libraries' own handlers away, so that the root's is the only one."""
    import logging

    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    changed = []
    for name in ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub", "torch"):
        logger = logging.getLogger(name)
        changed.append((logger, logger.handlers[:], logger.propagate))
        logger.handlers, logger.propagate = [], True
    return changed
