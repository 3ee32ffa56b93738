"""Start, resume and end the runs of experiment trackers, around transformers' own callbacks.

A class here starts the tracker's run first; transformers' callback then finds it and uses it. Files go to the folder
`trackers/` of the run or, for a sweep's cells, of the sweep, unless the tracker's own environment variable names a
different place. Keys are read by the trackers themselves.

Trackers keep settings in the process: environment variables, and constants of their modules. What a run changes is
restored when it ends, so that the next run of the process finds only the user's settings.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from neftcli.errors import InputError, Problem
from neftcli.events import Evaluated, StepLogged
from neftcli.system.files import remove
from neftcli.system.network import redact_password
from neftcli.trackers.isolation import describe_failure, without_output

PROJECT = "neft"
"""Project of trackers that have projects, unless the environment names one."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids of trackers' runs that are read from a record, which somebody else may have changed."""
LOSS, HELD_OUT_LOSS = "loss", "eval_held_out_loss"
"""Names under which transformers' callbacks get the loss of a log row and that of an evaluation."""
FINISH_SECONDS = 60
"""Seconds that a tracker may take to send its last rows; the rest stays on the disk."""
WANDB_FILE_HEADER = 7
"""Bytes of wandb's own at the start of a `.wandb` file."""
FRAGMENT_HEADER, BLOCK = 7, 2**15
"""Sizes of LevelDB's log format, in bytes."""
MLFLOW_BATCH = 100
MLFLOW_LONGEST = 500
MLFLOW_LONGEST_TAG = 5000


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker gets it.

    Attributes:
        name: Its name.
        store: Folder for the trackers' files.
        group: Name of the sweep that it is a cell of; None for a single run.
        id: Id of the tracker's run that an earlier process started; None for a new run.
        step: Steps done; 0 for a run that starts, or starts over.
        resumes: An earlier process has reported.
        purges: What an earlier process has reported after `step` is removed, since it is reported again.
    """

    name: str
    store: Path
    group: str | None = None
    id: str | None = None
    step: int = 0
    resumes: bool = False
    purges: bool = True


class Backend:
    """The run of a tracker.

    Args:
        run: The run that is reported.

    Attributes:
        id: Id of the tracker's run, to resume it; None if it has none.
        location: Where the results are: a folder or a URL.
        view: A command that shows them; empty if the location is a page.
        loses_rows: A kill loses rows that were reported before it, since the tracker writes them with a delay.
    """

    view: str = ""
    loses_rows: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.id = run.id if run.id and RUN_ID.fullmatch(run.id) else None
        self.location = ""
        self._is_ended = False
        self._settings = ExitStack()  # restores what this run changes in the process

    def start(self) -> Any:
        """Start or resume the tracker's run, and return transformers' callback for it."""
        raise NotImplementedError

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the resolved recipe: its options by dotted keys, and as YAML."""

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the final results."""

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Add the verdict of a comparison, after `start`, without the callback: its sentences, and numbers by name."""
        raise NotImplementedError

    def reported_steps(self) -> dict[str, int] | None:
        """Return the last step that an earlier process has reported, by kind of row; None if it can't be found out."""
        return None

    def finish(self, status: str) -> None:
        """End the tracker's run, if it was started, with the status of run.json, and restore the process's settings.

        It is called after the callback's `on_train_end`, or after a failure at any place. Only the first call counts.
        """
        if not self._is_ended:
            self._is_ended = True
            with self._settings:
                self.end_run(status)

    def end_run(self, status: str) -> None:
        """End the tracker's run; called by `finish`."""

    def finish_quietly(self) -> None:
        """End the tracker's run after a failure, so that the next run of this process can start its own."""
        try:
            with without_output():
                self.finish("failed")
        except Exception as error:
            logging.getLogger(__name__).warning("a tracker's run was not ended: %s", describe_failure(error))

    def set_variable(self, name: str, value: str | None) -> None:
        """Set an environment variable, or remove it, until the run ends."""
        self._settings.callback(_set_variable, name, os.environ.get(name))
        _set_variable(name, value)

    def set_default(self, name: str, value: str) -> None:
        """Set an environment variable that the user has not set, until the run ends."""
        if not os.environ.get(name):
            self.set_variable(name, value)


class TensorBoard(Backend):
    """Event files. Rows of steps that are repeated after a kill replace the earlier ones."""

    _writer: Any = None

    def start(self) -> Any:
        """Open the event file; what was reported after the checkpoint is purged."""
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        folder = self.run.store / "tensorboard"
        parent = os.environ.get("TENSORBOARD_LOGGING_DIR")
        if parent:
            folder = Path(parent).expanduser() / self.run.name
        elif self.run.group:
            folder /= self.run.name
        self.location, self.view = str(folder), f"tensorboard --logdir {shlex.quote(str(folder))}"
        purged = (self.run.step + 1 if self.run.step else 0) if self.run.resumes and self.run.purges else None
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=purged)
        return TensorBoardCallback(self._writer)

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe as text."""
        self._writer.add_text("recipe", "".join(f"    {line}\n" for line in recipe.splitlines()), self.run.step)

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results as scalars of the last step."""
        for name, value in results.items():
            self._writer.add_scalar(f"final/{name}", value, step)

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Add the sentences as text, and the numbers as scalars of the last step."""
        self._writer.add_text("verdict", "\n\n".join(sentences), self.run.step)
        for name, value in numbers.items():
            self._writer.add_scalar(f"verdict/{name}", value, self.run.step)

    def reported_steps(self) -> dict[str, int]:
        """Return no step: what is reported again replaces what was purged."""
        return {}

    def end_run(self, status: str) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class Wandb(Backend):
    """Weights & Biases, online or, with WANDB_MODE=offline, in files that `wandb sync` uploads."""

    loses_rows = True
    _run: Any = None
    _is_foreign = False

    def start(self) -> Any:
        """Start or resume the run; a run that the calling program has started is used and stays open."""
        import wandb
        from transformers.integrations import WandbCallback

        self._is_foreign = wandb.run is not None
        if not self._is_foreign:
            folder = os.environ.get("WANDB_DIR") or str(self.run.store)
            Path(folder).mkdir(parents=True, exist_ok=True)
            of_environment = None if self.run.group else os.environ.get("WANDB_RUN_ID")
            # Without links, since neft writes into no folder with links. The console is neft's.
            settings = wandb.Settings(console="off", silent=True, symlink=False, finish_timeout=FINISH_SECONDS)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=(None if self.run.group else os.environ.get("WANDB_NAME")) or self.run.name,
                group=os.environ.get("WANDB_RUN_GROUP") or self.run.group,
                id=self.id or of_environment,
                resume="allow",
                dir=folder,
                settings=settings,
            )
        else:
            self._run = wandb.run
        files = Path(self._run.dir).parent
        if not self._is_foreign:
            remove_links(files)
        self.id, url = self._run.id, self._run.url
        self.location = url or str(files)
        self.view = "" if url else f"wandb sync {shlex.quote(str(files))}"
        return WandbCallback()

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe to the config."""
        self._run.config.update({"neft": {**settings, "recipe_yaml": recipe}}, allow_val_change=True)

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results to the summary."""
        self._run.summary.update({f"final/{name}": value for name, value in results.items()})

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Add sentences and numbers to the summary."""
        if self._is_foreign and self._run.id != self.run.id:
            raise RuntimeError(f"the program has an open run, {self._run.id}, which is not the one of {self.run.name}")
        values = {f"verdict/{name}": value for name, value in numbers.items()}
        self._run.summary.update({**values, "verdict/text": "\n".join(sentences)})

    def reported_steps(self) -> dict[str, int]:
        """Return the last steps in the files of an offline run, or in the summary that the server has.

        A kill loses the last rows that were reported, so `metrics.jsonl` does not say which arrived.
        """
        if self._run.offline:
            return _offline_steps(Path(self._run.dir).parent.parent, self._run.id)
        step = self._run.summary.get("train/global_step")
        # The evaluation of the last step may be missing.
        return {} if step is None else {StepLogged.id: int(step), Evaluated.id: int(step) - 1}

    def end_run(self, status: str) -> None:
        """End the run: finished, preempted, or for all else failed."""
        if self._run is None or self._is_foreign:
            return
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MLflow(Backend):
    """A tracking server, a database, or by default a file store in the folder `trackers/`."""

    STATUSES: ClassVar[Mapping[str, str]] = {"finished": "FINISHED", "failed": "FAILED"}
    _is_started = False

    def start(self) -> Any:
        """Start or resume the run in the experiment of the sweep, or of the environment, or `neft`."""
        import mlflow
        from transformers.integrations import MLflowCallback

        self._mlflow = mlflow
        uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
        if not uri:
            store = (self.run.store / "mlflow").absolute()
            store.mkdir(parents=True, exist_ok=True)
            uri = store.as_uri()
        is_local = uri.startswith("file:") or "://" not in uri
        if is_local:
            self.set_default("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions refuse them otherwise
        # A server that can't be reached does not hold up a run for minutes.
        self.set_default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        self.set_default("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._keep_destination()
        mlflow.set_tracking_uri(uri)
        self.location = redact_password(uri)
        self.view = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {shlex.quote(uri)}" if is_local else ""
        self._set_experiment(self.run.group or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        of_environment = os.environ.get("MLFLOW_RUN_ID") or None
        wanted = self.id or (None if self.run.group else of_environment)
        # The callback would start a second run by these. As in MLflow, an id is for one run, so it is not restored.
        if wanted == of_environment:
            os.environ.pop("MLFLOW_RUN_ID", None)
        self.set_variable("MLFLOW_RUN_ID", None)
        self.set_variable("MLFLOW_NESTED_RUN", None)
        resumed = wanted is not None and self._resume(wanted)
        if not resumed:
            mlflow.start_run(run_name=self.run.name, tags={"neft.group": self.run.group or ""})
        self._is_started, self._is_new = True, not resumed
        self.id = mlflow.active_run().info.run_id

        class Callback(MLflowCallback):  # type: ignore[misc]
            """transformers' callback; with files its errors are raised where they happen."""

            def setup(self, args: Any, state: Any, model: Any) -> None:
                before = os.environ.get("MLFLOW_MAX_LOG_PARAMS")
                if resumed:  # parameters can't change
                    os.environ["MLFLOW_MAX_LOG_PARAMS"] = "0"
                try:
                    super().setup(args, state, model)
                finally:
                    if resumed:
                        os.environ.pop("MLFLOW_MAX_LOG_PARAMS")
                    if before is not None:
                        os.environ["MLFLOW_MAX_LOG_PARAMS"] = before
                if is_local:
                    self._async_log = False

        return Callback()

    def _keep_destination(self) -> None:
        """Restore MLflow's store and experiment when the run ends: its modules and the environment have both."""
        from mlflow.tracking import fluent

        experiment = getattr(fluent, "_active_experiment_id", None)
        uri = self._mlflow.get_tracking_uri() if self._mlflow.is_tracking_uri_set() else None
        for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
            self._settings.callback(_set_variable, name, os.environ.get(name))
        self._settings.callback(setattr, fluent, "_active_experiment_id", experiment)
        self._settings.callback(self._mlflow.set_tracking_uri, uri)

    def _set_experiment(self, name: str) -> None:
        try:
            self._mlflow.set_experiment(name)
        except self._mlflow.exceptions.MlflowException:  # another cell of the sweep has created it meanwhile
            self._mlflow.set_experiment(name)

    def _resume(self, run_id: str) -> bool:
        """Resume a run, and return whether it is still there."""
        try:
            self._mlflow.start_run(run_id=run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe as parameters, which can't change later, and as a file."""
        if self._is_new:
            texts = [(f"neft.{key}", str(value)[:MLFLOW_LONGEST]) for key, value in settings.items()]
            for start in range(0, len(texts), MLFLOW_BATCH):
                self._mlflow.log_params(dict(texts[start : start + MLFLOW_BATCH]))
        self._mlflow.log_text(recipe, "recipe.yaml")

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results as metrics."""
        self._mlflow.log_metrics({f"final/{name}": value for name, value in results.items()}, step=step)

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Add the numbers as metrics, and the sentences as a tag and a file."""
        text = "\n".join(sentences)
        self._mlflow.log_metrics({f"verdict/{name}": value for name, value in numbers.items()}, step=self.run.step)
        self._mlflow.set_tag("neft.verdict", text[:MLFLOW_LONGEST_TAG])
        self._mlflow.log_text(text, "verdict.txt")

    def reported_steps(self) -> dict[str, int]:
        """Return the last steps in the store."""
        client = self._mlflow.MlflowClient()
        reported = {}
        for kind, name in ((StepLogged.id, LOSS), (Evaluated.id, HELD_OUT_LOSS)):
            history = client.get_metric_history(self.id, name)
            if history:
                reported[kind] = max(metric.step for metric in history)
        return reported

    def end_run(self, status: str) -> None:
        """Send what is queued, and end the run."""
        if not self._is_started:
            return
        try:
            self._mlflow.flush_async_logging()
        finally:
            self._mlflow.end_run(self.STATUSES.get(status, "KILLED"))


class Trackio(Backend):
    """Trackio: a local database, or a Space or server that its environment variables name."""

    loses_rows = True
    _started: Any = None

    def start(self) -> Any:
        """Start or resume the run in the project `neft`."""
        import trackio
        from transformers.integrations import TrackioCallback

        self._trackio = trackio
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()  # as trackio.init does, but while the folder is still that of the earlier run
        if not os.environ.get("TRACKIO_DIR"):
            self._use_folder((self.run.store / "trackio").absolute())
        self._started = trackio.init(
            project=PROJECT,
            name=self.run.name,
            group=self.run.group,
            resume="allow" if self.run.resumes else "never",
            embed=False,
        )
        self.id = self._started.id
        folder = trackio.utils.TRACKIO_DIR
        self.location = str(folder)
        self.view = f"TRACKIO_DIR={shlex.quote(str(folder))} trackio show --project {PROJECT}"

        class Callback(TrackioCallback):  # type: ignore[misc]
            """transformers' callback on the run that was started, which has a group."""

            def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
                config = dict(args.to_dict())
                if getattr(model, "config", None) is not None:
                    config = {**model.config.to_dict(), **config}
                self._space_id = trackio.context_vars.current_space_id.get()
                trackio.config.update(config, allow_val_change=True)
                self._initialized = True

        return Callback()

    def _use_folder(self, folder: Path) -> None:
        """Make Trackio write to a folder until the run ends: it reads TRACKIO_DIR once, when it is imported.

        Raises:
            RuntimeError: This version of Trackio writes elsewhere.
        """
        from trackio.sqlite_storage import SQLiteStorage

        self.set_variable("TRACKIO_DIR", str(folder))
        folders = {"TRACKIO_DIR": folder, "MEDIA_DIR": folder / "media", "ARTIFACTS_DIR": folder / "artifacts"}
        for module_name, module in list(sys.modules.items()):
            if module_name.split(".")[0] != "trackio":
                continue
            for name, path in folders.items():
                if isinstance(vars(module).get(name), Path):
                    self._settings.callback(setattr, module, name, vars(module)[name])
                    setattr(module, name, path)
        database = SQLiteStorage.get_project_db_path(PROJECT)
        if database.parent != folder:
            raise RuntimeError(f"this version of Trackio writes to {database.parent}; set TRACKIO_DIR")

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe to the config."""
        self._trackio.config.update({"neft": {**settings, "recipe_yaml": recipe}}, allow_val_change=True)

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results as a row of the last step."""
        final = {f"final/{name}": value for name, value in results.items()}
        self._trackio.log({**final, "train/global_step": step})

    def add_verdict(self, sentences: Sequence[str], numbers: Mapping[str, float]) -> None:
        """Add the numbers and the sentences as a row of the last step."""
        values = {f"verdict/{name}": value for name, value in numbers.items()}
        text = self._trackio.Markdown("\n\n".join(sentences))
        self._trackio.log({**values, "verdict/text": text, "train/global_step": self.run.step})

    def reported_steps(self) -> dict[str, int] | None:
        """Return the last steps in the local database."""
        from trackio.sqlite_storage import SQLiteStorage

        if self._trackio.context_vars.current_server.get() is not None:
            return None
        rows = SQLiteStorage.get_logs(PROJECT, self.run.name, run_id=self.id)
        reported: dict[str, int] = {}
        for kind, name in ((StepLogged.id, "train/loss"), (Evaluated.id, "eval/held_out_loss")):
            steps = [int(row["train/global_step"]) for row in rows if name in row and "train/global_step" in row]
            if steps:
                reported[kind] = max(steps)
        return reported

    def end_run(self, status: str) -> None:
        """End the run if transformers' callback has not ended it, because the training has not come that far."""
        if self._started is not None and self._trackio.context_vars.current_run.get() is self._started:
            self._trackio.finish()


class Comet(Backend):
    """Comet, online or offline (COMET_START_ONLINE=0)."""

    _callback: Any = None

    def start(self) -> Any:
        """Return transformers' callback, which starts or resumes the experiment."""
        from transformers.integrations import CometCallback

        self.set_default("COMET_PROJECT_NAME", PROJECT)
        self.set_default("COMET_OFFLINE_DIRECTORY", str((self.run.store / "comet").absolute()))
        if self.id or self.run.group:  # each cell has its own
            self.set_variable("COMET_EXPERIMENT_KEY", self.id)
        self._callback = CometCallback()
        self.location = os.environ["COMET_OFFLINE_DIRECTORY"]
        return self._callback

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe as parameters, and the sweep as a tag."""
        experiment = self._callback._experiment
        self.id, self.location = experiment.get_key(), experiment.url or self.location
        experiment.log_parameters({f"neft.{key}": str(value) for key, value in settings.items()})
        if self.run.group:
            experiment.add_tag(self.run.group)

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results as metrics."""
        self._callback._experiment.log_metrics({f"final/{name}": value for name, value in results.items()}, step=step)

    def end_run(self, status: str) -> None:
        """End the experiment."""
        if self._callback is not None and self._callback._experiment is not None:
            self._callback._experiment.end()


class SwanLab(Backend):
    """SwanLab, online or local (SWANLAB_MODE=local)."""

    _is_started = False

    def start(self) -> Any:
        """Start or resume the experiment."""
        import swanlab
        from transformers.integrations import SwanLabCallback

        self._swanlab = swanlab
        folder = os.environ.get("SWANLAB_LOG_DIR") or str((self.run.store / "swanlab").absolute())
        Path(folder).mkdir(parents=True, exist_ok=True)
        resumed = {"id": self.id, "resume": "allow"} if self.id else {}
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT") or PROJECT,
            experiment_name=self.run.name,
            tags=[self.run.group] if self.run.group else None,
            logdir=folder,
            **resumed,
        )
        self._is_started = True
        self.id = getattr(swanlab.get_run(), "id", None)
        self.location, self.view = folder, f"swanlab watch {shlex.quote(folder)}"
        return SwanLabCallback()

    def add_settings(self, settings: Mapping[str, Any], recipe: str) -> None:
        """Add the recipe to the config."""
        self._swanlab.config.update({f"neft.{key}": str(value) for key, value in settings.items()})

    def add_results(self, results: Mapping[str, float], step: int) -> None:
        """Add the results as metrics."""
        self._swanlab.log({f"final/{name}": value for name, value in results.items()}, step=step)

    def end_run(self, status: str) -> None:
        """End the experiment."""
        if self._is_started:
            self._swanlab.finish(state="success" if status == "finished" else "crashed", error=status)


def _set_variable(name: str, value: str | None) -> None:
    """Set an environment variable, or remove it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _offline_steps(folder: Path, run_id: str) -> dict[str, int]:
    """Return the last steps in wandb's files of an offline run, by kind of row; none if they can't be read."""
    reported: dict[str, int] = {}
    try:
        from wandb.proto.wandb_internal_pb2 import Record

        for file in folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"):
            for content in read_wandb_records(file.read_bytes()):
                items = Record.FromString(content).history.item
                row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
                for kind, name in ((StepLogged.id, "train/loss"), (Evaluated.id, "eval/held_out_loss")):
                    if name in row and "train/global_step" in row:
                        reported[kind] = max(reported.get(kind, 0), int(row["train/global_step"]))
    except Exception:  # a different version's format: rows twice are better than rows missing
        return {}
    return reported


def read_wandb_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file: LevelDB's log format after 7 bytes of its own.

        block  = 32768 bytes of fragments; a rest below 7 bytes is unused
        fragment = checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), data

    A killed process leaves an incomplete last record, which is left out.
    """
    position, record = WANDB_FILE_HEADER, b""
    while position + FRAGMENT_HEADER <= len(content):
        rest = BLOCK - position % BLOCK
        if rest < FRAGMENT_HEADER:
            position += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += FRAGMENT_HEADER
        if position + length > len(content):
            return
        record += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield record
            record = b""


def remove_links(folder: Path) -> None:
    """Remove the links in the folder of wandb's run, to logs in the home folder: neft resumes no run with links."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            remove(path)


def require_wandb_key() -> None:
    """Check that wandb has a key, or works offline: it would ask for one in the middle of the display.

    Raises:
        InputError: It has none.
    """
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return
    host = re.sub(r"^\w+://|[:/].*$", "", os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    if not any(host in text for text in _netrc_texts()):
        message = "training.report_to: wandb has no API key"
        hint = "wandb login, or WANDB_MODE=offline before the command"
        raise InputError(Problem(message, f"no WANDB_API_KEY, and no {host} in ~/.netrc", hint))


def _netrc_texts() -> Iterable[str]:
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        try:
            yield Path(name).expanduser().read_text(encoding="utf-8", errors="replace")
        except (OSError, RuntimeError):  # there is none, or no home folder
            continue
