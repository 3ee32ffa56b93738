"""Experiment trackers of `--report-to`, one entry for each.

transformers' own callbacks send what the trainer logs. A class in `backends.py` starts or resumes the tracker's run
before, so that its folder, its name and its group are neft's, and adds the recipe and the results.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from neftcli.errors import Checks, InputError, Problem
from neftcli.system.hub import HUB_TRUE
from neftcli.trackers import backends


@dataclass(frozen=True)
class Tracker:
    """An experiment tracker.

    Attributes:
        id: Value of --report-to; transformers' name, except for comet.
        name: Name in notices.
        module: Module that must be installed.
        backend: Class that starts, resumes and ends the tracker's run.
        folder_variable: Environment variable that names a folder or a store other than the run's; for the docs.
        switched_off: Environment variable to the values that switch the tracker off, in capitals; case is ignored.
        require_access: Raises an InputError if the tracker would ask for a key that is not there.
        run_id_variable: Environment variable with the id of the tracker's run to report to; empty if there is none.
    """

    id: str
    name: str
    module: str
    backend: type[backends.Backend]
    folder_variable: str
    switched_off: Mapping[str, Sequence[str]] = field(default_factory=dict)
    require_access: Callable[[], None] = lambda: None
    run_id_variable: str = ""

    def switch(self) -> str | None:
        """Return the environment variable that switches the tracker off, with its value; None if it is on."""
        for name, values in self.switched_off.items():
            value = os.environ.get(name, "")
            if value.upper() in values:
                return f"{name}={value}"
        return None

    def reports_verdicts(self) -> bool:
        """Return whether it gets the verdicts of evaluations and sweeps as well."""
        return self.backend.add_verdict is not backends.Backend.add_verdict

    def is_installed(self) -> bool:
        """Return whether its package is installed."""
        return importlib.util.find_spec(self.module) is not None


TRACKERS: dict[str, Tracker] = {
    tracker.id: tracker
    for tracker in (
        Tracker("tensorboard", "TensorBoard", "tensorboard", backends.TensorBoard, "TENSORBOARD_LOGGING_DIR"),
        Tracker(
            "wandb",
            "Weights & Biases",
            "wandb",
            backends.Wandb,
            "WANDB_DIR",
            {"WANDB_MODE": ("DISABLED",), "WANDB_DISABLED": HUB_TRUE},
            backends.require_wandb_key,
            run_id_variable="WANDB_RUN_ID",
        ),
        Tracker(
            "mlflow",
            "MLflow",
            "mlflow",
            backends.MLflow,
            "MLFLOW_TRACKING_URI",
            {"DISABLE_MLFLOW_INTEGRATION": ("TRUE",)},
            run_id_variable="MLFLOW_RUN_ID",
        ),
        Tracker("trackio", "Trackio", "trackio", backends.Trackio, "TRACKIO_DIR"),
        Tracker(
            "comet",
            "Comet",
            "comet_ml",
            backends.Comet,
            "COMET_OFFLINE_DIRECTORY",
            run_id_variable="COMET_EXPERIMENT_KEY",
        ),
        Tracker(
            "swanlab",
            "SwanLab",
            "swanlab",
            backends.SwanLab,
            "SWANLAB_LOG_DIR",
            {"SWANLAB_MODE": ("DISABLED",)},
        ),
    )
}
"""The trackers by their ids."""


def require_trackers(ids: Iterable[str]) -> None:
    """Check that trackers can be used: installed, and with a key if they need one; those switched off are not checked.

    Raises:
        InputError: One of them can't be used.
    """
    checks = Checks()
    for tracker in (TRACKERS[tracker_id] for tracker_id in ids):
        if tracker.switch() is not None:
            continue
        with checks:
            if not tracker.is_installed():
                message = f"training.report_to: {tracker.id} needs the package {tracker.module}"
                raise InputError(Problem(message, "it is not installed", f"pip install 'neftcli[{tracker.id}]'"))
            tracker.require_access()
    checks.raise_errors()
