"""A run, from a recipe to a finished folder.

Bad data and bad names are refused before torch is imported and before a folder is made. Everything that a person may
want to know is told as an event and written to the run's own files.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.prepare import PreparedData
from neftcli.data.tokens import split_prompt_and_reference, tokenize_prompt
from neftcli.events import (
    Evaluated,
    Event,
    ModelReady,
    Notice,
    Observer,
    Phase,
    PhaseId,
    RunFinished,
    Sample,
    StepLogged,
    TrainingStarted,
)
from neftcli.models.adapters import adapter_notices, validate_adapter
from neftcli.models.limits import max_prompt_length
from neftcli.models.registry import ModelReference
from neftcli.recipe.loading import to_yaml
from neftcli.runs.baseline import find_paired_run
from neftcli.runs.checkpoints import Checkpoints
from neftcli.runs.directory import RECIPE, RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.system import distributed
from neftcli.system.files import atomic_write, file_sha256
from neftcli.system.library_output import library_chatter
from neftcli.system.process import prepare_process
from neftcli.training.ahead import touching_ahead
from neftcli.training.assets import AssetCache, Assets, hash_tokens, load_assets, report_data
from neftcli.training.distributed import broadcast_path, join_run, require_same_inputs, split_across_processes
from neftcli.training.failures import record_outcome, report_full_disk
from neftcli.training.inputs import read_inputs
from neftcli.training.resume import BaseEvaluation, ResumeState
from neftcli.training.signals import StopRequested, StopSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import RowLoss
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig
    from neftcli.training.callbacks import Watch

PADDED = (
    "{} does not isolate packed documents, so rows are padded; --set training.batching=bucketed "
    "puts rows of like length beside each other: fewer pads, another order"
)


@dataclass(frozen=True)
class TrainedRun:
    """A run that has just finished, with what is still in memory of it.

    Attributes:
        directory: Its folder.
        model: The tuned model.
        assets: What it was made from.
        losses: Of the prepared held-out rows, behind the last update; empty where that was measured by an earlier
            process.
    """

    directory: RunDirectory
    model: Any
    assets: Assets
    losses: Sequence[RowLoss]


def train(
    recipe: Recipe,
    observer: Observer,
    asset_cache: AssetCache | None = None,
    and_then: Callable[[TrainedRun], None] | None = None,
    stop: StopSignal | None = None,
    resume: ResumeState | None = None,
) -> RunFinished:
    """Fine-tunes by `recipe` and returns what came of it.

    Args:
        recipe: The resolved recipe.
        observer: Is told what happens.
        asset_cache: Keeps what was loaded for the next run with the same model and rows; the weights are bit-identical
            with and without it.
        and_then: Is given the finished run. What it raises is raised, and the run stays finished.
        stop: Says when to stop.
        resume: The run that is gone on with; None for a new one.

    Raises:
        InputError: The recipe names a model or data that can't be used; nothing was started.
        TrainingError: Training started and could not go on; the run's record says so.
        Preempted: A stop was asked for; what was done is saved.
        Interrupted: Stopped at once.
    """
    begun = time.perf_counter()
    stop = stop or StopSignal()
    prepare_process()
    if asset_cache:
        gc.collect()  # the trainer of the run before holds itself, and with it its model
    with stop.interruptible():
        assets = asset_cache.find(recipe) if asset_cache else None
        inputs = None if assets else read_inputs(recipe, observer)
    directory, resume = join_run(recipe, resume, stop)
    resume_state = resume or ResumeState(directory, None)
    written, paths = resume_state.written(recipe), resume_state.paths(recipe)
    with directory.lock():
        if resume:
            resume.require_as_found()
            begun -= resume.seconds()
        with report_full_disk(directory, new=resume is None):
            record = RunRecord(directory, written, resume.told() if resume else None, paths)
            if resume is None:
                directory.write_text(RECIPE, to_yaml(written))
                directory.assign_name(Path(recipe.output_dir), recipe.run_name())  # from here on it can be resumed
        with record_outcome(record, directory, new=resume is None), library_chatter(broadcast_path(directory).log):
            run = _Run(recipe, directory, record, observer, stop, resume_state, begun)
            with stop.interruptible():
                if assets is None:
                    assert inputs is not None  # noqa: S101 - read above
                    assets = load_assets(recipe, *inputs, run)
                    if asset_cache:
                        asset_cache.keep(recipe, assets)
                else:
                    report_data(assets.prepared, assets.notices, run)
                model = copy.deepcopy(assets.model) if asset_cache else assets.model
            finished, tuned = run.do(assets, model)
        if and_then is not None:  # behind the recorded end: whatever becomes of this, the run is finished
            with library_chatter(directory.log):
                and_then(TrainedRun(directory, tuned, assets, run.losses))
    observer.notify(finished)
    distributed.destroy_process_group()
    return finished


class _Run:
    """The parts of one run, in the order in which they are done."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        record: RunRecord,
        observer: Observer,
        stop: StopSignal,
        resume_state: ResumeState,
        begun: float,
    ) -> None:
        self.recipe, self.directory, self.record, self.observer = recipe, directory, record, observer
        self.stop, self.resume_state, self.begun = stop, resume_state, begun
        self.written = resume_state.written(recipe)  # as the run's files hold it
        self.losses: Sequence[RowLoss] = ()
        self.adapter_notices: Sequence[str] = ()

    def notify(self, event: Event) -> None:
        """Tells the observer, and keeps what is a measurement in `metrics.jsonl`."""
        if isinstance(event, StepLogged | Evaluated):
            self.directory.append_line("metrics.jsonl", {"event": event.id, **asdict(event)})
        self.observer.notify(event)

    def do(self, assets: Assets, model: PreTrainedModel) -> tuple[RunFinished, Any]:
        """Does the run with `model`, which is changed, and returns how it ended and the tuned model."""
        recipe, compute, prepared = self.recipe, assets.compute, assets.prepared
        validate_adapter(model, recipe.adapter)
        self.adapter_notices = adapter_notices(model, recipe.adapter)
        for notice in self.adapter_notices:
            self.notify(Notice(notice))
        found = {
            "data_sha256": prepared.counts.fingerprint,
            "tokens_sha256": hash_tokens(prepared.train),
            "model_fingerprint": assets.fingerprint,
        }
        require_same_inputs(found)
        self.resume_state.require_same(found, recipe)
        if self.record.fields["resumed"]:
            self.resume_state.tell(self)
        self.directory.write_text(RECIPE, to_yaml(self.written))
        self.record.update(
            **found,
            trust_remote_code=recipe.model.trust_remote_code,
            device=compute.device_name,
            precision=compute.precision(),
        )
        with self.stop.interruptible():
            base = self._base(assets, model)
        trainer, last = self._train(assets, model, base, found)
        tuned = trainer.model
        after = None
        with suppress(StopRequested), self.stop.interruptible():
            after = self._answers(PhaseId.GENERATING_SAMPLES, tuned, assets)
        after = distributed.broadcast_object(after)
        if after is None:
            trainer.save_final_checkpoint(last.step)
            raise StopRequested
        examples = prepared.held_out_examples
        samples = tuple(
            Sample(*split_prompt_and_reference(example), old, new)
            for example, old, new in zip(examples, base.answers, after, strict=False)
        )
        for sample in samples:
            self.directory.append_line("samples.jsonl", asdict(sample))
        finished = RunFinished(
            run=str(self.directory.path),
            seconds=time.perf_counter() - self.begun,
            base_held_out_loss=base.evaluated.held_out_loss,
            held_out_loss=last.held_out_loss,
            base_train_loss=base.evaluated.train_loss,
            train_loss=last.train_loss,
            samples=samples,
            alpha=recipe.neftune.alpha,
            paired_run=find_paired_run(self.written, self.directory.path.parent),
        )
        if distributed.is_main_process():
            self._conclude(finished, assets.reference, prepared.counts.format)
        return finished, tuned

    def _base(self, assets: Assets, model: PreTrainedModel) -> BaseEvaluation:
        """What the model can do before training; a resumed run knows it already."""
        if self.resume_state.checkpoint:
            before = self.resume_state.checkpoint.progress
            last = before["evaluated"]["step"] if before["evaluated"] else 0
            damaged = self.directory.rewind(self.resume_state.step, last)
            if damaged:
                self.notify(Notice(f"metrics.jsonl: {damaged} damaged line{'s' if damaged > 1 else ''} removed"))
            return BaseEvaluation(Evaluated(**before["base"]["evaluated"]), before["base"]["answers"])
        self.directory.clear_results()
        settings = self.recipe.evaluation
        sides = (settings.per_device_eval_batch_size, settings.probe_rows)
        evaluated = assets.once(sides, lambda: self._evaluate(0, model, assets.prepared, assets.compute))
        seed = self.recipe.training.seed if settings.generation.do_sample else None
        answers = assets.once(
            (settings.samples, settings.generation, seed),
            lambda: self._answers(PhaseId.GENERATING_BASE_SAMPLES, model, assets),
        )
        self.notify(evaluated)
        return BaseEvaluation(evaluated, answers)

    def _evaluate(self, step: int, model: Any, prepared: PreparedData, compute: ComputeConfig) -> Evaluated:
        from neftcli.evaluation.loss import mean_loss, row_losses

        settings = self.recipe.evaluation
        self.notify(Phase(PhaseId.EVALUATING if step else PhaseId.EVALUATING_BASE))
        size = settings.per_device_eval_batch_size

        def measure(rows: Sequence[TokenRow]) -> Sequence[RowLoss]:
            with self.stop.interruptible():
                return row_losses(model, rows, size, compute.autocast(), self)

        self.losses = ()
        held_out, probe = (
            split_across_processes(rows, measure) for rows in (prepared.held_out, prepared.train[: settings.probe_rows])
        )
        self.losses = held_out
        return Evaluated(step, mean_loss(held_out), mean_loss(probe))

    def _answers(self, phase: PhaseId, model: Any, assets: Assets) -> list[str]:
        from neftcli.evaluation.generation import generate_answers

        examples = assets.prepared.held_out_examples[: self.recipe.evaluation.samples]
        if not examples or not distributed.is_main_process():
            return []
        self.notify(Phase(phase))
        chat, compute = assets.chat, assets.compute
        prompts = [tokenize_prompt(chat, example) for example in examples]
        generation = self.recipe.evaluation.generation
        room = max_prompt_length(model.config, generation.max_new_tokens)
        answers = generate_answers(
            model, chat, prompts, generation, compute.autocast(), room, self.recipe.training.seed, self
        )
        return [answer.text for answer in answers]

    def _train(
        self, assets: Assets, model: PreTrainedModel, base: BaseEvaluation, found: dict[str, str]
    ) -> tuple[Any, Evaluated]:
        self.notify(Phase(PhaseId.PREPARING_TRAINER))
        parameters = int(model.num_parameters())  # the trainer puts adapters into the same model
        with touching_ahead(self.recipe, assets.compute, model, assets.prepared):
            recipe, trainer, watch = self._prepare(assets, model, base, found)
        from neftcli.neftune import neftune
        from neftcli.training.disk_space import require_space
        from neftcli.training.noise_strength import report_noise_strength
        from neftcli.training.trainer import num_training_steps

        tuned = trainer.model
        self._tell_of_the_model(parameters, tuned, assets)
        require_space(tuned, recipe, self.directory, self)
        lengths = assets.prepared.train.lengths()
        total_steps = num_training_steps(recipe, lengths)
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
            self.record.update(noise_to_embedding=report_noise_strength(trainer, noise, settings, self))
            epochs = recipe.training.num_train_epochs * total_steps / num_training_steps(recipe, lengths, whole=True)
            self.notify(TrainingStarted(str(self.directory.path), total_steps, epochs))
            self._do_updates(trainer, watch, total_steps)
        if watch.evaluated is None or watch.evaluated.step != total_steps:  # it was stopped behind the last update
            watch.evaluate_now(total_steps, last=True)
        if watch.evaluated is None or watch.evaluated.step != total_steps:  # and again
            raise StopRequested
        if not self.directory.model.is_dir():  # the checkpoint was saved behind the last evaluation
            self._save(tuned, assets)
        return trainer, watch.evaluated

    def _prepare(
        self, assets: Assets, model: PreTrainedModel, base: BaseEvaluation, found: dict[str, str]
    ) -> tuple[Recipe, Any, Watch]:
        """The recipe with its batching settled, the trainer, and what watches it."""
        from neftcli.training.callbacks import Watch
        from neftcli.training.packing_check import resolve_batching
        from neftcli.training.trainer import build_trainer

        compute, prepared = assets.compute, assets.prepared
        batching = resolve_batching(self.recipe.training.batching, model, fused=self.recipe.training.fused_layers)
        recipe = replace(self.recipe, training=replace(self.recipe.training, batching=batching))
        if batching == "padded" and self.recipe.training.batching == "auto":
            self.notify(Notice(PADDED.format(type(model).__name__)))
        watch = Watch(
            self,
            lambda step: self._evaluate(step, trainer.model, prepared, compute),
            recipe,
            compute.device,
            before_last=lambda: self._save(trainer.model, assets),
            stop=self.stop,
            base=base,
            begun=self.begun,
        )
        checkpoints = Checkpoints(self.directory.checkpoints, recipe.checkpoints.save_total_limit)
        self.record.update(batching=batching)
        facts = {**found, **self.record.facts(), "recipe": to_yaml(self.written)}
        trainer = build_trainer(
            recipe, compute, model, assets.chat.tokenizer, prepared.train, checkpoints, facts, watch
        )
        watch.trainer = trainer
        return recipe, trainer, watch

    def _do_updates(self, trainer: Any, watch: Watch, total_steps: int) -> None:
        """Trains from the first update, or from behind that of the checkpoint."""
        checkpoint = self.resume_state.checkpoint
        with self.stop.finishing_steps():
            if checkpoint is None:
                trainer.train()
                return
            watch.resume(checkpoint.progress)
            if checkpoint.step < total_steps:
                trainer.train(resume_from_checkpoint=str(checkpoint.path))
            else:
                trainer.load_weights(checkpoint.path)

    def _tell_of_the_model(self, parameters: int, tuned: Any, assets: Assets) -> None:
        compute = assets.compute
        self.notify(
            ModelReady(
                name=self.recipe.model.name,
                source=assets.reference.describe_source(),
                method=self.recipe.method(),
                parameters=parameters,
                trainable=sum(p.numel() for p in tuned.parameters() if p.requires_grad),
                precision=compute.precision(),
                device=compute.device_name,
            )
        )

    def _save(self, model: Any, assets: Assets) -> None:
        """Saves weights and tokenizer before the last evaluation, so that training is not lost if that fails."""
        self.notify(Phase(PhaseId.SAVING_MODEL))
        from neftcli.models.settings_files import (
            read_base_settings,
            settings_reference,
            write_config,
            write_generation_config,
            write_tokenizer,
        )
        from neftcli.training.trainer import save_weights

        reference = assets.reference
        if not distributed.is_main_process():
            return
        base = settings_reference(reference)
        config, generation = read_base_settings(base)
        tokenizer = assets.chat.tokenizer
        if self.recipe.adapter.type != "none":  # where peft finds the base model, on another machine if the hub has it
            there = reference.portable_name() if reference.alias else base.location
            model.peft_config["default"].base_model_name_or_path = there
            model.peft_config["default"].revision = reference.revision
        with self.directory.replace_model() as folder:
            save_weights(model, folder)
            if self.recipe.adapter.type == "none":
                write_config(folder, config, str(model.dtype).removeprefix("torch."))
            write_generation_config(folder, generation, config, assets.chat.stop_token_ids, tokenizer.pad_token_id)
            write_tokenizer(folder, tokenizer, base)

    def _needs(self) -> list[str]:
        """Notes on the version of transformers that the saved folder needs."""
        from neftcli.models.settings_files import needs_transformers_5

        setting = needs_transformers_5(self.directory.model)
        return [f"like its base model it needs transformers 5: {setting}"] if setting else []

    def _conclude(self, finished: RunFinished, reference: ModelReference, row_format: str) -> None:
        """Write the model card and the results, and remove the checkpoints."""
        from neftcli.training.model_card import model_card

        weights = {file.name: file_sha256(file) for file in sorted(self.directory.model.glob("*.safetensors"))}
        self.record.update(weights_sha256=weights)
        notes = [*self.adapter_notices, *self._needs()]
        card = model_card(self.written, reference, self.record.fields, finished, notes=notes, chat=row_format != "text")
        atomic_write(self.directory.model / "README.md", card)
        results = {key: value for key, value in asdict(finished).items() if key.endswith("loss") or key == "seconds"}
        self.record.end("finished", results=results)
        if not self.directory.remove_checkpoints():
            self.notify(Notice(f"{self.directory.checkpoints} can't be removed; it is not needed any more"))
