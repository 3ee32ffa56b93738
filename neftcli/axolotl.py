"""Plugin of axolotl: NEFTune with the scaling of the paper in trainings by axolotl.

    plugins:
      - neftcli.axolotl.NeftunePlugin
    neftune:
      alpha: 5

axolotl's own `neftune_noise_alpha` scales the noise by the padded length, and must be left out.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field

from neftcli.neftune.callback import NeftuneCallback
from neftcli.neftune.noise import NoiseKind, Schedule


class NeftuneOptions(BaseModel):
    """Values of `neftune` in axolotl's configuration; they are those of `NeftuneCallback`."""

    model_config = ConfigDict(extra="forbid")

    alpha: float = 5.0
    noise: NoiseKind = "uniform"
    length: str = "tokens"
    schedule: Schedule = "constant"


class NeftuneArgs(BaseModel):
    """Options that the plugin adds to axolotl's configuration."""

    neftune: NeftuneOptions = Field(default_factory=NeftuneOptions)


class NeftunePlugin(BasePlugin):  # type: ignore[misc] # axolotl has no types here
    """Adds `NeftuneCallback` to axolotl's trainer."""

    def get_input_args(self) -> str:
        """Return the path of the class that axolotl adds to its configuration."""
        return f"{__name__}.{NeftuneArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[NeftuneCallback]:
        """Return the callback for axolotl's trainer.

        Args:
            cfg: axolotl's configuration.
            trainer: The trainer.
        """
        options = NeftuneOptions.model_validate(dict(cfg["neftune"] or {}))
        return [NeftuneCallback(**options.model_dump())]
