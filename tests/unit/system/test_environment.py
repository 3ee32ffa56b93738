"""Environment variables that are dropped, reported, recorded and rejected.

Oracle: the tables of docs/environment.md, written out here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from neftcli.errors import InputError
from neftcli.events import Event, Notice
from neftcli.system import environment

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class Listener:
    """Observer that keeps the notices."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def notify(self, event: Event) -> None:
        """Keep a notice."""
        assert isinstance(event, Notice)
        self.messages.append(event.message)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setattr(environment, "dropped_variables", environment.DroppedVariables())
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.gradient_accumulation_steps"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--processes"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "training.torch_compile"),
        ("ACCELERATE_WHATEVER_COMES_NEXT", "1", "--processes"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "--processes"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", "training.precision"),
        ("NVIDIA_TF32_OVERRIDE", "1", "training.precision"),
        ("OMPI_COMM_WORLD_SIZE", "4", "torchrun"),
    ],
)
def test_drop_overrides_names_the_variable_and_the_replacement(name: str, value: str, instead: str) -> None:
    os.environ[name] = value
    environment.drop_overrides()
    assert name not in os.environ
    listener = Listener()
    environment.report_dropped(listener)
    [message] = listener.messages
    assert message.startswith(f"{name} was dropped from the environment")
    assert instead in message
    environment.report_dropped(listener)
    assert len(listener.messages) == 1  # once


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("FSDP_VERSION", ""),
        ("PMI_SIZE", "1"),
    ],
)
def test_drop_overrides_without_effect_gives_no_notice(name: str, value: str) -> None:
    os.environ[name] = value
    environment.drop_overrides()
    listener = Listener()
    environment.report_dropped(listener)
    assert name not in os.environ
    assert not listener.messages


def test_drop_overrides_keeps_launcher_of_several_and_forbidden_tf32() -> None:
    kept = {"NVIDIA_TF32_OVERRIDE": "0", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ.update(kept)
    environment.drop_overrides()
    assert {name: os.environ.get(name) for name in kept} == kept


@pytest.mark.parametrize("given", [{"LOCAL_RANK": "-1"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_drop_overrides_clears_launcher_of_one_process(given: dict[str, str]) -> None:
    os.environ.update(given)
    environment.drop_overrides()
    assert not any(name in os.environ for name in LAUNCHER)


def test_drop_overrides_ignores_variables_that_libraries_set() -> None:
    environment.drop_overrides()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    environment.drop_overrides()
    listener = Listener()
    environment.report_dropped(listener)
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert not listener.messages


def test_recorded_variables_have_no_paths_or_secrets() -> None:
    os.environ.update(MKL_CBWR="COMPATIBLE", OMP_NUM_THREADS="3", TORCH_HOME="/home/me")
    os.environ.update(TORCHINDUCTOR_REDIS_URL="redis://me:secret@host", HF_TOKEN="hf_secret")  # noqa: S106
    variables = environment.recorded_variables()
    assert variables["MKL_CBWR"] == "COMPATIBLE"
    assert variables["OMP_NUM_THREADS"] == "3"
    assert not {"TORCH_HOME", "TORCHINDUCTOR_REDIS_URL", "HF_TOKEN"} & variables.keys()
    listener = Listener()
    environment.report_dropped(listener)
    assert [message.split()[0] for message in listener.messages] == ["MKL_CBWR"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "abc"),
        ("OMP_NUM_THREADS", "0"),
        ("OMP_NUM_THREADS", "2,0"),
        ("OMP_NUM_THREADS", "99999999999999999999"),
        ("HF_DATASETS_IN_MEMORY_MAX_SIZE", "lots"),
        ("HF_HUB_ETAG_TIMEOUT", "soon"),
    ],
)
def test_require_valid_variables_names_the_variable(name: str, value: str) -> None:
    os.environ[name] = value
    with pytest.raises(InputError, match=name):
        environment.require_valid_variables()


def test_require_valid_variables_accepts_what_libraries_accept() -> None:
    os.environ.update(OMP_NUM_THREADS="4,2", HF_HUB_ETAG_TIMEOUT="10", MKL_NUM_THREADS="")
    environment.require_valid_variables()
