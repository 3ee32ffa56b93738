"""A run, from a recipe to a finished folder.

Bad data and bad names are refused before torch is imported and before a folder is made. Everything that a person may
want to know is told as an event and written to the run's own files.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.formats import Example
from neftcli.data.prepare import Prepared
from neftcli.data.tokens import prompt_and_reference, render_prompt
from neftcli.errors import InputError, Interrupted, NeftError, Problem, TrainingError
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
from neftcli.machine.chatter import library_chatter
from neftcli.machine.process import prepare_process
from neftcli.models.by_recipe import longest_prompt
from neftcli.models.names import Reference
from neftcli.recipe.loading import to_yaml
from neftcli.runs.directory import RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.training.inputs import check_inputs
from neftcli.training.materials import Materials, Shelf, introduce, load_materials

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.machine.device import Machine
    from neftcli.neftune import Noise
    from neftcli.recipe.schema import Recipe


def train(
    recipe: Recipe,
    observer: Observer,
    shelf: Shelf | None = None,
    and_then: Callable[[RunDirectory, Any, Materials], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> RunFinished:
    """Fine-tunes by `recipe` and returns what came of it.

    Args:
        recipe: The resolved recipe.
        observer: Is told what happens.
        shelf: Keeps what was loaded for the next run with the same model and rows; the weights are the same to the bit
            with it and without.
        and_then: Is given the finished run's folder, its tuned model and the materials.
        stop: Is asked behind every update whether to stop there.

    Raises:
        InputError: The recipe names a model or data that can't be used; nothing was started.
        TrainingError: Training started and could not go on; the run's record says so.
        Interrupted: Ctrl-C, or `stop` said so.
    """
    begun = time.perf_counter()
    prepare_process()
    materials = shelf.find(recipe) if shelf else None
    inputs = None if materials else check_inputs(recipe, observer)
    directory = RunDirectory.create(Path(recipe.output_dir), recipe.run_name())
    directory.write_text("recipe.yaml", to_yaml(recipe))
    record = RunRecord(directory, recipe)
    with _recorded_end(record, directory), library_chatter(directory.log):
        run = _Run(recipe, directory, record, observer, stop)
        if materials is None:
            assert inputs is not None  # noqa: S101 - read above
            materials = load_materials(recipe, *inputs, run)
            if shelf:
                shelf.keep(recipe, materials)
        else:
            introduce(materials.prepared, materials.notices, run)
        model = copy.deepcopy(materials.model) if shelf else materials.model
        finished, tuned = run.do(materials, model, begun)
        if and_then is not None:
            and_then(directory, tuned, materials)
    observer.notify(finished)
    return finished


class _Run:
    """The parts of one run, in the order in which they are done."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        record: RunRecord,
        observer: Observer,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.recipe, self.directory, self.record, self.observer = recipe, directory, record, observer
        self.stop = stop

    def notify(self, event: Event) -> None:
        """Tells the observer, and keeps what is a measurement in `metrics.jsonl`."""
        if isinstance(event, StepLogged | Evaluated):
            self.directory.append_line("metrics.jsonl", {"event": type(event).__name__, **asdict(event)})
        self.observer.notify(event)

    def do(self, materials: Materials, model: PreTrainedModel, begun: float) -> tuple[RunFinished, Any]:
        """Does the run with `model`, which is changed, and returns how it ended and the tuned model."""
        recipe, machine, prepared = self.recipe, materials.machine, materials.prepared
        self.record.update(
            data_sha256=prepared.counts.fingerprint,
            model_fingerprint=materials.fingerprint,
            trust_remote_code=recipe.model.trust_remote_code,
            device=machine.name,
            precision=machine.precision(),
        )
        settings = recipe.evaluation
        sides = (settings.per_device_eval_batch_size, settings.probe_rows)
        base = materials.once(sides, lambda: self._evaluate(0, model, prepared, machine))
        chosen = prepared.held_out_examples[: settings.samples]
        before = materials.once(
            (settings.samples, settings.generation, recipe.training.seed if settings.generation.do_sample else None),
            lambda: self._answers("answering held-out prompts before training", model, materials, chosen),
        )
        self.notify(base)
        tuned, last = self._train(materials, model)
        after = self._answers("answering the same prompts after training", tuned, materials, chosen)
        samples = tuple(
            Sample(*prompt_and_reference(example), old, new)
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
        self._conclude(finished, materials.reference)
        return finished, tuned

    def _evaluate(self, step: int, model: Any, prepared: Prepared, machine: Machine) -> Evaluated:
        from neftcli.evaluation.loss import mean_loss, row_losses

        settings = self.recipe.evaluation
        if step == 0:
            self.notify(Phase("evaluating the model before training"))
        sides = [prepared.held_out, prepared.train[: settings.probe_rows]]
        losses = [
            mean_loss(row_losses(model, rows, settings.per_device_eval_batch_size, machine.autocast(), self))
            for rows in sides
        ]
        return Evaluated(step, losses[0], losses[1])

    def _answers(self, phase: str, model: Any, materials: Materials, examples: list[Example]) -> list[str]:
        from neftcli.evaluation.generation import generate_answers

        if not examples:
            return []
        self.notify(Phase(phase))
        tokenizer, machine = materials.tokenizer, materials.machine
        prompts = [render_prompt(tokenizer, example) for example in examples]
        generation = self.recipe.evaluation.generation
        room = longest_prompt(model.config, generation.max_new_tokens)
        answers = generate_answers(
            model, tokenizer, prompts, generation, machine.autocast(), room, self.recipe.training.seed, self
        )
        return [answer.text for answer in answers]

    def _train(self, materials: Materials, model: PreTrainedModel) -> tuple[Any, Evaluated]:
        self.notify(Phase("preparing the trainer"))
        from neftcli.neftune import neftune
        from neftcli.training.isolation import require_isolation
        from neftcli.training.trainer import build_trainer, updates
        from neftcli.training.watch import Watch

        recipe, machine = self.recipe, materials.machine
        tokenizer, prepared, reference = materials.tokenizer, materials.prepared, materials.reference
        watch = Watch(
            self,
            lambda step: self._evaluate(step, trainer.model, prepared, machine),
            recipe.evaluation.every,
            machine.device,
            before_last=lambda: self._save(trainer.model, tokenizer, reference),
            stop=self.stop,
        )
        trainer = build_trainer(recipe, machine, model, tokenizer, prepared.train, self.directory, watch)
        tuned = trainer.model
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        self.notify(
            ModelReady(
                name=recipe.model.name,
                source=reference.source(),
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
        lengths = [len(row.input_ids) for row in prepared.train]
        total_steps = updates(recipe, lengths)
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
            epochs = recipe.training.num_train_epochs * total_steps / updates(recipe, lengths, whole=True)
            self.notify(TrainingStarted(str(self.directory.path), total_steps, epochs))
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
        self.notify(
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
            self.notify(Notice(warning))

    def _save(self, model: Any, tokenizer: PreTrainedTokenizerBase, reference: Reference) -> None:
        """Saves weights and tokenizer before the last evaluation, so that training is not lost if that fails."""
        self.notify(Phase("saving the model"))
        if self.recipe.adapter.type != "none":  # where the adapter finds its base model on another machine
            base = reference.alias.hub_id if reference.alias else reference.location
            model.peft_config["default"].base_model_name_or_path = base
            # No embedding is resized here; peft would ask the hub for the base model's size to make sure.
            model.save_pretrained(self.directory.model, save_embedding_layers=False)
        else:
            model.save_pretrained(self.directory.model)
        tokenizer.save_pretrained(self.directory.model)
        if self.directory.checkpoints.is_dir() and not any(self.directory.checkpoints.iterdir()):
            self.directory.checkpoints.rmdir()

    def _conclude(self, finished: RunFinished, reference: Reference) -> None:
        """Writes the model card and the results."""
        from neftcli.training.card import model_card

        card = model_card(self.recipe, reference, self.record.fields, finished)
        (self.directory.model / "README.md").write_text(card, "utf-8")
        results = {key: value for key, value in asdict(finished).items() if key.endswith("loss") or key == "seconds"}
        self.record.end("finished", results=results)


@contextmanager
def _recorded_end(record: RunRecord, directory: RunDirectory) -> Iterator[None]:
    """Writes into the record how a run ended that did not finish."""
    try:
        yield
    except KeyboardInterrupt:
        record.end("interrupted")
        saved = directory.model.is_dir()
        raise Interrupted(
            Problem(
                f"stopped by Ctrl-C; {'the' if saved else 'no'} model was saved, the measurements so far are in "
                f"{directory.path}",
                remedy=f"{directory.model} is the tuned model"
                if saved
                else "the same command again, from the beginning",
            )
        ) from None
    except InputError:  # nothing was started, so nothing stays
        shutil.rmtree(directory.path)
        raise
    except NeftError as error:
        record.end("failed", error=str(error))
        raise
    except Exception as error:
        from neftcli.machine.device import is_out_of_memory

        record.end("failed", error=f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            kept = f"; the tuned model is in {directory.model}" if directory.model.is_dir() else ""
            raise TrainingError(
                Problem(
                    f"there was not enough memory{kept}",
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                    "--batch-size with half the rows, --gradient-checkpointing, --lora or --qlora",
                )
            ) from error
        raise
