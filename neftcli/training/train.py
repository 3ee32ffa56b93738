"""Train a recipe: set up the run, measure the base model, train, measure again, save and report.

Bad data and bad names are rejected before torch is imported and before a folder is created. Progress and measurements
are events; measurements are also written to the run's files.
"""

from __future__ import annotations

import copy
import gc
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import split_prompt_and_reference
from neftcli.events import (
    Evaluated,
    Event,
    ModelReady,
    ModelSelected,
    NoiseMeasured,
    Notice,
    Observer,
    Phase,
    PhaseId,
    RunFinished,
    Sample,
    StepLogged,
    TrainingStarted,
)
from neftcli.models.adapters import adapter_notices
from neftcli.models.freezing import freeze_notices
from neftcli.models.new_tokens import validate_layers
from neftcli.models.pissa import require_float32_weights
from neftcli.recipe.loading import to_yaml
from neftcli.runs.baseline import find_paired_run
from neftcli.runs.checkpoints import Checkpoint, CheckpointFolder
from neftcli.runs.directory import METRICS, RECIPE, SAMPLES, RunDirectory
from neftcli.runs.record import RunRecord
from neftcli.system import distributed
from neftcli.system.files import atomic_write, file_sha256
from neftcli.system.libraries import capture_library_output, prepare_libraries
from neftcli.trackers.registry import require_trackers
from neftcli.training.assets import AssetCache, Assets, hash_tokens, load_assets
from neftcli.training.collectives import broadcast_path, join_run, require_same_inputs
from neftcli.training.evaluator import Evaluator
from neftcli.training.failures import record_outcome, report_full_disk, require_space, saved_bytes
from neftcli.training.inputs import read_inputs, report_data
from neftcli.training.progress import EvaluationSchedule, SavePlan, TrainingClock
from neftcli.training.resume import BaseEvaluation, LossEvaluation, ResumeState, RunState, record_paths
from neftcli.training.signals import StopRequested, StopSignal
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from neftcli.evaluation.loss import RowLoss
    from neftcli.neftune import Noise
    from neftcli.recipe.schema import Recipe
    from neftcli.training.reporting import Reporter
    from neftcli.training.trainer import NeftTrainer

PADDED = (
    "{} does not isolate packed documents, so rows are padded; --set training.batching=bucketed "
    "batches rows of similar length: fewer pads, a different order"
)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, with its objects that are still in memory.

    Attributes:
        directory: Its folder.
        model: The tuned model.
        assets: Rows, tokenizer and the base model.
        losses: Losses of the held-out rows with these weights; empty if an earlier process measured them.
    """

    directory: RunDirectory
    model: Any
    assets: Assets
    losses: Sequence[RowLoss]


def train(
    recipe: Recipe,
    observer: Observer,
    asset_cache: AssetCache | None = None,
    on_finish: Callable[[TrainedRun], None] | None = None,
    stop: StopSignal | None = None,
    resume: ResumeState | None = None,
) -> RunFinished:
    """Fine-tune a model with a recipe and return the results.

    Args:
        recipe: The resolved recipe.
        observer: Receives the events.
        asset_cache: Cache of model and rows for the next run with the same ones; the weights are bit-identical with and
            without it.
        on_finish: Called with the finished run. Its exceptions propagate; the run stays finished.
        stop: Requests a stop.
        resume: The run to resume; None for a new one.

    Raises:
        InputError: The recipe names a model or data that can't be used; nothing was started.
        TrainingError: Training started and failed; the run's record says so.
        Preempted: It was stopped, and a checkpoint was saved.
        Interrupted: It was stopped at once.
    """
    started = time.perf_counter()
    stop = stop or StopSignal()
    prepare_libraries()
    require_trackers(recipe.training.report_to)
    if asset_cache:
        gc.collect()  # the trainer of the previous run is in a reference cycle, with its model
    with stop.interruptible():
        assets = asset_cache.get(recipe) if asset_cache else None
        inputs = None if assets else read_inputs(recipe, observer)

    directory, resume = join_run(recipe, resume, stop)
    with directory.lock():
        if resume:
            resume.require_current()
            started -= resume.seconds
        with report_full_disk(directory, new=resume is None):
            written = resume.relocate_paths(recipe) if resume else recipe
            record = _record_start(directory, recipe, written, resume)
        with (
            record_outcome(record, directory, new=resume is None),
            capture_library_output(broadcast_path(directory).log),
        ):
            run = _Run(recipe, written, directory, record, observer, stop, resume, started)
            stopped = None if resume else directory.stopped_namesake(recipe.output_folder(), recipe.run_name())
            if stopped is not None:
                command = f"neft train --resume {shlex.quote(str(stopped))}"
                run.notify(Notice(f"{stopped} was stopped earlier; this is a new run, {command} resumes that one"))
            with stop.interruptible():
                if assets is not None:
                    report_data(assets.prepared, assets.notices, run)
                elif inputs is not None:
                    assets = load_assets(recipe, *inputs, run)
                    if asset_cache:
                        asset_cache.put(recipe, assets)
                assert assets is not None  # noqa: S101 - cached or loaded
                model = copy.deepcopy(assets.model) if asset_cache else assets.model
            try:
                finished, trained = run.execute(assets, model)
            except BaseException as error:
                run.end_reports(error)
                raise
        if on_finish is not None:  # the run's end is recorded: an error here does not change it
            with capture_library_output(directory.log):
                on_finish(trained)
    observer.notify(finished)
    distributed.destroy_process_group()
    return finished


def _record_start(directory: RunDirectory, recipe: Recipe, written: Recipe, resume: ResumeState | None) -> RunRecord:
    """Write the record; for a new run also the recipe, and give its folder the final name, so that it can resume."""
    if resume is not None:
        return RunRecord(directory, written, resume.to_record(), resume.record_paths(recipe))
    record = RunRecord(directory, written, None, record_paths(directory, recipe))
    directory.write_text(RECIPE, to_yaml(written))
    directory.assign_name(recipe.output_folder(), recipe.run_name())
    return record


@dataclass(frozen=True)
class _Run:
    """A run that was set up; `execute` does the rest.

    Attributes:
        recipe: The resolved recipe.
        written: The recipe as in the run's files: its paths are relative to the folder in which the run was started.
        directory: The run's folder.
        record: Its record.
        observer: Receives the events.
        stop: Requests a stop.
        resume: The state that it resumes from; None for a new run.
        started: When it started, by time.perf_counter, less the seconds that earlier processes took.
        reporters: The reporter to the trackers; none if there are no trackers, or in other processes.
    """

    recipe: Recipe
    written: Recipe
    directory: RunDirectory
    record: RunRecord
    observer: Observer
    stop: StopSignal
    resume: ResumeState | None
    started: float
    reporters: list[Reporter] = field(default_factory=list)

    def notify(self, event: Event) -> None:
        """Pass an event on to the observer, and write measurements to `metrics.jsonl`."""
        if isinstance(event, StepLogged | Evaluated):
            self.directory.append_line(METRICS, {"event": event.id, **asdict(event)})
        self.observer.notify(event)
        if isinstance(event, Evaluated | NoiseMeasured) and self.reporters:
            self.reporters[0].report(event)

    def start_reports(self) -> None:
        """Start or resume the runs of the trackers, in the main process, before metrics of later steps are removed."""
        if self.recipe.training.report_to and distributed.is_main_process():
            from neftcli.training.reporting import Reporter

            self.reporters.append(Reporter(self.written, self.directory, self.record, self.resume, self))

    def end_reports(self, error: BaseException) -> None:
        """End the runs of the trackers after an error; a further signal leaves them as they are."""
        statuses: dict[type, str] = {StopRequested: "preempted", KeyboardInterrupt: "interrupted"}
        status = statuses.get(type(error), "failed")
        if self.record.fields["status"] != "finished":
            for reporter in self.reporters:
                with suppress(OSError):  # the record, on a full disk
                    reporter.finish(status)

    def execute(self, assets: Assets, model: PreTrainedModel) -> tuple[RunFinished, TrainedRun]:
        """Measure, train and save `model`, in place."""
        # Set up.
        frozen = self.recipe.training.freeze
        validate_layers(model, self.recipe)
        require_float32_weights(self.recipe, assets.compute)
        notes = [*adapter_notices(model, self.recipe.adapter), *freeze_notices(model, frozen)]
        for note in notes:
            self.notify(Notice(note))
        hashes = self._check_inputs(assets)
        self.start_reports()
        evaluator = Evaluator(self.recipe, assets, self, self.stop)

        # Measure the base model.
        with self.stop.interruptible():
            if self._checkpoint:
                base = self._restore_base(self._checkpoint)
            else:
                base = self._measure_base(evaluator, assets, model)

        # Train.
        self.notify(Phase(PhaseId.PREPARING_TRAINER))
        parameters = int(model.num_parameters())  # the trainer puts adapters into the same model
        recipe = self._resolve_batching(model)
        run_state = RunState(base, self.started, {**hashes, **self.record.facts()}, to_yaml(self.written))
        trainer = self._build_trainer(recipe, assets, model, run_state)
        self._report_model(assets, trainer.model, parameters)
        last = self._fit(recipe, trainer, assets, evaluator, run_state)
        kept = self._select_model(recipe, trainer, assets, run_state, last)

        # Measure the tuned model.
        answers = self._answer_again(evaluator, trainer, last.step)

        # Report.
        finished = self._report(assets, base, kept.measured, answers)
        if distributed.is_main_process():
            self._finish(finished, assets, notes)
        return finished, TrainedRun(self.directory, trainer.model, assets, kept.held_out)

    def _check_inputs(self, assets: Assets) -> dict[str, str]:
        """Compare the inputs between processes and with the checkpoint, record them, and return their hashes."""
        recipe, compute = self.recipe, assets.compute
        hashes = {
            "data_sha256": assets.prepared.counts.fingerprint,
            "tokens_sha256": hash_tokens(assets.prepared.train),
            "model_fingerprint": assets.fingerprint,
        }
        require_same_inputs(hashes)
        if self.resume:
            self.resume.require_inputs_of_checkpoint(hashes, recipe)
            self.resume.report(self)
            self.directory.write_text(RECIPE, to_yaml(self.written))  # with the changes that were accepted
        self.record.update(
            **hashes,
            row_format=assets.prepared.counts.format,
            trust_remote_code=recipe.model.trust_remote_code,
            device=compute.hardware.describe(),
            precision=compute.precision(),
        )
        return hashes

    @property
    def _checkpoint(self) -> Checkpoint | None:
        return self.resume.checkpoint if self.resume else None

    def _restore_base(self, checkpoint: Checkpoint) -> BaseEvaluation:
        """Return the base model's measurements of the checkpoint, and remove later results of the run."""
        saved = checkpoint.progress
        evaluated_step = saved["evaluated"]["step"] if saved["evaluated"] else 0
        damaged = self.directory.rewind(checkpoint.step, evaluated_step)
        if damaged:
            self.notify(Notice(f"{METRICS}: {count_noun(damaged, 'damaged line')} removed"))
        self.directory.restore_best(checkpoint.path)
        base = BaseEvaluation.restore(saved["base"])
        self.observer.notify(base.evaluated)  # it is in metrics.jsonl already
        return base

    def _measure_base(self, evaluator: Evaluator, assets: Assets, model: PreTrainedModel) -> BaseEvaluation:
        """Measure the base model, unless a run with the same assets has done so."""
        self.directory.clear_results()
        settings = self.recipe.evaluation

        def evaluate() -> tuple[LossEvaluation, float]:
            started = time.perf_counter()
            return evaluator.evaluate(model, step=0), time.perf_counter() - started

        def answer() -> tuple[list[str], float]:
            started = time.perf_counter()
            answers = evaluator.generate_answers(model, PhaseId.GENERATING_BASE_SAMPLES)
            return answers, time.perf_counter() - started

        sizes = (settings.per_device_eval_batch_size, settings.probe_rows)
        answered = (settings.during, settings.during_rows, settings.generation) if settings.during else ()
        evaluation, evaluation_seconds = assets.measure_once((*sizes, *answered), evaluate)
        seed = self.recipe.training.seed if settings.generation.do_sample else None
        answers, answer_seconds = assets.measure_once((settings.samples, settings.generation, seed), answer)
        self.notify(evaluation.measured)
        return BaseEvaluation(evaluation.measured, answers, evaluation_seconds, answer_seconds)

    def _resolve_batching(self, model: PreTrainedModel) -> Recipe:
        """Return the recipe with its batching resolved, which depends on the model."""
        from neftcli.training.packing_check import resolve_batching

        training = self.recipe.training
        batching = resolve_batching(training.batching, model, fused=training.fused_layers)
        if batching == "padded" and training.batching == "auto":
            self.notify(Notice(PADDED.format(type(model).__name__)))
        self.record.update(batching=batching)
        return replace(self.recipe, training=replace(training, batching=batching))

    def _build_trainer(
        self, recipe: Recipe, assets: Assets, model: PreTrainedModel, run_state: RunState
    ) -> NeftTrainer:
        from neftcli.training.trainer import NeftTrainer

        run_state.best_metric = recipe.training.best_metric
        if self._checkpoint:
            run_state.restore(self._checkpoint.progress)
        checkpoints = CheckpointFolder(self.directory.checkpoints, recipe.checkpoints.save_total_limit)
        tokenizer, rows = assets.chat.tokenizer, assets.prepared.train
        return NeftTrainer(recipe, assets.compute, model, tokenizer, rows, checkpoints, run_state)

    def _report_model(self, assets: Assets, tuned: Any, parameters: int) -> None:
        self.notify(
            ModelReady(
                name=self.recipe.model.name,
                source=assets.reference.source(),
                method=self.recipe.method(),
                parameters=parameters,
                trainable=sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad),
                precision=assets.compute.precision(),
                device=assets.compute.hardware,
            )
        )

    def _fit(
        self, recipe: Recipe, trainer: NeftTrainer, assets: Assets, evaluator: Evaluator, run_state: RunState
    ) -> Evaluated:
        """Train the remaining steps with noise, and return the losses after the last one.

        Raises:
            StopRequested: A stop was requested; there is a checkpoint.
        """
        from neftcli.neftune import neftune
        from neftcli.training.callbacks import (
            CheckpointCallback,
            EvaluationCallback,
            NoiseCallback,
            ProgressCallback,
        )
        from neftcli.training.trainer import num_training_steps

        keeps_best, patience = recipe.training.keep == "best", recipe.training.patience
        model_bytes, checkpoint_bytes = saved_bytes(trainer.model, recipe)
        # A better model is written before the best one so far is removed.
        require_space(model_bytes * (2 if keeps_best else 1), checkpoint_bytes, recipe, self.directory.path, self)
        lengths, settings, base = assets.prepared.train.lengths(), recipe.neftune, run_state.base
        total_steps = run_state.total_steps = num_training_steps(recipe, lengths)
        epochs = recipe.training.num_train_epochs * total_steps / num_training_steps(recipe, lengths, whole=True)
        if keeps_best:
            run_state.require_best_model(self._checkpoint, total_steps)

        schedule = EvaluationSchedule(total_steps, recipe.evaluation.every)
        saves = SavePlan(recipe.checkpoints.save_steps, recipe.checkpoints.save_minutes, checkpoint_bytes, model_bytes)
        clock = TrainingClock(schedule, saves, base.evaluation_seconds, base.answer_seconds)
        evaluation = EvaluationCallback(
            self,
            clock,
            schedule,
            measure=lambda step: evaluator.evaluate(trainer.model, step),
            save_model=lambda: self._save_model(trainer, assets),
            run_state=run_state,
            stop=self.stop,
            save_best=(lambda: self._save_model(trainer, assets, self.directory.best)) if keeps_best else None,
            patience=patience,
        )
        with neftune(
            trainer.model,
            settings.alpha,
            noise=settings.noise,
            length=settings.length,
            schedule=settings.schedule,
            total_steps=total_steps,
            seed=recipe.training.seed,
        ) as noise:
            self._measure_noise(trainer, noise)
            trainer.add_callback(NoiseCallback(noise))
            trainer.add_callback(ProgressCallback(self, clock, run_state, assets.compute.device))
            for reporter in self.reporters:
                reporter.begin(trainer)
            trainer.add_callback(evaluation)
            trainer.add_callback(CheckpointCallback(self, clock, recipe.checkpoints, self.stop))
            self.notify(TrainingStarted(str(self.directory.path), total_steps, epochs))
            with self.stop.finishing_steps():
                self._train_steps(trainer, evaluation, run_state, patience)
        losses = run_state.evaluated
        if self.stop.stopping or losses is None or not run_state.is_over(losses.step, total_steps, patience):
            raise StopRequested
        return losses

    def _select_model(
        self, recipe: Recipe, trainer: NeftTrainer, assets: Assets, run_state: RunState, last: Evaluated
    ) -> LossEvaluation:
        """Make the best weights, or those of the last step, the run's model, and return their losses."""
        training, best = recipe.training, run_state.best
        kept = run_state.last_evaluation or LossEvaluation(last, ())
        if training.keep == "best" and best is not None and best.measured.step != last.step:
            kept = best
            if not run_state.trained:
                trainer.load_model(self.directory.best)
                self.directory.promote_best()
        self.directory.remove_best()
        if not self.directory.model.is_dir():  # training ended early, or an earlier process did the last evaluation
            self._save_model(trainer, assets)
        run_state.trained = True
        if training.selects_weights():
            selected = ModelSelected(
                step=kept.measured.step,
                held_out_loss=kept.measured.held_out_loss,
                last_step=last.step,
                last_held_out_loss=last.held_out_loss,
                total_steps=run_state.total_steps,
                keep=training.keep,
                patience=training.patience if last.step < run_state.total_steps else None,
                metric=training.best_metric,
                value=kept.measured.value(training.best_metric),
                last_value=last.value(training.best_metric),
            )
            self.record.update(selected=asdict(selected))
            if selected.keep == "best" or selected.patience is not None:
                self.notify(selected)
        return kept

    def _measure_noise(self, trainer: NeftTrainer, noise: Noise) -> None:
        """Measure the noise on the first rows, record it, and warn if it is unusually weak or strong."""
        from neftcli.neftune import Strength

        settings = self.recipe.neftune
        strength = Strength(ratio=0.0, embedding_scale=1.0, layer_gain=1.0, noise_rms=0.0, table_rms=1.0)
        if settings.alpha > 0:
            strength = trainer.measure_noise(noise)
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
        for warning in strength.warnings(settings.alpha):
            self.notify(Notice(warning))
        self.record.update(noise_to_embedding=strength.ratio)

    def _train_steps(self, trainer: NeftTrainer, evaluation: Any, run_state: RunState, patience: int | None) -> None:
        """Train from the first step, or from the checkpoint, whose evaluation a stop may have postponed.

        Raises:
            StopRequested: A stop was requested during that evaluation; the checkpoint stays.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            trainer.train()
            return
        was_evaluated = run_state.evaluated_step == checkpoint.step
        is_postponed = evaluation.is_due(checkpoint.step) and not was_evaluated
        total_steps = run_state.total_steps
        if is_postponed or run_state.is_over(checkpoint.step, total_steps, patience):
            trainer.load_weights(checkpoint.path)
        if is_postponed:
            evaluation.evaluate(checkpoint.step)
            if run_state.evaluated_step != checkpoint.step:
                raise StopRequested
        if not run_state.is_over(checkpoint.step, total_steps, patience):
            trainer.train(resume_from_checkpoint=str(checkpoint.path))

    def _save_model(self, trainer: NeftTrainer, assets: Assets, target: Path | None = None) -> None:
        """Save weights and tokenizer in `target`, by default the folder of the run's model."""
        from neftcli.models.gguf import settings_reference
        from neftcli.models.settings_files import (
            read_base_settings,
            write_config,
            write_generation_config,
            write_tokenizer,
        )

        if target is None:  # the best weights so far are saved without interrupting the display
            self.notify(Phase(PhaseId.SAVING_MODEL))
        if not distributed.is_main_process():
            return
        reference, tokenizer = assets.reference, assets.chat.tokenizer
        model: Any = trainer.model
        base = settings_reference(reference)
        config, generation = read_base_settings(base)
        has_adapter = self.recipe.adapter.type != "none"
        if has_adapter:  # peft finds the base model there, on a different machine too if the hub has it
            location = reference.portable_name() if reference.alias else base.location
            model.peft_config["default"].base_model_name_or_path = location
            model.peft_config["default"].revision = reference.revision
        with self.directory.replace_model(target) as folder:
            trainer.save_model_files(folder)
            if not has_adapter:
                write_config(folder, config, str(model.dtype).removeprefix("torch."))
            write_generation_config(folder, generation, config, assets.chat.stop_token_ids, tokenizer.pad_token_id)
            write_tokenizer(folder, tokenizer, base, changed=bool(self.recipe.model.new_tokens))

    def _answer_again(self, evaluator: Evaluator, trainer: NeftTrainer, step: int) -> list[str]:
        """Generate the tuned model's answers to the prompts that the base model has answered.

        Raises:
            StopRequested: A stop was requested before the end; there is a checkpoint after `step`.
        """
        answers = None
        with suppress(StopRequested), self.stop.interruptible():
            answers = evaluator.generate_answers(trainer.model, PhaseId.GENERATING_SAMPLES)
        answers = distributed.broadcast_object(answers)
        if answers is None:
            trainer.save_final_checkpoint(step)
            raise StopRequested
        return answers

    def _report(self, assets: Assets, base: BaseEvaluation, last: Evaluated, answers: list[str]) -> RunFinished:
        """Write the samples and return the results."""
        samples: list[Sample] = []
        for example, before, after in zip(assets.prepared.held_out_examples, base.answers, answers, strict=False):
            prompt, reference = split_prompt_and_reference(example)
            shown_prompt = example.transcript() if example.turns else prompt  # with roles if there are several turns
            samples.append(Sample(shown_prompt, reference, before, after))
            self.directory.append_line(SAMPLES, asdict(samples[-1]))
        return RunFinished(
            run=str(self.directory.path),
            seconds=time.perf_counter() - self.started,
            base_held_out_loss=base.evaluated.held_out_loss,
            held_out_loss=last.held_out_loss,
            base_train_loss=base.evaluated.train_loss,
            train_loss=last.train_loss,
            samples=tuple(samples),
            alpha=self.recipe.neftune.alpha,
            paired_run=find_paired_run(self.written, self.directory.path.parent),
            earlier_seconds=self.resume.seconds if self.resume else 0.0,
            base_answer_metrics=base.evaluated.answer_metrics,
            answer_metrics=last.answer_metrics,
        )

    def _finish(self, finished: RunFinished, assets: Assets, notes: Sequence[str]) -> None:
        """Write the model card and the results, and remove the checkpoints."""
        from neftcli.models.settings_files import needs_transformers_5
        from neftcli.training.model_card import model_card, selection_note

        model = self.directory.model
        weights = {file.name: file_sha256(file) for file in sorted(model.glob("*.safetensors"))}
        self.record.update(weights_sha256=weights)
        if note := selection_note(self.record.fields):
            notes = [*notes, note]
        if setting := needs_transformers_5(model):
            notes = [*notes, f"like its base model it needs transformers 5: {setting}"]
        chat = assets.prepared.counts.format != "text"
        card = model_card(self.written, assets.reference, self.record.fields, finished, notes=notes, chat=chat)
        atomic_write(model / "README.md", card)
        losses = {key: value for key, value in asdict(finished).items() if key.endswith("loss")}
        metrics = {"base_answer_metrics": finished.base_answer_metrics, "answer_metrics": finished.answer_metrics}
        results = {"seconds": finished.seconds, **losses, **(metrics if finished.answer_metrics else {})}
        self.record.end("finished", results=results)
        for reporter in self.reporters:
            with suppress(OSError):  # the run is finished, even if its record can't be written again
                reporter.finish("finished", finished)
        if not self.directory.remove_checkpoints():
            self.notify(Notice(f"{self.directory.checkpoints} can't be removed; it is not needed any more"))
