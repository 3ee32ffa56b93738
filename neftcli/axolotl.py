"""Plugin of axolotl: NEFTune with the scaling of the paper in trainings by axolotl.

    plugins:
      - neftcli.axolotl.NeftunePlugin
    neftune:
      alpha: 5

axolotl's own `neftune_noise_alpha` scales the noise by the padded length, and must be left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field, model_validator

from neftcli.neftune.callback import NeftuneCallback
from neftcli.neftune.noise import Schedule


class NeftuneOptions(BaseModel):
    """Values of `neftune` in axolotl's configuration: those of `NeftuneCallback`, without symmetric noise."""

    model_config = ConfigDict(extra="forbid")

    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    noise: Literal["uniform", "gaussian"] = "uniform"
    length: Literal["tokens", "padded"] = "tokens"
    schedule: Schedule = "constant"


class NeftuneArgs(BaseModel):
    """Options that the plugin adds to axolotl's configuration."""

    neftune: NeftuneOptions = NeftuneOptions()

    @model_validator(mode="before")
    @classmethod
    def reject_second_noise(cls, data: Any) -> Any:
        """Check that axolotl adds no noise of its own.

        Raises:
            ValueError: It would.
        """
        if data.get("neftune_noise_alpha") is not None:
            raise ValueError("neftune_noise_alpha and NeftunePlugin both add noise: leave neftune_noise_alpha out")
        return data


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
